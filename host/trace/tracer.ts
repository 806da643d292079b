/**
 * Counts every event, per vCPU and for the virtual machine; keeps records in a ring when asked.
 *
 * @module
 */

import { TRACEPOINTS, type TracepointSpec } from "./tracepoints.ts";

/** Where exits by number begin in a row of counts: behind the tracepoints. */
export const FIRST_EXIT: number = TRACEPOINTS.length;

/**
 * The place of an exit's number among the exits in a row. SVM's numbers are below 0x100, but for a few from 0x400 on
 * (APM 2 appendix C); rows with a gap between them would be spread over four times as many pages.
 */
export function exitPlace(exit: number): number {
  return (exit & 0xff) | ((exit >>> 2) & 0x100);
}

/** The exit whose place that is. */
export function exitAt(place: number): number {
  return (place & 0xff) | ((place & 0x100) << 2);
}

/** Who an event belongs to when no vCPU ran: a device, a timer, user space. */
export const NOBODY: number = -1;

/** Words of a record: time (two words), who and which event, five arguments. */
export const RECORD_WORDS = 8;
/** The most records that a ring may have. */
export const RING_LIMIT: number = 1 << 24;

/** How many vCPUs count in one array. */
const NEIGHBOURS = 16;

/** Where a vCPU counts. */
export interface CountRow {
  /** An array, which neighbours share: among many vCPUs, the header of one for each would be a cache miss at each exit. */
  readonly counts: Uint32Array;
  /** The place of tracepoint 0; exits by number follow behind the last one. */
  readonly start: number;
}

/** One event, as the ring kept it. */
export interface TraceRecord {
  /** When, in cycles of the vCPU's clock. */
  readonly time: number;
  /** The vCPU's index; {@linkcode NOBODY} for none. */
  readonly vcpu: number;
  /** The tracepoint's number. */
  readonly event: number;
  /** Five argument words; what they mean, the tracepoint says. */
  readonly args: readonly number[];
}

/** The events of one virtual machine. */
export class Tracer {
  /**
   * Counts by tracepoint: a row for events without a vCPU, then one for each vCPU, with its exits behind. Whoever wants to
   * know them asks {@linkcode count}, {@linkcode total} and {@linkcode exits}: what is here may be late.
   */
  declare readonly counts: Uint32Array[];
  /** Whether records are kept. */
  declare readonly recording: boolean;

  readonly #events: number;
  readonly #capacity: number;
  readonly #words: Uint32Array;
  readonly #times: Float64Array;
  #written = 0;
  #shared = new Uint32Array(0);
  #next = 0;
  /** By row: brings it up to date; undefined where it always is. */
  readonly #pending: ((() => void) | undefined)[] = [undefined];

  /**
   * Counts `tracepoints`, x86's unless others are given; with `ring` > 0 it also keeps the last `ring` records. Throws
   * `RangeError` above 2^24.
   */
  constructor(ring: number = 0, tracepoints: readonly TracepointSpec[] = TRACEPOINTS) {
    if (!Number.isInteger(ring) || ring < 0 || ring > RING_LIMIT) {
      throw new RangeError(`Cannot keep ${ring} trace records: allowed are 0 to ${RING_LIMIT}`);
    }
    this.#events = tracepoints.length;
    this.counts = [new Uint32Array(this.#events)];
    this.recording = ring > 0;
    this.#capacity = ring;
    const buffer = new ArrayBuffer(4 * RECORD_WORDS * ring);
    this.#words = new Uint32Array(buffer);
    this.#times = new Float64Array(buffer);
  }

  /**
   * Makes a row for one more vCPU, whose exits have `exits` places, and gives it to whoever counts there. That may
   * be late: `addUp` is called before anybody looks.
   */
  addVcpu(exits: number, addUp?: () => void): CountRow {
    this.#pending.push(addUp);
    const length = this.#events + exits;
    if (this.#next + length > this.#shared.length) {
      this.#shared = new Uint32Array(NEIGHBOURS * length);
      this.#next = 0;
    }
    const start = this.#next;
    this.#next += length;
    this.counts.push(this.#shared.subarray(start, this.#next));
    return { counts: this.#shared, start };
  }

  /** Keeps a record without counting; only while {@linkcode recording}. */
  record(
    event: number,
    vcpu: number,
    time: number,
    a: number,
    b: number,
    c: number,
    d: number,
    e: number,
  ): void {
    const at = (this.#written++ % this.#capacity) * RECORD_WORDS;
    const words = this.#words;
    this.#times[at >> 1] = time;
    words[at + 2] = ((vcpu + 1) << 8) | event;
    words[at + 3] = a;
    words[at + 4] = b;
    words[at + 5] = c;
    words[at + 6] = d;
    words[at + 7] = e;
  }

  /** How often an event happened to one vCPU ({@linkcode NOBODY}: outside any). */
  count(event: number, vcpu: number): number {
    return this.#row(vcpu + 1)[event];
  }

  /** How often an event happened in the virtual machine. */
  total(event: number): number {
    let sum = 0;
    for (const index of this.counts.keys()) sum += this.#row(index)[event];
    return sum;
  }

  /** A row, up to date. */
  #row(index: number): Uint32Array {
    this.#pending[index]?.();
    return this.counts[index];
  }

  /** How often each exit happened to one vCPU, by its place. */
  exits(vcpu: number): Uint32Array {
    return this.#row(vcpu + 1).subarray(this.#events);
  }

  /** Records that were overwritten. */
  get lost(): number {
    return Math.max(0, this.#written - this.#capacity);
  }

  /** The records that the ring holds, oldest first. */
  *records(): Generator<TraceRecord, void, void> {
    const words = this.#words;
    for (let n = this.lost; n < this.#written; n++) {
      const at = (n % this.#capacity) * RECORD_WORDS;
      yield {
        time: this.#times[at >> 1],
        vcpu: (words[at + 2] >>> 8) - 1,
        event: words[at + 2] & 0xff,
        args: Array.from(words.subarray(at + 3, at + 8)),
      };
    }
  }

  /** The records as bytes, oldest first, 32 a record: two runs are the same run if these are equal. */
  bytes(): Uint8Array {
    const kept = this.#written - this.lost;
    const out = new Uint32Array(kept * RECORD_WORDS);
    for (let n = 0; n < kept; n++) {
      const at = ((n + this.lost) % this.#capacity) * RECORD_WORDS;
      out.set(this.#words.subarray(at, at + RECORD_WORDS), n * RECORD_WORDS);
    }
    return new Uint8Array(out.buffer);
  }
}
