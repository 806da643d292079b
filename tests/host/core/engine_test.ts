import { assertEquals, assertLess, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type Engine,
  formatSchedule,
  LimitExceeded,
  Machine,
  ReplayDiverged,
  Timer,
} from "../../../host/mod.ts";
import { engineUnder, Script } from "../../support/threads.ts";

/** Adds one script for each list of waits, which writes down when each of its steps happens. */
function scripts(
  engine: Engine,
  waits: readonly (readonly number[])[],
  at = 0,
): [id: number, clock: number][] {
  const steps: [number, number][] = [];
  for (const list of waits) {
    new Script(engine, "script", function* (thread) {
      for (const wait of list) {
        steps.push([thread.id, thread.clock]);
        yield wait;
      }
    }, at);
  }
  return steps;
}

const waits = fc.array(fc.array(fc.nat(5), { minLength: 1, maxLength: 20 }), { minLength: 1, maxLength: 8 });

describe("the timed policy", () => {
  it("takes the thread with the smallest clock, ties by number", () => {
    const engine = engineUnder();
    const steps = scripts(engine, [[10, 10], [4, 6, 1], [4, 6]]);
    assertEquals(engine.run(), "idle");
    assertEquals(steps, [[0, 0], [1, 0], [2, 0], [1, 4], [2, 4], [0, 10], [1, 10]]);
  });

  it("never takes a thread while another one is earlier, whatever they wait for", () => {
    fc.assert(fc.property(waits, (waits) => {
      const engine = engineUnder();
      const steps = scripts(engine, waits);
      engine.run();
      const sorted = steps.toSorted(([a, x], [b, y]) => x - y || a - b);
      // A thread that waits for 0 cycles goes on before those with higher numbers: sorting is stable.
      assertEquals(steps, sorted);
      assertEquals(steps.length, waits.flat().length);
    }));
  });

  it("lets a thread that is woken earlier than the running one's horizon come in at once", () => {
    const engine = engineUnder();
    const order: string[] = [];
    const sleeper = new Script(engine, "sleeper", function* (thread) {
      order.push(`woken at ${thread.clock}`);
      yield 0;
    });
    engine.park(sleeper);
    new Script(engine, "waker", function* (thread) {
      for (let turn = 0; turn < 3; turn++) {
        order.push(`step at ${thread.clock}`);
        if (turn === 0) engine.wake(sleeper, 15);
        yield 10;
      }
    });
    engine.run();
    assertEquals(order, ["step at 0", "step at 10", "woken at 15", "step at 20"]);
  });

  it("stops when somebody asks, after the present step, and goes on from there", () => {
    const engine = engineUnder();
    let steps = 0;
    new Script(engine, "script", function* () {
      for (; steps < 10; steps++) {
        if (steps === 3) engine.stop();
        yield 1;
      }
    });
    assertEquals(engine.run(), "stopped");
    assertEquals(steps, 3);
    assertEquals(engine.run(), "idle");
    assertEquals(steps, 10);
  });
});

describe("a deadline", () => {
  it("ends a run before the first step that is later, and a second run goes on as if there had been none", () => {
    fc.assert(fc.property(waits, fc.array(fc.nat(60), { maxLength: 4 }), (waits, deadlines) => {
      const whole = engineUnder();
      const expected = scripts(whole, waits);
      whole.run();

      const engine = engineUnder();
      const steps = scripts(engine, waits);
      for (const deadline of deadlines.toSorted((a, b) => a - b)) {
        const end = engine.run(deadline);
        assertEquals(steps, expected.filter(([, clock]) => clock <= deadline));
        if (end === "idle") assertEquals(steps.length, expected.length);
      }
      assertEquals(engine.run(), "idle");
      assertEquals(steps, expected);
      assertEquals(engine.steps, whole.steps);
    }));
  });

  it("is kept in explored runs as well, in ticks", () => {
    for (const policy of [{ random: 1 }, { replay: "0*100" }]) {
      const engine = engineUnder(policy);
      new Script(engine, "endless", function* () {
        for (;;) yield 0;
      });
      assertEquals(engine.run(50), "deadline");
      assertEquals(engine.steps, 50);
      assertEquals(engine.run(60), "deadline");
      assertEquals(engine.steps, 60);
    }
  });
});

