/**
 * Instructions that KVM carries out for the guest: MMIO, port I/O, control registers, and the foreign hypercall.
 *
 * @module
 */

import {
  APIC_DEFAULT_BASE,
  CR0_CD,
  CR0_ET,
  CR0_NW,
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR3_PCID,
  cr3Takes,
  CR4_PAE,
  CR4_PCIDE,
  CS,
  EFER_LMA,
  EFER_LME,
  high,
  instructionText,
  KERNEL_CS,
  low,
  OP_VMCALL,
  OP_VMMCALL,
  PF_VECTOR,
  PFERR_PRESENT,
  PFERR_USER,
  PFERR_WRITE,
  RAX,
  SYS_CR0,
  SYS_CR2,
  SYS_CR3,
  SYS_CR4,
  SYS_EFER,
  UD_VECTOR,
  USER_CS,
  X86_VMCALL,
  X86_VMMCALL,
} from "../../abi/mod.ts";
import {
  ACCESS,
  type Access,
  type AccessSpec,
  effectiveAddress,
  emulateOperand,
  linearOperand,
  NotModelled,
  operandBase,
  READS,
  setCr3,
  WRITES,
} from "../cpu/mod.ts";
import { readPage, writePage } from "../lapic/mod.ts";
import { TP } from "../trace/mod.ts";
import { PAGE_SIZE } from "../memory/mod.ts";
import { guestTables, readGuest, writeGuest } from "./host_access.ts";
import { postSetCr0, postSetCr4 } from "./tdp/root.ts";
import { userspaceMmio, userspacePio } from "./userspace.ts";
import type { Vcpu } from "./vcpu.ts";

/** kvm_mmio's types. */
const MMIO_READ_UNSATISFIED = 0;
const MMIO_READ = 1;
const MMIO_WRITE = 2;

/** Emulates the pending instruction, whose memory operand is MMIO at least in part. */
export function emulateMemoryAccess(vcpu: Vcpu): void {
  const { processor } = vcpu;
  const op = processor.context.pending;
  const spec = ACCESS[op];
  if (spec === undefined) {
    throw new NotModelled(`emulation of ${instructionText(op)}`, "arch/x86/kvm/emulate.c");
  }
  startEmulation(vcpu);
  const parts = operandParts(vcpu, op, spec);
  if (parts === undefined) return; // The guest's tables are against it.
  const operand = spec.reads ? readOperand(vcpu, parts) : 0n;
  const result = emulateOperand(processor, op, operand);
  if (spec.writes && result !== undefined) writeOperand(vcpu, parts, result);
  vcpu.backend.skipInstruction();
}

/** A part of an operand: a guest-physical address, and bytes. */
type Part = readonly [address: number, bytes: number];

/** Where the operand is: in up to two pages. Undefined where the guest's tables raise a page fault, which is queued. */
function operandParts(vcpu: Vcpu, op: number, spec: AccessSpec): Part[] | undefined {
  const { processor } = vcpu;
  if (!processor.translates) {
    return [...fragments(effectiveAddress(processor, op, operandBase(processor)), spec.bytes)];
  }
  const linear = linearOperand(processor, op)!; // It has exited: the address was good.
  const parts: Part[] = [];
  for (const [at, bytes] of fragments(linear, spec.bytes)) {
    const address = guestPhysical(vcpu, at, spec.writes ? WRITES : READS);
    if (address === undefined) return undefined;
    parts.push([address, bytes]);
  }
  return parts;
}

/** The guest-physical address of a linear one; undefined where that is a page fault, which is queued. */
function guestPhysical(vcpu: Vcpu, linear: number, access: Access): number | undefined {
  const { processor } = vcpu;
  if (!processor.translates) return linear;
  const address = processor.mmu!.guestPhysical(linear, access, guestTables(vcpu.vm));
  if (address >= 0) return address;
  processor.sys[SYS_CR2] = linear;
  processor.sys[SYS_CR2 + 1] = Math.floor(linear / 2 ** 32);
  vcpu.queueException(PF_VECTOR, -1 - address);
  return undefined;
}

