/**
 * Hypercall dispatch (arch/x86/kvm/x86.c, kvm_emulate_hypercall): a table of handlers, one row a call.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { HypercallName, KvmFeature } from "../../abi/mod.ts";
import { PV_HYPERCALLS } from "../pv/registry.ts";
import * as tracing from "../trace/mod.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HYPERCALLS, KVM_ENOSYS, KVM_EPERM, RAX, RBX } = abi;
const { TP } = tracing;

/** What the host does on a call. The answer goes to RAX: a small number, negative for an error. */
export interface HypercallHandler {
  /** The call. */
  readonly name: HypercallName;
  /** Serves it. */
  call(vcpu: Vcpu): number;
}

/** A call, and the feature that gates it. */
interface Row {
  readonly feature: KvmFeature | null;
  readonly handler: HypercallHandler;
}

/** MAP_GPA_RANGE is not here: it is off unless user space enables it. */
const ROWS: readonly (Row | undefined)[] = byNumber([
  // The call exists for the exit that it causes.
  { name: "KVM_HC_VAPIC_POLL_IRQ", call: () => 0 },
  ...PV_HYPERCALLS,
]);

function byNumber(handlers: readonly HypercallHandler[]): (Row | undefined)[] {
  const table: (Row | undefined)[] = [];
  for (const handler of handlers) {
    const { nr, feature } = HYPERCALLS[handler.name];
    table[nr] = { feature, handler };
  }
  return table;
}

/** VMCALL or VMMCALL was executed: traces the registers unmasked, masks them, checks CPL, and calls. */
export function emulateHypercall(vcpu: Vcpu): void {
  const { processor } = vcpu;
  const { regs } = processor;
  vcpu.charge(vcpu.cost.hypercall);
  if (vcpu.hit(TP.kvm_hypercall)) {
    vcpu.record(TP.kvm_hypercall, regs[RAX], regs[RAX + 1], regs[RBX], regs[RBX + 1]);
  }
  const op64 = processor.longMode;
  const result = processor.cpl !== 0 ? -KVM_EPERM : dispatch(vcpu, regs[RAX], op64 ? regs[RAX + 1] : 0);
  regs[RAX] = result;
  regs[RAX + 1] = op64 && result < 0 ? 0xffff_ffff : 0;
  vcpu.backend.skipInstruction();
}

function dispatch(vcpu: Vcpu, nr: number, nrHigh: number): number {
  if (nrHigh !== 0) return -KVM_ENOSYS;
  const row = nr < ROWS.length ? ROWS[nr] : undefined;
  if (row === undefined) return -KVM_ENOSYS;
  const { feature, handler } = row;
  return feature === null || vcpu.vm.pvHas(vcpu, feature) ? handler.call(vcpu) : -KVM_ENOSYS;
}
