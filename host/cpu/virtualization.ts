/**
 * The seam between a processor in guest mode and its virtualization hardware: for every instruction and event that
 * hardware can intercept, the processor asks here. VMX and SVM answer differently.
 *
 * @module
 */

import type { HostFault, PhysicalMemory, SecondDimension } from "../mmu/mod.ts";
import type { Processor } from "./processor.ts";

/**
 * Whether the hardware has dealt with the instruction or event: by a VM exit, or by carrying it out. Otherwise the
 * processor carries it out.
 */
export type Dealt = boolean;

/** What virtualization hardware does in guest mode. */
export interface Virtualization {
  /** VM entry: loads guest state and delivers the event that software asked for. */
  enter(p: Processor): void;

  /** An asynchronous host event is due: a physical interrupt, or the preemption timer. */
  asynchronous(p: Processor): Dealt;
  /** A window that software asked for may be open. */
  window(p: Processor): Dealt;
  /** An exception is about to be delivered. */
  exception(p: Processor, vector: number, errorCode: number): Dealt;
  /** A triple fault. Always exits. */
  tripleFault(p: Processor): void;

  /** CPUID. */
  cpuid(p: Processor): Dealt;
  /** HLT, at CPL 0. */
  hlt(p: Processor): Dealt;
  /** PAUSE. */
  pause(p: Processor): Dealt;
  /** WRMSR of `msr`, at CPL 0. */
  writeMsr(p: Processor, msr: number): Dealt;
  /** RDMSR of `msr`, at CPL 0. A read that hardware virtualizes leaves its result in `virtualValue`. */
  readMsr(p: Processor, msr: number): Dealt;
  /** VMCALL or VMMCALL; the foreign one raises #UD. */
  hypercall(p: Processor, vmmcall: boolean): Dealt;
  /** IN or OUT. */
  io(p: Processor, port: number, bytes: number, write: boolean): Dealt;
  /** MOV to a control register, at CPL 0. */
  movToCr(p: Processor, cr: number): Dealt;
  /** MOV from a control register, at CPL 0. */
  movFromCr(p: Processor, cr: number): Dealt;
  /** INVD or WBINVD, at CPL 0. */
  invalidate(p: Processor, writeBack: boolean): Dealt;
  /**
   * A data access to an address that plain memory does not back. A read that hardware virtualizes leaves its result
   * in {@linkcode Processor.virtualValue} and is not dealt with.
   */
  unbacked(p: Processor, address: number, bytes: number, write: boolean): Dealt;

  /** What its accesses are tagged with, the PCID aside. `root` is NO_EPT where EPT is not in use. */
  tlbTags(): { readonly vpid: number; readonly root: number };
  /** EPT, or nested tables, in `memory`. */
  second(memory: PhysicalMemory): SecondDimension;
  /** EPT or nested tables do not allow an access to memory. Always exits. */
  hostFault(p: Processor, fault: HostFault): void;
  /** INVLPG, at CPL 0. */
  invlpg(p: Processor, linear: number): Dealt;
  /** INVPCID, at CPL 0. */
  invpcid(p: Processor, type: number): Dealt;

  /** The task priority that MOV CR8 reads without an exit. */
  readCr8(p: Processor): number;
  /** MOV to CR8 that did not exit: sets the task priority, which may cause a trap-like exit. */
  writeCr8(p: Processor, value: number): void;
}
