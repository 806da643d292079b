import {
  assertEquals,
  assertInstanceOf,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import * as abi from "../../../abi/mod.ts";
import {
  ENTRY_CHECKS,
  failedEntryChecks,
  setupVmx,
  type Vm,
  Vmcs,
  VmEntryFailed,
  VMX_PROCESSORS,
  VmxCapabilities,
} from "../../../host/mod.ts";
import { initControls, type VmxHardware } from "../../../host/vmx/mod.ts";
import { DATA, Rig } from "../../support/guests.ts";

const PROCESSOR = new VmxCapabilities([...VMX_PROCESSORS.ipiv, "ept_mode_based_exec"]);
/** One beyond the highest address. */
const WIDTH = 2 ** PROCESSOR.physicalAddressBits;

/** A VMCS as KVM sets it up, APICv and IPI virtualization in use or not: legal. */
function legal(apicvActive: boolean, processor: VmxCapabilities = PROCESSOR): Vmcs {
  const vmcs = new Vmcs(processor);
  initControls(vmcs, setupVmx(processor), { apicvActive, vpid: 1, invpcid: false });
  vmcs.msrBitmapAddress = 0x1000;
  vmcs.virtualApicPage = 0x2000;
  vmcs.apicAccessPage = 0x3000;
  vmcs.postedIntrNv = 0xf2;
  vmcs.postedIntrDesc = 0x4040;
  vmcs.pidPointerTable = 0x5000;
  vmcs.lastPidPointerIndex = 4095;
  return vmcs;
}

function failures(vmcs: Vmcs, vtpr: number = 0): string[] {
  return failedEntryChecks(vmcs, vtpr).map(({ name }) => name);
}

/** What breaks each rule, and no other. */
const ILLEGAL: Readonly<Record<string, (vmcs: Vmcs) => void>> = {
  "pin-reserved": (v) => v.pin |= 1 << 8,
  "primary-reserved": (v) => v.primary &= ~(1 << 1),
  "secondary-reserved": (v) => v.secondary |= 1 << 21,
  "tertiary-reserved": (v) => v.tertiaryHigh = 1,
  "msr-bitmap-aligned": (v) => v.msrBitmapAddress = 0x1800,
  "msr-bitmap-width": (v) => v.msrBitmapAddress = WIDTH,
  "virtual-apic-aligned": (v) => v.virtualApicPage = 0x2008,
  "virtual-apic-width": (v) => v.virtualApicPage = WIDTH,
  "tpr-shadow": (v) => v.primary &= ~abi.CPU_BASED_TPR_SHADOW,
  "nmi-exiting": (v) => v.pin &= ~abi.PIN_BASED_NMI_EXITING,
  "virtual-nmis"(v) {
    v.pin &= ~abi.PIN_BASED_VIRTUAL_NMIS;
    v.primary |= abi.CPU_BASED_NMI_WINDOW_EXITING;
  },
  "apic-access-aligned": (v) => v.apicAccessPage = 0x3001,
  "apic-access-width": (v) => v.apicAccessPage = WIDTH,
  "one-apic-mode": (v) => v.secondary |= abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE,
  "external-interrupt-exiting": (v) => v.pin &= ~abi.PIN_BASED_EXT_INTR_MASK,
  "posted-delivery": (v) => v.secondary &= ~abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
  "posted-acknowledge": (v) => v.exitControls &= ~abi.VM_EXIT_ACK_INTR_ON_EXIT,
  "posted-vector": (v) => v.postedIntrNv = 0x1f2,
  "posted-descriptor-aligned": (v) => v.postedIntrDesc = 0x4060,
  "posted-descriptor-width": (v) => v.postedIntrDesc = WIDTH,
  "vpid": (v) => v.vpid = 0,
  "eptp-memory-type": (v) => v.eptPointer = 0x5e - 6 + 1, // Write-combining.
  "eptp-levels": (v) => v.eptPointer = 0x56, // Three levels.
  "eptp-reserved": (v) => v.eptPointer = 0x5e + WIDTH,
  "pml-ept"(v) {
    v.secondary |= abi.SECONDARY_EXEC_ENABLE_PML;
    v.secondary &= ~(abi.SECONDARY_EXEC_ENABLE_EPT | abi.SECONDARY_EXEC_UNRESTRICTED_GUEST);
  },
  "unrestricted-ept": (v) => v.secondary &= ~abi.SECONDARY_EXEC_ENABLE_EPT,
  "execute-control-ept"(v) {
    v.secondary |= abi.SECONDARY_EXEC_MODE_BASED_EPT_EXEC;
    v.secondary &= ~(abi.SECONDARY_EXEC_ENABLE_EPT | abi.SECONDARY_EXEC_UNRESTRICTED_GUEST);
  },
  "pid-table-aligned": (v) => v.pidPointerTable = 0x5004,
  "pid-table-width": (v) => v.pidPointerTable = WIDTH,
  "pid-table-last-width": (v) => v.pidPointerTable = WIDTH - 4096, // 512 entries, and the index says 4096.
  "exit-reserved": (v) => v.exitControls |= 1 << 31,
  "save-preemption-timer"(v) {
    v.exitControls |= abi.VM_EXIT_SAVE_VMX_PREEMPTION_TIMER;
    v.pin &= ~abi.PIN_BASED_VMX_PREEMPTION_TIMER;
  },
  "entry-reserved": (v) => v.entryControls |= 1 << 30,
  "smm": (v) => v.entryControls |= abi.VM_ENTRY_SMM,
};

/** Rules that a VMCS with virtual-interrupt delivery cannot break. */
const ILLEGAL_WITHOUT_APICV: Readonly<Record<string, (vmcs: Vmcs) => void>> = {
  "tpr-threshold-reserved": (v) => v.tprThreshold = 0x10,
  "tpr-threshold-vtpr"(v) {
    v.secondary &= ~abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
    v.tprThreshold = 5;
  },
};

/** SDM 3C 27.2.1.1 to 27.2.1.3, read off the VMCS' fields by their encodings, one line after the other. */
function entrySucceeds(vmcs: Vmcs, vtpr: number): boolean {
  const field = (encoding: number): bigint => vmcs.read(encoding);
  const msr = (index: number): bigint => vmcs.capabilities.read(index)!;
  const pin = field(0x4000), primary = field(0x4002), exit = field(0x400c), entry = field(0x4012);
  const on = (word: bigint, bit: number): boolean => ((word >> BigInt(bit)) & 1n) === 1n;
  const secondary = on(primary, 31) ? field(0x401e) : 0n;
  const tertiary = on(primary, 17) ? field(0x2034) : 0n;
  const allows = (index: number, word: bigint): boolean => {
    const mustBe1 = msr(index) & 0xffff_ffffn, mayBe1 = msr(index) >> 32n;
    return (word & mustBe1) === mustBe1 && (word | mayBe1) === mayBe1;
  };
  const page = (encoding: number): boolean => field(encoding) % 4096n === 0n && within(field(encoding));
  const within = (address: bigint): boolean => address < BigInt(WIDTH);
  if (!allows(0x48d, pin) || !allows(0x48e, primary) || !allows(0x48f, exit) || !allows(0x490, entry)) {
    return false;
  }
  if (!allows(0x48b, secondary) || (tertiary & ~msr(0x492)) !== 0n) return false;
  if (on(primary, 28) && !page(0x2004)) return false;
  const shadow = on(primary, 21), delivery = on(secondary, 9);
  if (shadow && !page(0x2012)) return false;
  if (!shadow && (on(secondary, 4) || on(secondary, 8) || delivery || on(tertiary, 4))) return false;
  if (shadow && !delivery) {
    if (field(0x401c) > 15n) return false;
    if (!on(secondary, 0) && Number(field(0x401c)) > vtpr >> 4) return false;
  }
  if (on(pin, 5) && !on(pin, 3)) return false;
  if (on(primary, 22) && !on(pin, 5)) return false;
  if (on(secondary, 0) && !page(0x2014)) return false;
  if (on(secondary, 4) && on(secondary, 0)) return false;
  if (delivery && !on(pin, 0)) return false;
  if (on(pin, 7)) {
    if (!delivery || !on(exit, 15) || field(0x0002) > 255n) return false;
    if (field(0x2016) % 64n !== 0n || !within(field(0x2016))) return false;
  }
  if (on(secondary, 5) && field(0x0000) === 0n) return false;
  const ept = on(secondary, 1), eptp = field(0x201a);
  if (ept && (![0n, 6n].includes(eptp & 7n) || ((eptp >> 3n) & 7n) !== 3n)) return false;
  if (ept && ((eptp & 0xf80n) !== 0n || !within(eptp))) return false; // A/D flags are there.
  if (!ept && (on(secondary, 17) || on(secondary, 7) || on(secondary, 22))) return false;
  if (on(tertiary, 4)) {
    const table = field(0x2042);
    if (table % 8n !== 0n || !within(table) || !within(table + 8n * field(0x0008))) return false;
  }
  if (on(exit, 22) && !on(pin, 6)) return false;
  return !on(entry, 10) && !on(entry, 11);
}

const WORDS = [0x4000, 0x4002, 0x401e, 0x2034, 0x400c, 0x4012];
/** A field, and what is written into it: of a control word, a bit that changes. */
const change = fc.oneof(
  { weight: 3, arbitrary: fc.tuple(fc.constantFrom(...WORDS), fc.nat(31).map((bit) => 1n << BigInt(bit))) },
  fc.tuple(
    fc.constantFrom(0x2004, 0x2012, 0x2014, 0x2016, 0x2042, 0x201a),
    fc.constantFrom(
      0n,
      0x1000n,
      0x1040n,
      0x1008n,
      0x1001n,
      0x1ffen,
      0x105en,
      BigInt(WIDTH) - 4096n,
      BigInt(WIDTH),
    ),
  ),
  fc.tuple(
    fc.constantFrom(0x401c, 0x0000, 0x0002, 0x0008),
    fc.constantFrom(0n, 1n, 15n, 16n, 0xf2n, 0x100n, 0xffffn),
  ),
);

describe("VM entry's checks of controls", () => {
  it("find nothing in what KVM sets up, on each processor, APICv in use or not", () => {
    for (const name of ["none", "apicv", "ipiv"] as const) {
      const processor = new VmxCapabilities(name);
      for (const active of name === "none" ? [false] : [false, true]) {
        assertEquals(failures(legal(active, processor)), [], `${name} ${active}`);
      }
    }
    const x2apic = legal(true);
    x2apic.secondary ^= abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES |
      abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE;
    assertEquals(failures(x2apic), []);
  });

  it("find each broken rule, and none besides", () => {
    for (const [name, breakRule] of Object.entries(ILLEGAL)) {
      const vmcs = legal(true);
      breakRule(vmcs);
      assertEquals(failures(vmcs), [name]);
    }
    for (const [name, breakRule] of Object.entries(ILLEGAL_WITHOUT_APICV)) {
      const vmcs = legal(false);
      breakRule(vmcs);
      assertEquals(failures(vmcs, 0x4f), [name]);
    }
    const old = legal(false, new VmxCapabilities("none"));
    old.eptPointer = 0x5e;
    assertEquals(failures(old), ["eptp-accessed-dirty"]);
    assertEquals(
      ENTRY_CHECKS.map(({ name }) => name).toSorted(),
      [...Object.keys(ILLEGAL), ...Object.keys(ILLEGAL_WITHOUT_APICV), "eptp-accessed-dirty"].toSorted(),
      "each check is broken here",
    );
  });

  it("do not look at what is not in use", () => {
    const vmcs = legal(false);
    vmcs.postedIntrNv = 0xffff;
    vmcs.postedIntrDesc = 1;
    vmcs.pidPointerTable = 1;
    assertEquals(failures(vmcs), [], "no posted interrupts, no IPI virtualization");
    vmcs.primary &= ~abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS;
    vmcs.tertiary = -1;
    assertEquals(failures(vmcs), [], "tertiary controls that are not activated count as 0");
    vmcs.primary &= ~abi.CPU_BASED_ACTIVATE_SECONDARY_CONTROLS;
    vmcs.secondary = -1;
    vmcs.vpid = 0;
    vmcs.eptPointer = 1;
    vmcs.apicAccessPage = 1;
    assertEquals(failures(vmcs), [], "nor do secondary ones");
  });

  it("let the threshold be as high as the task priority, and with virtualized accesses higher", () => {
    const vmcs = legal(false);
    vmcs.tprThreshold = 15;
    assertEquals(failures(vmcs, 0), [], "the exit follows at once (SDM 3C 27.7.7)");
    vmcs.secondary &= ~abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
    assertEquals(failures(vmcs, 0xf0), []);
    assertEquals(failures(vmcs, 0xef), ["tpr-threshold-vtpr"]);
  });

  it("take CR3 exiting as the TRUE MSRs say, where there are such", () => {
    const plain = new VmxCapabilities("apicv", { trueControls: false });
    assertEquals(failures(legal(true, plain)), ["primary-reserved"]);
    assertEquals(failures(legal(true, new VmxCapabilities("apicv"))), []);
  });

  it("accept what the manual accepts, and nothing else", () => {
    const seen = [0, 0];
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.array(change, { maxLength: 4 }),
        fc.nat(255),
        (apicv, changes, vtpr) => {
          const vmcs = legal(apicv);
          for (const [encoding, value] of changes) {
            vmcs.write(encoding, WORDS.includes(encoding) ? vmcs.read(encoding) ^ value : value);
          }
          const succeeds = entrySucceeds(vmcs, vtpr);
          seen[succeeds ? 1 : 0]++;
          assertEquals(failures(vmcs, vtpr).length === 0, succeeds, failures(vmcs, vtpr).join());
        },
      ),
      { numRuns: 2000 },
    );
    assertNotEquals(Math.min(...seen), 0, "both happen");
  });
});

