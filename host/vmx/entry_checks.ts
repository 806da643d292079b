/**
 * The checks that VM entry makes on the controls (SDM 3C 27.2.1.1 to 27.2.1.3): one row a check. Where one fails, VM
 * entry fails with VM-instruction error 7, and the guest does not run.
 *
 * Left out are the checks on fields that this VMCS has not: I/O bitmaps, the TSC multiplier, MSR areas, PML's and #VE's
 * addresses, VM functions, VMCS shadowing, Intel PT. The entry's interruption information is not checked either: a
 * processor looks at it at each entry, these rows only after a control was written.
 *
 * Not confirmed in the SDM's words: the rows on IPI virtualization, which are its need of the TPR shadow, and the
 * PID-pointer table's alignment and width.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { VmxControlWord } from "../../abi/mod.ts";
import type { VmxCapabilities } from "./capabilities.ts";
import type { Vmcs } from "./vmcs.ts";

/** What is checked. */
export interface EntryControls {
  /** The VMCS. */
  readonly vmcs: Vmcs;
  /** The processor that is to enter it. */
  readonly processor: VmxCapabilities;
  /** The task priority on the virtual-APIC page. */
  readonly vtpr: number;
}

/** A check. */
export interface EntryCheck {
  /** Its name. */
  readonly name: string;
  /** Where it is described. */
  readonly sdm: string;
  /** What must hold. */
  readonly rule: string;
  /** Whether it does not. */
  fails(controls: EntryControls): boolean;
}

/** Secondary controls count as 0 where they are not activated, and so do tertiary ones. */
function secondary({ vmcs }: EntryControls): number {
  return (vmcs.primary & abi.CPU_BASED_ACTIVATE_SECONDARY_CONTROLS) !== 0 ? vmcs.secondary : 0;
}

function ipiVirtualization({ vmcs }: EntryControls): boolean {
  return (vmcs.primary & abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS) !== 0 &&
    (vmcs.tertiary & abi.TERTIARY_EXEC_IPI_VIRT) !== 0;
}

function primaryHas({ vmcs }: EntryControls, mask: number): boolean {
  return (vmcs.primary & mask) !== 0;
}

function secondaryHas(controls: EntryControls, mask: number): boolean {
  return (secondary(controls) & mask) !== 0;
}

function pinHas({ vmcs }: EntryControls, mask: number): boolean {
  return (vmcs.pin & mask) !== 0;
}

/** A bit that must be 1 is 0, or one that must be 0 is 1. */
function reserved(
  processor: VmxCapabilities,
  word: Exclude<VmxControlWord, "tertiary">,
  value: number,
): boolean {
  const { mustBe1, mayBe1 } = processor.allowed(word);
  return (mustBe1 & ~value) !== 0 || (value & ~mayBe1) !== 0;
}

/** An address that is not a multiple of a power of two up to 2^12. */
function misaligned(address: number, bytes: number): boolean {
  return address % bytes !== 0;
}

const PAGE = 4096;
const DESCRIPTOR = 64;
const PID_POINTER = 8;

type Row = readonly [name: string, rule: string, fails: (controls: EntryControls) => boolean];

/** The checks of one section of the SDM. */
function checks(sdm: string, rows: readonly Row[]): EntryCheck[] {
  return rows.map(([name, rule, fails]) => ({ name, sdm, rule, fails }));
}

