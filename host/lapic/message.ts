/**
 * An interrupt message on its way from a sender to local APICs: an IPI, an MSI, or an I/O APIC's.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { Lapic } from "./lapic.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DEST_LOGICAL,
  APIC_DM_LOWEST,
  APIC_INT_ASSERT,
  APIC_INT_LEVELTRIG,
  APIC_MODE_MASK,
  APIC_SHORT_MASK,
  APIC_VECTOR_MASK,
} = abi;

/** An interrupt message. One is reused for many sends: it holds no state of its own. */
export class InterruptMessage {
  /** The vector. */
  vector = 0;
  /** The delivery mode, in place (0x000 to 0x700). */
  deliveryMode = 0;
  /** Logical destination mode. */
  logical = false;
  /** The level is asserted. */
  level = false;
  /** Level-triggered. */
  levelTriggered = false;
  /** The shorthand, in place. */
  shorthand = 0;
  /** The destination. */
  destination = 0;
  /** An MSI's redirection hint. */
  redirectionHint = false;
  /** Gathers the APICs that took it as a fixed interrupt, where somebody wants to know. */
  takers: Lapic[] | undefined = undefined;

  /** What the low half of an ICR says, towards `destination`. */
  fromIcr(low: number, destination: number): this {
    this.vector = low & APIC_VECTOR_MASK;
    this.deliveryMode = low & APIC_MODE_MASK;
    this.logical = (low & APIC_DEST_LOGICAL) !== 0;
    this.level = (low & APIC_INT_ASSERT) !== 0;
    this.levelTriggered = (low & APIC_INT_LEVELTRIG) !== 0;
    this.shorthand = low & APIC_SHORT_MASK;
    this.destination = destination;
    this.redirectionHint = false;
    return this;
  }

  /** What the halves of an I/O APIC's redirection entry say. */
  fromRedirection(low: number, high: number): this {
    this.vector = low & APIC_VECTOR_MASK;
    this.deliveryMode = low & APIC_MODE_MASK;
    this.logical = (low & APIC_DEST_LOGICAL) !== 0;
    this.level = true;
    this.levelTriggered = (low & APIC_INT_LEVELTRIG) !== 0;
    this.shorthand = 0;
    this.destination = high >>> 24;
    this.redirectionHint = false;
    return this;
  }

  /** Whether one APIC of several is to be chosen. */
  get lowestPriority(): boolean {
    return this.deliveryMode === APIC_DM_LOWEST || this.redirectionHint;
  }
}
