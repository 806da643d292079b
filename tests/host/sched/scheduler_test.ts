import { assertEquals, assertGreater, assertGreaterOrEqual, assertLess, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { HIGH, NMI_VECTOR, X2APIC_EOI, X2APIC_ICR, X2APIC_TPR, type X86Cpu } from "../../../abi/mod.ts";
import {
  BACKENDS,
  Machine,
  PCPU_LIMIT,
  SKYLAKE_VMX,
  Timer,
  TP,
  type TraceRecord,
  type Vcpu,
  type VmOptions,
} from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig, startAps } from "../../support/guests.ts";
import { play, plots } from "../../support/random_guests.ts";

const SLICE = 1_000_000;
const EXTERNAL_INTERRUPT = 1;
const { costs } = SKYLAKE_VMX;

/** EDX:EAX after RDTSC. */
const tsc = (cpu: X86Cpu) => cpu.edx * HIGH + cpu.eax;

/** When each vCPU was in guest mode: from an entry to the exit behind it. */
function* guestTime(
  records: Iterable<TraceRecord>,
): Generator<readonly [vcpu: number, from: number, to: number]> {
  const entered = new Map<number, number>();
  for (const { event, vcpu, time } of records) {
    if (event === TP.kvm_entry) entered.set(vcpu, time);
    if (event === TP.kvm_exit) yield [vcpu, entered.get(vcpu)!, time];
  }
}

/** A processor that says that it is up, and sleeps but for its interrupts. */
function* sleeper(cpu: X86Cpu) {
  yield* enableX2apic(cpu);
  yield cpu.sti();
  yield cpu.store32(DATA, 1);
  for (;;) yield cpu.hlt();
}

/** A rig whose vCPUs all come up, compute for `cycles`, and note when they are done. */
function computing(
  vcpus: number,
  pcpus: number,
  cycles: number,
  vm: VmOptions = {},
): { rig: Rig; done: number[] } {
  const rig = new Rig({ machine: { pcpus, timeSlice: SLICE }, vm: { vcpus, trace: 1 << 16, ...vm } });
  const done: number[] = [];
  const ready = DATA + 0x100;
  function* compute(cpu: X86Cpu) {
    // Everybody begins when all are up.
    yield cpu.xadd32(ready, 1);
    for (let up = cpu.eax + 1; up < vcpus; up = cpu.eax) {
      yield cpu.pauseWhile(ready, up), yield cpu.load32(ready);
    }
    yield cpu.work(cycles);
    yield cpu.rdtsc();
    done.push(tsc(cpu));
  }
  rig.aps(function* ap(cpu) {
    yield* enableX2apic(cpu);
    yield* compute(cpu);
    yield cpu.cli();
    for (;;) yield cpu.hlt();
  }).finish(function* bsp(cpu) {
    yield* enableX2apic(cpu);
    if (vcpus > 1) yield* startAps(cpu, vcpus - 1);
    yield* compute(cpu);
  }, 1e12);
  return { rig, done };
}

