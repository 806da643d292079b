import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { Vcpu } from "../../../host/mod.ts";
import { APIC_MODES, type ApicMode, enter, tryingRig, vectors, write } from "../../support/apic.ts";
import { type Exit, exits, mark } from "../../support/events.ts";
import { pir } from "../../support/posted.ts";

const VCPUS = 3;

/** An ICR, as it is written: its low half, and to whom. */
interface Icr {
  readonly low: number;
  readonly destination: number;
}

/** What hardware makes of an ICR write. */
type Verdict = "#GP" | "posted" | "self" | "exits";

const bit = (word: number, n: number) => (word >>> n) & 1;
const bits = (word: number, high: number, low: number) => (word >>> low) & ((1 << (high - low + 1)) - 1);

/** SDM 3C 30.4.3.2, 30.5 and 30.1.6, one condition after the other: the slow, obvious way. */
function verdict(mode: ApicMode, { low, destination }: Icr): Verdict {
  const vector = bits(low, 7, 0);
  const reserved = bits(low, 31, 20) !== 0 || bits(low, 17, 16) !== 0 || bit(low, 13) !== 0;
  if (mode === "x2apic" && reserved) return "#GP";
  if (reserved) return "exits";
  if (bit(low, 12) !== 0) return "exits"; // Delivery status.
  if (bit(low, 15) !== 0) return "exits"; // Level-triggered.
  if (bits(low, 10, 8) !== 0) return "exits"; // Not fixed.
  if (vector < 16) return "exits";
  // In x2APIC mode the ICR sends no self-IPI without an exit: that is MSR 83FH's.
  if (bits(low, 19, 18) === 1) return mode === "xapic" ? "self" : "exits";
  if (bits(low, 19, 18) !== 0) return "exits";
  if (bit(low, 11) !== 0) return "exits"; // Logical.
  return destination < VCPUS ? "posted" : "exits"; // Beyond, entries are empty, or there are none.
}

const deliveryMode = fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 7);
/** ICRs of which a good part would be virtualized, but for a bit or two. */
const lows = fc.record({
  vector: fc.oneof(fc.nat(255), fc.constantFrom(0, 15, 16, 0x41, 0x42, 255)),
  mode: deliveryMode,
  level: fc.boolean(),
  flips: fc.array(fc.constantFrom(11, 12, 13, 15, 16, 17, 18, 18, 18, 18, 19, 20, 25, 31), { maxLength: 2 }),
}).map(({ vector, mode, level, flips }) =>
  flips.reduce((low, n) => low ^ (1 << n), vector | (mode << 8) | (level ? 1 << 14 : 0)) >>> 0
);
const destinations = fc.oneof(
  fc.nat(VCPUS),
  fc.constantFrom(0, 1, 2, 3, 0xfe, 0xff, 0x100, 0xfff, 0x1000, 0x1_0001, 0xffff_ffff),
);

/** NMIs that hit the sender itself are left out; INIT and start-up IPIs, which change their targets, are as well. */
function harmless({ low, destination }: Icr): boolean {
  if (bits(low, 10, 8) !== 4) return true;
  const shorthand = bits(low, 19, 18);
  const toOneOther = shorthand === 0 && bit(low, 11) === 0 && destination !== 0 && destination < VCPUS;
  return shorthand === 3 || toOneOther;
}

/** The vectors that were posted to a vCPU, wherever hardware has got them to by now. */
function posted(vcpu: Vcpu): number[] {
  return [...new Set([...pir(vcpu), ...vectors(vcpu.lapic, 0x200)])];
}

for (const mode of APIC_MODES) {
  describe(`writes of the ICR in ${mode} mode, with IPI virtualization`, () => {
    it("are virtualized, exit behind the instruction, or fault, as an obvious predicate says", () => {
      const seen: Record<Verdict, number> = { "#GP": 0, posted: 0, self: 0, exits: 0 };
      const icrs = fc.record({ low: lows, destination: destinations })
        .map(({ low, destination }): Icr => ({
          low,
          destination: mode === "xapic" ? destination & 0xff : destination,
        }))
        .filter((icr) => harmless(icr));
      fc.assert(
        fc.property(fc.array(icrs, { minLength: 1, maxLength: 20 }), (all) => {
          const rig = tryingRig({ vm: { vcpus: VCPUS, acceleration: "ipiv", trace: 1 << 13 } });
          const { vm } = rig;
          const { lapic, backend } = vm.bootstrap;
          // The page as an APIC-write exit leaves it, and where the guest goes on.
          const atExit: [low: number, high: number, pending: number][] = [];
          const completeExit = backend.completeExit.bind(backend);
          backend.completeExit = () => {
            completeExit();
            const { exitReason, context } = vm.bootstrap.processor;
            if (exitReason === 56) atExit.push([lapic.page[0xc0], lapic.page[0xc1], context.pending]);
          };
          rig.finish(function* (cpu) {
            yield* enter(cpu, mode);
            for (const icr of all) {
              const wanted = verdict(mode, icr);
              seen[wanted]++;
              if (mode === "xapic") yield* write(cpu, mode, 0x310, icr.destination << 24);
              const from = mark(vm);
              const before = vm.vcpus.map((vcpu) => new Set(posted(vcpu)));
              atExit.length = 0;
              const stored = lapic.page.slice(0xc0, 0xc2);
              const completed = yield* write(cpu, mode, 0x300, icr.low, icr.destination);
              const what = `${mode} ${icr.low.toString(16)} to ${icr.destination.toString(16)}: ${wanted}`;
              const apicWrites: readonly Exit[] = wanted === "exits" ? [["APIC_WRITE", 0x300n]] : [];
              assertEquals(
                exits(vm, from).filter(([name]) => name !== "EXTERNAL_INTERRUPT"),
                apicWrites,
                what,
              );
              assertEquals(completed, wanted !== "#GP", what);
              if (wanted === "#GP") {
                assertEquals(lapic.page.slice(0xc0, 0xc2), stored, `${what}: nothing is stored`);
                continue;
              }
              if (wanted === "exits") {
                // Stored, delivery status included, before the exit; and the instruction is over.
                const high = mode === "x2apic" ? icr.destination : 0;
                assertEquals(atExit, [[icr.low, high, 0]], what);
                continue;
              }
              assertEquals(lapic.page[0xc0], icr.low, what);
              if (wanted === "self") {
                assert((lapic.get(0x200 + 16 * ((icr.low & 0xff) >>> 5)) >>> (icr.low & 31)) & 1, what);
                continue;
              }
              const vector = icr.low & 0xff;
              for (const [id, vcpu] of vm.vcpus.entries()) {
                const more = posted(vcpu).filter((vector) => !before[id].has(vector));
                const isNew = id === icr.destination && !before[id].has(vector);
                assertEquals(more, isNew ? [vector] : [], `${what}, at vCPU ${id}`);
              }
            }
          });
        }),
        { numRuns: 150 },
      );
      for (const [name, times] of Object.entries(seen)) {
        const never = (name === "#GP" && mode === "xapic") || (name === "self" && mode === "x2apic");
        if (never) assertEquals(times, 0);
        else assertGreater(times, 20, `hardly any ${name}`);
      }
    });
  });
}
