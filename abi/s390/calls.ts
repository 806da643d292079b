/**
 * The calls of DIAGNOSE 0x500, by the subcode in gpr 1: a namespace of their own, in which KVM_HC_* numbers mean
 * something else (asm/virtio-ccw.h, Documentation/virt/kvm/s390/s390-diag.rst).
 *
 * @module
 */

import type { ArgumentsByName, NamedArgument } from "../convention.ts";
import { KVM_S390_VIRTIO_CCW_NOTIFY } from "./virtio_ccw.ts";

/** A parameter: its name, and what the number in its register stands for. */
export interface S390Argument extends NamedArgument {
  /** What the register holds. */
  readonly type: "u64" | "gpa" | "subchannel" | "notification" | "cookie" | "preset";
  /** What it means. */
  readonly meaning: string;
}

/** A call. */
export interface S390HypercallSpec {
  /** Its subcode. */
  readonly nr: number;
  /** Its parameters, from gpr 2 on. */
  readonly args: readonly S390Argument[];
  /** What gpr 2 holds afterwards, besides a negative error number. */
  readonly result: "zero" | "cookie" | "address";
  /** Who serves it: KVM where it can and else user space, or user space alone; "legacy": user space until it dropped it. */
  readonly servedBy: "both" | "user space" | "legacy";
  /** Purpose. */
  readonly meaning: string;
}

/** Every call. */
export const S390_HYPERCALLS = {
  KVM_S390_VIRTIO_NOTIFY: {
    nr: 0,
    args: [{
      name: "address",
      type: "gpa",
      meaning: "a virtqueue's, or below the end of memory a message's",
    }],
    result: "zero",
    servedBy: "user space",
    meaning: "notifies a queue of the s390-virtio transport; early printk",
  },
  KVM_S390_VIRTIO_RESET: {
    nr: 1,
    args: [{ name: "descriptor", type: "gpa", meaning: "the device's descriptor" }],
    result: "zero",
    servedBy: "legacy",
    meaning: "resets a device of the s390-virtio transport",
  },
  KVM_S390_VIRTIO_SET_STATUS: {
    nr: 2,
    args: [{ name: "descriptor", type: "gpa", meaning: "the device's descriptor" }],
    result: "zero",
    servedBy: "legacy",
    meaning: "has the host read the device's status byte again",
  },
  KVM_S390_VIRTIO_CCW_NOTIFY: {
    nr: KVM_S390_VIRTIO_CCW_NOTIFY,
    args: [
      { name: "subchannel", type: "subchannel", meaning: "the device's subchannel-identification word" },
      { name: "queue", type: "notification", meaning: "the queue, or with it what notification data says" },
      {
        name: "cookie",
        type: "cookie",
        meaning: "what the last notification of this queue answered; else 0",
      },
    ],
    result: "cookie",
    servedBy: "both",
    meaning: "notifies a queue of the virtio-ccw transport",
  },
  DIAG500_SC_STOR_LIMIT: {
    nr: 4,
    args: [{ name: "preset", type: "preset", meaning: "0, which no host answers" }],
    result: "address",
    servedBy: "user space",
    meaning: "the highest physical address that memory devices may use",
  },
} as const satisfies Record<string, S390HypercallSpec>;

/** The name of a call. */
export type S390HypercallName = keyof typeof S390_HYPERCALLS;

/** The arguments of a call, by name; values are whole numbers below 2^53 or bigints, modulo 2^64. */
export type S390HypercallArgs<Name extends S390HypercallName> = ArgumentsByName<
  (typeof S390_HYPERCALLS)[Name]["args"]
>;

const BY_NR: ReadonlyMap<number, S390HypercallName> = new Map(
  Object.entries(S390_HYPERCALLS).map(([name, { nr }]) => [nr, name as S390HypercallName]),
);

/** The name of a subcode, all 64 bits of it; undefined where there is none. */
export function s390HypercallName(nr: bigint): S390HypercallName | undefined {
  return nr > 0xffn ? undefined : BY_NR.get(Number(nr));
}

/** Error numbers that calls and their helpers know, by value. gpr 2 holds them negated. */
export const S390_ERRNO: Readonly<Record<"ENOMEM" | "EEXIST" | "EINVAL" | "ENOSPC" | "EOPNOTSUPP", number>> =
  {
    ENOMEM: 12,
    EEXIST: 17,
    EINVAL: 22,
    ENOSPC: 28,
    EOPNOTSUPP: 95,
  };
