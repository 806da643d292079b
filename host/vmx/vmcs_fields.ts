/**
 * VMREAD and VMWRITE (SDM 3C 31.3): one row a field of the VMCS.
 *
 * @module
 */

import {
  APIC_ACCESS_ADDR,
  CPU_BASED_VM_EXEC_CONTROL,
  EOI_EXIT_BITMAP0,
  EOI_EXIT_BITMAP1,
  EOI_EXIT_BITMAP2,
  EOI_EXIT_BITMAP3,
  EPT_POINTER,
  GUEST_INTR_STATUS,
  hex,
  highOf,
  LAST_PID_POINTER_INDEX,
  lowOf,
  MSR_BITMAP,
  PID_POINTER_TABLE,
  PIN_BASED_VM_EXEC_CONTROL,
  POSTED_INTR_DESC_ADDR,
  POSTED_INTR_NV,
  SECONDARY_VM_EXEC_CONTROL,
  TERTIARY_VM_EXEC_CONTROL,
  TPR_THRESHOLD,
  u64,
  VIRTUAL_APIC_PAGE_ADDR,
  VIRTUAL_PROCESSOR_ID,
  VM_ENTRY_CONTROLS,
  VM_ENTRY_EXCEPTION_ERROR_CODE,
  VM_ENTRY_INTR_INFO_FIELD,
  VM_EXIT_CONTROLS,
  VM_EXIT_INTR_INFO,
  VM_INSTRUCTION_ERROR,
  VMCS_ACCESS_HIGH,
  type VmcsField,
  vmcsField,
  VMXERR_UNSUPPORTED_VMCS_COMPONENT,
  VMXERR_VMWRITE_READ_ONLY_VMCS_COMPONENT,
} from "../../abi/mod.ts";
import type { Vmcs } from "./vmcs.ts";

/** A VMX instruction failed: VMfailValid. The number is in the VMCS' VM-instruction error field too. */
export class VmInstructionError extends Error {
  /** The error's name. */
  override readonly name = "VmInstructionError";
  /** The VM-instruction error (SDM 3C table 31-1). */
  readonly number: number;

  /** `what` failed with error `number`. */
  constructor(what: string, number: number) {
    super(`Cannot ${what}: VM-instruction error ${number}`);
    this.number = number;
  }
}

/** How a field is read and written. Values are unsigned, and no wider than the field. */
interface Access {
  /** The feature without which a processor does not have the field. */
  readonly feature?: string;
  read(vmcs: Vmcs): bigint;
  write(vmcs: Vmcs, value: bigint): void;
}

/** The properties that hold a whole field as a number. */
type NumericField = {
  [K in keyof Vmcs]: Vmcs[K] extends number ? K : never;
}[keyof Vmcs];

/** A field that a property holds: a 16-bit number, a 32-bit word of either sign, or an address. */
function held(property: NumericField, feature?: string): Access {
  return {
    ...needing(feature),
    read: (vmcs) => BigInt.asUintN(vmcs[property] < 0 ? 32 : 64, BigInt(vmcs[property])),
    write: (vmcs, value) => void (vmcs[property] = Number(value)),
  };
}

function needing(feature: string | undefined): { feature?: string } {
  return feature === undefined ? {} : { feature };
}

/** 64 vectors of the EOI-exit bitmap. */
function eoiExitBitmap(word: number): Access {
  return {
    feature: "vid",
    read: ({ eoiExitBitmap: words }) => u64(words[word], words[word + 1]),
    write({ eoiExitBitmap: words }, value) {
      words[word] = lowOf(value);
      words[word + 1] = highOf(value);
    },
  };
}

