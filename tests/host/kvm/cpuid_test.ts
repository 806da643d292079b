import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { featureMask, IA32_APICBASE, KVM_FEATURES, type KvmFeature, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, CpuidTable, Machine, type VmOptions } from "../../../host/mod.ts";
import { type Asking, tryingRig } from "../../support/apic.ts";
import { eventsOf, mark, tracingRig } from "../../support/events.ts";

/** EAX, EBX, ECX, EDX. */
type Leaf = [number, number, number, number];

function* cpuid(cpu: X86Cpu, leaf: number, subleaf = 0): Asking<Leaf> {
  yield cpu.cpuid(leaf, subleaf);
  return [cpu.eax, cpu.ebx, cpu.ecx, cpu.edx];
}

/** What a guest of these options reads. */
function read(options: VmOptions, leaf: number, subleaf = 0): Leaf {
  let found: Leaf = [0, 0, 0, 0];
  tryingRig({ vm: options }).finish(function* (cpu) {
    found = yield* cpuid(cpu, leaf, subleaf);
  });
  return found;
}

const ZEROS: Leaf = [0, 0, 0, 0];
/** "KVMKVMKVM\0\0\0" (KVM_SIGNATURE, asm/kvm_para.h). */
const KVM = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
const X2APIC = 1 << 21;
const TSC_DEADLINE = 1 << 24;
const HYPERVISOR = 0x8000_0000;

for (const backend of BACKENDS) {
  describe(`CPUID (${backend})`, () => {
    it("clears bits 63:32 of the registers that it answers in", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        cpu.loadHypercall(-1 >>> 0, -1n, -1n, -1n);
        cpu.regs.fill(0xffff_ffff, 0, 2);
        yield cpu.cpuid(0x4000_0000);
        assertEquals(
          ["rax", "rbx", "rcx", "rdx"].map((name) => cpu.register(name)),
          [0x4000_0001, ...KVM].map(BigInt),
        );
      });
    });

    it("names the vendor whose virtualization this is", () => {
      const [, ebx, ecx, edx] = read({ backend }, 0);
      const name = new TextDecoder().decode(new Uint32Array([ebx, edx, ecx]));
      assertEquals(name, backend === "vmx" ? "GenuineIntel" : "AuthenticAMD");
    });

    it("gives KVM's signature, how far its leaves go, and its features", () => {
      assertEquals(read({ backend }, 0x4000_0000), [0x4000_0001, ...KVM]);
      const features: KvmFeature[] = [
        "NOP_IO_DELAY", // 1
        "PV_EOI", // 6
        "PV_UNHALT", // 7
        "PV_SEND_IPI", // 11
        "POLL_CONTROL", // 12
        "PV_SCHED_YIELD", // 13
      ];
      assertEquals(read({ backend }, 0x4000_0001), [0x38c2, 0, 0, 0]);
      assertEquals(featureMask(features), 0x38c2);
    });

    it("offers what user space chose, hints among it", () => {
      const options: VmOptions = { backend, features: ["PV_EOI", "MSI_EXT_DEST_ID"], hints: ["REALTIME"] };
      assertEquals(read(options, 0x4000_0001), [0x8040, 0, 0, 1]);
      assertEquals(read({ backend, features: [] }, 0x4000_0001), ZEROS);
    });

    it("offers what KVM of that year knew", () => {
      assertEquals(read({ backend, hostSemantics: "2018" }, 0x4000_0001)[0], 0x08c2);
      assertEquals(read({ backend, hostSemantics: "2012" }, 0x4000_0001)[0], 0x0042);
    });

    it("moves KVM's leaves to where user space wants them", () => {
      const options: VmOptions = { backend, kvmCpuidBase: 0x4000_0100, features: ["PV_EOI"] };
      assertEquals(read(options, 0x4000_0100), [0x4000_0101, ...KVM]);
      assertEquals(read(options, 0x4000_0101), [0x40, 0, 0, 0]);
      assertEquals(read(options, 0x4000_0000).slice(1).join() === KVM.join(), false);
    });

    it("tells of a hypervisor, x2APIC and TSC deadlines where there are any", () => {
      const has = (options: VmOptions, bit: number) => (read({ backend, ...options }, 1)[2] & bit) !== 0;
      assertEquals([has({}, HYPERVISOR), has({ hypervisor: false }, HYPERVISOR)], [true, false]);
      assertEquals([has({}, X2APIC), has({ x2apic: false }, X2APIC)], [true, false]);
      assertEquals([has({}, TSC_DEADLINE), has({ tscDeadline: false }, TSC_DEADLINE)], [true, false]);
      assertEquals(read({ backend, hypervisor: false }, 0x4000_0000).slice(1).join() === KVM.join(), false);
    });

    it("shows a local APIC while IA32_APIC_BASE enables it", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        const apic = function* (): Asking<boolean> {
          return ((yield* cpuid(cpu, 1))[3] & (1 << 9)) !== 0;
        };
        assertEquals(yield* apic(), true);
        yield cpu.wrmsr(IA32_APICBASE, 0xfee0_0100);
        assertEquals(yield* apic(), false);
        yield cpu.wrmsr(IA32_APICBASE, 0xfee0_0900);
        assertEquals(yield* apic(), true);
      });
    });

    it("gives each processor its own APIC ID: 8 bits in leaf 1, 32 in leaf 0xb", () => {
      const vm = new Machine().createVm({ backend, memory: 0, vcpuIds: [0, 5, 0x1_05] });
      assertEquals(vm.vcpus.map(({ cpuid }) => cpuid.find(1, 0)![1] >>> 24), [0, 5, 5]);
      assertEquals(vm.vcpus.map(({ cpuid }) => cpuid.find(0xb, 0)![3]), [0, 5, 0x105]);
    });

    it("keeps the level's number and the x2APIC ID in leaf 0xb behind its last level", () => {
      for (const subleaf of [2, 7, 0x105]) {
        assertEquals(read({ backend }, 0xb, subleaf), [0, 0, subleaf & 0xff, 0]);
      }
    });

    it("takes user space's entries before the model's", () => {
      const options: VmOptions = { backend, cpuid: [{ leaf: 0x8000_0008, registers: [0x3030, 1, 2, 3] }] };
      assertEquals(read(options, 0x8000_0008), [0x3030, 1, 2, 3]);
    });
  });

  describe(`a CPUID leaf that is not there (${backend})`, () => {
    it("answers zeros within its range", () => {
      for (const leaf of [0x2, 0x5, 0x8000_0005]) assertEquals(read({ backend }, leaf), ZEROS);
    });

    /** Past the end of its range, or of a range that nobody has (get_out_of_range_cpuid_entry). */
    const BEYOND = [
      0x17,
      0x1000,
      0x3fff_ffff,
      0x4000_0002,
      0x4000_0100,
      0x4fff_ffff,
      0x8000_0009,
      0xc000_0000,
    ];

    it(`answers ${backend === "vmx" ? "with the highest basic leaf" : "zeros"} beyond its range`, () => {
      const highest = read({ backend }, 0x16);
      assertEquals(highest[0] !== 0, true);
      for (const leaf of BEYOND) {
        assertEquals(read({ backend }, leaf), backend === "vmx" ? highest : ZEROS, leaf.toString(16));
      }
    });

    it("is traced as not found, under its own number", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        const from = mark(rig.vm);
        yield cpu.cpuid(0x4000_0002, 3);
        yield cpu.cpuid(0x4000_0001, 3);
        const [absent, present] = eventsOf(rig.vm, "kvm_cpuid", from).map(({ args }) => args);
        assertEquals([absent[0], absent[1], absent[3]], [0x4000_0002, 3, 0]);
        assertEquals(present.slice(0, 4), [0x4000_0001, 3, 0x38c2, 1]);
      });
    });
  });
}

