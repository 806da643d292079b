/**
 * DIAGNOSE in KVM (kvm_s390_handle_diag in arch/s390/kvm/diag.c): what the kernel serves itself, and what it leaves to user
 * space.
 *
 * @module
 */

import {
  type CallOutcome,
  diagCode,
  type DiagField,
  DIAGNOSES,
  exitsWith,
  type FieldValues,
  instructionBytes,
  KVM_S390_VIRTIO_CCW_NOTIFY,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  programInterruptionName,
  PSW_MASK_PSTATE,
  raises,
  returns,
  S390_DIAG,
} from "../../abi/mod.ts";
import { directedYield } from "./directed_yield.ts";
import { kernelResetFlags } from "./ipl.ts";
import { releasedRanges } from "./release_pages.ts";
import { S390_TP } from "./tracepoints.ts";
import type { S390Vcpu } from "./vcpu.ts";

/** A DIAGNOSE as it was intercepted: its fields. */
export type Diag = FieldValues<DiagField>;

/** Bytes of a DIAGNOSE. */
export const DIAG_LENGTH: number = instructionBytes(S390_DIAG);

/** What KVM leaves to user space. */
const USER_SPACE: CallOutcome = exitsWith("KVM_EXIT_S390_SIEIC");

/** A program interruption as an outcome. */
export function interrupts(code: number): CallOutcome {
  return raises(programInterruptionName(code), code);
}

/** Serves a DIAGNOSE. Results go to registers here; the outcome says what came of it. */
export function kernelDiag(vcpu: S390Vcpu, diag: Diag): CallOutcome {
  const code = diagCode(diag, (register) => vcpu.context.register(register));
  if ((vcpu.pswMask & PSW_MASK_PSTATE) !== 0n) return interrupts(PGM_PRIVILEGED_OP);
  vcpu.trace(S390_TP.kvm_s390_handle_diag, code);
  vcpu.charge(vcpu.vm.cost.hypercall);
  switch (code) {
    case DIAGNOSES.RELEASE_PAGES.code:
      return releasePages(vcpu, diag);
    case DIAGNOSES.TIME_SLICE_END.code:
      vcpu.stats.instruction_diagnose_44++;
      if (vcpu.hostCpu !== undefined) vcpu.vm.hostCpus.yield(vcpu);
      return returns();
    case DIAGNOSES.TIME_SLICE_END_DIRECTED.code:
      return timeSliceEndDirected(vcpu, diag);
    case DIAGNOSES.PAGE_REFERENCE_SERVICES.code:
      return pageReferenceServices(vcpu, diag);
    case DIAGNOSES.IPL_FUNCTIONS.code:
      return iplFunctions(vcpu, diag);
    case DIAGNOSES.KVM_VIRTIO_FUNCTIONS.code:
      return virtioFunctions(vcpu);
    default:
      vcpu.stats.instruction_diagnose_other++;
      return USER_SPACE;
  }
}

function releasePages(vcpu: S390Vcpu, { r1, r3 }: Diag): CallOutcome {
  const { context, vm, storage } = vcpu;
  vcpu.stats.instruction_diagnose_10++;
  const ranges = releasedRanges(context.register(r1), context.register(r3), BigInt(storage.prefix));
  if (ranges === undefined) return interrupts(PGM_SPECIFICATION);
  for (const range of ranges) vm.discard(range);
  return returns();
}

function timeSliceEndDirected(vcpu: S390Vcpu, { r1 }: Diag): CallOutcome {
  const { vm } = vcpu;
  vcpu.stats.instruction_diagnose_9c++;
  const what = directedYield<S390Vcpu>(vcpu.context.register(r1), {
    self: vcpu.index,
    byId: (id) => vm.vcpus[id],
    takeForward: () => vm.machine.diag9cForwarding.take(vm.jiffies(vcpu.clock)),
    forward: (target) => target.hostCpu!.giveBack(vcpu.clock),
    // A vCPU that sleeps has nothing to run; one that waits for a CPU gets this one's.
    yieldTo: (target) => vm.hostCpus.yieldTo(vcpu, target),
  });
  if (what === "forwarded") vcpu.stats.diag_9c_forward++;
  else if (what !== "yielded") vcpu.stats.diag_9c_ignored++;
  return returns();
}

function pageReferenceServices(vcpu: S390Vcpu, { r1, r3 }: Diag): CallOutcome {
  vcpu.stats.instruction_diagnose_258++;
  const answer = vcpu.pfault.diagnose(vcpu.context.register(r1), vcpu);
  if (answer === "user-space") return USER_SPACE;
  if ("interruption" in answer) return interrupts(answer.interruption);
  vcpu.context.setRegister(r3, answer.result);
  return returns(BigInt(answer.result));
}

/** The two subcodes that begin an IPL: the CPU stops, and user space is asked for a reset. */
function iplFunctions(vcpu: S390Vcpu, { r3 }: Diag): CallOutcome {
  vcpu.stats.instruction_diagnose_308++;
  const flags = kernelResetFlags(vcpu.context.register(r3));
  if (flags === undefined) return USER_SPACE;
  vcpu.trace(S390_TP.kvm_s390_request_resets, flags);
  vcpu.resetFlags = flags;
  return exitsWith("KVM_EXIT_S390_RESET");
}

/** A notification that a doorbell on the bus takes; user space serves all else. */
function virtioFunctions(vcpu: S390Vcpu): CallOutcome {
  const { context, vm } = vcpu;
  vcpu.stats.instruction_diagnose_500++;
  if (!vm.behaviour.css || context.register(1) !== BigInt(KVM_S390_VIRTIO_CCW_NOTIFY)) return USER_SPACE;
  const address = Number(context.register(2) & 0xffff_ffffn);
  const cookie = BigInt.asIntN(64, context.register(4));
  const { counters } = vm.ccwBus;
  const before = counters.comparisons + counters.offers;
  const place = vm.ccwBus.write(address, 8, context.register(3), cookie);
  vcpu.charge((counters.comparisons + counters.offers - before) * vm.cost.ioBusStep);
  if (place === undefined) return USER_SPACE; // The register is left as it is.
  context.setRegister(2, place);
  return returns(BigInt(place));
}
