import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi, MSR_KVM_PV_EOI_EN, X2APIC_EOI, X2APIC_ICR, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { type Asking, enter, lookAtEvents, vectors } from "../../support/apic.ts";
import { chain, count, eventsOf, mark, tracingRig } from "../../support/events.ts";
import { DATA, type RigOptions } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";
import {
  enable,
  endOfInterrupt,
  type Eoi,
  FLAG,
  HIGH,
  LOW,
  MIDDLE,
  selfIpi,
  state,
} from "../../support/pv_eoi.ts";

const ISR = 0x100;
const ARMED: [boolean, number] = [true, 1];
const ENDED: [boolean, number] = [true, 0];
const OFF: [boolean, number] = [false, 0];

/** Takes one interrupt with PV EOI enabled: the story is its handler's. */
function* takeOne(cpu: X86Cpu): Asking<void> {
  yield* enable(cpu);
  yield cpu.sti();
  yield selfIpi(cpu, MIDDLE);
  yield cpu.cli();
}

for (const backend of BACKENDS) {
  const rigWith = (options: RigOptions = {}) => tracingRig({ ...options, vm: { backend, ...options.vm } });

  describe(`PV EOI (${backend})`, () => {
    it("is armed when an interrupt is injected, and found to have happened at the next exit, before its handling", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(state(rig.vm), ARMED);
        assertEquals(yield* endOfInterrupt(cpu), "flag");
        assertEquals(state(rig.vm), ENDED);
      }).finish(function* (cpu) {
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        assertEquals(state(rig.vm), ENDED, "no exit since");
        assertEquals(vectors(rig.vm.bootstrap.lapic, ISR), [MIDDLE], "KVM does not know it yet");
        const from = mark(rig.vm);
        yield cpu.cpuid(0);
        assertEquals(chain(rig.vm, from), ["kvm_exit", "kvm_eoi", "kvm_pv_eoi", "kvm_cpuid", "kvm_entry"]);
        for (const event of ["kvm_eoi", "kvm_pv_eoi"] as const) {
          assertEquals(eventsOf(rig.vm, event, from).map(({ args }) => args.slice(0, 2)), [[0, MIDDLE]]);
        }
        assertEquals(state(rig.vm), OFF);
        assertEquals(vectors(rig.vm.bootstrap.lapic, ISR), []);
        yield cpu.cli();
      });
    });

    it("is withdrawn by an exit that comes before it: the guest then writes the register", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(state(rig.vm), ARMED);
        yield cpu.cpuid(0);
        assertEquals(state(rig.vm), OFF, "an ordinary entry does not arm it again");
        assertEquals(yield* endOfInterrupt(cpu), "register");
      }).finish(takeOne);
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 0]);
    });

    it("is armed anew by an entry behind events, for the same interrupt", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        yield* lookAtEvents(cpu);
        assertEquals(state(rig.vm), ARMED);
        assertEquals(yield* endOfInterrupt(cpu), "flag");
      }).finish(function* (cpu) {
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cpuid(0);
        yield cpu.cli();
      });
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 1]);
    });

    it("may be ignored: the register works while the flag is set, and ends one interrupt, not two", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(state(rig.vm), ARMED);
        const from = mark(rig.vm);
        yield cpu.wrmsr(X2APIC_EOI, 0);
        assertEquals(state(rig.vm), OFF);
        assertEquals(chain(rig.vm, from, ["kvm_apic", "kvm_eoi", "kvm_pv_eoi"]), ["kvm_apic", "kvm_eoi"]);
      }).finish(function* (cpu) {
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cpuid(0);
        yield cpu.cli();
      });
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 0]);
    });

    it("is not armed while a lower vector waits, so that its exit brings that one at once", () => {
      for (const waiting of [LOW, MIDDLE - 1]) {
        const rig = rigWith();
        const story: string[] = [];
        const handler = function* (cpu: X86Cpu): Asking<void> {
          const { vector } = cpu;
          story.push(`${vector.toString(16)} ${yield* endOfInterrupt(cpu)}`);
        };
        rig.on(MIDDLE, handler).on(waiting, handler).finish(function* (cpu) {
          yield* enable(cpu);
          yield selfIpi(cpu, waiting);
          yield selfIpi(cpu, MIDDLE);
          yield cpu.sti();
          yield cpu.pause();
          assertEquals(story, ["51 register", `${waiting.toString(16)} flag`]);
          yield cpu.cli();
        });
      }
    });

    it("is not armed on a hint: KVM does not search IRR for what it believes there", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        yield cpu.cpuid(0); // Withdrawn.
        rig.vm.bootstrap.lapic.irrPending = true; // As after KVM_SET_LAPIC.
        yield* lookAtEvents(cpu);
        assertEquals(state(rig.vm), OFF);
        assertEquals(rig.vm.bootstrap.pvEoi.explain(), "another vector may be pending");
        assertEquals(yield* endOfInterrupt(cpu), "register");
      }).finish(takeOne);
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 0]);
    });

    it("of nested handlers is armed for the inner one; the outer one writes the register", () => {
      const rig = rigWith();
      const story: string[] = [];
      const note = (what: string) => story.push(`${what}: ${state(rig.vm).join()}`);
      rig.on(MIDDLE, function* (cpu) {
        note("outer begins");
        yield cpu.sti();
        yield selfIpi(cpu, HIGH);
        note("outer goes on");
        yield cpu.cli();
        story.push(`outer ends by ${yield* endOfInterrupt(cpu)}`);
      }).on(HIGH, function* (cpu) {
        note("inner begins");
        story.push(`inner ends by ${yield* endOfInterrupt(cpu)}`);
        yield cpu.cpuid(0);
        note("behind an exit");
      }).finish(takeOne);
      assertEquals(story, [
        "outer begins: true,1",
        "inner begins: true,1",
        "inner ends by flag",
        // The cache of the highest vector in service is empty after an EOI, and so nothing is armed.
        "behind an exit: false,0",
        "outer goes on: false,0",
        "outer ends by register",
      ]);
      assertEquals(eventsOf(rig.vm, "kvm_eoi").map(({ args }) => args[1]), [HIGH, MIDDLE]);
      assertEquals(eventsOf(rig.vm, "kvm_pv_eoi").map(({ args }) => args[1]), [HIGH]);
    });

    it("is not armed for what the I/O APIC must see: level-triggered pins, and the RTC's", () => {
      for (
        const [pin, level, expected] of [
          [10, true, "register"],
          [10, false, "flag"],
          [8, false, "register"],
        ] as const
      ) {
        const rig = rigWith();
        const ends: Eoi[] = [];
        rig.on(MIDDLE, function* (cpu) {
          rig.vm.ioapic.setLine(pin, false);
          ends.push(yield* endOfInterrupt(cpu));
        }).finish(function* (cpu) {
          yield* enable(cpu);
          yield* route(cpu, pin, { vector: MIDDLE, level });
          yield cpu.sti();
          rig.vm.ioapic.setLine(pin, true);
          yield cpu.cpuid(0);
          yield cpu.cli();
        });
        assertEquals(ends, [expected], `pin ${pin}, ${level ? "level" : "edge"}`);
        assertEquals(count(rig.vm, "kvm_ack_irq"), expected === "register" ? 1 : 0);
      }
    });

    it("is not armed for a pin whose EOI somebody wants to be told of", () => {
      const rig = rigWith();
      let told = 0;
      rig.vm.ioapic.onAck(10, () => told++);
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(yield* endOfInterrupt(cpu), "register");
      }).finish(function* (cpu) {
        yield* enable(cpu);
        yield* route(cpu, 10, { vector: MIDDLE });
        yield cpu.sti();
        rig.vm.ioapic.setLine(10, true);
        yield cpu.cpuid(0);
        yield cpu.cli();
      });
      assertEquals(told, 1);
    });

    it("is not armed while software has disabled the APIC", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        yield cpu.wrmsr(0x80f, 0xff);
        yield* lookAtEvents(cpu);
        assertEquals(state(rig.vm), OFF);
        assertEquals(rig.vm.bootstrap.pvEoi.explain(), "the local APIC is disabled");
        assertEquals(yield* endOfInterrupt(cpu), "register");
      }).finish(takeOne);
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 0]);
    });

    it("that is armed is not touched by exits of the fast path, and found by the first other exit", () => {
      for (const hostSemantics of ["v6.19", "2018"] as const) {
        const rig = rigWith({ vm: { vcpus: 2, hostSemantics } });
        rig.on(MIDDLE, function* (cpu) {
          yield cpu.wrmsr(X2APIC_ICR, LOW, 1); // vCPU 1 is not started: nothing comes back.
          assertEquals(state(rig.vm), hostSemantics === "v6.19" ? ARMED : OFF);
          yield* endOfInterrupt(cpu);
          yield cpu.wrmsr(X2APIC_ICR, LOW, 1);
          assertEquals(count(rig.vm, "kvm_eoi"), hostSemantics === "v6.19" ? 0 : 1);
        }).finish(function* (cpu) {
          yield* enable(cpu);
          yield cpu.sti();
          yield selfIpi(cpu, MIDDLE);
          yield cpu.cpuid(0);
          assertEquals(count(rig.vm, "kvm_eoi"), 1);
          yield cpu.cli();
        });
        assertEquals(count(rig.vm, "kvm_pv_eoi"), hostSemantics === "v6.19" ? 1 : 0);
      }
    });

    it("is ended before user space sees the vCPU: no state is hidden from migration", () => {
      const rig = rigWith();
      const seen: [boolean, number][] = [];
      rig.vm.userspacePioDevice = {
        access() {
          seen.push(state(rig.vm));
          assertEquals(rig.vm.bootstrap.lapic.isrCount, seen.length === 1 ? 1 : 0);
          return undefined;
        },
      };
      rig.on(MIDDLE, function* (cpu) {
        yield cpu.in8(0x60); // Armed, not ended.
        yield* lookAtEvents(cpu);
        assertEquals(yield* endOfInterrupt(cpu), "flag");
        yield cpu.in8(0x60); // Armed, ended.
      }).finish(takeOne);
      assertEquals(seen, [OFF, OFF]);
    });

    it("can be disabled in the middle: what was ended is ended, what was not is the register's", () => {
      for (const first of [true, false]) {
        const rig = rigWith();
        rig.on(MIDDLE, function* (cpu) {
          if (first) assertEquals(yield* endOfInterrupt(cpu), "flag");
          yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0);
          assertEquals(state(rig.vm), OFF);
          assertEquals(vectors(rig.vm.bootstrap.lapic, ISR), first ? [] : [MIDDLE]);
          if (!first) assertEquals(yield* endOfInterrupt(cpu), "register");
          yield* lookAtEvents(cpu);
          assertEquals(state(rig.vm), OFF);
        }).finish(takeOne);
        assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, first ? 1 : 0]);
      }
    });

    it("can be moved in the middle: the flag at the old address is cleared, the new one is armed next", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, (FLAG + 64) | 1);
        assertEquals(state(rig.vm), OFF);
        yield* lookAtEvents(cpu);
        assertEquals([rig.vm.memory.byte(FLAG), rig.vm.memory.byte(FLAG + 64)], [0, 1]);
        yield cpu.btr(FLAG + 64, 0);
        assertEquals(cpu.cf, true);
      }).finish(function* (cpu) {
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cpuid(0);
        yield cpu.cli();
      });
      assertEquals(count(rig.vm, "kvm_pv_eoi"), 1);
    });

    it("is nothing that a guest can make up: a flag that it sets itself ends no interrupt", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        yield cpu.cpuid(0); // Withdrawn.
        yield cpu.store8(FLAG, 1);
        assertEquals(yield* endOfInterrupt(cpu), "flag");
        yield cpu.cpuid(0);
        assertEquals(vectors(rig.vm.bootstrap.lapic, ISR), [MIDDLE]);
        assertEquals(yield* endOfInterrupt(cpu), "register");
      }).finish(takeOne);
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 0]);
    });

    it("uses bit 0 alone: what else stands in the byte is overwritten, or ignored", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(rig.vm.memory.byte(FLAG), 1);
        yield cpu.store8(FLAG, 0xfe);
        const from = mark(rig.vm);
        yield cpu.cpuid(0);
        assertEquals(chain(rig.vm, from, ["kvm_pv_eoi"]), ["kvm_pv_eoi"], "bit 0 is clear: ended");
        assertEquals(rig.vm.memory.byte(FLAG), 0xfe, "there was nothing to withdraw");
      }).finish(function* (cpu) {
        yield cpu.store8(FLAG, 0xaa);
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cli();
      });
      assertEquals(count(rig.vm, "kvm_pv_eoi"), 1);
    });

    it("of a vCPU that takes INIT is forgotten; the exit has cleared its flag", () => {
      const rig = rigWith({ vm: { vcpus: 2 } });
      rig.on(MIDDLE, function* (cpu) {
        yield cpu.xadd32(DATA, 1);
        yield cpu.work(10_000_000);
        yield* endOfInterrupt(cpu);
      }).aps(function* (cpu) {
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.wrmsr(X2APIC_ICR, 0x4608, 1);
        yield cpu.pauseWhile(DATA, 0);
        const { pvEoi } = rig.vm.vcpus[1];
        assertEquals([pvEoi.pending, rig.vm.memory.byte(FLAG)], [true, 1]);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.work(100_000);
        assertEquals([pvEoi.pending, pvEoi.enabled, rig.vm.memory.byte(FLAG)], [false, false, 0]);
      });
      assertEquals(count(rig.vm, "kvm_pv_eoi"), 0);
    });

    it("works for messages that devices send, and for a HLT that one ends", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(yield* endOfInterrupt(cpu), "flag");
      }).finish(function* (cpu) {
        yield* enable(cpu);
        for (let i = 0; i < 3; i++) {
          rig.vm.signalMsi(encodeMsi({ vector: MIDDLE }, "xapic"));
          yield cpu.sti();
          yield cpu.hlt();
          yield cpu.cli();
        }
        yield cpu.cpuid(0);
      });
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [3, 3]);
    });

    it("is traced without a vector where nothing is in service any more", () => {
      const rig = rigWith();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(yield* endOfInterrupt(cpu), "flag");
        rig.vm.bootstrap.lapic.eoi(); // Somebody else has ended it.
        const from = mark(rig.vm);
        yield cpu.cpuid(0);
        assertEquals(eventsOf(rig.vm, "kvm_pv_eoi", from).map(({ args }) => args[1] | 0), [-1]);
      }).finish(takeOne);
      assertEquals(count(rig.vm, "kvm_pv_eoi"), 1);
    });
  });
}
