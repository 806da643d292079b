import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_CD,
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
  GP_VECTOR,
  IA32_CSTAR,
  IA32_EFER,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
  IA32_LSTAR,
  IA32_STAR,
  KERNEL32_CS,
  KERNEL_CS,
  SYS_IDT_BASE,
  USER_CS,
  X2APIC_EOI,
  X2APIC_ICR,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import { AP_START, DATA, enableX2apic, IDT, longMode, Rig, type RigOptions } from "../../support/guests.ts";

/** A rig on which a #GP is thrown into whoever caused it. */
function rigWithGp(options: RigOptions = {}): Rig {
  return new Rig(options).on(GP_VECTOR, function* (cpu) {
    cpu.fixup();
    yield cpu.iret();
  });
}

/** Whether an instruction raises #GP. */
function* faults(op: () => number): Generator<number, boolean, void> {
  try {
    yield op();
    return false;
  } catch {
    return true;
  }
}

/** Starts the second vCPU at {@linkcode AP_START}, which runs `ap` in real mode, and waits until it has set DATA. */
function startReal(rig: Rig, ap: (cpu: X86Cpu) => Generator<number, void, void>): void {
  rig.text.addAt(AP_START, function* real(cpu) {
    yield* ap(cpu);
    yield cpu.store32(DATA, 1);
    for (;;) yield cpu.hlt();
  });
  rig.finish(function* (cpu) {
    yield* enableX2apic(cpu);
    yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
    yield cpu.wrmsr(X2APIC_ICR, 0x4608, 1);
    yield cpu.pauseWhile(DATA, 0);
  });
}

