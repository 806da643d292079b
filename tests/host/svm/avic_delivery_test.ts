import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi } from "../../../abi/mod.ts";
import { type Acceleration, MsiSource, type VmOptions } from "../../../host/mod.ts";
import { type ApicMode, enter, logging, read, vectors, write } from "../../support/apic.ts";
import { svm, unaccelerated } from "../../support/avic.ts";
import { chain, count, events, eventsOf, exits, mark, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";

const MODES: readonly [Acceleration, ApicMode][] = [["avic", "xapic"], ["x2avic", "x2apic"]];
for (const [acceleration, mode] of MODES) {
  const options: VmOptions = { backend: "svm", acceleration };
  describe(`the end of an interrupt (${acceleration}, ${mode})`, () => {
    it("of an edge leaves no trace, and lets the next one in", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      const order: number[] = [];
      let from = 0;
      for (const vector of [0x31, 0x41, 0x51]) {
        rig.on(vector, function* (cpu) {
          order.push(vector);
          assertEquals(vectors(vm.bootstrap.lapic, 0x100), [vector]);
          yield* write(cpu, mode, 0x0b0, 0);
        });
      }
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        for (const vector of [0x31, 0x51, 0x41]) yield* write(cpu, mode, 0x300, 0x4_4000 | vector);
        from = mark(vm);
        yield cpu.sti();
        yield cpu.pushf();
        yield cpu.pushf();
        assertEquals(order, [0x51, 0x41, 0x31]);
        assertEquals(events(vm, from), []);
      });
      assertEquals(count(vm, "kvm_eoi"), 0);
    });

    it("of a level is told to the I/O APIC: hardware leaves the vector in service, and KVM ends it", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      let seen: string[] = [];
      rig.on(0x55, function* (cpu) {
        vm.routing.setLevel(4, false);
        assertEquals(vm.ioapic.low[4] & 0x4000, 0x4000); // Remote IRR
        const from = mark(vm);
        yield* write(cpu, mode, 0x0b0, 0);
        const [exit] = exits(vm, from);
        assertEquals(exit, unaccelerated(0x0b0, true)[0]);
        const [told] = eventsOf(vm, "kvm_avic_unaccelerated_access", from);
        assertEquals([...told.args], [0, 0x0b0, 1, 1, 0x55]);
        seen = chain(vm, from);
        assertEquals(vm.ioapic.low[4] & 0x4000, 0);
        assertEquals(vectors(vm.bootstrap.lapic, 0x100), []);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* route(cpu, 4, { vector: 0x55, level: true, destination: 0 });
        yield cpu.sti();
        vm.routing.setLevel(4, true);
        yield cpu.cpuid(0);
        yield cpu.pushf();
      });
      assertEquals(seen, [
        "kvm_exit",
        "kvm_avic_unaccelerated_access",
        "kvm_apic",
        "kvm_eoi",
        "kvm_ack_irq",
        "kvm_entry",
      ]);
    });

    it("where nothing is in service does nothing", () => {
      const rig = tracingRig({ vm: options });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        const from = mark(rig.vm);
        yield* write(cpu, mode, 0x0b0, 0);
        assertEquals(events(rig.vm, from), []);
      });
    });
  });

  describe(`the task priority (${acceleration}, ${mode})`, () => {
    it("holds back what is not above it, and lets it in when it falls, without an exit", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      const { lapic } = vm.bootstrap;
      const taken = logging(rig, mode, 0x52);
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        const from = mark(vm);
        yield* write(cpu, mode, 0x080, 0x50); // The same class.
        yield* write(cpu, mode, 0x300, 0x4_4052);
        yield cpu.pushf();
        assertEquals([taken, vectors(lapic, 0x200)], [[], [0x52]]);
        yield* write(cpu, mode, 0x080, 0x4f);
        yield cpu.pushf();
        assertEquals([taken, vectors(lapic, 0x200)], [[0x52], []]);
        assertEquals(events(vm, from), []);
      });
    });

    it("is the same in CR8, V_TPR and the page, whoever writes it", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      const { lapic } = vm.bootstrap;
      const { vmcb } = svm(vm.bootstrap);
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        const from = mark(vm);
        yield* write(cpu, mode, 0x080, 0x35);
        yield cpu.movFromCr8();
        assertEquals([cpu.eax, vmcb.intCtl & 0xf, lapic.get(0x080)], [3, 3, 0x35]);
        yield cpu.movToCr8(9);
        assertEquals([yield* read(cpu, mode, 0x080), vmcb.intCtl & 0xf], [0x90, 9]);
        assertEquals(yield* read(cpu, mode, 0x0a0), 0x90); // PPR
        assertEquals(exits(vm, from), []);
        yield cpu.cpuid(0);
        yield cpu.movFromCr8();
        assertEquals([cpu.eax, lapic.get(0x080)], [9, 0x90]);
      });
    });

    it("holds back by CR8 too, whose lowering delivers", () => {
      const rig = tracingRig({ vm: options });
      const taken = logging(rig, mode, 0x52);
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        yield cpu.movToCr8(5);
        yield* write(cpu, mode, 0x300, 0x4_4052);
        yield cpu.pushf();
        assertEquals(taken, []);
        yield cpu.movToCr8(4);
        yield cpu.pushf();
        assertEquals(taken, [0x52]);
      });
    });
  });

  describe(`virtual interrupts (${acceleration}, ${mode})`, () => {
    it("wait for RFLAGS.IF and the end of the shadow, and come by themselves then", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      const order: string[] = [];
      rig.on(0x41, function* (cpu) {
        order.push("handler");
        yield* write(cpu, mode, 0x0b0, 0);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* write(cpu, mode, 0x300, 0x4_4041);
        const from = mark(vm);
        for (let i = 0; i < 3; i++) yield cpu.pushf();
        order.push("sti");
        yield cpu.sti();
        order.push("shadow");
        yield cpu.pushf();
        order.push("behind");
        assertEquals(order, ["sti", "shadow", "handler", "behind"]);
        assertEquals(events(vm, from), []);
      });
    });

    it("interrupt a computation, and a spinning loop, which go on behind them", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      let taken = 0;
      rig.on(0x41, function* (cpu) {
        taken++;
        yield cpu.work(100_000);
        if (taken === 2) yield cpu.store32(DATA, 1);
        yield* write(cpu, mode, 0x0b0, 0);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        const from = mark(vm);
        // The IPI to oneself, by one's own number, comes back as a doorbell: in the middle of what follows.
        yield* write(cpu, mode, 0x300, 0x4041);
        const start = vm.bootstrap.clock;
        yield cpu.work(1_000_000);
        assertEquals(taken, 1);
        const passed = vm.bootstrap.clock - start;
        assert(passed >= 1_100_000 && passed < 1_110_000, `${passed} cycles`);
        yield* write(cpu, mode, 0x300, 0x4041);
        yield cpu.pauseWhile(DATA, 0);
        assertEquals(taken, 2);
        assertEquals(events(vm, from), []);
      });
    });

    it("that software requests without ringing wait for the next evaluation", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      const taken = logging(rig, mode, 0x41);
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        yield cpu.pushf();
        vm.bootstrap.lapic.setIrr(0x41);
        for (let i = 0; i < 5; i++) yield cpu.pushf();
        assertEquals(taken, []);
        yield* write(cpu, mode, 0x080, 0); // One of the evaluation points.
        yield cpu.pushf();
        assertEquals(taken, [0x41]);
        vm.bootstrap.lapic.setIrr(0x41);
        yield cpu.pushf();
        assertEquals(taken, [0x41]);
        yield cpu.cpuid(0); // VMRUN is another.
        yield cpu.pushf();
        assertEquals(taken, [0x41, 0x41]);
      });
    });

    it("come from a device to a guest that runs without an exit: KVM rings the doorbell", () => {
      const rig = tracingRig({ vm: options });
      const { vm } = rig;
      let from = 0;
      rig.on(0x41, function* (cpu) {
        yield* write(cpu, mode, 0x0b0, 0);
        yield cpu.store32(DATA, 1);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        new MsiSource(vm, {
          message: encodeMsi({ vector: 0x41 }, "xapic"),
          count: 1,
          start: vm.bootstrap.clock + 10_000,
          interval: () => 0,
        });
        from = mark(vm);
        yield cpu.pauseWhile(DATA, 0);
        assertEquals(chain(vm, from), [
          "kvm_msi_set_irq",
          "kvm_apic_accept_irq",
          "kvm_apicv_accept_irq",
          "kvm_avic_doorbell",
        ]);
        const [accepted] = eventsOf(vm, "kvm_apicv_accept_irq", from);
        assertEquals([...accepted.args.slice(0, 4)], [0, 0, 0, 0x41]);
        const [rung] = eventsOf(vm, "kvm_avic_doorbell", from);
        assertEquals([...rung.args.slice(0, 2)], [0, vm.bootstrap.pcpu!.id]);
      });
    });
  });
}
