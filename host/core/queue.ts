/**
 * The threads that can run, ordered by time, ties by thread number: a binary heap on typed arrays.
 *
 * @module
 */

/** A heap of thread numbers under (time, number). */
export class ThreadQueue {
  /** Threads in the heap. */
  size = 0;
  /**
   * Heap order, two words a thread: the time, as it was when the thread was put there, and the number. The first pair
   * runs next.
   */
  heap: Int32Array = new Int32Array(128);
  /** By thread number: where in the heap its pair is, -1 when it is not there. */
  places: Int32Array = new Int32Array(64).fill(-1);

  /** Makes room for thread numbers below `count`. */
  reserve(count: number): void {
    if (count <= this.places.length) return;
    const capacity = 2 * count;
    this.heap = grown(this.heap, new Int32Array(2 * capacity));
    this.places = grown(this.places, new Int32Array(capacity).fill(-1));
  }

  /** The threads in the heap, in heap order. */
  ids(): number[] {
    return Array.from({ length: this.size }, (_, k) => this.heap[2 * k + 1]);
  }

  /** Puts a thread into the heap, or moves it there, under a time. */
  put(id: number, time: number): void {
    const place = this.places[id];
    if (place < 0) this.#up(2 * this.size++, id, time);
    else if (time >= this.heap[place]) this.down(place, id, time);
    else this.#up(place, id, time);
  }

  /** Takes a thread out; nothing happens if it is not in. */
  remove(id: number): void {
    const place = this.places[id];
    if (place < 0) return;
    this.places[id] = -1;
    const last = 2 * --this.size;
    if (place === last) return;
    // The last one fills the gap.
    const time = this.heap[last];
    const moved = this.heap[last + 1];
    const above = parentOf(place);
    if (
      place > 0 && (time < this.heap[above] || (time === this.heap[above] && moved < this.heap[above + 1]))
    ) {
      this.#up(place, moved, time);
    } else this.down(place, moved, time);
  }

  /** Until when the first thread is surely first: the time of the second, at most `end`. */
  horizon(end: number): number {
    const { heap, size } = this;
    if (size > 1 && heap[2] < end) end = heap[2];
    if (size > 2 && heap[4] < end) end = heap[4];
    return end;
  }

  #up(place: number, id: number, time: number): void {
    const { heap, places } = this;
    place |= 0; // To V8, small integers from here on.
    id |= 0;
    time |= 0;
    while (place > 0) {
      const parent = parentOf(place);
      const parentTime = heap[parent];
      const parentId = heap[parent + 1];
      if (time > parentTime || (time === parentTime && id > parentId)) break;
      heap[place] = parentTime;
      heap[place + 1] = parentId;
      places[parentId] = place;
      place = parent;
    }
    heap[place] = time;
    heap[place + 1] = id;
    places[id] = place;
  }

  /** Puts a thread into a place whose own thread is gone or has become later, or below it. */
  down(place: number, id: number, time: number): void {
    const { heap, places } = this;
    const end = this.size << 1;
    place |= 0;
    id |= 0;
    time |= 0;
    for (;;) {
      let child = (place << 1) + 2;
      if (child >= end) break;
      let childTime = heap[child];
      if (child + 2 < end) {
        const right = heap[child + 2];
        if (right < childTime || (right === childTime && heap[child + 3] < heap[child + 1])) {
          child += 2;
          childTime = right;
        }
      }
      const childId = heap[child + 1];
      if (time < childTime || (time === childTime && id < childId)) break;
      heap[place] = childTime;
      heap[place + 1] = childId;
      places[childId] = place;
      place = child;
    }
    heap[place] = time;
    heap[place + 1] = id;
    places[id] = place;
  }
}

function parentOf(place: number): number {
  return ((place >> 1) - 1) & -2;
}

function grown(from: Int32Array, to: Int32Array): Int32Array {
  to.set(from);
  return to;
}
