/**
 * The fields of a VMCS that this host uses (SDM 3C chapter 25).
 *
 * What the processor reads often is a small integer in a field of its own: control words are signed 32-bit words.
 * Addresses are host-physical, whole numbers below 2^52. {@linkcode Vmcs.read} and {@linkcode Vmcs.write} reach each
 * field by its encoding, as VMREAD and VMWRITE do.
 *
 * @module
 */

import { CPU_BASED_INTR_WINDOW_EXITING } from "../../abi/mod.ts";
import type { VmxCapabilities } from "./capabilities.ts";
import { MsrBitmap } from "./msr_bitmap.ts";
import { readVmcs, writeVmcs } from "./vmcs_fields.ts";

/** A virtual-machine control structure. */
export class Vmcs {
  // What every interrupt touches comes first.
  #primary = 0;
  #secondary = 0;
  #pin = 0;
  #tprThreshold = 0;
  /**
   * 1 while a control was written that no VM entry has checked, else 0. Setting one of the accessors below sets it;
   * who changes another field that entries check, or the MSR bitmap, after the first entry, sets it as well.
   */
  unchecked = 1;
  /** VM-entry interruption information. */
  entryIntrInfo = 0;

  #tertiary = 0;
  #tertiaryHigh = 0;
  #exitControls = 0;
  #entryControls = 0;
  /** VM-entry exception error code. */
  entryErrorCode = 0;
  /** VM-exit interruption information. */
  exitIntrInfo = 0;
  /** VM-instruction error: what the last VMX instruction failed for. */
  vmInstructionError = 0;
  /** Virtual-processor identifier. */
  vpid = 0;
  /** Posted-interrupt notification vector. */
  postedIntrNv = 0;
  /** The PID-pointer table's last index. */
  lastPidPointerIndex = 0;
  /** Requesting virtual interrupt: the low byte of the guest interrupt status. */
  rvi = 0;
  /** Servicing virtual interrupt: its high byte. */
  svi = 0;
  /** The virtual interrupts whose virtualized EOI exits: 256 bits. */
  readonly eoiExitBitmap: Uint32Array = new Uint32Array(8);
  /** Address of the MSR bitmap. */
  msrBitmapAddress = 0;
  /** Address of the virtual-APIC page. */
  virtualApicPage = 0;
  /** Address of the APIC-access page. */
  apicAccessPage = 0;
  /** Address of the posted-interrupt descriptor. */
  postedIntrDesc = 0;
  /** Address of the PID-pointer table. */
  pidPointerTable = 0;
  /** The EPT pointer. */
  eptPointer = 0;
  /** Which MSR accesses exit. */
  readonly msrBitmap: MsrBitmap = new MsrBitmap();
  /** The processor that it is for: which fields it has, and which controls VM entry takes. */
  declare readonly capabilities: VmxCapabilities;

  /** A VMCS for a processor, all 0. */
  constructor(capabilities: VmxCapabilities) {
    this.capabilities = capabilities;
  }

  /** Pin-based VM-execution controls. */
  get pin(): number {
    return this.#pin;
  }
  set pin(value: number) {
    this.#pin = value | 0;
    this.unchecked = 1;
  }

  /** Primary processor-based VM-execution controls. */
  get primary(): number {
    return this.#primary;
  }
  set primary(value: number) {
    const changed = value ^ this.#primary;
    this.#primary = value | 0;
    // Set and cleared at each interrupt window: no check looks at it, and every processor has it.
    if ((changed & ~CPU_BASED_INTR_WINDOW_EXITING) !== 0) this.unchecked = 1;
  }

  /** Secondary processor-based VM-execution controls. */
  get secondary(): number {
    return this.#secondary;
  }
  set secondary(value: number) {
    this.#secondary = value | 0;
    this.unchecked = 1;
  }

  /** Tertiary processor-based VM-execution controls, bits 31:0. */
  get tertiary(): number {
    return this.#tertiary;
  }
  set tertiary(value: number) {
    this.#tertiary = value | 0;
    this.unchecked = 1;
  }

  /** Tertiary processor-based VM-execution controls, bits 63:32. */
  get tertiaryHigh(): number {
    return this.#tertiaryHigh;
  }
  set tertiaryHigh(value: number) {
    this.#tertiaryHigh = value | 0;
    this.unchecked = 1;
  }

  /** Primary VM-exit controls. */
  get exitControls(): number {
    return this.#exitControls;
  }
  set exitControls(value: number) {
    this.#exitControls = value | 0;
    this.unchecked = 1;
  }

  /** VM-entry controls. */
  get entryControls(): number {
    return this.#entryControls;
  }
  set entryControls(value: number) {
    this.#entryControls = value | 0;
    this.unchecked = 1;
  }

  /** TPR threshold, a priority class. */
  get tprThreshold(): number {
    return this.#tprThreshold;
  }
  set tprThreshold(value: number) {
    if (value === this.#tprThreshold) return;
    this.#tprThreshold = value;
    this.unchecked = 1;
  }

  /** VMREAD. Throws {@linkcode VmInstructionError} 12 for a field that this VMCS has not. */
  read(encoding: number): bigint {
    return readVmcs(this, encoding);
  }

  /**
   * VMWRITE: bits beyond the field's width are dropped. Throws {@linkcode VmInstructionError} 12 for a field that this
   * VMCS has not, 13 for VM-exit information.
   */
  write(encoding: number, value: bigint): void {
    writeVmcs(this, encoding, value);
  }
}
