import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_ET,
  CR0_NW,
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR3_PCD,
  CR3_PWT,
  CR4_PAE,
  CR4_PGE,
  EFER_LMA,
  EFER_LME,
  EFER_NX,
  EFER_SCE,
  IA32_EFER,
  KERNEL32_CS,
  KERNEL_CS,
  SYS_IDT_BASE,
} from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { DATA, faults, IDT, type RigOptions, rigWithGp } from "../../support/guests.ts";

for (const backend of BACKENDS) {
  const options: RigOptions = { vm: { backend, vcpus: 2 } };

  describe(`control registers in 64-bit mode (${backend})`, () => {
    it("read back what was written, with the fixed bit set", () => {
      const rig = rigWithGp(options);
      rig.finish(function* (cpu) {
        yield cpu.movToCr0(CR0_PE | CR0_PG | CR0_WP);
        yield cpu.movFromCr0();
        assertEquals(cpu.eax, (CR0_PE | CR0_PG | CR0_WP | CR0_ET) >>> 0);
        yield cpu.movToCr3(CR3_PWT | CR3_PCD);
        yield cpu.movFromCr3();
        assertEquals(cpu.rax, BigInt(CR3_PWT | CR3_PCD));
        yield cpu.movToCr4(CR4_PAE | CR4_PGE);
        yield cpu.movFromCr4();
        assertEquals(cpu.rax, BigInt(CR4_PAE | CR4_PGE));
        yield cpu.movToCr8(9);
        yield cpu.movFromCr8();
        assertEquals(cpu.rax, 9n);
      });
    });

    it("refuse with #GP what the manual refuses, and stay as they are", () => {
      const rig = rigWithGp(options);
      rig.finish(function* (cpu) {
        yield cpu.movFromCr0();
        const cr0 = cpu.eax;
        const bad: [string, () => number][] = [
          ["paging without protection", () => cpu.movToCr0(CR0_PG)],
          ["NW without CD", () => cpu.movToCr0(CR0_PE | CR0_PG | CR0_NW)],
          ["no paging in 64-bit code", () => cpu.movToCr0(CR0_PE)],
          ["bit 63 of CR3, without PCIDs", () => cpu.movToCr3(0, 0x8000_0000)],
          ["an address in CR3 that the processor cannot reach", () => cpu.movToCr3(0, 1 << 14)],
          ["no PAE in long mode", () => cpu.movToCr4(0)],
          ["a reserved bit of CR4", () => cpu.movToCr4(CR4_PAE | 1 << 31)],
          ["VMXE, which this CPU lacks", () => cpu.movToCr4(CR4_PAE | 1 << 13)],
          ["a reserved bit of CR8", () => cpu.movToCr8(16)],
          ["an upper bit of CR8", () => cpu.movToCr8(0, 1)],
          ["LME while paging is on", () => cpu.wrmsr(IA32_EFER, EFER_LMA)],
          ["a reserved bit of EFER", () => cpu.wrmsr(IA32_EFER, EFER_LME | EFER_LMA | 1 << 1)],
          ["an upper bit of EFER", () => cpu.wrmsr(IA32_EFER, EFER_LME | EFER_LMA, 1)],
        ];
        for (const [what, op] of bad) assertEquals(yield* faults(op), true, what);
        yield cpu.movFromCr0();
        assertEquals(cpu.eax, cr0);
        yield cpu.movFromCr4();
        assertEquals(cpu.eax, CR4_PAE);
        yield cpu.movFromCr8();
        assertEquals(cpu.eax, 0);
        yield cpu.rdmsr(IA32_EFER);
        assertEquals(cpu.eax, EFER_LME | EFER_LMA);
        const good = () => cpu.wrmsr(IA32_EFER, EFER_LME | EFER_SCE | EFER_NX);
        assertEquals(yield* faults(good), false, "LMA is the processor's: what is written there is ignored");
        yield cpu.rdmsr(IA32_EFER);
        assertEquals(cpu.eax, EFER_LME | EFER_LMA | EFER_SCE | EFER_NX);
      });
    });

    it("leave long mode by way of compatibility mode", () => {
      const rig = rigWithGp(options);
      rig.finish(function* (cpu) {
        const { processor } = rig.vm.bootstrap;
        yield cpu.loadCs(KERNEL32_CS);
        assertEquals([processor.longMode, processor.longActive], [false, true]);
        yield cpu.movToCr0(CR0_PE);
        assertEquals([processor.longMode, processor.longActive], [false, false]);
        yield cpu.rdmsr(IA32_EFER);
        assertEquals(cpu.eax, EFER_LME);
        yield cpu.movToCr4(0);
      });
    });

    it("load the IDT from a pseudo-descriptor of six bytes in compatibility mode, of ten in 64-bit mode", () => {
      const rig = rigWithGp(options);
      const { processor } = rig.vm.bootstrap;
      rig.finish(function* (cpu) {
        yield cpu.store16(DATA, 0xfff);
        yield cpu.store32(DATA + 2, IDT);
        yield cpu.store32(DATA + 6, 0x8000); // Not canonical, if it were part of the base.
        assertEquals(yield* faults(() => cpu.lidt(DATA)), true);
        yield cpu.loadCs(KERNEL32_CS);
        assertEquals(yield* faults(() => cpu.lidt(DATA)), false);
        yield cpu.loadCs(KERNEL_CS);
        assertEquals([processor.sys[SYS_IDT_BASE], processor.sys[SYS_IDT_BASE + 1]], [IDT, 0]);
        assertEquals(yield* faults(() => cpu.movToCr0(CR0_PG)), true, "through that IDT");
      });
    });

    it("need PAE before paging where LME is set", () => {
      const rig = rigWithGp({ ...options, mode: "32-bit" });
      rig.finish(function* (cpu) {
        yield cpu.wrmsr(IA32_EFER, EFER_LME);
        assertEquals(yield* faults(() => cpu.movToCr0(CR0_PE | CR0_PG)), true);
        assertEquals(rig.vm.bootstrap.processor.longActive, false);
        yield cpu.movToCr4(CR4_PAE);
        yield cpu.movToCr0(CR0_PE | CR0_PG);
        assertEquals(rig.vm.bootstrap.processor.longActive, true);
      });
    });

    it("need a code segment without L before paging where LME is set", () => {
      const rig = rigWithGp({ ...options, mode: "32-bit" });
      rig.finish(function* (cpu) {
        const { processor } = rig.vm.bootstrap;
        yield cpu.wrmsr(IA32_EFER, EFER_LME);
        yield cpu.movToCr4(CR4_PAE);
        yield cpu.loadCs(KERNEL_CS);
        assertEquals(yield* faults(() => cpu.movToCr0(CR0_PE | CR0_PG)), true);
        assertEquals(processor.longActive, false);
        yield cpu.loadCs(KERNEL32_CS);
        yield cpu.movToCr0(CR0_PE | CR0_PG);
        assertEquals([processor.longMode, processor.longActive], [false, true]);
      });
    });
  });
}
