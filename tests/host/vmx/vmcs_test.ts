import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE, IA32_TSC } from "../../../abi/mod.ts";
import { MsrBitmap } from "../../../host/vmx/mod.ts";

/** An access: which MSR, and whether it is a write. */
type Access = readonly [msr: number, write: boolean];

/** What KVM lets through from the start (vmx.c, vmx_vcpu_create). */
const OPEN: readonly Access[] = [
  [IA32_TSC, false],
  ...[IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE].flatMap((
    msr,
  ): Access[] => [[msr, false], [msr, true]]),
];

/** SDM 3C 25.6.9: the bitmap covers these two ranges. */
const inRange = fc.oneof(
  fc.integer({ min: 0, max: 0x1fff }),
  fc.integer({ min: 0xc000_0000, max: 0xc000_1fff }),
  fc.constantFrom(0, 0x1fff, 0xc000_0000, 0xc000_1fff, 0x10, 0x808, 0x8ff, IA32_FS_BASE),
);
const outside = fc.oneof(
  fc.integer({ min: 0x2000, max: 0xbfff_ffff }),
  fc.integer({ min: 0xc000_2000, max: 0xffff_ffff }),
  fc.constantFrom(0x2000, 0xbfff_ffff, 0xc000_2000, 0xffff_ffff, 0x4b56_4d04),
);

describe("an MSR bitmap", () => {
  it("lets through what it was told to, and makes everything else exit", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(inRange, fc.boolean(), fc.boolean()), { maxLength: 30 }),
        fc.array(fc.tuple(inRange, fc.boolean()), { minLength: 1, maxLength: 30 }),
        (told, asked) => {
          const bitmap = new MsrBitmap();
          const open = new Set(OPEN.map(([msr, write]) => `${msr} ${write}`));
          for (const [msr, write, exits] of told) {
            bitmap.intercept(msr, write, exits);
            if (exits) open.delete(`${msr} ${write}`);
            else open.add(`${msr} ${write}`);
          }
          for (
            const [msr, write] of [...asked, ...OPEN, ...told.map(([msr, write]): Access => [msr, write])]
          ) {
            assertEquals(
              bitmap.exits(msr, write),
              !open.has(`${msr} ${write}`),
              `${msr.toString(16)} ${write}`,
            );
          }
        },
      ),
      { numRuns: 200 },
    );
  });

  it("has no say outside its two ranges: accesses exit", () => {
    fc.assert(
      fc.property(outside, fc.boolean(), (msr, write) => {
        assertEquals(new MsrBitmap().exits(msr, write), true);
      }),
    );
  });
});
