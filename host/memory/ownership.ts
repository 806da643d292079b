/**
 * The memory-ownership oracle. Guest memory is the guest's: the host may write a word of it only while the guest lends
 * it for a purpose, and the guest does so by writing an MSR. A write of the host's anywhere else is a failure, even
 * where the host's own state allows it. That is the kind of CVE-2021-47112: a kernel leaves without switching its
 * paravirtual features off, and the host goes on writing into the next kernel's memory.
 *
 * Emulation of a guest's own instruction writes for the guest and asks nobody here; so do user space's devices and the
 * processor's page walks. Delivery of an interrupt writes nothing: no purpose covers it.
 *
 * Who writes for a purpose holds its {@linkcode Loan}, and tells it of each write; that costs two comparisons.
 *
 * @module
 */

import {
  hex,
  HIGH,
  KVM_MSR_ENABLED,
  MSR_KVM_ASYNC_PF_EN,
  MSR_KVM_PV_EOI_EN,
  MSR_KVM_STEAL_TIME,
  MSR_KVM_SYSTEM_TIME,
  MSR_KVM_SYSTEM_TIME_NEW,
  MSR_KVM_WALL_CLOCK,
  MSR_KVM_WALL_CLOCK_NEW,
} from "../../abi/mod.ts";

/** What the host may write guest memory for. */
export type Purpose = "PV EOI" | "steal time" | "kvmclock" | "wall clock" | "async PF";

interface PurposeSpec {
  /** The MSRs that lend the memory: names of one register. */
  readonly msrs: readonly number[];
  /** Bytes that are lent. */
  readonly bytes: number;
  /** Low bits of the register that are no part of the address. */
  readonly flags: number;
  /** Any value but 0 lends the memory, and for the write's own update only; otherwise bit 0 does, until it is cleared. */
  readonly once?: boolean;
}

/** Kernel documentation: KVM-specific MSRs. */
const PURPOSES: Readonly<Record<Purpose, PurposeSpec>> = {
  "PV EOI": { msrs: [MSR_KVM_PV_EOI_EN], bytes: 4, flags: 0x3 },
  "steal time": { msrs: [MSR_KVM_STEAL_TIME], bytes: 64, flags: 0x3f },
  "kvmclock": { msrs: [MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_NEW], bytes: 32, flags: 0x1 },
  "wall clock": { msrs: [MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW], bytes: 12, flags: 0, once: true },
  "async PF": { msrs: [MSR_KVM_ASYNC_PF_EN], bytes: 64, flags: 0x3f },
};

const BY_MSR = new Map(
  (Object.keys(PURPOSES) as Purpose[]).flatMap((purpose) =>
    PURPOSES[purpose].msrs.map((msr) => [msr, purpose] as const)
  ),
);

/** A write of an MSR that was accepted. */
export interface MsrWritten {
  /** The register. */
  readonly msr: number;
  /** Bits 31:0 of the value. */
  readonly low: number;
  /** Bits 63:32. */
  readonly high: number;
  /** Who wrote it; the guest unless given. User space does where it restores a guest (KVM_SET_MSRS). */
  readonly by?: "guest" | "user space";
}

/** Memory that the guest lent. */
export interface Grant {
  /** What for. */
  readonly purpose: Purpose;
  /** The vCPU whose MSR was written. */
  readonly vcpuId: number;
  /** First address. */
  readonly address: number;
  /** Bytes. */
  readonly bytes: number;
  /** When, in cycles. */
  readonly at: number;
  /** Who wrote the MSR. */
  readonly by: "guest" | "user space";
  /** Why it ended; undefined while it has not. */
  readonly ended?: string | undefined;
}

/** Somebody who is told of the host's writes to guest memory. */
export interface HostWriteWitness {
  /** The host writes a range. Whether it may: the write is not stopped. */
  wrote(address: number, bytes: number): boolean;
}

/** A write of the host's to memory that it was not lent. */
export interface OwnershipFailure {
  /** First address of the write. */
  readonly address: number;
  /** Bytes of the write. */
  readonly bytes: number;
  /** What the host wrote it for. */
  readonly purpose: Purpose;
  /** The vCPU that it wrote it for. */
  readonly vcpuId: number;
  /** When, in cycles. */
  readonly at: number;
  /** What was last lent of that memory, for any purpose; undefined where none of it ever was, as far as is known. */
  readonly last: Grant | undefined;
  /** All that in words. */
  readonly message: string;
}

/** What the oracle asks of its surroundings. */
export interface OwnershipOptions {
  /** The time, in cycles; always 0 unless given. */
  readonly now?: () => number;
  /** Told of each failure. */
  readonly failed?: (failure: OwnershipFailure) => void;
}

/** Grants that ended and are remembered, to say who lent what. */
export const ENDED_GRANT_LIMIT = 1024;
/** Failures that are kept; more are counted. */
export const OWNERSHIP_FAILURE_LIMIT = 100;

/** What one vCPU has lent for one purpose, if anything: the host's licence to write. */
export class Loan implements HostWriteWitness {
  /** What for. */
  declare readonly purpose: Purpose;
  /** Whose. */
  declare readonly vcpuId: number;
  /** What is lent now. */
  grant: Grant | undefined = undefined;

  readonly #report: (loan: Loan, address: number, bytes: number) => void;
  #first = 0;
  #end = 0;

  /** Nothing is lent. `report` is told of writes outside. */
  constructor(
    purpose: Purpose,
    vcpuId: number,
    report: (loan: Loan, address: number, bytes: number) => void,
  ) {
    this.purpose = purpose;
    this.vcpuId = vcpuId;
    this.#report = report;
  }

