import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import * as abi from "../../abi/mod.ts";

/** A number as the unsigned 32-bit word that it is in. */
const word = (value: number) => value >>> 0;

describe("AVIC's formats", () => {
  it("are those of APM volume 2, 15.29", () => {
    // The physical table's entry: 63 Valid, 62 IsRunning, 51:12 page, 11:0 host's APIC ID.
    assertEquals(word(abi.AVIC_PHYSICAL_VALID), 0x8000_0000);
    assertEquals(abi.AVIC_PHYSICAL_IS_RUNNING, 0x4000_0000);
    assertEquals([abi.AVIC_PHYSICAL_PAGE_HIGH, abi.AVIC_PHYSICAL_PAGE_LOW], [0xf_ffff, 0xffff_f000]);
    assertEquals(abi.AVIC_PHYSICAL_HOST_ID, 0xfff);
    // The logical table's: 31 Valid, 7:0 guest's APIC ID.
    assertEquals([word(abi.AVIC_LOGICAL_VALID), abi.AVIC_LOGICAL_GUEST_ID], [0x8000_0000, 0xff]);
    // int_ctl, and the doorbell.
    assertEquals([word(abi.AVIC_ENABLE_MASK), abi.X2APIC_MODE_MASK], [0x8000_0000, 0x4000_0000]);
    assertEquals(abi.SVM_AVIC_DOORBELL, 0xc001_011b);
    // What an incomplete IPI is incomplete for.
    assertEquals([
      abi.AVIC_IPI_INVALID_INT_TYPE,
      abi.AVIC_IPI_TARGET_NOT_RUNNING,
      abi.AVIC_IPI_INVALID_TARGET,
      abi.AVIC_IPI_INVALID_BACKING_PAGE,
      abi.AVIC_IPI_INVALID_VECTOR,
    ], [0, 1, 2, 3, 4]);
    assertEquals([abi.AVIC_IPI_INDEX_MASK, abi.AVIC_UNACCELERATED_OFFSET], [0xfff, 0xff0]);
  });

  it("hold as many vCPUs as KVM lets them (arch/x86/include/asm/svm.h)", () => {
    assertEquals([abi.AVIC_MAX_PHYSICAL_ID, abi.X2AVIC_MAX_PHYSICAL_ID], [254, 511]);
  });
});
