/**
 * The I/O APIC: 24 pins, each with a redirection entry (arch/x86/kvm/ioapic.c). A level-triggered interrupt that an
 * APIC accepted sets remote IRR, and the EOI that comes back clears it and delivers again while the line is up.
 *
 * @module
 */

import {
  APIC_DM_FIXED,
  APIC_MODE_MASK,
  APIC_SPIV,
  APIC_SPIV_DIRECTED_EOI,
  IOAPIC_DEFAULT_BASE,
  IOAPIC_MEM_LENGTH,
  IOAPIC_PINS,
  IOAPIC_REG_ARB_ID,
  IOAPIC_REG_ID,
  IOAPIC_REG_REDTBL,
  IOAPIC_REG_VERSION,
  IOAPIC_REGSEL,
  IOAPIC_VERSION,
  IOAPIC_WINDOW,
  RTE_LEVEL,
  RTE_LOGICAL,
  RTE_MASKED,
  RTE_REMOTE_IRR,
  RTE_STATUS,
} from "../../abi/mod.ts";
import { Timer } from "../core/mod.ts";
import { REQ_SCAN_IOAPIC } from "../kvm/requests.ts";
import { syncPosted } from "../kvm/shared.ts";
import { nsToCycles } from "../kvm/time.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import type { Vm } from "../kvm/vm.ts";
import { deliver, InterruptMessage, matchDestination } from "../lapic/mod.ts";
import { TP } from "../trace/mod.ts";
import type { MmioDevice } from "../devices/bus.ts";

/** The real-time clock's pin: user space wants to know whether its interrupts are coalesced. */
export const RTC_GSI = 8;
/** After this many deliveries straight out of an EOI, the next one waits: the guest is in an interrupt storm. */
export const SUCCESSIVE_EOI_LIMIT = 10_000;
/** How long it waits: HZ / 100 jiffies. */
const STORM_DELAY_NS = 10_000_000;

/** The widths in bytes that its window knows. */
const SIZES: ReadonlySet<number> = new Set([1, 2, 4, 8]);

/** kvm_ack_irq's irqchip number. */
const KVM_IRQCHIP_IOAPIC = 2;

/** Who is told when the EOI of a pin's interrupt arrives (kvm_irq_ack_notifier). */
export type AckNotifier = (pin: number) => void;

/** The I/O APIC of a virtual machine. */
export class Ioapic implements MmioDevice {
  /** Where its window is. */
  readonly base: number = IOAPIC_DEFAULT_BASE;
  /** Bytes of its window. */
  readonly length: number = IOAPIC_MEM_LENGTH;
  /** Redirection entries, low halves. */
  readonly low: Uint32Array = new Uint32Array(IOAPIC_PINS).fill(RTE_MASKED);
  /** Redirection entries, high halves. */
  readonly high: Uint32Array = new Uint32Array(IOAPIC_PINS);
  /** Lines that are up: a bit a pin. An edge that meets a masked pin is lost; its line stays up until it falls. */
  irr = 0;

  readonly #vm: Vm;
  readonly #message = new InterruptMessage();
  readonly #notifiers: AckNotifier[][] = Array.from({ length: IOAPIC_PINS }, () => []);
  readonly #successive = new Uint32Array(IOAPIC_PINS);
  readonly #storm: Timer;
  #select = 0;
  #id = 0;
  /** vCPUs whose EOI of the RTC's interrupt is awaited, with the vector that each got (rtc_status.dest_map). */
  readonly #rtcVectors = new Map<Vcpu, number>();
  /** How many EOIs of the RTC's interrupt are awaited. */
  #rtcPending = 0;

  /** An I/O APIC after reset: every pin masked. */
  constructor(vm: Vm) {
    this.#vm = vm;
    this.#storm = new Timer(vm.engine, "ioapic eoi", () => this.#injectAfterStorm());
  }

  /** Registers somebody who is told of EOIs; the pin's EOIs are not skipped by PV EOI from then on. */
  onAck(pin: number, notifier: AckNotifier): void {
    this.#notifiers[checkPin(pin)].push(notifier);
    this.#vm.requestScanIoapic();
  }

  /** Sets a line: 1 up, 0 down. Answers as kvm_set_irq does: 0 for coalesced, else how many APICs accepted; -1 masked. */
  setLine(pin: number, up: boolean, lineStatus: boolean = false): number {
    checkPin(pin);
    const low = this.low[pin];
    const high = this.high[pin];
    const result = this.#setLine(pin, up, lineStatus);
    this.#vm.traceRunning(TP.kvm_ioapic_set_irq, pin, low, high, result === 0 ? 1 : 0);
    return result;
  }

