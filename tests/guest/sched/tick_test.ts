import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Guest, X86Cpu } from "../../../abi/mod.ts";
import { type ApicName, LOCAL_TIMER_VECTOR, nanosleep, rdtsc, type TimerMode } from "../../../guest/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import { TaskRig } from "../../support/tasks.ts";

/** Cycles of a microsecond, and of a tick at 250 Hz. */
const MICROSECOND = 2500;
const TICK = 4000 * MICROSECOND;
/** What a wake-up may be late by: exits, an entry, a switch, and where counts are programmed in microseconds, one of those. */
const LATE = 20 * MICROSECOND;

const TIMERS: readonly TimerMode[] = ["tsc-deadline", "one-shot", "periodic"];
const APICS: readonly ApicName[] = ["x2apic-physical", "xapic"];

for (const backend of BACKENDS) {
  for (const timer of TIMERS) {
    describe(`a ${timer} timer (${backend})`, () => {
      /** Runs tasks; a periodic timer has no end of its own. */
      function ran(rig: TaskRig, programs: readonly ((cpu: X86Cpu) => Guest)[]): TaskRig {
        const entries = programs.map((program) => rig.kernel.user(program));
        const end = rig.go(function* (cpu) {
          for (const entry of entries) rig.tasks.push(yield* rig.kernel.sched.spawn(cpu, { entry, cpu: 0 }));
          yield* rig.kernel.sched.waitForAll(cpu);
          rig.vm.engine.stop();
        });
        assertEquals(end, "stopped");
        return rig;
      }

      it("ticks as often as the kernel was built for while there is something to run", () => {
        for (const apic of APICS) {
          const x2apic = apic !== "xapic";
          for (const hz of [100, 1000]) {
            const rig = ran(new TaskRig({ apic, sched: { timer, hz }, vm: { backend, x2apic } }), [
              function* (cpu) {
                yield cpu.work(250_000_000); // A tenth of a second.
              },
            ]);
            const ticks = rig.irqs(0, LOCAL_TIMER_VECTOR);
            assert(Math.abs(ticks - hz / 10) <= 1, `${apic}: ${ticks} of ${hz / 10}`);
          }
        }
      });

      it("wakes sleepers when their time has come, never sooner, the earliest first", () => {
        const woken: [n: number, late: number][] = [];
        ran(
          new TaskRig({ sched: { timer }, vm: { backend } }),
          [300, 100, 200].map((microseconds, n) =>
            function* (cpu: X86Cpu): Guest {
              const start = yield* rdtsc(cpu);
              yield* nanosleep(cpu, 1000 * microseconds);
              woken.push([n, (yield* rdtsc(cpu)) - start - microseconds * MICROSECOND]);
            }
          ),
        );
        const limit = timer === "periodic" ? TICK + LATE : LATE;
        for (const [n, late] of woken) assert(late >= 0 && late < limit, `${n}: ${late}`);
        assertEquals(woken.map(([n]) => n), [1, 2, 0]);
      });

      it("lets nobody else wait for a sleeper", () => {
        let slept = 0;
        ran(new TaskRig({ sched: { timer }, vm: { backend } }), [
          function* (cpu) {
            yield* nanosleep(cpu, 2e6);
            slept++;
          },
          function* (cpu) {
            yield cpu.work(1000);
            assertEquals(slept, 0);
          },
        ]);
        assertEquals(slept, 1);
      });
    });
  }
}

describe("a kernel's timer", () => {
  it("is that of TSC deadlines where CPUID offers them, else counts of one shot", () => {
    for (const tscDeadline of [true, false]) {
      const rig = new TaskRig({ vm: { tscDeadline } });
      rig.runTasks([function* (cpu: X86Cpu): Guest {
        yield cpu.work(2 * TICK);
      }].map((program) => ({ program })));
      assertEquals(rig.kernel.sched.timerMode, tscDeadline ? "tsc-deadline" : "one-shot");
      assert(rig.irqs(0, LOCAL_TIMER_VECTOR) >= 1);
    }
  });

  it("cannot be one that there is not", () => {
    const rig = new TaskRig({ sched: { timer: "tsc-deadline" }, vm: { tscDeadline: false } });
    const failure = assertThrows(() => rig.run(), GuestError);
    assertEquals(
      (failure.cause as Error).message,
      "Cannot tick by TSC deadlines: CPUID does not offer them",
    );
  });
});
