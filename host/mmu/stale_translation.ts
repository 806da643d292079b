/**
 * The failure that the staleness oracle reports.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import type { Invalidation } from "./invalidate.ts";
import type { ShootdownComplete, TranslationRange } from "./staleness.ts";
import { type CachedTranslation, GUEST_PHYSICAL } from "./tlb_entry.ts";

/** What the oracle knows of a use that is not allowed. */
export type StaleUse =
  & {
    /** The processor that used it. */
    readonly cpu: number;
    /** What it used. */
    readonly entry: CachedTranslation;
    /** The address, linear or guest-physical. */
    readonly address: number;
    /** How the tables differ, in words. */
    readonly difference: string;
  }
  & ({
    /** The processor kept what it had to drop. */
    readonly blame: "simulator";
    /** What was executed. */
    readonly covered: Invalidation;
  } | {
    /** Software forgot a flush. */
    readonly blame: "software";
    /** What software said. */
    readonly declared: ShootdownComplete;
    /** Whose tables were changed. */
    readonly space: TranslationRange["space"];
  });

/** A translation was used that the architecture, or software's own word, does not allow any more. */
export class StaleTranslation extends Error {
  /** The error's name. */
  override readonly name = "StaleTranslation";
  /** Who failed: the simulated processor, or the software that it runs. */
  readonly blame: "simulator" | "software";
  /** The processor that used it. */
  readonly cpu: number;
  /** The address, linear or guest-physical. */
  readonly address: number;
  /** The entry with its tags. */
  readonly entry: CachedTranslation;
  /**
   * The narrowest operation that would have covered the entry, executed on that processor with the entry's VPID and
   * PCID; undefined where the simulator failed.
   */
  readonly missed: Invalidation | undefined;

  /** Such a use was found. */
  constructor(use: StaleUse) {
    const { blame, cpu, entry, address, difference } = use;
    const missed = blame === "software" ? missedFlush(entry, address, use.space) : undefined;
    const why = blame === "simulator"
      ? `CPU ${cpu} has executed ${use.covered.operation} since it was cached, which drops it`
      : `"${use.declared.reason}" was declared, and CPU ${cpu} has executed no ${flushName(missed!)} before`;
    super(
      `Cannot use the cached translation of ${where(address, entry)} on CPU ${cpu}: ${difference}; ${why}`,
    );
    this.blame = blame;
    this.cpu = cpu;
    this.address = address;
    this.entry = entry;
    this.missed = missed;
  }
}

/** The narrowest operation, by the tables that changed and the tags that the entry has. */
function missedFlush(
  entry: CachedTranslation,
  address: number,
  space: TranslationRange["space"],
): Invalidation {
  const { vpid, pcid, root } = entry;
  if (space === "linear") return { operation: "INVLPG", vpid, pcid, address };
  return root >= 0 ? { operation: "INVEPT type 1", root } : { operation: "TLB_CONTROL 3", vpid };
}

function flushName({ operation, vpid, pcid, root, address }: Invalidation): string {
  switch (operation) {
    case "INVLPG":
      return `INVLPG of ${canonical(address!)} with VPID ${vpid} and PCID ${pcid}, nor anything wider,`;
    case "INVEPT type 1":
      return `INVEPT of root ${hex(root!)}, nor anything wider,`;
    default:
      return `${operation} for ASID ${vpid}, nor anything wider,`;
  }
}

/** The address and the tags, as people write them. */
function where(address: number, entry: CachedTranslation): string {
  const { kind, vpid, pcid, root, global } = entry;
  const tables = root >= 0 ? `EPT root ${hex(root)}` : undefined;
  if (kind === GUEST_PHYSICAL) return `guest-physical ${hex(address)} (${tables ?? `ASID ${vpid}`})`;
  const tags = [`VPID ${vpid}`, `PCID ${pcid}`, tables, global ? "global" : undefined];
  return `${canonical(address)} (${tags.filter((tag) => tag !== undefined).join(", ")})`;
}

function canonical(linear: number): string {
  return `0x${BigInt.asUintN(64, BigInt(linear)).toString(16)}`;
}
