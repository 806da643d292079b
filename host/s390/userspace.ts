/**
 * DIAGNOSE in user space: QEMU behind KVM (handle_diag in target/s390x/kvm/kvm.c and hw/s390x), and QEMU's emulator, which
 * knows fewer functions (HELPER(diag) in target/s390x/tcg).
 *
 * @module
 */

import {
  type CallOutcome,
  diagCode,
  DIAGNOSES,
  exitsWith,
  PGM_OPERATION,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  PSW_MASK_PSTATE,
  returns,
  S390_ERRNO,
  S390_HYPERCALLS,
} from "../../abi/mod.ts";
import { type Diag, DIAG_LENGTH, interrupts } from "./diag.ts";
import { userSpaceIpl } from "./ipl.ts";
import { resetGuest } from "./reset.ts";
import type { S390Vcpu } from "./vcpu.ts";

const EINVAL = BigInt(-S390_ERRNO.EINVAL);
const {
  KVM_S390_VIRTIO_NOTIFY,
  KVM_S390_VIRTIO_RESET,
  KVM_S390_VIRTIO_SET_STATUS,
  KVM_S390_VIRTIO_CCW_NOTIFY,
  DIAG500_SC_STOR_LIMIT,
} = S390_HYPERCALLS;

/** Serves a DIAGNOSE that KVM left to user space. */
export function userSpaceDiag(vcpu: S390Vcpu, diag: Diag): CallOutcome {
  switch (diagCode(diag, (register) => vcpu.context.register(register))) {
    case DIAGNOSES.IPL_FUNCTIONS.code:
      return iplFunctions(vcpu, diag);
    case DIAGNOSES.KVM_VIRTIO_FUNCTIONS.code:
      return virtioFunctions(vcpu);
    case DIAGNOSES.KVM_BREAKPOINT.code:
      return breakpoint(vcpu);
    default:
      return interrupts(PGM_SPECIFICATION);
  }
}

/** A planted breakpoint stops the machine, with the PSW back at it (handle_sw_breakpoint); QEMU refuses any other. */
function breakpoint(vcpu: S390Vcpu): CallOutcome {
  const { context, vm } = vcpu;
  const address = context.pc - DIAG_LENGTH;
  if (!vm.breakpointAt(address)) return interrupts(PGM_OPERATION);
  context.pc = address;
  vm.engine.stop();
  return exitsWith("KVM_EXIT_S390_SIEIC");
}

/** Serves a DIAGNOSE in QEMU's emulator. The code is what stands in the instruction, whatever a base register holds. */
export function emulatedDiag(vcpu: S390Vcpu, diag: Diag): CallOutcome {
  if ((vcpu.pswMask & PSW_MASK_PSTATE) !== 0n) return interrupts(PGM_PRIVILEGED_OP);
  switch ((diag.b2 << 12) | diag.d2) {
    case DIAGNOSES.KVM_VIRTIO_FUNCTIONS.code:
      return virtioFunctions(vcpu);
    case DIAGNOSES.TIME_SLICE_END.code:
      return returns();
    case DIAGNOSES.IPL_FUNCTIONS.code:
      return iplFunctions(vcpu, diag);
    default:
      return interrupts(PGM_SPECIFICATION);
  }
}

function iplFunctions(vcpu: S390Vcpu, { r1, r3 }: Diag): CallOutcome {
  const { context, vm } = vcpu;
  const answer = userSpaceIpl(r1, context.register(r1), context.register(r3), vm.ipl);
  if ("interruption" in answer) return interrupts(answer.interruption);
  if ("reset" in answer) {
    if (answer.reset === "load clear") vm.reIpl(answer.reset);
    else resetGuest(vcpu, answer.reset);
    return returns();
  }
  context.setRegister(r1 + 1, answer.result);
  return returns(BigInt(answer.result));
}

function virtioFunctions(vcpu: S390Vcpu): CallOutcome {
  const result = virtioFunction(vcpu);
  if (result === undefined) return interrupts(PGM_SPECIFICATION);
  vcpu.context.setRegister(2, result);
  return returns(result);
}

/** A call of DIAGNOSE 0x500; undefined where there is none of that subcode. */
function virtioFunction({ context, vm }: S390Vcpu): bigint | undefined {
  const { behaviour, css, legacy, memoryEnd } = vm;
  const parameter = context.register(2);
  switch (context.register(1)) {
    case BigInt(KVM_S390_VIRTIO_NOTIFY.nr):
      if (behaviour.css) return parameter < BigInt(memoryEnd) ? 0n : EINVAL;
      // Behind the end of memory are the rings of the older transport; the end itself counts as memory.
      return parameter > BigInt(memoryEnd) && !legacy.notify(parameter) ? EINVAL : 0n;
    case BigInt(KVM_S390_VIRTIO_RESET.nr):
      if (behaviour.css) return undefined;
      return legacy.reset(parameter) ? 0n : EINVAL;
    case BigInt(KVM_S390_VIRTIO_SET_STATUS.nr):
      if (behaviour.css) return undefined;
      return legacy.setStatus(parameter) ? 0n : EINVAL;
    case BigInt(KVM_S390_VIRTIO_CCW_NOTIFY.nr):
      if (!behaviour.css) return undefined;
      return css.notify(Number(parameter & 0xffff_ffffn), context.register(3)) ? 0n : EINVAL;
    case BigInt(DIAG500_SC_STOR_LIMIT.nr):
      return behaviour.storageLimit ? BigInt(vm.storageLimit) - 1n : undefined;
    default:
      return undefined;
  }
}