function vmcsOf(vm: Vm): Vmcs {
  return (vm.bootstrap.backend.hardware as VmxHardware).vmcs;
}

describe("a VM entry", () => {
  it("with invalid controls fails with error 7, before the guest has run: KVM dumps the VMCS, and user space ends it", () => {
    const rig = new Rig();
    const vm = rig.start(function* (cpu) {
      yield cpu.store32(DATA, 1);
    });
    const vmcs = vmcsOf(vm);
    vmcs.secondary |= abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE | abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
    vmcs.pin |= abi.PIN_BASED_POSTED_INTR;
    const error = assertThrows(() => vm.machine.run(1e9), VmEntryFailed);
    assertEquals(error.hardwareEntryFailureReason, 7);
    assertEquals(error.failed.map(({ name }) => name), ["pin-reserved", "one-apic-mode", "posted-delivery"]);
    assertStringIncludes(error.message, "Cannot enter the guest on vcpu 0: VM-instruction error 7");
    assertStringIncludes(
      error.message,
      "posted interrupts need virtual-interrupt delivery (posted-delivery, SDM 3C 27.2.1.1)",
    );
    assertStringIncludes(error.dump, "PinBased=0x000000ff");
    assertEquals(vmcs.read(abi.VM_INSTRUCTION_ERROR), 7n);
    assertEquals(rig.word(DATA), 0);
    assertEquals(vm.dead, true);
    assertEquals(
      [vm.counters().kvm_entry, vm.counters().kvm_exit],
      [1, undefined],
      "no VM exit: the instruction failed",
    );
    assertEquals(vm.counters().kvm_userspace_exit, 1);
  });

  it("checks a control that is written while the guest is out, at the next entry", () => {
    const rig = new Rig();
    rig.vm.userspacePioDevice = {
      access(_port, _bytes, value) {
        const vmcs = vmcsOf(rig.vm);
        assertEquals(vmcs.unchecked, 0, "the first entry has checked them");
        if (value === 2n) vmcs.tertiary = 1;
        if (value === 3n) vmcs.primary |= abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS;
        return undefined;
      },
    };
    const vm = rig.start(function* (cpu) {
      for (const value of [1, 2, 3, 4]) {
        yield cpu.store32(DATA, value);
        yield cpu.out8(0x80, value);
      }
    });
    const error = assertThrows(() => vm.machine.run(1e9), VmEntryFailed);
    assertInstanceOf(error, Error);
    assertEquals(error.failed.map(({ name }) => name), ["primary-reserved", "tertiary-reserved"]);
    assertEquals(rig.word(DATA), 3, "tertiary controls alone, which were not activated, did no harm");
  });
});
