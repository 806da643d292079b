import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import { NotModelled, type Vm, type VmOptions } from "../../../host/mod.ts";
import { accessClass, refusesWrite } from "../../../host/svm/avic/registers.ts";
import { X2AVIC_MSRS } from "../../../host/svm/mod.ts";
import { type Asking, bringUp, completes, enter, read, until, write } from "../../support/apic.ts";
import { eventsOf, type Exit, exits, mark, tracingRig } from "../../support/events.ts";
import { unaccelerated } from "../../support/avic.ts";
import { DATA } from "../../support/guests.ts";

const PAGE = 0xfee0_0000;
const AVIC: VmOptions = { backend: "svm", acceleration: "avic" };
const X2AVIC: VmOptions = { backend: "svm", acceleration: "x2avic" };

/** Registers by what APM volume 2, table 15-22 says of them. Whatever is not named here is plain memory. */
const FAULTING_READS = new Set([0x090, 0x390]);
const BANKS = Array.from({ length: 24 }, (_, i) => 0x100 + 16 * i);
const FAULTING_WRITES = new Set([0x030, 0x090, 0x0a0, 0x390, ...BANKS]);
const TRAPPING_WRITES = new Set([
  0x020,
  0x0c0,
  0x0d0,
  0x0e0,
  0x0f0,
  0x280,
  0x320,
  0x330,
  0x340,
  0x350,
  0x360,
  0x370,
  0x380,
  0x3e0,
]);

/** What a guest may write to a register of an xAPIC without any consequence. */
function harmless(vm: Vm, offset: number): number {
  if (offset === 0x300) return 0x4_0041; // A self-IPI, while interrupts are off.
  if (offset === 0x0f0) return 0x1ff;
  if (offset >= 0x320 && offset <= 0x370) return 0x1_0000;
  return offset < 0x400 ? vm.bootstrap.lapic.get(offset) : 0;
}

