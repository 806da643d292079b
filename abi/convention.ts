/**
 * How a guest calls its host, as data: the instruction, the registers, what counts of them, what an error looks like, where
 * the guest goes on. Each architecture has one {@linkcode Convention}; guests encode calls with it, and hosts decode them.
 *
 * @module
 */

import type { ByteOrder, InstructionFormat } from "./instruction_format.ts";

/**
 * What counts of a 64-bit register: all of it; its low half, and the rest is zero; or its low half, and the rest repeats
 * bit 31.
 */
export type RegisterView = "u64" | "u32" | "s32";

/** Whether the guest runs in its architecture's full width. */
export type WidthMode = "wide" | "narrow";

/** A view for each mode. */
export type WidthRule = Readonly<Record<WidthMode, RegisterView>>;

/** What becomes of a call. */
export type CallOutcome =
  /** Values go to the result registers, in order; registers without one keep what they hold. The guest goes on. */
  | { readonly kind: "registers"; readonly values: readonly bigint[] }
  /** The guest takes an exception: an interruption, a fault, a system call to itself. */
  | { readonly kind: "exception"; readonly name: string; readonly code: number }
  /** KVM_RUN comes back: user space finishes the call, or ends the virtual machine. */
  | { readonly kind: "user-space"; readonly exit: string };

/** How a call tells that it failed. */
export type StatusKind =
  /** A result below 0 is a negated KVM_E* number. */
  | "negative-kvm-error"
  /** A result below 0 is a negated errno; else it is a value of the call's own, such as a cookie. */
  | "value-or-negative-errno"
  /** 0 is success, EV_* numbers above it are errors, -1 means that nobody has answered. */
  | "ev-status";

/** What goes wrong, and how. */
export interface ErrorModel {
  /** How the first result register tells. */
  readonly status: StatusKind;
  /** What a number gets that names no call. */
  readonly unknown: CallOutcome;
  /** What a call from user mode gets. */
  readonly fromUserMode: CallOutcome;
}

/** A hypercall convention. `Register` names registers as the architecture's manual does. */
export interface Convention<Register extends string = string> {
  /** The architecture. */
  readonly arch: string;
  /** The instructions that carry a call. */
  readonly instructions: readonly InstructionFormat[];
  /** The byte order of those; "guest" where the processor's mode decides. */
  readonly byteOrder: ByteOrder | "guest";
  /** The register that says which call it is. */
  readonly number: Register;
  /** The registers of the arguments, in order. */
  readonly arguments: readonly Register[];
  /** The registers of the results; the first is the one that {@linkcode ErrorModel.status} speaks of. */
  readonly results: readonly Register[];
  /** What counts of the registers. */
  readonly widths: {
    /** What the narrow mode is; null where there is none. */
    readonly narrowMode: string | null;
    /** Of the number. */
    readonly number: WidthRule;
    /** Of each argument. */
    readonly arguments: WidthRule;
    /** Of each result. */
    readonly results: WidthRule;
  };
  /** What goes wrong, and how. */
  readonly errors: ErrorModel;
  /**
   * Who moves the program counter behind the instruction: hardware did before the host hears of the call, the host skips
   * it, or the host does and follows the branch whose delay slot the call stands in.
   */
  readonly advance: "hardware" | "host" | "host-with-delay-slot";
  /** How a guest finds out that there is a host to call. */
  readonly discovery: string;
  /** What compilers must not keep across a call, besides the result registers. */
  readonly clobbers: readonly string[];
}

/** A call: its number and arguments, as whole registers hold them. */
export interface Call {
  /** Which call. */
  readonly number: bigint;
  /** Its arguments, in order. */
  readonly arguments: readonly bigint[];
}

/** Values for registers, or of them. */
export type RegisterValues<Register extends string = string> = Partial<Record<Register, bigint>>;

/** What a view lets through of a value, modulo 2^64. */
export function viewed(value: bigint, view: RegisterView): bigint {
  switch (view) {
    case "u64":
      return BigInt.asUintN(64, value);
    case "u32":
      return BigInt.asUintN(32, value);
    case "s32":
      return BigInt.asUintN(64, BigInt.asIntN(32, value));
  }
}

