import { assertEquals, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { Mutex } from "../../../host/mod.ts";
import { engineUnder, Script } from "../../support/threads.ts";

describe("a mutex", () => {
  it("keeps a thread that comes earlier by its own clock waiting until the holder's time", () => {
    const engine = engineUnder();
    const mutex = new Mutex(engine);
    const story: string[] = [];
    new Script(engine, "holder", function* (thread) {
      for (const _ of mutex.lock()) yield 0;
      yield 1000;
      story.push(`freed at ${thread.clock}`);
      mutex.unlock();
    });
    new Script(engine, "waiter", function* (thread) {
      for (const _ of mutex.lock()) yield 0;
      story.push(`taken at ${thread.clock}`);
      mutex.unlock();
    }, 10);
    assertEquals(engine.run(), "idle");
    assertEquals(story, ["freed at 1000", "taken at 1000"]);
    assertLess(engine.steps, 10, "a thread that waits takes no steps");
  });

  it("never lets two threads in, under any schedule, and lets everybody in at last", () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 2, max: 5 }), (seed, threads) => {
        const engine = engineUnder({ random: seed });
        const mutex = new Mutex(engine);
        let inside = 0;
        let turns = 0;
        for (let i = 0; i < threads; i++) {
          new Script(engine, `thread ${i}`, function* () {
            for (let turn = 0; turn < 3; turn++) {
              for (const _ of mutex.lock()) yield 0;
              assertEquals(++inside, 1);
              yield 0;
              turns++;
              assertEquals(inside--, 1);
              mutex.unlock();
              yield 0;
            }
          });
        }
        assertEquals(engine.run(), "idle");
        assertEquals(turns, 3 * threads);
      }),
      { numRuns: 50 },
    );
  });
});
