import { assert, assertEquals, assertGreater, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { type GuestFunction, NMI_VECTOR, type X86Cpu } from "../../../abi/mod.ts";
import type { Acceleration, MachineOptions, Quirk } from "../../../host/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  send,
  tryingRig,
  until,
  write,
} from "../../support/apic.ts";
import { count, eventsOf, exits, mark } from "../../support/events.ts";
import { DATA, type Rig } from "../../support/guests.ts";
import { descriptor, pir, shown } from "../../support/posted.ts";

const HANDLED = DATA;
const READY = DATA + 4;
const GO = DATA + 8;
const VECTOR = 0x41;

/** A sender, vCPU 0, and a target, vCPU 1, whose handler says that it has run. */
function rigOf(mode: ApicMode, acceleration: Acceleration, machine: MachineOptions = {}): Rig {
  return tryingRig({ machine: { pcpus: 4, ...machine }, vm: { vcpus: 2, acceleration, trace: 1 << 14 } })
    .on(VECTOR, function* (cpu) {
      yield cpu.xadd32(HANDLED, 1);
      yield* write(cpu, mode, 0x0b0, 0);
    });
}

function to(mode: ApicMode, id: number) {
  return { low: VECTOR, high: mode === "xapic" ? id << 24 : id };
}

/** Runs both: the target up to where it is ready, and then the sender. */
function play(rig: Rig, mode: ApicMode, target: GuestFunction, sender: GuestFunction, deadline = 1e9) {
  rig.aps(function* (cpu) {
    yield* enter(cpu, mode);
    yield* target(cpu);
    yield cpu.cli();
    for (;;) yield cpu.hlt();
  });
  return rig.run(function* (cpu) {
    yield* enter(cpu, mode);
    yield* bringUp(cpu, mode, 1);
    yield* until(cpu, READY, 1);
    yield* sender(cpu);
  }, deadline).end;
}

for (const mode of APIC_MODES) {
  describe(`a virtualized IPI (${mode})`, () => {
    it("to a vCPU in guest mode: nobody exits, and no tracepoint of KVM's fires", () => {
      const rig = rigOf(mode, "ipiv");
      const seen: unknown[] = [];
      const end = play(rig, mode, function* (cpu) {
        yield cpu.sti();
        yield cpu.store32(READY, 1);
        yield* until(cpu, HANDLED, 3);
      }, function* (cpu) {
        yield cpu.work(100_000); // The target spins by now.
        const from = mark(rig.vm);
        for (let i = 1; i <= 3; i++) {
          yield* send(cpu, mode, to(mode, 1));
          yield* until(cpu, HANDLED, i);
          yield cpu.work(1_000);
        }
        seen.push(...[...rig.vm.tracer.records()].slice(from));
      });
      assertEquals([end, seen.filter((record) => (record as { vcpu: number }).vcpu === 0)], ["finished", []]);
      assertEquals(rig.vm.vcpus[1].stats.irq_exits, 0);
      assertEquals(
        shown(rig.vm.vcpus[1]).replace(/ ndst=\d/, ""),
        "SN nv=f2",
        "it sleeps with IF=0 in the end",
      );
    });

    it("to a vCPU that has interrupts disabled waits in its IRR, without an exit, until it enables them", () => {
      const rig = rigOf(mode, "ipiv");
      const end = play(rig, mode, function* (cpu) {
        yield cpu.store32(READY, 1);
        yield* until(cpu, GO, 1);
        yield cpu.load32(HANDLED);
        assertEquals(cpu.eax, 0);
        assertEquals(pir(rig.vm.vcpus[1]), [], "hardware has harvested it");
        const from = mark(rig.vm);
        yield cpu.sti();
        yield cpu.work(1);
        yield cpu.load32(HANDLED);
        assertEquals(cpu.eax, 1);
        assertEquals(eventsOf(rig.vm, "kvm_exit", from).filter(({ vcpu }) => vcpu === 1), []);
      }, function* (cpu) {
        yield* send(cpu, mode, to(mode, 1));
        yield cpu.work(50_000);
        yield cpu.store32(GO, 1);
      });
      assertEquals([end, rig.word(HANDLED)], ["finished", 1]);
    });

    it("to a vCPU that sleeps with interrupts enabled wakes it: the sender does not exit for it", () => {
      const rig = rigOf(mode, "ipiv");
      const end = play(rig, mode, sleeping, function* (cpu) {
        yield cpu.work(1_000_000); // Longer than the target polls.
        assertEquals(descriptor(rig.vm.vcpus[1]).nv, 0xf1);
        const from = mark(rig.vm);
        yield* send(cpu, mode, to(mode, 1));
        yield* until(cpu, HANDLED, 1);
        assertEquals(exits(rig.vm, from), [], "the target was in the host, and entered the guest alone");
        assertEquals(count(rig.vm, "kvm_apicv_accept_irq"), 0);
      });
      assertEquals([end, rig.vm.vcpus[1].stats.halt_wakeup], ["finished", 2]); // Once by the start-up IPI.
    });

    it("to a vCPU that sleeps with interrupts disabled wakes nobody; an NMI does, and then it is there", () => {
      const rig = rigOf(mode, "ipiv").on(NMI_VECTOR, function* (cpu) {
        yield cpu.store32(GO, 1);
      });
      const end = play(rig, mode, function* (cpu) {
        yield cpu.cli();
        yield cpu.store32(READY, 1);
        yield cpu.hlt();
        yield cpu.sti();
        yield* until(cpu, HANDLED, 1);
      }, function* (cpu) {
        const [, target] = rig.vm.vcpus;
        yield cpu.work(1_000_000);
        const woken = target.stats.halt_wakeup;
        yield* send(cpu, mode, to(mode, 1));
        yield cpu.work(100_000);
        assertEquals([target.stats.halt_wakeup - woken, target.asleep], [0, true]);
        assertEquals(shown(target).replace(/ ndst=\d/, ""), "41 SN nv=f2");
        yield* send(cpu, mode, { low: 0x400, high: to(mode, 1).high });
        yield* until(cpu, HANDLED, 1);
      });
      assertEquals([end, rig.word(GO)], ["finished", 1]);
    });

    it("to itself, without a shorthand, comes as a notification, as late as any", () => {
      const rig = rigOf(mode, "ipiv");
      const { vm } = rig;
      let sent = 0;
      let took = 0;
      rig.on(VECTOR, function* (cpu) {
        took = vm.bootstrap.time;
        yield* write(cpu, mode, 0x0b0, 0);
      }).finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        const from = mark(vm);
        if (mode === "xapic") yield* write(cpu, mode, 0x310, 0);
        yield* write(cpu, mode, 0x300, VECTOR);
        sent = vm.bootstrap.time;
        assertEquals(shown(vm.bootstrap), "41 ON nv=f2 ndst=0", "its own descriptor");
        assertEquals(vm.bootstrap.pcpu!.notifiedAt, sent + vm.cost.ipiLatency);
        yield cpu.work(10_000);
        assertEquals(exits(vm, from), []);
      });
      const { ipiLatency, postedProcessing, virtualInterrupt, eventDelivery } = vm.cost;
      assertEquals(took - sent, ipiLatency + postedProcessing + virtualInterrupt + eventDelivery);
    });
  });
}

