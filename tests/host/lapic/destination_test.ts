import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { type Lapic, matchDestination } from "../../../host/lapic/mod.ts";
import { setUp, still } from "../../support/apic.ts";

const SHORTHANDS = { none: 0, self: 0x4_0000, all: 0x8_0000, others: 0xc_0000 } as const;

/** A target, and a message to it. */
interface Case {
  readonly x2apic: boolean;
  readonly xapicId: number;
  readonly logicalId: number;
  readonly dfr: number;
  readonly source: "device" | "itself" | "another";
  readonly shorthand: keyof typeof SHORTHANDS;
  readonly destination: number;
  readonly logical: boolean;
}

/** SDM 3A 11.6.2 and KVM's two deviations, written down once more and slowly: bit by bit. */
function reference(c: Case, vcpuId: number, quirk: boolean): boolean {
  if (c.shorthand === "self") return c.source === "itself";
  if (c.shorthand === "all") return true;
  if (c.shorthand === "others") return c.source !== "itself";
  // Deviation: a device's 0xff is everybody, for an x2APIC too.
  const everybody = c.x2apic ? 0xffff_ffff : 0xff;
  if (c.destination === everybody) return true;
  if (c.source === "device" && quirk && c.destination === 0xff) return true;
  if (!c.logical) {
    if (c.x2apic) return c.destination === vcpuId;
    // Deviation: what 8 bits cannot say means the vCPU's number.
    return c.destination === (c.destination > 0xff ? vcpuId : c.xapicId);
  }
  const bits = c.destination.toString(2).padStart(32, "0");
  if (c.x2apic) {
    const cluster = parseInt(bits.slice(0, 16), 2);
    return cluster === Math.floor(vcpuId / 16) && bits[31 - vcpuId % 16] === "1";
  }
  const own = c.logicalId.toString(2).padStart(8, "0");
  const shared = (from: number) =>
    [...own].some((bit, i) => i >= from && bit === "1" && bits[24 + i] === "1");
  if (c.dfr === 0xffff_ffff) return shared(0);
  if (c.dfr !== 0x0fff_ffff) return false;
  return bits.slice(0, 28) === `${"0".repeat(24)}${own.slice(0, 4)}` && shared(4);
}

const anyCase: fc.Arbitrary<Case> = fc.record({
  x2apic: fc.boolean(),
  xapicId: fc.integer({ min: 0, max: 255 }),
  logicalId: fc.integer({ min: 0, max: 255 }),
  dfr: fc.constantFrom(0xffff_ffff, 0x0fff_ffff, 0x7fff_ffff),
  source: fc.constantFrom("device", "itself", "another"),
  shorthand: fc.constantFrom("none", "none", "none", "self", "all", "others"),
  destination: fc.oneof(
    fc.constantFrom(0, 0xff, 0x100, 0xffff_ffff, 0x12, 0x123, 0x0012_0008, 0x0001_0004),
    fc.integer({ min: 0, max: 0xff }),
    fc.integer({ min: 0, max: 0x1f_ffff }),
    fc.integer({ min: 0, max: 0xffff_ffff }),
  ),
  logical: fc.boolean(),
});

/** Puts a target into a state, whatever software could have done to it. */
function prepare(target: Lapic, c: Case): void {
  const id = target.vcpu.vcpuId;
  target.base = c.x2apic ? 0xfee0_0c00 : 0xfee0_0800;
  target.set(0x020, c.x2apic ? id : c.xapicId << 24);
  target.set(0x0d0, c.x2apic ? ((id >>> 4) << 16) | (1 << (id & 15)) : c.logicalId << 24);
  target.set(0x0e0, c.dfr);
}

describe("whom a message means", () => {
  for (const [name, quirk] of [["with", true], ["without", false]] as const) {
    for (const vcpuId of [0x12, 0x123]) {
      it(`is what the manual's formula says, for vCPU 0x${vcpuId.toString(16)} (${name} the broadcast quirk)`, () => {
        const vm = still({ vcpuIds: [0, vcpuId], x2apicApiDisableBroadcastQuirk: !quirk });
        const [another, target] = vm.vcpus.map(({ lapic }) => lapic);
        fc.assert(
          fc.property(anyCase, (c) => {
            prepare(target, c);
            const source = { device: undefined, itself: target, another }[c.source];
            const { shorthand, destination, logical } = c;
            assertEquals(
              matchDestination(target, source, SHORTHANDS[shorthand], destination, logical),
              reference(c, vcpuId, quirk),
            );
          }),
          { numRuns: 2000, seed: 1 },
        );
      });
    }
  }

  it("is asked of APICs that software has disabled as well", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic", { software: false, ldr: 1 });
    assertEquals(matchDestination(lapic, undefined, 0, 0, false), true);
    assertEquals(matchDestination(lapic, undefined, 0, 1, true), true);
  });
});

describe("the reference", () => {
  /** Its rows by hand, so that formula and code are not wrong together. */
  const at = { x2apic: false, xapicId: 5, logicalId: 0x21, dfr: 0xffff_ffff, source: "another" } as const;
  const to = (destination: number, logical = false) => ({ shorthand: "none", destination, logical }) as const;

  it("knows the manual's examples", () => {
    const xapic = (c: Partial<Case>) => reference({ ...at, ...to(0), ...c }, 0x123, true);
    assertEquals(xapic(to(5)), true, "physical");
    assertEquals(xapic(to(4)), false);
    assertEquals(xapic(to(0xff)), true, "broadcast");
    assertEquals(xapic(to(0x23)), false, "the low byte of its x2APIC ID");
    assertEquals(xapic(to(0x123)), true, "KVM's hotplug hack");
    assertEquals(xapic(to(0x20, true)), true, "flat");
    assertEquals(xapic(to(0xde, true)), false);
    assertEquals(xapic({ ...to(0x21, true), dfr: 0x0fff_ffff }), true, "cluster 2, bit 0");
    assertEquals(xapic({ ...to(0x31, true), dfr: 0x0fff_ffff }), false, "cluster 3");
    assertEquals(xapic({ ...to(0x2e, true), dfr: 0x0fff_ffff }), false, "cluster 2, other bits");
    assertEquals(
      xapic({ ...to(0x121, true), dfr: 0x0fff_ffff }),
      false,
      "cluster 0x12 is none of an xAPIC's",
    );

    const x2apic = (c: Partial<Case>) => xapic({ x2apic: true, ...c });
    assertEquals(x2apic(to(0x123)), true);
    assertEquals(x2apic(to(5)), false);
    assertEquals(x2apic(to(0xff)), false, "an IPI to APIC 0xff");
    assertEquals(x2apic({ ...to(0xff), source: "device" }), true, "KVM's broadcast quirk");
    assertEquals(x2apic(to(0xffff_ffff)), true);
    assertEquals(x2apic(to(0x0012_0008, true)), true, "cluster 0x12, bit 3");
    assertEquals(x2apic(to(0x0012_fff7, true)), false);
    assertEquals(x2apic(to(0x0013_0008, true)), false);
  });
});