/** The checks, in the SDM's order. */
export const ENTRY_CHECKS: readonly EntryCheck[] = [
  ...checks("27.2.1.1", [
    [
      "pin-reserved",
      "the pin-based controls have reserved bits as the capability MSRs say",
      ({ processor, vmcs }) => reserved(processor, "pin", vmcs.pin),
    ],
    [
      "primary-reserved",
      "the primary processor-based controls have reserved bits as the capability MSRs say",
      ({ processor, vmcs }) => reserved(processor, "primary", vmcs.primary),
    ],
    [
      "secondary-reserved",
      "the secondary controls, where activated, have reserved bits clear",
      (c) => reserved(c.processor, "secondary", secondary(c)),
    ],
    [
      "tertiary-reserved",
      "the tertiary controls, where activated, have reserved bits clear",
      (c) =>
        primaryHas(c, abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS) &&
        (abi.u64(c.vmcs.tertiary, c.vmcs.tertiaryHigh) & ~c.processor.tertiary) !== 0n,
    ],
    [
      "msr-bitmap-aligned",
      "the MSR bitmap begins a page",
      (c) => primaryHas(c, abi.CPU_BASED_USE_MSR_BITMAPS) && misaligned(c.vmcs.msrBitmapAddress, PAGE),
    ],
    [
      "msr-bitmap-width",
      "the MSR bitmap's address is within the physical-address width",
      (c) => primaryHas(c, abi.CPU_BASED_USE_MSR_BITMAPS) && c.processor.beyond(c.vmcs.msrBitmapAddress),
    ],
    [
      "virtual-apic-aligned",
      "the virtual-APIC page begins a page",
      (c) => primaryHas(c, abi.CPU_BASED_TPR_SHADOW) && misaligned(c.vmcs.virtualApicPage, PAGE),
    ],
    [
      "virtual-apic-width",
      "the virtual-APIC page's address is within the physical-address width",
      (c) => primaryHas(c, abi.CPU_BASED_TPR_SHADOW) && c.processor.beyond(c.vmcs.virtualApicPage),
    ],
    [
      "tpr-shadow",
      "virtualized x2APIC mode, APIC registers, interrupt delivery and IPIs need the TPR shadow",
      (c) =>
        !primaryHas(c, abi.CPU_BASED_TPR_SHADOW) &&
        (secondaryHas(
          c,
          abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE | abi.SECONDARY_EXEC_APIC_REGISTER_VIRT |
            abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
        ) || ipiVirtualization(c)),
    ],
    [
      "tpr-threshold-reserved",
      "the TPR threshold is a priority class, 0 to 15",
      (c) => usesTprThreshold(c) && (c.vmcs.tprThreshold & ~0xf) !== 0,
    ],
    [
      "tpr-threshold-vtpr",
      "without virtualized APIC accesses, the TPR threshold is not above the task priority's class",
      (c) =>
        usesTprThreshold(c) && !secondaryHas(c, abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) &&
        (c.vmcs.tprThreshold & 0xf) > c.vtpr >>> 4,
    ],
    [
      "nmi-exiting",
      "virtual NMIs need NMI exiting",
      (c) => pinHas(c, abi.PIN_BASED_VIRTUAL_NMIS) && !pinHas(c, abi.PIN_BASED_NMI_EXITING),
    ],
    [
      "virtual-nmis",
      "NMI-window exiting needs virtual NMIs",
      (c) => primaryHas(c, abi.CPU_BASED_NMI_WINDOW_EXITING) && !pinHas(c, abi.PIN_BASED_VIRTUAL_NMIS),
    ],
    [
      "apic-access-aligned",
      "the APIC-access page begins a page",
      (c) =>
        secondaryHas(c, abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) &&
        misaligned(c.vmcs.apicAccessPage, PAGE),
    ],
    [
      "apic-access-width",
      "the APIC-access page's address is within the physical-address width",
      (c) =>
        secondaryHas(c, abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) &&
        c.processor.beyond(c.vmcs.apicAccessPage),
    ],
    [
      "one-apic-mode",
      "virtualized x2APIC mode excludes virtualized APIC accesses",
      (c) =>
        secondaryHas(c, abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) &&
        secondaryHas(c, abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES),
    ],
    [
      "external-interrupt-exiting",
      "virtual-interrupt delivery needs external-interrupt exiting",
      (c) =>
        secondaryHas(c, abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY) && !pinHas(c, abi.PIN_BASED_EXT_INTR_MASK),
    ],
    [
      "posted-delivery",
      "posted interrupts need virtual-interrupt delivery",
      (c) =>
        pinHas(c, abi.PIN_BASED_POSTED_INTR) && !secondaryHas(c, abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY),
    ],
    [
      "posted-acknowledge",
      "posted interrupts need acknowledging interrupts on exit",
      (c) =>
        pinHas(c, abi.PIN_BASED_POSTED_INTR) && (c.vmcs.exitControls & abi.VM_EXIT_ACK_INTR_ON_EXIT) === 0,
    ],
    [
      "posted-vector",
      "the posted-interrupt notification vector is 0 to 255",
      (c) => pinHas(c, abi.PIN_BASED_POSTED_INTR) && (c.vmcs.postedIntrNv & ~0xff) !== 0,
    ],
    [
      "posted-descriptor-aligned",
      "the posted-interrupt descriptor is aligned to 64 bytes",
      (c) => pinHas(c, abi.PIN_BASED_POSTED_INTR) && misaligned(c.vmcs.postedIntrDesc, DESCRIPTOR),
    ],
    [
      "posted-descriptor-width",
      "the posted-interrupt descriptor's address is within the physical-address width",
      (c) => pinHas(c, abi.PIN_BASED_POSTED_INTR) && c.processor.beyond(c.vmcs.postedIntrDesc),
    ],
    [
      "vpid",
      "an enabled VPID is not 0",
      (c) => secondaryHas(c, abi.SECONDARY_EXEC_ENABLE_VPID) && c.vmcs.vpid === 0,
    ],
    [
      "eptp-memory-type",
      "the EPT pointer's memory type is one that the processor supports",
      (c) => usesEpt(c) && !supportsMemoryType(c.processor, c.vmcs.eptPointer % 8),
    ],
    [
      "eptp-levels",
      "the EPT pointer's page walk has as many levels as the processor supports",
      (c) => usesEpt(c) && !supportsLevels(c.processor, Math.floor(c.vmcs.eptPointer / 8) % 8 + 1),
    ],
    [
      "eptp-accessed-dirty",
      "the EPT pointer enables accessed and dirty flags only where the processor has them",
      (c) =>
        usesEpt(c) && (c.vmcs.eptPointer % PAGE & abi.EPTP_AD) !== 0 &&
        (c.processor.ept & abi.VMX_EPT_AD_BIT) === 0,
    ],
    ["eptp-reserved", "the EPT pointer's reserved bits are clear", (c) =>
      usesEpt(c) &&
      ((c.vmcs.eptPointer % PAGE & abi.EPTP_RESERVED) !== 0 || c.processor.beyond(c.vmcs.eptPointer))],
    ["pml-ept", "PML needs EPT", (c) => secondaryHas(c, abi.SECONDARY_EXEC_ENABLE_PML) && !usesEpt(c)],
    [
      "unrestricted-ept",
      "unrestricted guests need EPT",
      (c) => secondaryHas(c, abi.SECONDARY_EXEC_UNRESTRICTED_GUEST) && !usesEpt(c),
    ],
    [
      "execute-control-ept",
      "mode-based execute control needs EPT",
      (c) => secondaryHas(c, abi.SECONDARY_EXEC_MODE_BASED_EPT_EXEC) && !usesEpt(c),
    ],
    [
      "pid-table-aligned",
      "the PID-pointer table is aligned to 8 bytes",
      (c) => ipiVirtualization(c) && misaligned(c.vmcs.pidPointerTable, PID_POINTER),
    ],
    [
      "pid-table-width",
      "the PID-pointer table's address is within the physical-address width",
      (c) => ipiVirtualization(c) && c.processor.beyond(c.vmcs.pidPointerTable),
    ],
    [
      "pid-table-last-width",
      "so is the address of the PID-pointer table's last entry",
      (c) =>
        ipiVirtualization(c) && !c.processor.beyond(c.vmcs.pidPointerTable) &&
        c.processor.beyond(c.vmcs.pidPointerTable + PID_POINTER * c.vmcs.lastPidPointerIndex),
    ],
  ]),
  ...checks("27.2.1.2", [
    [
      "exit-reserved",
      "the VM-exit controls have reserved bits as the capability MSRs say",
      ({ processor, vmcs }) => reserved(processor, "exit", vmcs.exitControls),
    ],
    [
      "save-preemption-timer",
      "saving the VMX-preemption timer needs the timer",
      (c) =>
        (c.vmcs.exitControls & abi.VM_EXIT_SAVE_VMX_PREEMPTION_TIMER) !== 0 &&
        !pinHas(c, abi.PIN_BASED_VMX_PREEMPTION_TIMER),
    ],
  ]),
  ...checks("27.2.1.3", [
    [
      "entry-reserved",
      "the VM-entry controls have reserved bits as the capability MSRs say",
      ({ processor, vmcs }) => reserved(processor, "entry", vmcs.entryControls),
    ],
    [
      "smm",
      "outside SMM, no entry is to SMM, and none deactivates the dual-monitor treatment",
      ({ vmcs }) => (vmcs.entryControls & (abi.VM_ENTRY_SMM | abi.VM_ENTRY_DEACT_DUAL_MONITOR)) !== 0,
    ],
  ]),
];

