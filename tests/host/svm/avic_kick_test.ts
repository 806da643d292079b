import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { matchDestination } from "../../../host/lapic/mod.ts";
import { AVIC_KICKS, type AvicKick, type HostSemantics, Machine, type Vm } from "../../../host/mod.ts";
import { type ApicMode, still } from "../../support/apic.ts";
import { type Scene, sendFrom, type Sent, stage, svm } from "../../support/avic.ts";
import { eventsOf } from "../../support/events.ts";

const FIXED = 0x4041;
const LOGICAL = 0x800;
const SHORTHAND = 0xc_0000;
const FLAT = 0xffff_ffff;
const CLUSTER = 0x0fff_ffff;

/** An ICR, and who is there. */
interface Case {
  readonly scene: Scene;
  readonly low: number;
  readonly high: number;
}

const asleep = fc.array(fc.boolean(), { minLength: 9, maxLength: 9 }).map((all) => [false, ...all.slice(1)]);
const ids = (top: number) =>
  fc.uniqueArray(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: top })), {
    minLength: 1,
    maxLength: 8,
  }).map((others) => [0, ...others.sort((a, b) => a - b)]);

/** Distinct logical IDs; some vCPUs have none. */
const flatIds = fc.shuffledSubarray([1, 2, 4, 8, 16, 32, 64, 128, 0, 0], { minLength: 9, maxLength: 9 });
const clusterIds = fc.uniqueArray(
  fc.tuple(fc.oneof(fc.nat(2), fc.nat(14)), fc.nat(3)).map(([cluster, bit]) => (cluster << 4) | (1 << bit)),
  { minLength: 9, maxLength: 9 },
);

const xapicScene: fc.Arbitrary<Scene> = fc.boolean().chain((flat) =>
  fc.record({
    mode: fc.constant("xapic" as const),
    ids: ids(254),
    asleep,
    logicalIds: flat ? flatIds : clusterIds,
    dfr: fc.constant(flat ? FLAT : CLUSTER),
  })
);
const x2apicScene: fc.Arbitrary<Scene> = fc.record({
  mode: fc.constant("x2apic" as const),
  ids: ids(511),
  asleep,
});

/** Destinations: any, and those that somebody is likely to have. */
function destinations({ mode, ids, logicalIds }: Scene): fc.Arbitrary<number> {
  const own = fc.constantFrom(...ids);
  if (mode === "xapic") {
    const some = fc.subarray(logicalIds!.slice(0, ids.length)).map((set) => set.reduce((a, b) => a | b, 0));
    return fc.oneof(own, some, fc.constant(0xff), fc.nat(255)).map((id) => (id << 24) >>> 0);
  }
  const cluster = fc.tuple(own, fc.nat(0xffff)).map(([id, bits]) => ((id >>> 4) << 16 | bits) >>> 0);
  const one = own.map((id) => ((id >>> 4) << 16 | 1 << (id & 15)) >>> 0);
  return fc.oneof(own, one, cluster, fc.constant(0xffff_ffff), fc.nat(0xffff_ffff), fc.nat(0x20_ffff));
}

