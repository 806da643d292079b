import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_REGISTERS,
  BOOK3S_INTERRUPTS,
  BOOKE_INTERRUPTS,
  DESCRIPTOR_PTR64,
  DIAGNOSES,
  EV_STATUS,
  EV_VENDORS,
  EXCEPTIONS,
  HYPERCALLS,
  IDT_GATE64,
  KVM_CLOCK_PAIRING,
  KVM_CPUID_FEATURES,
  KVM_ERRORS,
  KVM_FEATURES,
  KVM_HINTS,
  KVM_S390_INTERRUPTS,
  KVM_S390_RESETS,
  KVM_VCPU_ARCH_SHARED,
  KVM_VCPU_ARCH_SHARED_LE,
  type Layout,
  LOWCORE,
  MIPS_EXCEPTIONS,
  MSRS,
  PPC_HYPERCALLS,
  ppcHypercallToken,
  PROGRAM_INTERRUPTIONS,
  programInterruptionName,
  S390_ERRNO,
  S390_HYPERCALLS,
  SPRS,
  SVM_EXIT_REASONS,
  SYSIB_322,
  SYSIB_322_ENTRY,
  VMCS_FIELDS,
  VMX_CONTROLS,
  VMX_EXIT_REASONS,
  VMX_FEATURES,
} from "../../abi/mod.ts";
import * as mips from "../../abi/mips/mod.ts";
import * as ppc from "../../abi/ppc/mod.ts";
import * as s390 from "../../abi/s390/mod.ts";
import * as x86 from "../../abi/x86/mod.ts";
import { KVM_EXITS, KVM_SYSTEM_EVENTS } from "../../host/mod.ts";
import { SAMPLES } from "../../lab/conform/samples.ts";
import { ENCODINGS, HEADERS, namesLike, setsOf, valuesOf } from "../support/headers.ts";

type Arch = "x86" | "s390" | "ppc" | "mips";

/** That headers give a name one value, and that it is this one. */
function assertValue(arch: Arch, name: string, value: number | bigint): void {
  const shown = (values: bigint[]) => values.map((number) => `0x${number.toString(16)}`);
  assertEquals(shown(valuesOf(arch, name)), shown([BigInt.asUintN(64, BigInt(value))]), `${arch} ${name}`);
}

/** That a layout has the sizes and offsets that compilers of every release give the structure. */
function assertLayout(
  sets: readonly string[],
  struct: string,
  layout: Layout,
  memberOf: (field: string) => string | undefined = (field) => field,
): void {
  for (const release of HEADERS) {
    for (const set of sets) {
      const found = release.sets[set].structs[struct];
      const where = `${struct} of ${set} ${release.linux}`;
      assertEquals(layout.size, found.size, where);
      for (const [field, { offset, size }] of Object.entries(layout.fields)) {
        const member = memberOf(field);
        if (member !== undefined) {
          assertEquals([offset, size], [...found.members[member]], `${where}: ${field}`);
        }
      }
    }
  }
}

describe("the record of the headers", () => {
  it("names its compiler and the packages with their versions, all of one release", () => {
    assertEquals(HEADERS.map(({ linux }) => linux), ["6.1", "7.3"]);
    for (const { linux, compiler, sets } of HEADERS) {
      assert(/clang version \d/.test(compiler));
      for (const { packages, target } of Object.values(sets)) {
        for (const version of Object.values(packages)) assert(version.startsWith(`${linux}.`), version);
        assert(/linux-gnu/.test(target));
      }
    }
  });

  it("has all four architectures, in both byte orders where there are two", () => {
    for (const release of HEADERS) {
      for (const arch of ["x86", "s390", "ppc", "ppc64le", "mips", "mipsel", "mips64el"]) {
        assert(setsOf(release, arch).includes(arch), `${arch} of ${release.linux}`);
      }
    }
  });
});

