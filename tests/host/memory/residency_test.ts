import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { Disk, GuestMemory, PAGE_SIZE, type PageState, Residency } from "../../../host/mod.ts";
import { engineUnder, Script } from "../../support/threads.ts";

const PAGES = 40;
const HIGH_BASE = 2 ** 40;
const HIGH_PAGES = 8;

/** The address of a page of the slot at 0. */
const at = (page: number): number => page * PAGE_SIZE;

/** Two slots, and a store that answers when it is told to. */
function rig() {
  const memory = new GuestMemory();
  const low = memory.addSlot({ base: 0, size: at(PAGES) });
  const high = memory.addSlot({ base: HIGH_BASE, size: at(HIGH_PAGES) });
  const asked: { page: number; done: (ok: boolean) => void }[] = [];
  let refuses = false;
  const residency = new Residency(memory, {
    read(page, done) {
      if (refuses) throw new RangeError("Cannot read: full");
      asked.push({ page, done });
    },
    expect: (page) => ({ clock: 1000 + page, ok: page !== 4 }),
  });
  const story: string[] = [];
  const wait = (name: string, address: number) =>
    residency.bringIn(address, (ok) => story.push(`${name}: ${ok ? "there" : "lost"}`));
  return { memory, low, high, residency, asked, story, wait, refuse: (on: boolean) => refuses = on };
}