describe("a limit", () => {
  function endless(engine: Engine): void {
    new Script(engine, "endless", function* () {
      for (;;) yield 10;
    });
  }

  it("of steps is an error that names it and says how to raise it", () => {
    for (const policy of ["timed", { random: 1 }] as const) {
      const engine = engineUnder(policy, { steps: 1000 });
      endless(engine);
      const error = assertThrows(() => engine.run(), LimitExceeded);
      assertEquals([error.limit, error.value], ["steps", 1000]);
      assertEquals(
        error.message,
        "Cannot go on: the limit of 1000 steps is reached; raise limits.steps to allow more",
      );
    }
  });

  it("of cycles is one, and a deadline before it is none", () => {
    for (const policy of ["timed", { random: 1 }] as const) {
      const engine = engineUnder(policy, { cycles: 1000 });
      endless(engine);
      assertEquals(engine.run(999), "deadline");
      const error = assertThrows(() => engine.run(2000), LimitExceeded);
      assertEquals([error.limit, error.value], ["cycles", 1000]);
    }
  });

  it("of scheduled steps is one in explored runs alone: a timed run records none", () => {
    const explored = engineUnder({ random: 1 }, { schedule: 100 });
    endless(explored);
    const error = assertThrows(() => explored.run(), LimitExceeded, "raise limits.schedule");
    assertEquals([error.limit, error.value, explored.schedule.length], ["schedule", 100, 100]);
    const timed = engineUnder("timed", { schedule: 100 });
    endless(timed);
    assertEquals(timed.run(10_000), "deadline");
    assertEquals(timed.schedule, []);
  });

  it("must be a positive number, under a known name", () => {
    for (const value of [0, -1, NaN]) {
      assertThrows(() => new Machine({ limits: { exits: value } }), RangeError, `limit exits to ${value}`);
    }
    assertThrows(
      () => new Machine({ limits: { steppes: 1 } as never }),
      RangeError,
      "Cannot set limit steppes: allowed are steps, exits, cycles, schedule",
    );
  });
});

describe("the random policy", () => {
  it("gives the same schedule for the same seed, and others for others", () => {
    const run = (random: number) => {
      const engine = engineUnder({ random });
      const steps = scripts(engine, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]);
      engine.run();
      return [formatSchedule(engine.schedule), ...steps.map(String)].join(" ");
    };
    fc.assert(fc.property(fc.maxSafeNat(), (seed) => assertEquals(run(seed), run(seed))));
    const different = new Set(Array.from({ length: 50 }, (_, seed) => run(seed)));
    assertLess(40, different.size);
  });

  it("reaches every order of two threads' steps", () => {
    const orders = new Set<string>();
    for (let random = 0; random < 200; random++) {
      const engine = engineUnder({ random });
      scripts(engine, [[0, 0], [0, 0]]);
      engine.run();
      orders.add(formatSchedule(engine.schedule.slice(0, 4)));
    }
    for (const order of ["0*2.1*2", "0.1.0.1", "0.1*2.0", "1.0*2.1", "1.0.1.0", "1*2.0*2"]) {
      assertEquals(orders.has(order), true, order);
    }
  });

  it("counts time in ticks, one a step, and draws armed timers early: time jumps to them", () => {
    const early = new Set<boolean>();
    for (let random = 0; random < 50; random++) {
      const engine = engineUnder({ random });
      let expired = -1;
      new Timer(engine, "timer", () => expired = engine.now).arm(1000);
      const steps = scripts(engine, [[0, 0, 0]]);
      engine.run();
      assertEquals(expired >= 1000, true, "a timer never expires before its time");
      const before = steps.filter(([, clock]) => clock < 1000).map(([, clock]) => clock);
      assertEquals(before, Array.from(before, (_, tick) => tick + 1));
      early.add(before.length < 3);
    }
    assertEquals(early, new Set([true, false]));
  });
});

