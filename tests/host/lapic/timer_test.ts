import { assert, assertEquals, assertGreaterOrEqual, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { timerDivisor } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { APIC_MODES, bringUp, enter, read, write } from "../../support/apic.ts";
import {
  DEADLINE,
  LATE,
  MASKED,
  MICROSECOND,
  ONESHOT,
  PERIODIC,
  TimedGuest,
  TIMER_VECTOR,
} from "../../support/timer.ts";

/** Asserts that something happened at a time, or a little later. */
function assertAt(actual: number, expected: number): void {
  assertGreaterOrEqual(actual, expected);
  assertLess(actual, expected + LATE);
}

describe("the divide configuration", () => {
  it("selects the divisors of SDM 3A figure 11-10", () => {
    const divisors = [0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010, 0b1011].map(timerDivisor);
    assertEquals(divisors, [2, 4, 8, 16, 32, 64, 128, 1]);
  });
});

for (const backend of BACKENDS) {
  for (const mode of APIC_MODES) {
    describe(`the timer of a local APIC (${backend}, ${mode})`, () => {
      const guest = () => new TimedGuest({ vm: { backend } }, mode);

      it("fires once in one-shot mode, when the initial count is used up", () => {
        let at = 0;
        const { ticks } = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, ONESHOT);
          at = yield* timer.start(cpu, 100_000);
          yield cpu.work(1000 * MICROSECOND);
        });
        assertEquals(ticks.length, 1);
        assertAt(ticks[0], at + 100 * MICROSECOND);
      });

      it("counts a nanosecond of bus cycles times the divisor", () => {
        for (const tdcr of [0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010, 0b1011]) {
          let at = 0;
          const { ticks } = guest().run(function* (cpu, timer) {
            yield* timer.lvt(cpu, ONESHOT);
            yield* write(cpu, mode, 0x3e0, tdcr);
            at = yield* timer.tsc(cpu);
            yield* write(cpu, mode, 0x380, 100_000 / 8);
            yield cpu.work(2000 * MICROSECOND);
          });
          assertEquals(ticks.length, 1);
          assertAt(ticks[0], at + 100 * MICROSECOND / 8 * timerDivisor(tdcr));
        }
      });

      it("fires again and again in periodic mode, and does not drift", () => {
        let at = 0;
        const { ticks } = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, PERIODIC);
          at = yield* timer.start(cpu, 300_000);
          yield cpu.work(3100 * MICROSECOND);
          yield* timer.start(cpu, 0);
        });
        assertEquals(ticks.length, 10);
        ticks.forEach((tick, i) => assertAt(tick, at + (i + 1) * 300 * MICROSECOND));
      });

      it("is slowed down to a period of 200 microseconds, in periodic mode alone", () => {
        let at = 0;
        const periodic = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, PERIODIC);
          at = yield* timer.start(cpu, 1);
          yield cpu.work(1050 * MICROSECOND);
          yield* timer.start(cpu, 0);
        });
        assertEquals(periodic.ticks.length, 5);
        periodic.ticks.forEach((tick, i) => assertAt(tick, at + (i + 1) * 200 * MICROSECOND));
        const oneshot = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, ONESHOT);
          at = yield* timer.start(cpu, 1);
          yield cpu.work(100 * MICROSECOND);
        });
        assertEquals(oneshot.ticks.length, 1);
        assertAt(oneshot.ticks[0], at);
      });

      it("ends a halt", () => {
        let at = 0;
        const { ticks } = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, ONESHOT);
          at = yield* timer.start(cpu, 500_000);
          yield cpu.hlt();
          assertEquals(timer.ticks.length, 1);
        });
        assertAt(ticks[0], at + 500 * MICROSECOND);
      });

      it("fires at a TSC deadline, and disarms it", () => {
        let at = 0;
        const { ticks } = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, DEADLINE);
          at = (yield* timer.tsc(cpu)) + 123_456;
          yield* timer.deadline(cpu, at);
          yield cpu.rdmsr(0x6e0);
          assertEquals([cpu.eax, cpu.edx], [at % 2 ** 32, 0]);
          yield cpu.work(400_000);
          yield cpu.rdmsr(0x6e0);
          assertEquals([cpu.eax, cpu.edx], [0, 0]);
        });
        assertEquals(ticks.length, 1);
        assertAt(ticks[0], at);
      });

      it("fires at once at a deadline that is past", () => {
        let at = 0;
        const { ticks } = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, DEADLINE);
          yield cpu.work(10_000);
          at = yield* timer.tsc(cpu);
          yield* timer.deadline(cpu, 1);
          yield cpu.work(100_000);
        });
        assertEquals(ticks.length, 1);
        assertAt(ticks[0], at);
      });

      it("forgets a deadline for a later one, for an earlier one, and for zero", () => {
        let at = 0;
        const { ticks } = guest().run(function* (cpu, timer) {
          yield* timer.lvt(cpu, DEADLINE);
          at = yield* timer.tsc(cpu);
          yield* timer.deadline(cpu, at + 100_000);
          yield* timer.deadline(cpu, at + 300_000);
          yield* timer.deadline(cpu, at + 200_000);
          yield cpu.work(400_000);
          assertEquals(timer.ticks.length, 1);
          yield* timer.deadline(cpu, at + 600_000);
          yield* timer.deadline(cpu, 0);
          yield cpu.work(400_000);
        });
        assertEquals(ticks.length, 1);
        assertAt(ticks[0], at + 200_000);
      });
    });
  }
}

