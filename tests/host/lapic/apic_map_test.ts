import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  deliverFast,
  deliverSlow,
  type InterruptMessage,
  LogicalMode,
  NOBODY_MATCHED,
  NOT_RESOLVED,
} from "../../../host/lapic/mod.ts";
import type { Vm, VmOptions } from "../../../host/mod.ts";
import { type ApicSetUp, message, setUp, still, vectors } from "../../support/apic.ts";

const CLUSTER = 0x0fff_ffff;

/** A machine in xAPIC mode whose vCPUs have these registers. */
function xapics(of: readonly ApicSetUp[], options: VmOptions = {}): Vm {
  const vm = still({ vcpus: of.length, ...options });
  of.forEach((registers, i) => setUp(vm.vcpus[i].lapic, "xapic", registers));
  return vm;
}

/** A machine whose vCPUs are all in x2APIC mode. */
function x2apics(ids: readonly number[], options: VmOptions = {}): Vm {
  const vm = still({ vcpuIds: ids, ...options });
  for (const { lapic } of vm.vcpus) setUp(lapic, "x2apic");
  return vm;
}

/** The numbers of the vCPUs that a delivery requested a vector from, and what it answered. */
function takers(vm: Vm, m: InterruptMessage, deliver: typeof deliverFast): { ids: number[]; answer: number } {
  const answer = deliver(vm, undefined, m);
  const ids = vm.vcpus.filter(({ lapic }) => vectors(lapic, 0x200).includes(m.vector)).map((v) => v.vcpuId);
  for (const { lapic } of vm.vcpus) lapic.page.fill(0, 0x200 / 4, 0x280 / 4);
  return { ids, answer };
}

const fast = (vm: Vm, fields: Partial<InterruptMessage>) =>
  takers(vm, message({ vector: 0x40, ...fields }), deliverFast);
const slow = (vm: Vm, fields: Partial<InterruptMessage>) =>
  takers(vm, message({ vector: 0x40, ...fields }), deliverSlow);

