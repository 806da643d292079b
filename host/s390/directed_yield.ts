/**
 * DIAGNOSE 0x9c: a vCPU gives its time to another one, by CPU address (__diag_time_slice_end_directed in
 * arch/s390/kvm/diag.c). Where that one has a host CPU which the hypervisor below has taken away, the host can pass the
 * request on, so many times in a clock tick.
 *
 * @module
 */

/** Clock ticks a second of an s390 host (CONFIG_HZ). */
export const S390_HZ = 100;

/**
 * How often requests may be passed on: the host counts them, and not for each virtual machine (forward_cnt and cur_slice in
 * arch/s390/kvm/diag.c).
 */
export class ForwardingBudget {
  readonly #hz: number;
  #left = 0;
  #tick = -1;

  /** `hz` requests a second (KVM's module parameter diag9c_forwarding_hz; 0: none). */
  constructor(hz: number) {
    if (!Number.isInteger(hz) || hz < 0) {
      throw new RangeError(`Cannot forward ${hz} directed yields a second: allowed are whole numbers from 0`);
    }
    this.#hz = hz;
  }

  /**
   * Takes one of a clock tick's requests. `false` where the host passes none on, or has used them up. A request that is not
   * passed on afterwards is used up too.
   */
  take(tick: number): boolean {
    if (this.#hz === 0) return false;
    if (tick > this.#tick) {
      this.#tick = tick;
      this.#left = Math.floor(this.#hz / S390_HZ);
    }
    return this.#left-- > 0;
  }
}

/** What becomes of a directed yield. */
export type DirectedYield =
  /** Nothing, for that reason. */
  | { readonly ignored: "self" | "no such CPU" | "no forwarding" | "its host CPU runs" | "it does not wait" }
  /** The target runs now on the caller's CPU. */
  | "yielded"
  /** The hypervisor below was asked for the target's host CPU. */
  | "forwarded";

/** A vCPU as a directed yield sees it. */
export interface YieldTarget {
  /** The host CPU that it runs on; undefined while it has none. */
  readonly hostCpu: { readonly preempted: boolean } | undefined;
}

/** The host as a directed yield sees it. */
export interface YieldHost<Target extends YieldTarget> {
  /** The caller's own CPU address. */
  readonly self: number;
  /** The vCPU with an address. */
  byId(id: number): Target | undefined;
  /** Takes a request from the budget. */
  takeForward(): boolean;
  /** Asks the hypervisor below for a vCPU's host CPU. */
  forward(target: Target): void;
  /** Lets a vCPU that waits for a CPU have the caller's (yield_to). Whether it did wait. */
  yieldTo(target: Target): boolean;
}

/** Yields to the CPU that the low 32 bits of a register name, signed. */
export function directedYield<Target extends YieldTarget>(
  register: bigint,
  host: YieldHost<Target>,
): DirectedYield {
  const id = Number(BigInt.asIntN(32, register));
  if (id === host.self) return { ignored: "self" };
  const target = host.byId(id);
  if (target === undefined) return { ignored: "no such CPU" };
  const { hostCpu } = target;
  if (hostCpu !== undefined) {
    if (!host.takeForward()) return { ignored: "no forwarding" };
    if (!hostCpu.preempted) return { ignored: "its host CPU runs" };
    host.forward(target);
    return "forwarded";
  }
  return host.yieldTo(target) ? "yielded" : { ignored: "it does not wait" };
}
