import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { eptMisconfigured, LEVEL_PD, LEVEL_PT, reservedBitSet, u64 } from "../../../../abi/mod.ts";
import {
  EPT_SPTE,
  isLeaf,
  isPresent,
  makeSmallSpte,
  makeSpte,
  makeTableSpte,
  ORDINARY_SPTE,
  type Spte,
} from "../../../../host/mod.ts";
import { makeHugeSpte, SPTE_WRITABLE } from "../../../../host/kvm/tdp/spte.ts";
import { EPT_FEATURES, FEATURES } from "../../mmu/tables.ts";

const hex = ({ low, high }: Spte): string => u64(low, high).toString(16);
const FORMATS = [EPT_SPTE, ORDINARY_SPTE];
/** Pages of 2 MiB below 2^46. */
const huge = fc.integer({ min: 0, max: 2 ** 25 - 1 }).map((n) => n * 2 ** 21);

// arch/x86/kvm/mmu/spte.c, make_spte and make_nonleaf_spte with the masks of kvm_mmu_set_ept_masks and
// kvm_mmu_reset_all_pte_masks; spte.h has KVM's own bits.
describe("KVM's entries", () => {
  it("in EPT's format allow everything, are write-back without the guest's PAT, accessed and dirty, and KVM's", () => {
    const page = { physical: 0x400_1234_5000, level: LEVEL_PT, hostWritable: true };
    assertEquals(
      hex(makeSpte(EPT_SPTE, page)),
      "600040012345b77",
      "R W X, type 6, IPAT, A, D; 11, 57 and 58",
    );
    assertEquals(hex(makeTableSpte(EPT_SPTE, 0x10_0000_2000)), "1000002907", "R W X, A; 11");
  });

  it("in the ordinary format are a user's, as all accesses are, accessed and dirty, and KVM's", () => {
    const page = { physical: 0x400_1234_5000, level: LEVEL_PT, hostWritable: true };
    assertEquals(hex(makeSpte(ORDINARY_SPTE, page)), "40012345e67", "P R/W U/S A D; 9, 10 and 11");
    assertEquals(hex(makeTableSpte(ORDINARY_SPTE, 0x10_0000_2000)), "1000002827", "P R/W U/S A; 11");
  });

  it("of a page that the host may not write allow no writes, and no fault may change that", () => {
    const page = { physical: 0x400_1234_5000, level: LEVEL_PT, hostWritable: false };
    assertEquals(hex(makeSpte(EPT_SPTE, page)), "40012345975");
    assertEquals(hex(makeSpte(ORDINARY_SPTE, page)), "40012345825");
  });

  it("hold nothing that hardware has reserved", () => {
    fc.assert(
      fc.property(
        huge,
        fc.boolean(),
        fc.constantFrom(LEVEL_PT, LEVEL_PD),
        (physical, hostWritable, level) => {
          const ept = makeSpte(EPT_SPTE, { physical, level, hostWritable });
          assertEquals(eptMisconfigured(ept, level, EPT_FEATURES), false);
          assertEquals(eptMisconfigured(makeTableSpte(EPT_SPTE, physical), 4, EPT_FEATURES), false);
          const amd = { ...FEATURES, amd: true };
          const ordinary = makeSpte(ORDINARY_SPTE, { physical, level, hostWritable });
          assertEquals(reservedBitSet({ ...ordinary, nx: true }, level, amd), false);
          assertEquals(
            reservedBitSet({ ...makeTableSpte(ORDINARY_SPTE, physical), nx: true }, 4, amd),
            false,
          );
        },
      ),
    );
  });

  it("are present or lead to a table, and an empty one neither", () => {
    for (const format of FORMATS) {
      assertEquals(isPresent({ low: 0, high: 0 }), false);
      const table = makeTableSpte(format, 0x10_0000_2000);
      assertEquals([isPresent(table), isLeaf(table, LEVEL_PD)], [true, false]);
      const page = makeSpte(format, { physical: 0, level: LEVEL_PD, hostWritable: true });
      assertEquals([isPresent(page), isLeaf(page, LEVEL_PD)], [true, true]);
    }
  });

  it("of a huge page that is split are those of its small pages, with the same rights", () => {
    const number = fc.integer({ min: 0, max: 511 });
    fc.assert(fc.property(huge, number, fc.boolean(), (physical, index, hostWritable) => {
      for (const format of FORMATS) {
        const large = makeSpte(format, { physical, level: LEVEL_PD, hostWritable });
        const small = makeSpte(format, { physical: physical + index * 4096, level: LEVEL_PT, hostWritable });
        assertEquals(hex(makeSmallSpte(large, index)), hex(small));
      }
    }));
  });

  // arch/x86/kvm/mmu/spte.c, make_huge_spte.
  it("of small pages that one huge page takes the place of are that page's, with the same rights", () => {
    const number = fc.integer({ min: 0, max: 511 });
    fc.assert(fc.property(huge, number, fc.boolean(), (physical, index, hostWritable) => {
      for (const format of FORMATS) {
        const small = makeSpte(format, { physical: physical + index * 4096, level: LEVEL_PT, hostWritable });
        const large = makeSpte(format, { physical, level: LEVEL_PD, hostWritable });
        assertEquals(hex(makeHugeSpte(small)), hex(large));
        const readOnly = { low: small.low & ~SPTE_WRITABLE, high: small.high };
        assertEquals(makeHugeSpte(readOnly).low & SPTE_WRITABLE, 0);
      }
    }));
  });
});