describe("the current count", () => {
  for (const backend of BACKENDS) {
    it(`runs down from the initial count to zero, and in periodic mode begins again (${backend})`, () => {
      for (const [timerMode, then] of [[ONESHOT, 0], [PERIODIC, 900_000]] as const) {
        new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
          const assertCount = function* (expected: number) {
            const count = (yield* read(cpu, timer.mode, 0x390)) as number;
            assert(
              count <= expected && count > expected - 20_000 || count === expected,
              `${count} of ${expected}`,
            );
          };
          yield* timer.lvt(cpu, timerMode);
          assertEquals(yield* read(cpu, timer.mode, 0x390), 0, "it has not begun");
          yield* timer.start(cpu, 1_000_000);
          yield cpu.work(200 * MICROSECOND);
          yield* assertCount(800_000);
          yield cpu.work(300 * MICROSECOND);
          yield* assertCount(500_000);
          yield cpu.work(600 * MICROSECOND);
          yield* assertCount(then);
          assertEquals(yield* read(cpu, timer.mode, 0x380), 1_000_000, "the initial count stays");
          yield* timer.start(cpu, 0);
          assertEquals(yield* read(cpu, timer.mode, 0x390), 0);
        });
      }
    });

    it(`is in units of the divisor, and goes on in new units when that changes (${backend})`, () => {
      let at = 0;
      const { ticks } = new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, ONESHOT);
        at = yield* timer.start(cpu, 1_000_000);
        yield cpu.work(500 * MICROSECOND);
        const before = (yield* read(cpu, timer.mode, 0x390)) as number;
        yield* write(cpu, timer.mode, 0x3e0, 0b0001); // By 4: the half that is left takes four times as long.
        const after = (yield* read(cpu, timer.mode, 0x390)) as number;
        assert(before >= after && before - after < 5000, `${before} and then ${after}`);
        yield cpu.work(5000 * MICROSECOND);
      });
      assertEquals(ticks.length, 1);
      assertGreaterOrEqual(ticks[0], at + 2480 * MICROSECOND);
      assertLess(ticks[0], at + 2510 * MICROSECOND);
    });
  }

  it("is zero in TSC-deadline mode", () => {
    new TimedGuest().run(function* (cpu, timer) {
      yield* timer.lvt(cpu, DEADLINE);
      yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 100_000);
      assertEquals(yield* read(cpu, timer.mode, 0x390), 0);
      yield* timer.deadline(cpu, 0);
    });
  });
});

