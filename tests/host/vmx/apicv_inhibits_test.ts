import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_DEFAULT_BASE, IA32_APICBASE, type X86Cpu } from "../../../abi/mod.ts";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import type { Vm } from "../../../host/mod.ts";
import { activity, addApicvPort, allowApicv } from "../../support/apicv.ts";
import { type ApicMode, type Asking, bringUp, enter, still, until, write } from "../../support/apic.ts";
import { count, eventsOf, exits, exitsOf, mark, tracingRig } from "../../support/events.ts";
import { DATA, type Rig, type RigOptions } from "../../support/guests.ts";

const MIDDLE = 0x52;
const APIC = APIC_DEFAULT_BASE;
/** A read of a linear address that EPT does not map; a write (SDM 3C table 28-7). */
const EPT_READ = ["EPT_VIOLATION", 0x181n] as const;
const EPT_WRITE = ["EPT_VIOLATION", 0x182n] as const;
/** Numbers of reasons (x86/kvm_host.h, enum kvm_apicv_inhibit). */
const PHYSICAL_ID_ALIASED = 4;
const APIC_ID_MODIFIED = 5;
const APIC_BASE_MODIFIED = 6;

/** A rig with a processor that has APICv, and a port that inhibits it. */
function apicvRig(options: RigOptions = {}): Rig {
  const rig = tracingRig({ ...options, vm: { acceleration: "apicv", ...options.vm } });
  addApicvPort(rig.vm);
  return rig;
}

/** What became of the reasons from a mark on: only changes. */
function changes(vm: Vm, from: number): (readonly [reason: number, set: boolean, inhibits: number])[] {
  let last = -1;
  return eventsOf(vm, "kvm_apicv_inhibit_changed", from).flatMap(({ args: [reason, set, inhibits] }) => {
    const changed = inhibits !== last && !(last === -1 && set === 0);
    last = inhibits;
    return changed ? [[reason, set === 1, inhibits] as const] : [];
  });
}

/** Sends itself an interrupt, however the APIC is served. */
function* selfIpi(cpu: X86Cpu, mode: ApicMode, vector: number): Asking<void> {
  yield* write(cpu, mode, 0x300, 0x4_4000 | vector);
}

describe("APICv is inhibited", () => {
  it("while an xAPIC's ID is not its vCPU's number", () => {
    const rig = apicvRig();
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      assertEquals(yield* exitsOf(rig.vm, cpu.store32(APIC + 0x0e0, 0xffff_ffff)), [["APIC_WRITE", 0x0e0n]]);
      const from = mark(rig.vm);
      yield* write(cpu, "xapic", 0x020, 5 << 24);
      assertEquals(changes(rig.vm, from), [[APIC_ID_MODIFIED, true, 1 << APIC_ID_MODIFIED]]);
      assertEquals(activity(rig.vm), [false]);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(APIC + 0x020)), [EPT_READ]);
      assertEquals(cpu.eax, 5 << 24);
      const back = mark(rig.vm);
      yield* write(cpu, "xapic", 0x020, 0);
      assertEquals(rig.vm.apicvInhibits, 0);
      assertEquals(eventsOf(rig.vm, "kvm_apicv_inhibit_changed", back).at(-1)!.args.slice(0, 3), [
        APIC_ID_MODIFIED,
        0,
        0,
      ]);
      assertEquals(activity(rig.vm), [true]);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(APIC + 0x020)), []);
    });
  });

  for (const wide of [false, true]) {
    it(`while two xAPICs have one ID${wide ? ": with 32-bit IDs that is not ambiguous, but still a changed ID" : ""}`, () => {
      const rig = apicvRig({ vm: { vcpus: 2, x2apicApi32BitIds: wide } });
      rig.aps(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield cpu.store32(DATA, 1);
        for (;;) yield cpu.hlt();
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* bringUp(cpu, "xapic", 1);
        yield* until(cpu, DATA, 1);
        const from = mark(rig.vm);
        yield* write(cpu, "xapic", 0x020, 1 << 24);
        const aliased = 1 << PHYSICAL_ID_ALIASED;
        const modified = 1 << APIC_ID_MODIFIED;
        assertEquals(
          changes(rig.vm, from),
          wide
            ? [[APIC_ID_MODIFIED, true, modified]]
            : [[PHYSICAL_ID_ALIASED, true, aliased], [APIC_ID_MODIFIED, true, aliased | modified]],
        );
        yield* write(cpu, "xapic", 0x020, 0);
        assertEquals(rig.vm.apicvInhibits, 0);
      });
    });
  }

  it("for good once an APIC's page was moved", () => {
    const rig = apicvRig();
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      const from = mark(rig.vm);
      yield cpu.wrmsr(IA32_APICBASE, 0xfed0_0900);
      assertEquals(changes(rig.vm, from), [[APIC_BASE_MODIFIED, true, 1 << APIC_BASE_MODIFIED]]);
      yield cpu.load32(0xfed0_0020);
      assertEquals(cpu.eax, 0);
      yield cpu.wrmsr(IA32_APICBASE, 0xfee0_0900);
      assertEquals(rig.vm.apicvInhibits, 1 << APIC_BASE_MODIFIED);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(APIC + 0x020)), [EPT_READ]);
    });
  });

  it("on one vCPU alone while its APIC is disabled: that is no reason for the others", () => {
    const rig = apicvRig({ vm: { vcpus: 2 } });
    rig.aps(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield cpu.wrmsr(IA32_APICBASE, 0xfee0_0000);
      assertEquals(activity(rig.vm), [true, false]);
      // EPT maps the page, and nothing virtualizes accesses to it: it is memory (kvm-unit-tests apic, disabled APIC).
      const from = mark(rig.vm);
      yield cpu.load32(APIC + 0x030);
      assertEquals(cpu.eax, 0);
      yield cpu.store32(APIC + 0x030, 0xffff_ffff);
      yield cpu.xchg32(APIC + 0x030, 0x1234_5678);
      assertEquals(cpu.eax, 0xffff_ffff);
      yield cpu.load8(APIC + 0x031);
      assertEquals(cpu.eax, 0x56);
      assertEquals(exits(rig.vm, from), []);
      yield cpu.wrmsr(IA32_APICBASE, 0xfee0_0800);
      assertEquals(activity(rig.vm), [true, true]);
      yield cpu.load32(APIC + 0x030);
      assertEquals(cpu.eax & 0xff, 0x14, "the version");
      yield cpu.store32(DATA, 1);
      for (;;) yield cpu.hlt();
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* bringUp(cpu, "xapic", 1);
      yield* until(cpu, DATA, 1);
      assertEquals(rig.vm.apicvInhibits, 0);
    });
  });

  it("from the beginning where the module parameter is off, and nothing else is looked at then", () => {
    const vm = still({ acceleration: "apicv", apicv: false, trace: 16 });
    assertEquals(vm.apicvInhibits, 1);
    setApicvInhibit(vm, "BLOCKIRQ", true);
    assertEquals(vm.apicvInhibits, 1);
    assertEquals(count(vm, "kvm_apicv_inhibit_changed"), 0);
  });

  it("by no reason that is SVM's alone", () => {
    const vm = still({ acceleration: "apicv", trace: 16 });
    const before = count(vm, "kvm_apicv_inhibit_changed");
    for (const reason of ["NESTED", "IRQWIN", "PIT_REINJ", "LOGICAL_ID_ALIASED"] as const) {
      setApicvInhibit(vm, reason, true);
    }
    assertEquals(vm.apicvInhibits, 0);
    assertEquals(count(vm, "kvm_apicv_inhibit_changed"), before);
  });
});