describe("the constants of the tables are the headers' own:", () => {
  /** Our constants that have a header's name, as far as the release's headers have one; and that differ. */
  const ON_PURPOSE: Readonly<Record<string, string>> = {
    KVM_CPUID_FEATURES: "relative to the base",
    SVM_EXIT_ERR: "the low half of -1",
  };
  /** How names differ where they do: this project's, and the headers'. */
  const ALIASES: readonly (readonly [Arch, ours: RegExp, theirs: string])[] = [
    ["x86", /^(CR[04]_\w+)$/, "X86_$1"],
    ["x86", /^FLAG_(\w+)$/, "X86_EFLAGS_$1"],
    ["x86", /^(IA32_(VMX|TSC|APICBASE|FEAT_CTL)\w*)$/, "MSR_$1"],
    ["x86", /^IA32_(EFER|STAR|LSTAR|CSTAR|FS_BASE|GS_BASE|KERNEL_GS_BASE|TSC_AUX)$/, "MSR_$1"],
    ["x86", /^IA32_FMASK$/, "MSR_SYSCALL_MASK"],
    ["x86", /^APICBASE_(BSP|ENABLE)$/, "MSR_IA32_APICBASE_$1"],
    ["x86", /^APICBASE_X2APIC_ENABLE$/, "X2APIC_ENABLE"],
    ["x86", /^(KERNEL32|KERNEL|USER32|USER)_CS$/, "__$1_CS"],
    ["x86", /^PFERR_(\w+)$/, "PFERR_$1_MASK"],
    ["x86", /^(CR3_P(?:WT|CD))$/, "X86_$1"],
    ["x86", /^X2APIC_MSR_BASE$/, "APIC_BASE_MSR"],
    ["x86", /^APIC_RRD$/, "APIC_RRR"],
    ["x86", /^APIC_DEFAULT_BASE$/, "APIC_DEFAULT_PHYS_BASE"],
    ["x86", /^IOAPIC_DEFAULT_BASE$/, "IO_APIC_DEFAULT_PHYS_BASE"],
    [
      "x86",
      /^AVIC_IPI_(INVALID_INT_TYPE|TARGET_NOT_RUNNING|INVALID_TARGET|INVALID_BACKING_PAGE)$/,
      "AVIC_IPI_FAILURE_$1",
    ],
    ["x86", /^AVIC_IPI_INVALID_VECTOR$/, "AVIC_IPI_FAILURE_INVALID_IPI_VECTOR"],
    ["x86", /^AVIC_UNACCELERATED_OFFSET$/, "AVIC_UNACCEL_ACCESS_OFFSET_MASK"],
    ["x86", /^AVIC_LOGICAL_GUEST_ID$/, "AVIC_LOGICAL_ID_ENTRY_GUEST_PHYSICAL_ID_MASK"],
    ["x86", /^AVIC_LOGICAL_VALID$/, "AVIC_LOGICAL_ID_ENTRY_VALID_MASK"],
    ["x86", /^SVM_AVIC_DOORBELL$/, "MSR_AMD64_SVM_AVIC_DOORBELL"],
    ["x86", /^INTR_INFO_VALID$/, "INTR_INFO_VALID_MASK"],
    ["x86", /^INTR_INFO_ERROR_CODE$/, "INTR_INFO_DELIVER_CODE_MASK"],
    ["x86", /^INTR_TYPE_NMI$/, "INTR_TYPE_NMI_INTR"],
    ["x86", /^EPT_RWX$/, "VMX_EPT_RWX_MASK"],
    ["x86", /^EPT_R$/, "VMX_EPT_READABLE_MASK"],
    ["x86", /^EPT_W$/, "VMX_EPT_WRITABLE_MASK"],
    ["x86", /^EPT_X$/, "VMX_EPT_EXECUTABLE_MASK"],
    ["x86", /^EPT_A$/, "VMX_EPT_ACCESS_BIT"],
    ["x86", /^EPT_D$/, "VMX_EPT_DIRTY_BIT"],
    ["x86", /^EPT_IPAT$/, "VMX_EPT_IPAT_BIT"],
    ["x86", /^EPT_MEMORY_TYPE_SHIFT$/, "VMX_EPT_MT_EPTE_SHIFT"],
    ["x86", /^EPTP_AD$/, "VMX_EPTP_AD_ENABLE_BIT"],
    ["x86", /^EPTP_WALK_4$/, "VMX_EPTP_PWL_4"],
    ["x86", /^EPTP_WALK$/, "VMX_EPTP_PWL_MASK"],
    ["x86", /^EPTP_MEMORY_TYPE$/, "VMX_EPTP_MT_MASK"],
    ["x86", /^EPT_VIOLATION_(READ|WRITE)$/, "EPT_VIOLATION_ACC_$1"],
    ["x86", /^EPT_VIOLATION_FETCH$/, "EPT_VIOLATION_ACC_INSTR"],
    ["x86", /^EPT_VIOLATION_LINEAR$/, "EPT_VIOLATION_GVA_IS_VALID"],
    ["x86", /^EPT_VIOLATION_TRANSLATED$/, "EPT_VIOLATION_GVA_TRANSLATED"],
    ["x86", /^EPT_VIOLATION_(USER|WRITABLE|NX)$/, "EPT_VIOLATION_GVA_$1"],
    ["mips", /^MIPS_STATUS_(\w+)$/, "ST0_$1"],
    ["mips", /^MIPS_CAUSE_(BD|CE|EXCCODE)$/, "CAUSEF_$1"],
    ["mips", /^MIPS_CAUSE_EXCCODE_SHIFT$/, "CAUSEB_EXCCODE"],
  ];

  function compared(arch: Arch, exported: Readonly<Record<string, unknown>>): string[] {
    const found: string[] = [];
    for (const [name, value] of Object.entries(exported)) {
      if (typeof value !== "number" && typeof value !== "bigint") continue;
      if (Object.hasOwn(ON_PURPOSE, name)) continue;
      const alias = ALIASES.find(([where, ours]) => where === arch && ours.test(name));
      const theirs = alias === undefined ? name : name.replace(alias[1], alias[2]);
      const [known, ...others] = valuesOf(arch, theirs);
      if (known === undefined) continue;
      assertEquals(others, [], `${theirs} is the same in every header`);
      // Bit 31 of a word is a negative number here, an unsigned one there, or the other way round.
      const width = BigInt.asIntN(32, known) < 0n && Math.abs(Number(value)) < 2 ** 32 ? 32 : 64;
      const shown = (number: bigint) => `0x${BigInt.asUintN(width, number).toString(16)}`;
      assertEquals(shown(BigInt(value)), shown(known), `${name}, in headers ${theirs}`);
      found.push(name);
    }
    return found;
  }

  for (
    const [arch, exported, least] of [
      ["x86", x86, 350],
      ["s390", s390, 18],
      ["ppc", ppc, 27],
      ["mips", mips, 11],
    ] as const
  ) {
    it(`${least} and more of ${arch}`, () => {
      const found = compared(arch, exported);
      assert(found.length >= least, `${found.length} are compared`);
    });
  }
});

