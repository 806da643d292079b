/**
 * What a PowerPC processor has while it runs a guest: registers, the mode that it runs in, and addresses.
 *
 * @module
 */

import {
  type ByteOrder,
  HIGH,
  MAGIC_PAGE_BYTES,
  MSR_DR,
  MSR_IR,
  MSR_LE,
  MSR_PR,
  MSR_SF,
  PPC_CR,
  PPC_XER,
  type PpcCore,
  type PpcCpu,
  XER_SO,
} from "../../abi/mod.ts";
import type { GuestMemory } from "../memory/mod.ts";
import { type MagicPlace, NO_MAGIC, type Place, placeOf } from "./places.ts";
import type { SharedPage } from "./shared_page.ts";

/** An access that memory did not take. */
export interface DataFault {
  /** The effective address. */
  readonly address: bigint;
  /** Whether it was a store. */
  readonly store: boolean;
  /** Whether the magic page is there, and only its translation is missing. */
  readonly magic: boolean;
}

/** Whether an access reaches from one page into the next. */
function crosses(address: bigint, bytes: number): boolean {
  return Number(address & 0xfffn) + bytes > MAGIC_PAGE_BYTES;
}

/** The registers, mode and addresses of one processor. */
export class PpcProcessor {
  /** The core. */
  readonly core: PpcCore;
  /** Bits of a register. */
  readonly bits: 32 | 64;
  /** The vCPU's supervisor registers. */
  readonly shared: SharedPage;
  /** The handle whose registers it has. */
  readonly context: PpcCpu;
  /** The guest's memory. */
  readonly memory: GuestMemory;
  /** Where the magic page is. */
  magic: MagicPlace = NO_MAGIC;
  /** Whether the processor has a translation for the magic page: KVM makes it at the first access. */
  magicMapped = false;
  /**
   * By number: registers that problem state may read, as they were at the last entry. KVM loads them from the shared
   * page then (booke_interrupts.S), and no access of the guest's meets KVM.
   */
  readonly readable: Map<number, bigint> = new Map();
  /** Why the last access, or fetch, failed. */
  fault: DataFault | undefined = undefined;

  /** MSR[SF]: addresses and comparisons have 64 bits. */
  sf = false;
  /** MSR[PR] of the guest: a user program runs. */
  user = false;
  /** MSR[LE]: words have their low byte first. */
  little = false;
  /** MSR[IR]: instruction addresses are translated. */
  ir = false;
  /** MSR[DR]: data addresses are translated. */
  dr = false;

  /** A processor whose mode is not set. */
  constructor(core: PpcCore, context: PpcCpu, shared: SharedPage, memory: GuestMemory) {
    this.core = core;
    this.bits = core === "book3s-64" ? 64 : 32;
    this.context = context;
    this.shared = shared;
    this.memory = memory;
  }

  /** Takes the mode from the guest's MSR (kvmppc_recalc_shadow_msr). Stores to the page alone do not change it. */
  takeMode(msr: bigint): void {
    const low = Number(BigInt.asUintN(32, msr));
    this.sf = this.bits === 64 && (msr & MSR_SF) !== 0n;
    this.user = (low & MSR_PR) !== 0;
    this.little = (low & MSR_LE) !== 0;
    this.ir = (low & MSR_IR) !== 0;
    this.dr = (low & MSR_DR) !== 0;
  }

  /** The byte order of words. */
  get order(): ByteOrder {
    return this.little ? "little" : "big";
  }

  // Registers.

  /** A register, cut to the core's width. */
  gpr(number: number): bigint {
    const { regs } = this.context;
    const low = BigInt(regs[2 * number]);
    return this.bits === 32 ? low : (BigInt(regs[2 * number + 1]) << 32n) | low;
  }

  /** A register's low half. */
  low(number: number): number {
    return this.context.regs[2 * number];
  }

  /** Sets a register, modulo the core's width. */
  setGpr(number: number, value: bigint): void {
    const { regs } = this.context;
    regs[2 * number] = Number(BigInt.asUintN(32, value));
    regs[2 * number + 1] = this.bits === 32 ? 0 : Number(BigInt.asUintN(32, value >> 32n));
  }

  /** The address in the program counter, moved by a number of bytes. */
  advance(bytes: number): void {
    this.context.pc = this.wrapped(this.context.pc + bytes);
  }

  /** A code address in the mode's width. */
  wrapped(address: number): number {
    return this.sf ? address : (address % HIGH + HIGH) % HIGH;
  }

  /** A code address in a register's value: words are aligned, and the mode has a width. */
  codeAddress(value: bigint): number {
    return Number(BigInt.asUintN(this.sf ? 64 : 32, value) & ~3n);
  }

