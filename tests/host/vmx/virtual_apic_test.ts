import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_DEFAULT_BASE, APIC_REGISTERS } from "../../../abi/mod.ts";
import type { Acceleration } from "../../../host/mod.ts";
import type { Vmx } from "../../../host/vmx/mod.ts";
import { APIC_MODES, type ApicMode, enter, read, still, write } from "../../support/apic.ts";
import { exitsOf, lines, mark, tracingRig } from "../../support/events.ts";

const APIC = APIC_DEFAULT_BASE;

describe("VMX: a virtualized APIC", () => {
  it("is where the VMCS says, a page for each vCPU; the access page is one for all", () => {
    const vm = still({ acceleration: "apicv", vcpus: 2 });
    const other = vm.machine.createVm({ acceleration: "apicv" });
    const [a, b, c] = [...vm.vcpus, ...other.vcpus].map((vcpu) => (vcpu.backend as Vmx).vmcs);
    for (const [i, { virtualApicPage }] of [a, b, c].entries()) {
      const { lapic } = [...vm.vcpus, ...other.vcpus][i];
      assertEquals(virtualApicPage % 4096, 0);
      assertEquals(vm.machine.hostMemory.at(virtualApicPage) === lapic.page, true);
    }
    assertEquals(a.apicAccessPage, b.apicAccessPage);
    assertEquals(new Set([a, b, c].flatMap((v) => [v.virtualApicPage, v.apicAccessPage])).size, 5);
    assertEquals(vm.machine.hostMemory.at(a.apicAccessPage).byteLength, 4096);
  });

  it("has nothing requested and nothing in service behind RESET, and INIT leaves the exits of EOIs as they are", () => {
    const vm = still({ acceleration: "apicv" });
    const { vmcs } = vm.bootstrap.backend as Vmx;
    for (const init of [true, false]) {
      vm.bootstrap.lapic.setIrr(0x52);
      vmcs.rvi = 0x52;
      vmcs.svi = 0x31;
      vmcs.eoiExitBitmap[2] = 1;
      vm.bootstrap.reset(init);
      // After INIT, RVI is what the next synchronization finds: nothing.
      for (const _ of vm.bootstrap.backend.syncPirToIrr() ?? []) { /* Straight through. */ }
      assertEquals([vmcs.rvi, vmcs.svi, vmcs.eoiExitBitmap[2]], [0, 0, init ? 1 : 0]);
    }
  });

  /** Registers, and what is written to them before all are read. */
  const VALUES: readonly (readonly [offset: number, value: number])[] = [
    [0x080, 0x35],
    [0x0d0, 0x5500_0000],
    [0x0e0, 0x0fff_ffff],
    [0x0f0, 0xffff_f3fe],
    [0x320, 0xffff_ffff],
    [0x330, 0xffff_ffff],
    [0x340, 0x1_0432],
    [0x350, 0xffff_ffff],
    [0x360, 0x8700],
    [0x370, 0x1_00fe],
    [0x380, 0],
    [0x3e0, 0xffff_ffff],
    [0x310, 0xffff_ffff],
  ];

  function registers(level: Acceleration, mode: ApicMode): (readonly [string, number | "#GP"])[] {
    const rig = tracingRig({ vm: { acceleration: level } });
    const values: (readonly [string, number | "#GP"])[] = [];
    rig.finish(function* (cpu) {
      yield* enter(cpu, mode);
      for (const [offset, value] of VALUES) yield* write(cpu, mode, offset, value);
      yield* write(cpu, mode, 0x300, 0x4_0041); // An IPI to itself: requested, and not taken.
      yield* write(cpu, mode, 0x300, 0x4_0093);
      for (const { offset, name, count } of APIC_REGISTERS) {
        for (let i = 0; i < count; i++) {
          const at = offset + 16 * i;
          values.push([`${name}+${i}`, yield* read(cpu, mode, at)]);
        }
      }
    });
    return values;
  }

  for (const mode of APIC_MODES) {
    it(`reads as an emulated one does, register by register (${mode})`, () => {
      const emulated = registers("none", mode);
      for (const level of ["apicv", "ipiv"] as const) assertEquals(registers(level, mode), emulated, level);
    });
  }

  it("keeps what the guest wrote to the error status: behind the write KVM can only leave it (xAPIC)", () => {
    // kvm_lapic_reg_write: an emulated one stores nothing there.
    for (const [level, kept] of [["none", 0], ["apicv", 0x1234_5678], ["ipiv", 0x1234_5678]] as const) {
      tracingRig({ vm: { acceleration: level } }).finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* write(cpu, "xapic", 0x280, 0x1234_5678);
        assertEquals(yield* read(cpu, "xapic", 0x280), kept, level);
      });
    }
  });

  it("reads as zeroes where EOI was written, and keeps the written half of the ICR's upper word", () => {
    const rig = tracingRig({ vm: { acceleration: "apicv" } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x0b0, 0xffff_ffff);
      assertEquals(yield* read(cpu, "xapic", 0x0b0), 0);
      yield* write(cpu, "xapic", 0x310, 0xabcd_ef01);
      assertEquals(yield* read(cpu, "xapic", 0x310), 0xab00_0000);
      // SDM 3C 30.4.3.2 means all of 310H-313H, where for other registers it names their first byte.
      for (const [byte, left] of [[2, 0xab00_0000], [3, 0xff00_0000]]) {
        assertEquals(yield* exitsOf(rig.vm, cpu.store8(APIC + 0x310 + byte, 0xff)), []);
        assertEquals(yield* read(cpu, "xapic", 0x310), left);
      }
      yield* write(cpu, "xapic", 0x080, 0xffff_ff42);
      assertEquals(yield* read(cpu, "xapic", 0x080), 0x42);
      yield cpu.xchg32(APIC + 0x080, 0x1_0031);
      assertEquals(cpu.eax, 0x42);
      yield cpu.load8(APIC + 0x080);
      assertEquals(cpu.eax, 0x31);
      yield cpu.load16(APIC + 0x082);
      assertEquals(cpu.eax, 0);
    });
  });

  it("exits behind the instruction that wrote: RIP has moved on, and the page has the value", () => {
    const rig = tracingRig({ vm: { acceleration: "apicv" } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      const { processor, lapic, backend } = rig.vm.bootstrap;
      const handle = backend.handleExit.bind(backend);
      let looked = 0;
      backend.handleExit = () => {
        if (processor.exitReason === 56) {
          looked++;
          // Nothing is pending: the store is done, in the page as the guest wrote it.
          assertEquals(processor.context.pending, 0);
          assertEquals(lapic.get(0x320), 0xffff_ffff);
        }
        handle();
        // KVM keeps what the register has, and does not skip anything.
        if (processor.exitReason === 56) assertEquals(lapic.get(0x320), 0x0007_10ff);
      };
      yield* write(cpu, "xapic", 0x320, 0xffff_ffff);
      assertEquals(looked, 1);
      delete (backend as { handleExit?: unknown }).handleExit;
    });
  });

  it("hands KVM an x2APIC's whole ICR behind an APIC-write exit, at offset 0x300", () => {
    const rig = tracingRig({ vm: { acceleration: "ipiv", vcpus: 2 } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      const from = mark(rig.vm);
      // Bit 12 does not fault, and is KVM's to clear.
      yield cpu.wrmsr(0x830, 0x5841, 0x0001_0001);
      assertEquals(
        lines(rig.vm, from).filter((line) => /^kvm_(apic|apic_ipi|msr|exit):/.test(line)).map((line) =>
          line.split(":")[0]
        ),
        [
          "kvm_exit",
          "kvm_apic_ipi",
          "kvm_apic",
        ],
      );
      yield cpu.rdmsr(0x830);
      assertEquals([cpu.eax, cpu.edx], [0x4841, 0x0001_0001]);
    });
  });
});
