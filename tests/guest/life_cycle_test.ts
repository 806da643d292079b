import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_IRR, MSR_KVM_PV_EOI_EN, type X86Cpu } from "../../abi/mod.ts";
import {
  cpuDown,
  cpuUp,
  crash,
  data,
  type GuestSemantics,
  type GuestValue,
  idle,
  type Kernel,
  linkReboot,
  percpu,
  type PvDriver,
  reboot,
  resume,
  smpCallFunctionMany,
  smpCallFunctionSingle,
  suspend,
} from "../../guest/mod.ts";
import { BACKENDS, GuestError } from "../../host/mod.ts";
import { APICS, KernelRig, type KernelRigOptions } from "../support/kernels.ts";

const YEARS: readonly GuestSemantics[] = ["v6.19", "2022", "2021", "2018", "2012"];
/** Those that are of v5.13 or later. */
const SINCE_2021: readonly GuestSemantics[] = ["v6.19", "2022", "2021"];
const VECTOR = 0x40;
/** What processor 2 waits for before it goes off line: the number of times that it has been asked to. */
const ASKED = 0x300_0000;

function* self(cpu: X86Cpu): GuestValue<number> {
  yield cpu.load32(cpu.gsBase);
  return cpu.eax;
}

/** A kernel whose processor 2 goes off line whenever it is asked to. */
function hotplug(options: KernelRigOptions = {}): KernelRig {
  let asked = 0;
  const rig = new KernelRig({
    cpus: 4,
    *secondary(cpu, kernel) {
      if ((yield* self(cpu)) === 2) {
        yield cpu.pauseWhile(ASKED, asked++);
        yield* cpuDown(cpu, kernel);
      }
      yield* idle(cpu);
    },
    ...options,
  });
  rig.kernel.irq(VECTOR, function* (cpu) {
    yield cpu.pause();
  });
  return rig;
}

/** Asks processor 2 to go, and waits until it is off line. */
function* takeDown(cpu: X86Cpu, kernel: Kernel): Generator<number, void, void> {
  yield cpu.xadd32(ASKED, 1);
  while (yield* kernel.online(cpu, 2)) yield cpu.pause();
}

/** The value that enables PV EOI on a processor. */
function enabled(n: number): bigint {
  return BigInt(percpu(n, "kvmApicEoi") | 1);
}

describe("a processor that goes off line", () => {
  for (const guestSemantics of YEARS) {
    it(`takes its PV EOI area back before it sleeps: ${guestSemantics}`, () => {
      const rig = hotplug({ guestSemantics });
      rig.run(function* (cpu, kernel) {
        rig.mark();
        yield* takeDown(cpu, kernel);
      });
      assertEquals(rig.written(MSR_KVM_PV_EOI_EN), [[2, 0n]]);
      assertEquals([rig.mask("online"), rig.mask("dead"), rig.mask("bootedOnce")], [[0, 1, 3], [2], [
        0,
        1,
        2,
        3,
      ]]);
      assertEquals(rig.vm.vcpus.map((vcpu) => vcpu.pvEoi.enabled), [true, true, false, true]);
    });

    it(`is not called any more: ${guestSemantics}`, () => {
      const rig = hotplug({ guestSemantics });
      const ran: number[] = [];
      const func = rig.kernel.smpFunction(function* note(cpu) {
        ran.push(yield* self(cpu));
      });
      rig.run(function* (cpu, kernel) {
        yield* takeDown(cpu, kernel);
        assertEquals(yield* smpCallFunctionSingle(cpu, kernel, 2, { func, info: 0 }), false);
        yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
      });
      assertEquals(ran.sort(), [1, 3]);
    });
  }

  it("is passed by the shorthand for all others, which is still in use", () => {
    for (const apic of APICS) {
      const rig = hotplug({ apic });
      rig.run(function* (cpu, kernel) {
        yield* takeDown(cpu, kernel);
        yield cpu.work(100_000);
        rig.mark();
        yield* kernel.apic.sendIpiAllButSelf(cpu, VECTOR);
        yield cpu.work(100_000);
      });
      assertEquals(rig.sends().map(([low]) => low), [0xc0000 | VECTOR]);
      assertEquals([0, 1, 2, 3].map((n) => rig.irqs(n, VECTOR)), [0, 1, 0, 1]);
      // It was disabled by software, and so has not even noted it.
      const { lapic } = rig.vm.vcpus[2];
      assertEquals([lapic.softwareEnabled, lapic.get(APIC_IRR + 0x20)], [false, 0]);
    }
  });

  it("still runs what was in its queue: its callers wait for that", () => {
    const rig = new KernelRig({
      cpus: 3,
      *secondary(cpu, kernel) {
        if ((yield* self(cpu)) === 2) {
          yield cpu.cli();
          yield cpu.work(500_000); // The call comes meanwhile.
          yield* cpuDown(cpu, kernel);
        }
        yield* idle(cpu);
      },
    });
    const ran: number[] = [];
    const func = rig.kernel.smpFunction(function* note(cpu) {
      ran.push(yield* self(cpu));
    });
    rig.run(function* (cpu, kernel) {
      assertEquals(yield* smpCallFunctionSingle(cpu, kernel, 2, { func, info: 0 }), true);
    });
    assertEquals([ran, rig.mask("online")], [[2], [0, 1]]);
  });
});