describe("the optimized map", () => {
  it("has room for every xAPIC ID, and for the highest x2APIC ID of an enabled APIC", () => {
    assertEquals(x2apics([0, 3]).apicMap?.maxApicId, 255);
    const vm = x2apics([0, 0x321, 0x400]);
    assertEquals(vm.apicMap?.maxApicId, 0x400);
    setUp(vm.vcpus[2].lapic, "disabled");
    assertEquals(vm.apicMap?.maxApicId, 0x321);
    assertEquals(vm.apicMap?.phys[0x321], vm.vcpus[1].lapic);
  });

  it("finds an xAPIC at the ID that software gave it, and an x2APIC at its vCPU's number", () => {
    const vm = xapics([{}, { id: 0x42 }]);
    assertEquals(fast(vm, { destination: 0x42 }), { ids: [1], answer: 1 });
    assertEquals(fast(vm, { destination: 1 }), { ids: [], answer: 0 });
    setUp(vm.vcpus[1].lapic, "x2apic");
    assertEquals(fast(vm, { destination: 1 }), { ids: [1], answer: 1 });
  });

  it("does not exist while two APICs share an ID, and comes back when they do not", () => {
    const vm = xapics([{}, { id: 0 }]);
    assertEquals(vm.apicMap, undefined);
    assertEquals(fast(vm, { destination: 0 }), { ids: [], answer: NOT_RESOLVED });
    assertEquals(slow(vm, { destination: 0 }), { ids: [0, 1], answer: 2 }, "both recognize it");
    setUp(vm.vcpus[1].lapic, "xapic", { id: 1 });
    assertEquals(fast(vm, { destination: 0 }), { ids: [0], answer: 1 });
  });

  it("does not exist at reset of a machine whose IDs wrap at 8 bits, until they are x2APICs", () => {
    const vm = still({ vcpuIds: [0, 0x100] });
    assertEquals(vm.apicMap, undefined);
    for (const { lapic } of vm.vcpus) setUp(lapic, "x2apic");
    assertEquals(fast(vm, { destination: 0x100 }), { ids: [0x100], answer: 1 });
  });

  it("keeps x2APIC IDs apart and ignores aliases of xAPIC IDs with KVM_X2APIC_API_USE_32BIT_IDS", () => {
    const vm = still({ vcpuIds: [0, 0x100, 1], x2apicApi32BitIds: true });
    for (const { lapic } of vm.vcpus) setUp(lapic, "xapic");
    assertEquals(vm.apicMap?.phys[0], vm.vcpus[0].lapic, "the alias came second");
    assertEquals(fast(vm, { destination: 0x100 }), { ids: [0x100], answer: 1 }, "the hotplug hack");
    assertEquals(slow(vm, { destination: 0x100 }), { ids: [0x100], answer: 1 });
  });

  it("leaves broadcasts to the loop: 0xff, but 0xffffffff for an x2APIC's IPIs", () => {
    const vm = x2apics([0, 1, 0xff]);
    assertEquals(fast(vm, { destination: 0xff }).answer, NOT_RESOLVED, "a device's");
    const [source] = vm.vcpus.map(({ lapic }) => lapic);
    assertEquals(
      deliverFast(vm, source, message({ vector: 0x40, destination: 0xff })),
      1,
      "an IPI to APIC 0xff",
    );
    assertEquals(
      deliverFast(vm, source, message({ vector: 0x40, destination: 0xffff_ffff })),
      NOT_RESOLVED,
    );
  });

  it("takes a device's 0xff for an ID once user space has disabled the broadcast quirk", () => {
    const vm = x2apics([0, 1, 0xff], { x2apicApiDisableBroadcastQuirk: true, x2apicApi32BitIds: true });
    assertEquals(fast(vm, { destination: 0xff }), { ids: [0xff], answer: 1 });
    assertEquals(fast(vm, { destination: 0x03, logical: true }), { ids: [0, 1], answer: 2 });
    assertEquals(fast(vm, { destination: 0xffff_ffff }).answer, NOT_RESOLVED);
  });

  it("knows every shorthand but self not", () => {
    const vm = x2apics([0, 1]);
    const { lapic } = vm.bootstrap;
    for (const shorthand of [0x8_0000, 0xc_0000]) {
      assertEquals(deliverFast(vm, lapic, message({ vector: 0x40, shorthand })), NOT_RESOLVED);
    }
    assertEquals(deliverFast(vm, lapic, message({ vector: 0x40, shorthand: 0x4_0000 })), 1);
    assertEquals(vectors(lapic, 0x200), [0x40]);
  });

  it("answers 0 where nobody has the ID; the loop answers -1", () => {
    const vm = x2apics([0, 1]);
    for (const destination of [2, 0xfe, 0x100, 0x7fff_ffff]) {
      assertEquals(fast(vm, { destination }), { ids: [], answer: 0 });
      assertEquals(slow(vm, { destination }), { ids: [], answer: NOBODY_MATCHED });
    }
  });
});

