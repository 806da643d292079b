import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  IA32_EFER,
  IA32_LSTAR,
  IA32_TSC_ADJUST,
  IA32_TSC_AUX,
  MSR_KVM_ASYNC_PF_EN,
  MSR_KVM_MIGRATION_CONTROL,
  MSR_KVM_POLL_CONTROL,
  MSR_KVM_STEAL_TIME,
  msrName,
  MSRS,
  u64,
  X2APIC_ICR,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, type CpuidEntry, NotModelled } from "../../../host/mod.ts";
import { type Asking, completes, enter, tryingRig } from "../../support/apic.ts";
import { eventsOf, mark, tracingRig } from "../../support/events.ts";

const UNKNOWN = 0x1234;
const HIGH_WORD = 0x8000_0000;

/** EDX:EAX. */
function value(cpu: X86Cpu): bigint {
  return u64(cpu.eax, cpu.edx);
}

for (const backend of BACKENDS) {
  describe(`an MSR that KVM does not know (${backend})`, () => {
    it("raises #GP(0), and leaves the registers of a read alone", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        for (const msr of [UNKNOWN, 0x1fff, 0x4b56_4dff, 0xc000_1fff, 0xffff_ffff]) {
          yield cpu.movFromCr3();
          const [eax, edx] = [cpu.eax, cpu.edx];
          assertEquals(yield* completes(cpu.rdmsr(msr)), false, msrName(msr));
          assertEquals([cpu.eax, cpu.edx], [eax, edx]);
          assertEquals(yield* completes(cpu.wrmsr(msr, 0)), false, msrName(msr));
        }
      });
    });

    it("is traced with its failure, the data of a read as 0", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        const from = mark(rig.vm);
        yield* completes(cpu.rdmsr(UNKNOWN));
        yield* completes(cpu.wrmsr(UNKNOWN, 5, 6));
        assertEquals(eventsOf(rig.vm, "kvm_msr", from).map(({ args }) => args), [
          [0, UNKNOWN, 0, 0, 1],
          [1, UNKNOWN, 5, 6, 1],
        ]);
      });
    });

    it("reads 0 and ignores writes with ignore_msrs, and is traced as a success", () => {
      const rig = tracingRig({ vm: { backend, ignoreMsrs: true } });
      rig.finish(function* (cpu) {
        const from = mark(rig.vm);
        yield cpu.wrmsr(UNKNOWN, 5, 6);
        yield cpu.rdmsr(UNKNOWN);
        assertEquals(value(cpu), 0n);
        assertEquals(eventsOf(rig.vm, "kvm_msr", from).map(({ args }) => args), [
          [1, UNKNOWN, 5, 6, 0],
          [0, UNKNOWN, 0, 0, 0],
        ]);
      });
    });

    it("is not one of the x2APIC's while the APIC is not in that mode: ignore_msrs does not help", () => {
      tryingRig({ vm: { backend, ignoreMsrs: true } }).finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        assertEquals(yield* completes(cpu.rdmsr(X2APIC_ICR)), false);
        assertEquals(yield* completes(cpu.wrmsr(X2APIC_ICR, 0)), false);
      });
    });

    it("may be migration control: it is user space's, and KVM itself has nothing there", () => {
      for (const ignoreMsrs of [false, true]) {
        tryingRig({ vm: { backend, ignoreMsrs } }).finish(function* (cpu) {
          assertEquals(yield* completes(cpu.wrmsr(MSR_KVM_MIGRATION_CONTROL, 1)), ignoreMsrs);
          assertEquals(yield* completes(cpu.rdmsr(MSR_KVM_MIGRATION_CONTROL)), ignoreMsrs);
        });
      }
    });
  });

  describe(`an MSR (${backend})`, () => {
    it("that KVM has and this host has not is a loud error, with ignore_msrs too", () => {
      const unmodelled: readonly (readonly [msr: number, name: string])[] = [
        [MSR_KVM_ASYNC_PF_EN, msrName(MSR_KVM_ASYNC_PF_EN)],
        [MSR_KVM_STEAL_TIME, msrName(MSR_KVM_STEAL_TIME)],
        [0x0cd, "MSR_FSB_FREQ"],
        [0x1a0, "IA32_MISC_ENABLE"],
        [0x47f, "IA32_MC31_MISC"],
        [0xc001_0015, "HWCR"],
        [0x20f, "IA32_MTRR_PHYSMASK7"],
        [0x277, "IA32_PAT"],
      ];
      for (const [msr, name] of unmodelled) {
        for (const access of [(cpu: X86Cpu) => cpu.rdmsr(msr), (cpu: X86Cpu) => cpu.wrmsr(msr, 0)]) {
          assertThrows(
            () =>
              tryingRig({ vm: { backend, ignoreMsrs: true } }).run(function* (cpu) {
                yield access(cpu);
              }),
            NotModelled,
            name,
          );
        }
      }
    });

    it("reads zero-extended: RDMSR clears bits 63:32 of RAX and RDX", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        cpu.loadHypercall(1, 0, 0, -1n); // RDX is all ones.
        cpu.regs.fill(0xffff_ffff, 0, 2); // RAX too.
        yield cpu.rdmsr(MSR_KVM_POLL_CONTROL);
        assertEquals([cpu.rax, cpu.register("rdx")], [1n, 0n]);
      });
    });

    it("of the table holds its reset value on every vCPU that can be read, but for time", () => {
      const rig = tryingRig({ vm: { backend } });
      const readable = MSRS.filter(({ name }) => !/^KVM_(?!PV_EOI|POLL)|TIME_STAMP|EFER/.test(name));
      assertEquals(readable.length > 8, true);
      rig.finish(function* (cpu) {
        for (const { index, name, reset } of readable) {
          yield cpu.rdmsr(index);
          assertEquals(value(cpu), name === "IA32_APIC_BASE" ? reset | 0x100n : reset, name);
        }
      });
    });
  });

  describe(`KVM_POLL_CONTROL (${backend})`, () => {
    it("is 1 at reset, takes 0 and 1, and raises #GP for any other bit, whose write changes nothing", () => {
      fc.assert(
        fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.boolean(), (any, zero) => {
          tryingRig({ vm: { backend } }).finish(function* (cpu) {
            yield cpu.rdmsr(MSR_KVM_POLL_CONTROL);
            assertEquals(value(cpu), 1n);
            if (zero) yield cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0);
            const before = zero ? 0n : 1n;
            const written = yield* completes(
              cpu.wrmsr(MSR_KVM_POLL_CONTROL, Number(any & 0xffff_ffffn), Number(any >> 32n)),
            );
            assertEquals(written, any <= 1n);
            yield cpu.rdmsr(MSR_KVM_POLL_CONTROL);
            assertEquals(value(cpu), any <= 1n ? any : before);
          });
        }),
        { numRuns: 40, examples: [[0n, false], [1n, true], [2n, false], [3n, true], [2n ** 32n, false]] },
      );
    });
  });

  describe(`IA32_EFER (${backend})`, () => {
    /** What a 64-bit kernel finds: LME and LMA. */
    const LONG = 0x500n;

    function* write(cpu: X86Cpu, low: number, high = 0): Asking<bigint | "#GP"> {
      if (!(yield* completes(cpu.wrmsr(IA32_EFER, low, high)))) return "#GP";
      yield cpu.rdmsr(IA32_EFER);
      return value(cpu);
    }

    it("takes SCE and NX, ignores LMA, and raises #GP for reserved bits and for LME while paging is on", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield cpu.rdmsr(IA32_EFER);
        assertEquals(value(cpu), LONG);
        assertEquals(yield* write(cpu, 0x501), LONG | 1n);
        assertEquals(yield* write(cpu, 0xd01), LONG | 0x801n);
        assertEquals(yield* write(cpu, 0x101), LONG | 1n, "LMA is hardware's");
        for (const reserved of [1 << 1, 1 << 9, 1 << 16, HIGH_WORD]) {
          assertEquals(yield* write(cpu, 0x501 | reserved), "#GP");
        }
        assertEquals(yield* write(cpu, 0x501, 1), "#GP");
        assertEquals(yield* write(cpu, 0x001), "#GP", "LME may not change under paging");
        yield cpu.rdmsr(IA32_EFER);
        assertEquals(value(cpu), LONG | 1n);
      });
    });
  });

  describe(`IA32_TSC_AUX (${backend})`, () => {
    it(`has 32 bits: a write of more ${backend === "vmx" ? "raises #GP on Intel" : "loses them on AMD"}`, () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield cpu.wrmsr(IA32_TSC_AUX, 7);
        assertEquals(yield* completes(cpu.wrmsr(IA32_TSC_AUX, 9, 1)), backend === "svm");
        yield cpu.rdmsr(IA32_TSC_AUX);
        assertEquals(value(cpu), backend === "svm" ? 9n : 7n);
      });
    });
  });

  describe(`MSRs that CPUID does not speak of (${backend})`, () => {
    /** Leaf 7's ECX, and without TSC_ADJUST and RDTSCP. */
    const without = (ecx: number): CpuidEntry[] => [
      { leaf: 7, subleaf: 0, registers: [0, 0, ecx, 0] },
      { leaf: 0x8000_0001, registers: [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 29] },
    ];

    it("are there as a rule: CPUID says TSC_ADJUST and RDTSCP", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield cpu.cpuid(7, 0);
        assertEquals((cpu.ebx >>> 1) & 1, 1);
        yield cpu.cpuid(HIGH_WORD + 1);
        assertEquals((cpu.edx >>> 27) & 1, 1);
      });
    });

    it("may be IA32_TSC_ADJUST: KVM ignores writes", () => {
      tryingRig({ vm: { backend, cpuid: without(0) } }).finish(function* (cpu) {
        yield cpu.rdtsc();
        const before = value(cpu);
        assertEquals(yield* completes(cpu.wrmsr(IA32_TSC_ADJUST, 0, 1)), true);
        yield cpu.rdmsr(IA32_TSC_ADJUST);
        assertEquals(value(cpu), 0n);
        yield cpu.rdtsc();
        assertEquals(value(cpu) - before < 1n << 32n, true);
      });
    });

    it("may be IA32_TSC_AUX: #GP, unless RDPID or RDTSCP reads it", () => {
      for (const [ecx, there] of [[0, false], [1 << 22, true]] as const) {
        tryingRig({ vm: { backend, cpuid: without(ecx), ignoreMsrs: true } }).finish(function* (cpu) {
          assertEquals(yield* completes(cpu.wrmsr(IA32_TSC_AUX, 1)), there);
          assertEquals(yield* completes(cpu.rdmsr(IA32_TSC_AUX)), there);
        });
      }
    });
  });

  describe(`MSRs of the processor (${backend})`, () => {
    it("hold what was written, whether KVM or the processor serves them", () => {
      const rig = tryingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        yield cpu.wrmsr(IA32_LSTAR, 0x9abc_def0, 0x7fff);
        yield cpu.rdmsr(IA32_LSTAR);
        assertEquals(value(cpu), 0x7fff_9abc_def0n);
      });
      // VMX intercepts them, SVM lets them through.
      assertEquals(rig.vm.counters()["kvm_msr"] ?? 0, backend === "vmx" ? 2 : 0);
    });
  });
}