/** Where an operand is split: at the page boundary, each part MMIO or memory by itself. */
function* fragments(address: number, bytes: number): Generator<Part> {
  const boundary = (Math.floor(address / PAGE_SIZE) + 1) * PAGE_SIZE;
  if (address + bytes <= boundary) {
    yield [address, bytes];
  } else {
    yield [address, boundary - address];
    yield [boundary, address + bytes - boundary];
  }
}

function readOperand(vcpu: Vcpu, parts: readonly Part[]): bigint {
  let value = 0n;
  let shift = 0n;
  for (const [at, size] of parts) {
    const part = readGuest(vcpu.vm, at, size) ?? readMmio(vcpu, at, size);
    value |= part << shift;
    shift += BigInt(8 * size);
  }
  return value;
}

function writeOperand(vcpu: Vcpu, parts: readonly Part[], value: bigint): void {
  let rest = value;
  for (const [at, size] of parts) {
    const part = rest & ((1n << BigInt(8 * size)) - 1n);
    if (!writeGuest(vcpu.vm, at, size, part)) writeMmio(vcpu, at, size, part);
    rest >>= BigInt(8 * size);
  }
}

/**
 * Every MMIO access but those of the APIC's default page is recognized by the cached address of its fault. That of a
 * write to a slot that is read-only is not cached (kvm_handle_error_pfn).
 */
function matchMmio(vcpu: Vcpu, address: number, write: boolean): void {
  if (vcpu.vm.memory.find(address, 1) !== undefined) return;
  if (Math.floor(address / PAGE_SIZE) * PAGE_SIZE === APIC_DEFAULT_BASE) return;
  vcpu.trace(TP.vcpu_match_mmio, low(address), high(address), write ? 1 : 0);
}

function readMmio(vcpu: Vcpu, address: number, bytes: number): bigint {
  const { vm } = vcpu;
  matchMmio(vcpu, address, false);
  const apic = readPage(vcpu.lapic, address, bytes);
  let value = apic === "not-mine" ? vm.mmioBus.read(address, bytes) : apic.value;
  if (value !== undefined) {
    vcpu.trace(TP.kvm_mmio, MMIO_READ, bytes, low(address), high(address), Number(value & 0xffff_ffffn));
    return value;
  }
  vcpu.trace(TP.kvm_mmio, MMIO_READ_UNSATISFIED, bytes, low(address), high(address), 0);
  value = userspaceMmio(vcpu, address, bytes, undefined);
  vcpu.trace(TP.kvm_mmio, MMIO_READ, bytes, low(address), high(address), Number(value & 0xffff_ffffn));
  return value;
}

function writeMmio(vcpu: Vcpu, address: number, bytes: number, value: bigint): void {
  const { vm } = vcpu;
  matchMmio(vcpu, address, true);
  vcpu.trace(TP.kvm_mmio, MMIO_WRITE, bytes, low(address), high(address), Number(value & 0xffff_ffffn));
  if (writePage(vcpu.lapic, address, bytes, Number(value & 0xffff_ffffn)) === "done") return;
  if (vm.mmioBus.write(address, bytes, value)) return;
  userspaceMmio(vcpu, address, bytes, value);
}

/** IN or OUT was executed. */
export function emulatePio(vcpu: Vcpu, port: number, bytes: number, write: boolean): void {
  const { processor, vm } = vcpu;
  const { regs } = processor;
  const mask = bytes === 4 ? 0xffff_ffff : (1 << (8 * bytes)) - 1;
  vcpu.charge(vcpu.cost.pio);
  vcpu.stats.io_exits++;
  if (write) {
    const value = (regs[RAX] & mask) >>> 0;
    vcpu.trace(TP.kvm_pio, 1, port, bytes, value);
    if (!vm.pioBus.write(port, bytes, BigInt(value))) userspacePio(vcpu, port, bytes, value);
  } else {
    const kernel = vm.pioBus.read(port, bytes);
    const value = kernel === undefined ? userspacePio(vcpu, port, bytes, undefined) : Number(kernel);
    vcpu.trace(TP.kvm_pio, 0, port, bytes, value);
    // A 32-bit result clears the upper half; smaller ones leave the rest of RAX alone.
    regs[RAX] = bytes === 4 ? value : (regs[RAX] & ~mask) | (value & mask);
    if (bytes === 4) regs[RAX + 1] = 0;
  }
  vcpu.backend.skipInstruction();
}

