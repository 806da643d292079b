/**
 * Instructions that the host carries out besides DIAGNOSE (arch/s390/kvm/priv.c).
 *
 * @module
 */

import {
  highOf,
  LOWCORE_SIZE,
  lowOf,
  PGM_ADDRESSING,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  PSW_MASK_PSTATE,
  type S390Instruction,
  SYSIB_SIZE,
} from "../../abi/mod.ts";
import { operandAddress } from "./execute.ts";
import { nameVirtualMachine, storeSystemInformation, STSI_LEVEL_3, virtualMachines } from "./stsi.ts";
import { emulatedBlocks } from "./stsi_emulated.ts";
import { S390_TP } from "./tracepoints.ts";
import type { S390Vcpu } from "./vcpu.ts";

/** The bits of a prefix. */
const PREFIX_MASK = 0x7fff_e000;

/** Carries out STSI, STAP, SPX or STPX; a code is the program interruption that it gets instead. */
export function carryOut(vcpu: S390Vcpu, instruction: S390Instruction): number | undefined {
  const address = operandAddress(vcpu, instruction);
  if (instruction.name === "STSI") return stsi(vcpu, address);
  if ((vcpu.pswMask & PSW_MASK_PSTATE) !== 0n) return PGM_PRIVILEGED_OP;
  const bytes = instruction.name === "STAP" ? 2 : 4;
  if ((address & BigInt(bytes - 1)) !== 0n) return PGM_SPECIFICATION;
  if (vcpu.storage.fault(address, bytes)?.kind === "addressing") return PGM_ADDRESSING;
  const at = Number(address);
  if (instruction.name === "SPX") return setPrefix(vcpu, Number(vcpu.storage.read(at, 4)) & PREFIX_MASK);
  if (instruction.name === "STAP") {
    vcpu.storage.write(at, 2, BigInt(vcpu.index));
    vcpu.trace(S390_TP.kvm_s390_handle_stap, lowOf(address), highOf(address));
  } else {
    const { prefix } = vcpu.storage;
    vcpu.storage.write(at, 4, BigInt(prefix));
    vcpu.trace(S390_TP.kvm_s390_handle_prefix, 0, prefix);
  }
  return undefined;
}

/** The whole prefix area must be memory. */
function setPrefix(vcpu: S390Vcpu, prefix: number): number | undefined {
  if (!vcpu.vm.memory.backed(prefix, LOWCORE_SIZE)) return PGM_ADDRESSING;
  vcpu.storage.prefix = prefix;
  vcpu.trace(S390_TP.kvm_s390_handle_prefix, 1, prefix);
  return undefined;
}

function stsi(vcpu: S390Vcpu, address: bigint): number | undefined {
  const { context, vm } = vcpu;
  const { kvm, name } = vm.behaviour;
  if (kvm) vcpu.stats.instruction_stsi++;
  const [gpr0, gpr1] = [context.register(0), context.register(1)];
  const problemState = (vcpu.pswMask & PSW_MASK_PSTATE) !== 0n;
  const machine = { cpus: vm.vcpus.length, name };
  const blocks = kvm
    // Levels 1 and 2 are the host's own hardware, of which there is none here.
    ? (which: string) => which === "3.2.2" ? virtualMachines(machine, vm.outerSystem) : undefined
    : emulatedBlocks(machine, vcpu.index);
  const answer = storeSystemInformation({ gpr0, gpr1, address, problemState }, blocks);
  if (answer === "no-data") {
    vcpu.setConditionCode(3);
    return undefined;
  }
  if (answer === "level") {
    context.setRegister(0, STSI_LEVEL_3);
  } else if ("interruption" in answer) {
    return answer.interruption;
  } else {
    if (vcpu.storage.fault(address, SYSIB_SIZE)?.kind === "addressing") return PGM_ADDRESSING;
    const [fc, sel1, sel2] = [(gpr0 >> 28n) & 0xfn, gpr0 & 0xffn, gpr1 & 0xffffn].map(Number);
    vcpu.trace(S390_TP.kvm_s390_handle_stsi, fc, sel1, sel2, lowOf(address), highOf(address));
    if (kvm) {
      context.setRegister(0, 0); // The emulator leaves the register.
      vcpu.toUserspace("KVM_EXIT_S390_STSI"); // QEMU asks for that: KVM_CAP_S390_USER_STSI.
      nameVirtualMachine(answer.block, name);
    }
    vcpu.storage.writeBytes(Number(address), answer.block);
  }
  vcpu.setConditionCode(0);
  return undefined;
}
