import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { encodeMsi, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, type HostSemantics, type PolicySpec, VcpuMode } from "../../../host/mod.ts";
import { type Asking, vectors } from "../../support/apic.ts";
import { count, eventsOf, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";
import { enable, endOfInterrupt, FLAG } from "../../support/pv_eoi.ts";
import { Script } from "../../support/threads.ts";

const READY = DATA;
const STOP = DATA + 4;
const VECTORS = [0x31, 0x41, 0x51, 0x61, 0x71];

/** What a device does: waits for so many cycles (or steps), then sends a message. */
type Arrivals = readonly (readonly [wait: number, vector: number])[];

/** A guest whose handlers nest, exit or compute in the middle, and end by the flag where they can. */
function play(
  backend: (typeof BACKENDS)[number],
  policy: PolicySpec,
  arrivals: Arrivals,
  host: HostSemantics,
) {
  const rig = tracingRig({ machine: { policy }, vm: { backend, hostSemantics: host } });
  const { vm } = rig;
  const { lapic, pvEoi } = vm.bootstrap;
  const order: string[] = [];
  const byFlag: number[] = [];
  let cancelled = 0;
  function* handler(cpu: X86Cpu): Asking<void> {
    const { vector } = cpu;
    order.push(`+${vector.toString(16)}`);
    if (vector % 32 === 17) yield cpu.sti(); // Some let others in.
    yield cpu.work(500);
    if (vector === 0x41) yield cpu.cpuid(0);
    yield cpu.cli();
    if ((yield* endOfInterrupt(cpu)) === "flag") byFlag.push(vector);
    order.push(`-${vector.toString(16)}`);
  }
  for (const vector of VECTORS) rig.on(vector, handler);
  rig.start(function* (cpu) {
    yield* enable(cpu);
    yield cpu.sti();
    yield cpu.store32(READY, 1);
    yield cpu.pauseWhile(STOP, 0);
    yield cpu.cli();
    yield cpu.cpuid(0);
  });
  new Script(vm.engine, "device", function* () {
    while (rig.word(READY) === 0) yield 100;
    let armedOutside = false;
    for (const [wait, vector] of arrivals) {
      for (let step = 0; step < 4; step++) {
        yield wait;
        // Outside the short way from the event block to the entry, nothing is armed in the host.
        if (armedOutside && vm.bootstrap.mode === VcpuMode.Outside && !pvEoi.pending) cancelled++;
        armedOutside = vm.bootstrap.mode === VcpuMode.Outside && pvEoi.pending;
        if (!pvEoi.pending) {
          assertEquals(vm.memory.byte(FLAG), 0, "a flag that is set is a flag that is armed");
        }
      }
      vm.signalMsi(encodeMsi({ vector }, "xapic"));
    }
    while (lapic.highestIrr() !== -1 || lapic.highestIsr() !== -1) {
      const last = lapic.highestIrr() === -1 && lapic.isrCount === 1;
      if (last && pvEoi.pending && vm.memory.byte(FLAG) === 0) break; // Ended: KVM will know at the next exit.
      yield 1000;
    }
    vm.memory.setWord(STOP, 1);
  });
  assertEquals(vm.machine.run().end, "finished");
  return { rig, order, byFlag, cancelled };
}

const arrivals: fc.Arbitrary<Arrivals> = fc.array(
  fc.tuple(fc.oneof(fc.nat(4), fc.nat(3000)), fc.constantFrom(...VECTORS)),
  { minLength: 1, maxLength: 25 },
);
const policy: fc.Arbitrary<PolicySpec> = fc.oneof(
  fc.constant("timed" as const),
  fc.record({ random: fc.nat() }),
);

for (const backend of BACKENDS) {
  describe(`PV EOI under any arrivals and any schedule (${backend})`, () => {
    it("ends each interrupt once, in the order of its handlers' ends, and leaves nothing behind", () => {
      let flagged = 0;
      let registers = 0;
      fc.assert(
        fc.property(policy, arrivals, fc.constantFrom("v6.19", "2012"), (policy, arrivals, host) => {
          const { rig, order, byFlag } = play(backend, policy, arrivals, host as HostSemantics);
          const { lapic, pvEoi } = rig.vm.bootstrap;
          const ended = order.filter((entry) => entry.startsWith("-")).map((entry) =>
            parseInt(entry.slice(1), 16)
          );
          const eois = eventsOf(rig.vm, "kvm_eoi").map(({ args }) => args[1] | 0);
          assertEquals(eois, ended);
          assertEquals(eventsOf(rig.vm, "kvm_pv_eoi").map(({ args }) => args[1] | 0), byFlag);
          assertEquals(vectors(lapic, 0x100), []);
          assertEquals(vectors(lapic, 0x200), []);
          assertEquals([pvEoi.pending, rig.vm.memory.byte(FLAG)], [false, 0]);
          // Handlers nest by class: whoever begins inside another is above it.
          const open: number[] = [];
          for (const entry of order) {
            const vector = parseInt(entry.slice(1), 16);
            if (entry.startsWith("-")) {
              assertEquals(open.pop(), vector);
            } else {
              assert(open.every((outer) => vector >>> 4 > outer >>> 4), order.join(" "));
              open.push(vector);
            }
          }
          flagged += byFlag.length;
          registers += ended.length - byFlag.length;
        }),
        { numRuns: 120 },
      );
      assertGreater(flagged, 100);
      assertGreater(registers, 100);
    });

    it("withdraws what was armed for an entry that is cancelled", () => {
      let cancelled = 0;
      for (let random = 0; random < 40 && cancelled === 0; random++) {
        const all: Arrivals = Array.from({ length: 40 }, (_, i) => [0, VECTORS[i % VECTORS.length]] as const);
        cancelled += play(backend, { random }, all, "v6.19").cancelled;
      }
      assertGreater(cancelled, 0, "no schedule cancelled an entry");
    });

    it("needs fewer exits than the register, for the same arrivals", () => {
      const all: Arrivals = Array.from({ length: 30 }, () => [20_000, 0x51] as const);
      const { rig, byFlag } = play(backend, "timed", all, "v6.19");
      assertEquals(byFlag.length, 30);
      const writes = rig.vm.exits()[backend === "vmx" ? "MSR_WRITE" : "msr"];
      assert(writes < 10, `${writes} exits for MSRs`);
      assertEquals(count(rig.vm, "kvm_eoi"), 30);
    });
  });
}