/** The threshold counts with the TPR shadow, as long as no virtual interrupts are delivered. */
function usesTprThreshold(c: EntryControls): boolean {
  return primaryHas(c, abi.CPU_BASED_TPR_SHADOW) &&
    !secondaryHas(c, abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY);
}

function usesEpt(c: EntryControls): boolean {
  return secondaryHas(c, abi.SECONDARY_EXEC_ENABLE_EPT);
}

function supportsMemoryType({ ept }: VmxCapabilities, type: number): boolean {
  if (type === abi.MEMORY_TYPE_UC) return (ept & abi.VMX_EPTP_UC_BIT) !== 0;
  return type === abi.MEMORY_TYPE_WB && (ept & abi.VMX_EPTP_WB_BIT) !== 0;
}

function supportsLevels({ ept }: VmxCapabilities, levels: number): boolean {
  if (levels === 4) return (ept & abi.VMX_EPT_PAGE_WALK_4_BIT) !== 0;
  return levels === 5 && (ept & abi.VMX_EPT_PAGE_WALK_5_BIT) !== 0;
}

/**
 * The checks that a VMCS' controls fail, on the processor that it is for; `vtpr` is the task priority on its
 * virtual-APIC page.
 */
export function failedEntryChecks(vmcs: Vmcs, vtpr: number): readonly EntryCheck[] {
  const controls = { vmcs, processor: vmcs.capabilities, vtpr };
  return ENTRY_CHECKS.filter((check) => check.fails(controls));
}
