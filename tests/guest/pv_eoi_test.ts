import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_EOI, encodeMsi, MSR_KVM_PV_EOI_EN, type X86Cpu } from "../../abi/mod.ts";
import { type ApicName, type GuestSemantics, percpu } from "../../guest/mod.ts";
import { BACKENDS, IoEventFd } from "../../host/mod.ts";
import { APICS, KernelRig, type KernelRigOptions } from "../support/kernels.ts";

const VECTOR = 0x41;
const DOORBELL = 0xc010;
const YEARS: readonly GuestSemantics[] = ["v6.19", "2022", "2021", "2018", "2012"];

/** A kernel that rings a device's doorbell `count` times; the device answers each with an interrupt. */
function device(count: number, options: KernelRigOptions = {}): KernelRig {
  const rig = new KernelRig(options);
  const { vm, kernel } = rig;
  vm.pioBus.add(
    new IoEventFd(DOORBELL, 2, () => {
      vm.signalMsi(encodeMsi({ vector: VECTOR, destination: 0 }, "xapic"));
    }),
  );
  kernel.irq(VECTOR, function* device(cpu) {
    yield cpu.work(100);
  });
  return rig.run(function* (cpu) {
    rig.mark();
    for (let n = 0; n < count; n++) {
      yield cpu.out16(DOORBELL, 0);
      yield cpu.work(5000);
    }
  });
}

/** The EOIs that reached the APIC's register. */
function registerEois(rig: KernelRig): number {
  return rig.seen("kvm_apic").filter(({ args }) => args[0] === 1 && args[1] === APIC_EOI).length;
}

describe("PV EOI in a kernel", () => {
  for (const backend of BACKENDS) {
    for (const apic of APICS) {
      for (const guestSemantics of YEARS) {
        it(`takes the EOI's exit away: ${apic}, ${guestSemantics}, ${backend}`, () => {
          const options = { apic, guestSemantics, vm: { backend } };
          const plain = device(20, { ...options, disable: ["pv-eoi"] });
          assertEquals([registerEois(plain), plain.seen("kvm_eoi").length], [20, 20]);
          assertEquals(plain.seen("kvm_pv_eoi").length, 0);
          const pv = device(20, options);
          assertEquals([registerEois(pv), pv.seen("kvm_eoi").length], [0, 20]);
          assertEquals(pv.seen("kvm_pv_eoi").length, 20);
          assertEquals([plain.irqs(0, VECTOR), pv.irqs(0, VECTOR)], [20, 20]);
          // Each EOI of the register was an exit; nothing else changed.
          assertEquals(plain.seen("kvm_exit").length - pv.seen("kvm_exit").length, 20);
        });
      }
    }
  }

  it("ends with the vector that was delivered, on the processor that took it", () => {
    const rig = device(3);
    assertEquals(rig.seen("kvm_pv_eoi").map(({ vcpu, args }) => [vcpu, args[0], args[1]]), [
      [0, 0, VECTOR],
      [0, 0, VECTOR],
      [0, 0, VECTOR],
    ]);
  });

  it("is enabled on each processor with an area of its own, cleared before", () => {
    for (const guestSemantics of YEARS) {
      const rig = new KernelRig({ cpus: 3, guestSemantics });
      for (let n = 0; n < 3; n++) rig.vm.memory.setWord(percpu(n, "kvmApicEoi"), 1); // Somebody left it set.
      rig.run();
      assertEquals(
        rig.written(MSR_KVM_PV_EOI_EN),
        [0, 1, 2].map((n): [number, bigint] => [n, BigInt(percpu(n, "kvmApicEoi") | 1)]),
      );
      for (let n = 0; n < 3; n++) assertEquals(rig.eoiFlag(n), 0);
    }
  });

  it("touches nothing where the host does not offer it", () => {
    const rig = device(5, { vm: { features: [] } });
    assertEquals(rig.kernel.drivers, []);
    assertEquals(rig.written(MSR_KVM_PV_EOI_EN), []);
    assertEquals([registerEois(rig), rig.seen("kvm_pv_eoi").length], [5, 0]);
  });

  for (const guestSemantics of YEARS) {
    it(`falls back to the register where a lower vector waits, which must come at once: ${guestSemantics}`, () => {
      for (const apic of APICS) {
        const rig = new KernelRig({ apic, guestSemantics });
        const order: number[] = [];
        for (const vector of [0x50, 0x60]) {
          rig.kernel.irq(vector, function* (cpu) {
            order.push(vector);
            yield cpu.pause();
          });
        }
        rig.run(function* (cpu, kernel) {
          rig.mark();
          yield cpu.cli();
          yield* kernel.apic.sendIpiSelf(cpu, 0x50);
          yield* kernel.apic.sendIpiSelf(cpu, 0x60);
          yield cpu.sti();
          yield cpu.work(10_000);
        });
        assertEquals(order, [0x60, 0x50]);
        // 0x60 was ended by the register, since 0x50 was waiting; 0x50 by the flag.
        assertEquals(registerEois(rig), 1);
        assertEquals(rig.seen("kvm_pv_eoi").map(({ args }) => args[1]), [0x50]);
        assertEquals(rig.seen("kvm_eoi").map(({ args }) => args[1]), [0x60, 0x50]);
      }
    });
  }

  it("is one instruction: an interrupt in a handler is ended each by its own", () => {
    const rig = new KernelRig();
    const order: string[] = [];
    // Handlers that end their interrupt last, and let others in.
    const nesting = (vector: number, within: (cpu: X86Cpu) => Generator<number, void, void>) =>
      rig.kernel.gate(vector, function* (cpu) {
        order.push(`${vector.toString(16)} begins`);
        yield* within(cpu);
        yield* rig.kernel.ackApicIrq(cpu);
        order.push(`${vector.toString(16)} ends`);
      });
    nesting(0x50, function* (cpu) {
      yield cpu.sti();
      yield* rig.kernel.apic.sendIpiSelf(cpu, 0x60);
      yield cpu.pause();
      yield cpu.cli();
    });
    nesting(0x60, function* (cpu) {
      yield cpu.pause();
    });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* kernel.apic.sendIpiSelf(cpu, 0x50);
      yield cpu.work(10_000);
    });
    assertEquals(order, ["50 begins", "60 begins", "60 ends", "50 ends"]);
    // 0x50's flag was closed again by the exit that let 0x60 in; 0x60 was ended by the flag.
    assertEquals(rig.seen("kvm_eoi").map(({ args }) => args[1]), [0x60, 0x50]);
    assertEquals(rig.seen("kvm_pv_eoi").map(({ args }) => args[1]), [0x60]);
    assertEquals(registerEois(rig), 1);
  });
});

