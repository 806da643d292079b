import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { ThreadQueue } from "../../../host/mod.ts";

/** A queue as a list that is sorted again before each look: the slow reference. */
class SortedList {
  readonly #times = new Map<number, number>();

  put(id: number, time: number): void {
    this.#times.set(id, time);
  }

  remove(id: number): void {
    this.#times.delete(id);
  }

  get order(): (readonly [id: number, time: number])[] {
    return [...this.#times].sort(([a, x], [b, y]) => x - y || a - b);
  }

  /** The time of the second one: until then the first is surely first. */
  horizon(end: number): number {
    return Math.min(end, ...this.order.slice(1).map(([, time]) => time));
  }
}

/** The first one, and its time. */
function first(queue: ThreadQueue): [id: number, time: number] {
  return [queue.heap[1], queue.heap[0]];
}

/** Empties a queue from the front. */
function drain(queue: ThreadQueue): [id: number, time: number][] {
  const order: [number, number][] = [];
  while (queue.size > 0) {
    order.push(first(queue));
    queue.remove(queue.heap[1]);
  }
  return order;
}

const THREADS = 200;
const id = fc.nat(THREADS - 1);
// Few times, so that there are many ties.
const time = fc.oneof(fc.integer({ min: -3, max: 3 }), fc.constantFrom(-0x3fff_ffff, 0x3fff_ffff));
const commands = fc.array(
  fc.oneof({ weight: 3, arbitrary: fc.tuple(id, time) }, { weight: 1, arbitrary: fc.tuple(id) }),
  { maxLength: 400 },
);

describe("the queue of threads", () => {
  it("orders them by time and number, as a sorted list does, whatever is put, moved and removed", () => {
    fc.assert(fc.property(commands, (commands) => {
      const queue = new ThreadQueue();
      queue.reserve(THREADS);
      const list = new SortedList();
      for (const [id, time] of commands) {
        if (time === undefined) {
          queue.remove(id);
          list.remove(id);
        } else {
          queue.put(id, time);
          list.put(id, time);
        }
        const { order } = list;
        assertEquals(queue.size, order.length);
        if (order.length === 0) continue;
        assertEquals(first(queue), [...order[0]]);
        for (const end of [-2, 2, 0x3fff_ffff]) assertEquals(queue.horizon(end), list.horizon(end));
      }
      assertEquals(drain(queue), list.order.map((entry) => [...entry]));
    }));
  });

  it("lets the first one become later", () => {
    fc.assert(fc.property(fc.array(fc.tuple(id, time)), fc.array(fc.nat(3)), (entries, delays) => {
      const queue = new ThreadQueue();
      queue.reserve(THREADS);
      const list = new SortedList();
      for (const [id, time] of [[7, 0] as const, ...entries]) {
        queue.put(id, time);
        list.put(id, time);
      }
      for (const delay of delays) {
        const [id, time] = list.order[0];
        queue.down(0, id, time + delay);
        list.put(id, time + delay);
        assertEquals(first(queue), [...list.order[0]]);
      }
      assertEquals(new Set(queue.ids()), new Set(list.order.map(([id]) => id)));
      assertEquals(drain(queue), list.order.map((entry) => [...entry]));
    }));
  });

  it("knows who is in it", () => {
    const queue = new ThreadQueue();
    queue.put(3, 10);
    queue.put(5, 5);
    queue.remove(4); // Was never there.
    queue.remove(3);
    queue.remove(3); // Is not there any more.
    assertEquals([queue.places[3] >= 0, queue.places[4] >= 0, queue.places[5] >= 0], [false, false, true]);
    assertEquals(drain(queue), [[5, 5]]);
  });

  it("grows without forgetting anybody", () => {
    const queue = new ThreadQueue();
    queue.put(0, 2);
    queue.put(1, 1);
    queue.reserve(5000);
    queue.put(4999, 0);
    assertEquals(drain(queue), [[4999, 0], [1, 1], [0, 2]]);
  });
});
