import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  decodeCall,
  encodeResults,
  highOf,
  hypercallName,
  IA32_EFER,
  lowOf,
  RAX,
  type WidthMode,
  X86_CONVENTION,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { Rig } from "../../support/guests.ts";

const MODES: Readonly<Record<WidthMode, "64-bit" | "32-bit">> = { wide: "64-bit", narrow: "32-bit" };
const { errors } = X86_CONVENTION;

/** What a guest finds in RAX where the outcome is a result. */
function rax(outcome: typeof errors.unknown, mode: WidthMode): bigint {
  if (outcome.kind !== "registers") throw new Error(`Cannot find a result in ${outcome.kind}`);
  return encodeResults(X86_CONVENTION, outcome.values, mode).rax!;
}

for (const backend of BACKENDS) {
  const call = (cpu: X86Cpu) => backend === "vmx" ? cpu.vmcall() : cpu.vmmcall();

  describe(`KVM keeps to the description of x86's convention (${backend})`, () => {
    for (const mode of ["wide", "narrow"] as const) {
      it(`answers unknown numbers as it says, by the bits that count in ${MODES[mode]} mode`, () => {
        // Without those that are calls, in either mode.
        const any = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }).filter((n) => (n & 0xffff_ffffn) > 12n);
        const numbers = fc.sample(any, { numRuns: 50, seed: 7 });
        numbers.push((1n << 32n) + 1n, (1n << 63n) + 1n, 1n, 13n, 0n);
        new Rig({ vm: { backend }, mode: MODES[mode] }).finish(function* (cpu) {
          for (const number of numbers) {
            cpu.regs[RAX] = lowOf(number);
            cpu.regs[RAX + 1] = highOf(number);
            yield call(cpu);
            const seen = decodeCall(X86_CONVENTION, (name) => name === "rax" ? number : 0n, mode).number;
            const known = hypercallName(Number(seen)) === "KVM_HC_VAPIC_POLL_IRQ";
            assertEquals(cpu.rax, known ? 0n : rax(errors.unknown, mode), `number ${number}`);
          }
        });
      });
    }

    it("answers user mode as it says, and faults nobody", () => {
      const rig = new Rig({ vm: { backend } });
      let seen = -1n;
      const user = rig.text.add(function* user(cpu) {
        yield call(cpu.loadHypercall(1));
        seen = cpu.rax;
      });
      rig.finish(function* (cpu) {
        yield cpu.rdmsr(IA32_EFER);
        yield cpu.wrmsr(IA32_EFER, cpu.eax | 1);
        yield cpu.sysret(user);
      });
      assertEquals(seen, rax(errors.fromUserMode, "wide"));
    });
  });
}
