import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Guest, X86Cpu } from "../../../abi/mod.ts";
import {
  argumentOf,
  exit,
  gettid,
  Kernel,
  LOCAL_TIMER_VECTOR,
  nanosleep,
  PF_PINNED,
  RESCHEDULE_VECTOR,
  schedYield,
} from "../../../guest/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import { TaskRig } from "../../support/tasks.ts";

/** Cycles of a tick: 4 ms at 2.5 GHz. */
const TICK = 10_000_000;

for (const backend of BACKENDS) {
  describe(`tasks (${backend})`, () => {
    it("take turns on a processor, a tick each, in the order in which they came", () => {
      const rig = new TaskRig({ vm: { backend } });
      const order: number[] = [];
      const codes = rig.runTasks([0, 1, 2].map((n) => ({
        argument: n,
        *program(cpu: X86Cpu): Guest {
          for (let turn = 0; turn < 3; turn++) {
            order.push(argumentOf(cpu));
            yield cpu.work(TICK);
          }
        },
      })));
      assertEquals(codes, [0, 0, 0]);
      assertEquals(order.slice(0, 6), [0, 1, 2, 0, 1, 2]);
      assertEquals(rig.irqs(0, RESCHEDULE_VECTOR), 0); // A processor need not interrupt itself.
    });

    it("spread over the processors that idle, and a busy one is not interrupted for those that have to wait", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      const where: number[] = [];
      rig.runTasks([0, 1, 2, 3].map(() => ({
        *program(cpu: X86Cpu): Guest {
          yield cpu.work(1000);
          where.push(cpu.gsBase);
          yield cpu.work(TICK / 4);
        },
      })));
      assertEquals(new Set(where).size, 2);
      assertEquals(rig.irqs(1, RESCHEDULE_VECTOR), 1); // The first that came there; the others waited behind it.
    });

    it("that are pinned stay where they are, however idle the others", () => {
      const rig = new TaskRig({ cpus: 3, vm: { backend } });
      const where = new Set<number>();
      rig.runTasks([0, 1, 2].map(() => ({
        cpu: 2,
        *program(cpu: X86Cpu): Guest {
          for (let turn = 0; turn < 4; turn++) {
            yield cpu.work(TICK / 2);
            where.add(cpu.gsBase);
            yield* nanosleep(cpu, 1000);
          }
        },
      })));
      assertEquals([...where], [rig.kernel.sched.areaOf(2)]);
      assertEquals(rig.irqs(1, RESCHEDULE_VECTOR), 0);
      for (const task of rig.tasks) assertEquals(rig.task(task, "flags") & PF_PINNED, PF_PINNED);
    });

    it("that may move wake up on a processor that idles", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      const where: number[] = [];
      rig.runTasks([
        {
          *program(cpu: X86Cpu): Guest {
            where.push(cpu.gsBase);
            yield* nanosleep(cpu, 100_000);
            yield cpu.work(1);
            where.push(cpu.gsBase);
          },
        },
        {
          cpu: 0, // Begins when the first one sleeps, and keeps its processor busy.
          *program(cpu: X86Cpu): Guest {
            yield cpu.work(2 * TICK);
          },
        },
      ]);
      assertEquals(where, [rig.kernel.sched.areaOf(0), rig.kernel.sched.areaOf(1)]);
    });

    it("end with their code, by themselves or by returning, and never come back", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      let after = 0;
      const codes = rig.runTasks([
        {
          *program(cpu: X86Cpu): Guest {
            yield* exit(cpu, 3);
            after++;
          },
        },
        { *program(): Guest {} },
        {
          kernelThread: true,
          *program(cpu: X86Cpu): Guest {
            assertEquals(cpu.cpl, 0);
            yield cpu.work(10);
          },
        },
      ]);
      assertEquals(codes, [3 << 8, 0, 0]);
      assertEquals(after, 0);
      for (const task of rig.tasks) {
        assertEquals([rig.task(task, "onCpu"), rig.task(task, "onRq"), rig.task(task, "inUse")], [0, 0, 0]);
      }
    });

    it("run at CPL 3, with interrupts on, and each knows its number", () => {
      const rig = new TaskRig({ vm: { backend } });
      const seen: unknown[] = [];
      rig.runTasks([0, 1].map(() => ({
        *program(cpu: X86Cpu): Guest {
          seen.push([cpu.cpl, cpu.interruptsEnabled, yield* gettid(cpu)]);
          seen.push([cpu.cpl, cpu.interruptsEnabled, yield* gettid(cpu)]);
        },
      })));
      assertEquals(seen, [[3, true, 1], [3, true, 1], [3, true, 2], [3, true, 2]]);
    });

    it("yield to each other, and to nobody where they are alone: then nothing is switched", () => {
      const rig = new TaskRig({ vm: { backend } });
      const order: string[] = [];
      let switches = 0;
      rig.runTasks(["a", "b"].map((name, n) => ({
        *program(cpu: X86Cpu): Guest {
          for (let turn = 0; turn < 2 + n; turn++) {
            order.push(name);
            yield* schedYield(cpu);
          }
          if (n === 0) return;
          switches = rig.rq(0, "switches");
          yield* schedYield(cpu);
          assertEquals(rig.rq(0, "switches"), switches);
        },
      })));
      assertEquals(order.join(""), "ababb");
    });

    it("can be waited for by each other", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      const { kernel } = rig;
      const story: string[] = [];
      const worker = kernel.user(function* worker(cpu) {
        yield cpu.work(5 * TICK);
        story.push("worker ends");
        yield* exit(cpu, 7);
      });
      rig.runTasks([{
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          const task = yield* kernel.sched.spawn(cpu, { entry: worker });
          const code = yield* kernel.sched.join(cpu, task);
          story.push(`joined ${code >> 8}`);
        },
      }]);
      assertEquals(story, ["worker ends", "joined 7"]);
    });
  });
}

