import { assertEquals, assertNotMatch, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { dumpVmcs } from "../../../host/mod.ts";
import type { VmxHardware } from "../../../host/vmx/mod.ts";
import { Rig } from "../../support/guests.ts";

/** The lines of a section. */
function section(dump: string, title: string): string[] {
  const lines = dump.split("\n");
  const from = lines.indexOf(`*** ${title} ***`) + 1;
  if (from === 0) return [];
  const length = lines.slice(from).findIndex((line) => line.startsWith("***"));
  return length === -1 ? lines.slice(from) : lines.slice(from, from + length);
}

describe("a dump of a VMCS", () => {
  it("has the kernel's lines, tertiary controls among them, and those of virtual interrupts behind", () => {
    const { vm } = new Rig({ vm: { acceleration: "ipiv" } });
    const { vmcs } = vm.bootstrap.backend.hardware as VmxHardware;
    Object.assign(vmcs, {
      ...{ pin: 0xff, primary: 0xb5a2_6dfa, secondary: 0x0000_13eb, tertiary: 0x10 },
      ...{ exitControls: 0x2b_6dff, entryControls: 0xd1ff, tprThreshold: 0, rvi: 0x61, svi: 0x31 },
      ...{ apicAccessPage: 0x3000, virtualApicPage: 0x2000, postedIntrNv: 0xf2, postedIntrDesc: 0x4040 },
      ...{ pidPointerTable: 0x5000, lastPidPointerIndex: 4095, eptPointer: 0x6_005e, vpid: 3 },
      ...{ entryIntrInfo: 0x8000_0030 | 0, entryErrorCode: 0, exitIntrInfo: 0x8000_0306 | 0 },
    });
    vmcs.eoiExitBitmap[1] = 0x8000_0000; // Vector 63.
    const dump = dumpVmcs(vm.bootstrap);
    // The labels and formats of dump_vmcs, v6.19.
    assertEquals(section(dump, "Control State"), [
      "CPUBased=0xb5a26dfa SecondaryExec=0x000013eb TertiaryExec=0x0000000000000010",
      "PinBased=0x000000ff EntryControls=0000d1ff ExitControls=002b6dff",
      "ExceptionBitmap=00060042",
      "VMEntry: intr_info=80000030 errcode=00000000",
      "VMExit: intr_info=80000306",
      "        reason=00000000 qualification=0000000000000000",
      "TSC Offset = 0x0000000000000000",
      "SVI|RVI = 31|61 TPR Threshold = 0x00",
      "APIC-access addr = 0x0000000000003000 virt-APIC addr = 0x0000000000002000",
      "PostedIntrVec = 0xf2",
      "EPT pointer = 0x000000000006005e",
      "Virtual processor ID = 0x0003",
    ]);
    assertEquals(section(dump, "Virtual Interrupts"), [
      "Posted-interrupt descriptor = 0x0000000000004040",
      "EOI exit bitmaps = 8000000000000000 0000000000000000 0000000000000000 0000000000000000",
      "PID pointer table = 0x0000000000005000",
      "Last PID pointer index = 0x0fff",
    ]);
    assertEquals(section(dump, "Guest State").at(-1), "InterruptStatus = 3161");
    assertEquals(
      section(dump, "Guest State").includes("CR0: actual=0x0000000060000010"),
      true,
      "after reset",
    );
  });

  it("leaves out what is not in use", () => {
    const { vm } = new Rig({ vm: { vpid: false } });
    const dump = dumpVmcs(vm.bootstrap);
    assertEquals(section(dump, "Virtual Interrupts"), []);
    assertNotMatch(dump, /PostedIntrVec|InterruptStatus|SVI|Virtual processor ID/);
    const { vmcs } = vm.bootstrap.backend.hardware as VmxHardware;
    vmcs.tertiary = 0x10; // Not activated: there is no such field on this processor.
    assertEquals(
      section(dumpVmcs(vm.bootstrap), "Control State")[0].endsWith("TertiaryExec=0x0000000000000000"),
      true,
    );
  });

  it("shows IA-32e mode as the guest's EFER has it", () => {
    const rig = new Rig();
    const lines: string[] = [];
    rig.vm.userspacePioDevice = {
      access: () => void lines.push(section(dumpVmcs(rig.vm.bootstrap), "Control State")[1]),
    };
    rig.finish(function* (cpu) {
      yield cpu.out8(0x80, 1);
    });
    assertEquals(lines.length, 1);
    assertEquals(lines[0].includes("EntryControls=000053ff"), true, lines[0]); // Bit 9.
  });

  it("is VMX' alone", () => {
    const { vm } = new Rig({ vm: { backend: "svm" } });
    assertThrows(
      () => dumpVmcs(vm.bootstrap),
      TypeError,
      "Cannot dump the VMCS of vcpu 0: its virtual machine runs on svm",
    );
  });
});
