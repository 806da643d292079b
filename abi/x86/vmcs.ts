/**
 * VMCS fields: encodings, and what an encoding says of its field (SDM 3C 25.11.2 and appendix B; names from
 * arch/x86/include/asm/vmx.h, enum vmcs_field).
 *
 *     31        15 14  13  12 11  10 9            1   0
 *     +-----------+------+---+------+--------------+------+
 *     |     0     | width| 0 | kind |    index     | high |
 *     +-----------+------+---+------+--------------+------+
 *
 * @module
 */

/** Bits 14:13 of an encoding: how wide the field is. Natural-width fields have 64 bits here. */
export type VmcsFieldWidth = 16 | 64 | 32 | "natural";

/** Bits 11:10 of an encoding: what the field belongs to. VM-exit information is read-only. */
export type VmcsFieldKind = "control" | "exit information" | "guest state" | "host state";

/** A field of a VMCS. */
export interface VmcsField {
  /** Its encoding, that of full access. */
  readonly encoding: number;
  /** Its name in the kernel. */
  readonly name: string;
  /** Its width. */
  readonly width: VmcsFieldWidth;
  /** What it belongs to. */
  readonly kind: VmcsFieldKind;
}

const WIDTHS: readonly VmcsFieldWidth[] = [16, 64, 32, "natural"];
const KINDS: readonly VmcsFieldKind[] = ["control", "exit information", "guest state", "host state"];

/** Bit 0 of an encoding: access to bits 63:32 of a 64-bit field. */
export const VMCS_ACCESS_HIGH = 1;

/** The width that an encoding says. */
export function vmcsFieldWidth(encoding: number): VmcsFieldWidth {
  return WIDTHS[(encoding >>> 13) & 3];
}

/** The kind that an encoding says. */
export function vmcsFieldKind(encoding: number): VmcsFieldKind {
  return KINDS[(encoding >>> 10) & 3];
}

/** The VPID: the tag of this guest's translations. */
export const VIRTUAL_PROCESSOR_ID = 0x0000;
/** Posted-interrupt notification vector. */
export const POSTED_INTR_NV = 0x0002;
/** The PID-pointer table's last index. */
export const LAST_PID_POINTER_INDEX = 0x0008;
/** Guest interrupt status: RVI in bits 7:0, SVI in bits 15:8. */
export const GUEST_INTR_STATUS = 0x0810;
/** Address of the MSR bitmap. */
export const MSR_BITMAP = 0x2004;
/** Address of the virtual-APIC page. */
export const VIRTUAL_APIC_PAGE_ADDR = 0x2012;
/** Address of the APIC-access page. */
export const APIC_ACCESS_ADDR = 0x2014;
/** Address of the posted-interrupt descriptor. */
export const POSTED_INTR_DESC_ADDR = 0x2016;
/** The EPT pointer. */
export const EPT_POINTER = 0x201a;
/** EOI-exit bitmap, vectors 0 to 63. */
export const EOI_EXIT_BITMAP0 = 0x201c;
/** EOI-exit bitmap, vectors 64 to 127. */
export const EOI_EXIT_BITMAP1 = 0x201e;
/** EOI-exit bitmap, vectors 128 to 191. */
export const EOI_EXIT_BITMAP2 = 0x2020;
/** EOI-exit bitmap, vectors 192 to 255. */
export const EOI_EXIT_BITMAP3 = 0x2022;
/** Tertiary processor-based VM-execution controls. */
export const TERTIARY_VM_EXEC_CONTROL = 0x2034;
/** Address of the PID-pointer table. */
export const PID_POINTER_TABLE = 0x2042;
/** Pin-based VM-execution controls. */
export const PIN_BASED_VM_EXEC_CONTROL = 0x4000;
/** Primary processor-based VM-execution controls. */
export const CPU_BASED_VM_EXEC_CONTROL = 0x4002;
/** Primary VM-exit controls. */
export const VM_EXIT_CONTROLS = 0x400c;
/** VM-entry controls. */
export const VM_ENTRY_CONTROLS = 0x4012;
/** VM-entry interruption information. */
export const VM_ENTRY_INTR_INFO_FIELD = 0x4016;
/** VM-entry exception error code. */
export const VM_ENTRY_EXCEPTION_ERROR_CODE = 0x4018;
/** TPR threshold. */
export const TPR_THRESHOLD = 0x401c;
/** Secondary processor-based VM-execution controls. */
export const SECONDARY_VM_EXEC_CONTROL = 0x401e;
/** VM-instruction error. */
export const VM_INSTRUCTION_ERROR = 0x4400;
/** VM-exit interruption information. */
export const VM_EXIT_INTR_INFO = 0x4404;

