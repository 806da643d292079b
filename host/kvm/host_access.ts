/**
 * The host's own accesses to guest memory: what get_user and put_user do in KVM, and mark_page_dirty. A page that is away
 * has to be read first, the dirty log wants to know of each write, and so does whoever watches over what is the guest's.
 *
 * The thread waits in place: it goes on when the page is there. That its CPU could run somebody else meanwhile, as in a
 * fault of the guest's, is left out.
 *
 * @module
 */

import { PAGE_SIZE } from "../memory/mod.ts";
import type { GuestAccess, HostWriteWitness, Purpose } from "../memory/mod.ts";
import type { PhysicalMemory } from "../mmu/mod.ts";
import type { Vcpu } from "./vcpu.ts";
import type { Vm } from "./vm.ts";

/**
 * What the host accesses for a purpose of a vCPU's. Where no page is away, nothing is logged and nobody watches, nobody
 * comes here: {@linkcode GuestCache} keeps to its short way.
 */
export class HostAccess implements GuestAccess {
  readonly #vm: Vm;
  readonly #witness: HostWriteWitness | undefined;

  /** Accesses for a purpose. */
  constructor({ vm, vcpuId }: Vcpu, purpose: Purpose) {
    this.#vm = vm;
    this.#witness = vm.ownership?.loan(purpose, vcpuId);
  }

  /** Whether anybody wants to know. */
  get watched(): boolean {
    return this.#witness !== undefined || this.#vm.tracksPages;
  }

  /** The host is about to read. Whether it can. */
  reads(address: number, bytes: number): boolean {
    return bringIn(this.#vm, address, bytes);
  }

  /** The host is about to write. Whether it can: the witness does not stop it. */
  writes(address: number, bytes: number): boolean {
    if (!bringIn(this.#vm, address, bytes)) return false;
    this.#witness?.wrote(address, bytes);
    this.#vm.dirtyLog.mark(address, bytes);
    return true;
  }
}

/** kvm_read_guest: a guest's operand, up to 8 bytes, that KVM reads for it; undefined where no memory is, or none can be read. */
export function readGuest(vm: Vm, address: number, bytes: number): bigint | undefined {
  return bringIn(vm, address, bytes) ? vm.memory.read(address, bytes) : undefined;
}

/** kvm_write_guest, likewise: `false` where nothing was written. */
export function writeGuest(vm: Vm, address: number, bytes: number, value: bigint): boolean {
  if (!bringIn(vm, address, bytes) || !vm.memory.write(address, bytes, value)) return false;
  vm.dirtyLog.mark(address, bytes);
  return true;
}

/** The same for more bytes: page after page, so that those before the first that cannot be written are. */
export function writeGuestBytes(vm: Vm, address: number, bytes: Uint8Array): boolean {
  for (let done = 0; done < bytes.length;) {
    const at = address + done;
    const part = bytes.subarray(done, done + PAGE_SIZE - at % PAGE_SIZE);
    if (!vm.memory.writable(at, part.length) || !bringIn(vm, at, part.length)) return false;
    vm.memory.load(at, part);
    vm.dirtyLog.mark(at, part.length);
    done += part.length;
  }
  return true;
}

/**
 * The guest's memory as KVM walks the guest's tables in it: what cannot be read is not there, and tables in a read-only
 * slot keep their accessed and dirty flags (update_accessed_dirty_bits).
 */
export function guestTables(vm: Vm): PhysicalMemory {
  const { dirtyLog, memory } = vm;
  return {
    word: (address) => memory.word(address),
    setWord(address, value) {
      if (!memory.writable(address, 4)) return;
      memory.setWord(address, value);
      dirtyLog.mark(address, 4);
    },
    backed: (address, bytes) => memory.backed(address, bytes) && bringIn(vm, address, bytes),
  };
}

/** Reads what is away of a range, the running thread waiting for it. Whether all of it is there. */
export function bringIn({ residency, engine }: Vm, address: number, bytes: number): boolean {
  if (residency === undefined || residency.away === 0) return true;
  const end = address + bytes;
  for (let at = residency.firstAway(address, bytes); at >= 0; at = residency.firstAway(at, end - at)) {
    const { clock, ok } = residency.expect(at);
    const { running } = engine;
    if (running !== undefined && clock > running.clock) running.charge(clock - running.clock);
    if (!ok) return false;
    at += PAGE_SIZE; // It is still on its way to others, whose clocks are behind.
    if (at >= end) break;
  }
  return true;
}