describe("the host's scheduler", () => {
  it("gives each vCPU a CPU of its own where there are enough: nobody is ever preempted", () => {
    const { rig, done } = computing(4, 4, 10 * SLICE);
    assertEquals(done.length, 4);
    assertLess(Math.max(...done) - Math.min(...done), SLICE / 10);
    assertEquals(rig.vm.machine.scheduler.waiting, []);
  });

  it("shares CPUs among more vCPUs: everybody's work takes V/P times as long, and switching costs", () => {
    for (const [vcpus, pcpus] of [[2, 1], [4, 2], [5, 1]]) {
      const work = 20 * SLICE;
      const { rig, done } = computing(vcpus, pcpus, work);
      const elapsed = Math.max(...done);
      assertEquals(done.length, vcpus);
      assertGreater(elapsed, work * vcpus / pcpus);
      assertLess(elapsed, 1.1 * work * vcpus / pcpus);
      // Round robin: all of them come to their end in the last round.
      assertGreater(Math.min(...done), elapsed - (vcpus / pcpus + 1) * (SLICE + 20_000));
      const exits = rig.vm.exits().EXTERNAL_INTERRUPT;
      assertGreaterOrEqual(exits, (vcpus / pcpus) * work / SLICE - 2, "one at the end of each slice");
    }
  });

  it("never runs more vCPUs in guest mode at a time than there are CPUs", () => {
    const pcpus = fc.integer({ min: 1, max: 3 });
    const slice = fc.constantFrom(10_000, 100_000);
    fc.assert(
      fc.property(plots, pcpus, slice, fc.constantFrom(...BACKENDS), (plot, pcpus, timeSlice, backend) => {
        const { rig, end } = play(plot, { machine: { pcpus, timeSlice }, vm: { backend } });
        assertEquals(end, "finished");
        const edges: [time: number, change: number][] = [];
        for (const [, from, to] of guestTime(rig.vm.tracer.records())) edges.push([from, 1], [to, -1]);
        edges.sort(([a, x], [b, y]) => a - b || x - y);
        let running = 0;
        for (const [, change] of edges) {
          running += change;
          assertLess(running, pcpus + 1);
        }
      }),
      { numRuns: 60 },
    );
  });

  it("never turns a vCPU's clock back", () => {
    const options = fc.record({
      pcpus: fc.integer({ min: 1, max: 4 }),
      haltPollNs: fc.constantFrom(0, 200_000),
      timeSlice: fc.constantFrom(10_000, 1_000_000),
    });
    fc.assert(
      fc.property(plots, options, (plot, { pcpus, haltPollNs, timeSlice }) => {
        const { rig } = play(plot, { machine: { pcpus, timeSlice }, vm: { haltPollNs } });
        const last: number[] = [];
        for (const { vcpu, time } of rig.vm.tracer.records()) {
          if (vcpu < 0) continue;
          assertGreaterOrEqual(time, last[vcpu] ?? 0);
          last[vcpu] = time;
        }
      }),
      { numRuns: 60 },
    );
  });

  it("lets whoever waits run when another halts, long before its slice is over", () => {
    const rig = new Rig({ machine: { pcpus: 1, timeSlice: 1e9 }, vm: { vcpus: 2 } });
    let ran = 0;
    let halted = 0;
    rig.on(0x40, function* (cpu) {
      yield cpu.wrmsr(X2APIC_EOI, 0);
    }).aps(function* (cpu) {
      yield* enableX2apic(cpu);
      yield cpu.rdtsc();
      ran = tsc(cpu);
      yield cpu.wrmsr(X2APIC_ICR, 0x4040, 0);
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    }).finish(function* (cpu) {
      yield* enableX2apic(cpu);
      yield cpu.wrmsr(X2APIC_ICR, 0xc_4500);
      yield cpu.wrmsr(X2APIC_ICR, 0xc_4608);
      yield cpu.work(100_000);
      yield cpu.rdtsc();
      halted = tsc(cpu);
      yield cpu.sti();
      yield cpu.hlt(); // Until the other has sent its interrupt.
    });
    assertGreater(ran, halted);
    assertLess(ran, halted + 50_000);
  });

  it("keeps a vCPU that was woken waiting while the only CPU is busy, for at most one slice", () => {
    const rig = new Rig({ machine: { pcpus: 1, timeSlice: SLICE }, vm: { vcpus: 2, haltPollNs: 0 } });
    let sent = 0;
    let handled = 0;
    rig.on(0x40, function* (cpu) {
      yield cpu.rdtsc();
      handled = tsc(cpu);
      yield cpu.wrmsr(X2APIC_EOI, 0);
    }).aps(sleeper).finish(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      yield cpu.pauseWhile(DATA, 0);
      yield cpu.work(5 * SLICE);
      yield cpu.rdtsc();
      sent = tsc(cpu);
      yield cpu.wrmsr(X2APIC_ICR, 0x4040, 1);
      yield cpu.work(5 * SLICE);
    });
    assertGreater(handled - sent, SLICE, "the sender's slice begins when somebody waits");
    assertLess(handled - sent, SLICE + 50_000);
  });

  it("refuses machines that cannot be", () => {
    for (const pcpus of [0, -1, 1.5, PCPU_LIMIT + 1]) {
      assertThrows(() => new Machine({ pcpus }), RangeError, `a machine of ${pcpus} physical CPUs`);
    }
    for (const timeSlice of [0, -1, 0.5, NaN]) {
      assertThrows(() => new Machine({ timeSlice }), RangeError, `a time slice of ${timeSlice} cycles`);
    }
  });
});

