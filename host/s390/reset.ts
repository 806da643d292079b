/**
 * Resets: of CPUs (kvm_arch_vcpu_ioctl_{normal,initial}_reset in arch/s390/kvm/kvm-s390.c), and what QEMU makes of those
 * two subcodes of DIAGNOSE 0x308 after which the guest goes on (s390_machine_reset in its hw/s390x/s390-virtio-ccw.c).
 *
 *     subcode            the CPU that asks   the others        memory, IPL parameters
 *     0  modified clear  clear reset         clear reset       stay
 *     1  load normal     initial reset       CPU reset         stay
 *
 * The others are stopped then; the CPU that asks goes on at the short PSW at absolute address 0.
 *
 * @module
 */

import {
  decodeShortPsw,
  isValidPsw,
  PGM_SPECIFICATION,
  PSW_MASK_64,
  S390_GPRS,
  S390_SYS_CR0,
} from "../../abi/mod.ts";
import { interruptProgram } from "./interrupts.ts";
import type { S390Vcpu } from "./vcpu.ts";
import type { S390Vm } from "./vm.ts";

/** Control register 0 after an initial reset (CR0_INITIAL_MASK). */
const CR0_INITIAL = 0xe0n;
/** Control register 14. */
const CR14_INITIAL = 0xc200_0000n;

/** A reset after which the guest goes on. */
export type GuestReset = "modified clear" | "load normal";

/** CPU reset: its own interruptions and its handshake are gone, and all registers stay. */
function cpuReset({ interrupts, pfault, asyncPages }: S390Vcpu): void {
  interrupts.program = undefined;
  interrupts.pfaultInit = undefined;
  asyncPages.clear();
  pfault.reset();
}

/** Initial CPU reset: that, and prefix and control registers; general registers stay. Its PSW is for whoever starts it. */
function initialCpuReset(vcpu: S390Vcpu): void {
  const { context } = vcpu;
  cpuReset(vcpu);
  vcpu.storage.prefix = 0;
  for (let register = 0; register < 16; register++) context.setSystem(S390_SYS_CR0 + register, 0);
  context.setSystem(S390_SYS_CR0, CR0_INITIAL);
  context.setSystem(S390_SYS_CR0 + 14, CR14_INITIAL);
}

/** Clear reset: that, and the general registers. */
export function clearReset(vcpu: S390Vcpu): void {
  initialCpuReset(vcpu);
  for (let register = 0; register < S390_GPRS; register++) vcpu.context.setRegister(register, 0);
}

/** A CPU has asked for a reset after which it goes on alone. */
export function resetGuest(caller: S390Vcpu, reset: GuestReset): void {
  const { vm } = caller;
  subsystemReset(vm);
  for (const vcpu of vm.vcpus) {
    if (reset === "modified clear") clearReset(vcpu);
    else if (vcpu === caller) initialCpuReset(vcpu);
    else cpuReset(vcpu);
    // Each is stopped by its reset (s390_cpu_reset_hold); the one that asks starts again.
    if (vcpu === caller) vcpu.traceState(false);
    else vcpu.stop();
  }
  vm.bootCpu = caller;
  loadNormal(caller);
}

/**
 * Devices, and floating interruptions: those of pages that are still on their way too, as QEMU waits for these and then
 * clears what has come of them (kvm_s390_flic_reset).
 */
function subsystemReset(vm: S390Vm): void {
  vm.floating.length = 0;
  vm.css.reset();
}

/** The short PSW at absolute address 0 is loaded; the CPU interrupts for one that is none (s390_cpu_load_normal). */
function loadNormal(vcpu: S390Vcpu): void {
  const { words, behaviour } = vcpu.vm;
  const { mask, address } = decodeShortPsw(words.read64(0)!);
  const psw = { mask: behaviour.checksIpl ? mask : PSW_MASK_64, address };
  vcpu.setPsw(psw);
  vcpu.traceState(true);
  if (isValidPsw(psw)) vcpu.code.restart();
  else interruptProgram(vcpu, { code: PGM_SPECIFICATION, length: 0 });
}
