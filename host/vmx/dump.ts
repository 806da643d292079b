/**
 * The VMCS in words, as the kernel prints it when a VM entry fails (arch/x86/kvm/vmx/vmx.c, dump_vmcs).
 *
 * Left out are the kernel's lines about what there is none of here: descriptor tables and segments, PDPTRs, DR7, SYSENTER
 * and other MSRs, the whole host state, page-fault masks, instruction lengths, IDT vectoring, #VE. A last part is not the
 * kernel's: it shows the fields of virtual and posted interrupts that the kernel's lines have no place for.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { EXCEPTION_BITMAP, VmxHardware } from "./hardware.ts";

function digits(value: number | bigint, count: number): string {
  return BigInt.asUintN(4 * count, BigInt(value)).toString(16).padStart(count, "0");
}

const hex2 = (value: number): string => digits(value, 2);
const hex4 = (value: number): string => digits(value, 4);
const hex8 = (value: number): string => digits(value, 8);
const hex16 = (value: number | bigint): string => digits(value, 16);

/** The VMCS of a vCPU, one line a row of fields. Throws `TypeError` for a vCPU that has none. */
export function dumpVmcs(vcpu: Vcpu): string {
  const { backend } = vcpu;
  if (!(backend.hardware instanceof VmxHardware)) {
    throw new TypeError(
      `Cannot dump the VMCS of vcpu ${vcpu.vcpuId}: its virtual machine runs on ${backend.name}`,
    );
  }
  const { vmcs } = backend.hardware;
  const { processor } = vcpu;
  const { regs, sys } = processor;
  const has = (word: number, mask: number): boolean => (word & mask) !== 0;
  const word64 = (words: Uint32Array | Int32Array, index: number): string =>
    hex16(abi.u64(words[index], words[index + 1]));
  const secondary = has(vmcs.primary, abi.CPU_BASED_ACTIVATE_SECONDARY_CONTROLS) ? vmcs.secondary : 0;
  const tertiary = has(vmcs.primary, abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS)
    ? abi.u64(vmcs.tertiary, vmcs.tertiaryHigh)
    : 0n;
  // KVM sets IA-32e mode with the guest's EFER.
  const longMode = has(sys[abi.SYS_EFER], abi.EFER_LMA);
  const entryControls = vmcs.entryControls | (longMode ? abi.VM_ENTRY_IA32E_MODE : 0);
  const delivers = has(secondary, abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY);
  const status = (vmcs.svi << 8) | vmcs.rvi;

  const lines = [
    `VMCS of vcpu ${vcpu.vcpuId}, last attempted VM-entry on CPU ${vcpu.pcpu?.id ?? -1}`,
    "*** Guest State ***",
    `CR0: actual=0x${word64(sys, abi.SYS_CR0)}`,
    `CR4: actual=0x${word64(sys, abi.SYS_CR4)}`,
    `CR3 = 0x${word64(sys, abi.SYS_CR3)}`,
    `RSP = 0x${word64(regs, abi.RSP)}  RIP = 0x${hex16(processor.rip)}`,
    `RFLAGS=0x${hex8(regs[abi.RFLAGS])}`,
    `EFER= 0x${word64(sys, abi.SYS_EFER)} (effective)`,
    `Interruptibility = ${hex8((processor.shadow ? 1 : 0) | (processor.nmiBlocked ? 8 : 0))}`,
  ];
  if (delivers) lines.push(`InterruptStatus = ${hex4(status)}`);
  lines.push(
    "*** Control State ***",
    `CPUBased=0x${hex8(vmcs.primary)} SecondaryExec=0x${hex8(secondary)} TertiaryExec=0x${hex16(tertiary)}`,
    `PinBased=0x${hex8(vmcs.pin)} EntryControls=${hex8(entryControls)} ExitControls=${
      hex8(vmcs.exitControls)
    }`,
    `ExceptionBitmap=${hex8(EXCEPTION_BITMAP)}`,
    `VMEntry: intr_info=${hex8(vmcs.entryIntrInfo)} errcode=${hex8(vmcs.entryErrorCode)}`,
    `VMExit: intr_info=${hex8(vmcs.exitIntrInfo)}`,
    `        reason=${hex8(processor.exitReason)} qualification=${hex16(processor.exitInfo1)}`,
    `TSC Offset = 0x${hex16(processor.tscOffset)}`,
  );
  if (has(vmcs.primary, abi.CPU_BASED_TPR_SHADOW)) {
    lines.push(
      `${delivers ? `SVI|RVI = ${hex2(vmcs.svi)}|${hex2(vmcs.rvi)} ` : ""}TPR Threshold = 0x${
        hex2(vmcs.tprThreshold)
      }`,
      `${
        has(secondary, abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES)
          ? `APIC-access addr = 0x${hex16(vmcs.apicAccessPage)} `
          : ""
      }virt-APIC addr = 0x${hex16(vmcs.virtualApicPage)}`,
    );
  }
  const posts = has(vmcs.pin, abi.PIN_BASED_POSTED_INTR);
  if (posts) lines.push(`PostedIntrVec = 0x${hex2(vmcs.postedIntrNv)}`);
  if (has(secondary, abi.SECONDARY_EXEC_ENABLE_EPT)) {
    lines.push(`EPT pointer = 0x${hex16(vmcs.eptPointer)}`);
  }
  if (has(secondary, abi.SECONDARY_EXEC_ENABLE_VPID)) {
    lines.push(`Virtual processor ID = 0x${hex4(vmcs.vpid)}`);
  }

  const virtualizesIpis = (tertiary & BigInt(abi.TERTIARY_EXEC_IPI_VIRT)) !== 0n;
  if (!delivers && !posts && !virtualizesIpis) return lines.join("\n");
  lines.push("*** Virtual Interrupts ***");
  if (posts) lines.push(`Posted-interrupt descriptor = 0x${hex16(vmcs.postedIntrDesc)}`);
  if (delivers) {
    const bitmaps = [0, 2, 4, 6].map((word) => word64(vmcs.eoiExitBitmap, word));
    lines.push(`EOI exit bitmaps = ${bitmaps.join(" ")}`);
  }
  if (virtualizesIpis) {
    lines.push(
      `PID pointer table = 0x${hex16(vmcs.pidPointerTable)}`,
      `Last PID pointer index = 0x${hex4(vmcs.lastPidPointerIndex)}`,
    );
  }
  return lines.join("\n");
}