describe("KVM_HC_* and KVM_E*", () => {
  it("have the headers' numbers on every architecture, and none is missing", () => {
    const numbers = Object.fromEntries(
      Object.entries(HYPERCALLS).map(([name, { nr }]) => [name, `0x${nr.toString(16)}`]),
    );
    const errors = Object.fromEntries(
      Object.entries(KVM_ERRORS).map(([name, error]) => [name, `0x${error.toString(16)}`]),
    );
    for (const { linux, sets } of HEADERS) {
      for (const name of ["x86", "s390", "ppc", "ppc64le", "mips", "mipsel", "mips64el"]) {
        assertEquals(
          sets[name].constants["linux/kvm_para.h"],
          { ...errors, ...numbers },
          `${name} of ${linux}`,
        );
      }
    }
  });
});

describe("what KVM_RUN comes back with", () => {
  it("has the headers' numbers on every architecture", () => {
    for (const arch of ["x86", "s390", "ppc", "mips"] as const) {
      for (const [name, reason] of Object.entries(KVM_EXITS)) assertValue(arch, name, reason);
      for (const [name, type] of Object.entries(KVM_SYSTEM_EVENTS)) assertValue(arch, name, type);
    }
  });
});

describe("x86's tables against the headers", () => {
  it("have every KVM feature and hint, and no other", () => {
    for (const { name, bit } of Object.values(KVM_FEATURES)) assertValue("x86", `KVM_FEATURE_${name}`, bit);
    for (const { name, bit } of Object.values(KVM_HINTS)) assertValue("x86", `KVM_HINTS_${name}`, bit);
    const ours = [
      ...Object.keys(KVM_FEATURES).map((name) => `KVM_FEATURE_${name}`),
      ...Object.keys(KVM_HINTS).map((name) => `KVM_HINTS_${name}`),
    ];
    assertEquals(new Set(namesLike("x86", /^KVM_(FEATURE|HINTS)_/).keys()), new Set(ours));
    assertValue("x86", "KVM_CPUID_FEATURES", 0x4000_0000 + KVM_CPUID_FEATURES);
  });

  it("have every MSR of KVM's", () => {
    const ours = MSRS.filter(({ name }) => name.startsWith("KVM_"));
    for (const { name, index } of ours) assertValue("x86", `MSR_${name}`, index);
    const theirs = namesLike("x86", /^MSR_KVM_/);
    assertEquals(new Set(theirs.keys()), new Set(ours.map(({ name }) => `MSR_${name}`)));
  });

  it("name VMX's exits as KVM's trace events do", () => {
    const ours = Object.fromEntries(
      VMX_EXIT_REASONS.flatMap((name, reason) =>
        name === undefined ? [] : [[`0x${reason.toString(16)}`, name]]
      ),
    );
    const [before, after] = HEADERS.map(({ sets }) => sets.x86.lists.VMX_EXIT_REASONS);
    for (const [reason, name] of Object.entries(before)) assertEquals(ours[reason], name, reason);
    for (const [reason, name] of Object.entries(ours)) assertEquals(after[reason], name, reason);
  });

  it("name SVM's exits as KVM's trace events do, without those that SEV-ES guests raise", () => {
    const ours = Object.fromEntries(
      [...SVM_EXIT_REASONS].map(([code, name]) => [
        code === 0xffff_ffff ? "0xffffffffffffffff" : `0x${code.toString(16)}`,
        name,
      ]),
    );
    const [before, after] = HEADERS.map(({ sets }) =>
      Object.fromEntries(
        Object.entries(sets.x86.lists.SVM_EXIT_REASONS).filter(([code]) => !/^0x8000.{4}$/.test(code)),
      )
    );
    for (const [code, name] of Object.entries(before)) assertEquals(ours[code], name, code);
    for (const [code, name] of Object.entries(ours)) assertEquals(after[code], name, code);
  });

  it("have the local APIC's registers where they are", () => {
    for (const { name, offset } of APIC_REGISTERS) assertValue("x86", name, offset);
  });

  it("have VMX's controls, features and fields by number and name", () => {
    for (const word of Object.values(VMX_CONTROLS)) {
      for (const { name, mask } of word) {
        const known = valuesOf("x86", name);
        if (known.length === 0) continue; // one that KVM has no name for
        assertEquals(known.map((value) => BigInt.asUintN(32, value)), [BigInt(mask >>> 0)], name);
      }
    }
    for (const { encoding, name } of VMCS_FIELDS) assertValue("x86", name, encoding);
    for (const { name, word, bit } of VMX_FEATURES) {
      const theirs = `VMX_FEATURE_${name.toUpperCase()}`;
      const known = valuesOf("x86", theirs);
      if (known.length > 0) assertEquals(known, [BigInt(32 * word + bit)], theirs);
    }
  });

  it("have the exceptions' vectors", () => {
    for (const { mnemonic, vector } of EXCEPTIONS) {
      assertValue("x86", `X86_TRAP_${mnemonic === "XM" ? "XF" : mnemonic}`, vector);
    }
  });

  it("have the bits of page-table entries where the kernel has them", () => {
    const { PTE_P, PTE_RW, PTE_US, PTE_PWT, PTE_PCD, PTE_A, PTE_D, PTE_PS, PTE_PAT, PTE_G, PTE_PAT_LARGE } =
      x86;
    const bits = {
      PRESENT: PTE_P,
      RW: PTE_RW,
      USER: PTE_US,
      PWT: PTE_PWT,
      PCD: PTE_PCD,
      ACCESSED: PTE_A,
      DIRTY: PTE_D,
      PSE: PTE_PS,
      PAT: PTE_PAT,
      GLOBAL: PTE_G,
      PAT_LARGE: PTE_PAT_LARGE,
    };
    for (const [name, mask] of Object.entries(bits)) assertValue("x86", `_PAGE_BIT_${name}`, Math.log2(mask));
    assertValue("x86", "_PAGE_BIT_NX", 32 + Math.log2(x86.PTE_NX_HIGH));
  });

  it("lay out what a call has KVM write", () => {
    assertLayout(["x86"], "kvm_clock_pairing", KVM_CLOCK_PAIRING);
  });

  it("lay descriptors out as the kernel does", () => {
    const gate: Readonly<Record<string, string | undefined>> = {
      offsetLow: "offset_low",
      selector: "segment",
      offsetMiddle: "offset_middle",
      offsetHigh: "offset_high",
      reserved: "reserved",
    };
    assertLayout(["x86-kernel"], "gate_struct", IDT_GATE64, (field) => gate[field]);
    assertLayout(
      ["x86-kernel"],
      "desc_ptr",
      DESCRIPTOR_PTR64,
      (field) => ({ limit: "size" })[field] ?? "address",
    );
  });
});

