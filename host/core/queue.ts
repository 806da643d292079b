/**
 * The threads that can run, ordered by time, ties by thread number: a binary heap on typed arrays.
 *
 * @module
 */

/** A heap of thread numbers under (time, number). */
export class ThreadQueue {
  /** Threads in the heap. */
  size = 0;
  /** Heap order: `ids[0]` runs next. */
  ids: Int32Array = new Int32Array(64);
  /** The times by heap place, as they were when the thread was put there. */
  times: Int32Array = new Int32Array(64);
  /** By thread number: its place in the heap, -1 when it is not there. */
  places: Int32Array = new Int32Array(64).fill(-1);

  /** Makes room for thread numbers below `count`. */
  reserve(count: number): void {
    if (count <= this.places.length) return;
    const capacity = 2 * count;
    this.ids = grown(this.ids, new Int32Array(capacity));
    this.times = grown(this.times, new Int32Array(capacity));
    this.places = grown(this.places, new Int32Array(capacity).fill(-1));
  }

  /** Puts a thread into the heap, or moves it there, under a time. */
  put(id: number, time: number): void {
    id |= 0; // To V8, small integers from here on.
    time |= 0;
    let place = this.places[id];
    if (place < 0) place = this.size++;
    else if (time >= this.times[place]) return this.#down(place, id, time);
    this.#up(place, id, time);
  }

  /** Takes a thread out; nothing happens if it is not in. */
  remove(id: number): void {
    const place = this.places[id];
    if (place < 0) return;
    this.places[id] = -1;
    const last = --this.size;
    if (place === last) return;
    // The last one fills the gap.
    const moved = this.ids[last];
    const time = this.times[last];
    if (place > 0 && this.#before(time, moved, (place - 1) >> 1)) this.#up(place, moved, time);
    else this.#down(place, moved, time);
  }

  /** Until when the first thread stays first: while its time is below this. At most `end`. */
  horizon(end: number): number {
    const { times, size } = this;
    if (size < 2) return end;
    let second = 1;
    if (size > 2 && this.#before(times[2], this.ids[2], 1)) second = 2;
    // One more where it wins the tie.
    const until = times[second] + (this.ids[0] < this.ids[second] ? 1 : 0);
    return until < end ? until : end;
  }

  #before(time: number, id: number, place: number): boolean {
    const other = this.times[place];
    return time < other || (time === other && id < this.ids[place]);
  }

  #up(place: number, id: number, time: number): void {
    const { ids, places, times } = this;
    place |= 0;
    id |= 0;
    time |= 0;
    while (place > 0) {
      const parent = (place - 1) >> 1;
      const parentTime = times[parent];
      const parentId = ids[parent];
      if (time > parentTime || (time === parentTime && id > parentId)) break;
      ids[place] = parentId;
      times[place] = parentTime;
      places[parentId] = place;
      place = parent;
    }
    ids[place] = id;
    times[place] = time;
    places[id] = place;
  }

  #down(place: number, id: number, time: number): void {
    const { ids, places, times, size } = this;
    place |= 0;
    id |= 0;
    time |= 0;
    for (;;) {
      let child = (place << 1) + 1;
      if (child >= size) break;
      let childTime = times[child];
      if (child + 1 < size) {
        const right = times[child + 1];
        if (right < childTime || (right === childTime && ids[child + 1] < ids[child])) {
          child++;
          childTime = right;
        }
      }
      const childId = ids[child];
      if (time < childTime || (time === childTime && id < childId)) break;
      ids[place] = childId;
      times[place] = childTime;
      places[childId] = place;
      place = child;
    }
    ids[place] = id;
    times[place] = time;
    places[id] = place;
  }
}

function grown(from: Int32Array, to: Int32Array): Int32Array {
  to.set(from);
  return to;
}
