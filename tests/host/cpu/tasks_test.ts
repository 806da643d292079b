import { assertEquals, assertGreater, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  EFER_LME,
  EFER_SCE,
  type Guest,
  type GuestFunction,
  IA32_EFER,
  IA32_GS_BASE,
  X2APIC_EOI,
  X2APIC_SELF_IPI,
  X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig, startAps } from "../../support/guests.ts";

/** What a run of a program throws. */
function errorOf(rig: Rig, program: GuestFunction): string {
  rig.start(program);
  return assertThrows(() => rig.vm.machine.run(1e9), GuestError).message;
}

describe("a task", () => {
  it("begins at its entry the first time a processor switches to it, and goes on where it was afterwards", () => {
    const rig = new Rig();
    const story: string[] = [];
    const tasks: X86Cpu[] = [];
    const entry = rig.text.add(function* worker(cpu) {
      for (let turn = 1;; turn++) {
        story.push(`worker, turn ${turn}`);
        yield cpu.switchTo(tasks[0]);
      }
    });
    rig.finish(function* (cpu) {
      tasks.push(cpu, X86Cpu.task(entry));
      for (let turn = 1; turn <= 2; turn++) {
        story.push(`program, turn ${turn}`);
        yield cpu.switchTo(tasks[1]);
      }
    });
    assertEquals(story, ["program, turn 1", "worker, turn 1", "program, turn 2", "worker, turn 2"]);
  });

  it("has registers and flags of its own; the processor's system registers it shares", () => {
    const rig = new Rig();
    let main: X86Cpu;
    const seen: unknown[] = [];
    const entry = rig.text.add(function* worker(cpu) {
      seen.push(cpu.rax, cpu.register("rdi"), cpu.interruptsEnabled, cpu.cpl, cpu.gsBase);
      yield cpu.lockBts(DATA, 0); // CF, and RDI and RCX.
      yield cpu.store64(DATA + 8, -1, -1);
      yield cpu.wrmsr(IA32_GS_BASE, 0x6000);
      yield cpu.switchTo(main);
    });
    rig.finish(function* (cpu) {
      main = cpu;
      yield cpu.wrmsr(IA32_GS_BASE, 0x5000);
      yield cpu.store64(DATA, 1, 2);
      yield cpu.lockBtr(DATA, 5);
      yield cpu.switchTo(X86Cpu.task(entry));
      assertEquals([cpu.rax, cpu.ecx, cpu.register("rdi")], [2n << 32n | 1n, 5, BigInt(DATA)]);
      assertEquals([cpu.cf, cpu.interruptsEnabled], [false, false]);
      assertEquals(cpu.gsBase, 0x6000);
    });
    assertEquals(seen, [0n, 0n, true, 0, 0x5000]);
  });

  for (const backend of BACKENDS) {
    it(`can be switched away from inside a handler, as preemption does (${backend})`, () => {
      const rig = new Rig({ vm: { backend } });
      const tasks: X86Cpu[] = [];
      const progress = [0, 0];
      let switches = 0;
      function* busy(cpu: X86Cpu, index: number): Guest {
        while (switches < 10) {
          yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
          yield cpu.pause();
          progress[index]++;
        }
      }
      rig.on(0x40, function* tick(cpu) {
        yield cpu.wrmsr(X2APIC_EOI, 0);
        switches++;
        yield cpu.switchTo(tasks[1 - tasks.indexOf(cpu)]);
      });
      const entry = rig.text.add(function* second(cpu) {
        yield* busy(cpu, 1);
        yield cpu.switchTo(tasks[0]);
      });
      rig.finish(function* first(cpu) {
        yield* enableX2apic(cpu);
        tasks.push(cpu, X86Cpu.task(entry));
        yield cpu.sti();
        yield* busy(cpu, 0);
      });
      assertEquals(switches, 10);
      assertGreater(progress[0], 2);
      assertGreater(progress[1], 2);
    });
  }

  it("goes on on another vCPU, where its handle tells of that one", () => {
    const rig = new Rig({ vm: { vcpus: 2 } });
    const idle: X86Cpu[] = [];
    const seen: number[] = [];
    const wandering = X86Cpu.task(rig.text.add(function* wanderer(cpu) {
      let local = 0;
      for (let turn = 0; turn < 3; turn++) {
        yield cpu.rdmsr(0x802); // x2APIC ID.
        seen.push(cpu.eax, cpu.gsBase, ++local);
        const here = cpu.eax;
        yield cpu.store32(DATA, turn + 1);
        yield cpu.switchTo(idle[here]);
      }
    }));
    /** Runs the task when it is this vCPU's turn. */
    function* host(cpu: X86Cpu, index: number): Guest {
      yield cpu.wrmsr(IA32_GS_BASE, 0x1000 * (index + 1));
      idle[index] = cpu;
      for (const turn of [0, 1, 2]) {
        if (turn % 2 === index) yield cpu.switchTo(wandering);
        else while (cpu.eax !== turn + 1) yield cpu.load32(DATA);
      }
      yield cpu.xadd32(DATA + 4, 1);
    }
    rig.aps(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* host(cpu, 1);
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    }).finish(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      yield* host(cpu, 0);
      yield cpu.pauseWhile(DATA + 4, 1);
    });
    assertEquals(seen, [0, 0x1000, 1, 1, 0x2000, 2, 0, 0x1000, 3]);
  });

  it("is one among many: any order of switches runs each task's steps in its own order", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(3), { maxLength: 30 }), (order) => {
        const rig = new Rig({ machine: { pcpus: 1 } });
        let main: X86Cpu;
        const steps: number[][] = [[], [], [], []];
        const tasks = steps.map((log, index) =>
          X86Cpu.task(rig.text.add(function* task(cpu) {
            for (let step = 0;; step++) {
              log.push(step);
              yield cpu.xadd32(DATA + 4 * index, 1);
              assertEquals(cpu.eax, step);
              yield cpu.switchTo(main);
            }
          }))
        );
        rig.finish(function* (cpu) {
          main = cpu;
          for (const index of order) yield cpu.switchTo(tasks[index]);
        });
        for (const [index, log] of steps.entries()) {
          assertEquals(log, log.map((_, step) => step));
          assertEquals(log.length, order.filter((chosen) => chosen === index).length);
        }
      }),
      { numRuns: 30 },
    );
  });
});