describe("an access to the xAPIC's page", () => {
  it("is carried out, exits before, or exits behind, as the manual's table says of each register", () => {
    const rig = tracingRig({ vm: AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      for (let offset = 0; offset < 0x1000; offset += 16) {
        const faults = offset >= 0x400;
        let from = mark(vm);
        yield cpu.load32(PAGE + offset);
        const readFaults = faults || FAULTING_READS.has(offset);
        assertEquals(
          exits(vm, from),
          readFaults ? unaccelerated(offset, false) : [],
          `read ${offset.toString(16)}`,
        );
        // Before the instruction: KVM emulates it.
        assertEquals(eventsOf(vm, "kvm_emulate_insn", from).length, readFaults ? 1 : 0);

        from = mark(vm);
        yield cpu.store32(PAGE + offset, harmless(vm, offset));
        const writeFaults = faults || FAULTING_WRITES.has(offset);
        const traps = TRAPPING_WRITES.has(offset);
        assertEquals(
          exits(vm, from),
          writeFaults || traps ? unaccelerated(offset, true) : [],
          `write ${offset.toString(16)}`,
        );
        assertEquals(eventsOf(vm, "kvm_emulate_insn", from).length, writeFaults ? 1 : 0);
        // Either way KVM writes the register, whatever it is, but for the remote-read register.
        assertEquals(
          eventsOf(vm, "kvm_apic", from).map(({ args }) => [args[0], args[1]]),
          (traps && offset !== 0x0c0) || writeFaults ? [[1, offset]] : [],
        );
        const [told] = eventsOf(vm, "kvm_avic_unaccelerated_access", from);
        if (traps || writeFaults) assertEquals([...told.args], [0, offset, traps ? 1 : 0, 1, 0]);
      }
    });
  });

  it("traps behind the instruction: the value is in the page, and is written again with the register's own bits", () => {
    const rig = tracingRig({ vm: AVIC });
    const { vm } = rig;
    const { lapic } = vm.bootstrap;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x0d0, 0x01ab_cdef);
      assertEquals(lapic.get(0x0d0), 0x0100_0000);
      yield* write(cpu, "xapic", 0x330, 0xffff_ffff);
      assertEquals(lapic.get(0x330), 0x0001_17ff);
      const from = mark(vm);
      yield* write(cpu, "xapic", 0x380, 1_000_000); // The timer runs.
      assert(lapic.timer.periodNs > 0);
      // The exit comes when RIP is behind the instruction already.
      const [exit] = eventsOf(vm, "kvm_exit", from);
      const [entry] = eventsOf(vm, "kvm_entry", from);
      assertEquals(exit.args[1], entry.args[0]);
    });
  });

  it("faults before the instruction: KVM enters behind it", () => {
    const rig = tracingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      const from = mark(rig.vm);
      yield* read(cpu, "xapic", 0x390);
      const [exit] = eventsOf(rig.vm, "kvm_exit", from);
      const [entry] = eventsOf(rig.vm, "kvm_entry", from);
      assert(entry.args[0] > exit.args[1]);
    });
  });

  it("reads single bytes of a register, and changes a register in one instruction", () => {
    const rig = tracingRig({ vm: AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      const from = mark(vm);
      yield cpu.load8(PAGE + 0x030);
      assertEquals(cpu.eax & 0xff, 0x14);
      yield cpu.load8(PAGE + 0x032);
      assertEquals(cpu.eax & 0xff, 5); // Maximum LVT entry
      yield cpu.load16(PAGE + 0x032);
      assertEquals(cpu.eax & 0xffff, 5);
      yield cpu.xchg32(PAGE + 0x080, 0x50);
      assertEquals(cpu.eax, 0);
      assertEquals(vm.bootstrap.lapic.get(0x080), 0x50);
      assertEquals(exits(vm, from), []);
      // What the manual does not define, software decides: KVM ignores it.
      yield cpu.store16(PAGE + 0x080, 0xff);
      yield cpu.store32(PAGE + 0x084, 0xff);
      assertEquals(exits(vm, from), [...unaccelerated(0x080, true), ...unaccelerated(0x080, true)]);
      assertEquals(vm.bootstrap.lapic.get(0x080), 0x50);
    });
  });

  it("that writes to a register in odd widths is a loud error, where KVM would take the exit for a trap for ever", () => {
    for (
      const [offset, op] of [
        [0x0b0, "store8"],
        [0x300, "store16"],
        [0x0f0, "store64"],
        [0x302, "store32"],
        [0x0b1, "store32"],
      ] as const
    ) {
      const rig = tracingRig({ vm: AVIC });
      const program = function* (cpu: X86Cpu): Asking<void> {
        yield* enter(cpu, "xapic");
        yield op === "store64" ? cpu.store64(PAGE + offset, 0) : cpu[op](PAGE + offset, 0);
      };
      assertThrows(() => rig.finish(program), NotModelled, "that is no aligned word");
    }
  });

  it("is a nested page fault while something inhibits AVIC, and KVM does not mark the page as MMIO", () => {
    const rig = tracingRig({ vm: AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* write(cpu, "xapic", 0x020, 5 << 24); // APIC_ID_MODIFIED
      const from = mark(vm);
      yield* read(cpu, "xapic", 0x030);
      yield* read(cpu, "xapic", 0x030);
      const fault: Exit = ["npf", 0x1_0000_0004n];
      assertEquals(exits(vm, from), [fault, fault]);
    });
  });
});

/** #GP without an exit of AVIC's or for an MSR: the processor's own. */
type Outcome = "done" | "#GP" | "msr" | "fault" | "trap";

function* outcome(vm: Vm, op: number): Asking<Outcome> {
  const from = mark(vm);
  const done = yield* completes(op);
  const seen = exits(vm, from);
  if (seen.length === 0) return done ? "done" : "#GP";
  assertEquals(seen.length, 1);
  if (seen[0][0] === "msr") return "msr";
  assertEquals(seen[0][0], "avic_unaccelerated_access");
  return eventsOf(vm, "kvm_emulate_insn", from).length === 1 ? "fault" : "trap";
}