  #setLine(pin: number, up: boolean, lineStatus: boolean): number {
    const bit = 1 << pin;
    if (!up) {
      this.irr &= ~bit;
      return 1;
    }
    const edge = (this.low[pin] & RTE_LEVEL) === 0;
    if (edge && this.#vm.apicvInhibits === 0) this.#endUnseen(pin);
    if (pin === RTC_GSI && lineStatus && this.#rtcPending > 0) return 0;
    const was = this.irr;
    this.irr |= bit;
    if (edge && was === this.irr) return 0;
    return this.#service(pin, lineStatus);
  }

  /**
   * Hardware may have ended an edge without an exit: of the vCPUs that a pin's entry means, the first one whose vector is
   * neither requested nor in service has (ioapic_lazy_update_eoi).
   */
  #endUnseen(pin: number): void {
    const vector = this.low[pin] & 0xff;
    const ended = this.#vm.vcpus.find((vcpu) => this.#means(vcpu, pin) && !vcpu.lapic.pendingEoi(vector));
    if (ended !== undefined) this.#endRtc(ended, vector);
  }

  #endRtc(vcpu: Vcpu, vector: number): void {
    if (this.#rtcVectors.get(vcpu) !== vector) return;
    this.#rtcVectors.delete(vcpu);
    this.#rtcPending--;
  }

  /** Sends what a pin's entry says. -1 where it is masked, or a level interrupt is still in service. */
  #service(pin: number, lineStatus: boolean): number {
    const low = this.low[pin];
    const level = (low & RTE_LEVEL) !== 0;
    if ((low & RTE_MASKED) !== 0 || (level && (low & RTE_REMOTE_IRR) !== 0)) return -1;
    const message = this.#message.fromRedirection(low, this.high[pin]);
    const rtc = pin === RTC_GSI && lineStatus;
    message.takers = rtc ? [] : undefined;
    const accepted = deliver(this.#vm, undefined, message);
    if (rtc) {
      for (const { vcpu } of message.takers!) this.#rtcVectors.set(vcpu, low & 0xff);
      this.#rtcPending = Math.max(0, accepted);
    }
    // -1, nobody matched, counts as accepted here: KVM tests for nonzero.
    if (accepted !== 0 && level) this.low[pin] |= RTE_REMOTE_IRR;
    return accepted;
  }

