/**
 * RDMSR and WRMSR in the host: a table of handlers, one row an MSR, and what happens to those without a row.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { highOf, type KvmFeature, lowOf, msrName, u64 } from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { systemMsrTakes, systemMsrWord } from "../cpu/privileged.ts";
import * as apic from "../lapic/mod.ts";
import type { MsrValue } from "../lapic/mod.ts";
import { PV_MSR_HANDLERS } from "../pv/registry.ts";
import * as tracing from "../trace/mod.ts";
import { postSetEfer } from "./tdp/root.ts";
import { UNMODELLED_MSRS } from "./unmodelled_msrs.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR0_PG,
  EFER_LMA,
  EFER_LME,
  EFER_NX,
  EFER_SCE,
  IA32_APICBASE,
  IA32_CSTAR,
  IA32_EFER,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
  IA32_LSTAR,
  IA32_STAR,
  IA32_TSC,
  IA32_TSC_ADJUST,
  IA32_TSC_AUX,
  IA32_TSC_DEADLINE,
  MSRS,
  MSR_KVM_MIGRATION_CONTROL,
  RAX,
  RCX,
  RDX,
  SYS_CR0,
  SYS_EFER,
  SYS_TSC_AUX,
  X2APIC_EOI,
  X2APIC_MSR_BASE,
  X2APIC_MSR_LAST,
} = abi;
const { TP } = tracing;
const { emulatedEoi, readX2apicMsr, writeApicBase, writeX2apicMsr } = apic;

/** What the host does on an access. A `false` raises #GP. */
export interface MsrHandler {
  /** The MSR. */
  readonly index: number;
  /** The feature that it belongs to, where it is paravirtual: a host that does not know it does not know the MSR. */
  readonly feature?: KvmFeature;
  /** Reads it into `value`. */
  read(vcpu: Vcpu, value: MsrValue): boolean;
  /** Writes `high`:`low`. */
  write(vcpu: Vcpu, low: number, high: number): boolean;
}

/** An MSR that the processor keeps and some vendors intercept. */
function systemMsr(index: number): MsrHandler {
  const word = systemMsrWord(index)!;
  return {
    index,
    read({ processor }, value) {
      value.low = processor.sys[word];
      value.high = processor.sys[word + 1];
      return true;
    },
    write({ processor }, low, high) {
      if (!systemMsrTakes(index, high)) return false;
      processor.sys[word] = low;
      processor.sys[word + 1] = high;
      return true;
    },
  };
}

function fill(value: MsrValue, from: bigint): true {
  value.low = lowOf(from);
  value.high = highOf(from);
  return true;
}

const HANDLERS: readonly MsrHandler[] = [
  ...[IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK, IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE].map(
    systemMsr,
  ),
  {
    index: IA32_APICBASE,
    read({ lapic }, value) {
      value.low = lapic.base;
      value.high = lapic.baseHigh;
      return true;
    },
    write: ({ lapic }, low, high) => writeApicBase(lapic, low, high),
  },
  {
    index: IA32_TSC_DEADLINE,
    read: ({ lapic }, value) => fill(value, lapic.timer.deadline),
    write({ lapic }, low, high) {
      lapic.timer.setDeadline(u64(low, high));
      return true;
    },
  },
  {
    index: IA32_TSC,
    read: ({ processor }, value) => fill(value, BigInt(processor.tsc())),
    write(vcpu, low, high) {
      // The guest's write moves its counter, and IA32_TSC_ADJUST with it (SDM 3B 18.17.3).
      adjustTsc(vcpu, u64(low, high) - BigInt(vcpu.processor.tsc()));
      return true;
    },
  },
  {
    index: IA32_TSC_ADJUST,
    read: ({ msrs }, value) => fill(value, msrs.tscAdjust),
    write(vcpu, low, high) {
      // Where CPUID has it not, KVM ignores the write (kvm_set_msr_common).
      if (vcpu.cpuid.tscAdjust) adjustTsc(vcpu, BigInt.asIntN(64, u64(low, high) - vcpu.msrs.tscAdjust));
      return true;
    },
  },
  {
    index: IA32_TSC_AUX,
    read({ processor, cpuid }, value) {
      if (!cpuid.tscAux) return false; // __kvm_get_msr
      value.low = processor.sys[SYS_TSC_AUX];
      value.high = 0;
      return true;
    },
    write({ processor, cpuid }, low, high) {
      if (!cpuid.tscAux) return false; // __kvm_set_msr
      // Intel reserves bits 63:32; AMD ignores them.
      if (high !== 0 && cpuid.intelCompatible) return false;
      processor.sys[SYS_TSC_AUX] = low;
      return true;
    },
  },
  {
    index: IA32_EFER,
    read({ processor }, value) {
      value.low = processor.sys[SYS_EFER];
      value.high = 0;
      return true;
    },
    write: writeEfer,
  },
  ...PV_MSR_HANDLERS,
];

const BY_INDEX: ReadonlyMap<number, MsrHandler> = new Map(
  HANDLERS.map((handler) => [handler.index, handler]),
);
/** MSRs that KVM has and this host has not. Migration control is user space's to serve: KVM itself does not know it. */
const NOT_MODELLED: ReadonlySet<number> = new Set<number>(
  MSRS.map(({ index }) => index).filter((index) =>
    !BY_INDEX.has(index) && index !== MSR_KVM_MIGRATION_CONTROL
  ),
);