/**
 * The registers that a guest loads for a call. Throws `RangeError` where it has more arguments than registers.
 *
 * @example A vCPU gives way to another one
 * ```ts
 * import { encodeCall, X86_CONVENTION } from "@exitless/exitless/abi";
 * import { assertEquals } from "@std/assert";
 *
 * const call = { number: 11n, arguments: [3n] }; // KVM_HC_SCHED_YIELD to APIC 3
 * assertEquals(encodeCall(X86_CONVENTION, call, "wide"), { rax: 11n, rbx: 3n });
 * ```
 */
export function encodeCall<Register extends string>(
  convention: Convention<Register>,
  call: Call,
  mode: WidthMode,
): RegisterValues<Register> {
  const { widths } = convention;
  const most = convention.arguments.length;
  if (call.arguments.length > most) {
    throw new RangeError(
      `Cannot pass ${call.arguments.length} arguments on ${convention.arch}: allowed are up to ${most}`,
    );
  }
  const registers: RegisterValues<Register> = {};
  registers[convention.number] = viewed(call.number, widths.number[mode]);
  for (const [index, value] of call.arguments.entries()) {
    registers[convention.arguments[index]] = viewed(value, widths.arguments[mode]);
  }
  return registers;
}

/** The call that stands in registers, with as many arguments as there are registers for them. */
export function decodeCall<Register extends string>(
  convention: Convention<Register>,
  read: (register: Register) => bigint,
  mode: WidthMode,
): Call {
  const { widths } = convention;
  return {
    number: viewed(read(convention.number), widths.number[mode]),
    arguments: convention.arguments.map((register) => viewed(read(register), widths.arguments[mode])),
  };
}

/** The registers that a host loads for an outcome. Throws `RangeError` where it has more values than registers. */
export function encodeResults<Register extends string>(
  convention: Convention<Register>,
  values: readonly bigint[],
  mode: WidthMode,
): RegisterValues<Register> {
  const most = convention.results.length;
  if (values.length > most) {
    throw new RangeError(
      `Cannot return ${values.length} values on ${convention.arch}: allowed are up to ${most}`,
    );
  }
  const registers: RegisterValues<Register> = {};
  for (const [index, value] of values.entries()) {
    registers[convention.results[index]] = viewed(value, convention.widths.results[mode]);
  }
  return registers;
}

/** The first result as a guest reads it: a signed number of the mode's width. */
export function decodeStatus<Register extends string>(
  convention: Convention<Register>,
  read: (register: Register) => bigint,
  mode: WidthMode,
): bigint {
  return BigInt.asIntN(mode === "wide" ? 64 : 32, read(convention.results[0]));
}

/** Whether a status is a failure. */
export function isFailure(convention: Convention, status: bigint): boolean {
  return convention.errors.status === "ev-status" ? status !== 0n : status < 0n;
}

/** Results in registers. */
export function returns(...values: readonly bigint[]): CallOutcome & { kind: "registers" } {
  return { kind: "registers", values };
}

/** An exception. */
export function raises(name: string, code: number): CallOutcome & { kind: "exception" } {
  return { kind: "exception", name, code };
}

/** An exit to user space, by KVM_EXIT_* name. */
export function exitsWith(exit: string): CallOutcome & { kind: "user-space" } {
  return { kind: "user-space", exit };
}

/** An argument of a call in a table: at least a name. */
export interface NamedArgument {
  /** Name, as the typed call spells it. */
  readonly name: string;
}

/** A call's arguments by name; values are whole numbers below 2^53 or bigints, modulo 2^64. */
export type ArgumentsByName<Args extends readonly NamedArgument[]> = Args extends readonly []
  ? Readonly<Record<string, never>> // an empty mapped type would take any name
  : { readonly [Arg in Args[number]["name"]]: number | bigint };

/** Arguments by name, in the order of the table. */
export function argumentsInOrder(
  args: readonly NamedArgument[],
  values: Readonly<Record<string, number | bigint>>,
): bigint[] {
  return args.map(({ name }) => BigInt(values[name]));
}
