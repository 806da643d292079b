import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import { type Acceleration, APICV_INHIBITS, type ApicvInhibit, type VmOptions } from "../../../host/mod.ts";
import {
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  lookAtEvents,
  read,
  send,
  until,
  vectors,
  write,
} from "../../support/apic.ts";
import { activity, addApicvPort, allowApicv } from "../../support/apicv.ts";
import { svm } from "../../support/avic.ts";
import { eventsOf, exits, mark, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";

const MODES: readonly [Acceleration, ApicMode][] = [["avic", "xapic"], ["x2avic", "x2apic"], [
  "avic",
  "x2apic",
]];

for (const [acceleration, mode] of MODES) {
  const options: VmOptions = { backend: "svm", acceleration };
  describe(`AVIC that is inhibited and allowed again (${acceleration}, ${mode})`, () => {
    it("goes with an interrupt in service, and the handler ends it by KVM; comes with one, and it ends it by itself", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      const { lapic } = vm.bootstrap;
      addApicvPort(vm);
      const order: string[] = [];
      const handler = (inside: boolean) =>
        function* (cpu: X86Cpu): Asking<void> {
          order.push(`+${cpu.vector.toString(16)}`);
          yield allowApicv(cpu, inside);
          assertEquals(activity(vm), [inside]);
          assertEquals(vectors(lapic, 0x100), [cpu.vector]);
          yield* write(cpu, mode, 0x0b0, 0);
          assertEquals(vectors(lapic, 0x100), []);
          order.push(`-${cpu.vector.toString(16)}`);
        };
      rig.on(0x51, handler(false)).on(0x52, handler(true));
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* send(cpu, mode, { low: 0x4_4051, high: 0 });
        yield* send(cpu, mode, { low: 0x4_4052, high: 0 });
        const from = mark(vm);
        yield cpu.sti();
        yield cpu.pushf(); // 0x52, by hardware: AVIC stays.
        yield cpu.pushf(); // 0x51, by hardware: its end is KVM's.
        yield cpu.pushf();
        assertEquals(order, ["+52", "-52", "+51", "-51"]);
        const hybrid = mode === "x2apic" && acceleration === "avic"; // The MSR exits: KVM ends them all.
        assertEquals(eventsOf(vm, "kvm_eoi", from).length, hybrid ? 2 : 1);
        assertEquals(eventsOf(vm, "kvm_inj_virq", from), []);
        // Now KVM injects, and AVIC comes back inside.
        yield* send(cpu, mode, { low: 0x4_4052, high: 0 });
        yield cpu.pushf();
        assertEquals(order.slice(4), ["+52", "-52"]);
        assertEquals(eventsOf(vm, "kvm_eoi", from).length, hybrid ? 3 : 1);
        assertEquals(eventsOf(vm, "kvm_inj_virq", from).map(({ args }) => args[0]), [0x52]);
      });
    });

    it("delivers what was requested and held back, whichever way it goes", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      addApicvPort(vm);
      const taken: number[] = [];
      for (const vector of [0x41, 0x42]) {
        rig.on(vector, function* (cpu) {
          taken.push(vector);
          yield* write(cpu, mode, 0x0b0, 0);
        });
      }
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* send(cpu, mode, { low: 0x4_4041, high: 0 });
        yield allowApicv(cpu, false);
        yield* send(cpu, mode, { low: 0x4_4042, high: 0 });
        yield allowApicv(cpu, true);
        yield cpu.sti();
        yield cpu.pushf();
        yield cpu.pushf();
        assertEquals(taken, [0x42, 0x41]);
        yield cpu.cli();
        yield* send(cpu, mode, { low: 0x4_4042, high: 0 });
        yield allowApicv(cpu, false);
        yield cpu.sti();
        yield cpu.pushf();
        assertEquals(taken, [0x42, 0x41, 0x42]);
      });
    });
  });
}

