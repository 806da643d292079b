import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  APIC_DEST_ALLBUT,
  APIC_DEST_ALLINC,
  APIC_DEST_SELF,
  APIC_DM_INIT,
  APIC_DM_LOWEST,
  APIC_DM_NMI,
  APIC_DM_STARTUP,
  APIC_ICR_BUSY,
  APIC_LVT_TIMER_PERIODIC,
  APIC_LVT_TIMER_TSCDEADLINE,
  decodeIcr,
  decodeLvt,
  decodeMsi,
  encodeIcr,
  encodeLvt,
  encodeMsi,
  encodeRedirection,
  icrNumber,
  type MsiFormat,
  timerDivisor,
  x2apicLdr,
} from "../../abi/mod.ts";

const vector = fc.nat(255);
const deliveryMode = fc.nat(7).map((mode) => mode << 8);
const modes = ["xapic", "x2apic"] as const;

describe("an interrupt command", () => {
  it("has its bits where the manual has them", () => {
    // SDM 3A figures 11-12 and 11-28.
    assertEquals(encodeIcr({ vector: 0xfd }, "x2apic"), { low: 0xfd, high: 0 });
    assertEquals(encodeIcr({ deliveryMode: APIC_DM_NMI, destination: 3 }, "xapic").low, 0x400);
    const startUp = { deliveryMode: APIC_DM_STARTUP, shorthand: APIC_DEST_ALLBUT, assert: true, vector: 8 };
    assertEquals(encodeIcr(startUp, "x2apic").low, 0xc4608);
    const deassert = { deliveryMode: APIC_DM_INIT, level: true, shorthand: APIC_DEST_ALLINC };
    assertEquals(encodeIcr(deassert, "xapic").low, 0x88500);
    const logical = { logical: true, deliveryMode: APIC_DM_LOWEST, destination: 0xff };
    assertEquals(encodeIcr(logical, "xapic"), { low: 0x900, high: 0xff00_0000 });
    assertEquals(encodeIcr({ destination: 0xffff_ffff }, "x2apic").high, 0xffff_ffff);
    assertEquals(icrNumber(encodeIcr({ vector: 0x40, shorthand: APIC_DEST_SELF }, "x2apic")), 0x40040n);
    assertEquals(icrNumber({ low: 0xc4608, high: 0x8000_0001 }), 0x8000_0001_000c_4608n);
  });

  it("is the same after it has been encoded and decoded", () => {
    const icr = fc.record({
      vector,
      deliveryMode,
      logical: fc.boolean(),
      assert: fc.boolean(),
      level: fc.boolean(),
      shorthand: fc.nat(3).map((shorthand) => shorthand << 18),
      destination: fc.nat(0xff),
    }, { noNullPrototype: true });
    fc.assert(fc.property(icr, fc.nat(0xffff_ffff), (icr, wide) => {
      for (const mode of modes) {
        const sent = mode === "x2apic" ? { ...icr, destination: wide } : icr;
        const { low, high } = encodeIcr(sent, mode);
        assertEquals([low >>> 0, high >>> 0], [low, high]);
        assertEquals(decodeIcr(low, high, mode), sent);
        assertEquals(decodeIcr(low | APIC_ICR_BUSY, high, mode), sent, "the status bit is no part of it");
      }
    }));
  });

  it("has no room for a destination that its mode does not have", () => {
    for (const [mode, limit] of [["xapic", 0xff], ["x2apic", 0xffff_ffff]] as const) {
      for (const destination of [-1, limit + 1, 0.5]) {
        assertThrows(
          () => encodeIcr({ destination }, mode),
          RangeError,
          `Cannot encode ICR destination ${destination}: ${mode} mode has 0 to ${limit}`,
        );
      }
    }
  });
});

describe("a local vector table entry", () => {
  it("has its bits where the manual has them", () => {
    // SDM 3A figure 11-8.
    assertEquals(encodeLvt({ vector: 0xef, timerMode: APIC_LVT_TIMER_TSCDEADLINE }), 0x4_00ef);
    assertEquals(encodeLvt({ vector: 0x30, timerMode: APIC_LVT_TIMER_PERIODIC, masked: true }), 0x3_0030);
    assertEquals(encodeLvt({ deliveryMode: APIC_DM_NMI, level: true }), 0x8400);
  });

  it("is the same after it has been encoded and decoded", () => {
    const lvt = fc.record({
      vector,
      deliveryMode,
      level: fc.boolean(),
      masked: fc.boolean(),
      timerMode: fc.nat(3).map((mode) => mode << 17),
    }, { noNullPrototype: true });
    fc.assert(fc.property(lvt, (lvt) => assertEquals(decodeLvt(encodeLvt(lvt)), lvt)));
  });
});