  /** Whether a pin's entry means a vCPU; with another destination than its own if one is given. */
  #means(vcpu: Vcpu, pin: number, destination: number = this.high[pin] >>> 24): boolean {
    return matchDestination(vcpu.lapic, undefined, 0, destination, (this.low[pin] & RTE_LOGICAL) !== 0);
  }

  /** The EOI of a vector that {@linkcode scan} listed for this vCPU. */
  endOfInterrupt(vcpu: Vcpu, vector: number, levelTriggered: boolean): void {
    this.#endRtc(vcpu, vector);
    if (vcpu.highestStaleEoi === vector) vcpu.request(REQ_SCAN_IOAPIC);
    for (let pin = 0; pin < IOAPIC_PINS; pin++) {
      if ((this.low[pin] & 0xff) === vector) this.#endPin(vcpu, pin, levelTriggered);
    }
  }

  #endPin(vcpu: Vcpu, pin: number, levelTriggered: boolean): void {
    this.#vm.traceRunning(TP.kvm_ack_irq, KVM_IRQCHIP_IOAPIC, pin);
    for (const notifier of this.#notifiers[pin]) notifier(pin);
    if (!levelTriggered || (vcpu.lapic.get(APIC_SPIV) & APIC_SPIV_DIRECTED_EOI) !== 0) return;
    this.low[pin] &= ~RTE_REMOTE_IRR;
    if ((this.low[pin] & RTE_MASKED) !== 0 || (this.irr & (1 << pin)) === 0) {
      this.#successive[pin] = 0;
      return;
    }
    if (++this.#successive[pin] === SUCCESSIVE_EOI_LIMIT) {
      this.#successive[pin] = 0;
      const { engine, tscKhz } = this.#vm;
      this.#storm.arm(engine.now + nsToCycles(STORM_DELAY_NS, tscKhz));
      this.#vm.traceRunning(TP.kvm_ioapic_delayed_eoi_inj, this.low[pin], this.high[pin]);
    } else {
      this.#service(pin, false);
    }
  }

  #injectAfterStorm(): void {
    for (let pin = 0; pin < IOAPIC_PINS; pin++) {
      const level = (this.low[pin] & RTE_LEVEL) !== 0;
      if (level && (this.irr & (1 << pin)) !== 0 && (this.low[pin] & RTE_REMOTE_IRR) === 0) {
        this.#service(pin, false);
      }
    }
  }

  /**
   * Recomputes which vectors' EOIs this I/O APIC must see from a vCPU: those of level-triggered pins, masked or not, of
   * pins with an ack notifier, and the RTC's (kvm_ioapic_scan_entry).
   */
  scan(vcpu: Vcpu): void {
    if (!vcpu.lapic.hardwareEnabled) return;
    if (vcpu.vm.enableApicv) syncPosted(vcpu);
    const handled = vcpu.ioapicHandledVectors;
    handled.fill(0);
    vcpu.ioapicHandlesSome = false;
    vcpu.highestStaleEoi = -1;
    if (!this.#vm.ioapicInKernel) return;
    const rtc = this.#rtcVectors.get(vcpu);
    if (rtc !== undefined) handled[rtc >>> 5] |= 1 << (rtc & 31);
    for (let pin = 0; pin < IOAPIC_PINS; pin++) {
      const low = this.low[pin];
      if ((low & RTE_LEVEL) === 0 && this.#notifiers[pin].length === 0 && pin !== RTC_GSI) continue;
      if ((low & RTE_MASKED) !== 0 && this.#vm.quirk("ioapic-scan-skips-masked")) continue;
      const vector = low & 0xff;
      if (this.#means(vcpu, pin)) {
        handled[vector >>> 5] |= 1 << (vector & 31);
      } else if (vcpu.lapic.pendingEoi(vector)) {
        // Routed elsewhere by now, and still in service here: this one EOI counts.
        handled[vector >>> 5] |= 1 << (vector & 31);
        if (vector > vcpu.highestStaleEoi) vcpu.highestStaleEoi = vector;
      }
    }
    vcpu.ioapicHandlesSome = handled.some((word) => word !== 0);
    vcpu.backend.loadEoiExitmap();
  }

  /** Reads the window: the register select, or what it selects. */
  read(address: number, bytes: number): bigint {
    if (!SIZES.has(bytes)) return 0n;
    switch ((address - this.base) & 0xff) {
      case IOAPIC_REGSEL:
        return BigInt(this.#select);
      case IOAPIC_WINDOW:
        return BigInt.asUintN(8 * bytes, BigInt(this.#readSelected()));
      default:
        return 0n;
    }
  }

  /** Writes the window. */
  write(address: number, bytes: number, value: bigint): void {
    if (!SIZES.has(bytes)) return;
    const word = Number(BigInt.asUintN(8 * Math.min(bytes, 4), value));
    switch ((address - this.base) & 0xff) {
      case IOAPIC_REGSEL:
        this.#select = word & 0xff;
        return;
      case IOAPIC_WINDOW:
        this.#writeSelected(word);
        return;
    }
  }

  #readSelected(): number {
    switch (this.#select) {
      case IOAPIC_REG_VERSION:
        return ((IOAPIC_PINS - 1) << 16) | IOAPIC_VERSION;
      case IOAPIC_REG_ID:
      case IOAPIC_REG_ARB_ID:
        return this.#id << 24;
      default: {
        const pin = (this.#select - IOAPIC_REG_REDTBL) >> 1;
        if (pin < 0 || pin >= IOAPIC_PINS) return 0xffff_ffff;
        return (this.#select & 1) !== 0 ? this.high[pin] : this.low[pin];
      }
    }
  }

  #writeSelected(value: number): void {
    switch (this.#select) {
      case IOAPIC_REG_VERSION:
      case IOAPIC_REG_ARB_ID:
        return;
      case IOAPIC_REG_ID:
        this.#id = (value >>> 24) & 0xf;
        return;
      default: {
        const pin = (this.#select - IOAPIC_REG_REDTBL) >> 1;
        if (pin >= 0 && pin < IOAPIC_PINS) this.#writeEntry(pin, (this.#select & 1) !== 0, value);
      }
    }
  }

  #writeEntry(pin: number, upper: boolean, value: number): void {
    const readonly = RTE_REMOTE_IRR | RTE_STATUS;
    const oldDestination = this.high[pin] >>> 24;
    if (upper) this.high[pin] = value;
    else this.low[pin] = (value & ~readonly) | (this.low[pin] & readonly);
    // Making an entry edge-triggered clears remote IRR: how software ends an interrupt without an EOI register.
    if ((this.low[pin] & RTE_LEVEL) === 0) this.low[pin] &= ~RTE_REMOTE_IRR;
    const level = (this.low[pin] & RTE_LEVEL) !== 0;
    if (level && (this.irr & (1 << pin)) !== 0) this.#service(pin, false);
    this.#requestScan(pin, oldDestination);
  }

  /** Who is meant by a fixed interrupt, or was until now, has to look at its vectors anew; else everybody has. */
  #requestScan(pin: number, oldDestination: number): void {
    const fixed = (this.low[pin] & APIC_MODE_MASK) === APIC_DM_FIXED;
    const meant = (vcpu: Vcpu) => this.#means(vcpu, pin) || this.#means(vcpu, pin, oldDestination);
    this.#vm.requestScanIoapic(
      fixed ? this.#vm.vcpus.filter((vcpu) => vcpu.lapic.hardwareEnabled && meant(vcpu)) : undefined,
    );
  }
}

/** Vouches for a pin's number. Throws `RangeError` naming those allowed. */
function checkPin(pin: number): number {
  if (!Number.isInteger(pin) || pin < 0 || pin >= IOAPIC_PINS) {
    throw new RangeError(`Cannot use I/O APIC pin ${pin}: allowed are 0 to ${IOAPIC_PINS - 1}`);
  }
  return pin;
}
