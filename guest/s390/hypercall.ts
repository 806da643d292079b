/**
 * s390 guests' calls to the host (arch/s390/include/asm/kvm_para.h): DIAGNOSE 0x500 by name, and what Linux does with
 * functions that a host may lack.
 *
 * @module
 */

import {
  argumentsInOrder,
  decodeStatus,
  encodeCall,
  MachineFault,
  S390_CONVENTION,
  S390_HYPERCALLS,
  type S390Cpu,
  type S390HypercallArgs,
  type S390HypercallName,
  type S390HypercallSpec,
  type S390Register,
  s390RegisterNumber,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/**
 * A call of DIAGNOSE 0x500 by name, with its arguments by name. Its result is gpr 2 as a signed number: what the call
 * answers, or below 0 a negated errno. A host that lacks the call interrupts the program: {@linkcode MachineFault} with code
 * 6, where the kernel's handler sends that to its fixup.
 *
 * @example A queue is notified
 * ```ts
 * import { Machine, s390Hypercall, s390Text } from "@exitless/exitless";
 * import { assertEquals } from "@std/assert";
 *
 * const vm = new Machine().createS390Vm();
 * const subchannel = vm.addCcwDevice({ number: 0, queues: [128], notified: () => {} });
 * const text = s390Text();
 * let cookie: bigint | undefined;
 * const entry = text.add(function* main(cpu) {
 *   cookie = yield* s390Hypercall(cpu, "KVM_S390_VIRTIO_CCW_NOTIFY", { subchannel, queue: 0, cookie: 0 });
 * });
 * vm.load(text);
 * vm.start(entry);
 * vm.machine.run();
 * assertEquals(cookie, 0n); // its place on the bus
 * ```
 */
export function* s390Hypercall<Name extends S390HypercallName>(
  cpu: S390Cpu,
  name: Name,
  args: S390HypercallArgs<Name>,
): GuestValue<bigint> {
  const { nr, args: order }: S390HypercallSpec = S390_HYPERCALLS[name];
  const values = argumentsInOrder(order, args as Readonly<Record<string, number | bigint>>);
  const registers = encodeCall(S390_CONVENTION, { number: BigInt(nr), arguments: values }, "wide");
  for (const [register, value] of Object.entries(registers)) {
    cpu.setRegister(s390RegisterNumber(register as S390Register), value);
  }
  yield cpu.diag500();
  return decodeStatus(S390_CONVENTION, (register) => cpu.register(s390RegisterNumber(register)), "wide");
}

/**
 * One past the highest address that memory devices may use; undefined where the host does not say (Linux'
 * diag500_storage_limit): the call interrupts the program there, or leaves the 0 that was in the register.
 */
export function* s390StorageLimit(cpu: S390Cpu): GuestValue<bigint | undefined> {
  try {
    const highest = yield* s390Hypercall(cpu, "DIAG500_SC_STOR_LIMIT", { preset: 0 });
    return highest === 0n ? undefined : BigInt.asUintN(64, highest) + 1n;
  } catch (error) {
    if (error instanceof MachineFault) return undefined;
    throw error;
  }
}

/** Whether the host has directed yields: the boot code tries one, to itself (Linux' detect_diag9c). */
export function* hasDiag9c(cpu: S390Cpu, self: number): GuestValue<boolean> {
  try {
    yield cpu.diag9c(self);
    return true;
  } catch (error) {
    if (error instanceof MachineFault) return false;
    throw error;
  }
}
