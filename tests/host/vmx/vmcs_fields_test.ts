import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import * as abi from "../../../abi/mod.ts";
import { VMCS_FIELDS } from "../../../abi/mod.ts";
import { setupVmx, Vmcs, VmInstructionError, VmxCapabilities } from "../../../host/mod.ts";
import { initControls } from "../../../host/vmx/mod.ts";

const EVERYTHING = new VmxCapabilities("ipiv");
const NO_APICV = new VmxCapabilities("none");
const WRITABLE = VMCS_FIELDS.filter(({ kind }) => kind !== "exit information");
/** Fields that hold host-physical addresses: numbers below 2^53 are exact, and no processor takes others. */
const ADDRESSES = new Set<number>([
  abi.MSR_BITMAP,
  abi.VIRTUAL_APIC_PAGE_ADDR,
  abi.APIC_ACCESS_ADDR,
  abi.POSTED_INTR_DESC_ADDR,
  abi.EPT_POINTER,
  abi.PID_POINTER_TABLE,
]);

function errorOf(act: () => unknown): number {
  return assertThrows(act, VmInstructionError).number;
}

describe("a VMCS", () => {
  it("gives back what was written to a field, as wide as the field is, and leaves the others alone", () => {
    fc.assert(
      fc.property(fc.constantFrom(...WRITABLE), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (field, any) => {
        const vmcs = new Vmcs(EVERYTHING);
        const value = ADDRESSES.has(field.encoding) ? any >> 12n : any;
        vmcs.write(field.encoding, value);
        const bits = field.width === "natural" ? 64 : field.width;
        assertEquals(vmcs.read(field.encoding), BigInt.asUintN(bits, value), field.name);
        for (const other of VMCS_FIELDS) {
          if (other !== field) assertEquals(vmcs.read(other.encoding), 0n, `${other.name} by ${field.name}`);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("lets the high half of a 64-bit field be read and written alone", () => {
    const vmcs = new Vmcs(EVERYTHING);
    vmcs.write(abi.TERTIARY_VM_EXEC_CONTROL, 0x1_0000_0010n);
    assertEquals(vmcs.read(abi.TERTIARY_VM_EXEC_CONTROL + 1), 1n);
    vmcs.write(abi.TERTIARY_VM_EXEC_CONTROL + 1, 0x8000_0000n);
    assertEquals(vmcs.read(abi.TERTIARY_VM_EXEC_CONTROL), 0x8000_0000_0000_0010n);
    assertEquals([vmcs.tertiary, vmcs.tertiaryHigh], [0x10, 0x8000_0000 | 0]);
  });

  it("keeps RVI below SVI, and a bit a vector in the EOI-exit bitmaps", () => {
    const vmcs = new Vmcs(EVERYTHING);
    vmcs.write(abi.GUEST_INTR_STATUS, 0x61_f2n);
    assertEquals([vmcs.svi, vmcs.rvi], [0x61, 0xf2]);
    vmcs.write(abi.EOI_EXIT_BITMAP1, 1n << 33n); // Vector 64 + 33.
    assertEquals(Array.from(vmcs.eoiExitBitmap), [0, 0, 0, 2, 0, 0, 0, 0]);
  });

  it("refuses a field that nobody has with error 12, and remembers the error", () => {
    const vmcs = new Vmcs(EVERYTHING);
    for (const encoding of [0x0004, 0x1000, 0x4001, 0x4c00, 0xffff]) {
      vmcs.vmInstructionError = 0;
      assertEquals(errorOf(() => vmcs.read(encoding)), 12);
      assertEquals(vmcs.read(abi.VM_INSTRUCTION_ERROR), 12n);
      assertEquals(errorOf(() => vmcs.write(encoding, 0n)), 12);
    }
  });

  it("has no fields for what its processor cannot do", () => {
    const vmcs = new Vmcs(NO_APICV);
    const missing = VMCS_FIELDS.filter(({ encoding }) => {
      try {
        vmcs.read(encoding);
        return false;
      } catch {
        return true;
      }
    });
    // SDM 3C 25.6: "exists only on processors that support the 1-setting of" each control.
    assertEquals(missing.map(({ name }) => name), [
      "POSTED_INTR_NV",
      "LAST_PID_POINTER_INDEX",
      "GUEST_INTR_STATUS",
      "POSTED_INTR_DESC_ADDR",
      "EOI_EXIT_BITMAP0",
      "EOI_EXIT_BITMAP1",
      "EOI_EXIT_BITMAP2",
      "EOI_EXIT_BITMAP3",
      "TERTIARY_VM_EXEC_CONTROL",
      "PID_POINTER_TABLE",
    ]);
    assertThrows(
      () => vmcs.write(abi.PID_POINTER_TABLE, 0n),
      VmInstructionError,
      "Cannot write unsupported VMCS field PID_POINTER_TABLE: VM-instruction error 12",
    );
  });

  it("refuses to write VM-exit information with error 13", () => {
    const vmcs = new Vmcs(EVERYTHING);
    vmcs.exitIntrInfo = 0x8000_0306 | 0;
    assertEquals(errorOf(() => vmcs.write(abi.VM_EXIT_INTR_INFO, 0n)), 13);
    assertEquals(vmcs.read(abi.VM_EXIT_INTR_INFO), 0x8000_0306n);
  });

  it("wants its controls checked once one was written, and not for an interrupt window", () => {
    const vmcs = new Vmcs(EVERYTHING);
    initControls(vmcs, setupVmx("ipiv"), { apicvActive: true, vpid: 1, invpcid: false });
    const writes: readonly (() => void)[] = [
      () => void (vmcs.pin ^= abi.PIN_BASED_POSTED_INTR),
      () => void (vmcs.primary ^= abi.CPU_BASED_NMI_WINDOW_EXITING),
      () => void (vmcs.secondary ^= abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY),
      () => void (vmcs.tertiary ^= abi.TERTIARY_EXEC_IPI_VIRT),
      () => void (vmcs.tertiaryHigh ^= 1),
      () => void (vmcs.exitControls ^= abi.VM_EXIT_ACK_INTR_ON_EXIT),
      () => void (vmcs.entryControls ^= abi.VM_ENTRY_SMM),
      () => void (vmcs.tprThreshold = 3),
      () => vmcs.write(abi.POSTED_INTR_NV, 0xf2n),
      () => vmcs.write(abi.PID_POINTER_TABLE + 1, 1n),
    ];
    for (const write of writes) {
      vmcs.unchecked = 0;
      write();
      assertEquals(vmcs.unchecked, 1, String(write));
    }
    vmcs.unchecked = 0;
    vmcs.primary ^= abi.CPU_BASED_INTR_WINDOW_EXITING;
    vmcs.tprThreshold = 3; // As it was.
    vmcs.rvi = 0x40;
    assertEquals(vmcs.unchecked, 0);
  });
});
