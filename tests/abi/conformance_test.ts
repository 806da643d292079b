import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { HYPERCALLS, KVM_ERRORS } from "../../abi/mod.ts";
import * as mips from "../../abi/mips/mod.ts";
import * as ppc from "../../abi/ppc/mod.ts";
import * as s390 from "../../abi/s390/mod.ts";
import * as x86 from "../../abi/x86/mod.ts";
import { KVM_EXITS, KVM_SYSTEM_EVENTS } from "../../host/mod.ts";
import { SAMPLES } from "../../lab/conform/samples.ts";
import { type Arch, assertValue, ENCODINGS, HEADERS, setsOf, valuesOf } from "../support/headers.ts";

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