describe("residency", () => {
  it("has every page present at first, and asks nobody", () => {
    const { residency, asked, story, wait } = rig();
    assertEquals([residency.state(0), residency.state(HIGH_BASE + 5)], ["present", "present"]);
    assertEquals(residency.firstAway(0, at(PAGES)), -1);
    assertEquals([wait("a", 0), asked.length, story, residency.away], ["present", 0, [], 0]);
  });

  it("evicts single pages: the neighbours stay", () => {
    const { residency } = rig();
    assertEquals(residency.evict(at(33) + 4095), true);
    assertEquals([32, 33, 34].map((page) => residency.state(at(page))), ["present", "absent", "present"]);
    assertEquals(residency.state(at(33) + 7), "absent", "any of its addresses");
    assertEquals(residency.evict(HIGH_BASE + at(HIGH_PAGES) - 1), true);
    assertEquals(residency.state(HIGH_BASE + at(7)), "absent");
    assertEquals([residency.away, residency.state(at(7))], [2, "present"]);
  });

  it("has a page that nobody wants any more without reading it, unless it is on its way", () => {
    const { residency, asked, wait, story } = rig();
    residency.evictRange(at(1), at(2));
    assertEquals([residency.forget(at(1) + 9), residency.state(at(1)), residency.away], [true, "present", 1]);
    assertEquals([residency.forget(at(1)), residency.forget(at(5))], [false, false]);
    wait("a", at(2));
    assertEquals([residency.forget(at(2)), residency.state(at(2))], [false, "reading"]);
    asked[0].done(true);
    assertEquals([residency.away, story, asked.length], [0, ["a: there"], 1]);
    assertThrows(() => residency.forget(2 ** 30), RangeError, "Cannot forget");
  });

  it("counts a generation for each eviction, and for nothing else", () => {
    const { residency, asked, wait } = rig();
    residency.evict(at(1));
    assertEquals([residency.evict(at(1)), residency.generation], [false, 1], "it is not there");
    wait("a", at(1));
    assertEquals([residency.evict(at(1)), residency.generation], [false, 1], "it is under I/O");
    asked[0].done(true);
    assertEquals(residency.generation, 1, "who remembers that a page is absent looks again anyway");
    assertEquals(residency.evictRange(at(0) + 1, at(2)), 3);
    assertEquals([residency.generation, residency.away], [4, 3], "three pages hold the range");
    assertEquals(residency.evictRange(0, at(4)), 1, "only one was there");
  });

  it("reads an absent page once, however many wait for it", () => {
    const { residency, asked, story, wait } = rig();
    residency.evict(HIGH_BASE);
    assertEquals([wait("a", HIGH_BASE), wait("b", HIGH_BASE + 8)], ["absent", "reading"]);
    assertEquals(asked.map(({ page }) => page), [HIGH_BASE / PAGE_SIZE]);
    assertEquals([residency.state(HIGH_BASE), residency.away, story], ["reading", 1, []]);
    asked[0].done(true);
    assertEquals(story, ["a: there", "b: there"]);
    assertEquals([residency.state(HIGH_BASE), residency.away], ["present", 0]);
  });

  it("has a page absent again that could not be read; the next try reads anew", () => {
    const { residency, asked, story, wait } = rig();
    residency.evict(0);
    wait("a", 0);
    asked[0].done(false);
    assertEquals([story, residency.state(0), residency.away], [["a: lost"], "absent", 1]);
    assertEquals(wait("b", 0), "absent");
    asked[1].done(true);
    assertEquals([story, residency.state(0)], [["a: lost", "b: there"], "present"]);
  });

  it("has a page absent as before where the store refuses", () => {
    const { residency, asked, story, wait, refuse } = rig();
    residency.evict(0);
    refuse(true);
    assertThrows(() => wait("a", 0), RangeError, "Cannot read: full");
    assertEquals([residency.state(0), story], ["absent", []]);
    refuse(false);
    wait("b", 0);
    asked[0].done(true);
    assertEquals(story, ["b: there"], "the first one was never promised anything");
  });

  it("finds the first page of a range that is away, across slots and gaps", () => {
    const { memory, residency, wait } = rig();
    memory.addSlot({ base: at(PAGES), size: at(2) });
    residency.evict(at(PAGES));
    assertEquals(residency.firstAway(at(PAGES) - 8, 8), -1);
    assertEquals(residency.firstAway(at(PAGES) - 8, 9), at(PAGES));
    assertEquals(residency.firstAway(at(PAGES) + 100, 1), at(PAGES));
    assertEquals(residency.firstAway(at(PAGES + 1), at(5)), -1, "nothing behind it is backed");
    wait("a", at(PAGES));
    assertEquals(residency.firstAway(0, at(PAGES + 2)), at(PAGES), "it is on its way, not there");
  });

  it("lets a callback evict and bring in again", () => {
    const { residency, asked } = rig();
    const seen: PageState[] = [];
    residency.evict(0);
    residency.bringIn(0, () => {
      seen.push(residency.state(0));
      residency.evict(0);
      seen.push(residency.bringIn(0, () => seen.push(residency.state(0))));
    });
    asked[0].done(true);
    assertEquals([seen, residency.state(0)], [["present", "absent"], "reading"]);
    asked[1].done(true);
    assertEquals(seen, ["present", "absent", "present"]);
  });

  it("tells who waits that the slot went, and takes nothing of it over to the next slot there", () => {
    const { memory, high, residency, asked, story, wait } = rig();
    residency.evict(0);
    residency.evictRange(HIGH_BASE, at(3));
    wait("a", HIGH_BASE);
    wait("b", 0);
    memory.removeSlot(high);
    assertThrows(() => residency.state(HIGH_BASE), RangeError, "no memory slot backs it");
    assertEquals([story, residency.away], [["a: lost"], 1]);
    memory.addSlot({ base: HIGH_BASE, size: at(HIGH_PAGES) });
    residency.evict(HIGH_BASE);
    wait("c", HIGH_BASE);
    asked[0].done(true);
    assertEquals([story, residency.state(HIGH_BASE)], [["a: lost"], "reading"], "a read for the old slot");
    for (const { done } of asked.slice(1)) done(true);
    assertEquals(story, ["a: lost", "b: there", "c: there"]);
  });

  it("tells who waits at the end of the read, if nobody asks before that the slot went", () => {
    const { memory, high, residency, asked, story, wait } = rig();
    residency.evict(HIGH_BASE);
    wait("a", HIGH_BASE);
    memory.removeSlot(high);
    asked[0].done(true);
    assertEquals([story, residency.away], [["a: lost"], 0]);
  });

  it("tells who waits in place when a page will be there, whoever asked for it first", () => {
    const { residency, asked, story, wait } = rig();
    residency.evictRange(at(2), at(3));
    assertEquals(residency.expect(at(2) + 9), { clock: 1002, ok: true });
    assertEquals([residency.state(at(2)), asked.map(({ page }) => page)], ["reading", [2]]);
    wait("a", at(3));
    assertEquals(residency.expect(at(3)), { clock: 1003, ok: true });
    assertEquals(asked.length, 2, "its read is under way already");
    assertEquals(residency.expect(at(4)).ok, false);
    for (const { page, done } of asked) done(page !== 4);
    assertEquals([2, 3, 4].map((page) => residency.state(at(page))), ["present", "present", "absent"]);
    assertEquals(story, ["a: there"]);
    assertThrows(
      () => residency.expect(at(2)),
      RangeError,
      "Cannot wait for the page at 0x2000: it is present",
    );
  });

  it("has no state for what no slot backs", () => {
    const { residency, wait } = rig();
    for (const use of [(a: number) => residency.state(a), (a: number) => residency.evict(a)]) {
      assertThrows(() => use(at(PAGES)), RangeError, "the page at 0x28000: no memory slot backs it");
    }
    assertThrows(() => wait("a", at(PAGES)), RangeError, "no memory slot backs it");
  });
});

