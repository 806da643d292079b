import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import * as abi from "../../../abi/mod.ts";
import { VMX_CONTROLS, vmxControlNames } from "../../../abi/mod.ts";
import {
  HOST_SEMANTICS,
  type HostSemantics,
  setupVmx,
  Vmcs,
  VmxCapabilities,
  VmxUnusable,
} from "../../../host/mod.ts";
import { initControls, sanitizeForEvmcs } from "../../../host/vmx/mod.ts";
import { enableX2apic, Rig } from "../../support/guests.ts";

const APICV_SECONDARY = abi.SECONDARY_EXEC_APIC_REGISTER_VIRT | abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY;

/** A processor whose capability MSRs are another's, but for some. */
function patched(processor: VmxCapabilities, msrs: Readonly<Record<number, bigint>>): VmxCapabilities {
  const changed = Object.create(processor) as VmxCapabilities;
  Object.defineProperty(changed, "read", {
    value: (msr: number) => msr in msrs ? msrs[msr] : processor.read(msr),
  });
  return changed;
}

function without(processor: VmxCapabilities, msr: number, control: number): VmxCapabilities {
  const value = processor.read(msr)!;
  return patched(processor, { [msr]: value & ~(BigInt(control) << 32n) });
}

describe("KVM's controls on a processor", () => {
  it("are those required, and the optional ones that the processor has", () => {
    const { config } = setupVmx("none");
    // v6.19's KVM_REQUIRED_VMX_* and KVM_OPTIONAL_VMX_*, by name, and the default1 class.
    assertEquals(vmxControlNames("pin", config.pin & ~0x16), [
      "PIN_BASED_EXT_INTR_MASK",
      "PIN_BASED_NMI_EXITING",
      "PIN_BASED_VIRTUAL_NMIS",
      "PIN_BASED_VMX_PREEMPTION_TIMER",
    ]);
    assertEquals(vmxControlNames("secondary", config.secondary), [
      "SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES",
      "SECONDARY_EXEC_ENABLE_EPT",
      "SECONDARY_EXEC_DESC",
      "SECONDARY_EXEC_ENABLE_RDTSCP",
      "SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE",
      "SECONDARY_EXEC_ENABLE_VPID",
      "SECONDARY_EXEC_WBINVD_EXITING",
      "SECONDARY_EXEC_UNRESTRICTED_GUEST",
      "SECONDARY_EXEC_PAUSE_LOOP_EXITING",
    ]);
    const named = VMX_CONTROLS.primary.reduce((mask, row) => mask | row.mask, 0);
    assertEquals(config.primary & named & abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS, 0);
    assertEquals(config.primary & 0x0401_e172, 0x0401_e172, "the default1 class, CR3 exiting among it");
    assertEquals(config.tertiary, 0n);
    assertEquals(config.exit & abi.VM_EXIT_ACK_INTR_ON_EXIT, abi.VM_EXIT_ACK_INTR_ON_EXIT);
    assertEquals(config.dropped, []);
  });

  it("never are more than the processor has, whatever that is", () => {
    for (const features of ["none", "apicv", "ipiv"] as const) {
      const { config, capabilities } = setupVmx(features);
      for (const word of ["pin", "primary", "secondary", "exit", "entry"] as const) {
        assertEquals(config[word] & ~capabilities.allowed(word).mayBe1, 0, `${features} ${word}`);
      }
      assertEquals(config.tertiary & ~capabilities.tertiary, 0n);
    }
  });

  it("cannot be without those required", () => {
    const processor = new VmxCapabilities("ipiv");
    const cases: readonly [msr: number, control: number, title: string][] = [
      [abi.IA32_VMX_PINBASED_CTLS, abi.PIN_BASED_EXT_INTR_MASK, "external-interrupt exiting"],
      [abi.IA32_VMX_PROCBASED_CTLS, abi.CPU_BASED_HLT_EXITING, "HLT exiting"],
      [abi.IA32_VMX_EXIT_CTLS, abi.VM_EXIT_ACK_INTR_ON_EXIT, "acknowledge interrupt on exit"],
      [abi.IA32_VMX_ENTRY_CTLS, abi.VM_ENTRY_IA32E_MODE, "IA-32e mode guest"],
    ];
    for (const [msr, control, title] of cases) {
      const message = `Cannot set up VMX: the processor lacks "${title}"`;
      // The last two are in the default1 class too: their allowed-0 half must let them be 0.
      const value = processor.read(msr)! & ~BigInt(control) & ~(BigInt(control) << 32n);
      assertThrows(() => setupVmx(patched(processor, { [msr]: value })), VmxUnusable, message);
    }
  });

  it("leave out a VM-entry control without its VM-exit control, or the processor is no good", () => {
    const processor = without(
      new VmxCapabilities("ipiv"),
      abi.IA32_VMX_EXIT_CTLS,
      abi.VM_EXIT_LOAD_IA32_EFER,
    );
    assertThrows(
      () => setupVmx(processor),
      VmxUnusable,
      "VM-entry control 0x8000 and VM-exit control 0x200000",
    );
    const { config } = setupVmx(processor, { errorOnInconsistentVmcsConfig: false });
    assertEquals(config.entry & abi.VM_ENTRY_LOAD_IA32_EFER, 0);
    assertEquals(config.dropped.map(({ word, mask }) => [word, mask]), [[
      "entry",
      abi.VM_ENTRY_LOAD_IA32_EFER,
    ]]);
    assertEquals(config.entry & abi.VM_ENTRY_LOAD_IA32_PAT, abi.VM_ENTRY_LOAD_IA32_PAT, "other pairs stay");
  });

  it("leave out a VM-exit control without its VM-entry control likewise", () => {
    const processor = without(
      new VmxCapabilities("ipiv"),
      abi.IA32_VMX_ENTRY_CTLS,
      abi.VM_ENTRY_LOAD_IA32_EFER,
    );
    const { config } = setupVmx(processor, { errorOnInconsistentVmcsConfig: false });
    assertEquals(config.exit & abi.VM_EXIT_LOAD_IA32_EFER, 0);
    assertEquals(config.dropped.map(({ word, mask }) => [word, mask]), [[
      "exit",
      abi.VM_EXIT_LOAD_IA32_EFER,
    ]]);
  });

  it("need a processor that does not contradict itself", () => {
    const bare = new VmxCapabilities(["vpid", "invvpid"]);
    const withEpt = patched(bare, { [abi.IA32_VMX_EPT_VPID_CAP]: 0x40n });
    assertThrows(() => setupVmx(withEpt), VmxUnusable, "capabilities of EPT without EPT");
    const basic = bare.read(abi.IA32_VMX_BASIC)!;
    for (
      const [value, why] of [
        [basic | (1n << 48n), "addresses in a VMCS have 32 bits"],
        [basic & ~(0xfn << 50n), "a VMCS cannot be in write-back memory"],
        [basic + (1n << 32n), "a VMCS does not fit into a page"],
      ] as const
    ) {
      assertThrows(() => setupVmx(patched(bare, { [abi.IA32_VMX_BASIC]: value })), VmxUnusable, why);
    }
  });

  it("without the TPR shadow have nothing that needs it", () => {
    const { config, apicv, flexpriority } = setupVmx([
      ...["ept", "vapic", "virtual_x2apic", "vapic_reg", "vid", "posted_intr"],
    ]);
    assertEquals(vmxControlNames("secondary", config.secondary), [
      "SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES",
      "SECONDARY_EXEC_ENABLE_EPT",
    ]);
    assertEquals(
      config.pin & abi.PIN_BASED_POSTED_INTR,
      0,
      "posted interrupts go with virtual-interrupt delivery",
    );
    assertEquals(
      apicv.why,
      'KVM does not use "APIC-register virtualization": the processor has no TPR shadow (vtpr)',
    );
    assertEquals(flexpriority.why, 'the processor has no "use TPR shadow" (vtpr)');
  });

  it("hold for one vCPU only what it uses now", () => {
    const setup = setupVmx("ipiv");
    const vmcs = new Vmcs(setup.capabilities);
    initControls(vmcs, setup, { apicvActive: true, vpid: 7, invpcid: false });
    assertEquals(vmcs.pin & abi.PIN_BASED_POSTED_INTR, abi.PIN_BASED_POSTED_INTR);
    assertEquals(vmcs.secondary & APICV_SECONDARY, APICV_SECONDARY);
    assertEquals(vmcs.tertiary, abi.TERTIARY_EXEC_IPI_VIRT);
    assertEquals(vmcs.primary & abi.CPU_BASED_CR3_LOAD_EXITING, 0, "EPT: CR3 is the guest's");
    assertEquals(vmcs.primary & abi.CPU_BASED_CR8_LOAD_EXITING, 0, "so is CR8, with the TPR shadow");
    assertEquals(vmcs.eptPointer, 0x5e, "write-back, four levels, accessed and dirty flags");
    assertEquals([vmcs.vpid, vmcs.secondary & abi.SECONDARY_EXEC_ENABLE_VPID], [7, 0x20]);

    initControls(vmcs, setup, { apicvActive: false, vpid: 0, invpcid: false });
    assertEquals(vmcs.pin & abi.PIN_BASED_POSTED_INTR, 0);
    assertEquals(vmcs.secondary & (APICV_SECONDARY | abi.SECONDARY_EXEC_ENABLE_VPID), 0);
    assertEquals(vmcs.tertiary, 0);
    assertEquals(
      vmcs.primary & abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS,
      abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS,
      "the tertiary controls stay active, all 0",
    );
  });
});