/** Moves the guest's counter. Beyond 2^53 cycles a counter is not modelled. */
function adjustTsc(vcpu: Vcpu, by: bigint): void {
  const offset = BigInt(vcpu.processor.tscOffset) + by;
  if (offset > BigInt(Number.MAX_SAFE_INTEGER) / 2n || offset < -BigInt(Number.MAX_SAFE_INTEGER) / 2n) {
    throw new NotModelled(`a TSC offset of ${offset} cycles`, "clocks are whole numbers below 2^53");
  }
  vcpu.msrs.tscAdjust = BigInt.asUintN(64, vcpu.msrs.tscAdjust + by);
  vcpu.processor.tscOffset = Number(offset);
}

function writeEfer(vcpu: Vcpu, low: number, high: number): boolean {
  const { sys } = vcpu.processor;
  // LMA is hardware's: what is written to it is ignored (arch/x86/kvm/x86.c, set_efer).
  const writable = EFER_SCE | EFER_LME | (vcpu.cpuid.nx ? EFER_NX : 0);
  if ((low & ~(writable | EFER_LMA)) !== 0 || high !== 0) return false;
  const paging = (sys[SYS_CR0] & CR0_PG) !== 0;
  if (paging && ((sys[SYS_EFER] ^ low) & EFER_LME) !== 0) return false;
  const before = sys[SYS_EFER];
  sys[SYS_EFER] = (low & writable) | (before & EFER_LMA);
  vcpu.processor.pagingChanged();
  postSetEfer(vcpu, before, sys[SYS_EFER]);
  return true;
}

const value: MsrValue = new apic.MsrValue();

/** Reads an MSR into `into`, as the guest sees it. false raises #GP. */
export function readMsr(vcpu: Vcpu, index: number, into: MsrValue): boolean {
  if (index >= X2APIC_MSR_BASE && index <= X2APIC_MSR_LAST) return readX2apicMsr(vcpu.lapic, index, into);
  const handler = handlerOf(vcpu, index);
  if (handler !== undefined) return permits(vcpu, handler) && handler.read(vcpu, into);
  unmodelled(index, "read");
  into.low = 0;
  into.high = 0;
  return vcpu.vm.ignoreMsrs;
}

/** Writes an MSR as the guest does; first of all what it writes most. false raises #GP. */
export function writeMsr(vcpu: Vcpu, index: number, low: number, high: number): boolean {
  if (index === X2APIC_EOI && high === 0 && vcpu.lapic.x2apicMode) return emulatedEoi(vcpu, low);
  if (index >= X2APIC_MSR_BASE && index <= X2APIC_MSR_LAST) {
    return writeX2apicMsr(vcpu.lapic, index, low, high);
  }
  const handler = handlerOf(vcpu, index);
  if (handler !== undefined) {
    if (!permits(vcpu, handler) || !handler.write(vcpu, low, high)) return false;
    // A feature's: what the guest lends the host is its own word.
    if (handler.feature !== undefined) vcpu.vm.ownership?.msrWritten(vcpu.vcpuId, { msr: index, low, high });
    return true;
  }
  unmodelled(index, "write");
  return vcpu.vm.ignoreMsrs;
}

/** The handler of an MSR; undefined for MSRs that this host, or a host of its year, does not know. */
function handlerOf({ vm }: Vcpu, index: number): MsrHandler | undefined {
  const handler = BY_INDEX.get(index);
  return handler?.feature === undefined || vm.knows(handler.feature) ? handler : undefined;
}

function permits(vcpu: Vcpu, { feature }: MsrHandler): boolean {
  return feature === undefined || vcpu.vm.pvHas(vcpu, feature);
}

/** An MSR that KVM has and this host has not: saying so is better than any answer. */
function unmodelled(index: number, verb: string): void {
  if (NOT_MODELLED.has(index)) {
    throw new NotModelled(`a ${verb} of MSR ${msrName(index)}`, "Documentation/virt/kvm/x86/msr.rst");
  }
  const name = UNMODELLED_MSRS.get(index);
  if (name !== undefined) throw new NotModelled(`a ${verb} of MSR ${name}`, "SDM volume 4, table 2-2");
}

/** RDMSR was executed. */
export function emulateRdmsr(vcpu: Vcpu): void {
  const { regs } = vcpu.processor;
  const index = regs[RCX];
  vcpu.charge(vcpu.cost.msrEmulation);
  const ok = readMsr(vcpu, index, value);
  if (ok) {
    regs[RAX] = value.low;
    regs[RAX + 1] = 0;
    regs[RDX] = value.high;
    regs[RDX + 1] = 0;
    vcpu.trace(TP.kvm_msr, 0, index, value.low, value.high, 0);
  } else {
    vcpu.trace(TP.kvm_msr, 0, index, 0, 0, 1);
  }
  vcpu.complete(ok);
}

/** WRMSR was executed. */
export function emulateWrmsr(vcpu: Vcpu): void {
  const { regs } = vcpu.processor;
  const index = regs[RCX];
  const low = regs[RAX];
  const high = regs[RDX];
  vcpu.charge(vcpu.cost.msrEmulation);
  const ok = writeMsr(vcpu, index, low, high);
  if (vcpu.hit(TP.kvm_msr)) vcpu.record(TP.kvm_msr, 1, index, low, high, ok ? 0 : 1);
  if (ok) vcpu.processor.skipInstruction();
  else vcpu.injectGp();
}