/** What a vCPU or the host's reclaim does: each is a step. */
const action = fc.record({
  what: fc.constantFrom("touch", "touch", "touch", "evict"),
  page: fc.nat(7),
});

describe("residency with a disk", () => {
  it("brings in what vCPUs touch, under any schedule of vCPUs, reclaim and disk, and agrees with its count", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(action, { maxLength: 12 }), { minLength: 1, maxLength: 3 }),
        fc.nat(),
        fc.boolean(),
        (stories, seed, timed) => {
          const engine = engineUnder(timed ? "timed" : { random: seed });
          const memory = new GuestMemory();
          memory.addSlot({ base: 0, size: at(8) });
          const disk = new Disk(engine, {
            pages: 8,
            depth: 2,
            latency: (n) => 1 + (n * 71 + seed) % 300,
            fails: (n) => (n + seed) % 5 === 0,
          });
          const residency = new Residency(memory, disk);
          const finished: string[] = [];
          let [reads, promised, kept] = [0, 0, 0];
          const away = () =>
            [0, 1, 2, 3, 4, 5, 6, 7].filter((page) => residency.state(at(page)) !== "present");
          stories.forEach((actions, i) => {
            new Script(engine, `vCPU ${i}`, function* (thread) {
              for (const { what, page } of actions) {
                if (what === "evict") {
                  const [state, generation] = [residency.state(at(page)), residency.generation];
                  const evicted = residency.evict(at(page));
                  assertEquals(evicted, state === "present");
                  assertEquals(residency.generation, generation + (evicted ? 1 : 0));
                }
                while (what === "touch" && residency.state(at(page)) !== "present") {
                  const state = residency.bringIn(at(page), (ok) => {
                    kept++;
                    // A read that failed leaves the page where it was.
                    if (!ok) assertEquals(residency.state(at(page)), "absent");
                    engine.wake(thread, Math.max(thread.clock, engine.now));
                  });
                  promised++;
                  if (state === "absent") reads++;
                  engine.park(thread);
                  yield 0;
                }
                assertEquals(residency.away, away().length);
                const [first] = away();
                assertEquals(residency.firstAway(0, at(8)), first === undefined ? -1 : at(first));
                yield 40;
              }
              finished.push(thread.name);
            });
          });
          assertEquals(engine.run(), "idle");
          assertEquals(finished.length, stories.length, "nobody waits for ever");
          assertEquals(
            [kept, disk.completed + disk.failed],
            [promised, reads],
            "each waits once, each page is read once",
          );
          assert(away().every((page) => residency.state(at(page)) === "absent"), "nothing is on its way");
        },
      ),
      { numRuns: 150 },
    );
  });
});
