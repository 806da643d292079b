/**
 * The MIPS side of the contract.
 *
 * @module
 */

export * from "./convention.ts";
