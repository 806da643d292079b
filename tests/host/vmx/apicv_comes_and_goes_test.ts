import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import type { Quirk } from "../../../host/mod.ts";
import { activity, addApicvPort, allowApicv, virtualApic } from "../../support/apicv.ts";
import { APIC_MODES, type ApicMode, type Asking, enter, read, vectors, write } from "../../support/apic.ts";
import { chain, count, eventsOf, tracingRig } from "../../support/events.ts";
import { DATA, type Rig, type RigOptions } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";
import { Script } from "../../support/threads.ts";

const LOW = 0x31;
const MIDDLE = 0x52;
const HIGH = 0x71;
/** A rig with a processor that has APICv, and a port that inhibits it. */
function apicvRig(options: RigOptions = {}): Rig {
  const rig = tracingRig({ ...options, vm: { acceleration: "apicv", ...options.vm } });
  addApicvPort(rig.vm);
  return rig;
}

/** Sends itself an interrupt, however the APIC is served. */
function* selfIpi(cpu: X86Cpu, mode: ApicMode, vector: number): Asking<void> {
  yield* write(cpu, mode, 0x300, 0x4_4000 | vector);
}

for (const mode of APIC_MODES) {
  describe(`an interrupt while APICv comes and goes (${mode})`, () => {
    /** Handlers that note when they begin; `within` runs before the EOI of one. */
    function handlers(
      rig: Rig,
      within: Partial<Record<number, (cpu: X86Cpu) => Asking<void>>> = {},
    ): number[] {
      const log: number[] = [];
      for (const vector of [LOW, MIDDLE, HIGH]) {
        rig.on(vector, function* (cpu) {
          log.push(vector);
          yield* within[vector]?.(cpu) ?? nothing();
          yield* write(cpu, mode, 0x0b0, 0);
        });
      }
      return log;
    }
    function* nothing(): Asking<void> {}

    it("that KVM injected and hardware ends: hardware learns which one is in service", () => {
      const rig = apicvRig({ vm: { ioapicInKernel: false } });
      const log = handlers(rig, {
        *[MIDDLE](cpu) {
          assertEquals(activity(rig.vm), [false]);
          yield allowApicv(cpu, true);
          assertEquals(activity(rig.vm), [true]);
          assertEquals(virtualApic(rig.vm), { rvi: 0, svi: MIDDLE, irr: [], isr: [MIDDLE] });
        },
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield allowApicv(cpu, false);
        yield cpu.sti();
        yield* selfIpi(cpu, mode, MIDDLE);
        yield cpu.work(10_000);
        assertEquals(virtualApic(rig.vm), { rvi: 0, svi: 0, irr: [], isr: [] });
        yield* selfIpi(cpu, mode, LOW);
        yield cpu.work(10_000);
        yield cpu.cli();
      });
      assertEquals(log, [MIDDLE, LOW]);
      assertEquals(count(rig.vm, "kvm_inj_virq"), 1);
      assertEquals(count(rig.vm, "kvm_eoi"), 0);
    });

    it("that KVM injected stays in service for ever, where hardware does not learn of it (quirk)", () => {
      const quirks: Quirk[] = ["apicv-activation-keeps-svi"];
      const rig = apicvRig({ vm: { ioapicInKernel: false }, machine: { quirks } });
      const log = handlers(rig, {
        *[MIDDLE](cpu) {
          yield allowApicv(cpu, true);
        },
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield allowApicv(cpu, false);
        yield cpu.sti();
        yield* selfIpi(cpu, mode, MIDDLE);
        yield cpu.work(10_000);
        // Its EOI ended vector 0, which nobody had: what hardware then finds in service is the one that was to end.
        assertEquals(virtualApic(rig.vm), { rvi: 0, svi: MIDDLE, irr: [], isr: [MIDDLE] });
        yield* selfIpi(cpu, mode, LOW);
        yield* selfIpi(cpu, mode, HIGH);
        yield cpu.work(10_000);
        yield cpu.cli();
      });
      assertEquals(log, [MIDDLE, HIGH], "what is not above it never comes");
      assertEquals(virtualApic(rig.vm), { rvi: LOW, svi: MIDDLE, irr: [LOW], isr: [MIDDLE] });
    });

    it("that hardware delivered and KVM ends", () => {
      const rig = apicvRig({ vm: { ioapicInKernel: false } });
      const log = handlers(rig, {
        *[MIDDLE](cpu) {
          yield* selfIpi(cpu, mode, HIGH);
          yield* selfIpi(cpu, mode, LOW);
          yield allowApicv(cpu, false);
          assertEquals(activity(rig.vm), [false]);
        },
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        yield* selfIpi(cpu, mode, MIDDLE);
        yield cpu.work(20_000);
        yield cpu.cli();
      });
      assertEquals(log, [MIDDLE, HIGH, LOW]);
      assertEquals(eventsOf(rig.vm, "kvm_eoi").map(({ args }) => args[1]), [MIDDLE, HIGH, LOW]);
      assertEquals(eventsOf(rig.vm, "kvm_inj_virq").map(({ args }) => args[0]), [HIGH, LOW]);
      assertEquals([vectors(rig.vm.bootstrap.lapic, 0x100), vectors(rig.vm.bootstrap.lapic, 0x200)], [
        [],
        [],
      ]);
    });

    it("that waits for RFLAGS.IF is KVM's when APICv goes, and hardware's when it comes", () => {
      for (const first of [true, false]) {
        const rig = apicvRig({ vm: { ioapicInKernel: false } });
        const log = handlers(rig);
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield allowApicv(cpu, first);
          yield* selfIpi(cpu, mode, MIDDLE);
          yield* selfIpi(cpu, mode, LOW);
          yield allowApicv(cpu, !first);
          yield cpu.pushf();
          assertEquals(log, []);
          yield cpu.sti();
          yield cpu.work(20_000);
          yield cpu.cli();
        });
        assertEquals(log, [MIDDLE, LOW]);
        assertEquals(count(rig.vm, "kvm_inj_virq"), first ? 2 : 0);
        // KVM has asked for a window, and sees it open, though what it waited for may be hardware's by then. For the
        // second one it asks again, as the first one's EOI finds interrupts off.
        assertEquals(rig.vm.exits().INTERRUPT_WINDOW, first ? 2 : 1);
      }
    });

    it("that is level-triggered is seen by the I/O APIC, when its pin was routed while APICv was inhibited", () => {
      for (const quirks of [[], ["apicv-activation-keeps-eoi-exitmap"]] as Quirk[][]) {
        const rig = apicvRig({ machine: { quirks } });
        const { vm } = rig;
        const log = handlers(rig, {
          *[HIGH](cpu) {
            yield cpu.out8(0x80, 0);
          },
        });
        vm.pioBus.add({
          base: 0x80,
          length: 1,
          read: () => undefined,
          write: () => void vm.routing.setLevel(3, false),
        });
        rig.finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield allowApicv(cpu, false);
          yield* route(cpu, 3, { vector: HIGH, level: true });
          yield allowApicv(cpu, true);
          yield cpu.sti();
          new Script(vm.engine, "device", function* () {
            vm.routing.setLevel(3, true);
            yield 50_000;
            vm.routing.setLevel(3, true);
          }, vm.engine.now + 1000);
          yield cpu.work(100_000);
          yield cpu.cli();
        });
        const told = quirks.length === 0;
        assertEquals(log, told ? [HIGH, HIGH] : [HIGH]);
        assertEquals((vm.ioapic.low[3] & 0x4000) !== 0, !told, "remote IRR");
        assertEquals(vm.exits().EOI_INDUCED, told ? 2 : undefined);
      }
    });

    it("whose paravirtual EOI is armed when hardware takes over is ended once", () => {
      const rig = apicvRig({ vm: { ioapicInKernel: false } });
      const flag = DATA + 0x40;
      const log: string[] = [];
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(rig.word(flag) & 1, 1, "armed");
        yield allowApicv(cpu, true);
        yield cpu.btr(flag, 0);
        log.push(cpu.cf ? "flag" : "register");
        if (!cpu.cf) yield* write(cpu, mode, 0x0b0, 0);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.wrmsr(0x4b56_4d04, flag | 1); // MSR_KVM_PV_EOI_EN
        yield allowApicv(cpu, false);
        yield cpu.sti();
        yield* selfIpi(cpu, mode, MIDDLE);
        yield cpu.work(10_000);
        yield cpu.cli();
      });
      assertEquals(log, ["register"]);
      assertEquals(virtualApic(rig.vm), { rvi: 0, svi: 0, irr: [], isr: [] });
      assertEquals(chain(rig.vm, 0, ["kvm_pv_eoi", "kvm_eoi"]), []);
    });

    it("keeps its vector, and its APIC all it held", () => {
      const rig = apicvRig();
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* write(cpu, mode, 0x320, 0x2_0040);
        yield* write(cpu, mode, 0x080, 0x33);
        const look = function* (): Asking<(number | "#GP")[]> {
          const values: (number | "#GP")[] = [];
          for (const offset of [0x020, 0x030, 0x080, 0x0a0, 0x0d0, 0x0f0, 0x320, 0x350]) {
            values.push(yield* read(cpu, mode, offset));
          }
          return values;
        };
        const active = yield* look();
        yield allowApicv(cpu, false);
        assertEquals(yield* look(), active);
        yield allowApicv(cpu, true);
        assertEquals(yield* look(), active);
      });
    });
  });
}
