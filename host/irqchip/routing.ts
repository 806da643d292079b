/**
 * From a device's signal to an interrupt: global system interrupts that lead to I/O APIC pins or to messages
 * (KVM_SET_GSI_ROUTING), and messages by themselves (KVM_SIGNAL_MSI, irqfd).
 *
 * @module
 */

import { decodeMsi, encodeMsi, IOAPIC_PINS, type MsiFormat, type MsiMessage } from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import type { Vm } from "../kvm/vm.ts";
import { deliver, InterruptMessage } from "../lapic/mod.ts";
import { TP } from "../trace/mod.ts";

/** Where a global system interrupt leads. */
export type Route = { readonly pin: number } | { readonly msi: MsiMessage };

/** Bit 4 of a message's address: an IOMMU interprets it (Intel VT-d, 5.1.2.2). */
const REMAPPABLE_FORMAT = 1 << 4;

/** The most routes (KVM_MAX_IRQ_ROUTES). */
export const ROUTE_LIMIT = 4096;

/** The interrupt routing of a virtual machine. */
export class IrqRouting {
  readonly #vm: Vm;
  readonly #routes = new Map<number, Route>();
  readonly #message = new InterruptMessage();

  /** The default routing: interrupt n leads to I/O APIC pin n, where that is in the kernel. */
  constructor(vm: Vm) {
    this.#vm = vm;
    if (!vm.ioapicInKernel) return;
    for (let pin = 0; pin < IOAPIC_PINS; pin++) this.#routes.set(pin, { pin });
  }

  /** Sets where an interrupt leads. Throws `RangeError` for numbers and messages that KVM refuses. */
  set(gsi: number, route: Route): void {
    if (!Number.isInteger(gsi) || gsi < 0 || gsi >= ROUTE_LIMIT) {
      throw new RangeError(`Cannot route interrupt ${gsi}: allowed are 0 to ${ROUTE_LIMIT - 1}`);
    }
    if ("pin" in route) this.#checkPin(gsi, route.pin);
    else this.#checkRoute(gsi, route.msi);
    this.#routes.set(gsi, route);
  }

  /** Sets the level of an interrupt (KVM_IRQ_LINE). Answers as kvm_set_irq does. */
  setLevel(gsi: number, up: boolean): number {
    const route = this.#routes.get(gsi);
    if (route === undefined) throw new RangeError(`Cannot set interrupt ${gsi}: it is not routed`);
    this.#vm.traceRunning(TP.kvm_set_irq, gsi, up ? 1 : 0);
    if ("pin" in route) return this.#vm.ioapic.setLine(route.pin, up, true);
    return up ? this.signal(route.msi) : -1;
  }

  /** Injects a message. Answers with how many APICs accepted it, -1 where nobody was meant. */
  signal(message: MsiMessage): number {
    this.#check(message);
    const format: MsiFormat = this.#vm.x2apicFormat ? "x2apic-api" : "xapic";
    const { addressLow, addressHigh, data } = message;
    this.#vm.traceRunning(TP.kvm_msi_set_irq, addressLow, this.#vm.x2apicFormat ? addressHigh : 0, data);
    const msi = decodeMsi(message, format);
    const m = this.#message;
    m.vector = msi.vector;
    m.deliveryMode = msi.deliveryMode;
    m.logical = msi.logical;
    m.level = true;
    m.levelTriggered = msi.level;
    m.shorthand = 0;
    m.destination = msi.destination;
    m.redirectionHint = msi.redirectionHint;
    return deliver(this.#vm, undefined, m);
  }

  #checkPin(gsi: number, pin: number): void {
    if (!this.#vm.ioapicInKernel) {
      throw new RangeError(`Cannot route interrupt ${gsi} to pin ${pin}: the I/O APIC is in user space`);
    }
    if (!Number.isInteger(pin) || pin < 0 || pin >= IOAPIC_PINS) {
      throw new RangeError(`Cannot route interrupt ${gsi} to pin ${pin}: there are ${IOAPIC_PINS} pins`);
    }
  }

  #checkRoute(gsi: number, message: MsiMessage): void {
    this.#check(message);
    if (!this.#vm.ioapicInKernel && gsi < IOAPIC_PINS && decodeMsi(message, "xapic").level) {
      throw new NotModelled(
        "the exit to user space at the EOI of its I/O APIC's interrupts",
        "arch/x86/kvm/irq.c, kvm_scan_ioapic_routes",
      );
    }
  }

  #check(message: MsiMessage): void {
    // kvm_msi_route_invalid: with 32-bit IDs, address bits 39:32 must be zero.
    if (this.#vm.x2apicFormat && (message.addressHigh & 0xff) !== 0) {
      throw new RangeError(
        `Cannot route an MSI with address bits 39:32 set: 0x${message.addressHigh.toString(16)}`,
      );
    }
  }
}

/**
 * What user space does with a message of a guest that knows MSI_EXT_DEST_ID: destination bits 14:8 move from address
 * bits 11:5 to where KVM_CAP_X2APIC_API takes them (QEMU, kvm_swizzle_msi_ext_dest_id). Bit 4 set is the remappable
 * format of an IOMMU: such a message is left alone.
 */
export function swizzleExtendedDestination(message: MsiMessage): MsiMessage {
  const msi = decodeMsi(message, "ext-dest-id");
  const remappable = (message.addressLow & REMAPPABLE_FORMAT) !== 0;
  if (msi.destination <= 0xff || remappable || message.addressHigh !== 0) return message;
  return { ...encodeMsi(msi, "x2apic-api"), data: message.data };
}