  /** Sets what is lent. */
  set(grant: Grant | undefined): void {
    this.grant = grant;
    this.#first = grant?.address ?? 0;
    this.#end = grant === undefined ? 0 : grant.address + grant.bytes;
  }

  /** The host writes a range for this purpose. Whether all of it is lent; where it is not, that is reported. */
  wrote(address: number, bytes: number): boolean {
    if (address >= this.#first && address + bytes <= this.#end) return true;
    this.#report(this, address, bytes);
    return false;
  }
}

/** Who owns the memory of one virtual machine. */
export class MemoryOwnership {
  /** Failures, the first ones of many. */
  readonly failures: OwnershipFailure[] = [];
  /** How many there were. */
  failed = 0;

  readonly #options: OwnershipOptions;
  readonly #loans = new Map<string, Loan>();
  /** Oldest first. */
  readonly #ended: Grant[] = [];

  /** All memory is the guest's. */
  constructor(options: OwnershipOptions = {}) {
    this.#options = options;
  }

  /** The loan of one vCPU for one purpose: the same object for as long as the machine lives. */
  loan(purpose: Purpose, vcpuId: number): Loan {
    const key = `${purpose} ${vcpuId}`;
    let loan = this.#loans.get(key);
    if (loan === undefined) {
      loan = new Loan(purpose, vcpuId, (at, address, bytes) => this.#fail(at, address, bytes));
      this.#loans.set(key, loan);
    }
    return loan;
  }

  /**
   * An MSR was written, and the value accepted: what it named before is the guest's again, and what it names now is
   * lent. To be called before the host writes there. A write that raises #GP changes nothing, and is not told.
   */
  msrWritten(vcpuId: number, write: MsrWritten): void {
    const purpose = BY_MSR.get(write.msr);
    if (purpose === undefined) return;
    const { bytes, flags, once = false } = PURPOSES[purpose];
    const { msr, low, high, by = "guest" } = write;
    const loan = this.loan(purpose, vcpuId);
    const lends = once ? (low | high) !== 0 : (low & KVM_MSR_ENABLED) !== 0;
    this.#end(loan, `MSR ${hex(msr)} was ${lends ? "written again" : "switched off"}`);
    if (!lends) return;
    const address = high * HIGH + ((low & ~flags) >>> 0);
    loan.set({ purpose, vcpuId, address, bytes, at: this.#now(), by });
  }

  /** The host is done with memory that was lent for one update: the wall clock's. */
  updated(purpose: Purpose, vcpuId: number): void {
    this.#end(this.loan(purpose, vcpuId), "its update was done");
  }

  /** A vCPU was reset: nothing is lent by it any more. */
  vcpuReset(vcpuId: number, why: "INIT" | "RESET"): void {
    for (const loan of this.#loans.values()) if (loan.vcpuId === vcpuId) this.#end(loan, why);
  }

  /**
   * Another kernel has the memory: by a reboot, kexec, a crash kernel, or an image that was resumed. Whatever the MSRs
   * say, it has lent nothing.
   */
  handedOver(why: string): void {
    for (const loan of this.#loans.values()) this.#end(loan, why);
  }

  /** The guest has put a range to another use, whatever its MSRs say: what it lent of it is its own again. */
  reclaimed(address: number, bytes: number, why: string): void {
    for (const loan of this.#loans.values()) {
      if (loan.grant !== undefined && overlap(loan.grant, address, bytes)) this.#end(loan, why);
    }
  }

  /** What is lent now, in the order in which it was first lent by a vCPU for a purpose. */
  grants(): Grant[] {
    return [...this.#loans.values()].flatMap(({ grant }) => grant === undefined ? [] : [grant]);
  }

  #now(): number {
    return this.#options.now?.() ?? 0;
  }

  #end(loan: Loan, why: string): void {
    if (loan.grant === undefined) return;
    this.#ended.push({ ...loan.grant, ended: `${why} at ${this.#now()}` });
    if (this.#ended.length > ENDED_GRANT_LIMIT) this.#ended.shift();
    loan.set(undefined);
  }

  /** Who lent any of a range: now, or last. */
  #last(address: number, bytes: number): Grant | undefined {
    const touches = (grant: Grant): boolean => overlap(grant, address, bytes);
    return this.grants().findLast(touches) ?? this.#ended.findLast(touches);
  }

  #fail(loan: Loan, address: number, bytes: number): void {
    const { purpose, vcpuId } = loan;
    const last = this.#last(address, bytes);
    const message = `Cannot write ${bytes} bytes at ${hex(address)} for ${purpose} of vCPU ${vcpuId}: ${
      last === undefined ? "the guest never lent them" : tell(last)
    }; allowed is ${loan.grant === undefined ? "nothing" : range(loan.grant)}`;
    const failure = { address, bytes, purpose, vcpuId, at: this.#now(), last, message };
    this.failed++;
    if (this.failures.length < OWNERSHIP_FAILURE_LIMIT) this.failures.push(failure);
    this.#options.failed?.(failure);
  }
}

function overlap(grant: Grant, address: number, bytes: number): boolean {
  return address < grant.address + grant.bytes && address + bytes > grant.address;
}

function range({ address, bytes }: Grant): string {
  return `[${hex(address)}, ${hex(address + bytes)})`;
}

/** "vCPU 1 lent [0x1000, 0x1040) for steal time at 5 by the guest's write, until INIT at 7". */
function tell(grant: Grant): string {
  const { purpose, vcpuId, at, by, ended } = grant;
  return `vCPU ${vcpuId} lent ${range(grant)} for ${purpose} at ${at} by the ${by}'s write` +
    (ended === undefined ? "" : `, until ${ended}`);
}