describe("while APICv is inhibited", () => {
  it("an xAPIC's page is not mapped; since v5.15, that is: before, its accesses are the APIC-access page's", () => {
    for (const [hostSemantics, seen] of [["v6.19", EPT_WRITE], ["2021", ["APIC_ACCESS", 0x10b0n]]] as const) {
      const rig = apicvRig({ vm: { hostSemantics, ioapicInKernel: false } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        assertEquals(yield* exitsOf(rig.vm, cpu.store32(APIC + 0x0b0, 0)), []);
        yield allowApicv(cpu, false);
        assertEquals(yield* exitsOf(rig.vm, cpu.store32(APIC + 0x0b0, 0)), [seen], hostSemantics);
        yield allowApicv(cpu, true);
        assertEquals(yield* exitsOf(rig.vm, cpu.store32(APIC + 0x0b0, 0)), []);
      });
    }
  });

  it("an x2APIC's MSRs exit, but for the task priority, whose threshold counts again", () => {
    const rig = apicvRig({ vm: { ioapicInKernel: false } });
    let handled = 0;
    rig.on(MIDDLE, function* (cpu) {
      handled++;
      yield cpu.wrmsr(0x80b, 0);
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield allowApicv(cpu, false);
      assertEquals(yield* exitsOf(rig.vm, cpu.wrmsr(0x80b, 0)), [["MSR_WRITE", 0n]]);
      assertEquals(yield* exitsOf(rig.vm, cpu.rdmsr(0x80a)), [["MSR_READ", 0n]]);
      assertEquals(yield* exitsOf(rig.vm, cpu.rdmsr(0x808)), []);
      assertEquals(yield* exitsOf(rig.vm, cpu.wrmsr(0x808, 0x60)), []);
      yield cpu.sti();
      yield* selfIpi(cpu, "x2apic", MIDDLE);
      assertEquals(handled, 0);
      const from = mark(rig.vm);
      yield cpu.movToCr8(0);
      assertEquals(exits(rig.vm, from)[0], ["TPR_BELOW_THRESHOLD", 0n]);
      assertEquals(handled, 1);
      yield cpu.cli();
    });
  });

  it("an x2APIC's guest finds nothing at the xAPIC's page; while it is not, it finds memory that nobody else has", () => {
    const rig = apicvRig();
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.store32(APIC + 0x080, 0xabcd);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(APIC + 0x080)), []);
      assertEquals(cpu.eax, 0xabcd);
      yield cpu.rdmsr(0x808);
      assertEquals(cpu.eax, 0, "the task priority is another thing");
      yield allowApicv(cpu, false);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(APIC + 0x080)), [EPT_READ]);
      assertEquals(cpu.eax, 0xffff_ffff, "KVM's quirk: a hole");
    });
  });
});
