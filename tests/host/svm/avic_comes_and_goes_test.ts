import { assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { MSR_KVM_PV_EOI_EN, type X86Cpu } from "../../../abi/mod.ts";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import type { Acceleration, ApicvInhibit, PolicySpec, Tracepoint } from "../../../host/mod.ts";
import {
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  send,
  tryingRig,
  until,
  vectors,
  write,
} from "../../support/apic.ts";
import { count, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";
import { Script } from "../../support/threads.ts";

const MODES: readonly [Acceleration, ApicMode][] = [["avic", "xapic"], ["x2avic", "x2apic"], [
  "avic",
  "x2apic",
]];
const dest = (mode: ApicMode, id: number) => mode === "xapic" ? (id << 24) >>> 0 : id;

/** What happens while AVIC comes and goes. */
interface Load {
  readonly policy: PolicySpec;
  readonly at: (typeof MODES)[number];
  /** For how long AVIC is allowed and inhibited in turn, and why. */
  readonly toggles: readonly { readonly for: number; readonly reason: ApicvInhibit }[];
  readonly rounds: number;
  readonly work: number;
  readonly ipiv: boolean;
}

const EDGE = 0x41;
const LEVEL = 0x58;
const PIN = 5;
const PORT = 0x85;
const READY = DATA;
const DONE = DATA + 4;
const taken = (id: number) => DATA + 0x10 + 4 * id;

/** Every vCPU sends edges to the next, a device raises a line, and each interrupt must be taken, and ended, once. */
function play({ policy, at: [acceleration, mode], toggles, rounds, work, ipiv }: Load) {
  const vcpus = 3;
  const rig = tryingRig({
    vm: { backend: "svm", acceleration, vcpus, ipiv, haltPollNs: 0 },
    machine: { policy, pcpus: vcpus, limits: { steps: 400_000 } },
  });
  const { vm } = rig;
  const index = (cpu: X86Cpu) => vm.vcpus.findIndex(({ processor }) => processor.context === cpu);
  let lines = 0;
  rig.on(EDGE, function* (cpu) {
    yield cpu.work(work);
    yield cpu.xadd32(taken(index(cpu)), 1);
    yield* write(cpu, mode, 0x0b0, 0);
  });
  rig.on(LEVEL, function* (cpu) {
    lines++;
    yield cpu.out8(PORT, 0);
    yield* write(cpu, mode, 0x0b0, 0);
  });
  vm.pioBus.add({
    base: PORT,
    length: 1,
    read: () => undefined,
    write(_address, _bytes, up) {
      vm.routing.setLevel(PIN, up !== 0n);
      return true;
    },
  });
  function* story(cpu: X86Cpu): Asking<void> {
    const me = index(cpu);
    const next = (me + 1) % vcpus;
    yield cpu.sti();
    for (let round = 1; round <= rounds; round++) {
      yield cpu.cli(); // An xAPIC's ICR has two halves.
      yield* send(cpu, mode, { low: 0x4000 | EDGE, high: dest(mode, next) });
      yield cpu.sti();
      yield* until(cpu, taken(next), round);
      if (me === 0) yield cpu.out8(PORT, 1);
    }
    yield cpu.xadd32(DONE, 1);
  }
  rig.aps(function* (cpu) {
    yield* enter(cpu, mode);
    yield cpu.xadd32(READY, 1);
    yield* until(cpu, READY, vcpus - 1); // An APIC that is not enabled yet drops what comes.
    yield* story(cpu);
    for (;;) yield cpu.hlt();
  });
  rig.start(function* (cpu) {
    yield* enter(cpu, mode);
    yield* bringUp(cpu, mode, vcpus - 1);
    yield* until(cpu, READY, vcpus - 1);
    yield* route(cpu, PIN, { vector: LEVEL, level: true, destination: 1 });
    yield* story(cpu);
    yield* until(cpu, DONE, vcpus);
    while ((vm.ioapic.low[PIN] & 0x4000) !== 0) yield cpu.work(1000);
    yield cpu.cli();
  });
  new Script(vm.engine, "toggler", function* () {
    while (rig.word(READY) < vcpus - 1) yield 500;
    for (const { for: time, reason } of toggles) {
      setApicvInhibit(vm, reason, true);
      yield* passing(time);
      setApicvInhibit(vm, reason, false);
      yield* passing(time);
    }
  });
  const explores = policy !== "timed";
  function* passing(time: number): Generator<number, void, void> {
    if (!explores) yield time;
    else for (let i = 0; i < time % 64; i++) yield 1;
  }
  assertEquals(vm.machine.run(1e9).end, "finished");
  assertEquals(vm.vcpus.map(({ vcpuId }) => rig.word(taken(vcpuId))), [rounds, rounds, rounds]);
  assertEquals(lines, rounds);
  for (const { lapic } of vm.vcpus) {
    assertEquals([vectors(lapic, 0x200), vectors(lapic, 0x100)], [[], []]);
  }
  assertEquals([vm.ioapic.irr, vm.ioapic.low[PIN] & 0x4000], [0, 0]);
  return vm;
}

const load = (policy: fc.Arbitrary<PolicySpec>): fc.Arbitrary<Load> =>
  fc.record({
    policy,
    at: fc.constantFrom(...MODES),
    toggles: fc.array(
      fc.record({
        for: fc.oneof(fc.nat(3000), fc.nat(60_000)),
        reason: fc.constantFrom<ApicvInhibit>("BLOCKIRQ", "HYPERV", "PIT_REINJ"),
      }),
      { maxLength: 20 },
    ),
    rounds: fc.integer({ min: 1, max: 12 }),
    work: fc.nat(3000),
    ipiv: fc.boolean(),
  });

describe("every interrupt is delivered and ended once while AVIC comes and goes", () => {
  it("at any times", () => {
    let injected = 0;
    let delivered = 0;
    fc.assert(
      fc.property(load(fc.constant("timed" as const)), (plot) => {
        const vm = play(plot);
        injected += count(vm, "kvm_inj_virq");
        delivered += 4 * plot.rounds - count(vm, "kvm_inj_virq");
      }),
      { numRuns: 100, seed: 3 },
    );
    assertGreater(injected, 100);
    assertGreater(delivered, 100);
  });

  it("in any order of the host's threads", () => {
    fc.assert(
      fc.property(load(fc.nat(1_000_000).map((random) => ({ random }))), (plot) => void play(plot)),
      { numRuns: 100, seed: 4 },
    );
  });
});

describe("tracepoints while AVIC is in use", () => {
  /** Counts events of a guest that sends itself and another vCPU interrupts, after it has set up. */
  function counted(acceleration: Acceleration, mode: ApicMode): Record<string, number> {
    const rig = tracingRig({ vm: { backend: "svm", acceleration, vcpus: 2 } });
    const { vm } = rig;
    let before: Record<string, number> = {};
    let after: Record<string, number> = {};
    rig.on(0x41, function* (cpu) {
      yield cpu.xadd32(DATA + 4, 1);
      yield* write(cpu, mode, 0x0b0, 0);
    });
    rig.aps(function* (cpu) {
      yield* enter(cpu, mode);
      yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, DATA + 0x100 | 1);
      yield cpu.xadd32(DATA, 1);
      yield cpu.sti();
      yield cpu.pauseWhile(DATA + 8, 0);
    }).finish(function* (cpu) {
      yield* enter(cpu, mode);
      yield* bringUp(cpu, mode, 1);
      yield* until(cpu, DATA, 1);
      yield cpu.sti();
      before = vm.counters();
      for (let i = 0; i < 10; i++) {
        yield* send(cpu, mode, { low: 0x4041, high: dest(mode, i & 1) });
        yield* until(cpu, DATA + 4, i + 1);
        yield* write(cpu, mode, 0x080, 0x10);
      }
      after = vm.counters();
      yield cpu.store32(DATA + 8, 1);
    });
    return Object.fromEntries(
      Object.entries(after).map(([name, n]) => [name, n - (before[name] ?? 0)]).filter(([, n]) => n !== 0),
    );
  }
  const SILENT: readonly Tracepoint[] = [
    "kvm_exit",
    "kvm_entry",
    "kvm_apic",
    "kvm_apic_ipi",
    "kvm_apic_accept_irq",
    "kvm_inj_virq",
    "kvm_eoi",
    "kvm_msr",
  ];

  for (const [acceleration, mode] of MODES.slice(0, 2)) {
    it(`are all silent where all is accelerated, and all but PV EOI's fire where nothing is (${acceleration}, ${mode})`, () => {
      assertEquals(counted(acceleration, mode), {});
      const plain = counted("none", mode);
      for (const name of SILENT) {
        if (name === "kvm_msr" && mode === "xapic") continue;
        assertGreater(plain[name] ?? 0, 5, name);
      }
    });
  }

  it("of software's part fire for a guest in x2APIC mode without x2AVIC: what KVM injects is silent alone", () => {
    const hybrid = counted("avic", "x2apic");
    assertEquals(hybrid.kvm_inj_virq, undefined);
    assertEquals(hybrid.kvm_pv_eoi, undefined); // Never armed: KVM does not know what is pending.
    assertEquals(hybrid.kvm_apic_accept_irq, 10);
    assertEquals(hybrid.kvm_apicv_accept_irq, 10);
    assertEquals(hybrid.kvm_avic_doorbell, 5); // To the other vCPU; its own the sender finds at VMRUN.
    assertEquals(hybrid.kvm_eoi, 10);
  });
});
