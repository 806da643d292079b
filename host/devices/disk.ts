/**
 * The host's disk, where pages are that are not in memory: a thread that serves a queue of reads, so many at a time,
 * each as long as its latency says, and calls back in the order in which they complete.
 *
 * @module
 */

import { Thread } from "../core/mod.ts";
import type { Engine } from "../core/mod.ts";
import type { PageExpectation, PageStore } from "../memory/mod.ts";

/** A disk. */
export interface DiskOptions {
  /** Pages that it holds: reads of others are refused. */
  readonly pages: number;
  /** Cycles from a read's start to its completion, 1 at least; or what tells them for the n-th read (from 0). */
  readonly latency: number | ((n: number, page: number) => number);
  /** Reads that it serves at a time; 1 unless given. */
  readonly depth?: number;
  /** The most reads that may wait behind those; 1024 unless given. */
  readonly queue?: number;
  /** Which reads fail; none unless given. They take their time, too. */
  readonly fails?: (n: number, page: number) => boolean;
}

interface Read {
  /** Its number, in order of submission. */
  readonly n: number;
  readonly page: number;
  readonly done: (ok: boolean) => void;
  /** Whether it will go well. */
  readonly ok: boolean;
  /** When it completes, once it is in service. */
  at: number;
}

/** Reads pages. */
export class Disk extends Thread implements PageStore {
  /** Reads that went well. */
  completed = 0;
  /** Reads that failed. */
  failed = 0;

  readonly #pages: number;
  readonly #latency: (n: number, page: number) => number;
  readonly #fails: (n: number, page: number) => boolean;
  readonly #depth: number;
  readonly #limit: number;
  /** In order of completion; ties in order of submission. */
  readonly #serving: Read[] = [];
  /** In order of submission. */
  readonly #waiting: Read[] = [];
  #submitted = 0;
  /** Whether it calls back: what is submitted meanwhile waits for the end of the step. */
  #calling = false;

  /** A disk that nobody reads from. Throws `RangeError` for options that are not whole positive numbers. */
  constructor(engine: Engine, options: DiskOptions) {
    super(engine, "disk");
    const { pages, latency, depth = 1, queue = 1024, fails = () => false } = options;
    this.#pages = atLeast(1, "pages", pages);
    this.#depth = atLeast(1, "depth", depth);
    this.#limit = atLeast(0, "queue", queue);
    this.#fails = fails;
    if (typeof latency === "number") atLeast(1, "latency", latency);
    this.#latency = typeof latency === "number" ? () => latency : latency;
  }

  /** Reads in service and waiting. */
  get pending(): number {
    return this.#serving.length + this.#waiting.length;
  }

  /** Whether another read would be refused. */
  get full(): boolean {
    return this.#serving.length >= this.#depth && this.#waiting.length >= this.#limit;
  }

  /**
   * Submits a read, now; `done` is called in a step of the disk's. Throws `RangeError` for a page that it does not hold,
   * and where it is full.
   */
  read(page: number, done: (ok: boolean) => void): void {
    if (!Number.isInteger(page) || page < 0 || page >= this.#pages) {
      throw new RangeError(`Cannot read page ${page} from disk: allowed are 0 to ${this.#pages - 1}`);
    }
    if (this.full) {
      throw new RangeError(
        `Cannot read page ${page} from disk: ${this.#waiting.length} reads wait already, the most allowed`,
      );
    }
    const n = this.#submitted++;
    const read = { n, page, done, ok: !this.#fails(n, page), at: Infinity };
    if (this.#serving.length >= this.#depth) {
      this.#waiting.push(read);
      return;
    }
    this.#serve(read, this.engine.now);
    if (!this.#calling) this.engine.wake(this, this.#serving[0].at);
  }

  /** Those that wait are served one by one, whenever one in service completes. Throws `RangeError` where no such read is pending. */
  expect(page: number): PageExpectation {
    const busy = this.#serving.map(({ at }) => at);
    const inService = this.#serving.find((read) => read.page === page);
    if (inService !== undefined) return { clock: inService.at, ok: inService.ok };
    for (const read of this.#waiting) {
      const clock = busy.shift()! + this.#latency(read.n, read.page);
      if (read.page === page) return { clock, ok: read.ok };
      const later = busy.findIndex((at) => at > clock);
      busy.splice(later < 0 ? busy.length : later, 0, clock);
    }
    throw new RangeError(`Cannot tell when page ${page} comes from disk: nobody reads it`);
  }

  #serve(read: Read, now: number): void {
    const { n, page } = read;
    read.at = now + atLeast(1, `latency of read ${n}`, this.#latency(n, page));
    const later = this.#serving.findIndex(({ at }) => at > read.at);
    this.#serving.splice(later < 0 ? this.#serving.length : later, 0, read);
  }

  /** Completes one read, and starts the one that waited longest. */
  override step(): void {
    const { ok, done } = this.#serving.shift()!;
    const next = this.#waiting.shift();
    if (next !== undefined) this.#serve(next, this.clock);
    if (ok) this.completed++;
    else this.failed++;
    this.#calling = true;
    try {
      done(ok);
    } finally {
      this.#calling = false;
    }
    if (this.#serving.length > 0) this.engine.wake(this, Math.max(this.#serving[0].at, this.clock));
    else this.engine.park(this);
  }
}

function atLeast(least: number, name: string, value: number): number {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new RangeError(`Cannot use a disk with ${name} ${value}: allowed are whole numbers from ${least}`);
  }
  return value;
}
