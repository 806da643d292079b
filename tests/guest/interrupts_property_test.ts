import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { APIC_IRR, APIC_ISR, encodeMsi, type X86Cpu } from "../../abi/mod.ts";
import type { GuestSemantics, Kernel } from "../../guest/mod.ts";
import { BACKENDS, IoEventFd, MsiSource, type VmOptions } from "../../host/mod.ts";
import { vectors } from "../support/apic.ts";
import { APICS, KernelRig, type KernelRigOptions, WIDTHS } from "../support/kernels.ts";

/** Vectors of four priority classes. Those that are odd end their interrupt last, and let others in meanwhile. */
const VECTORS = [0x31, 0x40, 0x41, 0x50, 0x61, 0xd0] as const;
const DOORBELL = 0xc000;
const MASK = 0x300_0000;

/** What a program does next: a verb, a vector, and a number that it makes something of. */
type Act = readonly [
  verb: "self" | "one" | "mask" | "others" | "all" | "ring" | "work" | "cli" | "sti" | "cpuid",
  vector: number,
  n: number,
];

const act: fc.Arbitrary<Act> = fc.tuple(
  fc.constantFrom("self", "one", "mask", "others", "all", "ring", "work", "cli", "sti", "cpuid"),
  fc.constantFrom(...VECTORS),
  fc.nat(7),
);
const acts = fc.array(act, { maxLength: 30 });

const setting: fc.Arbitrary<KernelRigOptions> = fc.record({
  apic: fc.constantFrom(...APICS),
  bits: fc.constantFrom(...WIDTHS),
  guestSemantics: fc.constantFrom<GuestSemantics>("v6.19", "2021", "2018", "2012"),
  vm: fc.record<VmOptions>({
    backend: fc.constantFrom(...BACKENDS),
    hostSemantics: fc.constantFrom("v6.19", "2018", "2012"),
  }),
});

function* perform(
  cpu: X86Cpu,
  { apic, cpus }: Kernel,
  [verb, vector, n]: Act,
): Generator<number, void, void> {
  switch (verb) {
    case "self":
      return yield* apic.sendIpiSelf(cpu, vector);
    case "one":
      return yield* apic.sendIpi(cpu, n % cpus, vector);
    case "mask":
      yield cpu.store32(MASK, n & ((1 << cpus) - 1));
      return yield* apic.sendIpiMask(cpu, MASK, vector);
    case "others":
      return yield* apic.sendIpiAllButSelf(cpu, vector);
    case "all":
      return yield* apic.sendIpiAll(cpu, vector);
    case "ring":
      return yield cpu.out32(DOORBELL, ((n % cpus) << 8) | vector);
    case "work":
      return yield cpu.work(500 * n);
    case "cli":
      return yield cpu.cli();
    case "sti":
      return yield cpu.sti();
    case "cpuid":
      return yield cpu.cpuid(n);
  }
}

/**
 * A kernel whose boot processor does what `acts` say, in which handlers do some of it too. What happened on it, in
 * order: acts, and handlers with their processors.
 */
function play(acts: readonly Act[], options: KernelRigOptions): { rig: KernelRig; order: string[] } {
  const rig = new KernelRig(options);
  const { kernel, vm } = rig;
  const order: string[] = [];
  vm.pioBus.add(
    new IoEventFd(DOORBELL, 4, (value) => {
      vm.signalMsi(
        encodeMsi({ vector: Number(value & 0xffn), destination: Number((value >> 8n) & 0xffn) }, "xapic"),
      );
    }),
  );
  const note = function* (cpu: X86Cpu, vector: number): Generator<number, void, void> {
    yield cpu.load32(cpu.gsBase);
    order.push(`${vector.toString(16)} on ${cpu.eax}`);
  };
  for (const vector of VECTORS) {
    if (vector % 2 === 0) {
      kernel.irq(vector, (cpu) => note(cpu, vector));
      continue;
    }
    kernel.gate(vector, function* nesting(cpu) {
      yield* note(cpu, vector);
      yield cpu.sti();
      // It asks for a lower one, and for a higher one that comes at once.
      if (order.length < 100) {
        yield* kernel.apic.sendIpiSelf(cpu, 0x40);
        yield* kernel.apic.sendIpiSelf(cpu, 0xd0);
      }
      yield cpu.pause();
      order.push("within");
      yield cpu.cli();
      yield* kernel.ackApicIrq(cpu);
    });
  }
  rig.run(function* (cpu) {
    rig.mark();
    yield* script(cpu, kernel, acts, order);
  });
  return { rig, order };
}