for (const backend of BACKENDS) {
  const options: RigOptions = { vm: { backend, vcpus: 2 } };

  describe(`an application processor behind its start-up IPI (${backend})`, () => {
    it("has the registers that INIT leaves", () => {
      const rig = new Rig(options);
      let registers: unknown[] = [];
      startReal(rig, function* (cpu) {
        const edx = cpu.edx;
        yield cpu.cpuid(1);
        const signature = cpu.eax;
        yield cpu.movFromCr0();
        const cr0 = cpu.eax;
        yield cpu.movFromCr4();
        const cr4 = cpu.eax;
        yield cpu.pushf();
        registers = [edx === signature, cr0, cr4, cpu.eax];
      });
      // SDM 3A table 10-1: caches off, and nothing but the fixed bits.
      assertEquals(registers, [true, (CR0_CD | CR0_NW | CR0_ET) >>> 0, 0, 2]);
    });

    it("is in real mode, where interrupts go through four-byte vectors and carry no error code", () => {
      const rig = new Rig(options);
      const seen: unknown[] = [];
      const handler = 0x9_0000;
      rig.text.addAt(handler as typeof AP_START, function* handler(cpu) {
        seen.push(cpu.vector, cpu.errorCode, cpu.interruptsEnabled);
        if (cpu.vector === GP_VECTOR) cpu.skip();
        else yield cpu.wrmsr(X2APIC_EOI, 0);
        yield cpu.iret();
      });
      for (const vector of [GP_VECTOR, 0x70]) rig.vm.memory.setWord(4 * vector, handler / 16 * 0x1_0000);
      startReal(rig, function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.rdmsr(0x1234);
        yield cpu.wrmsr(0x83f, 0x70);
        yield cpu.sti();
        yield cpu.pause();
        yield cpu.pause();
        seen.push(cpu.interruptsEnabled);
      });
      assertEquals(seen, [GP_VECTOR, 0, false, 0x70, 0, false, true]);
    });

    it("reaches 64-bit mode by PAE, LME, paging and a 64-bit code segment, in that order", () => {
      const rig = new Rig(options);
      const efer: number[] = [];
      let long = false;
      startReal(rig, function* (cpu) {
        yield cpu.movToCr4(CR4_PAE);
        yield cpu.wrmsr(IA32_EFER, EFER_LME);
        yield cpu.rdmsr(IA32_EFER);
        efer.push(cpu.eax);
        yield cpu.movToCr0(CR0_PE | CR0_PG);
        yield cpu.rdmsr(IA32_EFER);
        efer.push(cpu.eax);
        yield cpu.loadCs(KERNEL_CS);
        long = rig.vm.vcpus[1].processor.longMode;
      });
      assertEquals(efer, [EFER_LME, EFER_LME | EFER_LMA]);
      assertEquals(long, true);
    });

    it("that is sent to where no function is, is an error", () => {
      const rig = new Rig(options);
      rig.start(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.wrmsr(X2APIC_ICR, 0x4607, 1);
        for (;;) yield cpu.pause();
      });
      assertThrows(
        () => rig.vm.machine.run(1e9),
        GuestError,
        "no function on vcpu 1 at RIP 0x7000: 0x7000 is not the entry of a guest function",
      );
    });
  });

  describe(`INIT (${backend})`, () => {
    it("drops what runs without its finally blocks, and a start-up IPI begins afresh", () => {
      const rig = new Rig(options);
      const story: string[] = [];
      rig.on(0x40, function* handler(cpu) {
        try {
          story.push("handler");
          yield cpu.xadd32(DATA, 1);
          for (;;) yield cpu.work(1000);
        } finally {
          story.push("handler's finally");
        }
      });
      rig.aps(function* ap(cpu) {
        try {
          story.push("started");
          yield* enableX2apic(cpu);
          yield cpu.sti();
          yield cpu.xadd32(DATA, 1);
          for (;;) yield cpu.hlt();
        } finally {
          story.push("finally");
        }
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.wrmsr(X2APIC_ICR, 0x4608, 1);
        yield cpu.pauseWhile(DATA, 0);
        yield cpu.wrmsr(X2APIC_ICR, 0x4040, 1);
        yield cpu.pauseWhile(DATA, 1);
        assertEquals(rig.vm.vcpus[1].processor.context.depth, 2);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.work(1e6);
        assertEquals(rig.vm.vcpus[1].processor.context.depth, 0);
        yield cpu.wrmsr(X2APIC_ICR, 0x4608, 1);
        yield cpu.pauseWhile(DATA, 2);
      });
      assertEquals(story, ["started", "handler", "started"]);
      assertEquals(rig.vm.vcpus[1].processor.context.depth, 1);
    });

    it("keeps the MSRs that are no segment's, and CR0's cache bits", () => {
      const rig = new Rig(options);
      const read: unknown[] = [];
      const msrs = [IA32_LSTAR, IA32_STAR, IA32_KERNEL_GS_BASE, IA32_FS_BASE, IA32_GS_BASE, IA32_EFER];
      let starts = 0;
      rig.text.addAt(AP_START, function* ap(cpu) {
        if (++starts === 1) {
          yield* longMode(cpu); // Clears CD and NW.
          for (const [n, msr] of msrs.slice(0, 5).entries()) yield cpu.wrmsr(msr, 0x1000 * (n + 1), 7);
        } else {
          for (const msr of msrs) {
            yield cpu.rdmsr(msr);
            read.push([cpu.eax, cpu.edx]);
          }
          yield cpu.movFromCr0();
          read.push(cpu.eax);
        }
        yield cpu.xadd32(DATA, 1);
        for (;;) yield cpu.hlt();
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        for (const count of [0, 1]) {
          yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
          yield cpu.wrmsr(X2APIC_ICR, 0x4608, 1);
          yield cpu.pauseWhile(DATA, count);
        }
      });
      assertEquals(read, [[0x1000, 7], [0x2000, 7], [0x3000, 7], [0, 0], [0, 0], [0, 0], CR0_ET]);
    });
  });

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

  describe(`an instruction with a REX prefix (${backend})`, () => {
    const encodedWithRex: readonly ((cpu: X86Cpu) => number)[] = [
      (cpu) => cpu.load64(DATA),
      (cpu) => cpu.store64(DATA, 1),
      (cpu) => cpu.xchg64(DATA, 1),
      (cpu) => cpu.cmpxchg64(DATA, 0, 1),
      (cpu) => cpu.movToCr8(1),
      (cpu) => cpu.movFromCr8(),
    ];

    it("is an error outside 64-bit mode, where its bytes are another instruction", () => {
      for (const build of encodedWithRex) {
        const rig = new Rig({ ...options, mode: "32-bit" });
        const run = () =>
          rig.finish(function* (cpu) {
            yield build(cpu);
          });
        assertThrows(run, GuestError, "outside 64-bit mode");
      }
    });
  });

  describe(`the MSRs that the processor keeps (${backend})`, () => {
    it("read back what was written, and refuse addresses that are not canonical", () => {
      const rig = rigWithGp(options);
      const bases = [IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE, IA32_LSTAR, IA32_CSTAR];
      rig.finish(function* (cpu) {
        for (const msr of bases) {
          for (const high of [0, 0x7fff, 0xffff_8000]) {
            yield cpu.wrmsr(msr, 0x1000, high);
            yield cpu.rdmsr(msr);
            assertEquals([cpu.eax, cpu.edx], [0x1000, high]);
          }
          for (const high of [0x8000, 0x7fff_ffff, 0xffff_7fff]) {
            assertEquals(yield* faults(() => cpu.wrmsr(msr, 0, high)), true);
          }
          yield cpu.rdmsr(msr);
          assertEquals([cpu.eax, cpu.edx], [0x1000, 0xffff_8000], "a refused value changes nothing");
        }
        assertEquals(yield* faults(() => cpu.wrmsr(IA32_STAR, 1, 0x0010_0008)), false);
        assertEquals(yield* faults(() => cpu.wrmsr(IA32_FMASK, 0x200)), false);
        assertEquals(yield* faults(() => cpu.wrmsr(IA32_FMASK, 0x200, 1)), true);
      });
    });
  });

  describe(`a code segment (${backend})`, () => {
    it("that the GDT lacks, or of another privilege, raises #GP with its selector", () => {
      const rig = new Rig(options);
      const codes: number[] = [];
      rig.on(GP_VECTOR, function* (cpu) {
        codes.push(cpu.errorCode);
        cpu.fixup();
        yield cpu.iret();
      }).finish(function* (cpu) {
        for (const selector of [0, 0x18, USER_CS, KERNEL_CS | 3]) {
          assertEquals(yield* faults(() => cpu.loadCs(selector)), true);
        }
        assertEquals(cpu.cpl, 0);
      });
      assertEquals(codes, [0, 0x18, USER_CS & ~3, KERNEL_CS]);
    });
  });
}
