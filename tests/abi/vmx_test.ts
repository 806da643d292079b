import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import * as abi from "../../abi/mod.ts";
import {
  VMCS_FIELDS,
  vmcsField,
  vmcsFieldKind,
  vmcsFieldWidth,
  VMX_CONTROLS,
  VMX_FEATURES,
  vmxControlNames,
  type VmxControlWord,
} from "../../abi/mod.ts";

/** SDM 3C tables 25-5 to 25-8, 25-13 and 25-16: the bits that KVM v6.19 has names for. */
const BITS: Readonly<Record<VmxControlWord, readonly number[]>> = {
  pin: [0, 3, 5, 6, 7],
  primary: [2, 3, 7, 9, 10, 11, 12, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 27, 28, 29, 30, 31],
  secondary: [
    ...[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
    ...[22, 24, 25, 26, 30, 31],
  ],
  tertiary: [4],
  exit: [2, 9, 12, 15, 18, 19, 20, 21, 22, 23, 24, 25, 28],
  entry: [2, 9, 10, 11, 13, 14, 15, 16, 17, 18, 20],
};
const PREFIXES: Readonly<Record<VmxControlWord, string>> = {
  pin: "PIN_BASED_",
  primary: "CPU_BASED_",
  secondary: "SECONDARY_EXEC_",
  tertiary: "TERTIARY_EXEC_",
  exit: "VM_EXIT_",
  entry: "VM_ENTRY_",
};
const WORDS = Object.keys(BITS) as VmxControlWord[];

describe("VMX controls", () => {
  it("are the bits of the manual, one row each, under the kernel's names", () => {
    const constants = abi as unknown as Record<string, number>;
    for (const word of WORDS) {
      const table = VMX_CONTROLS[word];
      assertEquals(table.map(({ mask }) => 31 - Math.clz32(mask)), BITS[word] as number[], word);
      for (const { name, mask } of table) {
        assertEquals(name.startsWith(PREFIXES[word]), true, name);
        assertEquals(constants[name], mask, name);
        assertEquals(abi.popcount(mask), 1, name);
      }
    }
    assertEquals(new Set(WORDS.flatMap((word) => VMX_CONTROLS[word].map(({ name }) => name))).size, 79);
  });

  it("are where virtual interrupts need them", () => {
    // asm/vmx.h has these numbers for what APICv, posted interrupts and IPI virtualization are made of.
    assertEquals(abi.PIN_BASED_POSTED_INTR, 0x80);
    assertEquals(abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS, 0x2_0000);
    assertEquals(abi.CPU_BASED_TPR_SHADOW, 0x20_0000);
    assertEquals(abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE, 0x10);
    assertEquals(abi.SECONDARY_EXEC_APIC_REGISTER_VIRT, 0x100);
    assertEquals(abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY, 0x200);
    assertEquals(abi.TERTIARY_EXEC_IPI_VIRT, 0x10);
    assertEquals(abi.VM_EXIT_ACK_INTR_ON_EXIT, 0x8000);
  });

  it("have names by word, and a number where nobody named the bit", () => {
    assertEquals(vmxControlNames("pin", 0x81), ["PIN_BASED_EXT_INTR_MASK", "PIN_BASED_POSTED_INTR"]);
    assertEquals(vmxControlNames("primary", 0x8000_0002 | 0), [
      "bit 1",
      "CPU_BASED_ACTIVATE_SECONDARY_CONTROLS",
    ]);
    assertEquals(vmxControlNames("tertiary", 0), []);
  });
});

describe("VMX features", () => {
  it("are words that repeat the control words, with EPT, VPIDs and aggregates scattered in the first", () => {
    const at = (name: string): string => {
      const { word, bit } = VMX_FEATURES.find((spec) => spec.name === name)!;
      return `${word}*32+${bit}`;
    };
    // arch/x86/include/asm/vmxfeatures.h
    assertEquals(at("vnmi"), "0*32+5");
    assertEquals(at("invvpid"), "0*32+16");
    assertEquals(at("flexpriority"), "0*32+24");
    assertEquals(at("apicv"), "0*32+25");
    assertEquals(at("tertiary_controls"), "1*32+17");
    assertEquals(at("vapic"), "2*32+0");
    assertEquals(at("vid"), "2*32+9");
    assertEquals(at("ipi_virt"), "3*32+4");
    assertEquals(new Set(VMX_FEATURES.map(({ word, bit }) => 32 * word + bit)).size, VMX_FEATURES.length);
    assertEquals(new Set(VMX_FEATURES.map(({ name }) => name)).size, VMX_FEATURES.length);
  });

  it("show in /proc/cpuinfo by these names, in this order", () => {
    assertEquals(
      VMX_FEATURES.filter(({ shown }) => shown).map(({ name }) => name).join(" "),
      [
        "vnmi preemption_timer posted_intr invvpid ept_x_only ept_ad ept_1gb ept_5level flexpriority apicv",
        "eptp_switching tsc_offset vtpr mtf vapic ept vpid unrestricted_guest vapic_reg vid ple shadow_vmcs pml",
        "ept_violation_ve ept_mode_based_exec tsc_scaling usr_wait_pause notify_vm_exiting ipi_virt",
      ].join(" "),
    );
  });
});

describe("VMCS fields", () => {
  it("have the manual's encodings", () => {
    // SDM 3D appendix B.
    const encodings: Record<string, number> = {
      VIRTUAL_PROCESSOR_ID: 0x0000,
      POSTED_INTR_NV: 0x0002,
      LAST_PID_POINTER_INDEX: 0x0008,
      GUEST_INTR_STATUS: 0x0810,
      MSR_BITMAP: 0x2004,
      VIRTUAL_APIC_PAGE_ADDR: 0x2012,
      APIC_ACCESS_ADDR: 0x2014,
      POSTED_INTR_DESC_ADDR: 0x2016,
      EPT_POINTER: 0x201a,
      EOI_EXIT_BITMAP0: 0x201c,
      EOI_EXIT_BITMAP1: 0x201e,
      EOI_EXIT_BITMAP2: 0x2020,
      EOI_EXIT_BITMAP3: 0x2022,
      TERTIARY_VM_EXEC_CONTROL: 0x2034,
      PID_POINTER_TABLE: 0x2042,
      PIN_BASED_VM_EXEC_CONTROL: 0x4000,
      CPU_BASED_VM_EXEC_CONTROL: 0x4002,
      VM_EXIT_CONTROLS: 0x400c,
      VM_ENTRY_CONTROLS: 0x4012,
      VM_ENTRY_INTR_INFO_FIELD: 0x4016,
      VM_ENTRY_EXCEPTION_ERROR_CODE: 0x4018,
      TPR_THRESHOLD: 0x401c,
      SECONDARY_VM_EXEC_CONTROL: 0x401e,
      VM_INSTRUCTION_ERROR: 0x4400,
      VM_EXIT_INTR_INFO: 0x4404,
    };
    assertEquals(Object.fromEntries(VMCS_FIELDS.map(({ name, encoding }) => [name, encoding])), encodings);
  });

  it("say their width and kind by their encodings", () => {
    // SDM 3C table 25-21.
    const spec = (encoding: number) => [vmcsFieldWidth(encoding), vmcsFieldKind(encoding)];
    assertEquals(spec(0x0002), [16, "control"]);
    assertEquals(spec(0x0810), [16, "guest state"]);
    assertEquals(spec(0x2034), [64, "control"]);
    assertEquals(spec(0x4400), [32, "exit information"]);
    assertEquals(spec(0x6400), ["natural", "exit information"]);
    assertEquals(spec(0x681e), ["natural", "guest state"]);
    assertEquals(spec(0x6c16), ["natural", "host state"]);
  });

  it("of 64 bits have a second encoding, for their high half", () => {
    assertEquals(vmcsField(0x2035)?.name, "TERTIARY_VM_EXEC_CONTROL");
    assertEquals(vmcsField(0x2043)?.name, "PID_POINTER_TABLE");
    assertEquals(vmcsField(0x0003), undefined);
    assertEquals(vmcsField(0x4001), undefined);
    assertEquals(vmcsField(0x681e), undefined, "a field that nobody here uses");
  });
});
