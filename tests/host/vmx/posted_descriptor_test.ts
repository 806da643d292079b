import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { type Steps, straight, type Vcpu } from "../../../host/mod.ts";
import { type PiControl, PiDescriptor } from "../../../host/vmx/mod.ts";
import { processPostedInterrupts } from "../../../host/vmx/posted_interrupts.ts";
import { request, setUp, still, vectors } from "../../support/apic.ts";
import { descriptor, pir, put, shown, vmx } from "../../support/posted.ts";

/** SDM 3C table 30-1: first bit and width of each field, in 64 bytes. */
const FIELDS = { on: [256, 1], sn: [257, 1], nv: [272, 8], ndst: [288, 32] } as const;

function field(words: Uint32Array, [first, width]: readonly [number, number]): number {
  return (words[first >>> 5] >>> (first & 31)) % 2 ** width;
}

const controls: fc.Arbitrary<PiControl> = fc.record({
  on: fc.boolean(),
  sn: fc.boolean(),
  nv: fc.nat(255),
  ndst: fc.nat(0xffff_ffff),
});

describe("a posted-interrupt descriptor", () => {
  it("has its fields where hardware looks for them, and nothing else changes with them", () => {
    fc.assert(
      fc.property(controls, fc.uniqueArray(fc.nat(255)), ({ ...control }, posted) => {
        const words = new Uint32Array(16);
        const its = new PiDescriptor(words);
        for (const vector of posted) assertEquals(its.testAndSetPir(vector), false);
        assertEquals(straight(its.update(control)), control);
        assertEquals(its.control, control);
        assertEquals(its.ndst, field(words, FIELDS.ndst));
        assertEquals(its.nv, field(words, FIELDS.nv));
        assertEquals([its.on, its.sn].map(Number), [field(words, FIELDS.on), field(words, FIELDS.sn)]);
        for (let vector = 0; vector < 256; vector++) {
          assertEquals(field(words, [vector, 1]), posted.includes(vector) ? 1 : 0);
        }
        assertEquals(words.slice(10), new Uint32Array(6), "reserved");
        assertEquals([words[8] & 0xff00_fffc], [0], "reserved");
      }),
    );
  });

  it("begins with notifications suppressed, for the vector 0xf2", () => {
    const { bootstrap } = still({ acceleration: "apicv" });
    assertEquals(shown(bootstrap), "SN nv=f2 ndst=0");
  });

  it("is updated whole or not at all: whoever comes between makes the update begin anew, and is not lost", () => {
    const its = new PiDescriptor(new Uint32Array(16));
    const update = its.update({ nv: 0xf1 });
    update.next();
    assertEquals(its.testAndSetOn(), false);
    assertEquals(its.nv, 0);
    let rounds = 0;
    for (let over = false; !over; rounds++) over = update.next().done!;
    assertEquals([its.nv, its.on, rounds], [0xf1, true, 2]);
  });

  it("is compared whole: where notifications go counts as well", () => {
    const its = new PiDescriptor(new Uint32Array(16));
    const update = its.update({ sn: true });
    update.next();
    straight(its.update({ ndst: 5 }));
    for (let over = false; !over;) over = update.next().done!;
    assertEquals([its.sn, its.ndst], [true, 5]);
  });

  it("is emptied by a reset: what was posted is gone, and where notifications go stays", () => {
    const vm = still({ acceleration: "ipiv", vcpus: 2 }, { pcpus: 2 });
    const [, target] = vm.vcpus;
    setUp(target.lapic, "x2apic");
    put(target, "sleeps with IF=1");
    request(target.lapic, 0x41);
    assertEquals(shown(target), "41 ON nv=f1 ndst=0");
    target.reset(true);
    assertEquals(shown(target), "nv=f1 ndst=0");
  });
});

/** Everything that may happen to a descriptor while it is harvested: what is posted, by whom. */
const postings = fc.array(
  fc.record({ vector: fc.integer({ min: 16, max: 255 }), hardware: fc.boolean() }),
  { maxLength: 8 },
);

/** A post in two accesses, without the rest. */
function* post(its: PiDescriptor, vector: number, hardware: boolean): Steps {
  if (its.testAndSetPir(vector) && !hardware) return;
  yield;
  if (hardware) its.requestNotification();
  else its.testAndSetOn();
}

describe("posted interrupts that are harvested while others are posted", () => {
  for (const by of ["KVM", "hardware"] as const) {
    it(`are each taken once, or stay with ON set (${by})`, () => {
      fc.assert(
        fc.property(postings, fc.infiniteStream(fc.nat()), (all, choices) => {
          const vm = still({ acceleration: "apicv" });
          const { bootstrap } = vm;
          setUp(bootstrap.lapic, "x2apic");
          put(bootstrap, "runs in guest mode");
          const its = descriptor(bootstrap);
          const under: Steps<unknown>[] = [
            ...all.map(({ vector, hardware }) => post(its, vector, hardware)),
            harvest(bootstrap, by),
            harvest(bootstrap, by),
          ];
          // One thread does both harvests: the second begins when the first is over.
          const [second] = under.splice(-1);
          const first = under.at(-1)!;
          while (under.length > 0) {
            const turn = choices.next().value! % under.length;
            if (!under[turn].next().done) continue;
            const [over] = under.splice(turn, 1);
            if (over === first) under.push(second);
          }
          const requested = vectors(bootstrap.lapic, 0x200);
          const left = pir(bootstrap);
          const wanted = [...new Set(all.map(({ vector }) => vector))].sort((a, b) => a - b);
          const got = [...new Set([...requested, ...left])].sort((a, b) => a - b);
          assertEquals(got, wanted, "none is lost, and none comes from nowhere");
          if (left.length > 0) assertEquals(its.on, true, "somebody will look again");
          straight(harvest(bootstrap, by));
          assertEquals([pir(bootstrap), vectors(bootstrap.lapic, 0x200)], [[], wanted]);
          assertEquals(vmx(bootstrap).vmcs.rvi, wanted.at(-1) ?? 0);
        }),
        { numRuns: 300 },
      );
    });
  }
});

function harvest(vcpu: Vcpu, by: "KVM" | "hardware"): Steps<unknown> {
  const { posted, hardware } = vmx(vcpu);
  return by === "KVM" ? posted.synchronize() : processPostedInterrupts(vcpu.processor, hardware);
}