describe("a processor that comes back", () => {
  for (const backend of BACKENDS) {
    for (const apic of APICS) {
      it(`takes part as before, as often as you like: ${apic}, ${backend}`, () => {
        const rig = hotplug({ apic, vm: { backend } });
        rig.run(function* (cpu, kernel) {
          for (let times = 1; times <= 3; times++) {
            yield* takeDown(cpu, kernel);
            yield* cpuUp(cpu, kernel, 2);
            assertEquals([rig.mask("online"), rig.mask("dead")], [[0, 1, 2, 3], []]);
            yield* kernel.apic.sendIpiAllButSelf(cpu, VECTOR);
            yield cpu.work(100_000);
            assertEquals([1, 2, 3].map((n) => rig.irqs(n, VECTOR)), [times, times, times]);
          }
        });
        assertEquals(rig.vm.vcpus[2].lapic.softwareEnabled, true);
      });
    }
  }

  it("is started with INIT and start-up IPIs, and gives the host its area again", () => {
    const rig = hotplug();
    rig.run(function* (cpu, kernel) {
      yield* takeDown(cpu, kernel);
      rig.mark();
      yield* cpuUp(cpu, kernel, 2);
    });
    assertEquals(rig.sends(), [[0xc500, 2], [0x8500, 2], [0x0608, 2], [0x0608, 2]]);
    assertEquals(rig.written(MSR_KVM_PV_EOI_EN), [[2, enabled(2)]]);
    assertEquals(rig.eoiFlag(2), 0);
  });

  it("is not started before it has gone, under any schedule", () => {
    for (let seed = 0; seed < 30; seed++) {
      const rig = hotplug({ machine: { policy: { random: seed }, limits: { steps: 1e6 } } });
      rig.run(function* (cpu, kernel) {
        for (let times = 0; times < 3; times++) {
          yield* takeDown(cpu, kernel);
          yield* cpuUp(cpu, kernel, 2); // At once: it may still be on its way.
        }
      });
      assertEquals(rig.mask("online"), [0, 1, 2, 3]);
      // Each time it told the host that its area is gone, and then of it again.
      const own = rig.written(MSR_KVM_PV_EOI_EN).filter(([vcpu]) => vcpu === 2).map(([, value]) => value);
      const on = enabled(2);
      assertEquals(own, [on, 0n, on, 0n, on, 0n, on]);
    }
  });

  it("was never away: nothing is sent", () => {
    const rig = hotplug();
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* cpuUp(cpu, kernel, 1);
    });
    assertEquals(rig.sends(), []);
  });

  it("was never there: the guest stops with what is allowed", () => {
    for (const n of [4, -1, 1.5]) {
      assertThrows(
        () => hotplug().go((cpu, kernel) => cpuUp(cpu, kernel, n)),
        GuestError,
        `Cannot start processor ${n}: allowed are 0 to 3`,
      );
    }
  });
});

