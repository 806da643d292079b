import { assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { GP_VECTOR, IA32_APICBASE, MSR_KVM_PV_EOI_EN, type X86Cpu, X86Fault } from "../../abi/mod.ts";
import { cpuid, hypercall, hypercallError, rdmsr, rdmsrSafe, rdtsc, wrmsrSafe } from "../../guest/mod.ts";
import { BACKENDS, GuestError } from "../../host/mod.ts";
import { KernelRig, WIDTHS } from "../support/kernels.ts";

const NO_MSR = 0x1234;
const IA32_KERNEL_GS_BASE = 0xc000_0102;

describe("conveniences for instructions", () => {
  it("CPUID gives four registers, by leaf and subleaf", () => {
    new KernelRig({ cpus: 2 }).run(function* (cpu) {
      assertEquals(yield* cpuid(cpu, 0xb, 0), { eax: 0, ebx: 1, ecx: 0x100, edx: 0 });
      const cores = yield* cpuid(cpu, 0xb, 1);
      assertEquals([cores.ebx, cores.ecx], [2, 0x201]);
      const { ebx, edx, ecx } = yield* cpuid(cpu, 0);
      assertEquals([ebx, edx, ecx], [0x756e_6547, 0x4965_6e69, 0x6c65_746e]); // GenuineIntel
    });
  });

  it("RDMSR gives 64 bits", () => {
    new KernelRig().run(function* (cpu) {
      assertEquals(yield* rdmsr(cpu, IA32_APICBASE), 0xfee0_0d00n);
      assertEquals(yield* wrmsrSafe(cpu, IA32_KERNEL_GS_BASE, 0xffff_8000_1234_5678n), true);
      assertEquals(yield* rdmsr(cpu, IA32_KERNEL_GS_BASE), 0xffff_8000_1234_5678n);
    });
  });

  it("RDMSR of a register that is not there throws what the exception table is for", () => {
    new KernelRig().run(function* (cpu) {
      let caught: unknown;
      try {
        yield* rdmsr(cpu, NO_MSR);
      } catch (fault) {
        caught = fault;
      }
      assertInstanceOf(caught, X86Fault);
      assertEquals(caught.vector, GP_VECTOR);
    });
  });

  it("the safe forms answer in place of a fault, and the kernel goes on", () => {
    for (const bits of WIDTHS) {
      new KernelRig({ bits }).run(function* (cpu) {
        assertEquals(yield* rdmsrSafe(cpu, NO_MSR), undefined);
        assertEquals(yield* wrmsrSafe(cpu, NO_MSR, 1n), false);
        assertEquals(yield* rdmsrSafe(cpu, IA32_APICBASE), 0xfee0_0d00n);
        // A register that is there, and a value that it does not take: bit 1 of a 4-byte-aligned address.
        const enabled = yield* rdmsr(cpu, MSR_KVM_PV_EOI_EN);
        assertEquals(yield* wrmsrSafe(cpu, MSR_KVM_PV_EOI_EN, enabled | 2n), false);
        assertEquals(yield* rdmsr(cpu, MSR_KVM_PV_EOI_EN), enabled);
      });
    }
  });

  it("without them, a register that is not there stops the guest, and the error says where", () => {
    const rig = new KernelRig();
    const error = assertThrows(
      () =>
        rig.go(function* (cpu) {
          yield cpu.rdmsr(NO_MSR);
        }),
      GuestError,
      "nobody caught #GP of rdmsr",
    );
    assertEquals([error.processor, error.where], ["vcpu 0", "start_kernel"]);
  });

  it("RDTSC gives a whole number that rises", () => {
    new KernelRig().run(function* (cpu) {
      yield cpu.work(2 ** 33); // Past 32 bits.
      const before = yield* rdtsc(cpu);
      yield cpu.work(1000);
      const after = yield* rdtsc(cpu);
      assertEquals(before > 2 ** 33, true);
      assertEquals(after - before >= 1000 && after - before < 1100, true);
      assertEquals(Number.isSafeInteger(after), true);
    });
  });
});

describe("a typed hypercall", () => {
  for (const backend of BACKENDS) {
    it(`puts its number and arguments where the convention has them (${backend})`, () => {
      const rig = new KernelRig({ cpus: 2, vm: { backend } });
      rig.run(function* (cpu, kernel) {
        assertEquals(kernel.hypercallInstruction, backend === "vmx" ? "vmcall" : "vmmcall");
        rig.mark();
        const args = { bitmapLow: 0x1_0000_0000_0002n, bitmapHigh: 2n ** 63n, min: 0, icr: 0xfd } as const;
        const count = yield* hypercall(cpu, "KVM_HC_SEND_IPI", args, kernel.hypercallInstruction);
        assertEquals(count, 1); // Processor 1; there is no 48 and no 127.
        assertEquals(rig.hypercalls(), [{ nr: 10n, args: [0x1_0000_0000_0002n, 2n ** 63n, 0n, 0xfdn] }]);
      });
      assertEquals(rig.irqs(1, 0xfd), 1);
    });

    it(`of the other vendor works as well: the host patches it (${backend})`, () => {
      new KernelRig({ vm: { backend } }).run(function* (cpu) {
        const foreign = backend === "vmx" ? "vmmcall" : "vmcall";
        assertEquals(yield* hypercall(cpu, "KVM_HC_VAPIC_POLL_IRQ", {}, foreign), 0);
      });
    });
  }

  for (const bits of WIDTHS) {
    it(`gives errors below zero in ${bits}-bit mode, from a register of that width`, () => {
      new KernelRig({ cpus: 2, bits }).run(function* (cpu) {
        assertEquals(yield* hypercall(cpu, "KVM_HC_MMU_OP", {}), -1000);
        assertEquals(cpu.rax, bits === 64 ? 0xffff_ffff_ffff_fc18n : 0xffff_fc18n);
        const logical = { bitmapLow: 1n, bitmapHigh: 0n, min: 0, icr: 0x8fd } as const;
        assertEquals(yield* hypercall(cpu, "KVM_HC_SEND_IPI", logical), -22);
        assertEquals(cpu.rax, bits === 64 ? 0xffff_ffff_ffff_ffean : 0xffff_ffean);
        assertEquals(yield* hypercall(cpu, "KVM_HC_KICK_CPU", { flags: 0, apicId: 1 }), 0);
        assertEquals(cpu.rax, 0n);
      });
    });
  }

  it("in 32-bit mode has arguments of 32 bits, and the second bitmap begins at min + 32", () => {
    const rig = new KernelRig({ cpus: 40, bits: 32 });
    rig.run(function* (cpu) {
      const args = { bitmapLow: 2n ** 34n | 2n, bitmapHigh: 2n, min: 0, icr: 0xfd } as const;
      assertEquals(yield* hypercall(cpu, "KVM_HC_SEND_IPI", args), 2);
    });
    const reached = Array.from({ length: 40 }, (_, n) => n).filter((n) => rig.irqs(n, 0xfd) > 0);
    assertEquals(reached, [1, 33]); // Not 34.
  });

  it("clobbers RAX alone", () => {
    new KernelRig().run(function* (cpu) {
      yield* hypercall(cpu, "KVM_HC_KICK_CPU", { flags: 0x1111, apicId: 0x2222 });
      assertEquals([cpu.register("rbx"), cpu.register("rcx")], [0x1111n, 0x2222n]);
    });
  });

  it("takes numbers up to 2^53 and bigints, and nothing else", () => {
    const rig = new KernelRig();
    rig.run(function* (cpu) {
      rig.mark();
      yield* hypercall(cpu, "KVM_HC_KICK_CPU", { flags: -1n, apicId: 2 ** 52 });
      assertEquals(rig.hypercalls()[0].args.slice(0, 2), [2n ** 64n - 1n, 2n ** 52n]);
      assertThrows(() => [...hypercall(cpu, "KVM_HC_KICK_CPU", { flags: 0.5, apicId: 0 })], RangeError);
    });
  });

  it("has an error's name", () => {
    assertEquals([-1000, -95, -22, -14, -7, -1].map(hypercallError), [
      "KVM_ENOSYS",
      "KVM_EOPNOTSUPP",
      "KVM_EINVAL",
      "KVM_EFAULT",
      "KVM_E2BIG",
      "KVM_EPERM",
    ]);
    for (const result of [0, 79, -2, -999]) assertEquals(hypercallError(result), undefined);
  });

  it("is checked by the compiler: its name, and its arguments' names, by architecture", () => {
    /** Never run: compiling it is the test. */
    function* wrong(cpu: X86Cpu): Generator<number, void, void> {
      // @ts-expect-error: this argument is called apicId.
      yield* hypercall(cpu, "KVM_HC_KICK_CPU", { flags: 0, cpu: 1 });
      // @ts-expect-error: an argument is missing.
      yield* hypercall(cpu, "KVM_HC_SEND_IPI", { bitmapLow: 1n, bitmapHigh: 0n, min: 0 });
      // @ts-expect-error: arguments are numbers.
      yield* hypercall(cpu, "KVM_HC_SCHED_YIELD", { apicId: "1" });
      // @ts-expect-error: a call that has none.
      yield* hypercall(cpu, "KVM_HC_VAPIC_POLL_IRQ", { flags: 0 });
      // @ts-expect-error: PowerPC has this call, x86 has not.
      yield* hypercall(cpu, "KVM_HC_PPC_MAP_MAGIC_PAGE", { realAddress: 0, effectiveAddress: 0 });
      // @ts-expect-error: MIPS has this call, x86 has not.
      yield* hypercall(cpu, "KVM_HC_MIPS_GET_CLOCK_FREQ", {});
      // @ts-expect-error: nobody has this call.
      yield* hypercall(cpu, "KVM_HC_NOTHING", {});
      // @ts-expect-error: an instruction that carries no hypercalls.
      yield* hypercall(cpu, "KVM_HC_VAPIC_POLL_IRQ", {}, "syscall");
      // And this is right.
      yield* hypercall(cpu, "KVM_HC_CLOCK_PAIRING", { gpa: 0x1000, clockType: 0 });
    }
    assertEquals(wrong.length, 1);
  });
});