describe("s390's tables against the headers", () => {
  it("have no call from asm/kvm_para.h, which is empty: DIAGNOSE's subcodes are elsewhere", () => {
    for (const { sets } of HEADERS) assertEquals(sets.s390.whole["asm/kvm_para.h"], []);
    assertValue("s390", "KVM_S390_VIRTIO_CCW_NOTIFY", S390_HYPERCALLS.KVM_S390_VIRTIO_CCW_NOTIFY.nr);
  });

  it("have functions of DIAGNOSE that trace events name", () => {
    for (const { sets } of HEADERS) {
      const codes = sets.s390.lists.diagnose_codes;
      for (const { code } of Object.values(DIAGNOSES)) {
        assert(`0x${code.toString(16)}` in codes, `DIAG ${code}`);
      }
      assertEquals(codes["0x500"], "DIAG (0x500) KVM virtio functions");
    }
  });

  it("name program interruptions by their codes", () => {
    for (const { sets } of HEADERS) {
      const names = sets.s390.lists.icpt_prog_codes;
      const words = (text: string) => text.toLowerCase().replaceAll(/[^a-z]+|prog|exception|operation/g, " ");
      for (const code of Object.values(PROGRAM_INTERRUPTIONS)) {
        const theirs = names[`0x${code.toString(16)}`];
        for (const word of words(programInterruptionName(code)).trim().split(" ")) {
          assert(words(theirs).includes(word), `${theirs}: ${programInterruptionName(code)}`);
        }
      }
    }
  });

  it("have KVM's types of interruptions and flags of resets", () => {
    for (const [name, type] of Object.entries(KVM_S390_INTERRUPTS)) assertValue("s390", name, type);
    for (const [name, flag] of Object.entries(KVM_S390_RESETS)) assertValue("s390", name, flag);
    assertEquals(namesLike("s390", /^KVM_S390_RESET_/).size, Object.keys(KVM_S390_RESETS).length);
  });

  it("know errno's numbers", () => {
    for (const [name, number] of Object.entries(S390_ERRNO)) assertValue("s390", name, number);
  });

  it("lay the lowcore and block 3.2.2 out as the kernel does", () => {
    const padding = (field: string) => /^(pad|reserved)_/.test(field);
    assertLayout(
      ["s390-kernel"],
      "lowcore",
      LOWCORE,
      (field) => padding(field) || field === "svc_ilc" || field === "svc_code" ? undefined : field,
    );
    const { svc_ilc } = LOWCORE.fields;
    for (const { sets } of HEADERS) {
      const { lowcore, sysinfo_3_2_2 } = sets["s390-kernel"].structs;
      assertEquals([svc_ilc.offset, 4], [...lowcore.members.svc_int_code], "both halves of the code");
      assertEquals(SYSIB_322.size, sysinfo_3_2_2.size);
      const { vm, ext_names } = SYSIB_322.fields;
      assertEquals([vm.offset, vm.size], [...sysinfo_3_2_2.members.vm]);
      assertEquals([ext_names.offset, ext_names.size], [...sysinfo_3_2_2.members.ext_names]);
      assertEquals(SYSIB_322_ENTRY.size, sysinfo_3_2_2.members["vm[1]"][1]);
      for (const [field, { offset, size }] of Object.entries(SYSIB_322_ENTRY.fields)) {
        if (padding(field)) continue;
        const member = sysinfo_3_2_2.members[`vm[0].${field}`];
        assertEquals([vm.offset + offset, size], [...member], field);
      }
    }
  });
});

