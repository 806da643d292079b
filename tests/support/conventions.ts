/**
 * Every hypercall convention that the ABI describes.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { Convention } from "../../abi/mod.ts";

function isConvention(value: unknown): value is Convention {
  return typeof value === "object" && value !== null && "instructions" in value && "results" in value &&
    "widths" in value;
}

/** The conventions. */
export const CONVENTIONS: readonly Convention[] = Object.values<unknown>(abi).filter(isConvention);