describe("an interrupt window", () => {
  for (const [acceleration, mode] of MODES) {
    it(`inhibits AVIC in the whole virtual machine until it opens (${acceleration}, ${mode})`, () => {
      const rig = tracingRig({ vm: { backend: "svm", acceleration } });
      const { vm } = rig;
      addApicvPort(vm);
      let taken = 0;
      rig.on(0x41, function* (cpu) {
        taken++;
        yield* write(cpu, mode, 0x0b0, 0);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        // With AVIC none is needed: hardware waits for RFLAGS.IF by itself.
        yield* send(cpu, mode, { low: 0x4_4041, high: 0 });
        yield* lookAtEvents(cpu);
        assertEquals([vm.apicvInhibits, svm(vm.bootstrap).vmcb.interceptVintr], [0, false]);
        const from = mark(vm);
        // Without it, KVM asks for one.
        yield allowApicv(cpu, false);
        assertEquals(vm.apicvInhibits, 1 << 3 | 1 << 8);
        yield allowApicv(cpu, true);
        assertEquals([vm.apicvInhibits, activity(vm)], [1 << 8, [false]]); // IRQWIN alone
        yield cpu.sti();
        yield cpu.pushf();
        assertEquals(taken, 1);
        const names = eventsOf(vm, "kvm_apicv_inhibit_changed", from).map(({ args: [reason, set, all] }) => {
          const [name] = Object.entries(APICV_INHIBITS).find(([, { bit }]) => bit === reason)!;
          return `${set ? "set" : "cleared"} ${name} ${all.toString(16)}`;
        });
        assertEquals(names, ["set BLOCKIRQ 8", "set IRQWIN 108", "cleared BLOCKIRQ 100", "cleared IRQWIN 0"]);
        assertEquals([vm.apicvInhibits, activity(vm)], [0, [true]]);
        assert(exits(vm, from).some(([name]) => name === "vintr"));
      });
    });
  }
});

describe("logical IDs that hardware could not tell apart", () => {
  it("inhibit AVIC while they last: two vCPUs with the same, or one with two", () => {
    const rig = tracingRig({ vm: { backend: "svm", acceleration: "avic", vcpus: 2 } });
    const { vm } = rig;
    rig.aps(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x0d0, 0x0200_0000);
      yield cpu.xadd32(DATA, 1);
      yield cpu.pauseWhile(DATA, 1);
    }).finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* bringUp(cpu, "xapic", 1);
      yield* until(cpu, DATA, 1);
      const inhibits = (): ApicvInhibit[] =>
        (Object.keys(APICV_INHIBITS) as ApicvInhibit[]).filter((name) =>
          (vm.apicvInhibits >>> APICV_INHIBITS[name].bit & 1) !== 0
        );
      yield* write(cpu, "xapic", 0x0d0, 0x0100_0000);
      assertEquals(inhibits(), []);
      yield* write(cpu, "xapic", 0x0d0, 0x0200_0000);
      assertEquals(inhibits(), ["LOGICAL_ID_ALIASED"]);
      yield* write(cpu, "xapic", 0x0d0, 0x0c00_0000);
      assertEquals(inhibits(), ["LOGICAL_ID_ALIASED"]);
      yield* write(cpu, "xapic", 0x0d0, 0x0400_0000);
      assertEquals(inhibits(), []);
      yield* write(cpu, "xapic", 0x020, 9 << 24);
      assertEquals(inhibits(), ["APIC_ID_MODIFIED"]);
      yield* write(cpu, "xapic", 0x020, 1 << 24);
      assertEquals(inhibits(), ["PHYSICAL_ID_ALIASED", "APIC_ID_MODIFIED", "LOGICAL_ID_ALIASED"]);
      yield* write(cpu, "xapic", 0x020, 0);
      assertEquals(inhibits(), []);
      yield cpu.store32(DATA, 2);
    });
  });
});

describe("CR8 after AVIC is taken up", () => {
  /** What CR8 reads after the guest has written it, and the exits for it, once AVIC has come while a priority held. */
  function readBack(quirk: boolean): { cr8: number; tpr: number; writes: number } {
    const rig = tracingRig({
      vm: { backend: "svm", acceleration: "x2avic" },
      machine: { quirks: quirk ? ["avic-cr8-out-of-sync"] : [] },
    });
    const { vm } = rig;
    addApicvPort(vm);
    let result = { cr8: -1, tpr: -1, writes: -1 };
    rig.on(0x41, function* (cpu) {
      yield* write(cpu, "x2apic", 0x0b0, 0);
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield allowApicv(cpu, false);
      yield* write(cpu, "x2apic", 0x080, 0x80);
      yield* send(cpu, "x2apic", { low: 0x4_4041, high: 0 }); // Held back: KVM intercepts writes of CR8.
      yield* lookAtEvents(cpu);
      assertEquals(svm(vm.bootstrap).vmcb.interceptCr8Write, true);
      yield allowApicv(cpu, true);
      const from = mark(vm);
      yield cpu.movToCr8(9);
      yield cpu.cpuid(0);
      yield cpu.movFromCr8();
      const cr8 = cpu.eax;
      const tpr = (yield* read(cpu, "x2apic", 0x080)) as number;
      result = { cr8, tpr, writes: exits(vm, from).filter(([name]) => name === "write_cr8").length };
    });
    return result;
  }

  it("is the task priority, and no write of it exits", () => {
    assertEquals(readBack(false), { cr8: 9, tpr: 0x90, writes: 0 });
  });

  it("is an old one for good with the bug: writes exit, KVM sets the priority, and V_TPR does not follow (CVE-2026-43483)", () => {
    assertEquals(readBack(true), { cr8: 8, tpr: 0x90, writes: 1 });
  });
});
