/**
 * The threads that can run, ordered by time, ties by thread number. The thread that runs and the first of the others
 * stand outside, in fields; the rest is a binary heap on typed arrays. So a switch between two threads is an exchange of
 * fields, and among many it is one way down the heap.
 *
 * @module
 */

import { FAR } from "./time.ts";

/** A time after every other: where there is no thread. It is as near as that, so that no two differ by 2^31 or more. */
const NEVER = FAR + 1;

/** Thread numbers under (time, number). */
export class ThreadQueue {
  /** The thread that runs, while it can go on: in no order with the others. -1 for none. */
  running: number = -1;
  /** The first of the others, -1 for none. */
  first: number = -1;
  /** Its time; where there is none, one after every other. */
  firstTime: number = NEVER;

  /** Threads in the heap: all but those two. */
  #size = 0;
  /**
   * Times in heap order, as they were when the threads were put there. The root is at 1. Behind the last one is NEVER:
   * whoever looks for children finds two.
   */
  #times: Int32Array = new Int32Array(130).fill(NEVER);
  /** The numbers of the threads whose times those are. */
  #ids: Int32Array = new Int32Array(130);
  /** By thread number: its place in the heap, 0 outside. */
  #places: Int32Array = new Int32Array(64);

  /** Makes room for thread numbers below `count`. */
  reserve(count: number): void {
    if (count <= this.#places.length) return;
    const capacity = 2 * count;
    this.#times = grown(this.#times, new Int32Array(2 * capacity + 2).fill(NEVER));
    this.#ids = grown(this.#ids, new Int32Array(2 * capacity + 2));
    this.#places = grown(this.#places, new Int32Array(capacity));
  }

  /** Whether a thread is in it. */
  has(id: number): boolean {
    return id === this.running || id === this.first || this.#places[id] > 0;
  }

  /** The threads in it, in no order. */
  all(): number[] {
    return [this.running, this.first, ...this.#ids.subarray(1, this.#size + 1)].filter((id) => id >= 0);
  }

  /** Puts a thread in, or moves it, under a time. The one that runs stays where it is. */
  put(id: number, time: number): void {
    if (id === this.running) return;
    const place = this.#places[id];
    if (id === this.first) this.#setFirst(id, time);
    else if (before(time, id, this.firstTime, this.first)) this.#putFirst(id, time);
    else if (place === 0) this.#up(++this.#size, id, time);
    else if (time >= this.#times[place]) this.#down(place, id, time);
    else this.#up(place, id, time);
  }

  /** A thread becomes the first. Who was it before goes into the heap, where nobody comes before that one. */
  #putFirst(id: number, time: number): void {
    const { first, firstTime } = this;
    this.first = id;
    this.firstTime = time;
    const place = this.#places[id];
    this.#places[id] = 0;
    if (first >= 0) this.#up(place === 0 ? ++this.#size : place, first, firstTime);
  }

  /** The place of the first is free, and `id` may have it if the heap's root is not before it. */
  #setFirst(id: number, time: number): void {
    const root = this.#times[1];
    if (root < time || (root === time && this.#ids[1] < id)) {
      const first = this.#ids[1];
      this.#places[first] = 0;
      this.#down(1, id, time);
      this.first = first;
      this.firstTime = root;
    } else {
      this.first = id;
      this.firstTime = time;
    }
  }

  /** Takes a thread out; nothing happens if it is not in. */
  remove(id: number): void {
    if (id === this.running) this.running = -1;
    else if (id === this.first) this.#removeFirst();
    else this.#removeAt(this.#places[id]);
  }

  #removeFirst(): void {
    if (this.#size === 0) {
      this.first = -1;
      this.firstTime = NEVER;
    } else {
      this.first = this.#ids[1];
      this.firstTime = this.#times[1];
      this.#removeAt(1);
    }
  }

  #removeAt(place: number): void {
    if (place === 0) return;
    const times = this.#times;
    const ids = this.#ids;
    this.#places[ids[place]] = 0;
    const last = this.#size--;
    const time = times[last];
    times[last] = NEVER;
    if (place === last) return;
    // The last one fills the gap.
    const above = place >> 1;
    if (place > 1 && before(time, ids[last], times[above], ids[above])) this.#up(place, ids[last], time);
    else this.#down(place, ids[last], time);
  }

  /**
   * The one that runs, now at `time`, makes room for the first if that comes before it. Answers with the one that runs
   * then. Both are there.
   */
  exchange(time: number): number {
    const { running, first } = this;
    if (before(time, running, this.firstTime, first)) return running;
    this.running = first;
    this.#setFirst(running, time);
    return first;
  }

  /** The first runs, where nobody does. Answers with it. */
  runFirst(): number {
    const { first } = this;
    this.#removeFirst();
    this.running = first;
    return first;
  }

  /** The one that runs, now at `time`, stands among the others again. */
  goBack(time: number): void {
    const { running } = this;
    this.running = -1;
    this.put(running, time);
  }

  #up(place: number, id: number, time: number): void {
    const times = this.#times;
    const ids = this.#ids;
    const places = this.#places;
    place |= 0; // To V8, small integers from here on.
    id |= 0;
    time |= 0;
    while (place > 1) {
      const parent = place >> 1;
      const parentTime = times[parent];
      const parentId = ids[parent];
      if (before(parentTime, parentId, time, id)) break;
      times[place] = parentTime;
      ids[place] = parentId;
      places[parentId] = place;
      place = parent;
    }
    times[place] = time;
    ids[place] = id;
    places[id] = place;
  }

  /** Puts a thread into a place whose own thread is gone or has become later, or below it. */
  #down(place: number, id: number, time: number): void {
    const times = this.#times;
    const ids = this.#ids;
    const places = this.#places;
    place |= 0;
    id |= 0;
    time |= 0;
    for (;;) {
      let child = place << 1;
      // Which child is first is a toss-up, that no processor predicts: the sign says it, and no branch.
      const later = times[child] - times[child | 1] | 0;
      child += -later >>> 31;
      if (later === 0 && ids[child | 1] < ids[child]) child |= 1;
      const childTime = times[child];
      if (time <= childTime && (time < childTime || id < ids[child])) break;
      const childId = ids[child];
      times[place] = childTime;
      ids[place] = childId;
      places[childId] = place;
      place = child;
    }
    times[place] = time;
    ids[place] = id;
    places[id] = place;
  }
}

/** Whether a thread comes before another one. */
function before(time: number, id: number, otherTime: number, otherId: number): boolean {
  return time < otherTime || (time === otherTime && id < otherId);
}

function grown(from: Int32Array, to: Int32Array): Int32Array {
  to.set(from);
  return to;
}