describe("the timer's divisor", () => {
  it("is what bits 3, 1 and 0 select", () => {
    // SDM 3A figure 11-10; bit 2 is reserved.
    const divisors = {
      0b0000: 2,
      0b0001: 4,
      0b0010: 8,
      0b0011: 16,
      0b1000: 32,
      0b1001: 64,
      0b1010: 128,
      0b1011: 1,
    };
    for (const [code, divisor] of Object.entries(divisors)) assertEquals(timerDivisor(Number(code)), divisor);
  });
});

describe("an x2APIC's logical ID", () => {
  it("is its cluster, and one bit for its place there", () => {
    // SDM 3A 11.12.10.2: logical ID = (ID[19:4] << 16) | (1 << ID[3:0]).
    assertEquals([0, 1, 15, 16, 0x123, 1023].map(x2apicLdr), [
      0x0000_0001,
      0x0000_0002,
      0x0000_8000,
      0x0001_0001,
      0x0012_0008,
      0x003f_8000,
    ]);
  });
});

describe("a message-signalled interrupt", () => {
  const formats: readonly [MsiFormat, number][] = [["xapic", 0xff], ["ext-dest-id", 0x7fff], [
    "x2apic-api",
    0xffff_ffff,
  ]];

  it("has its bits where the manual has them", () => {
    // SDM 3A figures 11-14 and 11-15.
    const plain = encodeMsi({ vector: 0x31, destination: 2 }, "xapic");
    assertEquals(plain, { addressLow: 0xfee0_2000, addressHigh: 0, data: 0x31 });
    const all = {
      vector: 0xff,
      deliveryMode: APIC_DM_LOWEST,
      level: true,
      logical: true,
      redirectionHint: true,
    };
    assertEquals(encodeMsi({ ...all, destination: 0xff }, "xapic"), {
      addressLow: 0xfeef_f00c,
      addressHigh: 0,
      data: 0xc1ff, // Level-triggered, and asserted.
    });
  });

  it("carries more of its destination where both sides have agreed on it", () => {
    // KVM_FEATURE_MSI_EXT_DEST_ID: ID bits 14:8 in address bits 11:5; KVM's own form: ID bits 31:8 in address bits 63:40.
    assertEquals(encodeMsi({ destination: 0x7fff }, "ext-dest-id").addressLow, 0xfeef_ffe0);
    assertEquals(encodeMsi({ destination: 0x1234_5678 }, "x2apic-api"), {
      addressLow: 0xfee7_8000,
      addressHigh: 0x1234_5600,
      data: 0,
    });
  });

  it("is the same after it has been encoded and decoded, in each form", () => {
    const msi = fc.record({
      vector,
      deliveryMode,
      level: fc.boolean(),
      logical: fc.boolean(),
      redirectionHint: fc.boolean(),
    });
    fc.assert(fc.property(msi, fc.nat(0xffff_ffff), (msi, wide) => {
      for (const [format, limit] of formats) {
        const sent = { ...msi, destination: limit === 0xffff_ffff ? wide : wide & limit };
        const message = encodeMsi(sent, format);
        assertEquals(message.addressLow >>> 20, 0xfee);
        assertEquals(decodeMsi(message, format), sent);
      }
    }));
  });

  it("has no room for a destination that its form does not have", () => {
    for (const [format, limit] of formats) {
      for (const destination of [-1, limit + 1, 0.5]) {
        assertThrows(
          () => encodeMsi({ destination }, format),
          RangeError,
          `Cannot encode MSI destination ${destination}: ${format} messages carry 0 to ${limit}`,
        );
      }
    }
  });

  it("takes vectors of eight bits, and delivery modes in place", () => {
    for (const vector of [-1, 256, 0x440, 0.5, NaN]) {
      assertThrows(
        () => encodeMsi({ vector }, "xapic"),
        RangeError,
        `Cannot encode MSI vector ${vector}: allowed are`,
      );
    }
    for (const deliveryMode of [4, 0x800, -1, NaN]) {
      assertThrows(() => encodeMsi({ deliveryMode }, "xapic"), RangeError, "Cannot encode MSI delivery mode");
    }
  });
});

describe("a redirection entry", () => {
  it("has its bits where the datasheet has them", () => {
    // 82093AA, section 3.2.4.
    assertEquals(encodeRedirection({ vector: 0x41, destination: 5 }), { low: 0x41, high: 0x0500_0000 });
    const entry = { vector: 0x51, deliveryMode: APIC_DM_LOWEST, logical: true, level: true, masked: true };
    assertEquals(encodeRedirection({ ...entry, destination: 0xff }), { low: 0x1_8951, high: 0xff00_0000 });
  });
});
