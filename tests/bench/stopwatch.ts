/**
 * Time, as a ratio to a yardstick: a bare generator's yield and resume, which is what an instruction of a guest costs
 * before anything is simulated.
 *
 * Machines change their clock as they like, and do other things besides. So each round is measured between two
 * yardsticks, about half a millisecond each; only the quarter of the rounds counts whose two agree best, and of their
 * ratios the lower quartile, as what else the machine does mostly adds.
 *
 * @module
 */

const CALLS = 20;
const YIELDS = 1000;
/** Of the rounds, those that count; of the ratios in order, the one that is the figure. */
const QUARTER = 1 / 4;

function* bare(): Generator<number, void, void> {
  for (;;) yield 1;
}

const generator = bare();

function resume(times: number): number {
  let sum = 0;
  for (let i = 0; i < times; i++) sum += generator.next().value as number;
  return sum;
}

/** Nanoseconds of one yield and resume. */
function yardstick(): number {
  let sum = 0;
  const start = performance.now();
  for (let call = 0; call < CALLS; call++) sum += resume(YIELDS);
  const end = performance.now();
  if (sum !== CALLS * YIELDS) throw new Error(`Cannot trust the yardstick: it yielded ${sum}`);
  return (end - start) * 1e6 / sum;
}

/** What one round was: nanoseconds of an operation and of the yardstick, and by how much two of those differed. */
export interface Round {
  /** Nanoseconds of an operation. */
  readonly operation: number;
  /** Nanoseconds of the yardstick. */
  readonly yardstick: number;
  /** The difference between the yardstick before and behind it, as a part of that. */
  readonly drift: number;
}

/** Measures one figure in rounds: {@linkcode begin}, the operations, {@linkcode end}. */
export class Stopwatch {
  readonly #rounds: Round[] = [];
  #before = 0;
  #start = 0;

  /** Measures the yardstick, and begins a round. */
  begin(): void {
    this.#before = yardstick();
    this.#start = performance.now();
  }

  /** Ends a round of so many operations, and measures the yardstick again. */
  end(operations: number): void {
    const operation = (performance.now() - this.#start) * 1e6 / operations;
    const behind = yardstick();
    const mean = (this.#before + behind) / 2;
    this.#rounds.push({ operation, yardstick: mean, drift: Math.abs(this.#before - behind) / mean });
  }

  /** The round that stands for all. */
  get figure(): Round {
    const steady = this.#rounds.toSorted((a, b) => a.drift - b.drift).slice(0, this.#rounds.length * QUARTER);
    steady.sort((a, b) => a.operation / a.yardstick - b.operation / b.yardstick);
    return steady[Math.floor(steady.length * QUARTER)];
  }
}
