import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { VmOptions } from "../../../host/mod.ts";
import { type ApicMode, bringUp, enter, send, until, vectors, write } from "../../support/apic.ts";
import { hostWords, type Scene, sendFrom, stage, svm } from "../../support/avic.ts";
import { chain, events, eventsOf, mark, tracingRig } from "../../support/events.ts";
import { DATA, type Rig } from "../../support/guests.ts";

/** Four vCPUs that run, with logical IDs 1, 2, 4 and 8. */
function awake(mode: ApicMode): Scene {
  return { mode, ids: [0, 1, 2, 3], asleep: [], logicalIds: [1, 2, 4, 8] };
}
/** The same, and the second and the fourth sleep. */
function half(mode: ApicMode): Scene {
  return { ...awake(mode), asleep: [false, true, false, true] };
}

const FIXED = 0x4041;
const LOGICAL = 0x800;
/** A destination as the ICR's high half has it. */
const to = (mode: ApicMode, destination: number) =>
  mode === "xapic" ? (destination << 24) >>> 0 : destination;

for (const mode of ["xapic", "x2apic"] as const) {
  const everybody = mode === "xapic" ? 0xff : 0xffff_ffff;
  describe(`an IPI that AVIC sends (${mode})`, () => {
    const cases: readonly [what: string, low: number, destination: number, expected: number[]][] = [
      ["to one physical ID", FIXED, 2, [2]],
      ["to its own physical ID", FIXED, 0, [0]],
      ["to everybody", FIXED, everybody, [0, 1, 2, 3]],
      ["to all including itself", FIXED | 0x8_0000, 0, [0, 1, 2, 3]],
      ["to all but itself", FIXED | 0xc_0000, 0, [1, 2, 3]],
      ["to one logical ID", FIXED | LOGICAL, 4, [2]],
      ["to several logical IDs", FIXED | LOGICAL, 0xd, [0, 2, 3]],
      ["to no logical ID", FIXED | LOGICAL, 0, []],
      ["without its level bit", 0x41, 3, [3]],
    ];
    for (const [what, low, destination, expected] of cases) {
      it(`${what} sets the IRRs and rings the doorbells of those who run, without an exit`, () => {
        const sent = sendFrom(stage(awake(mode)), low, to(mode, destination));
        assertEquals(sent, {
          exit: undefined,
          byHardware: expected,
          requested: expected,
          woken: [],
          rung: expected,
        });
      });
    }

    it("to itself by shorthand asks no table, and rings no doorbell", () => {
      const vm = stage(awake(mode));
      hostWords(vm, svm(vm.bootstrap).vmcb.avicPhysicalTable).fill(0);
      const sent = sendFrom(vm, FIXED | 0x4_0000, to(mode, 3));
      assertEquals([sent.exit, sent.byHardware, sent.rung], [undefined, [0], []]);
      assert(svm(vm.bootstrap).hardware.avic.pending);
    });

    it("to sleepers among others sets every IRR, rings whom it can, and exits with id 1 behind the instruction", () => {
      const sent = sendFrom(stage(half(mode)), FIXED | 0xc_0000, 0);
      assertEquals(sent.exit, { id: 1, index: 1 });
      assertEquals(sent.byHardware, [1, 2, 3]);
      assertEquals(sent.rung, [2]);
      assertEquals(sent.woken, [1, 3]);
      assertEquals(sent.requested, [1, 2, 3]);
    });
  });

  describe(`an IPI that AVIC does not complete (${mode})`, () => {
    const others: readonly [what: string, low: number][] = [
      ["lowest priority", 0x4141],
      ["SMI", 0x4200],
      ["NMI", 0x4400],
      ["INIT", 0x4500],
      ["start-up", 0x4608],
      ["level-triggered", 0xc041],
    ];
    for (const [what, low] of others) {
      it(`as it is ${what} exits with id 0, and KVM sends it`, () => {
        const vm = stage(awake(mode));
        const sent = sendFrom(vm, low, to(mode, 2));
        assertEquals([sent.exit, sent.byHardware], [{ id: 0, index: 0 }, []]);
        const ipis = eventsOf(vm, "kvm_apic_ipi");
        assertEquals(ipis.map(({ args }) => [args[0], args[1]]), [[low, 2]]);
        assertEquals(eventsOf(vm, "kvm_apic_accept_irq").at(-1)!.args[0], 2);
      });
    }

    it("as its busy bit stayed set is written again by KVM, which clears the bit", () => {
      const vm = stage(awake(mode));
      const sent = sendFrom(vm, 0x5141, to(mode, 2));
      assertEquals([sent.exit, sent.requested], [{ id: 0, index: 0 }, [2]]);
      assertEquals(vm.bootstrap.lapic.get(0x300), 0x4141);
      assertEquals(eventsOf(vm, "kvm_apic").at(-1)!.args[1], 0x300);
    });

    it("as a target has no entry exits with id 2 before anybody is asked, and KVM sends all of it", () => {
      const vm = stage(half(mode));
      // Logical: vCPU 2, and an ID that nobody has. Physical: an ID that nobody has.
      const logical = sendFrom(vm, FIXED | LOGICAL, to(mode, 0x24));
      assertEquals([logical.exit?.id, logical.byHardware, logical.requested], [2, [], [2]]);
      assertEquals(logical.exit?.index, mode === "xapic" ? 5 : 0);
      const physical = sendFrom(stage(half(mode)), FIXED, to(mode, 77));
      assertEquals([physical.exit, physical.requested], [{ id: 2, index: 77 }, []]);
    });

    it("as a target has no entry is dropped by KVM before v6.3", () => {
      const vm = stage(half(mode), { hostSemantics: "2022" });
      const { exit, requested } = sendFrom(vm, FIXED | LOGICAL, to(mode, 0x24));
      assertEquals([exit?.id, requested], [2, []]);
      assertEquals(eventsOf(vm, "kvm_apic_ipi"), []);
    });

    it("as an entry names no page exits with id 3, and KVM does nothing", () => {
      const vm = stage(awake(mode));
      const table = hostWords(vm, svm(vm.bootstrap).vmcb.avicPhysicalTable);
      table[2 * 2] ^= 0x8000_0000;
      const sent = sendFrom(vm, FIXED, to(mode, 2));
      assertEquals([sent.exit, sent.requested, sent.woken], [{ id: 3, index: 2 }, [], []]);
    });

    it("as its vector is below 16 exits with id 4, and KVM drops it", () => {
      for (const low of [0x400f, 0x4000, 0x4_400f]) {
        const vm = stage(awake(mode));
        const sent = sendFrom(vm, low, to(mode, 2));
        assertEquals([sent.exit, sent.requested], [{ id: 4, index: 0 }, []]);
        assertEquals(eventsOf(vm, "kvm_apic_ipi"), []);
      }
      assertEquals(sendFrom(stage(awake(mode)), 0x4010, to(mode, 2)).exit, undefined);
    });

    it("as the target's ID is above the table's end exits with id 2", () => {
      const past = mode === "xapic" ? 0xfe : 0x1ff;
      const vm = stage({ mode, ids: [0, past], asleep: [] });
      assertEquals(sendFrom(vm, FIXED, to(mode, past)).byHardware, [past]);
      svm(vm.bootstrap).vmcb.avicMaxIndex = past - 1;
      const sent = sendFrom(stage({ mode, ids: [0, 1], asleep: [] }), FIXED, to(mode, past));
      assertEquals(sent.exit, { id: 2, index: past });
      const cut = sendFrom(vm, 0x4042, to(mode, past));
      assertEquals([cut.exit, cut.byHardware], [{ id: 2, index: past }, []]);
    });
  });

  describe(`the exit for an incomplete IPI (${mode})`, () => {
    const options: VmOptions = { backend: "svm", acceleration: mode === "xapic" ? "avic" : "x2avic" };

    /** A guest whose second vCPU runs until it is told to stop; whoever is interrupted counts it. */
    function spinning(vm: VmOptions = {}): Rig {
      return tracingRig({ vm: { ...options, vcpus: 2, ...vm } }).on(0x41, function* (cpu) {
        yield* write(cpu, mode, 0x0b0, 0);
        yield cpu.xadd32(DATA + 4, 1);
      }).aps(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.sti();
        yield cpu.xadd32(DATA, 1);
        yield cpu.pauseWhile(DATA + 8, 0);
      });
    }

    it("comes behind the instruction, with the ICR as it was written: KVM enters there again", () => {
      const rig = tracingRig({ vm: { ...options, vcpus: 2, haltPollNs: 0 } });
      const { vm } = rig;
      rig.on(0x41, function* (cpu) {
        yield* write(cpu, mode, 0x0b0, 0);
        yield cpu.xadd32(DATA, 1);
      });
      rig.aps(function* (cpu) {
        yield* enter(cpu, mode);
        yield cpu.xadd32(DATA, 1);
        yield cpu.sti();
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* bringUp(cpu, mode, 1);
        yield* until(cpu, DATA, 1);
        yield cpu.work(100_000);
        const from = mark(vm);
        yield* send(cpu, mode, { low: 0x4041, high: to(mode, 1) });
        const mine = events(vm, from).filter(({ vcpu }) => vcpu === 0);
        assertEquals(mine.map(({ event }) => event), [
          "kvm_exit",
          "kvm_avic_incomplete_ipi",
          "kvm_apicv_accept_irq",
          "kvm_entry",
        ]);
        const [exit, told, accepted, entry] = mine;
        assertEquals(
          [...exit.args],
          [0x401, entry.args[0], 0, 0x4041, to(mode, 1)].toSpliced(2, 1).concat(0),
        );
        assertEquals([...told.args], [0, to(mode, 1), 0x4041, 1, 1]);
        assertEquals([...accepted.args.slice(0, 4)], [1, 0, 0, 0x41]);
        yield* until(cpu, DATA, 2);
      });
      assertEquals(eventsOf(vm, "kvm_avic_kick_vcpu_slowpath"), []);
    });

    it("is not there while the target runs: nobody traces anything, at either end", () => {
      const rig = spinning();
      const { vm } = rig;
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* bringUp(cpu, mode, 1);
        yield* until(cpu, DATA, 1);
        const from = mark(vm);
        for (let i = 1; i <= 5; i++) {
          yield* send(cpu, mode, { low: 0x4041, high: to(mode, 1) });
          yield* until(cpu, DATA + 4, i);
        }
        assertEquals(events(vm, from), []);
        yield cpu.store32(DATA + 8, 1);
      });
    });

    it("is there each time without enable_ipiv: the table never says that anybody runs, and KVM rings", () => {
      const rig = spinning({ ipiv: false });
      const { vm } = rig;
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* bringUp(cpu, mode, 1);
        yield* until(cpu, DATA, 1);
        const from = mark(vm);
        yield* send(cpu, mode, { low: 0x4041, high: to(mode, 1) });
        yield* until(cpu, DATA + 4, 1);
        assertEquals(chain(vm, from), [
          "kvm_exit",
          "kvm_avic_incomplete_ipi",
          "kvm_apicv_accept_irq",
          "kvm_avic_doorbell",
          "kvm_entry",
        ]);
        yield* send(cpu, mode, { low: 0x4041, high: 0 }); // To itself: no doorbell, VMRUN looks.
        yield cpu.sti();
        yield* until(cpu, DATA + 4, 2);
        assertEquals(eventsOf(vm, "kvm_avic_doorbell", from).length, 1);
        yield cpu.store32(DATA + 8, 1);
      });
      assertEquals(vectors(vm.bootstrap.lapic, 0x200), []);
    });
  });
}