describe("the logical half of the map", () => {
  const mode = (vm: Vm) => vm.apicMap?.logicalMode;

  it("is empty until an APIC that software enabled has a logical ID", () => {
    const vm = xapics([{ software: false, ldr: 1 }, { ldr: 0 }]);
    assertEquals(mode(vm), LogicalMode.SoftwareDisabled);
    assertEquals(fast(vm, { destination: 1, logical: true }), { ids: [], answer: 0 });
  });

  it("finds flat IDs by their bit", () => {
    const vm = xapics([{ ldr: 0x01 }, { ldr: 0x80 }, { ldr: 0x04 }]);
    assertEquals(mode(vm), LogicalMode.XapicFlat);
    assertEquals(fast(vm, { destination: 0x81, logical: true }), { ids: [0, 1], answer: 2 });
    assertEquals(fast(vm, { destination: 0x7e, logical: true }), { ids: [2], answer: 1 });
    assertEquals(fast(vm, { destination: 0x7a, logical: true }), { ids: [], answer: 0 });
  });

  it("finds clusters of four", () => {
    const vm = xapics([{ ldr: 0x01, dfr: CLUSTER }, { ldr: 0x02, dfr: CLUSTER }, {
      ldr: 0x31,
      dfr: CLUSTER,
    }]);
    assertEquals(mode(vm), LogicalMode.XapicCluster);
    assertEquals(fast(vm, { destination: 0x0f, logical: true }), { ids: [0, 1], answer: 2 });
    assertEquals(fast(vm, { destination: 0x31, logical: true }), { ids: [2], answer: 1 });
    assertEquals(fast(vm, { destination: 0x32, logical: true }), { ids: [], answer: 0 });
  });

  it("finds x2APIC clusters of sixteen by the IDs, the last one cut at the highest ID", () => {
    const vm = x2apics([0, 15, 16, 0x101, 0x104]);
    assertEquals(mode(vm), LogicalMode.X2apic);
    assertEquals(fast(vm, { destination: 0x0000_8001, logical: true }), { ids: [0, 15], answer: 2 });
    assertEquals(fast(vm, { destination: 0x0001_ffff, logical: true }), { ids: [16], answer: 1 });
    assertEquals(fast(vm, { destination: 0x0010_ffff, logical: true }), { ids: [0x101, 0x104], answer: 2 });
    assertEquals(fast(vm, { destination: 0x0011_ffff, logical: true }), { ids: [], answer: 0 });
  });

  for (
    const [why, of] of [
      ["disagree about the format", [{ ldr: 1 }, { ldr: 2, dfr: CLUSTER }]],
      ["share a logical ID", [{ ldr: 1 }, { ldr: 1 }]],
      ["have one of several bits", [{ ldr: 1 }, { ldr: 6 }]],
    ] as const
  ) {
    it(`is given up where APICs ${why}; the loop asks each`, () => {
      const vm = xapics(of);
      assertEquals(mode(vm), LogicalMode.Disabled);
      assertEquals(fast(vm, { destination: 2, logical: true }).answer, NOT_RESOLVED);
      const expected = why === "disagree about the format" || why === "have one of several bits" ? [1] : [];
      assertEquals(slow(vm, { destination: 2, logical: true }).ids, expected);
      assertEquals(fast(vm, { destination: 1 }), { ids: [1], answer: 1 }, "the physical half is not");
    });
  }

  it("is given up while some APICs are in xAPIC and some in x2APIC mode", () => {
    const vm = xapics([{ ldr: 1 }, { ldr: 2 }]);
    setUp(vm.vcpus[1].lapic, "x2apic");
    assertEquals(mode(vm), LogicalMode.Disabled);
    setUp(vm.vcpus[0].lapic, "x2apic");
    assertEquals(mode(vm), LogicalMode.X2apic);
  });

  it("counts a format that is neither flat nor cluster as clusters", () => {
    const vm = xapics([{ ldr: 0x11, dfr: 0x7fff_ffff }]);
    assertEquals(mode(vm), LogicalMode.XapicCluster);
    assertEquals(fast(vm, { destination: 0x11, logical: true }), { ids: [0], answer: 1 });
    assertEquals(slow(vm, { destination: 0x11, logical: true }), { ids: [], answer: NOBODY_MATCHED });
  });
});

