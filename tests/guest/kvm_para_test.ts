import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { KVM_FEATURES, type KvmFeature } from "../../abi/mod.ts";
import { cpuid, kvmCpuidBase, kvmParaAvailable, kvmParaHasFeature, kvmParaHasHint } from "../../guest/mod.ts";
import { BACKENDS, type CpuidEntry, type VmOptions } from "../../host/mod.ts";
import { KernelRig } from "../support/kernels.ts";

/** The base that a kernel finds, the CPUID leaves that it looked at until then, and the drivers that it uses. */
function probed(vm: VmOptions): { base: number; leaves: number[]; drivers: string[] } {
  let base = -1;
  const rig = new KernelRig({ cpus: 2, vm });
  rig.run(function* (cpu) {
    base = yield* kvmCpuidBase(cpu);
  });
  const leaves = rig.seen("kvm_cpuid").map(({ args }) => args[0]);
  return { base, leaves, drivers: rig.kernel.drivers.map((driver) => driver.name) };
}

/** Leaf 0x40000000 of somebody else: "Microsoft Hv" in EBX, ECX, EDX (TLFS 2.4.1), or "XenVMMXenVMM". */
const MICROSOFT: CpuidEntry = {
  leaf: 0x4000_0000,
  registers: [0x4000_0005, 0x7263_694d, 0x666f_736f, 0x7648_2074],
};
const XEN: CpuidEntry = {
  leaf: 0x4000_0000,
  registers: [0x4000_0004, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e],
};

describe("a kernel looks for KVM", () => {
  for (const backend of BACKENDS) {
    it(`at the first base, once the hypervisor bit is seen (${backend})`, () => {
      const { base, leaves, drivers } = probed({ backend });
      assertEquals(base, 0x4000_0000);
      assertEquals(drivers, ["pv-eoi", "pv-ipi"]);
      assertEquals(leaves.filter((leaf) => leaf === 1 || leaf === 0x4000_0000), [1, 0x4000_0000]);
    });

    it(`behind another hypervisor's leaves (${backend})`, () => {
      const { base, leaves, drivers } = probed({ backend, kvmCpuidBase: 0x4000_0100, cpuid: [MICROSOFT] });
      assertEquals(base, 0x4000_0100);
      assertEquals(drivers, ["pv-eoi", "pv-ipi"]);
      assertEquals(leaves.filter((leaf) => leaf >= 0x4000_0000), [
        0x4000_0000,
        0x4000_0100,
        0x4000_0101, // PV EOI's feature bit,
        0x4000_0101, // PV IPI's.
      ]);
    });

    it(`up to the last base (${backend})`, () => {
      assertEquals(probed({ backend, kvmCpuidBase: 0x4000_ff00 }).base, 0x4000_ff00);
    });

    it(`at all 256 bases, and uses none of its drivers where another hypervisor answers (${backend})`, () => {
      // KVM's leaves, but not at a base: what answers at the bases is not KVM.
      const { base, leaves, drivers } = probed({ backend, cpuid: [XEN] });
      assertEquals([base, drivers], [0, []]);
      const bases = leaves.filter((leaf) => leaf >= 0x4000_0000);
      assertEquals(bases, Array.from({ length: 256 }, (_, n) => 0x4000_0000 + 0x100 * n));
    });

    it(`not at all where CPUID tells of no hypervisor (${backend})`, () => {
      const { base, leaves, drivers } = probed({ backend, hypervisor: false });
      assertEquals([base, drivers], [0, []]);
      assertEquals(leaves.filter((leaf) => leaf >= 0x4000_0000), []);
    });
  }

  it("by the whole signature: KVMKVMKV alone is not KVM", () => {
    const near: CpuidEntry = { leaf: 0x4000_0000, registers: [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4e] };
    assertEquals(probed({ cpuid: [near] }).base, 0);
  });

  it("and takes one whose leaf says 0 in EAX, as very old hosts do", () => {
    const old: CpuidEntry = { leaf: 0x4000_0000, registers: [0, 0x4b4d_564b, 0x564b_4d56, 0x4d] };
    const { base, drivers } = probed({ cpuid: [old] });
    assertEquals([base, drivers], [0x4000_0000, ["pv-eoi", "pv-ipi"]]);
  });

  it("once: what it found is kept in its memory", () => {
    const rig = new KernelRig();
    rig.run(function* (cpu) {
      rig.mark();
      for (let times = 0; times < 3; times++) yield* kvmParaAvailable(cpu);
      assertEquals(rig.seen("kvm_cpuid"), []);
    });
  });

  it("and not again where it found none", () => {
    const rig = new KernelRig({ vm: { hypervisor: false } });
    rig.run(function* (cpu) {
      rig.mark();
      assertEquals(yield* kvmParaAvailable(cpu), false);
      assertEquals(yield* kvmParaHasFeature(cpu, "PV_EOI"), false);
      assertEquals(yield* kvmParaHasHint(cpu, "REALTIME"), false);
      assertEquals(rig.seen("kvm_cpuid"), []);
    });
  });
});