  /** Sets a field of the condition register. */
  setCrField(field: number, bits: number): void {
    const shift = 28 - 4 * field;
    const { regs } = this.context;
    regs[2 * PPC_CR] = (regs[2 * PPC_CR] & ~(0xf << shift)) | (bits << shift);
  }

  /** Whether a bit of the condition register is set; bit 0 is the most significant one. */
  crBit(bit: number): boolean {
    return ((this.low(PPC_CR) >>> (31 - bit)) & 1) !== 0;
  }

  /** XER's summary overflow, as a bit of a CR field. */
  get summaryOverflow(): number {
    return (this.low(PPC_XER) & XER_SO) !== 0 ? 1 : 0;
  }

  // Addresses.

  /** An effective address in the mode's width. */
  effective(address: bigint): bigint {
    return BigInt.asUintN(this.sf ? 64 : 32, address);
  }

  /** Loads 1 to 8 bytes in a byte order. undefined where it failed: then {@linkcode fault} says why. */
  load(address: bigint, bytes: 1 | 2 | 4 | 8, little: boolean = this.little): bigint | undefined {
    const effective = this.effective(address);
    if (crosses(effective, bytes)) return this.#loadAcross(effective, bytes, little);
    const place = placeOf(this, effective, false, bytes);
    let value = 0n;
    for (let i = 0; i < bytes; i++) {
      const at = little ? bytes - 1 - i : i;
      const byte = this.#byte(place, at);
      if (byte === undefined) {
        this.fault = { address: effective, store: false, magic: place.kind === "magic-miss" };
        return undefined;
      }
      value = (value << 8n) | BigInt(byte);
    }
    return value;
  }

  /** Loads bytes of two pages, which may be of two kinds. */
  #loadAcross(address: bigint, bytes: 1 | 2 | 4 | 8, little: boolean): bigint | undefined {
    let value = 0n;
    for (let i = 0; i < bytes; i++) {
      const byte = this.load(address + BigInt(little ? bytes - 1 - i : i), 1);
      if (byte === undefined) return undefined;
      value = (value << 8n) | byte;
    }
    return value;
  }

  #byte(place: Place, at: number): number | undefined {
    if (place.kind === "memory") return this.memory.byte(place.address + at);
    if (place.kind === "magic") return this.shared.bytes[place.offset + at];
    return undefined;
  }

  /** Stores the low 1 to 8 bytes of a value in a byte order. false where it failed. */
  store(address: bigint, bytes: 1 | 2 | 4 | 8, value: bigint, little: boolean = this.little): boolean {
    const effective = this.effective(address);
    if (crosses(effective, bytes)) return this.#storeAcross(effective, bytes, value, little);
    const place = this.#storable(effective, bytes);
    if (place === undefined) return false;
    for (let i = 0; i < bytes; i++) {
      const byte = Number((value >> BigInt(8 * i)) & 0xffn);
      const at = little ? i : bytes - 1 - i;
      if (place.kind === "memory") this.memory.setByte(place.address + at, byte);
      else this.shared.bytes[place.offset + at] = byte;
    }
    if (place.kind === "memory") this.memory.stored(place.address, bytes);
    return true;
  }

  /** Stores bytes to two pages, or nothing. */
  #storeAcross(address: bigint, bytes: 1 | 2 | 4 | 8, value: bigint, little: boolean): boolean {
    const last = address + BigInt(bytes - 1);
    for (const at of [address, last]) if (this.#storable(this.effective(at), 1) === undefined) return false;
    for (let i = 0; i < bytes; i++) {
      this.store(address + BigInt(little ? i : bytes - 1 - i), 1, (value >> BigInt(8 * i)) & 0xffn);
    }
    return true;
  }

  /** Where bytes of one page are stored; undefined where they cannot be: then {@linkcode fault} says why. */
  #storable(effective: bigint, bytes: number): Place & { kind: "memory" | "magic" } | undefined {
    const place = placeOf(this, effective, false, bytes);
    if (place.kind === "magic") return place;
    if (place.kind === "memory" && this.memory.writable(place.address, bytes)) return place;
    this.fault = { address: effective, store: true, magic: place.kind === "magic-miss" };
    return undefined;
  }

  /** Fetches the word at the program counter. undefined where there is none: {@linkcode fault} says why. */
  fetch(): number | undefined {
    const { pc } = this.context;
    const place: Place = Number.isSafeInteger(pc) ? placeOf(this, BigInt(pc), true, 4) : { kind: "none" };
    if (place.kind !== "memory" && place.kind !== "magic") {
      this.fault = { address: BigInt(pc), store: false, magic: place.kind === "magic-miss" };
      return undefined;
    }
    let word = 0;
    for (let i = 0; i < 4; i++) word = (word << 8) | this.#byte(place, this.little ? 3 - i : i)!;
    return word >>> 0;
  }
}