const icr = fc.record({
  vector: fc.oneof(fc.constant(0x41), fc.integer({ min: 16, max: 255 }), fc.nat(255)),
  delivery: fc.oneof({ weight: 12, arbitrary: fc.constant(0) }, {
    weight: 1,
    arbitrary: fc.constantFrom(1, 2, 4),
  }),
  logical: fc.boolean(),
  assert: fc.boolean(),
  level: fc.oneof({ weight: 12, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
  shorthand: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, {
    weight: 1,
    arbitrary: fc.constantFrom(1, 2, 3),
  }),
}).map(({ vector, delivery, logical, assert, level, shorthand }) =>
  vector | delivery << 8 | (logical ? LOGICAL : 0) | (assert ? 0x4000 : 0) | (level ? 0x8000 : 0) |
  shorthand << 18
);

const anyCase = (scene: fc.Arbitrary<Scene>): fc.Arbitrary<Case> =>
  scene.chain((scene) => fc.record({ scene: fc.constant(scene), low: icr, high: destinations(scene) }));

const destinationOf = ({ scene: { mode }, high }: Case) => mode === "xapic" ? high >>> 24 : high;
const everybody = (mode: ApicMode) => mode === "xapic" ? 0xff : 0xffff_ffff;

/** Whom an ICR means, asked of one APIC at a time. */
function meant(vm: Vm, c: Case): number[] {
  const source = vm.bootstrap.lapic;
  return vm.vcpus.filter(({ lapic }) =>
    matchDestination(lapic, source, c.low & SHORTHAND, destinationOf(c), (c.low & LOGICAL) !== 0)
  ).map(({ vcpuId }) => vcpuId);
}

/** Where a way of finding targets is known to miss some; each has a test of its own below. */
const MISSES: Readonly<Record<AvicKick, (c: Case, meant: readonly number[]) => boolean>> = {
  "slow": () => false,
  "2022": ({ scene: { mode }, low }, { length }) =>
    (low & SHORTHAND) === 0 && length > 1 && (mode === "xapic" || (low & LOGICAL) === 0),
  "v6.19": (c) =>
    (c.low & SHORTHAND) === 0 && (c.low & LOGICAL) !== 0 && destinationOf(c) === everybody(c.scene.mode),
};

describe("every target whose IRR hardware has set is woken", () => {
  for (const kick of AVIC_KICKS) {
    for (const [mode, scene] of [["xapic", xapicScene], ["x2apic", x2apicScene]] as const) {
      it(`and nobody else, and each is meant, for any ICR, any IDs and any sleepers (${kick}, ${mode})`, () => {
        const seen = { done: 0, incomplete: 0, kicked: 0, emulated: 0 };
        fc.assert(
          fc.property(anyCase(scene), (c) => {
            const vm = stage(c.scene, { avicKick: kick });
            fc.pre(vm.apicvInhibits === 0);
            const targets = meant(vm, c);
            fc.pre(!MISSES[kick](c, targets));
            const fixedEdge = (c.low & 0x8700) === 0;
            const sleeps = c.scene.ids.filter((_, place) => c.scene.asleep[place]);
            const sent = sendFrom(vm, c.low, c.high);
            if (!fixedEdge) {
              assertEquals([sent.exit?.id, sent.byHardware], [0, []]);
              return;
            }
            if ((c.low & 0xff) < 16) {
              assertEquals([sent.exit?.id, sent.requested, sent.woken], [4, [], []]);
              return;
            }
            assertEquals(sent.requested, targets);
            assertEquals(sent.woken, targets.filter((id) => sleeps.includes(id)));
            if (sent.exit?.id === 2) assertEquals(sent.byHardware, []);
            else assertEquals(sent.byHardware, targets);
            assertEquals(sent.exit?.id === 1, sent.exit?.id !== 2 && sent.woken.length > 0);
            if (sent.exit === undefined) seen.done++;
            else if (sent.exit.id === 1) seen.incomplete++;
            else seen.emulated++;
            seen.kicked += sent.woken.length;
          }),
          { numRuns: 400, seed: 1 },
        );
        for (const [what, times] of Object.entries(seen)) assertGreater(times, 20, what);
      });
    }
  }
});

describe("an IPI that takes the short way to its one target", () => {
  for (const [mode, scene] of [["xapic", xapicScene], ["x2apic", x2apicScene]] as const) {
    it(`comes to what it does step by step, for any ICR, any IDs and any sleepers (${mode})`, () => {
      let short = 0;
      fc.assert(
        fc.property(anyCase(scene), (c) => {
          const [slow, fast] = (["steps", "directed"] as const).map((way) => {
            const vm = stage(c.scene);
            const sent = sendFrom(vm, c.low, c.high, way);
            const { bootstrap } = vm;
            const rings = vm.scheduler.pcpus.map(({ notifiedAt }) => notifiedAt);
            return { sent, rings, clock: bootstrap.clock, instructions: bootstrap.processor.instructions };
          });
          assertEquals(fast, slow);
          if ((c.low & 0xc_8f00) === 0 && fast.sent.byHardware.length === 1) short++;
        }),
        { numRuns: 300, seed: 2 },
      );
      assertGreater(short, 10);
    });
  }
});

/** Who was meant, requested, and sleeps on. */
function forgotten(scene: Scene, sent: Sent): number[] {
  return scene.ids.filter((id, place) =>
    scene.asleep[place] && sent.requested.includes(id) && !sent.woken.includes(id)
  );
}

/** Whom each way leaves asleep, and how often it asked every vCPU. */
function compare(
  scene: Scene,
  low: number,
  high: number,
): Record<AvicKick, [forgotten: number[], asked: number]> {
  const results = AVIC_KICKS.map((avicKick) => {
    const vm = stage(scene, { avicKick });
    const sent = sendFrom(vm, low, high);
    assertEquals(sent.exit?.id, 1);
    return [avicKick, [forgotten(scene, sent), eventsOf(vm, "kvm_avic_kick_vcpu_slowpath").length]] as const;
  });
  return Object.fromEntries(results) as Record<AvicKick, [number[], number]>;
}

describe("the ways to find whom to wake differ", () => {
  const xapic: Scene = {
    mode: "xapic",
    ids: [0, 1, 2, 3],
    asleep: [false, true, true, true],
    logicalIds: [1, 2, 4, 8],
  };
  const x2apic: Scene = { mode: "x2apic", ids: [0, 1, 2, 3], asleep: [false, true, true, true] };

  it("for one target they agree, and only the slow way asks everybody", () => {
    assertEquals(compare(xapic, FIXED, 2 << 24), { "slow": [[], 1], "2022": [[], 0], "v6.19": [[], 0] });
    assertEquals(compare(x2apic, FIXED, 2), { "slow": [[], 1], "2022": [[], 0], "v6.19": [[], 0] });
    assertEquals(compare(x2apic, FIXED | LOGICAL, 4), { "slow": [[], 1], "2022": [[], 0], "v6.19": [[], 0] });
  });

  it("for a logical xAPIC destination of several, that of 2022 wakes the one at the exit's index: slow is right", () => {
    assertEquals(compare(xapic, FIXED | LOGICAL, 0x0e00_0000), {
      "slow": [[], 1],
      "2022": [[2, 3], 0],
      "v6.19": [[], 0],
    });
  });

  it("for several bits of an x2APIC's logical ID, that of 2022 asks everybody, and today's goes bit by bit", () => {
    assertEquals(compare(x2apic, FIXED | LOGICAL, 0xe), {
      "slow": [[], 1],
      "2022": [[], 1],
      "v6.19": [[], 0],
    });
  });

  it("for a physical broadcast without a shorthand, that of 2022 wakes one: slow is right (fixed by 603ccef42ce9)", () => {
    assertEquals(compare(xapic, FIXED, 0xff00_0000), {
      "slow": [[], 1],
      "2022": [[2, 3], 0],
      "v6.19": [[], 1],
    });
    assertEquals(compare(x2apic, FIXED, 0xffff_ffff), {
      "slow": [[], 1],
      "2022": [[2, 3], 0],
      "v6.19": [[], 1],
    });
  });

  it("for the logical xAPIC ID 0xff, which is everybody to hardware, today's wakes only who has a logical ID", () => {
    const without: Scene = { ...xapic, logicalIds: [1, 2, 0, 8] };
    assertEquals(compare(without, FIXED | LOGICAL, 0xff00_0000), {
      "slow": [[], 1],
      "2022": [[2, 3], 0], // The index is the physical table's: as the logical table's it leads to vCPU 1 as well.
      "v6.19": [[2], 0],
    });
  });

  it("for 0xff in the cluster format, today's finds nobody at all: cluster 15 is nobody's, and slow is right", () => {
    const clusters: Scene = { ...xapic, logicalIds: [0x11, 0x12, 0x21, 0x22], dfr: CLUSTER };
    const { "slow": slow, "v6.19": today } = compare(clusters, FIXED | LOGICAL, 0xff00_0000);
    assertEquals(slow, [[], 1]);
    assertEquals(today, [[1, 2, 3], 0]);
  });

  it("for the logical x2APIC ID 0xffffffff likewise", () => {
    assertEquals(compare(x2apic, FIXED | LOGICAL, 0xffff_ffff), {
      "slow": [[], 1],
      "2022": [[], 1],
      "v6.19": [[1, 2, 3], 0],
    });
  });

  it("for a destination format that is neither flat nor cluster, slow finds nobody: the fast ways are right", () => {
    const odd: Scene = { ...xapic, logicalIds: [0x11, 0x12, 0x21, 0x22], dfr: 0x7fff_ffff };
    assertEquals(compare(odd, FIXED | LOGICAL, 0x1200_0000), {
      "slow": [[1], 1],
      "2022": [[1], 1],
      "v6.19": [[], 0],
    });
  });

  it("for shorthands all ask everybody", () => {
    for (const shorthand of [0x8_0000, 0xc_0000]) {
      assertEquals(compare(xapic, FIXED | shorthand, 0), {
        "slow": [[], 1],
        "2022": [[], 1],
        "v6.19": [[], 1],
      });
    }
  });

  it("while modes are mixed: a destination is what the sender's mode says, and in 2022 what the target's does", () => {
    // Between the modes' changes nothing inhibits AVIC where no two software-enabled APICs have logical IDs.
    for (const [avicKick, left] of [["slow", []], ["v6.19", []], ["2022", [2]]] as const) {
      const vm = stage({ mode: "xapic", ids: [0, 1, 2], asleep: [false, false, true] }, {
        avicKick,
        acceleration: "x2avic",
      });
      const { bootstrap: sender } = vm;
      sender.lapic.base = 0xfee0_0d00; // x2APIC mode; the map is not rebuilt yet.
      svm(sender).apicModeChanged();
      const sent = sendFrom(vm, FIXED, 2);
      assertEquals(sent.exit, { id: 1, index: 2 });
      assertEquals(sent.byHardware, [2]);
      assertEquals([2].filter((id) => !sent.woken.includes(id)), [...left], avicKick);
    }
  });
});

describe("the fast way's mask of an x2APIC's destination", () => {
  const scene: Scene = { mode: "x2apic", ids: [0, 1, 17, 18], asleep: [false, true, true, true] };
  const destinations = [0x2, 0x0001_0002, 0x0001_0004, 0x0001_0006];

  it("looks at the vCPUs' bits: each target is woken", () => {
    for (const high of destinations) {
      assertEquals(forgotten(scene, sendFrom(stage(scene), FIXED | LOGICAL, high)), []);
    }
  });

  it("with the bug of 603ccef42ce9 looks at the cluster's: nobody is woken", () => {
    for (const high of destinations) {
      const vm = stage(scene, {}, { quirks: ["avic-kick-x2apic-mask"] });
      const sent = sendFrom(vm, FIXED | LOGICAL, high);
      assertGreater(sent.byHardware.length, 0);
      assertEquals(forgotten(scene, sent), sent.byHardware);
    }
    const slow = stage(scene, { avicKick: "slow" }, { quirks: ["avic-kick-x2apic-mask"] });
    assertEquals(forgotten(scene, sendFrom(slow, FIXED | LOGICAL, 0x0001_0006)), []);
  });
});

describe("what finding a target costs", () => {
  function price(avicKick: AvicKick, vcpus: number): number {
    const all = Array.from({ length: vcpus }, (_, id) => id);
    const vm = stage({ mode: "x2apic", ids: all, asleep: all.map((id) => id !== 0) }, { avicKick });
    const before = vm.bootstrap.clock;
    sendFrom(vm, FIXED, vcpus - 1);
    return vm.bootstrap.clock - before;
  }

  it("grows with the number of vCPUs where everybody is asked, a question each, and does not elsewhere", () => {
    const { slowMatch } = still({ backend: "svm" }).cost;
    for (const [few, many] of [[2, 16], [16, 128], [128, 512]]) {
      assertEquals(price("slow", many) - price("slow", few), (many - few) * slowMatch);
      assertEquals(price("2022", many), price("2022", few));
      assertEquals(price("v6.19", many), price("v6.19", few));
    }
    assert(price("slow", 512) > price("v6.19", 512));
  });
});

describe("the way to find targets", () => {
  it("is that of the host's year by default", () => {
    const kick = (hostSemantics: HostSemantics) =>
      new Machine().createVm({ backend: "svm", hostSemantics }).avicKick;
    assertEquals(kick("v6.19"), "v6.19");
    assertEquals(kick("2022"), "2022");
    assertEquals(kick("2021"), "slow");
    assertEquals(kick("2018"), "slow");
  });

  it("may be chosen, and one that there is not is refused with those that there are", () => {
    assertEquals(new Machine().createVm({ backend: "svm", avicKick: "slow" }).avicKick, "slow");
    assertThrows(
      () => new Machine().createVm({ backend: "svm", avicKick: "fast" as AvicKick }),
      RangeError,
      "Cannot kick AVIC's targets by fast: allowed are slow, 2022, v6.19",
    );
  });

  it("leaves the tracepoint of the slow way to hosts that have it", () => {
    const scene: Scene = { mode: "xapic", ids: [0, 1], asleep: [false, true] };
    const traced = (hostSemantics: "v6.19" | "2022" | "2021") => {
      const vm = stage(scene, { hostSemantics, avicKick: "slow", x2apic: false });
      assertEquals(sendFrom(vm, FIXED, 1 << 24).woken, [1]);
      return eventsOf(vm, "kvm_avic_kick_vcpu_slowpath").map(({ args }) => [...args.slice(0, 3)]);
    };
    assertEquals(traced("v6.19"), [[1 << 24, FIXED, 1]]);
    assertEquals(traced("2022"), []);
    assertEquals(traced("2021"), []);
  });
});