describe("PowerPC's tables against the headers", () => {
  it("have ePAPR's vendors, states and numbers, and none is missing", () => {
    for (const [name, id] of Object.entries(EV_VENDORS)) assertValue("ppc", name, id);
    for (const [name, status] of Object.entries(EV_STATUS)) assertValue("ppc", name, status);
    const calls = Object.entries(PPC_HYPERCALLS).filter(([, { vendor }]) => vendor === "EV_EPAPR_VENDOR_ID");
    for (const [name, { nr }] of calls) assertValue("ppc", name, nr);
    const ours = [...Object.keys(EV_VENDORS), ...Object.keys(EV_STATUS), ...calls.map(([name]) => name)];
    const theirs = [...namesLike("ppc", /^EV_/).keys()];
    assertEquals(new Set(theirs), new Set([...ours, "EV_BYTE_CHANNEL_MAX_BYTES"]));
  });

  it("make tokens of KVM's numbers", () => {
    for (const name of ["KVM_HC_FEATURES", "KVM_HC_PPC_MAP_MAGIC_PAGE"] as const) {
      assertValue("ppc", name, PPC_HYPERCALLS[name].nr);
      assertEquals(ppcHypercallToken(name), 0x2a_0000 + HYPERCALLS[name].nr);
    }
  });

  it("lay the magic page out as the kernel does, in both byte orders and widths", () => {
    assertLayout(["ppc", "ppc64le"], "kvm_vcpu_arch_shared", KVM_VCPU_ARCH_SHARED);
    assertLayout(["ppc", "ppc64le"], "kvm_vcpu_arch_shared", KVM_VCPU_ARCH_SHARED_LE);
    assertEquals(KVM_VCPU_ARCH_SHARED.size, 240);
  });

  it("number special-purpose registers and interrupts as the kernel does", () => {
    const { PIR, BOOKE_PIR, ...others } = SPRS;
    for (const [name, number] of Object.entries(others)) assertValue("ppc", `SPRN_${name}`, number);
    // reg.h and reg_booke.h each define it for their family.
    assertEquals(new Set(valuesOf("ppc", "SPRN_PIR")), new Set([BigInt(PIR), BigInt(BOOKE_PIR)]));
    for (const [name, vector] of Object.entries(BOOK3S_INTERRUPTS)) {
      assertValue("ppc", `BOOK3S_INTERRUPT_${name}`, vector);
    }
    for (const [name, number] of Object.entries(BOOKE_INTERRUPTS)) {
      assertValue("ppc", `BOOKE_INTERRUPT_${name}`, number);
    }
  });
});