function field(encoding: number, name: string): VmcsField {
  return { encoding, name, width: vmcsFieldWidth(encoding), kind: vmcsFieldKind(encoding) };
}

/** The fields that this project uses, by rising encoding. */
export const VMCS_FIELDS: readonly VmcsField[] = [
  field(VIRTUAL_PROCESSOR_ID, "VIRTUAL_PROCESSOR_ID"),
  field(POSTED_INTR_NV, "POSTED_INTR_NV"),
  field(LAST_PID_POINTER_INDEX, "LAST_PID_POINTER_INDEX"),
  field(GUEST_INTR_STATUS, "GUEST_INTR_STATUS"),
  field(MSR_BITMAP, "MSR_BITMAP"),
  field(VIRTUAL_APIC_PAGE_ADDR, "VIRTUAL_APIC_PAGE_ADDR"),
  field(APIC_ACCESS_ADDR, "APIC_ACCESS_ADDR"),
  field(POSTED_INTR_DESC_ADDR, "POSTED_INTR_DESC_ADDR"),
  field(EPT_POINTER, "EPT_POINTER"),
  field(EOI_EXIT_BITMAP0, "EOI_EXIT_BITMAP0"),
  field(EOI_EXIT_BITMAP1, "EOI_EXIT_BITMAP1"),
  field(EOI_EXIT_BITMAP2, "EOI_EXIT_BITMAP2"),
  field(EOI_EXIT_BITMAP3, "EOI_EXIT_BITMAP3"),
  field(TERTIARY_VM_EXEC_CONTROL, "TERTIARY_VM_EXEC_CONTROL"),
  field(PID_POINTER_TABLE, "PID_POINTER_TABLE"),
  field(PIN_BASED_VM_EXEC_CONTROL, "PIN_BASED_VM_EXEC_CONTROL"),
  field(CPU_BASED_VM_EXEC_CONTROL, "CPU_BASED_VM_EXEC_CONTROL"),
  field(VM_EXIT_CONTROLS, "VM_EXIT_CONTROLS"),
  field(VM_ENTRY_CONTROLS, "VM_ENTRY_CONTROLS"),
  field(VM_ENTRY_INTR_INFO_FIELD, "VM_ENTRY_INTR_INFO_FIELD"),
  field(VM_ENTRY_EXCEPTION_ERROR_CODE, "VM_ENTRY_EXCEPTION_ERROR_CODE"),
  field(TPR_THRESHOLD, "TPR_THRESHOLD"),
  field(SECONDARY_VM_EXEC_CONTROL, "SECONDARY_VM_EXEC_CONTROL"),
  field(VM_INSTRUCTION_ERROR, "VM_INSTRUCTION_ERROR"),
  field(VM_EXIT_INTR_INFO, "VM_EXIT_INTR_INFO"),
];

const BY_ENCODING: ReadonlyMap<number, VmcsField> = new Map(VMCS_FIELDS.map((spec) => [spec.encoding, spec]));

/** The row of a field, also by the encoding of high access to it; undefined where the table has none. */
export function vmcsField(encoding: number): VmcsField | undefined {
  const high = vmcsFieldWidth(encoding) === 64 ? VMCS_ACCESS_HIGH : 0;
  return BY_ENCODING.get(encoding & ~high);
}

/** VM-instruction error 7: VM entry with invalid control fields (SDM 3C 31.4, table 31-1). */
export const VMXERR_ENTRY_INVALID_CONTROL_FIELD = 7;
/** VM-instruction error 12: VMREAD or VMWRITE from or to an unsupported component. */
export const VMXERR_UNSUPPORTED_VMCS_COMPONENT = 12;
/** VM-instruction error 13: VMWRITE to a read-only component. */
export const VMXERR_VMWRITE_READ_ONLY_VMCS_COMPONENT = 13;
