import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { BACKENDS, TP } from "../../../host/mod.ts";
import { vectors } from "../../support/apic.ts";
import { anyPlot, play, type Plot, VECTORS } from "../../support/interrupt_plots.ts";

/** Goes through a run's events and asserts the balance. */
function assertBalance({ vm, runs }: ReturnType<typeof play>): void {
  assertEquals(vm.tracer.lost, 0);
  const inService: number[][] = vm.vcpus.map(() => []);
  const injected = new Map<string, number>();
  /** By vCPU and vector: what was taken since the last injection. */
  const waiting = new Map<string, number>();
  for (const { event, vcpu, args } of vm.tracer.records()) {
    if (event === TP.kvm_apic_accept_irq && args[1] === 0) {
      const key = `${args[0]}:${args[3]}`;
      waiting.set(key, (waiting.get(key) ?? 0) + 1);
    } else if (event === TP.kvm_inj_virq && args[1] === 0) {
      const [vector] = args;
      const key = `${vcpu}:${vector}`;
      assert((waiting.get(key) ?? 0) > 0, `vector ${vector} came to vCPU ${vcpu} though nobody sent it`);
      waiting.delete(key);
      injected.set(key, (injected.get(key) ?? 0) + 1);
      const above = Math.max(0, ...inService[vcpu]);
      assert(vector >> 4 > above >> 4, `vector ${vector} interrupted ${above} on vCPU ${vcpu}`);
      inService[vcpu].push(vector);
    } else if (event === TP.kvm_eoi) {
      const [who, vector] = args;
      assertEquals(vector | 0, inService[who].at(-1) ?? -2, `the EOI of vCPU ${who}`);
      inService[who].pop();
    }
  }
  assertEquals(inService, vm.vcpus.map(() => []), "still in service");
  assertEquals([...waiting], [], "sent and never delivered");
  assertEquals(new Map([...runs].sort()), new Map([...injected].sort()), "runs of handlers, and injections");
  for (const { lapic } of vm.vcpus) assertEquals([vectors(lapic, 0x200), vectors(lapic, 0x100)], [[], []]);
  assertEquals(vm.ioapic.irr, 0, "lines");
  for (const low of vm.ioapic.low) assertEquals(low & 0x4000, 0, "remote IRR");
}

describe("every interrupt that is sent is delivered, and ended once, by the handler that it began", () => {
  for (const backend of BACKENDS) {
    it(`in any mix of vectors, triggers, priorities and timings (${backend})`, () => {
      fc.assert(
        fc.property(anyPlot(backend, fc.constant("timed" as const)), (plot) => assertBalance(play(plot))),
        { numRuns: 120, seed: 70 },
      );
    });

    it(`in any order of the host's threads (${backend})`, () => {
      fc.assert(
        fc.property(anyPlot(backend, fc.nat(1_000_000).map((random) => ({ random }))), (plot) => {
          assertBalance(play(plot));
        }),
        { numRuns: 120, seed: 80 },
      );
    });
  }

  it("is a balance that can be upset: an EOI too many is noticed, and one too few", () => {
    const plot: Plot = {
      backend: "vmx",
      mode: "x2apic",
      pvEoi: false,
      policy: "timed",
      programs: [[{ do: "ipi", vector: 0x52, to: 0 }]],
      handlers: VECTORS.map(() => ({ cycles: 0, nests: false })),
      sources: [],
    };
    assertBalance(play(plot));
    const run = play(plot);
    const { lapic } = run.vm.bootstrap;
    run.vm.engine.running = run.vm.bootstrap;
    lapic.eoi();
    let noticed = "";
    try {
      assertBalance(run);
    } catch (error) {
      noticed = (error as Error).message;
    }
    assert(noticed.includes("the EOI of vCPU 0"), noticed);
  });
});