describe("a kernel asks for KVM's features", () => {
  const OFFERED = [
    "NOP_IO_DELAY",
    "PV_EOI",
    "PV_UNHALT",
    "PV_SEND_IPI",
    "POLL_CONTROL",
    "PV_SCHED_YIELD",
  ] as const;

  for (const feature of OFFERED) {
    it(`by their bits: ${feature} alone`, () => {
      new KernelRig({ cpus: 2, vm: { features: [feature] } }).run(function* (cpu) {
        for (const name of Object.keys(KVM_FEATURES) as KvmFeature[]) {
          assertEquals(yield* kvmParaHasFeature(cpu, name), name === feature);
        }
        const { eax, ebx, ecx } = yield* cpuid(cpu, 0x4000_0001);
        assertEquals([eax, ebx, ecx], [1 << KVM_FEATURES[feature].bit, 0, 0]);
      });
    });
  }

  it("each time with CPUID", () => {
    const rig = new KernelRig();
    rig.run(function* (cpu) {
      rig.mark();
      yield* kvmParaHasFeature(cpu, "PV_EOI");
      yield* kvmParaHasFeature(cpu, "PV_EOI");
      assertEquals(rig.seen("kvm_cpuid").map(({ args }) => args[0]), [0x4000_0001, 0x4000_0001]);
    });
  });

  it("and uses only the drivers whose bit it finds", () => {
    const drivers = (features: readonly KvmFeature[]): string[] =>
      new KernelRig({ cpus: 2, vm: { features } }).run().kernel.drivers.map((driver) => driver.name);
    assertEquals(drivers([]), []);
    assertEquals(drivers(["PV_EOI"]), ["pv-eoi"]);
    assertEquals(drivers(["PV_SEND_IPI"]), ["pv-ipi"]);
    assertEquals(drivers(["PV_SEND_IPI", "PV_EOI"]), ["pv-eoi", "pv-ipi"]);
  });

  it("but drives nothing that it was told not to", () => {
    const rig = new KernelRig({ cpus: 2, disable: ["pv-eoi"] }).run();
    assertEquals(rig.kernel.drivers.map((driver) => driver.name), ["pv-ipi"]);
    assertEquals(rig.vm.vcpus.map((vcpu) => vcpu.pvEoi.enabled), [false, false]);
  });

  it("and for its hints, which are another register", () => {
    for (const hints of [[], ["REALTIME"]] as const) {
      new KernelRig({ vm: { hints } }).run(function* (cpu) {
        assertEquals(yield* kvmParaHasHint(cpu, "REALTIME"), hints.length === 1);
        assertEquals(yield* kvmParaHasFeature(cpu, "CLOCKSOURCE"), false); // The same bit, 0, of EAX.
      });
    }
  });
});
