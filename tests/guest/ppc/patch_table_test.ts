import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  disassemblePpc,
  encodePpc,
  KVM_MAGIC_FEAT_MAS0_TO_SPRG7,
  KVM_MAGIC_FEAT_SR,
  KVM_VCPU_ARCH_SHARED,
  ppcAsm,
  type PpcCore,
  SPRS,
} from "../../../abi/mod.ts";
import { PATCH_ROWS, patchFor } from "../../../guest/mod.ts";

const ALL = KVM_MAGIC_FEAT_SR | KVM_MAGIC_FEAT_MAS0_TO_SPRG7;

/** The word that a word becomes, in hexadecimal; the template's name; "-" where it stays. */
function becomes(core: PpcCore, word: number, features: number = ALL): string {
  const patch = patchFor(word, { core, features });
  if (patch === undefined) return "-";
  return patch.kind === "word" ? patch.word.toString(16) : patch.template;
}

describe("a word that has the magic page for it", () => {
  it("becomes what Linux makes of it on a 64-bit server", () => {
    // Offsets of kvm_vcpu_arch_shared from -4096; ld is 0xe8000000, std 0xf8000000, RT at bit 21.
    const golden: readonly (readonly [from: number, to: string])[] = [
      [0x7c60_00a6, "e860f058"], // mfmsr r3
      [0x7fe0_00a6, "ebe0f058"], // mfmsr r31
      [0x7c70_42a6, "e860f020"], // mfspr r3,SPRG0
      [0x7cb1_42a6, "e8a0f028"], // mfspr r5,SPRG1
      [0x7cb2_42a6, "e8a0f030"], // mfspr r5,SPRG2
      [0x7cb3_42a6, "e8a0f038"], // mfspr r5,SPRG3
      [0x7cb0_43a6, "f8a0f020"], // mtspr SPRG0,r5
      [0x7c7a_02a6, "e860f040"], // mfspr r3,SRR0
      [0x7c7a_03a6, "f860f040"], // mtspr SRR0,r3
      [0x7c7b_02a6, "e860f048"], // mfspr r3,SRR1
      [0x7c7b_03a6, "f860f048"], // mtspr SRR1,r3
      [0x7c73_02a6, "e860f050"], // mfspr r3,DAR
      [0x7c73_03a6, "f860f050"], // mtspr DAR,r3
      [0x7c72_02a6, "8060f060"], // mfspr r3,DSISR: 32 bits
      [0x7c72_03a6, "9060f060"], // mtspr DSISR,r3
      [0x7c7f_faa6, "8060f0cc"], // mfspr r3,PIR
      [0x7c74_42a6, "e860f0d0"], // mfspr r3,SPRG4
      [0x7c77_43a6, "f860f0e8"], // mtspr SPRG7,r3
      [0x7c00_046c, "60000000"], // tlbsync
      [0x7c61_0164, "mtmsrd"], // mtmsrd r3,1
      [0x7c60_0164, "mtmsr"], // mtmsrd r3,0
      [0x7c60_0124, "mtmsr"],
    ];
    for (const [from, to] of golden) assertEquals(becomes("book3s-64", from), to, disassemblePpc(from));
  });

  it("is reached by its low word on a 32-bit core, which stands behind the high one", () => {
    const golden: readonly (readonly [core: PpcCore, from: number, to: string])[] = [
      ["book3s-32", 0x7c60_00a6, "8060f05c"], // mfmsr r3
      ["book3s-32", 0x7c70_42a6, "8060f024"], // mfspr r3,SPRG0
      ["book3s-32", 0x7c70_43a6, "9060f024"],
      ["book3s-32", 0x7c72_02a6, "8060f060"], // DSISR has 32 bits anyway
      ["book3s-32", 0x7c60_01e4, "mtsrin"],
      ["booke", 0x7c60_00a6, "8060f05c"],
      ["booke", 0x7c7d_0aa6, "8060f054"], // DEAR
      ["booke", 0x7c7e_0aa6, "8060f0c8"], // ESR
      ["booke", 0x7c7e_0ba6, "9060f0c8"],
      ["booke", 0x7c70_9aa6, "8060f0a8"], // MAS0
      ["booke", 0x7c71_9aa6, "8060f0ac"], // MAS1
      ["booke", 0x7c72_9aa6, "8060f0bc"], // MAS2: 64 bits
      ["booke", 0x7c73_9aa6, "8060f0b4"], // MAS3: the low half of mas7_3
      ["booke", 0x7c74_9aa6, "8060f0c0"], // MAS4
      ["booke", 0x7c76_9aa6, "8060f0c4"], // MAS6
      ["booke", 0x7c70_eaa6, "8060f0b0"], // MAS7: the high half of mas7_3
      ["booke", 0x7c64_42a6, "8060f0d4"], // SPRG4, by the number for user programs
      ["booke", 0x7c7e_42a6, "8060f0cc"], // PIR
      ["booke", 0x7c60_0106, "wrtee"],
      ["booke", 0x7c00_8146, "wrteei 1"],
      ["booke", 0x7c00_0146, "wrteei 0"],
    ];
    for (const [core, from, to] of golden) assertEquals(becomes(core, from), to, disassemblePpc(from));
  });

  it("stays where the core's kernel does not rewrite it", () => {
    const stays: readonly (readonly [core: PpcCore, word: number])[] = [
      ["book3s-64", ppcAsm.mfspr(3, SPRS.DEAR)],
      ["booke", ppcAsm.mfspr(3, SPRS.DAR)],
      ["booke", ppcAsm.mfspr(3, SPRS.PIR)],
      ["book3s-64", ppcAsm.mfspr(3, SPRS.BOOKE_PIR)],
      ["book3s-64", ppcAsm.mfspr(3, SPRS.MAS0)],
      ["book3s-64", ppcAsm.mfspr(3, SPRS.SPRG4R)],
      ["book3s-64", encodePpc("wrteei", { E: 1 })],
      ["book3s-64", encodePpc("mtsrin", { RS: 3, RB: 4 })],
      ["booke", encodePpc("mtsrin", { RS: 3, RB: 4 })],
      ["book3s-64", ppcAsm.mtspr(SPRS.PIR, 3)],
      ["book3s-64", ppcAsm.mfspr(3, SPRS.DEC)],
      ["book3s-64", ppcAsm.mfspr(3, SPRS.PVR)],
      ["book3s-64", ppcAsm.mfspr(3, SPRS.LR)],
      ["book3s-64", encodePpc("rfid", {})],
      ["book3s-64", encodePpc("sc", {})],
    ];
    for (const [core, word] of stays) assertEquals(becomes(core, word), "-", disassemblePpc(word));
  });

  it("stays where the page lacks the feature", () => {
    for (const { spr, kernels, feature } of PATCH_ROWS) {
      const core = kernels === "booke" ? "booke" : "book3s-64";
      const word = ppcAsm.mfspr(3, SPRS[spr]);
      assertEquals(becomes(core, word, 0) === "-", feature !== 0, spr);
      assertEquals(becomes(core, word, feature) === "-", false, spr);
    }
    assertEquals(
      becomes("book3s-32", encodePpc("mtsrin", { RS: 3, RB: 4 }), KVM_MAGIC_FEAT_MAS0_TO_SPRG7),
      "-",
    );
    assertEquals(becomes("book3s-32", encodePpc("mtsrin", { RS: 3, RB: 4 }), KVM_MAGIC_FEAT_SR), "mtsrin");
  });

  it("keeps its register, and becomes an access to the page, whatever the register is", () => {
    fc.assert(
      fc.property(fc.nat(31), fc.constantFrom(...PATCH_ROWS), fc.boolean(), (register, row, store) => {
        if (store && row.access === "r") return;
        const core = row.kernels === "booke" ? "booke" : "book3s-64";
        const from = store ? ppcAsm.mtspr(SPRS[row.spr], register) : ppcAsm.mfspr(register, SPRS[row.spr]);
        const to = parseInt(becomes(core, from), 16);
        const { offset, size } = KVM_VCPU_ARCH_SHARED.fields[row.field];
        assertEquals((to >>> 21) & 31, register);
        assertEquals((to >>> 16) & 31, 0);
        const at = (to & 0xfffc) - 0xf000;
        assertEquals(at >= offset && at < offset + size, true);
      }),
    );
  });
});