describe("MIPS' tables against the headers", () => {
  it("have no call from asm/kvm_para.h, which is empty", () => {
    for (const { sets } of HEADERS) {
      for (const name of ["mips", "mipsel", "mips64el"]) assertEquals(sets[name].whole["asm/kvm_para.h"], []);
    }
  });

  it("compose HYPCALL of the opcodes that the kernel's decoder has", () => {
    const [cop0] = valuesOf("mips", "cop0_op");
    const [cop] = valuesOf("mips", "cop_op");
    const [hypcall] = valuesOf("mips", "hypcall_op");
    const word = (cop0 << 26n) | (cop << 21n) | hypcall;
    assertEquals(BigInt(mips.MIPS_HYPCALL.units[0]), word);
  });

  it("number exceptions as the kernel does", () => {
    for (const [name, { code }] of Object.entries(MIPS_EXCEPTIONS)) {
      assertValue("mips", `EXCCODE_${name.toUpperCase()}`, code);
    }
  });
});

describe("instructions against two assemblers that know nothing of each other", () => {
  it("are all in the record, which names the assemblers", () => {
    assertEquals(ENCODINGS.assemblers.some((name) => name.includes("LLVM version")), true);
    assertEquals(ENCODINGS.assemblers.some((name) => name.includes("GNU assembler")), true);
    assertEquals(Object.keys(ENCODINGS.targets), Object.keys(SAMPLES));
  });

  for (const [target, samples] of Object.entries(SAMPLES)) {
    it(`have the bytes of both: ${target}`, () => {
      const { bytes, gnuAlone, llvmAlone } = ENCODINGS.targets[target];
      for (const sample of samples) {
        assert(sample.line in bytes, `${sample.line} is not in the record: run conform:headers again`);
        assertEquals(sample.bytes, bytes[sample.line], sample.line);
      }
      // LLVM's leaves branches to a linker, which GNU's resolves itself, and does not know LRETQ in Intel's syntax.
      for (const line of gnuAlone) assert(line === "lretq" || /[ ;]\.|\.[+-]/.test(line), line);
      assertEquals(llvmAlone, []);
    });
  }
});
