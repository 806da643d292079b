/**
 * PowerPC guests' hypercalls (arch/powerpc/include/asm/epapr_hcalls.h): a call of the stub into which the guest has
 * patched the words of the device tree.
 *
 * @module
 */

import {
  argumentsInOrder,
  PPC_HYPERCALLS,
  type PpcCpu,
  type PpcHypercallArgs,
  type PpcHypercallName,
  type PpcHypercallResults,
  type PpcHypercallSpec,
  ppcHypercallToken,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/** A hypercall by name, through the stub at `stub`, with its arguments and results by name. */
export function* ppcHypercall<Name extends PpcHypercallName>(
  cpu: PpcCpu,
  stub: number,
  name: Name,
  args: PpcHypercallArgs<Name>,
): GuestValue<PpcHypercallResults<Name>> {
  const spec: PpcHypercallSpec = PPC_HYPERCALLS[name];
  const values = argumentsInOrder(
    spec.args.map((arg) => ({ name: arg })),
    args as Readonly<Record<string, number | bigint>>,
  );
  cpu.loadHypercall({ number: BigInt(ppcHypercallToken(name)), arguments: values });
  yield cpu.call(stub);
  const results = spec.results.map((result, index) => [result, cpu.register(4 + index)]);
  return {
    status: Number(BigInt.asIntN(32, cpu.r3)),
    results: Object.fromEntries(results) as PpcHypercallResults<Name>["results"],
  };
}
