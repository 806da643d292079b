import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_REGISTERS,
  DESCRIPTOR_PTR64,
  EXCEPTIONS,
  IDT_GATE64,
  KVM_CLOCK_PAIRING,
  KVM_CPUID_FEATURES,
  KVM_FEATURES,
  KVM_HINTS,
  MSRS,
  SVM_EXIT_REASONS,
  VMCS_FIELDS,
  VMX_CONTROLS,
  VMX_EXIT_REASONS,
  VMX_FEATURES,
} from "../../../abi/mod.ts";
import * as x86 from "../../../abi/x86/mod.ts";
import { assertLayout, assertValue, HEADERS, namesLike, valuesOf } from "../../support/headers.ts";

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
