import { assertEquals, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { BACKENDS, type VmOptions } from "../../../host/mod.ts";
import { write } from "../../support/apic.ts";
import { eventsOf, mark } from "../../support/events.ts";
import { DEADLINE, MASKED, MICROSECOND, ONESHOT, PERIODIC, TimedGuest } from "../../support/timer.ts";

/** LVT bits 18:17 of the mode that does not exist. */
const RESERVED = 3 << 17;

describe("an expiry while the timer is masked and hardware delivers interrupts", () => {
  for (const timerMode of [ONESHOT, PERIODIC, DEADLINE]) {
    it(`is lost on VMX: KVM hands it over when the preemption timer exits (mode ${timerMode >> 17})`, () => {
      new TimedGuest({ vm: { acceleration: "apicv" } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, MASKED | timerMode);
        if (timerMode === DEADLINE) yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 1000);
        else yield* timer.start(cpu, 200_000);
        yield cpu.work(300 * MICROSECOND);
        if (timerMode === DEADLINE) {
          yield cpu.rdmsr(0x6e0);
          assertEquals([cpu.eax, cpu.edx], [0, 0], "it is disarmed");
        }
        yield* timer.lvt(cpu, timerMode);
        yield cpu.work(10 * MICROSECOND);
        assertEquals(timer.ticks, []);
        yield* write(cpu, timer.mode, 0x380, 0);
      });
    });
  }

  for (
    const [name, vm] of [["vmx", { acceleration: "apicv" }], ["svm", {
      backend: "svm",
      acceleration: "avic",
    }]] as const
  ) {
    it(`is lost where the deadline was past already when it was set (${name})`, () => {
      new TimedGuest({ vm }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, MASKED | DEADLINE);
        yield* timer.deadline(cpu, 1);
        yield cpu.rdmsr(0x6e0);
        assertEquals([cpu.eax, cpu.edx], [0, 0]);
        yield* timer.lvt(cpu, DEADLINE);
        yield cpu.work(10 * MICROSECOND);
        assertEquals(timer.ticks, []);
      });
    });

    it(`is no loss where the timer is not masked: one tick each (${name})`, () => {
      new TimedGuest({ vm }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        yield* timer.deadline(cpu, 1);
        yield cpu.work(10 * MICROSECOND);
        assertEquals(timer.ticks.length, 1);
        yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 1000);
        yield cpu.work(10 * MICROSECOND);
        assertEquals(timer.ticks.length, 2);
      });
    });
  }

  it("is kept with AVIC, where the host's timer expires on its own", () => {
    new TimedGuest({ vm: { backend: "svm", acceleration: "avic" } }).run(function* (cpu, timer) {
      yield* timer.lvt(cpu, MASKED | DEADLINE);
      yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 20 * MICROSECOND);
      yield cpu.work(100 * MICROSECOND);
      yield* timer.lvt(cpu, DEADLINE);
      yield cpu.work(10 * MICROSECOND);
      assertEquals(timer.ticks.length, 1);
    });
  });
});

for (const backend of BACKENDS) {
  const vm: VmOptions = { backend, trace: 1 << 12 };

  describe(`a TSC deadline hours ahead (${backend})`, () => {
    it("comes early: nanoseconds times a million do not fit into KVM's 64 bits", () => {
      // (2^64 / 10^6) cycles and 20,000 more: what is left of the product are 20,000 cycles.
      const { ticks } = new TimedGuest({ vm }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        yield* timer.deadline(cpu, (yield* timer.tsc(cpu)) + 18_446_744_073_710 + 20_000);
        yield cpu.work(100 * MICROSECOND);
      });
      assertEquals(ticks.length, 1);
    });

    it("that is meant to be never wakes a guest that halts, within what the product leaves", () => {
      const { ticks } = new TimedGuest({ vm }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        yield cpu.wrmsr(0x6e0, 0xffff_ffff, 0xffff_ffff);
        yield cpu.hlt();
      }, 2 ** 45);
      assertEquals(ticks.length, 1);
      assertLess(ticks[0], 2 ** 64 / 1e6 + 10 * MICROSECOND);
    });
  });

  describe(`the timer mode that does not exist (${backend})`, () => {
    it("counts nothing, and never fires", () => {
      const { ticks } = new TimedGuest({ vm }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, RESERVED);
        yield* timer.start(cpu, 100_000);
        yield cpu.rdmsr(0x839);
        assertEquals(cpu.eax, 0, "the current count");
        yield cpu.work(300 * MICROSECOND);
      });
      assertEquals(ticks, []);
    });
  });

  describe(`a timer that is disarmed (${backend})`, () => {
    it("shows that the host's own timer would time it (kvm_hv_timer_state)", () => {
      new TimedGuest({ vm }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        const from = mark(timer.rig.vm);
        yield cpu.wrmsr(0x6e0, 0, 0);
        assertEquals(eventsOf(timer.rig.vm, "kvm_hv_timer_state", from).map(({ args }) => args[1]), [0]);
      });
    });
  });
}
