import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { Acceleration, PolicySpec, Quirk } from "../../../host/mod.ts";
import { vectors } from "../../support/apic.ts";
import { virtualApic } from "../../support/apicv.ts";
import { anyPlot, play, type Played, type Plot } from "../../support/interrupt_plots.ts";
import { pir } from "../../support/posted.ts";

/** When APICv goes, comes again, and so on; most of a story's length, or none at all. */
const changes = fc.array(fc.oneof(fc.nat(3000), fc.nat(60_000)), { maxLength: 30, size: "max" });

function plots(acceleration: Acceleration, policy: fc.Arbitrary<PolicySpec>): fc.Arbitrary<Plot> {
  return fc.tuple(anyPlot("vmx", policy), changes).map(([plot, changes]) => ({
    ...plot,
    acceleration,
    changes,
  }));
}

/**
 * Hardware leaves no trace of what it delivers and ends; what the handlers noted must do. Each vector that was sent is
 * handled behind that, no more often than it was sent, and only above what it interrupts; at the end nothing is left.
 */
function assertBalance({ vm, notes }: Played): void {
  assertEquals(vm.tracer.lost, 0);
  const running: number[][] = vm.vcpus.map(() => []);
  const left = new Map<string, number>();
  const unheard = new Set<string>();
  for (const { what, vcpu, vector } of notes) {
    const key = `${vcpu}:${vector}`;
    if (what === "sent") {
      left.set(key, (left.get(key) ?? 0) + 1);
      unheard.add(key);
    } else if (what === "begins") {
      assert((left.get(key) ?? 0) > 0, `vector ${vector} came to vCPU ${vcpu} more often than it was sent`);
      left.set(key, left.get(key)! - 1);
      unheard.delete(key);
      const above = running[vcpu].at(-1) ?? 0;
      assert(vector >> 4 > above >> 4, `vector ${vector} interrupted ${above} on vCPU ${vcpu}`);
      running[vcpu].push(vector);
    } else {
      assertEquals(running[vcpu].pop(), vector);
    }
  }
  assertEquals([...unheard], [], "sent and never delivered");
  assertEquals(running, vm.vcpus.map(() => []), "handlers that have not ended");
  for (const [i, vcpu] of vm.vcpus.entries()) {
    const { lapic } = vcpu;
    assertEquals([vectors(lapic, 0x200), vectors(lapic, 0x100), pir(vcpu)], [[], [], []], `vCPU ${i}`);
    if (lapic.apicvActive) assertEquals(virtualApic(vm, i), { rvi: 0, svi: 0, irr: [], isr: [] });
    else assertEquals(lapic.isrCount, 0);
  }
  assertEquals(vm.ioapic.irr, 0, "lines");
  for (const low of vm.ioapic.low) assertEquals(low & 0x4000, 0, "remote IRR");
}

/** What an unfinished or unbalanced run says; empty for a good one. */
function complaint(plot: Plot): string {
  try {
    assertBalance(play(plot));
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

describe("every interrupt that is sent is handled, and ended once, while APICv comes and goes", () => {
  for (const acceleration of ["apicv", "ipiv"] as const) {
    it(`in any mix of vectors, triggers, priorities and timings (${acceleration})`, () => {
      let switched = 0;
      fc.assert(
        fc.property(plots(acceleration, fc.constant("timed")), (plot) => {
          const played = play(plot);
          assertBalance(played);
          switched += played.vm.counters().kvm_apicv_inhibit_changed ?? 0;
        }),
        { numRuns: 100, seed: 110 },
      );
      assert(switched > 500, `${switched} changes`);
    });

    it(`in any order of the host's threads (${acceleration})`, () => {
      fc.assert(
        fc.property(
          plots(acceleration, fc.nat(1_000_000).map((random) => ({ random }))),
          (plot) => assertBalance(play(plot)),
        ),
        { numRuns: 100, seed: 120 },
      );
    });
  }

  it("needs hardware to learn what is in service: where it does not, some plot goes wrong", () => {
    const quirks: Quirk[] = ["apicv-activation-keeps-svi"];
    const steps = 20_000;
    const { counterexample } = fc.check(
      fc.property(
        plots("apicv", fc.constant("timed")),
        (plot) => complaint({ ...plot, steps, quirks }) === "",
      ),
      { numRuns: 100, seed: 110, endOnFailure: true },
    );
    assert(counterexample !== null);
    assertEquals(complaint({ ...counterexample[0], steps }), "", "the same plot without the quirk");
  });
});
