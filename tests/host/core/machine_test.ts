import { assertEquals, assertGreater, assertGreaterOrEqual, assertLess, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { Text } from "../../../abi/mod.ts";
import { COST_LIMIT, GuestError, LimitExceeded, Machine, SKYLAKE_VMX } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig, startAps } from "../../support/guests.ts";

describe("a run", () => {
  it("is finished when the bootstrap processor's program has returned and nothing goes on", () => {
    const rig = new Rig();
    const { end, cycles, steps } = rig.run(function* (cpu) {
      yield cpu.work(1e6);
    });
    assertEquals(end, "finished");
    assertGreater(cycles, 1e6);
    assertLess(cycles, 1e6 + 10_000);
    assertEquals(steps, rig.vm.engine.steps);
  });

  it("goes on while another processor computes, also when the bootstrap processor's program has returned", () => {
    const rig = new Rig({ vm: { vcpus: 2 } });
    rig.aps(function* (cpu) {
      yield cpu.work(1e6);
      yield cpu.store32(DATA, 1);
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    });
    const { end } = rig.run(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
    });
    assertEquals([end, rig.word(DATA)], ["finished", 1]);
  });

  it("has a deadline that is a number, and no other run within it", () => {
    assertThrows(() => new Machine().run(NaN), RangeError, "Cannot run to NaN");
    const rig = new Rig();
    assertThrows(
      () =>
        rig.run(function* (cpu) {
          yield cpu.cpuid(0);
          rig.vm.machine.run();
        }),
      GuestError,
      "Cannot run the machine: it is running",
    );
  });

  it("is halted when everybody waits for what never comes", () => {
    for (const policy of ["timed", { random: 1 }] as const) {
      const rig = new Rig({ machine: { policy } });
      assertEquals(
        rig.run(function* (cpu) {
          yield cpu.cli();
          yield cpu.hlt();
        }).end,
        "halted",
      );
    }
  });

  it("meets its deadline and can be continued, as if there had been none", () => {
    const run = (deadlines: readonly number[]) => {
      const rig = new Rig({ vm: { trace: 1000 } });
      const { machine } = rig.start(function* (cpu) {
        for (let i = 0; i < 10; i++) {
          yield cpu.cpuid(0);
          yield cpu.work(5000);
        }
      });
      for (const deadline of deadlines) {
        const { end, cycles } = machine.run(deadline);
        assertEquals(end, "deadline");
        assertGreaterOrEqual(cycles, deadline);
      }
      return { ...machine.run(), trace: rig.vm.tracer.bytes() };
    };
    const whole = run([]);
    assertEquals(whole.end, "finished");
    assertEquals(run([1, 7000, 7001, 40_000]), whole);
  });

  it("ends when a virtual machine shuts down, although another one goes on", () => {
    const machine = new Machine();
    const text = new Text();
    const faulty = text.add(function* faulty(cpu) {
      yield cpu.work(1000);
      yield cpu.ud2();
    });
    const endless = text.add(function* endless(cpu) {
      for (;;) yield cpu.work(1e6);
    });
    const vms = [faulty, endless].map((entry) => {
      const vm = machine.createVm({ memory: 2 ** 21 });
      vm.load(text);
      vm.start(entry);
      return vm;
    });
    assertEquals(machine.run().end, "shutdown");
    assertEquals(vms.map(({ dead }) => dead), [true, false]);
  });

  it("has several virtual machines side by side, each with its own memory and counters", () => {
    const machine = new Machine();
    const text = new Text();
    const entry = text.add(function* count(cpu) {
      for (;;) {
        yield cpu.cpuid(0);
        yield cpu.xadd32(DATA, 1);
        if (cpu.eax === 4) return;
      }
    });
    const vms = [0, 2].map((first) => {
      const vm = machine.createVm({ memory: 2 ** 21 });
      vm.load(text);
      vm.memory.setWord(DATA, first);
      vm.start(entry);
      return vm;
    });
    assertEquals(machine.run().end, "finished");
    assertEquals(vms.map(({ memory }) => memory.word(DATA)), [5, 5]);
    assertEquals(vms.map((vm) => vm.exits().CPUID), [5, 3]);
    assertEquals(machine.exits, 5 + 3 + 2); // And each halts at its end.
  });
});

describe("a limit of the machine", () => {
  it("on exits is an error that names it and says how to raise it", () => {
    for (const policy of ["timed", { random: 1 }] as const) {
      const rig = new Rig({ machine: { policy, limits: { exits: 10 } } });
      let cpuids = 0;
      rig.start(function* (cpu) {
        for (;; cpuids++) yield cpu.cpuid(0);
      });
      const error = assertThrows(() => rig.vm.machine.run(), LimitExceeded);
      assertEquals(
        error.message,
        "Cannot go on: the limit of 10 exits is reached; raise limits.exits to allow more",
      );
      assertEquals(cpuids, 10);
    }
  });

  it("on steps or cycles stops a guest that never ends", () => {
    for (const limit of ["steps", "cycles"] as const) {
      const rig = new Rig({ machine: { limits: { [limit]: 100_000 } } });
      rig.start(function* (cpu) {
        for (;;) yield cpu.pause();
      });
      const error = assertThrows(() => rig.vm.machine.run(), LimitExceeded, `raise limits.${limit}`);
      assertEquals([error.limit, error.value], [limit, 100_000]);
      assertLess(rig.vm.engine.steps, 100_001);
      assertLess(rig.vm.bootstrap.clock, limit === "cycles" ? 100_200 : Infinity);
    }
  });

  it("that is not reached changes nothing", () => {
    const rig = new Rig({ machine: { limits: { exits: 3, cycles: 1e6 } } });
    const { end } = rig.run(function* (cpu) {
      yield cpu.cpuid(0);
      yield cpu.cpuid(0);
    });
    assertEquals([end, rig.vm.machine.exits], ["finished", 3]);
  });
});

describe("a cost profile", () => {
  it("whose prices are no whole numbers, or so high that clocks could not follow, is refused", () => {
    for (const cycles of [-1, 0.5, NaN, COST_LIMIT + 1]) {
      const costs = { ...SKYLAKE_VMX.costs, wake: { cycles, provenance: "assumed", source: "" } as const };
      assertThrows(
        () => new Machine().createVm({ costs: { name: "odd", tscKhz: 1, costs } }),
        RangeError,
        `Cannot use cost profile odd: wake costs ${cycles} cycles; allowed are 0 to ${COST_LIMIT}`,
      );
    }
  });
});