describe("a switch that cannot be is an error:", () => {
  it("to the task itself", () => {
    const message = errorOf(new Rig(), function* program(cpu) {
      yield cpu.switchTo(cpu);
    });
    assertStringIncludes(message, "program on vcpu 0");
    assertStringIncludes(message, "it switched to no other task");
  });

  it("to a task that another vCPU runs", () => {
    const rig = new Rig({ vm: { vcpus: 2 } });
    let other: X86Cpu;
    rig.aps(function* (cpu) {
      other = cpu;
      for (;;) yield cpu.pause();
    });
    const message = errorOf(rig, function* program(cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      yield cpu.work(10_000);
      yield cpu.switchTo(other);
    });
    assertStringIncludes(message, "program on vcpu 0");
    assertStringIncludes(message, "it switched to a task that is already running");
  });

  it("by a program at CPL 3", () => {
    const rig = new Rig();
    const task = X86Cpu.task(rig.text.add(function* task(cpu) {
      yield cpu.pause();
    }));
    const user = rig.text.add(function* user(cpu) {
      yield cpu.switchTo(task);
    });
    const message = errorOf(rig, function* kernel(cpu) {
      yield cpu.wrmsr(IA32_EFER, EFER_LME | EFER_SCE);
      yield cpu.sysret(user);
    });
    assertStringIncludes(message, "user on vcpu 0");
    assertStringIncludes(message, "it switched tasks, which is the kernel's to do");
  });

  it("to a task whose entry is no function", () => {
    const message = errorOf(new Rig(), function* program(cpu) {
      yield cpu.switchTo(X86Cpu.task(0x7000));
    });
    assertStringIncludes(message, "0x7000 is not the entry of a guest function");
  });

  it("away from a task that has returned", () => {
    const rig = new Rig();
    const entry = rig.text.add(function* ends(cpu) {
      yield cpu.pause();
    });
    const message = errorOf(rig, function* program(cpu) {
      yield cpu.switchTo(X86Cpu.task(entry));
    });
    assertStringIncludes(message, "ends on vcpu 0");
    assertStringIncludes(message, "this task returned; it must switch to another one instead");
  });
});
