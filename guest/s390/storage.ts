/**
 * Loads of s390 guests as expressions, and the fields of big-endian structures.
 *
 * @module
 */

import type { Field, S390Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/** Loads a scalar field of a structure at an address. */
export function* s390LoadField(
  cpu: S390Cpu,
  base: number,
  { offset, size, count }: Field,
): GuestValue<bigint> {
  const address = base + offset;
  switch (size / count) {
    case 1:
      yield cpu.load8(address);
      break;
    case 2:
      yield cpu.load16(address);
      break;
    case 4:
      yield cpu.load32(address);
      break;
    default:
      yield cpu.load64(address);
  }
  return cpu.value;
}

/** Stores bytes, doublewords first. */
export function* s390StoreBytes(
  cpu: S390Cpu,
  address: number,
  bytes: Readonly<Uint8Array>,
): GuestValue<void> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  for (; at + 8 <= bytes.length; at += 8) yield cpu.store64(address + at, view.getBigUint64(at));
  for (; at < bytes.length; at++) yield cpu.store8(address + at, bytes[at]);
}