describe("the replay policy", () => {
  it("repeats a recorded random run, from the schedule or from the line it prints as", () => {
    fc.assert(fc.property(waits, fc.nat(), (waits, random) => {
      const recorded = engineUnder({ random });
      const steps = scripts(recorded, waits);
      recorded.run();
      for (const replay of [recorded.schedule, formatSchedule(recorded.schedule)]) {
        const engine = engineUnder({ replay });
        const again = scripts(engine, waits);
        assertEquals(engine.run(), "idle");
        assertEquals(again, steps);
        assertEquals(engine.schedule, recorded.schedule);
      }
    }));
  });

  it("draws the data that the random run drew", () => {
    const draw = (policy: { random: number } | { replay: readonly number[]; seed: number }) => {
      const engine = engineUnder(policy);
      const drawn: number[] = [];
      for (let i = 0; i < 3; i++) {
        new Script(engine, "drawing", function* () {
          for (let n = 0; n < 4; n++) {
            drawn.push(engine.entropy.bits());
            yield 0;
          }
        });
      }
      engine.run();
      return { drawn, schedule: engine.schedule };
    };
    const { drawn, schedule } = draw({ random: 7 });
    assertEquals(draw({ replay: schedule, seed: 7 }), { drawn, schedule });
  });

  it("ends where the schedule ends", () => {
    const engine = engineUnder({ replay: "0*3" });
    const steps = scripts(engine, [[0, 0, 0, 0, 0]]);
    assertEquals(engine.run(), "schedule-end");
    assertEquals(steps.length, 3);
  });

  it("says at which step a run is another one, which thread was wanted, and which can run", () => {
    const engine = engineUnder({ replay: "0*2.1.0" });
    scripts(engine, [[0], [0, 0]]);
    const error = assertThrows(() => engine.run(), ReplayDiverged);
    assertEquals(error.step, 3);
    assertEquals(error.message, "Cannot replay step 3: thread 0 cannot run, only 1 can");
  });
});

describe("time beyond small integers", () => {
  const GIGA = 2 ** 30;

  it("is exact: threads that work and sleep over many epochs keep their order and clocks", () => {
    const wait = fc.constantFrom(0, 1, 1000, GIGA / 4 - 1, GIGA / 4);
    const pauses = fc.array(fc.array(wait, { minLength: 1, maxLength: 20 }), { minLength: 1, maxLength: 5 });
    fc.assert(fc.property(pauses, (pauses) => {
      const engine = engineUnder();
      const steps = scripts(engine, pauses);
      engine.run();
      const expected = pauses.flatMap((list, id) => {
        let clock = 0;
        return list.map((wait) => {
          const step = [id, clock] as [number, number];
          clock += wait;
          return step;
        });
      });
      assertEquals(steps, expected.toSorted(([a, x], [b, y]) => x - y || a - b));
    }));
  });

  it("is exact for timers that are armed for far away, whatever else goes on", () => {
    const at = fc.array(fc.nat(50).map((n) => n * (GIGA / 4) + n), { minLength: 1, maxLength: 10 });
    fc.assert(fc.property(at, fc.boolean(), (at, busy) => {
      const engine = engineUnder();
      const expired: number[] = [];
      for (const clock of at) new Timer(engine, `at ${clock}`, () => expired.push(engine.now)).arm(clock);
      if (busy) scripts(engine, [Array(60).fill(GIGA / 4)]);
      assertEquals(engine.run(), "idle");
      assertEquals(expired, at.toSorted((a, b) => a - b));
    }));
  });

  it("is exact for deadlines far away, and a timer that is armed again or cancelled there obeys", () => {
    const engine = engineUnder();
    const expired: number[] = [];
    const timer = new Timer(engine, "timer", () => expired.push(engine.now));
    timer.arm(5 * GIGA);
    assertEquals(engine.run(3 * GIGA), "deadline");
    timer.arm(7 * GIGA);
    assertEquals(engine.run(7 * GIGA - 1), "deadline");
    assertEquals(expired, []);
    assertEquals(engine.run(7 * GIGA), "idle");
    timer.arm(9e12);
    assertEquals(engine.run(8e12), "deadline");
    timer.cancel();
    assertEquals(engine.run(), "idle");
    assertEquals(expired, [7 * GIGA]);
  });

  it("does not disturb a parked thread, which is woken epochs later at the right time", () => {
    const engine = engineUnder();
    const woken: number[] = [];
    const sleeper = new Script(engine, "sleeper", function* (thread) {
      woken.push(thread.clock);
      yield 0;
    });
    engine.park(sleeper);
    new Timer(engine, "timer", () => engine.wake(sleeper, engine.now + 3)).arm(20 * GIGA);
    scripts(engine, [Array(41).fill(GIGA / 2)]);
    engine.run();
    assertEquals(woken, [20 * GIGA + 3]);
  });
});
