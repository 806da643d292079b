import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { MIPS_EXCEPTIONS } from "../../../abi/mod.ts";
import * as mips from "../../../abi/mips/mod.ts";
import { assertValue, HEADERS, valuesOf } from "../../support/headers.ts";

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
