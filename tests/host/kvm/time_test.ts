import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { DEFAULT_LIMITS } from "../../../host/mod.ts";
import { cyclesToNs, nsToCycles } from "../../../host/kvm/time.ts";

const khz = fc.constantFrom(1_000_000, 1_999_999, 2_100_000, 2_500_000, 2_893_437, 3_000_000, 4_000_001);
/** As many cycles as a run may take by default. */
const LONG = DEFAULT_LIMITS.cycles;
const amount = fc.oneof(fc.nat(10_000), fc.integer({ min: 0, max: LONG }));

describe("cycles and nanoseconds", () => {
  it("convert without losing a unit: down to the whole nanosecond, up to the whole cycle", () => {
    fc.assert(
      fc.property(amount, khz, (n, khz) => {
        assertEquals(BigInt(cyclesToNs(n, khz)), BigInt(n) * 1_000_000n / BigInt(khz));
        assertEquals(BigInt(nsToCycles(n, khz)), (BigInt(n) * BigInt(khz) + 999_999n) / 1_000_000n);
      }),
      { numRuns: 2000 },
    );
  });

  it("do not let a timer fire before its time: the cycle of a nanosecond is never too early", () => {
    fc.assert(
      fc.property(amount, khz, (ns, khz) => {
        const cycles = nsToCycles(ns, khz);
        assert(cyclesToNs(cycles, khz) >= ns);
        assert(cycles === 0 || cyclesToNs(cycles - 1, khz) < ns);
      }),
      { numRuns: 2000 },
    );
  });
});
