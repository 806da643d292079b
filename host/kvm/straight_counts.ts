/**
 * What interrupts count that go the straight way. Each of its two exits is counted once, in a field that it touches
 * anyway; what that comes to in the vCPU's row and among its statistics is added up when somebody looks.
 *
 * @module
 */

import { exitPlace, FIRST_EXIT, TP } from "../trace/mod.ts";
import type { Vcpu } from "./vcpu.ts";
import type { VcpuStats } from "./vcpu_stats.ts";

/** What the exit for a physical interrupt and the injection behind it count, beside the exit's number. */
const INJECTION = [TP.kvm_exit, TP.kvm_inj_virq, TP.kvm_entry];
/** And the exit for the end of an interrupt. */
const END = [TP.kvm_exit, TP.kvm_apic, TP.kvm_eoi, TP.kvm_msr, TP.kvm_entry];

/** Adds up what was counted so. It may be less than nothing: an end that others have seen may be taken back. */
export function addUp(vcpu: Vcpu, stats: VcpuStats): void {
  const { commonExits, countRows, row, straightEnds: ends, straightInjections: injections } = vcpu;
  if ((injections | ends) === 0) return;
  vcpu.straightInjections = 0;
  vcpu.straightEnds = 0;
  countRows[row + FIRST_EXIT + exitPlace(commonExits.interrupt)] += injections;
  countRows[row + FIRST_EXIT + exitPlace(commonExits.wrmsr)] += ends;
  for (const event of INJECTION) countRows[row + event] += injections;
  for (const event of END) countRows[row + event] += ends;
  stats.irq_exits += injections;
  stats.irq_injections += injections;
  stats.req_event += injections + ends;
}