describe("an access to an x2APIC MSR with x2AVIC", () => {
  const passes = new Set(X2AVIC_MSRS);
  /** Registers that an x2APIC can read and write, but for banks (SDM 3A table 11-6, without CMCI's LVT entry). */
  const READABLE = new Set([
    ...[0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f, 0x810, 0x818, 0x820, 0x828, 0x830],
    ...[0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x839, 0x83e],
  ]);
  const WRITABLE = new Set([
    ...[0x808, 0x80b, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e],
  ]);

  it("exits for the MSR unless KVM lets it pass: neither the timer's LVT entry nor most of the banks do", () => {
    const denied = Array.from({ length: 64 }, (_, i) => 0x800 + i).filter((msr) => !passes.has(msr));
    const banks = (first: number) => Array.from({ length: 7 }, (_, i) => first + 1 + i);
    assertEquals(
      denied,
      [0x800, 0x801, 0x804, 0x805, 0x806, 0x807]
        .concat(banks(0x810), banks(0x818), banks(0x820))
        .concat([0x829, 0x82a, 0x82b, 0x82c, 0x82d, 0x82e, 0x82f, 0x832, 0x83a, 0x83b, 0x83c, 0x83d, 0x83f]),
    );
  });

  it("is then checked as on an x2APIC, and only then carried out, trapped or faulted", () => {
    const rig = tracingRig({ vm: X2AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      for (let msr = 0x800; msr < 0x840; msr++) {
        const what = `MSR ${msr.toString(16)}`;
        const offset = (msr - 0x800) * 16;
        const got = yield* outcome(vm, cpu.rdmsr(msr));
        const expected = !passes.has(msr)
          ? "msr"
          : !READABLE.has(msr)
          ? "#GP"
          : FAULTING_READS.has(offset)
          ? "fault"
          : "done";
        assertEquals(got, expected, `read of ${what}`);
        // ICR: a self-IPI, while interrupts are off.
        const value = msr === 0x830 ? 0x4_0041 : harmless(vm, offset);
        const wrote = yield* outcome(vm, cpu.wrmsr(msr, value));
        const follows = !passes.has(msr)
          ? "msr"
          : !WRITABLE.has(msr)
          ? "#GP"
          : TRAPPING_WRITES.has(offset)
          ? "trap"
          : "done";
        assertEquals(wrote, follows, `write of ${what}`);
      }
    });
  });

  it("never faults where a write is not refused: the manual's table has faults for what an x2APIC cannot write", () => {
    const written: number[] = [];
    for (let offset = 0; offset < 0x1000; offset += 16) {
      if (refusesWrite(offset, 0, 0)) continue;
      written.push(offset);
      assert(accessClass(offset, true) !== "fault", offset.toString(16));
    }
    assertEquals([written.length, written[0], written.at(-1)], [15, 0x080, 0x3f0]);
  });

  it("raises #GP for reserved bits without an exit", () => {
    const rig = tracingRig({ vm: X2AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      const from = mark(vm);
      const refused: [msr: number, low: number, high: number][] = [
        [0x808, 0x100, 0],
        [0x808, 0, 1],
        [0x80b, 1, 0],
        [0x80b, 0, 1],
        [0x80f, 0x1ff, 1],
        [0x828, 1, 0],
        [0x838, 0, 1],
        ...[13, 16, 17, 20, 31].map((bit): [number, number, number] => [0x830, (0x41 | 1 << bit) >>> 0, 0]),
      ];
      for (const [msr, low, high] of refused) {
        assertEquals(
          yield* completes(cpu.wrmsr(msr, low, high)),
          false,
          `${msr.toString(16)} ${low} ${high}`,
        );
      }
      assertEquals(exits(vm, from), []);
    });
  });

  it("keeps the ICR in two halves, and reads them as one", () => {
    const rig = tracingRig({ vm: X2AVIC });
    const { vm } = rig;
    const { lapic } = vm.bootstrap;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.wrmsr(0x830, 0x4041, 0);
      const from = mark(vm);
      yield cpu.rdmsr(0x830);
      assertEquals([cpu.eax, cpu.edx], [0x4041, 0]);
      assertEquals(exits(vm, from), []);
      yield cpu.wrmsr(0x830, 0x4500, 0x0001_0002); // INIT to nobody: KVM sends it.
      assertEquals([lapic.get(0x300), lapic.get(0x304), lapic.get(0x310)], [0x4500, 0, 0x0001_0002]);
      yield cpu.rdmsr(0x830);
      assertEquals([cpu.eax, cpu.edx], [0x4500, 0x0001_0002]);
    });
  });

  it("differs between vendors in the ICR's busy bit: AMD's hardware refuses it, KVM clears it", () => {
    for (const [acceleration, done] of [["x2avic", false], ["avic", true], ["none", true]] as const) {
      const rig = tracingRig({ vm: { backend: "svm", acceleration } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        assertEquals(yield* completes(cpu.wrmsr(0x830, 0x5041, 99)), done, acceleration);
      });
    }
    const intel = tracingRig({ vm: { backend: "vmx" } });
    intel.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      assertEquals(yield* completes(cpu.wrmsr(0x830, 0x5041, 99)), true);
    });
  });

  it("exits always where hardware has no x2AVIC: KVM emulates, and hardware delivers all the same", () => {
    const rig = tracingRig({ vm: AVIC });
    const { vm } = rig;
    let taken = 0;
    rig.on(0x41, function* (cpu) {
      taken++;
      yield* write(cpu, "x2apic", 0x0b0, 0);
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.sti();
      const from = mark(vm);
      assertEquals(yield* outcome(vm, cpu.rdmsr(0x802)), "msr");
      yield cpu.wrmsr(0x830, 0x4_4041);
      yield cpu.pushf();
      assertEquals(taken, 1);
      assertEquals(exits(vm, from).map(([name]) => name), ["msr", "msr", "msr"]);
      assertEquals(eventsOf(vm, "kvm_inj_virq", from), []);
    });
    assertEquals(vm.bootstrap.lapic.apicvActive, true);
  });
});

