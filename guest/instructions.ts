/**
 * Typed conveniences over the raw instructions: a call that gives its results as values.
 *
 *     const { eax } = yield* cpuid(cpu, 1);
 *     const count = yield* hypercall(cpu, "KVM_HC_SEND_IPI", { bitmapLow: 6, bitmapHigh: 0, min: 0, icr: 0x40 });
 *
 * Hot paths use the raw form: a fresh sub-generator costs several times what a plain `yield` does.
 *
 * @module
 */

import {
  type HypercallArgs,
  type HypercallOn,
  HYPERCALLS,
  type HypercallSpec,
  KVM_ERRORS,
  type X86Cpu,
  X86Fault,
} from "../abi/mod.ts";
import type { GuestValue } from "./kernel/cpumask.ts";

/** What CPUID answers. */
export interface CpuidResult {
  /** EAX. */
  readonly eax: number;
  /** EBX. */
  readonly ebx: number;
  /** ECX. */
  readonly ecx: number;
  /** EDX. */
  readonly edx: number;
}

/** CPUID. */
export function* cpuid(cpu: X86Cpu, leaf: number, subleaf: number = 0): GuestValue<CpuidResult> {
  yield cpu.cpuid(leaf, subleaf);
  const { eax, ebx, ecx, edx } = cpu;
  return { eax, ebx, ecx, edx };
}

/** RDMSR. Throws `GeneralProtection` where the kernel's #GP handler is a fixup and the register is not there. */
export function* rdmsr(cpu: X86Cpu, msr: number): GuestValue<bigint> {
  yield cpu.rdmsr(msr);
  return (BigInt(cpu.edx) << 32n) | BigInt(cpu.eax);
}

/** RDMSR that answers undefined in place of a fault (rdmsr_safe). */
export function* rdmsrSafe(cpu: X86Cpu, msr: number): GuestValue<bigint | undefined> {
  try {
    return yield* rdmsr(cpu, msr);
  } catch (fault) {
    if (fault instanceof X86Fault) return undefined;
    throw fault;
  }
}

/** WRMSR that answers false in place of a fault (wrmsr_safe). */
export function* wrmsrSafe(cpu: X86Cpu, msr: number, value: bigint): GuestValue<boolean> {
  try {
    yield cpu.wrmsr(msr, Number(value & 0xffff_ffffn), Number((value >> 32n) & 0xffff_ffffn));
    return true;
  } catch (fault) {
    if (fault instanceof X86Fault) return false;
    throw fault;
  }
}

/** RDTSC as a whole number; exact below 2^53. */
export function* rdtsc(cpu: X86Cpu): GuestValue<number> {
  yield cpu.rdtsc();
  return cpu.edx * 0x1_0000_0000 + cpu.eax;
}

/** Which instruction carries a hypercall: Intel's, or AMD's. */
export type HypercallInstruction = "vmcall" | "vmmcall";

/**
 * A KVM hypercall by name, with its arguments by name. Its result is what the host left in RAX, as a signed number:
 * below 0 it is a negated number of {@linkcode KVM_ERRORS}.
 *
 * @example The host counts whom an interrupt reached
 * ```ts
 * import { Machine, Text } from "@exitless/exitless";
 * import { hypercall } from "@exitless/exitless/guest";
 * import { assertEquals } from "@std/assert";
 *
 * let count = 0;
 * const text = new Text();
 * const entry = text.add(function* main(cpu) {
 *   count = yield* hypercall(cpu, "KVM_HC_SEND_IPI", { bitmapLow: 1n, bitmapHigh: 0n, min: 0, icr: 0x40 });
 * });
 * const vm = new Machine().createVm({ memory: 2 ** 21 });
 * vm.load(text);
 * vm.start(entry);
 * vm.machine.run();
 * assertEquals(count, 0); // its APIC is not enabled by software yet
 * ```
 */
export function* hypercall<Name extends HypercallOn<"x86">>(
  cpu: X86Cpu,
  name: Name,
  args: HypercallArgs<Name>,
  instruction: HypercallInstruction = "vmcall",
): GuestValue<number> {
  const spec: HypercallSpec = HYPERCALLS[name];
  const values = spec.args.map((arg) => (args as Readonly<Record<string, number | bigint>>)[arg.name]);
  cpu.loadHypercall(spec.nr, values[0], values[1], values[2], values[3]);
  yield instruction === "vmcall" ? cpu.vmcall() : cpu.vmmcall();
  // Results are small: the low half decides, and its top bit is the sign in both widths.
  return cpu.eax | 0;
}

/** The name of a hypercall's error, as `KVM_ENOSYS` for -1000; undefined where the result is none. */
export function hypercallError(result: number): string | undefined {
  if (result >= 0) return undefined;
  for (const [name, number] of Object.entries(KVM_ERRORS)) {
    if (number === -result) return name;
  }
  return undefined;
}
