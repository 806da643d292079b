/**
 * STORE SYSTEM INFORMATION: who the host is. Block 3.2.2 tells of the virtual machines that the guest runs in, the
 * innermost first (struct sysinfo_3_2_2 in asm/sysinfo.h).
 *
 * @module
 */

import { type Layout, layout } from "../layout.ts";

/** Bytes of a block, which stands on such a boundary. */
export const SYSIB_SIZE = 4096;
/** The most virtual machines that block 3.2.2 tells of. */
export const SYSIB_322_LEVELS = 8;
/** Where the first one's description is. */
export const SYSIB_322_VM = 32;
/** Where the first one's extended name is, of {@linkcode SYSIB_322_EXT_NAME_SIZE} bytes. */
export const SYSIB_322_EXT_NAMES = 2048;
/** Bytes of an extended name. */
export const SYSIB_322_EXT_NAME_SIZE = 256;

/** Block 3.2.2. The count is the right half of its byte. */
export const SYSIB_322: Layout<"reserved_0" | "count" | "vm" | "reserved_3" | "ext_names"> = layout(
  "sysinfo_3_2_2",
  {
    reserved_0: ["u8", 31],
    count: "u8",
    vm: ["u8", 64 * SYSIB_322_LEVELS],
    reserved_3: ["u8", 1504],
    ext_names: ["u8", SYSIB_322_EXT_NAME_SIZE * SYSIB_322_LEVELS],
  },
  { endian: "big", size: SYSIB_SIZE, align: SYSIB_SIZE },
);

/** The description of one virtual machine. */
export const SYSIB_322_ENTRY: Layout<
  | "reserved_0"
  | "cpus_total"
  | "cpus_configured"
  | "cpus_standby"
  | "cpus_reserved"
  | "name"
  | "caf"
  | "cpi"
  | "reserved_1"
  | "evmne"
  | "reserved_2"
  | "uuid"
> = layout("sysinfo_3_2_2.vm", {
  reserved_0: ["u8", 4],
  cpus_total: "u16",
  cpus_configured: "u16",
  cpus_standby: "u16",
  cpus_reserved: "u16",
  name: ["u8", 8],
  caf: "u32",
  cpi: ["u8", 16],
  reserved_1: ["u8", 3],
  evmne: "u8",
  reserved_2: "u32",
  uuid: ["u8", 16],
}, { endian: "big", size: 64 });

/** {@linkcode SYSIB_322_ENTRY}'s evmne: the extended name is in UTF-8. */
export const EVMNE_UTF_8 = 2;

/** A character's place in the letters of EBCDIC, which come in three runs: first character, its code, how many. */
const RUNS: readonly (readonly [first: string, code: number, count: number])[] = [
  ["a", 0x81, 9],
  ["j", 0x91, 9],
  ["s", 0xa2, 8],
  ["A", 0xc1, 9],
  ["J", 0xd1, 9],
  ["S", 0xe2, 8],
  ["0", 0xf0, 10],
  [" ", 0x40, 1],
  [".", 0x4b, 1],
  ["-", 0x60, 1],
  ["/", 0x61, 1],
  [",", 0x6b, 1],
  ["_", 0x6d, 1],
  [":", 0x7a, 1],
];

const TO_EBCDIC: ReadonlyMap<string, number> = new Map(
  RUNS.flatMap(([first, code, count]) =>
    Array.from({ length: count }, (_, i) => [String.fromCharCode(first.charCodeAt(0) + i), code + i] as const)
  ),
);
const FROM_EBCDIC: ReadonlyMap<number, string> = new Map([...TO_EBCDIC].map(([text, code]) => [code, text]));

/**
 * Text in EBCDIC (code page 500), blank padded to `length`. Throws `RangeError` where it is longer, or has other
 * characters than letters, digits and a few signs.
 */
export function toEbcdic(text: string, length: number = text.length): Uint8Array {
  if (text.length > length) {
    throw new RangeError(`Cannot write "${text}" in EBCDIC: allowed are ${length} characters`);
  }
  return Uint8Array.from(text.padEnd(length), (character) => {
    const code = TO_EBCDIC.get(character);
    if (code === undefined) {
      throw new RangeError(
        `Cannot write "${character}" in EBCDIC: allowed are letters, digits, blank and . - / , _ :`,
      );
    }
    return code;
  });
}

/** The text of EBCDIC bytes; a full stop stands for what {@linkcode toEbcdic} does not write. */
export function fromEbcdic(bytes: Iterable<number>): string {
  return Array.from(bytes, (code) => FROM_EBCDIC.get(code) ?? ".").join("");
}

/** Which hypervisor a control-program identification names, as Linux decides by its first three or four bytes. */
export function hypervisorOf(cpi: Readonly<Uint8Array>): "KVM" | "z/VM" | undefined {
  const text = fromEbcdic(cpi.subarray(0, 4));
  if (text.startsWith("KVM")) return "KVM";
  return text === "z/VM" ? "z/VM" : undefined;
}
