/**
 * What hosts do on HYPCALL 0. Mainline knows no call at all. Two trees beside it show what the numbers are for:
 * Imagination's (arch/mips/kvm/hypcall.c, 2015) and Cavium's (arch/mips/kvm/kvm_mipsvz.c, 2013).
 *
 * Cavium's has a fourth call, GET_HOST_TIME, whose number no public header has; it is not here.
 *
 * @module
 */

import {
  type Call,
  type CallOutcome,
  exitsWith,
  type HypercallName,
  hypercallName,
  KVM_ENOSYS,
  MIPS_EXCEPTIONS,
  raises,
  returns,
} from "../../abi/mod.ts";

/** Whose KVM it is; "none" is a machine without one. */
export type MipsHost = "mainline" | "imgtec" | "cavium" | "none";

/** What calls need to know. */
export interface MipsCallContext {
  /** The frequency of Count, in Hz. */
  readonly countHz: number;
}

/** Serves a call. */
export type MipsCallHandler = (context: MipsCallContext) => CallOutcome;

/** What a host does. */
export interface MipsHostBehaviour {
  /** Whether it looks at HYPCALL's code. What is not KVM's is a failure of emulation then. */
  readonly looksAtCode: boolean;
  /**
   * Whether it follows a branch on a floating-point condition to whose delay slot HYPCALL belongs: Cavium's does, and takes
   * every condition for false (mipsvz_get_fcr31).
   */
  readonly followsConditions: boolean;
  /** Its calls. */
  readonly calls: Readonly<Partial<Record<HypercallName, MipsCallHandler>>>;
  /** What other numbers get. */
  readonly unknown: CallOutcome;
  /** How many arguments user space is told. */
  readonly userspaceArguments: number;
  /** What user space finds as the result, and leaves if it does not care; undefined where the register is left alone. */
  readonly presetResult: bigint | undefined;
}

/** The hosts. */
export const MIPS_HOSTS: Readonly<Record<MipsHost, MipsHostBehaviour>> = {
  mainline: {
    looksAtCode: true,
    followsConditions: false,
    calls: {},
    unknown: returns(BigInt(-KVM_ENOSYS)),
    userspaceArguments: 0,
    presetResult: undefined,
  },
  imgtec: {
    looksAtCode: true,
    followsConditions: false,
    calls: {
      KVM_HC_MIPS_GET_CLOCK_FREQ: ({ countHz }) => returns(BigInt.asIntN(32, BigInt(countHz))),
      // Of type KVM_SYSTEM_EVENT_SHUTDOWN; the rest of kvm_run.system_event is zeros.
      KVM_HC_MIPS_EXIT_VM: () => exitsWith("KVM_EXIT_SYSTEM_EVENT"),
      KVM_HC_MIPS_CONSOLE_OUTPUT: () => exitsWith("KVM_EXIT_HYPERCALL"),
    },
    unknown: returns(BigInt(-KVM_ENOSYS)),
    userspaceArguments: 4,
    presetResult: BigInt(-KVM_ENOSYS),
  },
  cavium: {
    looksAtCode: false,
    followsConditions: true,
    calls: {
      // An unsigned int becomes an unsigned long: not sign-extended.
      KVM_HC_MIPS_GET_CLOCK_FREQ: ({ countHz }) => returns(BigInt(countHz)),
      KVM_HC_MIPS_EXIT_VM: () => exitsWith("KVM_EXIT_SHUTDOWN"),
      KVM_HC_MIPS_CONSOLE_OUTPUT: () => exitsWith("KVM_EXIT_HYPERCALL"),
    },
    unknown: returns(), // v0 keeps the number.
    userspaceArguments: 6,
    presetResult: undefined,
  },
  none: {
    looksAtCode: false,
    followsConditions: false,
    calls: {},
    unknown: raises("RI", MIPS_EXCEPTIONS.RI.code),
    userspaceArguments: 0,
    presetResult: undefined,
  },
};

/** What becomes of a call (kvm_mips_hypercall, mipsvz_hypercall). */
export function mipsHypercallOutcome(host: MipsHost, call: Call, context: MipsCallContext): CallOutcome {
  const { calls, unknown } = MIPS_HOSTS[host];
  const name = hypercallName(Number(call.number));
  const handler = name === undefined ? undefined : calls[name];
  return handler === undefined ? unknown : handler(context);
}