const ACCESS: ReadonlyMap<number, Access> = new Map([
  [VIRTUAL_PROCESSOR_ID, held("vpid", "vpid")],
  [POSTED_INTR_NV, held("postedIntrNv", "posted_intr")],
  [LAST_PID_POINTER_INDEX, held("lastPidPointerIndex", "ipi_virt")],
  [GUEST_INTR_STATUS, {
    feature: "vid",
    read: (vmcs) => BigInt((vmcs.svi << 8) | vmcs.rvi),
    write(vmcs, value) {
      vmcs.rvi = Number(value) & 0xff;
      vmcs.svi = Number(value) >>> 8;
    },
  }],
  [MSR_BITMAP, held("msrBitmapAddress", "use_msr_bitmaps")],
  [VIRTUAL_APIC_PAGE_ADDR, held("virtualApicPage", "vtpr")],
  [APIC_ACCESS_ADDR, held("apicAccessPage", "vapic")],
  [POSTED_INTR_DESC_ADDR, held("postedIntrDesc", "posted_intr")],
  [EPT_POINTER, held("eptPointer", "ept")],
  [EOI_EXIT_BITMAP0, eoiExitBitmap(0)],
  [EOI_EXIT_BITMAP1, eoiExitBitmap(2)],
  [EOI_EXIT_BITMAP2, eoiExitBitmap(4)],
  [EOI_EXIT_BITMAP3, eoiExitBitmap(6)],
  [TERTIARY_VM_EXEC_CONTROL, {
    feature: "tertiary_controls",
    read: (vmcs) => u64(vmcs.tertiary, vmcs.tertiaryHigh),
    write(vmcs, value) {
      vmcs.tertiary = lowOf(value);
      vmcs.tertiaryHigh = highOf(value);
    },
  }],
  [PID_POINTER_TABLE, held("pidPointerTable", "ipi_virt")],
  [PIN_BASED_VM_EXEC_CONTROL, held("pin")],
  [CPU_BASED_VM_EXEC_CONTROL, held("primary")],
  [VM_EXIT_CONTROLS, held("exitControls")],
  [VM_ENTRY_CONTROLS, held("entryControls")],
  [VM_ENTRY_INTR_INFO_FIELD, held("entryIntrInfo")],
  [VM_ENTRY_EXCEPTION_ERROR_CODE, held("entryErrorCode")],
  [TPR_THRESHOLD, held("tprThreshold", "vtpr")],
  [SECONDARY_VM_EXEC_CONTROL, held("secondary", "sec_controls")],
  [VM_INSTRUCTION_ERROR, held("vmInstructionError")],
  [VM_EXIT_INTR_INFO, held("exitIntrInfo")],
]);

/** VMREAD of a field. */
export function readVmcs(vmcs: Vmcs, encoding: number): bigint {
  const [access] = accessTo(vmcs, encoding, "read");
  const value = access.read(vmcs);
  return isHigh(encoding) ? value >> 32n : value;
}

/** VMWRITE of a field. */
export function writeVmcs(vmcs: Vmcs, encoding: number, value: bigint): void {
  const [access, field] = accessTo(vmcs, encoding, "write");
  if (field.kind === "exit information") {
    fail(vmcs, `write read-only VMCS field ${field.name}`, VMXERR_VMWRITE_READ_ONLY_VMCS_COMPONENT);
  }
  if (isHigh(encoding)) {
    access.write(vmcs, (BigInt.asUintN(32, value) << 32n) | BigInt.asUintN(32, access.read(vmcs)));
  } else {
    access.write(vmcs, BigInt.asUintN(field.width === "natural" ? 64 : field.width, value));
  }
  vmcs.unchecked = 1;
}

function isHigh(encoding: number): boolean {
  return (encoding & VMCS_ACCESS_HIGH) !== 0;
}

function accessTo(vmcs: Vmcs, encoding: number, verb: string): [Access, VmcsField] {
  const field = vmcsField(encoding);
  const access = field && ACCESS.get(field.encoding);
  const exists = access?.feature === undefined || vmcs.capabilities.has(access.feature);
  if (access === undefined || !exists) {
    const name = field?.name ?? hex(encoding);
    fail(vmcs, `${verb} unsupported VMCS field ${name}`, VMXERR_UNSUPPORTED_VMCS_COMPONENT);
  }
  return [access, field!];
}

function fail(vmcs: Vmcs, what: string, number: number): never {
  vmcs.vmInstructionError = number;
  throw new VmInstructionError(what, number);
}