function* script(
  cpu: X86Cpu,
  kernel: Kernel,
  acts: readonly Act[],
  order: string[],
): Generator<number, void, void> {
  for (const [place, next] of acts.entries()) {
    order.push(`act ${place}`);
    yield* perform(cpu, kernel, next);
  }
  yield cpu.sti();
  yield cpu.work(2_000_000);
}

/** Whether everything was handled once and ended once, and nothing is left. */
function assertBalanced(rig: KernelRig, order: readonly string[]): void {
  const handled = order.filter((entry) => / on /.test(entry)).sort();
  const ended = rig.seen("kvm_eoi").map(({ args }) => `${args[1].toString(16)} on ${args[0]}`).sort();
  assertEquals(ended, handled);
  assertEquals(rig.seen("kvm_inj_virq").filter(({ args }) => args[1] === 0).length, handled.length);
  for (const { lapic, pvEoi } of rig.vm.vcpus) {
    assertEquals([vectors(lapic, APIC_IRR), vectors(lapic, APIC_ISR), pvEoi.pending], [[], [], false]);
  }
  // Nothing was lost: whoever was offered a vector has handled it, and nobody handled what was not offered.
  const offered = rig.seen("kvm_apic_accept_irq").map(({ args }) => `${args[3].toString(16)} on ${args[0]}`);
  assertEquals([...new Set(handled)], [...new Set(offered)].sort());
}

describe("every interrupt is handled once and ended once", () => {
  it("under any mix of IPIs and device interrupts, on four processors", () => {
    fc.assert(
      fc.property(acts, setting, fc.boolean(), (acts, setting, pvEoi) => {
        const { rig, order } = play(acts, { cpus: 4, ...setting, disable: pvEoi ? [] : ["pv-eoi"] });
        assertBalanced(rig, order);
        if (!pvEoi) assertEquals(rig.seen("kvm_pv_eoi").length, 0);
      }),
      { numRuns: 60 },
    );
  });

  it("with a device that interrupts at times of its own", () => {
    fc.assert(
      fc.property(
        setting,
        fc.boolean(),
        fc.array(fc.nat(8000), { minLength: 1, maxLength: 40 }),
        (setting, pvEoi, pauses) => {
          const rig = new KernelRig({ cpus: 2, ...setting, disable: pvEoi ? [] : ["pv-eoi"] });
          const order: string[] = [];
          rig.kernel.irq(0x41, function* device(cpu) {
            yield cpu.load32(cpu.gsBase);
            order.push(`41 on ${cpu.eax}`);
            yield cpu.work(200);
          });
          rig.run(function* (cpu) {
            rig.mark();
            new MsiSource(rig.vm, {
              message: encodeMsi({ vector: 0x41, destination: 0 }, "xapic"),
              count: pauses.length,
              start: rig.vm.engine.now + 1000,
              interval: (n) => pauses[n],
            });
            yield cpu.work(1_000_000);
          });
          assertBalanced(rig, order);
        },
      ),
      { numRuns: 40 },
    );
  });

  it("under random schedules", () => {
    fc.assert(
      fc.property(acts, setting, fc.nat(), (acts, setting, seed) => {
        const { rig, order } = play(acts, {
          cpus: 2,
          ...setting,
          machine: { policy: { random: seed }, limits: { steps: 1e6 } },
        });
        // The program does not wait for the other processor here; the run goes on until all is quiet.
        assertBalanced(rig, order);
      }),
      { numRuns: 40 },
    );
  });
});

describe("where interrupts arrive by the guest's own progress, PV EOI changes no order", () => {
  it("of handlers, nor of what the program does between them", () => {
    fc.assert(
      fc.property(acts, setting, (acts, setting) => {
        const plain = play(acts, { cpus: 1, ...setting, disable: ["pv-eoi"] });
        const pv = play(acts, { cpus: 1, ...setting });
        assertEquals(pv.order, plain.order);
        assertEquals(
          pv.rig.seen("kvm_eoi").map(({ args }) => args[1]),
          plain.rig.seen("kvm_eoi").map(({ args }) => args[1]),
        );
        assertEquals(plain.rig.seen("kvm_pv_eoi").length, 0);
      }),
      { numRuns: 80 },
    );
  });

  it("and there is something to compare: such programs do take interrupts that are ended by the flag", () => {
    const acts: Act[] = [["self", 0x40, 0], ["ring", 0x61, 0], ["cli", 0x31, 0], ["self", 0x50, 0]];
    const { rig, order } = play(acts, { cpus: 1 });
    assertEquals(rig.seen("kvm_pv_eoi").length > 2, true);
    assertEquals(order.filter((entry) => / on /.test(entry)), [
      "40 on 0",
      "61 on 0",
      "d0 on 0", // Asked for by 61, and above it;
      "40 on 0", // asked for by 61, and below it.
      "50 on 0",
    ]);
  });
});