function* sleeping(cpu: X86Cpu): Asking<void> {
  yield cpu.cli();
  yield cpu.store32(READY, 1);
  yield cpu.sti();
  yield cpu.hlt();
}

describe("a target without a CPU", () => {
  /** One CPU: the sender posts, and gives it up only at the end of its slice; the target runs on, and spins. */
  function shareOneCpu(acceleration: Acceleration, quirks: readonly Quirk[]) {
    const rig = rigOf("x2apic", acceleration, { pcpus: 1, timeSlice: 100_000, quirks });
    let posted = "";
    const end = play(rig, "x2apic", function* (cpu) {
      yield cpu.sti();
      yield cpu.store32(READY, 1);
      yield* until(cpu, HANDLED, 1);
    }, function* (cpu) {
      yield* send(cpu, "x2apic", to("x2apic", 1));
      posted = shown(rig.vm.vcpus[1]);
      yield* until(cpu, HANDLED, 1);
    }, 1e7);
    return { rig, end, posted };
  }

  it("is posted to in silence, and finds the interrupt when it is put on a CPU again", () => {
    const { end, posted, rig } = shareOneCpu("ipiv", []);
    assertEquals([end, posted], ["finished", "41 SN nv=f2 ndst=0"]);
    assertEquals(rig.vm.machine.scheduler.pcpus.length, 1);
  });

  it("never finds it where KVM does not look into PIR after SN (quirk preempted-post-unnoticed)", () => {
    const { end, posted, rig } = shareOneCpu("ipiv", ["preempted-post-unnoticed"]);
    assertEquals([end, posted, rig.word(HANDLED)], ["deadline", "41 SN nv=f2 ndst=0", 0]);
    assertGreater(rig.vm.vcpus[1].stats.irq_exits, 10, "it has run, and exited, often enough");
    assertEquals(pir(rig.vm.vcpus[1]), [VECTOR]);
  });

  it("is found by KVM's own posts with that quirk as well: they set ON", () => {
    const { end, posted } = shareOneCpu("apicv", ["preempted-post-unnoticed"]);
    assertEquals([end, posted], ["finished", "41 ON nv=f2 ndst=0"]);
  });
});

describe("a vCPU that sleeps while another one runs on its CPU", () => {
  it("is woken through that one's exit: the wake-up interrupt is one of the host's", () => {
    // Two CPUs; the sleeper's is taken by a third vCPU that never exits by itself.
    const rig = tryingRig({
      machine: { pcpus: 2, timeSlice: 1_000_000_000 },
      vm: { vcpus: 3, acceleration: "ipiv", trace: 1 << 14 },
    }).on(VECTOR, function* (cpu) {
      yield cpu.xadd32(HANDLED, 1);
      yield* write(cpu, "x2apic", 0x0b0, 0);
    });
    const { vm } = rig;
    rig.aps(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.rdmsr(0x802);
      if (cpu.eax === 1) {
        yield cpu.xadd32(READY, 1);
        yield* sleeping(cpu);
      } else {
        yield cpu.xadd32(READY, 1);
        yield* until(cpu, HANDLED, 1);
      }
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    });
    const { end } = rig.run(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield* bringUp(cpu, "x2apic", 2);
      yield cpu.work(10_000_000);
      const [, sleeper, other] = vm.vcpus;
      assertEquals(shown(sleeper), "nv=f1 ndst=1");
      assert(sleeper.asleep && other.pcpu === sleeper.lastPcpu, "the CPU is the other's");
      const { irq_exits } = other.stats;
      yield* send(cpu, "x2apic", to("x2apic", 1));
      yield cpu.work(20_000);
      assertEquals(other.stats.irq_exits - irq_exits, 1);
      assertLess(0, sleeper.stats.halt_wakeup);
      assert(sleeper.ready, "woken, and waiting for a CPU");
      assertEquals(shown(sleeper), "41 ON nv=f1 ndst=1", "until it is put on one");
    });
    assertEquals([end, rig.word(HANDLED)], ["finished", 1], "it gets the sender's CPU when that sleeps");
  });
});