describe("a count-down", () => {
  for (const backend of BACKENDS) {
    const guest = () => new TimedGuest({ vm: { backend } });

    it(`begins anew when the initial count is written, and ends when that is zero (${backend})`, () => {
      let at = 0;
      const { ticks } = guest().run(function* (cpu, timer) {
        yield* timer.lvt(cpu, ONESHOT);
        yield* timer.start(cpu, 300_000);
        yield cpu.work(200 * MICROSECOND);
        at = yield* timer.start(cpu, 300_000);
        yield cpu.work(500 * MICROSECOND);
        yield* timer.start(cpu, 300_000);
        yield cpu.work(200 * MICROSECOND);
        yield* timer.start(cpu, 0);
        yield cpu.work(500 * MICROSECOND);
      });
      assertEquals(ticks.length, 1);
      assertAt(ticks[0], at + 300 * MICROSECOND);
    });

    it(`goes on over a switch between one-shot and periodic mode (${backend})`, () => {
      let at = 0;
      const { ticks } = guest().run(function* (cpu, timer) {
        yield* timer.lvt(cpu, ONESHOT);
        at = yield* timer.start(cpu, 300_000);
        yield* timer.lvt(cpu, PERIODIC);
        yield cpu.work(1000 * MICROSECOND);
        yield* timer.lvt(cpu, ONESHOT);
        yield cpu.work(1000 * MICROSECOND);
      });
      assertEquals(ticks.length, 4);
      ticks.forEach((tick, i) => assertAt(tick, at + (i + 1) * 300 * MICROSECOND));
    });

    it(`is slowed down from its next period on, if it was too short for periodic mode (${backend})`, () => {
      let at = 0;
      const { ticks } = guest().run(function* (cpu, timer) {
        yield* timer.lvt(cpu, ONESHOT);
        at = yield* timer.start(cpu, 100_000);
        yield* timer.lvt(cpu, PERIODIC);
        yield cpu.work(600 * MICROSECOND);
        yield* timer.start(cpu, 0);
      });
      assertEquals(ticks.length, 3);
      ticks.forEach((tick, i) => assertAt(tick, at + (100 + 200 * i) * MICROSECOND));
    });

    it(`ends when TSC-deadline mode begins, and no deadline survives the way back (${backend})`, () => {
      const { ticks } = guest().run(function* (cpu, timer) {
        yield* timer.lvt(cpu, ONESHOT);
        yield* timer.start(cpu, 100_000);
        yield* timer.lvt(cpu, DEADLINE);
        assertEquals(yield* read(cpu, timer.mode, 0x380), 0, "the initial count is cleared");
        yield* write(cpu, timer.mode, 0x380, 5);
        assertEquals(yield* read(cpu, timer.mode, 0x380), 0, "and cannot be written");
        yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 100_000);
        yield* timer.lvt(cpu, ONESHOT);
        yield cpu.rdmsr(0x6e0);
        assertEquals(cpu.eax, 0);
        yield* timer.deadline(cpu, 1); // Outside its mode: ignored.
        yield* timer.lvt(cpu, DEADLINE);
        yield cpu.work(500 * MICROSECOND);
      });
      assertEquals(ticks, []);
    });

    it(`is ended by INIT (${backend})`, () => {
      const timer = new TimedGuest({ vm: { backend, vcpus: 2 } });
      const [, { lapic }] = timer.rig.vm.vcpus;
      timer.rig.aps(function* (cpu) {
        yield* enter(cpu, timer.mode);
        yield* timer.lvt(cpu, PERIODIC);
        yield* timer.start(cpu, 200_000);
        yield cpu.sti();
        for (;;) yield cpu.hlt();
      });
      let before = 0;
      timer.run(function* (cpu) {
        yield* bringUp(cpu, timer.mode, 1);
        yield cpu.work(700 * MICROSECOND);
        before = timer.ticks.length;
        assertEquals(before, 3);
        yield* write(cpu, timer.mode, 0x300, 0x4500, 1);
      });
      // The run has ended because nothing will ever happen any more.
      assertEquals(timer.ticks.length, before);
      assertEquals([lapic.get(0x320), lapic.get(0x380), lapic.timer.pending], [MASKED, 0, false]);
    });
  }
});

