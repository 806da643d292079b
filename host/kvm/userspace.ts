/**
 * User space, as far as a virtual machine needs one: what KVM_RUN comes back with, who answers, and what ends the
 * virtual machine.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import { TP } from "../trace/mod.ts";
import { REQ_VM_DEAD } from "./requests.ts";
import type { Vcpu } from "./vcpu.ts";

/** What user space answers to an access that no kernel device took. */
export interface UserspaceDevice {
  /** Serves a read (`value` undefined) or a write; undefined leaves it to the default. */
  access(address: number, bytes: number, value: bigint | undefined): bigint | undefined;
}

/** KVM_EXIT_*: why KVM_RUN came back. */
const KVM_EXIT_UNKNOWN = 0;
const KVM_EXIT_IO = 2;
const KVM_EXIT_MMIO = 6;
const KVM_EXIT_SHUTDOWN = 8;
const KVM_EXIT_FAIL_ENTRY = 9;

/** KVM_RUN comes back with an MMIO access, and is called again. Where no device is, QEMU lets reads give 0. */
export function userspaceMmio(
  vcpu: Vcpu,
  address: number,
  bytes: number,
  value: bigint | undefined,
): bigint {
  vcpu.stats.mmio_exits++;
  comesBack(vcpu, KVM_EXIT_MMIO);
  return vcpu.vm.userspaceMmioDevice?.access(address, bytes, value) ?? 0n;
}

/** KVM_RUN comes back with a port access, and is called again. Where no device is, the bus floats: reads give ones. */
export function userspacePio(vcpu: Vcpu, port: number, bytes: number, value: number | undefined): number {
  comesBack(vcpu, KVM_EXIT_IO);
  const wide = value === undefined ? undefined : BigInt(value);
  const answer = vcpu.vm.userspacePioDevice?.access(port, bytes, wide);
  const ones = bytes === 4 ? 0xffff_ffff : (1 << (8 * bytes)) - 1;
  return answer === undefined ? ones : (Number(answer & 0xffff_ffffn) & ones) >>> 0;
}

function comesBack(vcpu: Vcpu, reason: number): void {
  vcpu.trace(TP.kvm_userspace_exit, reason);
  vcpu.trace(TP.kvm_fpu, 0);
  vcpu.charge(vcpu.cost.userspace);
  vcpu.trace(TP.kvm_fpu, 1);
}

/** A vCPU triple-faulted: KVM_EXIT_SHUTDOWN, and user space ends the virtual machine. */
export function shutdown(vcpu: Vcpu): void {
  end(vcpu, KVM_EXIT_SHUTDOWN);
}

/** The processor refused to enter a vCPU's guest: KVM_EXIT_FAIL_ENTRY, and user space ends the virtual machine. */
export function entryFailed(vcpu: Vcpu): void {
  end(vcpu, KVM_EXIT_FAIL_ENTRY);
}

/** KVM_RUN comes back with a negative error number: what user space cannot mend, it gives up on. */
export class RunFailed extends Error {
  /** The error's name. */
  override readonly name = "RunFailed";
  /** Which vCPU's KVM_RUN. */
  readonly vcpuId: number;
  /** The error number's name. */
  readonly errno: "EFAULT";
  /** The guest-physical address that it is about. KVM does not tell user space: no KVM_EXIT_MEMORY_FAULT comes with it. */
  readonly gpa: number;

  /** It came back for the page at `gpa`. */
  constructor(vcpuId: number, errno: "EFAULT", gpa: number) {
    super(
      `Cannot run vCPU ${vcpuId}: KVM_RUN failed with ${errno}, as the host cannot read its page at ${
        hex(gpa)
      }`,
    );
    this.vcpuId = vcpuId;
    this.errno = errno;
    this.gpa = gpa;
  }
}

/**
 * KVM_RUN fails (kvm_handle_error_pfn, for a page that the host could not read). The exit reason stays as vcpu_run has left
 * it, KVM_EXIT_UNKNOWN. Throws {@linkcode RunFailed}.
 */
export function runFailed(vcpu: Vcpu, errno: "EFAULT", gpa: number): never {
  vcpu.trace(TP.kvm_userspace_exit, KVM_EXIT_UNKNOWN);
  vcpu.trace(TP.kvm_fpu, 0);
  throw new RunFailed(vcpu.vcpuId, errno, gpa);
}

function end(vcpu: Vcpu, reason: number): void {
  const { vm, engine } = vcpu;
  vcpu.trace(TP.kvm_userspace_exit, reason);
  vcpu.trace(TP.kvm_fpu, 0);
  vm.dead = true;
  for (const other of vm.vcpus) {
    other.request(REQ_VM_DEAD);
    engine.park(other);
  }
  engine.stop();
}
