import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_CD,
  CR0_ET,
  CR0_NW,
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  EFER_LMA,
  EFER_LME,
  GP_VECTOR,
  IA32_CSTAR,
  IA32_EFER,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
  IA32_LSTAR,
  IA32_STAR,
  KERNEL_CS,
  USER_CS,
  X2APIC_EOI,
  X2APIC_ICR,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import {
  AP_START,
  DATA,
  enableX2apic,
  faults,
  longMode,
  Rig,
  type RigOptions,
  rigWithGp,
} from "../../support/guests.ts";

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