describe("a physical interrupt", () => {
  /** vCPU 1 computes and then halts, while a kick for it is under way. */
  function kicked(cycles: number, interruptible: boolean, backend: (typeof BACKENDS)[number]) {
    const rig = new Rig({ machine: { pcpus: 2 }, vm: { backend, vcpus: 2, haltPollNs: 0, trace: 1000 } });
    rig.on(0x40, function* (cpu) {
      yield cpu.wrmsr(X2APIC_EOI, 0);
      yield cpu.store32(DATA + 4, 1);
    }).on(NMI_VECTOR, function* (cpu) {
      yield cpu.store32(DATA + 4, 1);
    }).aps(function* (cpu) {
      yield* enableX2apic(cpu);
      yield cpu.sti();
      if (!interruptible) yield cpu.wrmsr(X2APIC_TPR, 0x40);
      yield cpu.store32(DATA + 8, 1);
      yield cpu.pauseWhile(DATA, 0);
      yield cpu.work(cycles);
      yield cpu.hlt();
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    }).finish(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      yield cpu.pauseWhile(DATA + 8, 0);
      yield cpu.work(20_000);
      yield cpu.store32(DATA, 1);
      yield cpu.wrmsr(X2APIC_ICR, 0x4040, 1);
      yield cpu.work(200_000);
      if (!interruptible) yield cpu.wrmsr(X2APIC_ICR, 0x4400, 1); // An NMI wakes it.
      yield cpu.pauseWhile(DATA + 4, 0);
    });
    const records = [...rig.vm.tracer.records()];
    const accept = records.find(({ event, args }) => event === TP.kvm_apic_accept_irq && args[3] === 0x40)!;
    const price = (name: "accept" | "kick" | "ipiLatency") => costs[name].cycles;
    const arrival = accept.time + price("accept") + price("kick") + price("ipiLatency");
    return { records: records.filter(({ vcpu }) => vcpu === 1), arrival, target: rig.vm.vcpus[1] };
  }

  const isKick = (reason: number, { backend }: Vcpu) =>
    reason === EXTERNAL_INTERRUPT && backend.name === "vmx" || backend.exitName(reason) === "interrupt";

  for (const backend of BACKENDS) {
    it(`makes a vCPU in guest mode exit, and costs one in the host nothing (${backend})`, () => {
      const exits = new Set<number>();
      for (let cycles = 0; cycles <= 3000; cycles += 100) {
        const { records, arrival, target } = kicked(cycles, true, backend);
        let entered = 0;
        let kicks = 0;
        for (const { event, time, args } of records) {
          if (event === TP.kvm_entry) entered = time;
          if (event !== TP.kvm_exit || !isKick(args[0], target)) continue;
          kicks++;
          assertGreaterOrEqual(arrival, entered, `with ${cycles} cycles of work`);
        }
        exits.add(kicks);
      }
      assertEquals(exits, new Set([0, 1]));
    });

    it(`that finds its CPU idle does not meet the vCPU that runs there next (${backend})`, () => {
      for (let cycles = 0; cycles <= 3000; cycles += 100) {
        const { records, arrival, target } = kicked(cycles, false, backend);
        let entered = 0;
        for (const { event, time, args } of records) {
          if (event === TP.kvm_entry) entered = time;
          if (event === TP.kvm_exit && isKick(args[0], target)) {
            assertGreaterOrEqual(arrival, entered, `with ${cycles} cycles of work`);
          }
        }
      }
    });
  }

  it("that was under way to the CPU which a vCPU has left does not follow it to another", () => {
    // vCPU 1 halts with a kick under way; vCPU 2 takes its CPU; an NMI wakes vCPU 1, which runs where vCPU 0 did.
    for (let cycles = 0; cycles <= 3000; cycles += 100) {
      const rig = new Rig({ machine: { pcpus: 2 }, vm: { vcpus: 3, haltPollNs: 0 } });
      rig.on(0x41, function* (cpu) {
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).on(NMI_VECTOR, function* (cpu) {
        yield cpu.work(1000);
        yield cpu.wrmsr(X2APIC_ICR, 0x4041, 0);
      }).aps(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.rdmsr(0x802);
        if (cpu.eax === 2) yield cpu.work(1e7);
        yield cpu.wrmsr(X2APIC_TPR, 0x40);
        yield cpu.sti();
        yield cpu.store32(DATA + 8, 1);
        yield cpu.pauseWhile(DATA, 0);
        yield cpu.work(cycles);
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.wrmsr(X2APIC_ICR, 0x4608, 1);
        yield cpu.pauseWhile(DATA + 8, 0);
        yield cpu.work(20_000);
        yield cpu.store32(DATA, 1);
        yield cpu.wrmsr(X2APIC_ICR, 0x4040, 1);
        yield cpu.work(100_000);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 2);
        yield cpu.wrmsr(X2APIC_ICR, 0x4608, 2);
        yield cpu.work(100_000);
        yield cpu.wrmsr(X2APIC_ICR, 0x4400, 1);
        yield cpu.sti();
        yield cpu.hlt();
      });
      const { exitCounts, lastPcpu, pcpu } = rig.vm.vcpus[1];
      assertEquals((pcpu ?? lastPcpu)?.id, 0, "it has moved");
      assertLess(exitCounts.get(EXTERNAL_INTERRUPT) ?? 0, 2, `with ${cycles} cycles of work`);
    }
  });
});

