import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import { activity, virtualApic } from "../../support/apicv.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  logging,
  read,
  send,
  until,
  vectors,
  write,
} from "../../support/apic.ts";
import { chain, count, eventsOf, exits, mark, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";
import { Script } from "../../support/threads.ts";

const ACCELERATED = ["apicv", "ipiv"] as const;
const LOW = 0x31;
const MIDDLE = 0x52;
const HIGH = 0x71;

/** Sends an interrupt to itself, without an exit. */
function* selfIpi(cpu: X86Cpu, mode: ApicMode, vector: number): Asking<void> {
  if (mode === "xapic") yield* write(cpu, mode, 0x300, 0x4_0000 | vector);
  else yield* write(cpu, mode, 0x3f0, vector);
}

for (const acceleration of ACCELERATED) {
  for (const mode of APIC_MODES) {
    describe(`a virtual interrupt (${acceleration}, ${mode})`, () => {
      it("waits for RFLAGS.IF, comes behind the STI shadow, and ends without an exit", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log = logging(rig, mode, MIDDLE);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          const from = mark(rig.vm);
          yield* selfIpi(cpu, mode, MIDDLE);
          assertEquals(virtualApic(rig.vm), { rvi: MIDDLE, svi: 0, irr: [MIDDLE], isr: [] });
          for (let i = 0; i < 3; i++) yield cpu.pushf();
          assertEquals(log, []);
          yield cpu.sti();
          assertEquals(log, [], "in the shadow");
          yield cpu.pushf();
          assertEquals(log, [MIDDLE], "behind the instruction that it covers");
          assertEquals(virtualApic(rig.vm), { rvi: 0, svi: 0, irr: [], isr: [] });
          yield cpu.cli();
          assertEquals(exits(rig.vm, from), []);
        });
      });

      it("is in service from its delivery to its EOI, in the page and in SVI", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log = logging(rig, mode, LOW);
        rig.on(MIDDLE, function* (cpu) {
          log.push(MIDDLE);
          assertEquals(virtualApic(rig.vm), { rvi: LOW, svi: MIDDLE, irr: [LOW], isr: [MIDDLE] });
          assertEquals(rig.vm.bootstrap.lapic.get(0x0a0), 0x50);
          yield* write(cpu, mode, 0x0b0, 0);
          assertEquals(virtualApic(rig.vm), { rvi: LOW, svi: 0, irr: [LOW], isr: [] });
        });
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* selfIpi(cpu, mode, LOW);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield cpu.sti();
          yield cpu.pushf();
          yield cpu.pushf();
          yield cpu.cli();
          assertEquals(log, [MIDDLE, LOW]);
        });
      });

      it("interrupts the handler of a lower class, and waits for one of its own class or a higher", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log: string[] = [];
        const handler = (vector: number, sends: readonly number[]) =>
          rig.on(vector, function* (cpu) {
            log.push(`${vector} begins`);
            for (const other of sends) yield* selfIpi(cpu, mode, other);
            yield cpu.sti();
            yield cpu.pushf();
            yield cpu.pushf();
            yield cpu.cli();
            log.push(`${vector} ends`);
            yield* write(cpu, mode, 0x0b0, 0);
          });
        handler(LOW, []);
        handler(MIDDLE, [HIGH, MIDDLE + 1, LOW]);
        handler(MIDDLE + 1, []);
        handler(HIGH, []);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield cpu.sti();
          yield cpu.work(10_000);
          yield cpu.cli();
        });
        assertEquals(
          log,
          [MIDDLE, HIGH].map((v) => `${v} begins`).concat(
            `${HIGH} ends`,
            `${MIDDLE} ends`,
            `${MIDDLE + 1} begins`,
            `${MIDDLE + 1} ends`,
            `${LOW} begins`,
            `${LOW} ends`,
          ),
        );
      });

      it("is held back by the task priority, and let go when that falls: no exit tells KVM", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log = logging(rig, mode, MIDDLE);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield cpu.sti();
          const from = mark(rig.vm);
          yield* write(cpu, mode, 0x080, 0x50);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield cpu.work(1000);
          assertEquals(log, []);
          yield* write(cpu, mode, 0x080, 0x4f);
          yield cpu.work(1000);
          assertEquals(log, [MIDDLE]);
          yield cpu.movToCr8(5);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield cpu.work(1000);
          assertEquals(log, [MIDDLE]);
          yield cpu.movToCr8(4);
          yield cpu.work(1000);
          assertEquals(log, [MIDDLE, MIDDLE]);
          assertEquals(exits(rig.vm, from), []);
          yield cpu.cli();
        });
      });

      it("that is recognized is taken back when the task priority rises first", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log = logging(rig, mode, MIDDLE);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield* write(cpu, mode, 0x080, 0x60);
          yield cpu.sti();
          yield cpu.work(1000);
          assertEquals(log, []);
          yield* write(cpu, mode, 0x080, 0);
          yield cpu.work(1000);
          assertEquals(log, [MIDDLE]);
          yield cpu.cli();
        });
      });

      it("ends a computation and a PAUSE loop, and both go on behind its handler", () => {
        const rig = tracingRig({ vm: { acceleration, vcpus: 2 } });
        const at: number[] = [];
        rig.on(MIDDLE, function* (cpu) {
          yield cpu.rdtsc();
          at.push(cpu.edx * 2 ** 32 + cpu.eax);
          yield* write(cpu, mode, 0x0b0, 0);
        });
        const sent: number[] = [];
        rig.aps(function* (cpu) {
          yield* enter(cpu, mode);
          yield cpu.store32(DATA + 4, 1);
          for (let i = 0; i < 2; i++) {
            yield cpu.work(100_000);
            yield cpu.rdtsc();
            sent.push(cpu.edx * 2 ** 32 + cpu.eax);
            yield* send(cpu, mode, { low: 0x4000 | MIDDLE, high: 0 });
          }
          yield cpu.work(100_000);
          yield cpu.store32(DATA, 1);
          for (;;) yield cpu.hlt();
        });
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* bringUp(cpu, mode, 1);
          yield* until(cpu, DATA + 4, 1); // What it changes at its APIC concerns every vCPU.
          yield cpu.sti();
          yield cpu.rdtsc();
          const begin = cpu.edx * 2 ** 32 + cpu.eax;
          const from = mark(rig.vm);
          yield cpu.work(150_000);
          yield cpu.rdtsc();
          assert(cpu.edx * 2 ** 32 + cpu.eax >= begin + 150_000, "what is left of the computation");
          assertEquals(at.length, 1);
          yield* until(cpu, DATA, 1);
          assertEquals(at.length, 2);
          const own = eventsOf(rig.vm, "kvm_exit", from).filter(({ vcpu }) => vcpu === 0);
          assertEquals(own, [], "the receiver does not exit");
          yield cpu.cli();
        });
        // A post, a notification's way, its processing and a delivery: nowhere near what is left of the waits.
        for (const [i, time] of at.entries()) {
          assert(time > sent[i] && time < sent[i] + 5000, `${time - sent[i]}`);
        }
      });

      it("ends a halt: KVM sees the request, and hardware delivers it at the entry", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log = logging(rig, mode, MIDDLE);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* selfIpi(cpu, mode, MIDDLE);
          const from = mark(rig.vm);
          yield cpu.sti();
          yield cpu.hlt(); // In the shadow: HLT exits first.
          yield cpu.cli();
          assertEquals(log, [MIDDLE]);
          assertEquals(exits(rig.vm, from).map(([name]) => name), ["HLT"]);
          assertEquals(count(rig.vm, "kvm_vcpu_wakeup"), 0, "it did not block");
        });
      });

      it("has priority over a physical interrupt, which exits from its handler", () => {
        const rig = tracingRig({ vm: { acceleration } });
        let inHandler = false;
        let exitedInHandler: boolean | undefined;
        const { bootstrap } = rig.vm;
        const { completeExit } = bootstrap.backend;
        bootstrap.backend.completeExit = function () {
          if (bootstrap.processor.exitReason === bootstrap.backend.commonExits.interrupt) {
            exitedInHandler = bootstrap.processor.context.depth === 2;
          }
          completeExit.call(bootstrap.backend);
        };
        rig.on(MIDDLE, function* (cpu) {
          inHandler = true;
          yield cpu.pushf();
          yield* write(cpu, mode, 0x0b0, 0);
        });
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield cpu.sti();
          // While this instruction executes, in the shadow, something arrives at the CPU.
          bootstrap.pcpu!.interrupt(bootstrap.time);
          assertEquals([inHandler, exitedInHandler], [false, undefined]);
          yield cpu.pushf();
          assertEquals([inHandler, exitedInHandler], [true, true]);
          yield cpu.cli();
        });
      });

      it("that is accelerated leaves no trace, and arms no PV EOI", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const log = logging(rig, mode, LOW, MIDDLE);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield cpu.wrmsr(0x4b56_4d04, DATA + 0x40 | 1); // MSR_KVM_PV_EOI_EN
          yield cpu.sti();
          const from = mark(rig.vm);
          for (let i = 0; i < 5; i++) {
            yield* selfIpi(cpu, mode, LOW);
            yield* selfIpi(cpu, mode, MIDDLE);
            yield cpu.work(1000);
            yield* read(cpu, mode, 0x0a0 + 0x010 * 5);
          }
          assertEquals(chain(rig.vm, from), []);
          assertEquals(log.length, 10);
          // Through software, acceptance is traced: by KVM's APIC, and by APICv.
          const posted = mark(rig.vm);
          yield* write(cpu, mode, 0x300, 0x8_4000 | MIDDLE);
          yield cpu.work(10_000);
          const accepted = ["kvm_apic_accept_irq", "kvm_apicv_accept_irq"] as const;
          assertEquals(chain(rig.vm, posted, [...accepted, "kvm_inj_virq", "kvm_eoi", "kvm_pv_eoi"]), [
            ...accepted,
          ]);
          assertEquals(rig.word(DATA + 0x40), 0);
          yield cpu.cli();
        });
        assertEquals(
          count(rig.vm, "kvm_inj_virq") + count(rig.vm, "kvm_eoi") + count(rig.vm, "kvm_pv_eoi"),
          0,
        );
      });

      it("whose EOI the I/O APIC must see exits behind the write, with its vector; an edge's does not", () => {
        const rig = tracingRig({ vm: { acceleration } });
        const { vm } = rig;
        let left = 2;
        vm.pioBus.add({
          base: 0x80,
          length: 1,
          read: () => undefined,
          write: () => void vm.routing.setLevel(3, --left > 0),
        });
        const seen: (readonly [name: string, qualification: bigint])[][] = [];
        rig.on(HIGH, function* (cpu) {
          yield cpu.out8(0x80, 0);
          const from = mark(vm);
          assertEquals((vm.ioapic.low[3] & 0x4000) !== 0, true, "remote IRR");
          yield* write(cpu, mode, 0x0b0, 0);
          seen.push(exits(vm, from) as typeof seen[number]);
          assertEquals(eventsOf(vm, "kvm_eoi", from).map(({ args }) => args.slice(0, 2)), [[0, HIGH]]);
        });
        const log = logging(rig, mode, LOW);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* route(cpu, 3, { vector: HIGH, level: true });
          yield* route(cpu, 4, { vector: LOW });
          yield cpu.sti();
          new Script(vm.engine, "devices", function* () {
            vm.routing.setLevel(3, true);
            yield 0;
            vm.routing.setLevel(4, true);
          }, vm.engine.now + 1000);
          yield cpu.work(20_000);
          yield cpu.cli();
        });
        assertEquals(seen, [[["EOI_INDUCED", BigInt(HIGH)]], [["EOI_INDUCED", BigInt(HIGH)]]]);
        assertEquals(log, [LOW]);
        assertEquals(vm.exits().EOI_INDUCED, 2);
        assertEquals(vm.ioapic.low[3] & 0x4000, 0);
        assertEquals(virtualApic(vm), { rvi: 0, svi: 0, irr: [], isr: [] });
      });

      it("that nobody sent can be ended: vector 0's, which the clock's pin claims until it is routed", () => {
        const rig = tracingRig({ vm: { acceleration } });
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          const from = mark(rig.vm);
          yield* write(cpu, mode, 0x0b0, 0);
          assertEquals(exits(rig.vm, from), [["EOI_INDUCED", 0n]]);
          yield* route(cpu, 8, { vector: 0x38 });
          const routed = mark(rig.vm);
          yield* write(cpu, mode, 0x0b0, 0);
          assertEquals(exits(rig.vm, routed), []);
        });
      });

      it("is gone with INIT, and so is the one in service", () => {
        const rig = tracingRig({ vm: { acceleration, vcpus: 2 } });
        let starts = 0;
        rig.on(MIDDLE, function* (cpu) {
          yield* selfIpi(cpu, mode, MIDDLE);
          yield* selfIpi(cpu, mode, LOW);
          yield cpu.store32(DATA, 1);
          for (;;) yield cpu.pause();
        });
        const log = logging(rig, mode, LOW);
        rig.aps(function* (cpu) {
          if (++starts === 1) {
            yield* enter(cpu, mode);
            yield cpu.sti();
            yield* selfIpi(cpu, mode, MIDDLE);
            for (;;) yield cpu.pause();
          }
          // INIT keeps the APIC's mode.
          yield* write(cpu, mode, 0x0f0, 0x1ff);
          assertEquals(virtualApic(rig.vm, 1), { rvi: 0, svi: 0, irr: [], isr: [] });
          assertEquals(activity(rig.vm), [true, true]);
          yield* selfIpi(cpu, mode, LOW);
          yield cpu.sti();
          yield cpu.pushf();
          yield cpu.pushf();
          yield cpu.store32(DATA, 2);
          for (;;) yield cpu.hlt();
        });
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* bringUp(cpu, mode, 1);
          yield* until(cpu, DATA, 1);
          assertEquals(vectors(rig.vm.vcpus[1].lapic, 0x100), [MIDDLE]);
          yield* bringUp(cpu, mode, 2);
          yield* until(cpu, DATA, 2);
          assertEquals(log, [LOW]);
        });
      });
    });
  }
}
