/**
 * MIPS guests' hypercalls (arch/mips/include/asm/kvm_para.h).
 *
 * @module
 */

import {
  argumentsInOrder,
  decodeStatus,
  type HypercallArgs,
  type HypercallOn,
  HYPERCALLS,
  type HypercallSpec,
  MIPS_CONVENTION,
  type MipsCpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/**
 * A KVM hypercall by name, with its arguments by name. Its result is v0 as a signed number of the guest's width: below 0
 * it is a negated KVM_E* number.
 */
export function* mipsHypercall<Name extends HypercallOn<"mips">>(
  cpu: MipsCpu,
  name: Name,
  args: HypercallArgs<Name>,
): GuestValue<bigint> {
  const { nr, args: order }: HypercallSpec = HYPERCALLS[name];
  const values = argumentsInOrder(order, args as Readonly<Record<string, number | bigint>>);
  cpu.loadHypercall({ number: BigInt(nr), arguments: values });
  yield cpu.hypcall();
  return decodeStatus(MIPS_CONVENTION, (register) => cpu.gpr(register), cpu.mode);
}
