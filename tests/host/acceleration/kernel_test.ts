import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { APIC_IRR, APIC_ISR, encodeMsi, type X86Cpu } from "../../../abi/mod.ts";
import type { Kernel } from "../../../guest/mod.ts";
import { type HostSemantics, IoEventFd } from "../../../host/mod.ts";
import { HOST_SEMANTICS } from "../../../host/semantics.ts";
import { type Asking, vectors } from "../../support/apic.ts";
import { APICS, KernelRig, type KernelRigOptions, WIDTHS } from "../../support/kernels.ts";
import { LEVELS, nameOf } from "../../support/levels.ts";

const CPUS = 4;
const VECTORS = [0x31, 0x40, 0x41, 0x50, 0x61, 0xd0] as const;
const DOORBELL = 0xc000;
const MASK = 0x300_0000;
/** Longer than an interrupt and its handlers take, whoever shares a CPU. */
const SETTLES = 300_000;

/** What the boot processor does next: a verb, a vector, and a number that it makes something of. */
type Act = readonly [
  verb: "self" | "one" | "mask" | "others" | "all" | "ring" | "cli" | "sti",
  vector: number,
  n: number,
];

const anyAct: fc.Arbitrary<Act> = fc.tuple(
  fc.constantFrom("self", "one", "mask", "others", "all", "ring", "cli", "sti"),
  fc.constantFrom(...VECTORS),
  fc.nat(15),
);

const anySetting = fc.record({
  apic: fc.constantFrom(...APICS),
  bits: fc.constantFrom(...WIDTHS),
  disable: fc.subarray(["pv-eoi", "pv-ipi"]),
  hostSemantics: fc.constantFrom(...Object.keys(HOST_SEMANTICS) as HostSemantics[]),
  haltPollNs: fc.constantFrom(0, 200_000),
  pcpus: fc.integer({ min: 2, max: CPUS }),
});

function* perform(cpu: X86Cpu, { apic }: Kernel, [verb, vector, n]: Act): Asking<void> {
  switch (verb) {
    case "self":
      return yield* apic.sendIpiSelf(cpu, vector);
    case "one":
      return yield* apic.sendIpi(cpu, n % CPUS, vector);
    case "mask":
      yield cpu.store32(MASK, n);
      return yield* apic.sendIpiMask(cpu, MASK, vector);
    case "others":
      return yield* apic.sendIpiAllButSelf(cpu, vector);
    case "all":
      return yield* apic.sendIpiAll(cpu, vector);
    case "ring":
      return yield cpu.out32(DOORBELL, ((n % CPUS) << 8) | vector);
    case "cli":
      return yield cpu.cli();
    case "sti":
      return yield cpu.sti();
  }
}

/** Runs a kernel, one act after another. What each of its processors did, in order. */
function play(acts: readonly Act[], options: KernelRigOptions): string[][] {
  const rig = new KernelRig({ cpus: CPUS, ...options });
  const { kernel, vm } = rig;
  const orders: string[][] = vm.vcpus.map(() => []);
  vm.pioBus.add(
    new IoEventFd(DOORBELL, 4, (value) => {
      const word = Number(value);
      vm.signalMsi(encodeMsi({ vector: word & 0xff, destination: word >>> 8 }, "xapic"));
    }),
  );
  for (const vector of VECTORS) {
    kernel.irq(vector, function* handler(cpu) {
      yield cpu.load32(cpu.gsBase);
      orders[cpu.eax].push(vector.toString(16));
    });
  }
  rig.run(function* (cpu) {
    for (const act of acts) {
      orders[0].push(act[0]);
      yield* perform(cpu, kernel, act);
      yield cpu.work(SETTLES);
    }
    yield cpu.sti();
    yield cpu.work(CPUS * SETTLES);
  });
  for (const { lapic } of vm.vcpus) {
    assertEquals([vectors(lapic, APIC_IRR), vectors(lapic, APIC_ISR)], [[], []]);
  }
  return orders;
}

describe("the guest kernel takes the same interrupts in the same order", () => {
  it("on every processor, on a host of any year, whatever paravirtual features it uses", () => {
    fc.assert(
      fc.property(fc.array(anyAct, { maxLength: 25 }), anySetting, (acts, setting) => {
        const { hostSemantics, haltPollNs, pcpus, ...options } = setting;
        const [first, ...others] = LEVELS.map((level) =>
          play(acts, {
            ...options,
            machine: { pcpus, timeSlice: 100_000 },
            vm: { ...level, hostSemantics, haltPollNs },
          })
        );
        for (const [i, other] of others.entries()) assertEquals(other, first, nameOf(LEVELS[i + 1]));
      }),
      { numRuns: 12 },
    );
  });
});