describe("an expiry while the timer is masked", () => {
  for (const backend of BACKENDS) {
    it(`is kept by KVM until the timer is unmasked, once for however many (${backend})`, () => {
      for (const timerMode of [ONESHOT, PERIODIC, DEADLINE]) {
        new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
          yield* timer.lvt(cpu, MASKED | timerMode);
          if (timerMode === DEADLINE) yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 1000);
          else yield* timer.start(cpu, 200_000);
          yield cpu.work(700 * MICROSECOND);
          assertEquals(timer.ticks, []);
          // The host's timer interrupts the guest for the first one alone; the preemption timer has to exit.
          const exits = backend === "svm" ? "interrupt" : "PREEMPTION_TIMER";
          const expected = backend === "vmx" && timerMode === PERIODIC ? 3 : 1;
          assertEquals(timer.rig.vm.exits()[exits], expected);
          yield* timer.lvt(cpu, timerMode);
          yield cpu.work(10 * MICROSECOND);
          assertEquals(timer.ticks.length, 1, `mode ${timerMode >> 17}`);
          yield* write(cpu, timer.mode, 0x380, 0);
        });
      }
    });

    it(`is forgotten when software disables the APIC (${backend})`, () => {
      const { ticks } = new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, MASKED | ONESHOT);
        yield* timer.start(cpu, 1000);
        yield cpu.work(10 * MICROSECOND);
        yield* write(cpu, timer.mode, 0x0f0, 0x0ff);
        yield* write(cpu, timer.mode, 0x0f0, 0x1ff);
        yield* timer.lvt(cpu, ONESHOT);
        yield cpu.work(100 * MICROSECOND);
      });
      assertEquals(ticks, []);
    });
  }
});

describe("IA32_TSC_DEADLINE", () => {
  it("is nothing while the APIC is disabled: it reads zero and ignores what is written", () => {
    for (const backend of BACKENDS) {
      const { ticks } = new TimedGuest({ vm: { backend } }, "xapic").run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        yield* timer.deadline(cpu, 2 ** 40);
        yield cpu.wrmsr(0x1b, 0xfee0_0100);
        yield cpu.rdmsr(0x6e0);
        assertEquals([cpu.eax, cpu.edx], [0, 0]);
        yield* timer.deadline(cpu, 1);
        yield cpu.wrmsr(0x1b, 0xfee0_0900);
        yield cpu.rdmsr(0x6e0);
        assertEquals([cpu.eax, cpu.edx], [0, 2 ** 8], "the deadline of before");
        yield cpu.work(10_000);
        yield* timer.deadline(cpu, 0);
      });
      assertEquals(ticks, []);
    }
  });
});

describe("the guest's time-stamp counter", () => {
  it("is what deadlines are compared with, wherever the guest has set it", () => {
    for (const backend of BACKENDS) {
      const { ticks } = new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        yield cpu.wrmsr(0x10, 0, 7);
        yield* timer.deadline(cpu, 7 * 2 ** 32 + 500_000);
        yield cpu.work(1_000_000);
      });
      assertEquals(ticks.length, 1);
      assertAt(ticks[0], 7 * 2 ** 32 + 500_000);
    }
  });
});

describe("a timer interrupt", () => {
  it("has the vector that the entry holds when it is delivered", () => {
    const timer = new TimedGuest();
    const others: number[] = [];
    timer.rig.on(0x77, function* (cpu) {
      others.push(cpu.vector);
      yield* write(cpu, timer.mode, 0x0b0, 0);
    });
    timer.run(function* (cpu) {
      yield* timer.lvt(cpu, ONESHOT);
      yield* timer.start(cpu, 100_000);
      yield* write(cpu, timer.mode, 0x320, 0x77);
      yield cpu.work(200 * MICROSECOND);
    });
    assertEquals([timer.ticks, others, TIMER_VECTOR], [[], [0x77], 0x40]);
  });
});
