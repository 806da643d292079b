import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { Disk, type DiskOptions, type Engine, type PolicySpec } from "../../../host/mod.ts";
import { engineUnder, Script } from "../../support/threads.ts";

/** A disk, and what it completes: "page at time", with "failed" where it did. */
function rig(options: Partial<DiskOptions> = {}, policy: PolicySpec = "timed") {
  const engine: Engine = engineUnder(policy);
  const disk = new Disk(engine, { pages: 1000, latency: 100, ...options });
  const story: string[] = [];
  const read = (page: number) =>
    disk.read(page, (ok) => story.push(`${page} at ${engine.now}${ok ? "" : " failed"}`));
  /** Reads of a thread, each at its time. */
  const reads = (...at: readonly (readonly [time: number, page: number])[]) =>
    new Script(engine, "reader", function* (thread) {
      for (const [time, page] of at) {
        if (time > thread.clock) yield time - thread.clock;
        read(page);
      }
    });
  return { engine, disk, story, read, reads };
}

describe("a disk", () => {
  it("completes a read after its latency, and not earlier", () => {
    const { engine, disk, story, reads } = rig();
    reads([1000, 7]);
    engine.run(1099);
    assertEquals([story, disk.pending], [[], 1]);
    assertEquals(engine.run(), "idle");
    assertEquals([story, disk.pending, disk.completed], [["7 at 1100"], 0, 1]);
  });

  it("serves reads one behind the other, and begins anew behind a pause", () => {
    const { engine, story, reads } = rig();
    reads([0, 1], [10, 2], [20, 3], [1000, 4]);
    engine.run();
    assertEquals(story, ["1 at 100", "2 at 200", "3 at 300", "4 at 1100"]);
  });

  it("serves as many at a time as its depth: faster ones overtake", () => {
    const { engine, story, reads } = rig({ depth: 2, latency: (_, page) => page });
    reads([0, 500], [10, 200], [20, 50], [30, 60]);
    engine.run();
    // 200 is done at 210, and 50 takes its place until 260, then 60 until 320.
    assertEquals(story, ["200 at 210", "50 at 260", "60 at 320", "500 at 500"]);
  });

  it("completes reads that are done at the same time in the order in which they came", () => {
    const { engine, story, reads } = rig({ depth: 3, latency: (n) => 100 - 10 * n });
    reads([0, 3], [10, 1], [20, 2]);
    engine.run();
    assertEquals(story, ["3 at 100", "1 at 100", "2 at 100"]);
  });

  it("counts a failed read by itself; it takes its time, and the next one follows", () => {
    const { engine, disk, story, reads } = rig({ fails: (n, page) => n === 1 && page === 2 });
    reads([0, 1], [0, 2], [0, 2]);
    engine.run();
    assertEquals(story, ["1 at 100", "2 at 200 failed", "2 at 300"]);
    assertEquals([disk.completed, disk.failed], [2, 1]);
  });

  it("takes reads from its own callbacks, at the time of the callback", () => {
    const { engine, disk } = rig({ depth: 2 });
    const times: number[] = [];
    const chain = (left: number) => () => {
      times.push(engine.now);
      if (left > 0) { for (let i = 0; i < 2; i++) disk.read(left, chain(left - 1)); }
    };
    disk.read(0, chain(2));
    assertEquals(engine.run(), "idle");
    // One, two behind it at the same time, and four behind those: two at a time.
    assertEquals(times, [100, 200, 200, 300, 300, 400, 400]);
  });

  it("takes reads between two runs", () => {
    const { engine, story, read } = rig();
    read(1);
    assertEquals(engine.run(), "idle");
    read(2);
    assertEquals(engine.run(), "idle");
    assertEquals(story, ["1 at 100", "2 at 200"]);
  });

  it("refuses what does not fit its queue, and takes more once there is room", () => {
    const { engine, disk, story, read } = rig({ depth: 1, queue: 2 });
    read(1);
    read(2);
    assertEquals(disk.full, false);
    read(3);
    assertEquals([disk.full, disk.pending], [true, 3]);
    assertThrows(() => read(4), RangeError, "Cannot read page 4 from disk: 2 reads wait already");
    engine.run(100);
    assertEquals([disk.full, disk.pending], [false, 2]);
    read(5);
    engine.run();
    assertEquals(story, ["1 at 100", "2 at 200", "3 at 300", "5 at 400"]);
  });

  it("tells when a read will be over, and how: whatever its latencies, depth and queue, as it then is", () => {
    const read = fc.record({
      at: fc.nat(300),
      latency: fc.integer({ min: 1, max: 200 }),
      fails: fc.boolean(),
    });
    fc.assert(
      fc.property(
        fc.array(read, { minLength: 1, maxLength: 12 }),
        fc.integer({ min: 1, max: 3 }),
        (some, depth) => {
          const engine = engineUnder();
          // The page names the read.
          const disk = new Disk(engine, {
            pages: 12,
            depth,
            latency: (_, page) => some[page].latency,
            fails: (_, page) => some[page].fails,
          });
          const expected = new Map<number, { clock: number; ok: boolean }>();
          const was = new Map<number, { clock: number; ok: boolean }>();
          some.forEach(({ at }, page) => {
            new Script(engine, `reader ${page}`, function* () {
              yield at;
              disk.read(page, (ok) => was.set(page, { clock: engine.now, ok }));
              expected.set(page, disk.expect(page));
              // Those that come later change nothing for it.
              yield 1;
              if (!was.has(page)) assertEquals(disk.expect(page), expected.get(page));
            });
          });
          engine.run();
          assertEquals(was, expected);
        },
      ),
    );
  });

  it("does not expect what nobody reads", () => {
    const { engine, disk, read } = rig();
    assertThrows(
      () => disk.expect(3),
      RangeError,
      "Cannot tell when page 3 comes from disk: nobody reads it",
    );
    read(3);
    engine.run();
    assertThrows(() => disk.expect(3), RangeError, "nobody reads it");
  });

  it("may have no queue at all", () => {
    const { engine, read, story } = rig({ queue: 0, depth: 2 });
    read(1);
    read(2);
    assertThrows(() => read(3), RangeError, "0 reads wait already");
    engine.run();
    assertEquals(story, ["1 at 100", "2 at 100"]);
  });

  it("refuses pages that it does not hold, and options that cannot be", () => {
    const { disk, read } = rig({ pages: 8 });
    for (const page of [-1, 8, 0.5, NaN]) {
      assertThrows(() => read(page), RangeError, `Cannot read page ${page} from disk: allowed are 0 to 7`);
    }
    assertEquals(disk.pending, 0);
    for (
      const options of [{ pages: 0 }, { latency: 0 }, { latency: 1.5 }, { depth: 0 }, { queue: -1 }]
    ) {
      const [[name, value]] = Object.entries(options);
      assertThrows(() => rig(options), RangeError, `Cannot use a disk with ${name} ${value}`);
    }
    assertThrows(() => rig({ latency: () => -5 }).read(0), RangeError, "latency of read 0 -5");
  });

  /** Reads of three threads, at random times. */
  const loads = fc.array(
    fc.array(fc.tuple(fc.nat(300), fc.nat(99)), { maxLength: 8 }),
    { minLength: 1, maxLength: 3 },
  );

  it("does what a plain account of queues says, for any load", () => {
    fc.assert(
      fc.property(loads, fc.integer({ min: 1, max: 3 }), fc.nat(), (threads, depth, seed) => {
        const latency = (n: number, page: number) => 1 + (n * 37 + page * 11 + seed) % 200;
        const { engine, disk, story } = rig({ depth, latency });
        // Every read in the order of its submission, and when that was.
        const submitted: { page: number; at: number }[] = [];
        for (const pauses of threads) {
          new Script(engine, "reader", function* (thread) {
            for (const [pause, page] of pauses) {
              yield pause;
              submitted.push({ page, at: thread.clock });
              disk.read(page, () => story.push(`${page} at ${engine.now}`));
            }
          });
        }
        assertEquals(engine.run(), "idle");
        // Each read starts when it is submitted, or when the first of `depth` servers is free.
        const free = new Array(depth).fill(0);
        const ends = submitted.map(({ page, at }, n) => {
          const server = free.indexOf(Math.min(...free));
          free[server] = Math.max(at, free[server]) + latency(n, page);
          return { page, end: free[server] };
        });
        assertEquals(
          [...story].sort(),
          ends.map(({ page, end }) => `${page} at ${end}`).sort(),
        );
        const times = story.map((line) => Number(line.split(" at ")[1]));
        assertEquals(times, [...times].sort((a, b) => a - b), "callbacks come in order of completion");
      }),
      { numRuns: 100 },
    );
  });

  it("calls each reader back once under any schedule, and the same way again under the same one", () => {
    fc.assert(
      fc.property(loads, fc.nat(), (threads, seed) => {
        const run = (policy: PolicySpec) => {
          const { engine, story, reads } = rig({ depth: 2, latency: (n) => 1 + n * 53 % 90 }, policy);
          for (const pauses of threads) reads(...pauses);
          assertEquals(engine.run(), "idle");
          return { story, schedule: engine.schedule };
        };
        const first = run({ random: seed });
        const pages = first.story.map((line) => Number(line.split(" ")[0])).sort();
        assertEquals(pages, threads.flatMap((pauses) => pauses.map(([, page]) => page)).sort());
        assertEquals(run({ random: seed }), first);
        assertEquals(run({ replay: first.schedule, seed }).story, first.story);
      }),
      { numRuns: 60 },
    );
  });
});