describe("hardware that does not know x2APIC mode", () => {
  it("has no page for anybody any more once one vCPU is in that mode: an x2APIC's page is a hole", () => {
    // kvm_inhibit_apic_access_page: the page tables are shared, and what is deleted stays deleted.
    const rig = tracingRig({ vm: { ...AVIC, vcpus: 2 } });
    const { vm } = rig;
    rig.aps(function* (cpu) {
      yield* enter(cpu, "xapic");
      let from = mark(vm);
      yield* write(cpu, "xapic", 0x080, 0x40);
      assertEquals(exits(vm, from), []);
      yield cpu.store32(DATA, 1);
      yield* until(cpu, DATA, 2);
      from = mark(vm);
      yield* write(cpu, "xapic", 0x080, 0x50);
      assertEquals(exits(vm, from).length, 1);
      assertEquals(yield* read(cpu, "xapic", 0x080), 0x50);
      yield cpu.store32(DATA, 3);
    }).run(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* bringUp(cpu, "xapic", 1);
      yield* until(cpu, DATA, 1);
      yield* enter(cpu, "x2apic");
      yield* write(cpu, "x2apic", 0x080, 0x30);
      assertEquals(yield* read(cpu, "xapic", 0x080), 0xffff_ffff);
      yield* write(cpu, "xapic", 0x080, 0x60);
      assertEquals(yield* read(cpu, "x2apic", 0x080), 0x30);
      yield cpu.store32(DATA, 2);
      yield* until(cpu, DATA, 3);
    });
    assertEquals(rig.word(DATA), 3);
  });
});
