import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_DEFAULT_BASE,
  APIC_REGISTERS,
  apicRegister,
  apicRegisterName,
  DESCRIPTOR_PTR64,
  exceptionName,
  exceptionOf,
  EXCEPTIONS,
  faultOf,
  featureMask,
  GeneralProtection,
  type HypercallArgs,
  type HypercallName,
  hypercallName,
  type HypercallOn,
  HYPERCALLS,
  type HypercallSpec,
  IDT_GATE32,
  IDT_GATE64,
  InvalidOpcode,
  KVM_ERRORS,
  KVM_FEATURES,
  KVM_HINTS,
  KVM_SIGNATURE_EBX,
  KVM_SIGNATURE_ECX,
  KVM_SIGNATURE_EDX,
  type KvmFeature,
  msrName,
  MSRS,
  msrSpec,
  PageFault,
  PV_EOI,
  SVM_EXIT_REASONS,
  type Vector,
  VMX_EXIT_REASONS,
  X86Fault,
} from "../../abi/mod.ts";

/** That a list names nothing twice. */
function assertUnique(what: string, list: Iterable<unknown>): void {
  const all = [...list];
  assertEquals(new Set(all).size, all.length, `${what} are unique`);
}

describe("exceptions", () => {
  it("have the vectors, error codes and classes of the manual", () => {
    // SDM 3A tables 6-1 and 6-4.
    assertUnique("vectors", EXCEPTIONS.map(({ vector }) => vector));
    assertUnique("mnemonics", EXCEPTIONS.map(({ mnemonic }) => mnemonic));
    const withCode = EXCEPTIONS.filter(({ errorCode }) => errorCode).map(({ vector }) => Number(vector));
    assertEquals(withCode, [8, 10, 11, 12, 13, 14, 17, 21]);
    const contributory = EXCEPTIONS.filter(({ severity }) => severity === "contributory");
    assertEquals(contributory.map(({ mnemonic }) => mnemonic), ["DE", "TS", "NP", "SS", "GP", "CP"]);
    const pageFaults = EXCEPTIONS.filter(({ severity }) => severity === "page-fault");
    assertEquals(pageFaults.map(({ mnemonic }) => mnemonic), ["PF", "VE"]);
  });

  it("are known by vector; interrupts are none", () => {
    assertEquals([exceptionName(13), exceptionName(0), exceptionName(0x40)], ["#GP", "#DE", "vector 64"]);
    assertEquals([exceptionOf(2), exceptionOf(0x40)], [undefined, undefined], "the NMI is an interrupt");
  });

  it("are thrown as what they are", () => {
    const classes = [6, 13, 14, 12].map((vector) => faultOf(vector as Vector, 8, "ud2").constructor);
    assertEquals(classes, [InvalidOpcode, GeneralProtection, PageFault, X86Fault]);
    assertEquals(faultOf(14 as Vector, 2, "ud2").message, "Cannot execute ud2: #PF(0x2)");
  });
});

describe("model-specific registers", () => {
  it("are in the table once, by index and name", () => {
    assertUnique("indices", MSRS.map(({ index }) => index));
    assertUnique("names", MSRS.map(({ name }) => name));
    for (const spec of MSRS) assertEquals(msrSpec(spec.index), spec);
    assertEquals(msrSpec(0x1234), undefined);
  });

  it("are named for traces; x2APIC's follow from their register", () => {
    assertEquals(
      [0x4b56_4d04, 0x1b, 0x830, 0x83f, 0x1234].map(msrName),
      ["KVM_PV_EOI_EN", "IA32_APIC_BASE", "x2APIC+0x300", "x2APIC+0x3f0", "0x1234"],
    );
  });

  it("of KVM reserve the bits that its documentation reserves", () => {
    const reserved = Object.fromEntries(MSRS.map(({ name, reserved }) => [name, reserved]));
    assertEquals(reserved.KVM_PV_EOI_EN, 0x2n); // 4-byte alignment, without the enable bit.
    assertEquals(reserved.KVM_STEAL_TIME, 0x3en);
    assertEquals(reserved.KVM_ASYNC_PF_EN, 0x30n);
    assertEquals(reserved.KVM_POLL_CONTROL, 2n ** 64n - 2n);
    assertEquals(reserved.KVM_ASYNC_PF_INT, 2n ** 64n - 256n);
  });

  it("of KVM are cleared by INIT but for three: two of the machine, and host polling", () => {
    const kept = MSRS.filter(({ name, clearedByInit }) => name.startsWith("KVM_") && !clearedByInit);
    assertEquals(kept.map(({ name }) => name), [
      "KVM_WALL_CLOCK",
      "KVM_WALL_CLOCK_NEW",
      "KVM_POLL_CONTROL",
      "KVM_ASYNC_PF_ACK", // It holds nothing.
      "KVM_MIGRATION_CONTROL",
    ]);
  });
});

