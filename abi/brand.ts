/**
 * Numbers that must not be mixed. A brand exists for the type checker alone: at run time a {@linkcode Gpa} is the
 * plain number it was made from.
 *
 * @module
 */

/** A `T` that only a function which vouches for `Name` hands out. */
export type Brand<T, Name extends string> = T & {
  /** The name, known to the type checker alone. */
  readonly __brand: Name;
};

/** A guest-physical address, in bytes. */
export type Gpa = Brand<number, "Gpa">;
/** A guest-virtual (linear) address, in bytes. */
export type Gva = Brand<number, "Gva">;
/** A local APIC's ID: 8 bits in xAPIC mode, 32 bits in x2APIC mode. */
export type ApicId = Brand<number, "ApicId">;
/** A vCPU's number as user space gave it in KVM_CREATE_VCPU; KVM's x2APIC ID. */
export type VcpuId = Brand<number, "VcpuId">;
/** An interrupt or exception vector, 0 to 255. */
export type Vector = Brand<number, "Vector">;
/** A virtual-processor identifier (SDM 3C 29.1), 0 to 65535; 0 is the host's. */
export type Vpid = Brand<number, "Vpid">;
/** A duration or a point in time, in whole cycles of the machine's constant-rate time-stamp counter. */
export type Cycles = Brand<number, "Cycles">;
/** The index of a model-specific register, as ECX holds it. */
export type MsrIndex = Brand<number, "MsrIndex">;

/** One past the largest physical address that the machine knows: 2^52 (SDM 3A 4.1.4, MAXPHYADDR's own maximum). */
export const PHYSICAL_ADDRESS_LIMIT: number = 2 ** 52;

function whole<T>(value: number, limit: number, what: string): T {
  if (!Number.isInteger(value) || value < 0 || value >= limit) {
    throw new RangeError(`Cannot use ${value} as ${what}: allowed are whole numbers from 0 to ${limit - 1}`);
  }
  return value as T;
}

/** Vouches for a guest-physical address. Throws `RangeError` outside 0 to 2^52 - 1. */
export function gpa(value: number): Gpa {
  return whole(value, PHYSICAL_ADDRESS_LIMIT, "a guest-physical address");
}

/** Vouches for a linear address. Throws `RangeError` outside 0 to 2^52 - 1. */
export function gva(value: number): Gva {
  return whole(value, PHYSICAL_ADDRESS_LIMIT, "a linear address");
}

/** Vouches for an APIC ID. Throws `RangeError` outside 32 bits. */
export function apicId(value: number): ApicId {
  return whole(value, 2 ** 32, "an APIC ID");
}

/** Vouches for a vCPU number. Throws `RangeError` outside 32 bits. */
export function vcpuId(value: number): VcpuId {
  return whole(value, 2 ** 32, "a vCPU ID");
}

/** Vouches for a vector. Throws `RangeError` outside 0 to 255. */
export function vector(value: number): Vector {
  return whole(value, 256, "a vector");
}

/** Vouches for a VPID. Throws `RangeError` outside 0 to 65535. */
export function vpid(value: number): Vpid {
  return whole(value, 65536, "a VPID");
}

/** Vouches for a number of cycles. Throws `RangeError` for fractions, negative and unsafe numbers. */
export function cycles(value: number): Cycles {
  return whole(value, Number.MAX_SAFE_INTEGER, "a number of cycles");
}

/** Vouches for an MSR index. Throws `RangeError` outside 32 bits. */
export function msrIndex(value: number): MsrIndex {
  return whole(value, 2 ** 32, "an MSR index");
}