/** MOV to a control register was executed. */
export function emulateMovToCr(vcpu: Vcpu, cr: number): void {
  const { processor, lapic } = vcpu;
  const value = processor.regs[RAX];
  const upper = processor.regs[RAX + 1];
  vcpu.trace(TP.kvm_cr, 1, cr, value);
  let ok: boolean;
  switch (cr) {
    case 0:
      ok = setCr0(vcpu, value, upper);
      break;
    case 3:
      ok = setsCr3(vcpu, value, upper);
      break;
    case 4:
      ok = setCr4(vcpu, value, upper);
      break;
    case 8:
      ok = value <= 15 && upper === 0;
      if (ok) lapic.setTpr(value << 4);
      break;
    default:
      throw new NotModelled(`MOV to CR${cr}`, "SDM 2B, MOV");
  }
  vcpu.complete(ok);
}

/** MOV from a control register was executed. */
export function emulateMovFromCr(vcpu: Vcpu, cr: number): void {
  const { processor, lapic } = vcpu;
  const { regs, sys } = processor;
  const word = cr === 0 ? SYS_CR0 : cr === 3 ? SYS_CR3 : SYS_CR4;
  regs[RAX] = cr === 8 ? lapic.cr8 : sys[word];
  regs[RAX + 1] = cr === 8 ? 0 : sys[word + 1];
  vcpu.trace(TP.kvm_cr, 0, cr, regs[RAX]);
  vcpu.backend.skipInstruction();
}

/** CR0 bits that mean something: PE, MP, EM, TS, ET, NE, WP, AM, NW, CD and PG. Writes of others are ignored. */
const CR0_DEFINED = 0xe005_003f;

/** CR0: paging needs protection, NW needs CD; turning paging on with LME set activates long mode (SDM 3A 2.5). */
function setCr0(vcpu: Vcpu, value: number, upper: number): boolean {
  const { sys, regs } = vcpu.processor;
  if (upper !== 0) return false;
  if ((value & CR0_NW) !== 0 && (value & CR0_CD) === 0) return false;
  const paging = (value & CR0_PG) !== 0;
  if (paging && (value & CR0_PE) === 0) return false;
  // Nor may it be left with PCIDs (kvm_set_cr0).
  if (!paging && (sys[SYS_CR4] & CR4_PCIDE) !== 0) return false;
  const was = (sys[SYS_CR0] & CR0_PG) !== 0;
  if (paging && !was && (sys[SYS_EFER] & EFER_LME) !== 0) {
    // Nor with CS.L set (kvm_set_cr0).
    if ((sys[SYS_CR4] & CR4_PAE) === 0 || hasCsL(regs[CS])) return false;
    sys[SYS_EFER] |= EFER_LMA;
  } else if (!paging && was && (sys[SYS_EFER] & EFER_LMA) !== 0) {
    // Not from 64-bit code.
    if (hasCsL(regs[CS])) return false;
    sys[SYS_EFER] &= ~EFER_LMA;
  }
  const before = sys[SYS_CR0];
  sys[SYS_CR0] = (value & CR0_DEFINED) | CR0_ET;
  vcpu.processor.pagingChanged();
  postSetCr0(vcpu, before, sys[SYS_CR0]);
  return true;
}

/** CS.L of a selector's segment. */
function hasCsL(selector: number): boolean {
  return selector === KERNEL_CS || selector === USER_CS;
}