describe("KVM's decisions about interrupts", () => {
  it("follow the processor, and say what it lacks", () => {
    const none = setupVmx("none");
    assertEquals(none.flexpriority, { on: true, why: "" });
    assertEquals(none.apicv, {
      on: false,
      why: 'the processor has no "APIC-register virtualization" (vapic_reg)',
    });
    assertEquals(none.ipiv.why, `it needs APICv: ${none.apicv.why}`);
    const apicv = setupVmx("apicv");
    assertEquals(apicv.apicv.on, true);
    assertEquals(apicv.ipiv, { on: false, why: 'the processor has no "IPI virtualization" (ipi_virt)' });
    const ipiv = setupVmx("ipiv");
    assertEquals([ipiv.apicv.on, ipiv.ipiv.on], [true, true]);
    assertEquals(
      setupVmx(["ept", "vapic_reg", "vtpr", "vid"]).apicv.why,
      'the processor has no "process posted interrupts" (posted_intr)',
    );
  });

  it("follow the parameters, and IPI virtualization follows APICv", () => {
    const off = setupVmx("ipiv", { parameters: { enableApicv: false } });
    assertEquals(off.apicv, { on: false, why: "module parameter enable_apicv is off" });
    assertEquals(off.ipiv, { on: false, why: "it needs APICv: module parameter enable_apicv is off" });
    const noIpiv = setupVmx("ipiv", { parameters: { enableIpiv: false } });
    assertEquals([noIpiv.apicv.on, noIpiv.ipiv.why], [true, "module parameter enable_ipiv is off"]);
    const noFlex = setupVmx("ipiv", { parameters: { flexpriority: false } });
    assertEquals([noFlex.flexpriority.on, noFlex.apicv.on, noFlex.ipiv.on], [false, true, true]);
    assertEquals(setupVmx("ipiv", { parameters: { vpid: false } }).vpid.on, false);
    assertEquals(setupVmx(["vpid", "ept"]).vpid.why, "the processor has no INVVPID (invvpid)");
  });

  it("follow the year: APICv came in 2013, IPI virtualization with the patches of 2021", () => {
    const of = (year: HostSemantics) => setupVmx("ipiv", { behaviour: HOST_SEMANTICS[year] });
    const on = (year: HostSemantics) => [of(year).flexpriority.on, of(year).apicv.on, of(year).ipiv.on];
    assertEquals(on("2012"), [true, false, false]);
    assertEquals(on("2018"), [true, true, false]);
    assertEquals(on("2021"), [true, true, true]);
    assertEquals(on("v6.19"), [true, true, true]);
    const { config, apicv } = of("2012");
    assertEquals(
      apicv.why,
      'KVM does not use "APIC-register virtualization": KVM of that year does not know it (it came in v3.9)',
    );
    assertEquals(config.secondary & abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE, 0);
    assertEquals(config.pin & abi.PIN_BASED_POSTED_INTR, 0);
    assertEquals(of("2018").config.primary & abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS, 0);
    assertEquals(of("2018").config.tertiary, 0n);
    assertEquals(
      of("2018").ipiv.why,
      'KVM does not use "IPI virtualization": KVM of that year knows no tertiary controls (they came in v6.0)',
    );
  });
});