describe("KVM's CPUID leaves", () => {
  it("carry the signature KVMKVMKVM", () => {
    const words = Uint32Array.of(KVM_SIGNATURE_EBX, KVM_SIGNATURE_ECX, KVM_SIGNATURE_EDX);
    assertEquals(new TextDecoder().decode(words), "KVMKVMKVM\0\0\0");
  });

  it("give each feature one bit; today's KVM with scheduler statistics offers 0x01007efb", () => {
    assertUnique("bits", Object.values(KVM_FEATURES).map(({ bit }) => bit));
    for (const [name, spec] of Object.entries(KVM_FEATURES)) assertEquals(spec.name, name);
    const names = Object.keys(KVM_FEATURES) as KvmFeature[];
    const offered = names.filter((name) => ["kvm", "steal"].includes(KVM_FEATURES[name].offered));
    assertEquals(featureMask(offered), 0x0100_7efb);
    assertEquals(featureMask(offered.filter((name) => name !== "STEAL_TIME")), 0x0100_7edb);
    assertEquals(KVM_HINTS.REALTIME.bit, 0);
  });
});

describe("hypercalls", () => {
  const specs: [string, HypercallSpec][] = Object.entries(HYPERCALLS);

  it("have the numbers of kvm_para.h, each once", () => {
    const numbers = Object.fromEntries(specs.map(([name, { nr }]) => [nr, name.replace("KVM_HC_", "")]));
    assertEquals(numbers, {
      1: "VAPIC_POLL_IRQ",
      2: "MMU_OP",
      3: "FEATURES",
      4: "PPC_MAP_MAGIC_PAGE",
      5: "KICK_CPU",
      6: "MIPS_GET_CLOCK_FREQ",
      7: "MIPS_EXIT_VM",
      8: "MIPS_CONSOLE_OUTPUT",
      9: "CLOCK_PAIRING",
      10: "SEND_IPI",
      11: "SCHED_YIELD",
      12: "MAP_GPA_RANGE",
    });
    for (const [name, { nr }] of specs) assertEquals(hypercallName(nr), name as HypercallName);
    assertEquals([hypercallName(0), hypercallName(13)], [undefined, undefined]);
  });

  it("have at most the four arguments that registers carry, each named once", () => {
    for (const [name, { args }] of specs) {
      assertEquals(args.length <= 4, true, name);
      assertUnique(`arguments of ${name}`, args.map(({ name }) => name));
    }
  });

  it("are gated by features that exist, and fail with the errors of kvm_para.h", () => {
    for (const [name, { feature }] of specs) {
      assertEquals(feature === null || feature in KVM_FEATURES, true, name);
    }
    const { KVM_EPERM, KVM_E2BIG, KVM_EFAULT, KVM_EINVAL, KVM_EOPNOTSUPP, KVM_ENOSYS } = KVM_ERRORS;
    assertEquals(
      [KVM_EPERM, KVM_E2BIG, KVM_EFAULT, KVM_EINVAL, KVM_EOPNOTSUPP, KVM_ENOSYS],
      [1, 7, 14, 22, 95, 1000],
    );
  });

  it("are typed by the table: a wrong name, argument or architecture does not compile", () => {
    const call = <Name extends HypercallOn<"x86">>(name: Name, _: HypercallArgs<Name>) => name;
    call("KVM_HC_VAPIC_POLL_IRQ", {});
    call("KVM_HC_KICK_CPU", { flags: 0, apicId: 3 });
    call("KVM_HC_SEND_IPI", { bitmapLow: 1n, bitmapHigh: 0n, min: 0, icr: 0x40 });
    // @ts-expect-error: there is no such call.
    call("KVM_HC_KICK_VCPU", { flags: 0, apicId: 3 });
    // @ts-expect-error: MIPS alone has this one.
    call("KVM_HC_MIPS_EXIT_VM", {});
    // @ts-expect-error: an argument is missing.
    call("KVM_HC_SEND_IPI", { bitmapLow: 1n, bitmapHigh: 0n, min: 0 });
    // @ts-expect-error: an argument has another name.
    call("KVM_HC_KICK_CPU", { flags: 0, vcpuId: 3 });
    // @ts-expect-error: an argument is no number.
    call("KVM_HC_KICK_CPU", { flags: 0, apicId: "3" });
    // @ts-expect-error: the call takes no argument.
    call("KVM_HC_VAPIC_POLL_IRQ", { flags: 0 });
    const ppc: HypercallOn<"ppc">[] = ["KVM_HC_FEATURES", "KVM_HC_PPC_MAP_MAGIC_PAGE"];
    // @ts-expect-error: x86 alone has this one.
    const wrong: HypercallOn<"ppc"> = "KVM_HC_SEND_IPI";
    assertEquals([ppc.length, wrong], [2, "KVM_HC_SEND_IPI"]);
  });
});