describe("ways down and back, by year", () => {
  /** What is written to the PV EOI MSRs while a program runs on a booted kernel. */
  function writes(
    guestSemantics: GuestSemantics,
    program: (cpu: X86Cpu, kernel: Kernel, func: number) => Generator<number, void, void>,
  ): { written: [number, bigint][]; rig: KernelRig } {
    const rig = new KernelRig({ cpus: 3, guestSemantics });
    const func = linkReboot(rig.kernel);
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* program(cpu, kernel, func);
    });
    return { written: rig.written(MSR_KVM_PV_EOI_EN), rig };
  }

  it("suspend takes the boot processor's area back, and resume gives it again, since v5.13", () => {
    for (const guestSemantics of YEARS) {
      const { written, rig } = writes(guestSemantics, function* (cpu, kernel) {
        yield* suspend(cpu, kernel);
        yield* resume(cpu, kernel);
      });
      assertEquals(written, SINCE_2021.includes(guestSemantics) ? [[0, 0n], [0, enabled(0)]] : []);
      assertEquals(rig.vm.vcpus.map((vcpu) => vcpu.pvEoi.enabled), [true, true, true]);
    }
  });

  it("after suspend the flag is not used, and after resume it is", () => {
    const rig = new KernelRig();
    rig.kernel.irq(VECTOR, function* (cpu) {
      yield cpu.pause();
    });
    const pvEois: number[] = [];
    rig.run(function* (cpu, kernel) {
      const take = function* (): Generator<number, void, void> {
        rig.mark();
        yield* kernel.apic.sendIpiSelf(cpu, VECTOR);
        yield cpu.cpuid(0); // An exit, at which the host looks.
        assertEquals(rig.seen("kvm_eoi").length, 1);
        pvEois.push(rig.seen("kvm_pv_eoi").length);
      };
      yield* take();
      yield* suspend(cpu, kernel);
      yield* take();
      yield* resume(cpu, kernel);
      yield* take();
    });
    assertEquals(pvEois, [1, 0, 1]);
  });

  it("a crash takes the crashing processor's area back, it alone, since v5.13", () => {
    for (const guestSemantics of YEARS) {
      const today = SINCE_2021.includes(guestSemantics);
      const { written, rig } = writes(guestSemantics, function* (cpu, kernel) {
        yield* crash(cpu, kernel);
        yield cpu.pushf();
        assertEquals(cpu.interruptsEnabled, false);
      });
      assertEquals(written, today ? [[0, 0n]] : []);
      assertEquals(rig.vm.vcpus.map((vcpu) => vcpu.pvEoi.enabled), [!today, true, true]);
    }
  });

  it("a restart takes everybody's back in every year, the caller's last until v5.13 had it do that while it waits", () => {
    for (const guestSemantics of YEARS) {
      const { written, rig } = writes(guestSemantics, reboot);
      if (!SINCE_2021.includes(guestSemantics)) assertEquals(written.at(-1), [0, 0n]);
      else assertEquals(written.at(-1)![0] === 0, false, "the others' interrupts take longer");
      assertEquals(written.toSorted(([a], [b]) => a - b), [[0, 0n], [1, 0n], [2, 0n]]);
      assertEquals(rig.vm.vcpus.map((vcpu) => vcpu.pvEoi.enabled), [false, false, false]);
      for (let n = 0; n < 3; n++) assertEquals(rig.eoiFlag(n), 0);
    }
  });
});

describe("a driver's hooks", () => {
  it("run where and when the kernel says, and those that are missing are passed over", () => {
    const calls: string[] = [];
    const hook = (name: string) =>
      function* (cpu: X86Cpu): Generator<number, void, void> {
        yield cpu.pushf();
        calls.push(`${name} on ${yield* self(cpu)}${cpu.interruptsEnabled ? ", interrupts on" : ""}`);
      };
    const driver: PvDriver = {
      name: "own",
      *probe(cpu) {
        yield cpu.pause();
        calls.push("probe");
        return true;
      },
      online: hook("online"),
      offline: hook("offline"),
      suspend: hook("suspend"),
      resume: hook("resume"),
      crash: hook("crash"),
      reboot: hook("reboot"),
    };
    const bare: PvDriver = { name: "bare", probe: driver.probe };
    const unused: PvDriver = {
      ...driver,
      name: "unused",
      *probe(cpu) {
        yield cpu.pause();
        return false;
      },
    };
    const rig = hotplug({ drivers: [driver, bare, unused] });
    const func = linkReboot(rig.kernel);
    rig.run(function* (cpu, kernel) {
      yield* takeDown(cpu, kernel);
      yield* cpuUp(cpu, kernel, 2);
      yield* suspend(cpu, kernel);
      yield* resume(cpu, kernel);
      const before = calls.length;
      yield* reboot(cpu, kernel, func);
      calls.splice(before, 4, ...calls.slice(before, before + 4).sort()); // All at once.
      yield* crash(cpu, kernel);
    });
    assertEquals(calls, [
      "probe",
      "probe",
      "online on 0",
      "online on 1",
      "online on 2",
      "online on 3",
      "offline on 2",
      "online on 2",
      "suspend on 0",
      "resume on 0",
      "reboot on 0",
      "reboot on 1",
      "reboot on 2",
      "reboot on 3",
      "crash on 0",
    ]);
    assertEquals(rig.kernel.drivers.map(({ name }) => name), ["pv-eoi", "pv-ipi", "own", "bare"]);
  });

  it("of a driver that is disabled do not run", () => {
    const calls: string[] = [];
    const driver: PvDriver = {
      name: "own",
      *probe(cpu) {
        calls.push("probe");
        yield cpu.pause();
        return true;
      },
    };
    new KernelRig({ drivers: [driver], disable: ["own"] }).run();
    assertEquals(calls, []);
  });
});
