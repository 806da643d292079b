/**
 * The threads that can run, ordered by clock, ties by thread number: a binary heap on typed arrays. Clocks come in
 * through an array as well: a number above 2^31 that is passed to a function would be allocated.
 *
 * @module
 */

import { between, later } from "./time.ts";

/** The most cycles that a thread spends between two looks at the heap: a small integer. */
const SLACK_LIMIT: number = 1 << 28;

/** A heap of thread numbers under (clock, number). */
export class ThreadQueue {
  /** Threads in the heap. */
  size = 0;
  /** Grows with every change of the heap. */
  changes = 0;
  /** Clocks by thread number. One that changes while its thread is in the heap is {@linkcode put} there again. */
  clocks: Float64Array = new Float64Array(64);
  /** Heap order: `ids[0]` runs next. */
  ids: Int32Array = new Int32Array(64);
  /** By thread number: its place in the heap, -1 when it is not there. */
  places: Int32Array = new Int32Array(64).fill(-1);
  /** The clocks by heap place, as they were when the thread was put there. */
  #keys = new Float64Array(64);

  /** Makes room for thread numbers below `count`. */
  reserve(count: number): void {
    if (count <= this.places.length) return;
    const capacity = 2 * count;
    this.clocks = grown(this.clocks, new Float64Array(capacity));
    this.ids = grown(this.ids, new Int32Array(capacity));
    this.places = grown(this.places, new Int32Array(capacity).fill(-1));
    this.#keys = grown(this.#keys, new Float64Array(capacity));
  }

  /** Puts a thread into the heap, or moves it there, under its clock. */
  put(id: number): void {
    this.changes++;
    const key = this.clocks[id];
    let place = this.places[id];
    if (place < 0) place = this.size++;
    else if (key >= this.#keys[place]) return this.#down(place, id);
    this.#up(place, id);
  }

  /** Takes a thread out; nothing happens if it is not in. */
  remove(id: number): void {
    const place = this.places[id];
    if (place < 0) return;
    this.changes++;
    this.places[id] = -1;
    const last = --this.size;
    if (place === last) return;
    // The last one fills the gap.
    const moved = this.ids[last];
    if (place > 0 && this.#before(moved, (place - 1) >> 1)) this.#up(place, moved);
    else this.#down(place, moved);
  }

  /**
   * How many cycles the first thread may spend from its clock on, as a small integer: while it has spent fewer, it
   * stays first, and not past `end`. Not positive when it is not first any more.
   */
  slack(end: number): number {
    const { ids, size } = this;
    const keys = this.#keys;
    const id = ids[0];
    const clock = this.clocks[id];
    // One more where it would win the tie.
    let slack = later(between(clock, end), 1);
    if (size > 1) {
      let second = 1;
      let key = keys[1];
      if (size > 2 && (keys[2] < key || (keys[2] === key && ids[2] < ids[1]))) {
        second = 2;
        key = keys[2];
      }
      const until = later(between(clock, key), id < ids[second] ? 1 : 0);
      if (until < slack) slack = until;
    }
    return slack > SLACK_LIMIT ? SLACK_LIMIT : slack | 0;
  }

  #before(id: number, place: number): boolean {
    const key = this.clocks[id];
    const other = this.#keys[place];
    return key < other || (key === other && id < this.ids[place]);
  }

  #up(place: number, id: number): void {
    const { ids, places } = this;
    const keys = this.#keys;
    const key = this.clocks[id];
    while (place > 0) {
      const parent = (place - 1) >> 1;
      const parentKey = keys[parent];
      const parentId = ids[parent];
      if (key > parentKey || (key === parentKey && id > parentId)) break;
      ids[place] = parentId;
      keys[place] = parentKey;
      places[parentId] = place;
      place = parent;
    }
    ids[place] = id;
    keys[place] = key;
    places[id] = place;
  }

  #down(place: number, id: number): void {
    const { ids, places, size } = this;
    const keys = this.#keys;
    const key = this.clocks[id];
    for (;;) {
      let child = 2 * place + 1;
      if (child >= size) break;
      let childKey = keys[child];
      if (child + 1 < size) {
        const right = keys[child + 1];
        if (right < childKey || (right === childKey && ids[child + 1] < ids[child])) {
          child++;
          childKey = right;
        }
      }
      const childId = ids[child];
      if (key < childKey || (key === childKey && id < childId)) break;
      ids[place] = childId;
      keys[place] = childKey;
      places[childId] = place;
      place = child;
    }
    ids[place] = id;
    keys[place] = key;
    places[id] = place;
  }
}

function grown<T extends Float64Array | Int32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
