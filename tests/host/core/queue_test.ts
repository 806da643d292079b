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
}

/** The first one, and its time. */
function first(queue: ThreadQueue): [id: number, time: number] {
  return [queue.first, queue.firstTime];
}

/** Empties a queue in which nobody runs, from the front. */
function drain(queue: ThreadQueue): [id: number, time: number][] {
  const order: [number, number][] = [];
  while (queue.first >= 0) {
    order.push(first(queue));
    queue.remove(queue.first);
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
    fc.assert(
      fc.property(commands, (commands) => {
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
          assertEquals(new Set(queue.all()), new Set(order.map(([id]) => id)));
          assertEquals(first(queue), order.length > 0 ? [...order[0]] : [-1, 0x4000_0000]);
        }
        assertEquals(drain(queue), list.order.map((entry) => [...entry]));
      }),
      { numRuns: 2000 },
    );
  });

  it("exchanges the one that runs for the first, as soon as that comes before it", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(id, time)), fc.array(fc.nat(3)), (entries, delays) => {
        const queue = new ThreadQueue();
        queue.reserve(THREADS);
        const list = new SortedList();
        for (const [id, time] of [[7, 0] as const, [8, 1] as const, ...entries]) {
          queue.put(id, time);
          list.put(id, time);
        }
        let now = list.order[0][1];
        assertEquals(queue.runFirst(), list.order[0][0]);
        for (const delay of delays) {
          list.put(queue.running, now + delay);
          const running = queue.exchange(now + delay);
          const [first, time] = list.order[0];
          assertEquals([running, queue.running], [first, first]);
          now = time;
        }
        queue.goBack(now);
        assertEquals(new Set(queue.all()), new Set(list.order.map(([id]) => id)));
        assertEquals(drain(queue), list.order.map((entry) => [...entry]));
      }),
      { numRuns: 2000 },
    );
  });

  it("leaves the one that runs alone until it is removed or goes back", () => {
    const queue = new ThreadQueue();
    queue.put(3, 10);
    queue.put(5, 5);
    assertEquals(queue.runFirst(), 5);
    queue.put(5, 20);
    assertEquals([queue.running, first(queue)], [5, [3, 10]]);
    queue.goBack(20);
    assertEquals([queue.running, queue.all()], [-1, [3, 5]]);
    assertEquals(queue.runFirst(), 3);
    queue.remove(3);
    assertEquals([queue.running, queue.has(3)], [-1, false]);
    assertEquals(drain(queue), [[5, 20]]);
  });

  it("knows who is in it", () => {
    const queue = new ThreadQueue();
    queue.put(3, 10);
    queue.put(5, 5);
    queue.remove(4); // Was never there.
    queue.remove(3);
    queue.remove(3); // Is not there any more.
    assertEquals([queue.has(3), queue.has(4), queue.has(5)], [false, false, true]);
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