describe("a host's year", () => {
  it("decides whether the task priority of an x2APIC exits: KVM virtualizes that mode since v3.9", () => {
    const writes = (hostSemantics: HostSemantics): number => {
      const rig = new Rig({ vm: { hostSemantics } });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        for (let i = 0; i < 5; i++) yield cpu.wrmsr(abi.X2APIC_TPR, 0x20);
      });
      return rig.vm.exits().MSR_WRITE;
    };
    assertEquals(writes("2012") - writes("2018"), 5);
    assertEquals(writes("v6.19"), writes("2018"));
  });
});

describe("an enlightened VMCS", () => {
  it("has no place for APICv, posted interrupts, or any tertiary control", () => {
    const setup = setupVmx("ipiv", { enlightenedVmcs: true });
    assertEquals(setup.config.tertiary, 0n);
    const lost = setup.config.dropped.flatMap(({ word, mask }) => vmxControlNames(word, mask));
    // What the list of fields in hyperv_evmcs.h leaves without a field, of what this processor has.
    assertEquals(lost, [
      "CPU_BASED_ACTIVATE_TERTIARY_CONTROLS",
      "PIN_BASED_VMX_PREEMPTION_TIMER",
      "PIN_BASED_POSTED_INTR",
      "SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES",
      "SECONDARY_EXEC_APIC_REGISTER_VIRT",
      "SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY",
      "SECONDARY_EXEC_PAUSE_LOOP_EXITING",
      "SECONDARY_EXEC_SHADOW_VMCS",
      "SECONDARY_EXEC_ENABLE_PML",
      "VM_EXIT_SAVE_VMX_PREEMPTION_TIMER",
      "TERTIARY_EXEC_IPI_VIRT",
    ]);
    const why = "an enlightened VMCS has no field for it";
    assertEquals(setup.apicv.why, `KVM does not use "APIC-register virtualization": ${why}`);
    assertEquals(setup.flexpriority.why, `KVM does not use "virtualize APIC accesses": ${why}`);
    assertEquals(setup.ept.on, true);
  });

  it("changes nothing that it has a place for", () => {
    const { config } = setupVmx(["ept", "vpid", "invvpid", "vtpr", "virtual_x2apic", "vnmi", "rdtscp"]);
    assertEquals(sanitizeForEvmcs(config), config);
  });
});
