/**
 * A device that raises message-signalled interrupts by itself, at set times: a host thread that signals an irqfd.
 *
 * @module
 */

import type { MsiMessage } from "../../abi/mod.ts";
import { Thread } from "../core/mod.ts";
import type { Vm } from "../kvm/vm.ts";

/** What a source does. */
export interface MsiSourceOptions {
  /** The message. */
  readonly message: MsiMessage;
  /** How many it sends. */
  readonly count: number;
  /** When it sends the first, in cycles. */
  readonly start: number;
  /** Cycles between two messages, as the n-th (from 0) is sent. */
  readonly interval: (n: number) => number;
}

/** Sends messages at intervals. */
export class MsiSource extends Thread {
  /** Messages sent. */
  sent = 0;
  /** Messages that an APIC accepted. */
  accepted = 0;
  readonly #vm: Vm;
  readonly #options: MsiSourceOptions;
  #at: number;

  /** A source that starts by itself. */
  constructor(vm: Vm, options: MsiSourceOptions) {
    super(vm.engine, "msi source");
    this.#vm = vm;
    this.#options = options;
    this.#at = options.start;
    if (options.count > 0) this.engine.wake(this, options.start);
  }

  /** Sends one message. */
  override step(): void {
    if (this.#vm.routing.signal(this.#options.message) > 0) this.accepted++;
    this.#at += this.#options.interval(this.sent++);
    if (this.sent < this.#options.count) this.engine.wake(this, Math.max(this.#at, this.clock));
    else this.engine.park(this);
  }
}