describe("the local APIC's registers", () => {
  it("are in the table once, at multiples of 16, and do not overlap", () => {
    const offsets = APIC_REGISTERS.flatMap(({ offset, count }) =>
      Array.from({ length: count }, (_, n) => offset + 16 * n)
    );
    assertUnique("offsets", offsets);
    assertUnique("names", APIC_REGISTERS.map(({ name }) => name));
    for (const offset of offsets) assertEquals([offset % 16, offset < 0x1000], [0, true]);
    assertEquals(offsets, offsets.toSorted((a, b) => a - b));
    assertEquals(APIC_DEFAULT_BASE, 0xfee0_0000);
  });

  it("can be read and written as the manual says, in each mode", () => {
    // SDM 3A tables 11-1 and 11-6; the remote-read register is not KVM's.
    const access = Object.fromEntries(
      APIC_REGISTERS.map(({ name, xapic, x2apic }) => [name, `${xapic} ${x2apic}`]),
    );
    assertEquals(
      [
        access.APIC_ID,
        access.APIC_LDR,
        access.APIC_DFR,
        access.APIC_EOI,
        access.APIC_ICR2,
        access.APIC_SELF_IPI,
      ],
      ["rw r", "rw r", "rw -", "w w", "rw -", "- w"],
    );
    assertEquals([access.APIC_IRR, access.APIC_TMCCT, access.APIC_ARBPRI, access.APIC_RRR], [
      "r r",
      "r r",
      "r -",
      "- -",
    ]);
  });

  it("of a bank are found by each offset, and named as KVM's trace events name them", () => {
    assertEquals(apicRegister(0x270)?.name, "APIC_IRR");
    assertEquals(apicRegister(0x2a0), undefined);
    assertEquals([0x80, 0x200, 0x210, 0x2f0, 0x40].map(apicRegisterName), [
      "APIC_TASKPRI",
      "APIC_IRR",
      "0x210",
      "0x2f0",
      "0x40",
    ]);
  });
});

describe("exit reasons", () => {
  it("have one name each", () => {
    assertUnique("VMX names", VMX_EXIT_REASONS.filter((name) => name !== undefined));
    assertUnique("SVM names", SVM_EXIT_REASONS.values());
  });

  it("are those of the manuals", () => {
    // SDM 3D appendix C; APM volume 2 appendix C.
    const vmx = {
      1: "EXTERNAL_INTERRUPT",
      12: "HLT",
      18: "VMCALL",
      32: "MSR_WRITE",
      44: "APIC_ACCESS",
      48: "EPT_VIOLATION",
    };
    for (const [reason, name] of Object.entries(vmx)) assertEquals(VMX_EXIT_REASONS[Number(reason)], name);
    const svm = {
      0x60: "interrupt",
      0x64: "vintr",
      0x78: "hlt",
      0x7c: "msr",
      0x81: "hypercall",
      0x400: "npf",
    };
    for (const [code, name] of Object.entries(svm)) assertEquals(SVM_EXIT_REASONS.get(Number(code)), name);
  });
});

describe("structures that the processor and KVM share with a guest", () => {
  it("have the sizes and places of the manuals", () => {
    // SDM 3A figures 6-2 and 6-8, 3.5.1; KVM's MSR documentation: 4 bytes of alignment.
    assertEquals([IDT_GATE64.size, IDT_GATE32.size, DESCRIPTOR_PTR64.size], [16, 8, 10]);
    const { selector, ist, type, offsetMiddle, offsetHigh } = IDT_GATE64.fields;
    assertEquals([selector, ist, type, offsetMiddle, offsetHigh].map(({ offset }) => offset), [
      2,
      4,
      5,
      6,
      8,
    ]);
    assertEquals(IDT_GATE32.fields.offsetHigh.offset, 6);
    assertEquals([PV_EOI.size, PV_EOI.align, PV_EOI.endian], [8, 4, "little"]);
  });
});
