import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  ACCELERATIONS,
  type BackendName,
  BACKENDS,
  type PolicySpec,
  SeededEntropy,
} from "../../../../host/mod.ts";
import { data, idle, smpCallFunctionMany } from "../../../../guest/mod.ts";
import { KernelRig } from "../../../support/kernels.ts";
import { DISK, task } from "../../../support/tdp.ts";

const CALLS = 6;
const CPUS = 3;

/** A kernel whose processors call each other, while the host evicts whatever it likes. How often each was called. */
function called(
  backend: BackendName,
  acceleration: (typeof ACCELERATIONS)["vmx" | "svm"][number],
  { seed, pcpus, evictions, policy = "timed" }: {
    seed: number;
    pcpus: number;
    evictions: number;
    policy?: PolicySpec;
  },
): { rig: KernelRig; counts: number[] } {
  const rig = new KernelRig({
    cpus: CPUS,
    secondary: idle,
    machine: { pcpus, staleness: true, policy, timeSlice: 200_000 },
    vm: { backend, acceleration, disk: { ...DISK, latency: policy === "timed" ? 20_000 : 15 } },
  });
  const counts = Array(CPUS).fill(0);
  const func = rig.kernel.smpFunction(function* note(cpu) {
    yield cpu.load32(cpu.gsBase);
    counts[cpu.eax]++;
  });
  const entropy = new SeededEntropy(seed, 1);
  const draw = (below: number): number => entropy.choose(below);
  const { vm } = rig;
  task(
    vm,
    function* () {
      for (let n = 0; n < evictions; n++) {
        // The kernel's image, tables and areas, a page or many; now and then everything.
        const all = draw(8) === 0;
        yield* vm.evict(all ? 0 : draw(1024) * 4096, all ? 2 ** 24 : (1 + draw(200)) * 4096);
        if (policy === "timed") vm.engine.running!.charge(10_000 + draw(100_000));
        else for (let steps = draw(100); steps > 0; steps--) yield;
        yield;
      }
    }(),
  );
  rig.run(function* (cpu, kernel) {
    for (let call = 0; call < CALLS; call++) {
      yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
    }
  });
  return { rig, counts };
}

for (const backend of BACKENDS) {
  for (const acceleration of ACCELERATIONS[backend]) {
    describe(`a kernel whose pages the host evicts (${backend}, ${acceleration})`, () => {
      it("does what it would do otherwise, and only waits", () => {
        const wanted = [0, CALLS, CALLS];
        const calm = called(backend, acceleration, { seed: 0, pcpus: 8, evictions: 0 });
        assertEquals(calm.counts, wanted);
        let waits = 0;
        fc.assert(
          fc.property(fc.nat(1e6), fc.constantFrom(1, 2, 8), (seed, pcpus) => {
            const { rig, counts } = called(backend, acceleration, { seed, pcpus, evictions: 60 });
            assertEquals(counts, wanted);
            for (const { stats } of rig.vm.vcpus) waits += stats.pf_waits;
          }),
          { numRuns: 12 },
        );
        assert(waits > 12, `${waits} waits`);
      });

      it("does so in any order of steps", () => {
        fc.assert(
          fc.property(fc.nat(1e6), fc.constantFrom(1, 8), (seed, pcpus) => {
            const policy = { random: seed };
            const { counts } = called(backend, acceleration, { seed, pcpus, evictions: 25, policy });
            assertEquals(counts, [0, CALLS, CALLS]);
          }),
          { numRuns: 6 },
        );
      });
    });
  }
}