/** CR3: bits that are reserved (kvm_set_cr3). */
function setsCr3(vcpu: Vcpu, value: number, upper: number): boolean {
  const pcide = (vcpu.processor.sys[SYS_CR4] & CR4_PCIDE) !== 0;
  if (!cr3Takes(upper, pcide, vcpu.cpuid.physicalAddressBits)) return false;
  setCr3(vcpu.processor, value, upper);
  return true;
}

/** CR4: long mode needs PAE, and PCIDs need that and a CR3 whose is 0. Bits that this CPU model lacks are reserved. */
function setCr4(vcpu: Vcpu, value: number, upper: number): boolean {
  const { sys } = vcpu.processor;
  if (upper !== 0 || (value & ~vcpu.cpuid.cr4) !== 0) return false;
  const long = (sys[SYS_EFER] & EFER_LMA) !== 0;
  if (long && (value & CR4_PAE) === 0) return false;
  if ((value & ~sys[SYS_CR4] & CR4_PCIDE) !== 0 && (!long || (sys[SYS_CR3] & CR3_PCID) !== 0)) return false;
  const before = sys[SYS_CR4];
  sys[SYS_CR4] = value;
  vcpu.processor.pagingChanged();
  postSetCr4(vcpu, before, value);
  return true;
}

/** Opcode bytes of the two hypercall instructions. */
const VMCALL = Uint8Array.from(X86_VMCALL.units);
const VMMCALL = Uint8Array.from(X86_VMMCALL.units);

/**
 * An instruction raised #UD (handle_ud): KVM decodes it, and unless it is the other vendor's hypercall instruction gives
 * the #UD back.
 */
export function emulateInvalidOpcode(vcpu: Vcpu): void {
  const { pending } = vcpu.processor.context;
  startEmulation(vcpu);
  if (pending === OP_VMCALL || pending === OP_VMMCALL) fixHypercall(vcpu);
  else vcpu.queueException(UD_VECTOR, -1);
}

/**
 * KVM writes its own hypercall instruction over the other vendor's and lets the guest execute that
 * (emulator_fix_hypercall). With the quirk off the #UD is the guest's. Where the guest has mapped its text read-only,
 * the write faults as the guest's own would.
 */
function fixHypercall(vcpu: Vcpu): void {
  const { processor, vm, backend } = vcpu;
  const user = vcpu.cpl === 3;
  // The emulator's tables have VMCALL as privileged, and VMMCALL not (group7_rm0, group7_rm3).
  if (backend.name === "svm" && vcpu.cpl !== 0) return vcpu.injectGp();
  if (!vm.kvmQuirk("FIX_HYPERCALL_INSN")) return vcpu.queueException(UD_VECTOR, -1);
  const site = guestPhysical(vcpu, processor.rip, WRITES);
  if (site === undefined) return;
  const slot = vm.memory.find(site, 3);
  if (slot?.guestReadonly && ((processor.sys[SYS_CR0] & CR0_WP) !== 0 || user)) {
    processor.sys[SYS_CR2] = low(site);
    processor.sys[SYS_CR2 + 1] = high(site);
    return vcpu.queueException(PF_VECTOR, PFERR_PRESENT | PFERR_WRITE | (user ? PFERR_USER : 0));
  }
  const bytes = backend.name === "vmx" ? VMCALL : VMMCALL;
  const code = BigInt(bytes[0] | (bytes[1] << 8) | (bytes[2] << 16));
  // KVM_MEM_READONLY: the write is MMIO, and user space drops it; the guest faults again.
  if (!writeGuest(vm, site, 3, code)) writeMmio(vcpu, site, 3, code);
}

/** Fetches and decodes the pending instruction. */
export function startEmulation(vcpu: Vcpu): void {
  const { processor, stats } = vcpu;
  vcpu.charge(vcpu.cost.emulate);
  stats.insn_emulation++;
  vcpu.trace(TP.kvm_emulate_insn, processor.rip, processor.context.pending);
}
