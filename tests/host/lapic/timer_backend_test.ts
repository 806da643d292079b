import { assertEquals, assertGreaterOrEqual, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { BACKENDS, type MachineOptions } from "../../../host/mod.ts";
import type { RigOptions } from "../../support/guests.ts";
import { bringUp, read } from "../../support/apic.ts";
import { DEADLINE, LATE, MICROSECOND, ONESHOT, PERIODIC, TimedGuest } from "../../support/timer.ts";

const MILLISECOND = 1000 * MICROSECOND;

describe("a timer that fires while its vCPU runs", () => {
  it("is an exit of the VMX-preemption timer, or the host's interrupt on SVM, which has none", () => {
    for (
      const [backend, exit, other] of [
        ["vmx", "PREEMPTION_TIMER", "EXTERNAL_INTERRUPT"],
        ["svm", "interrupt", "PREEMPTION_TIMER"],
      ] as const
    ) {
      const { rig } = new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, PERIODIC);
        yield* timer.start(cpu, 200_000);
        yield cpu.work(1.1 * MILLISECOND);
        yield* timer.start(cpu, 0);
      });
      assertEquals(rig.vm.exits()[exit], 5);
      assertEquals(rig.vm.exits()[other], undefined);
    }
  });

  it("is the host's interrupt on VMX too where it is more than 2^37 cycles away", () => {
    for (
      const [cycles, exit] of [[2 ** 37 - 10_000, "PREEMPTION_TIMER"], [
        2 ** 37 + 10_000,
        "EXTERNAL_INTERRUPT",
      ]] as const
    ) {
      let at = 0;
      const { ticks, rig } = new TimedGuest({ vm: { backend: "vmx" } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, DEADLINE);
        at = (yield* timer.tsc(cpu)) + cycles;
        yield* timer.deadline(cpu, at);
        yield cpu.work(cycles + MILLISECOND);
      }, 1e12);
      assertEquals(ticks.length, 1);
      assertGreaterOrEqual(ticks[0], at);
      assertLess(ticks[0], at + LATE);
      assertEquals(rig.vm.exits()[exit], 1);
    }
  });
});

describe("a timer that fires while its vCPU is halted", () => {
  it("is a timer of the host's on both, and back in guest mode the preemption timer's again", () => {
    for (const backend of BACKENDS) {
      const { ticks, rig } = new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, PERIODIC);
        yield* timer.start(cpu, 500_000);
        yield cpu.hlt();
        yield cpu.hlt();
        yield cpu.work(600 * MICROSECOND);
        yield* timer.start(cpu, 0);
      });
      assertEquals(ticks.length, 3);
      assertEquals(rig.vm.exits()["PREEMPTION_TIMER"], backend === "vmx" ? 1 : undefined);
      assertEquals(rig.vm.bootstrap.stats.halt_exits, 3, "and the one that ends the program");
    }
  });

  it("counts nanoseconds of the host, even if the guest has moved its TSC since the start", () => {
    for (const backend of BACKENDS) {
      let elapsed = 0;
      new TimedGuest({ vm: { backend } }).run(function* (cpu, timer) {
        yield* timer.lvt(cpu, ONESHOT);
        yield* timer.start(cpu, 1_000_000);
        yield cpu.wrmsr(0x10, 0, 0);
        yield cpu.hlt();
        elapsed = yield* timer.tsc(cpu);
      });
      assertGreaterOrEqual(elapsed, 0.99 * MILLISECOND, backend);
      assertLess(elapsed, MILLISECOND + LATE, backend);
    }
  });
});

describe("a periodic timer whose vCPU does not run for long", () => {
  const MISSED = 400;

  /** Two vCPUs on one CPU: while the first one's timer runs, the second one has the CPU for {@linkcode MISSED} periods. */
  function starved(backend: (typeof BACKENDS)[number], quirks: MachineOptions["quirks"] = []) {
    const options: RigOptions = {
      vm: { backend, vcpus: 2 },
      machine: { pcpus: 1, timeSlice: MISSED * 200 * MICROSECOND, quirks },
    };
    const timer = new TimedGuest(options);
    const { vm } = timer.rig;
    let ticks = 0;
    let expiries = 0;
    timer.rig.aps(function* (cpu) {
      yield cpu.work(10 * MISSED * 200 * MICROSECOND);
    });
    timer.run(function* (cpu) {
      yield* bringUp(cpu, timer.mode, 1);
      yield* timer.lvt(cpu, PERIODIC);
      yield* timer.start(cpu, 200_000);
      // Until its slice ends; then the other vCPU has one, and then this one is back.
      let before = yield* timer.tsc(cpu);
      for (;;) {
        const [sofar, fired] = [timer.ticks.length, vm.bootstrap.lapic.timer.expiries];
        yield cpu.work(10 * MICROSECOND);
        const now = yield* timer.tsc(cpu);
        if (now - before > (MISSED / 2) * 200 * MICROSECOND) {
          yield cpu.work(100 * MICROSECOND);
          ticks = timer.ticks.length - sofar;
          expiries = vm.bootstrap.lapic.timer.expiries - fired;
          break;
        }
        before = now;
      }
      yield* timer.start(cpu, 0);
      assertEquals(yield* read(cpu, timer.mode, 0x390), 0);
    });
    return { ticks, expiries };
  }

  it("expires for all the periods that it missed together", () => {
    const { ticks, expiries } = starved("vmx");
    assertLess(expiries, 5);
    assertLess(ticks, 5);
  });

  it("expired for each of them before CVE-2025-71104 was fixed, if the preemption timer timed it (quirk lapic-timer-catches-up)", () => {
    const { ticks, expiries } = starved("vmx", ["lapic-timer-catches-up"]);
    assertGreaterOrEqual(expiries, MISSED - 5);
    assertLess(ticks, 5, "the guest does not see it: one expiry is pending all the time");
  });

  it("missed none on SVM, where the host's timer goes on without the vCPU", () => {
    for (const quirks of [[], ["lapic-timer-catches-up"]] as const) {
      const { ticks, expiries } = starved("svm", quirks);
      assertGreaterOrEqual(expiries, MISSED - 5);
      assertLess(ticks, 5);
    }
  });
});