describe("map and loop", () => {
  interface Setting {
    readonly x2apic: boolean;
    readonly vcpus: readonly {
      id: number;
      software: boolean;
      enabled: boolean;
      ldr: number;
      cluster: boolean;
    }[];
    readonly quirkDisabled: boolean;
  }
  interface Sending {
    readonly from: number | undefined;
    readonly logical: boolean;
    readonly toVcpu: number | undefined;
    readonly destination: number;
  }

  const setting: fc.Arbitrary<Setting> = fc.record({
    x2apic: fc.boolean(),
    quirkDisabled: fc.boolean(),
    vcpus: fc.uniqueArray(
      fc.record({
        id: fc.integer({ min: 1, max: 254 }),
        software: fc.boolean(),
        enabled: fc.boolean(),
        ldr: fc.oneof(
          fc.integer({ min: 0, max: 7 }).map((bit) => 1 << bit),
          fc.integer({ min: 0, max: 255 }),
        ),
        cluster: fc.boolean(),
      }),
      { selector: ({ id }) => id, maxLength: 8 },
    ),
  });
  const sending: fc.Arbitrary<Sending> = fc.record({
    from: fc.option(fc.nat(7), { nil: undefined }),
    logical: fc.boolean(),
    toVcpu: fc.option(fc.nat(7), { nil: undefined }),
    destination: fc.integer({ min: 0, max: 0x1f_ffff }),
  });

  function build({ x2apic, vcpus, quirkDisabled }: Setting, cluster: boolean): Vm {
    const vm = still({
      vcpuIds: [0, ...vcpus.map(({ id }) => id)],
      x2apicApiDisableBroadcastQuirk: quirkDisabled,
    });
    setUp(vm.bootstrap.lapic, x2apic ? "x2apic" : "xapic", { ldr: 1, dfr: cluster ? CLUSTER : 0xffff_ffff });
    vcpus.forEach(({ software, enabled, ldr, cluster: own }, i) => {
      const { lapic } = vm.vcpus[i + 1];
      if (!enabled) setUp(lapic, "disabled");
      else if (x2apic) setUp(lapic, "x2apic", { software });
      // Mostly one format; sometimes each its own.
      else {setUp(lapic, "xapic", {
          software,
          ldr,
          dfr: cluster !== (own && ldr <= 2) ? CLUSTER : 0xffff_ffff,
        });}
    });
    return vm;
  }

  it("send a fixed interrupt to the same APICs wherever the map resolves at all", () => {
    let resolved = 0;
    fc.assert(
      fc.property(
        setting,
        fc.boolean(),
        fc.array(sending, { minLength: 5, maxLength: 20 }),
        (of, cluster, messages) => {
          const vm = build(of, cluster);
          const at = <T>(from: readonly T[], i: number) => from[i % from.length];
          for (const { from, logical, toVcpu, destination } of messages) {
            const sender = from === undefined ? undefined : at(vm.vcpus, from).lapic;
            const source = sender?.hardwareEnabled ? sender : undefined;
            const known = toVcpu === undefined ? undefined : at(vm.vcpus, toVcpu).lapic;
            const limit = of.x2apic && source !== undefined ? 0xffff_ffff : 0xff;
            const fields = {
              logical,
              destination:
                ((known === undefined ? destination : logical ? known.get(0x0d0) : known.x2apicId) &
                  limit) >>> 0,
            };
            const send = (deliver: typeof deliverFast) =>
              takers(vm, message({ vector: 0x40, ...fields }), (v, _, m) => deliver(v, source, m));
            const byMap = send(deliverFast);
            if (byMap.answer === NOT_RESOLVED) continue;
            resolved++;
            const byLoop = send(deliverSlow);
            assertEquals(byMap.ids, byLoop.ids);
            assertEquals(byMap.answer, Math.max(0, byLoop.answer));
          }
        },
      ),
      { numRuns: 300, seed: 2 },
    );
    assertEquals(resolved > 500, true, `the map resolved ${resolved} messages`);
  });

  it("disagree about an NMI to the logical ID of an APIC that software has disabled: the map has left it out", () => {
    const vm = xapics([{ ldr: 1 }, { ldr: 2, software: false }]);
    const nmi = { deliveryMode: 0x400, destination: 2, logical: true };
    assertEquals(fast(vm, nmi).answer, 0);
    assertEquals(slow(vm, nmi).answer, 1);
  });

  it("disagree about vCPU 0x101 in xAPIC mode: without 32-bit IDs it is in the map under its low byte alone", () => {
    const vm = still({ vcpuIds: [0, 0x101] });
    for (const { lapic } of vm.vcpus) setUp(lapic, "xapic");
    assertEquals(fast(vm, { destination: 1 }), { ids: [0x101], answer: 1 });
    assertEquals(fast(vm, { destination: 0x101 }), { ids: [], answer: 0 });
    assertEquals(slow(vm, { destination: 0x101 }), { ids: [0x101], answer: 1 }, "the hotplug hack");
  });

  it("disagree about a device's 0xffffffff while the broadcast quirk is on", () => {
    const vm = x2apics([0, 1], { x2apicApi32BitIds: true });
    assertEquals(fast(vm, { destination: 0xffff_ffff }), { ids: [], answer: 0 });
    assertEquals(slow(vm, { destination: 0xffff_ffff }), { ids: [0, 1], answer: 2 });
  });
});