describe("a CPUID table", () => {
  const signature = (base: number, max = base + 1) =>
    ({ leaf: base, registers: [max, KVM[0], KVM[1], KVM[2]] }) as const;

  it("finds KVM's features behind the first signature, at whichever base", () => {
    const features = (entries: ConstructorParameters<typeof CpuidTable>[0]) =>
      new CpuidTable(entries).pvFeatures;
    assertEquals(features([]), 0);
    assertEquals(features([{ leaf: 0x4000_0001, registers: [0x40, 0, 0, 0] }]), 0, "no signature");
    assertEquals(features([signature(0x4000_ff00), { leaf: 0x4000_ff01, registers: [0x40, 0, 0, 0] }]), 0x40);
    assertEquals(features([signature(0x4001_0000), { leaf: 0x4001_0001, registers: [0x40, 0, 0, 0] }]), 0);
    assertEquals(
      features([
        signature(0x4000_0200),
        { leaf: 0x4000_0201, registers: [0x80, 0, 0, 0] },
        signature(0x4000_0100),
        { leaf: 0x4000_0101, registers: [0x40, 0, 0, 0] },
      ]),
      0x40,
      "the lower base wins",
    );
    assertEquals(features([signature(0x4000_0000, 0)]), 0, "a signature without features");
  });

  it("refuses the same leaf twice", () => {
    assertThrows(
      () => new CpuidTable([signature(0x4000_0000), signature(0x4000_0000)]),
      RangeError,
      "Cannot set CPUID: leaf 0x40000000.any is there twice",
    );
  });

  it("knows each feature by the bit that kvm_para.h gives it", () => {
    for (const [name, { bit }] of Object.entries(KVM_FEATURES)) {
      const table = new CpuidTable([
        signature(0x4000_0000),
        { leaf: 0x4000_0001, registers: [(1 << bit) >>> 0, 0, 0, 0] },
      ]);
      for (const other of Object.keys(KVM_FEATURES)) {
        assertEquals(table.pvHas(other as KvmFeature), other === name);
      }
    }
  });
});

describe("a virtual machine's options for CPUID", () => {
  const build = (options: VmOptions) => () => new Machine().createVm({ memory: 0, ...options });

  it("refuse a base for KVM's leaves that guests do not look at", () => {
    for (const kvmCpuidBase of [0, 0x4000_0080, 0x4001_0000, 0x3fff_ff00]) {
      assertThrows(
        build({ kvmCpuidBase }),
        RangeError,
        "allowed are 0x40000000 to 0x4000ff00 in steps of 0x100",
      );
    }
  });

  it("refuse features that the host has not, naming those it has", () => {
    assertThrows(build({ features: ["STEAL_TIME"] }), RangeError, "Cannot offer feature STEAL_TIME");
    assertThrows(
      build({ features: ["PV_SEND_IPI"], hostSemantics: "2012" }),
      RangeError,
      "a host of 2012 has NOP_IO_DELAY, PV_EOI",
    );
    assertThrows(build({ features: ["toString" as KvmFeature] }), RangeError);
  });

  it("refuse hints that there are not", () => {
    assertThrows(
      build({ hints: ["FAST" as "REALTIME"] }),
      RangeError,
      "Cannot give hint FAST: allowed are REALTIME",
    );
  });
});
