/**
 * Time, as a ratio to a yardstick: a bare generator's yield and resume, which is what an instruction of a guest costs
 * before anything is simulated.
 *
 * Yardstick and figure are measured in turn, about a millisecond each, and of both the least counts: what else the
 * machine does can only add.
 *
 * @module
 */

const CALLS = 40;
const YIELDS = 1000;

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

/** Measures one figure in rounds: {@linkcode begin}, the operations, {@linkcode end}. */
export class Stopwatch {
  /** The least nanoseconds of an operation. */
  operation = Infinity;
  /** The least nanoseconds of the yardstick. */
  yardstick = Infinity;
  #start = 0;

  /** Measures the yardstick, and begins a round. */
  begin(): void {
    this.yardstick = Math.min(this.yardstick, yardstick());
    this.#start = performance.now();
  }

  /** Ends a round of so many operations. */
  end(operations: number): void {
    this.operation = Math.min(this.operation, (performance.now() - this.#start) * 1e6 / operations);
  }
}
