import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  BOOK3S_INTERRUPTS,
  BOOKE_INTERRUPTS,
  EV_STATUS,
  EV_VENDORS,
  HYPERCALLS,
  KVM_VCPU_ARCH_SHARED,
  KVM_VCPU_ARCH_SHARED_LE,
  PPC_HYPERCALLS,
  ppcHypercallToken,
  SPRS,
} from "../../../abi/mod.ts";
import { assertLayout, assertValue, namesLike, valuesOf } from "../../support/headers.ts";

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
