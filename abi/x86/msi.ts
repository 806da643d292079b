/**
 * Message-signalled interrupts (SDM 3A 11.11) and the three ways in which one names its destination:
 *
 *     bits of the address      63:40        19:12     11:5
 *     "xapic"                  -            ID 7:0    -          what hardware without remapping knows
 *     "ext-dest-id"            -            ID 7:0    ID 14:8    what a guest writes under MSI_EXT_DEST_ID
 *     "x2apic-api"             ID 31:8      ID 7:0    -          what KVM takes with KVM_CAP_X2APIC_API
 *
 * The kernel itself never looks at bits 11:5: user space that offers MSI_EXT_DEST_ID turns the second form into the
 * third before it gives KVM a route.
 *
 * @module
 */

import { APIC_MODE_MASK } from "./apic.ts";

/** A message: what a device writes, where. */
export interface MsiMessage {
  /** Bits 31:0 of the address. */
  readonly addressLow: number;
  /** Bits 63:32 of the address. */
  readonly addressHigh: number;
  /** The data. */
  readonly data: number;
}

/** A message, in words. */
export interface Msi {
  /** Data bits 7:0. */
  readonly vector: number;
  /** Data bits 10:8, in place. */
  readonly deliveryMode: number;
  /** Data bit 15: level-triggered. */
  readonly level: boolean;
  /** Address bit 2: logical destination mode. */
  readonly logical: boolean;
  /** Address bit 3: redirection hint. */
  readonly redirectionHint: boolean;
  /** The destination ID. */
  readonly destination: number;
}

/** How a message carries its destination; see the module's description. */
export type MsiFormat = "xapic" | "ext-dest-id" | "x2apic-api";

const ADDRESS = 0xfee0_0000;
const ASSERT_LEVEL = 0xc000;
const LIMIT: Readonly<Record<MsiFormat, number>> = {
  xapic: 0x100,
  "ext-dest-id": 0x8000,
  "x2apic-api": 2 ** 32,
};

/** Encodes a message; fields that are left out are 0. Throws `RangeError` for what has no room. */
export function encodeMsi(msi: Partial<Msi>, format: MsiFormat): MsiMessage {
  const id = msi.destination ?? 0;
  if (!Number.isInteger(id) || id < 0 || id >= LIMIT[format]) {
    throw new RangeError(
      `Cannot encode MSI destination ${id}: ${format} messages carry 0 to ${LIMIT[format] - 1}`,
    );
  }
  const { vector = 0, deliveryMode = 0 } = msi;
  if (!Number.isInteger(vector) || vector < 0 || vector > 0xff) {
    throw new RangeError(`Cannot encode MSI vector ${vector}: allowed are 0 to 255`);
  }
  if ((deliveryMode & APIC_MODE_MASK) !== deliveryMode) {
    throw new RangeError(`Cannot encode MSI delivery mode ${deliveryMode}: allowed are bits 10:8, in place`);
  }
  const extended = format === "ext-dest-id" ? ((id >>> 8) & 0x7f) << 5 : 0;
  const hints = (msi.redirectionHint ? 8 : 0) | (msi.logical ? 4 : 0);
  return {
    addressLow: (ADDRESS | ((id & 0xff) << 12) | extended | hints) >>> 0,
    addressHigh: format === "x2apic-api" ? (id & 0xffff_ff00) >>> 0 : 0,
    data: vector | deliveryMode | (msi.level ? ASSERT_LEVEL : 0),
  };
}

/** Decodes a message. */
export function decodeMsi(message: MsiMessage, format: MsiFormat): Msi {
  const { addressLow, addressHigh, data } = message;
  let destination = (addressLow >>> 12) & 0xff;
  if (format === "ext-dest-id") destination |= ((addressLow >>> 5) & 0x7f) << 8;
  if (format === "x2apic-api") destination = (destination | (addressHigh & 0xffff_ff00)) >>> 0;
  return {
    vector: data & 0xff,
    deliveryMode: data & 0x700,
    level: (data & 0x8000) !== 0,
    logical: (addressLow & 4) !== 0,
    redirectionHint: (addressLow & 8) !== 0,
    destination,
  };
}
