/**
 * Is there a KVM underneath, and what does it offer (arch/x86/kernel/kvm.c, kvm_cpuid_base and its users)?
 *
 * @module
 */

import {
  CPUID_1_ECX_HYPERVISOR,
  HYPERVISOR_CPUID_BASE,
  HYPERVISOR_CPUID_END,
  HYPERVISOR_CPUID_STEP,
  KVM_CPUID_FEATURES,
  KVM_FEATURES,
  KVM_HINTS,
  KVM_SIGNATURE_EBX,
  KVM_SIGNATURE_ECX,
  KVM_SIGNATURE_EDX,
  type KvmFeature,
  type KvmHint,
  type X86Cpu,
} from "../abi/mod.ts";
import type { GuestValue } from "./kernel/cpumask.ts";
import { data } from "./kernel/memory_map.ts";

/**
 * The base of KVM's CPUID leaves; 0 where there is no KVM. It is looked for once, at every base that a hypervisor may
 * use: where Hyper-V's leaves come first, KVM's are further up.
 */
export function* kvmCpuidBase(cpu: X86Cpu): GuestValue<number> {
  yield cpu.load32(data("kvmProbed"));
  if (cpu.eax === 0) {
    const base = yield* scan(cpu);
    yield cpu.store32(data("kvmCpuidBase"), base);
    yield cpu.store32(data("kvmProbed"), 1);
  }
  yield cpu.load32(data("kvmCpuidBase"));
  return cpu.eax;
}

function* scan(cpu: X86Cpu): GuestValue<number> {
  yield cpu.cpuid(1);
  if ((cpu.ecx & CPUID_1_ECX_HYPERVISOR) === 0) return 0;
  for (let base = HYPERVISOR_CPUID_BASE; base < HYPERVISOR_CPUID_END; base += HYPERVISOR_CPUID_STEP) {
    yield cpu.cpuid(base);
    const { ebx, ecx, edx } = cpu;
    if (ebx === KVM_SIGNATURE_EBX && ecx === KVM_SIGNATURE_ECX && edx === KVM_SIGNATURE_EDX) return base;
  }
  return 0;
}

/** Whether the kernel runs on KVM (kvm_para_available). */
export function* kvmParaAvailable(cpu: X86Cpu): GuestValue<boolean> {
  return (yield* kvmCpuidBase(cpu)) !== 0;
}

/** Whether KVM offers a feature. Executes CPUID each time, as the kernel does. */
export function* kvmParaHasFeature(cpu: X86Cpu, feature: KvmFeature): GuestValue<boolean> {
  const base = yield* kvmCpuidBase(cpu);
  if (base === 0) return false;
  yield cpu.cpuid(base | KVM_CPUID_FEATURES);
  return (cpu.eax & (1 << KVM_FEATURES[feature].bit)) !== 0;
}

/** Whether KVM gives a hint. */
export function* kvmParaHasHint(cpu: X86Cpu, hint: KvmHint): GuestValue<boolean> {
  const base = yield* kvmCpuidBase(cpu);
  if (base === 0) return false;
  yield cpu.cpuid(base | KVM_CPUID_FEATURES);
  return (cpu.edx & (1 << KVM_HINTS[hint].bit)) !== 0;
}