describe("halt polling", () => {
  /** vCPU 1 halts again and again; a device interrupts it `gap` cycles after each halt. */
  function halting(gap: number, machine: { pcpus: number }, vcpus: number) {
    const rig = new Rig({ machine: { timeSlice: SLICE, ...machine }, vm: { vcpus } });
    const timer = new Timer(rig.vm.engine, "device", () => {
      rig.vm.signalMsi({ addressHigh: 0, addressLow: 0xfee0_0000, data: 0x40 });
    });
    rig.on(0x40, function* (cpu) {
      yield cpu.wrmsr(X2APIC_EOI, 0);
    });
    return { rig, timer, arm: () => timer.arm(rig.vm.engine.now + gap) };
  }

  it("sees an event that comes soon without giving the CPU up, once its window has grown", () => {
    const { rig, arm } = halting(15_000, { pcpus: 1 }, 1);
    rig.finish(function* (cpu) {
      yield* enableX2apic(cpu);
      for (let i = 0; i < 10; i++) {
        arm();
        yield cpu.sti();
        yield cpu.hlt();
      }
    });
    const { halt_attempted_poll, halt_successful_poll, halt_wakeup } = rig.vm.bootstrap.stats;
    assertGreater(halt_successful_poll, 7);
    assertGreaterOrEqual(halt_attempted_poll, halt_successful_poll);
    assertLess(halt_wakeup, 3);
  });

  it("ends as soon as somebody else could run", () => {
    // One CPU: vCPU 0 has learnt to poll for up to 200 us, and polls when a timer wakes vCPU 1.
    const { rig, arm } = halting(15_000, { pcpus: 1 }, 2);
    const { vm } = rig;
    let polled = 0;
    let ran = 0;
    rig.on(0x41, function* (cpu) {
      yield cpu.rdtsc();
      ran = tsc(cpu);
      yield cpu.wrmsr(X2APIC_EOI, 0);
    }).aps(sleeper).finish(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      for (let up = 0; up === 0; up = cpu.eax) yield cpu.pause(), yield cpu.load32(DATA);
      for (let i = 0; i < 10; i++) {
        arm();
        yield cpu.sti();
        yield cpu.hlt();
      }
      vm.bootstrap.haltPolling.windowNs = 200_000; // As after many longer halts.
      yield cpu.rdtsc();
      polled = tsc(cpu);
      new Timer(vm.engine, "other", () => {
        vm.signalMsi({ addressHigh: 0, addressLow: 0xfee0_1000, data: 0x41 });
      }).arm(polled + 20_000);
      new Timer(vm.engine, "own", () => {
        vm.signalMsi({ addressHigh: 0, addressLow: 0xfee0_0000, data: 0x40 });
      }).arm(polled + 400_000);
      yield cpu.sti();
      yield cpu.hlt();
    });
    assertGreater(ran, polled + 20_000);
    assertLess(ran, polled + 50_000, "not at the end of the window, which is 500,000 cycles");
  });
});
