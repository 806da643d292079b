import { u64 } from "../../../abi/mod.ts";
import type { GuestMemory } from "../../../host/mod.ts";
import type { AccessKind } from "../../../host/mmu/mod.ts";

/** What the reference walker walks with: bits as the manual draws them. */
export interface Reference {
  readonly memory: GuestMemory;
  readonly cr3: bigint;
  readonly wp: boolean;
  readonly smep: boolean;
  readonly smap: boolean;
  readonly nxe: boolean;
  readonly ac: boolean;
  /** The EPT pointer, where there is one. */
  readonly eptp?: bigint;
}

/** Entries are read as 64 bits, flags are kept aside, and nothing is optimized. */
class Walk {
  accesses = 0;
  /** Bits to set, by the physical address of the entry. */
  readonly flags = new Map<bigint, bigint>();

  constructor(readonly memory: GuestMemory) {}

  entry(physical: bigint): bigint {
    this.accesses++;
    const at = Number(physical);
    if (!this.memory.backed(at, 8)) return 2n ** 64n - 1n;
    return u64(this.memory.word(at), this.memory.word(at + 4)) | (this.flags.get(physical) ?? 0n);
  }

  set(physical: bigint, bits: bigint): void {
    this.flags.set(physical, (this.flags.get(physical) ?? 0n) | bits);
  }

  /** Writes the flags. */
  commit(): void {
    for (const [physical, bits] of this.flags) {
      const at = Number(physical);
      if (this.memory.backed(at, 8)) this.memory.setWord(at, (this.memory.word(at) | Number(bits)) >>> 0);
    }
  }
}

const bit = (value: bigint, n: number) => ((value >> BigInt(n)) & 1n) === 1n;
const ADDRESS = 0xf_ffff_ffff_f000n;
const BEYOND = 0x3fn << 46n; // MAXPHYADDR is 46
const hex = (value: bigint) => `0x${value.toString(16)}`;

/** The outcome of an access as a sentence, with the number of entries read; flags are set in memory. */
export function refer(
  on: Reference,
  linear: bigint,
  access: AccessKind,
): [outcome: string, accesses: number] {
  const walk = new Walk(on.memory);
  const outcome = guest(on, walk, linear, access);
  walk.commit();
  return [outcome, walk.accesses];
}

function guest(on: Reference, walk: Walk, linear: bigint, access: AccessKind): string {
  const user = access.user && access.implicit !== true;
  const fault = (cause: number) => {
    const code = cause + (access.write ? 2 : 0) + (user ? 4 : 0) +
      (access.fetch && (on.smep || on.nxe) ? 16 : 0);
    return `#PF(${hex(BigInt(code))})`;
  };
  const path: [guest: bigint, host: bigint][] = [];
  let table = on.cr3 & ADDRESS;
  let [u, w, nx] = [true, true, false];
  for (const [name, shift] of [["PML4E", 39n], ["PDPTE", 30n], ["PDE", 21n], ["PTE", 12n]] as const) {
    const at = table + 8n * ((linear >> shift) & 511n);
    const host = on.eptp === undefined ? at : ept(on, walk, at, "table", access);
    if (typeof host === "string") return host;
    const entry = walk.entry(host);
    path.push([at, host]);
    if (!bit(entry, 0)) return fault(0);
    const page = name === "PTE" || (name !== "PML4E" && bit(entry, 7));
    const reserved = BEYOND | (on.nxe ? 0n : 1n << 63n) | (name === "PML4E" ? 1n << 7n : 0n) |
      (page ? ((1n << shift) - 1n) & ~0x1fffn : 0n);
    if ((entry & reserved) !== 0n) return fault(9);
    u &&= bit(entry, 2);
    w &&= bit(entry, 1);
    nx ||= bit(entry, 63);
    table = entry & ADDRESS;
    if (!page) continue;

    const denied = user
      ? !u || (access.write && !w) || (access.fetch && nx)
      : access.fetch
      ? nx || (u && on.smep)
      : (u && on.smap && !(on.ac && access.implicit !== true)) || (access.write && on.wp && !w);
    if (denied) return fault(1);
    for (const [n, [from, to]] of path.entries()) {
      const bits = access.write && n === path.length - 1 ? 0x60n : 0x20n;
      const before = walk.entry(to);
      walk.accesses--;
      if ((before & bits) === bits) continue;
      if (on.eptp !== undefined) {
        const { accesses } = walk;
        const allowed = ept(on, walk, from, "update", access);
        walk.accesses = accesses;
        if (typeof allowed === "string") return allowed;
      }
      walk.set(to, bits);
    }
    const offset = (1n << shift) - 1n;
    const physical = (table & ~offset) | (linear & offset);
    if (on.eptp === undefined) return hex(physical);
    const final = ept(on, walk, physical, "final", access, { u, w, nx });
    return typeof final === "string" ? final : hex(final);
  }
  throw new Error("a PTE maps a page");
}

function ept(
  on: Reference,
  walk: Walk,
  physical: bigint,
  purpose: "table" | "update" | "final",
  access: AccessKind,
  page?: { u: boolean; w: boolean; nx: boolean },
): bigint | string {
  const eptp = on.eptp!;
  const ad = bit(eptp, 6);
  const wanted = purpose === "table"
    ? (ad ? 3n : 1n)
    : purpose === "update" || access.write
    ? 2n
    : access.fetch
    ? 4n
    : 1n;
  const violation = (rights: bigint) => {
    const seven = 1n << 7n;
    const page8 = page === undefined
      ? 0n
      : (1n << 8n) | (page.u ? 1n << 9n : 0n) | (page.w ? 1n << 10n : 0n) |
        (page.nx ? 1n << 11n : 0n);
    return `violation ${hex(wanted | (rights << 3n) | seven | page8)} at ${hex(physical)}`;
  };
  let table = eptp & ADDRESS;
  let rights = 7n;
  const path: bigint[] = [];
  for (const [name, shift] of [["PML4E", 39n], ["PDPTE", 30n], ["PDE", 21n], ["PTE", 12n]] as const) {
    const at = table + 8n * ((physical >> shift) & 511n);
    const entry = walk.entry(at);
    path.push(at);
    if ((entry & 7n) === 0n) return violation(0n);
    const leaf = name === "PTE" || (name !== "PML4E" && bit(entry, 7));
    const reserved = BEYOND | (name === "PML4E" ? 0xf8n : leaf ? ((1n << shift) - 1n) & ~0xfffn : 0x78n);
    if ((entry & 3n) === 2n || (entry & reserved) !== 0n) return `misconfiguration at ${hex(physical)}`;
    if (leaf && [2n, 3n, 7n].includes((entry >> 3n) & 7n)) return `misconfiguration at ${hex(physical)}`;
    rights &= entry;
    table = entry & ADDRESS;
    if (!leaf) continue;
    if ((rights & wanted) !== wanted) return violation(rights);
    if (ad) { for (const used of path) walk.set(used, 0x100n); }
    if (ad && (wanted & 2n) !== 0n) walk.set(at, 0x200n);
    const offset = (1n << shift) - 1n;
    return (table & ~offset) | (physical & offset);
  }
  throw new Error("an EPT PTE maps a page");
}