describe("the scheduler", () => {
  it("leaves idle processors alone: no tick without a task", () => {
    const rig = new TaskRig({ cpus: 3 });
    rig.runTasks([{
      cpu: 1,
      *program(cpu: X86Cpu): Guest {
        yield cpu.work(20 * TICK);
      },
    }]);
    assertGreater(rig.irqs(1, LOCAL_TIMER_VECTOR), 18);
    assertEquals([rig.irqs(0, LOCAL_TIMER_VECTOR), rig.irqs(2, LOCAL_TIMER_VECTOR)], [0, 0]);
    assertEquals([0, 2].map((cpu) => rig.rq(cpu, "ticks")), [0, 0]);
  });

  it("lets a processor that would idle take a task that waits for another one, but none that is pinned", () => {
    for (const pinned of [false, true]) {
      const rig = new TaskRig({ cpus: 2 });
      const where: number[] = [];
      const busy = (turns: number, cpu?: number) => ({
        ...cpu === undefined ? {} : { cpu },
        *program(cpu: X86Cpu): Guest {
          for (let turn = 0; turn < turns; turn++) yield cpu.work(TICK);
          where.push(cpu.gsBase);
        },
      });
      // The second ends soon, on the other processor; the third and the fourth share the first one until then.
      rig.runTasks([busy(9, 0), busy(1, 1), busy(9, 0), busy(9, pinned ? 0 : undefined)]);
      const [, other] = [0, 1].map((cpu) => rig.kernel.sched.areaOf(cpu));
      assertEquals(where.filter((area) => area === other).length, pinned ? 1 : 2);
    }
  });

  it("sleeps nobody where its timer is off, and says so", () => {
    const rig = new TaskRig({ sched: { timer: "off" } });
    const failure = assertThrows(() =>
      rig.runTasks([{
        *program(cpu: X86Cpu): Guest {
          yield* nanosleep(cpu, 1);
        },
      }]), GuestError);
    assertEquals((failure.cause as Error).message, "Cannot sleep: the kernel's timer is off");
    assertEquals(rig.irqs(0, LOCAL_TIMER_VECTOR), 0);
  });

  it("never takes the processor from kernel code that does not offer it", () => {
    const rig = new TaskRig();
    const order: string[] = [];
    rig.runTasks(["a", "b"].map((name) => ({
      kernelThread: true,
      *program(cpu: X86Cpu): Guest {
        for (let turn = 0; turn < 3; turn++) {
          yield cpu.work(3 * TICK);
          order.push(name);
        }
      },
    })));
    assertEquals(order.join(""), "aaabbb");
  });

  it("gives slices of as many ticks as it was told", () => {
    const rig = new TaskRig({ sched: { slice: 4 } });
    const order: number[] = [];
    rig.runTasks([0, 1].map((n) => ({
      *program(cpu: X86Cpu): Guest {
        for (let turn = 0; turn < 8; turn++) {
          order.push(n);
          yield cpu.work(TICK);
        }
      },
    })));
    const first = order.indexOf(1);
    assert(first >= 4 && first <= 5, String(first));
  });

  it("uses the structs of tasks that have ended again, and has no more than it was told", () => {
    const rig = new TaskRig({ sched: { tasks: 2 } });
    const { kernel } = rig;
    const entry = kernel.user(function* short() {});
    let made = 0;
    rig.run(function* (cpu) {
      for (let round = 0; round < 3; round++) {
        for (let n = 0; n < 2; n++, made++) yield* kernel.sched.spawn(cpu, { entry });
        yield* kernel.sched.waitForAll(cpu);
      }
    });
    assertEquals(made, 6);
    const full = new TaskRig({ sched: { tasks: 1 } });
    const sleeper = full.kernel.user(function* sleeper(cpu) {
      yield* nanosleep(cpu, 1e6);
    });
    const failure = assertThrows(() =>
      full.run(function* (cpu) {
        for (let n = 0; n < 2; n++) yield* full.kernel.sched.spawn(cpu, { entry: sleeper });
      }), GuestError);
    assertEquals(
      (failure.cause as Error).message,
      "Cannot start a task: there are 1 already, the most allowed",
    );
  });

  it("starts only functions that were registered, on processors that there are", () => {
    const rig = new TaskRig({ cpus: 2 });
    const { kernel } = rig;
    const entry = kernel.user(function* nothing() {});
    rig.run(function* (cpu) {
      for (const options of [{ entry: kernel.entry }, { entry, cpu: 2 }, { entry, cpu: -1 }]) {
        let refused = "";
        try {
          yield* kernel.sched.spawn(cpu, options);
        } catch (error) {
          refused = (error as Error).message;
        }
        assert(/^Cannot (start a task at|pin a task to processor)/.test(refused), refused);
      }
    });
  });

  it("is refused where it cannot be, and is not there where it was not asked for", () => {
    const build = (options: object): Kernel => new Kernel({ *main(): Guest {}, ...options });
    assertThrows(
      () => build({ bits: 32, sched: true }),
      RangeError,
      "Cannot build a 32-bit kernel with tasks",
    );
    assertThrows(() => build({ sched: { hz: 0 } }), RangeError, "Cannot tick 0 times a second");
    assertThrows(() => build({ sched: { tasks: 0 } }), RangeError, "Cannot have 0 tasks");
    assertThrows(() => build({ sched: false, paging: true }), RangeError, "with paging and without tasks");
    const plain = build({});
    assertEquals([plain.hasSched, plain.hasMm], [false, false]);
    assertThrows(() => plain.sched, RangeError, "Cannot schedule");
    assertThrows(() => plain.mm, RangeError, "Cannot manage memory");
  });

  it("adds nothing to a kernel without it: the same text at the same addresses, the same memory", () => {
    const build = (options: object): Kernel => new Kernel({ cpus: 2, *main(): Guest {}, ...options });
    const plain = build({});
    const names = plain.text.blocks.map(({ name }) => name);
    assertEquals(names, [
      "start_kernel",
      "trampoline_start",
      "spurious_interrupt",
      "fixup_exception",
      "exc_nmi",
      "sysvec_reschedule_ipi",
      "sysvec_call_function",
      "sysvec_call_function_single",
    ]);
    for (const options of [{ sched: true }, { paging: true }]) {
      const blocks = build(options).text.blocks;
      assertEquals(
        blocks.slice(0, names.length).map(({ name, address }) => [name, address]),
        plain.text.blocks.map(({ name, address }) => [name, address]),
      );
      assertGreater(blocks.length, names.length);
    }
    assertGreater(build({ sched: true }).memory, plain.memory);
  });
});