describe("what PV EOI replaces", () => {
  /** The drivers whose operations are not the same after a kernel has booted. */
  function replaced(options: KernelRigOptions): { eoi: ApicName[]; eoiWrite: ApicName[] } {
    const rig = new KernelRig(options);
    const before = rig.kernel.apicDrivers.map(({ name, eoi, eoiWrite }) => ({ name, eoi, eoiWrite }));
    rig.run();
    const now = rig.kernel.apicDrivers;
    return {
      eoi: before.filter(({ eoi }, n) => now[n].eoi !== eoi).map(({ name }) => name),
      eoiWrite: before.filter(({ eoiWrite }, n) => now[n].eoiWrite !== eoiWrite).map(({ name }) => name),
    };
  }
  const ALL: ApicName[] = ["x2apic-physical", "x2apic-cluster", "xapic"];

  it("since v6.6 the drivers' eoi", () => {
    assertEquals(replaced({ guestSemantics: "v6.19" }), { eoi: ALL, eoiWrite: [] });
  });

  it("before that eoi_write, of every driver that is compiled in", () => {
    for (const guestSemantics of ["2022", "2021", "2018", "2012"] as const) {
      assertEquals(replaced({ guestSemantics }), { eoi: [], eoiWrite: ALL });
    }
  });

  it("nothing where the feature is absent", () => {
    for (const guestSemantics of YEARS) {
      assertEquals(replaced({ guestSemantics, vm: { features: [] } }), { eoi: [], eoiWrite: [] });
    }
  });

  it("is what 2012 falls back from to the driver's plain write, and 2018 to the eoi_write of before", () => {
    for (const [guestSemantics, calls] of [["2012", 0], ["2018", 1]] as const) {
      let seen = 0;
      const rig = new KernelRig({ guestSemantics, apic: "xapic" });
      const { kernel } = rig;
      // A driver with an eoi_write of its own, before PV EOI is probed.
      const { apic } = kernel;
      const native = apic.eoiWrite;
      apic.eoiWrite = function* (cpu, register, value) {
        seen++;
        yield* native(cpu, register, value);
      };
      for (const vector of [0x50, 0x60]) {
        kernel.irq(vector, function* (cpu) {
          yield cpu.pause();
        });
      }
      rig.run(function* (cpu) {
        yield cpu.cli();
        yield* apic.sendIpiSelf(cpu, 0x50);
        yield* apic.sendIpiSelf(cpu, 0x60);
        yield cpu.sti();
        yield cpu.work(10_000);
      });
      assertEquals(seen, calls);
      assertEquals([rig.irqs(0, 0x50), rig.irqs(0, 0x60)], [1, 1]);
    }
  });
});
