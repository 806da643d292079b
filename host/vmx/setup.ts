/**
 * What KVM makes of a processor and of its module parameters: vmx_hardware_setup (arch/x86/kvm/vmx/vmx.c). Each decision
 * says why it is as it is.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { VMX_CONTROLS, type VmxControlWord } from "../../abi/mod.ts";
import { VmxCapabilities } from "./capabilities.ts";
import { type DroppedControl, setupVmcsConfig, type VmcsConfig, type VmcsConfigOptions } from "./config.ts";
import { sanitizeForEvmcs } from "./evmcs.ts";
import type { VmxProcessor } from "./processors.ts";

/** kvm_intel's parameters, and kvm's that it reads. Each is true by default. */
export interface VmxParameters {
  /** enable_apicv: APICv. */
  readonly enableApicv?: boolean;
  /** enable_ipiv: IPI virtualization. */
  readonly enableIpiv?: boolean;
  /** flexpriority: virtualized accesses to the APIC's page. */
  readonly flexpriority?: boolean;
  /** vnmi: virtual NMIs. */
  readonly vnmi?: boolean;
  /** preemption_timer: the VMX-preemption timer. */
  readonly preemptionTimer?: boolean;
  /** ept: two-dimensional paging. */
  readonly ept?: boolean;
  /** vpid: tagged translations. */
  readonly vpid?: boolean;
}

/** How VMX is set up. Everything has a default. */
export interface VmxSetupOptions extends VmcsConfigOptions {
  /** Module parameters. */
  readonly parameters?: VmxParameters;
  /** Whether KVM runs on Hyper-V, with enlightened VMCSs; false by default. */
  readonly enlightenedVmcs?: boolean;
}

/** Whether KVM uses something. */
export interface Decision {
  /** Whether it does. */
  readonly on: boolean;
  /** Why not; empty where it does. */
  readonly why: string;
}

/** VMX as KVM has set it up. */
export interface VmxSetup {
  /** The processor. */
  readonly capabilities: VmxCapabilities;
  /** The controls that KVM uses. */
  readonly config: VmcsConfig;
  /** APICv: APIC-register virtualization, virtual-interrupt delivery and posted interrupts. */
  readonly apicv: Decision;
  /** IPI virtualization. */
  readonly ipiv: Decision;
  /** Virtualized accesses to the APIC's page, and the TPR shadow. */
  readonly flexpriority: Decision;
  /** Virtual NMIs, and their window. */
  readonly vnmi: Decision;
  /** The VMX-preemption timer. */
  readonly preemptionTimer: Decision;
  /** EPT. */
  readonly ept: Decision;
  /** VPIDs. */
  readonly vpid: Decision;
}

const ON: Decision = { on: true, why: "" };

function off(why: string): Decision {
  return { on: false, why };
}

/**
 * Sets VMX up on a processor. Throws {@linkcode VmxUnusable} where KVM cannot run on it, `RangeError` where there can be
 * no such processor.
 *
 * @example Without tertiary controls there is no IPI virtualization
 * ```ts
 * import { setupVmx } from "@exitless/exitless/host";
 * import { assertEquals } from "@std/assert";
 *
 * const { apicv, ipiv } = setupVmx("apicv");
 * assertEquals(apicv.on, true);
 * assertEquals(ipiv.why, 'the processor has no "IPI virtualization" (ipi_virt)');
 * ```
 */
export function setupVmx(
  processor: VmxCapabilities | VmxProcessor | readonly string[],
  options: VmxSetupOptions = {},
): VmxSetup {
  const capabilities = processor instanceof VmxCapabilities ? processor : new VmxCapabilities(processor);
  const own = setupVmcsConfig(capabilities, options);
  const config = options.enlightenedVmcs === true ? sanitizeForEvmcs(own) : own;
  const parameters = options.parameters ?? {};
  const needs = (...controls: readonly [word: VmxControlWord, mask: number][]): Decision => {
    for (const [word, mask] of controls) {
      if (!uses(config, word, mask)) return off(whyUnused(capabilities, config, word, mask));
    }
    return ON;
  };
  const where = (parameter: boolean | undefined, name: string, otherwise: () => Decision): Decision =>
    parameter === false ? off(`module parameter ${name} is off`) : otherwise();

  const ept = where(parameters.ept, "ept", () => needs(["secondary", abi.SECONDARY_EXEC_ENABLE_EPT]));
  const vpid = where(parameters.vpid, "vpid", () => {
    const control = needs(["secondary", abi.SECONDARY_EXEC_ENABLE_VPID]);
    return control.on && capabilities.vpid === 0 ? off("the processor has no INVVPID (invvpid)") : control;
  });
  const flexpriority = where(
    parameters.flexpriority,
    "flexpriority",
    () =>
      needs(["primary", abi.CPU_BASED_TPR_SHADOW], [
        "secondary",
        abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES,
      ]),
  );
  const vnmi = where(
    parameters.vnmi,
    "vnmi",
    () => needs(["pin", abi.PIN_BASED_VIRTUAL_NMIS], ["primary", abi.CPU_BASED_NMI_WINDOW_EXITING]),
  );
  const apicv = where(
    parameters.enableApicv,
    "enable_apicv",
    () =>
      needs(
        ["secondary", abi.SECONDARY_EXEC_APIC_REGISTER_VIRT],
        ["secondary", abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY],
        ["pin", abi.PIN_BASED_POSTED_INTR],
      ),
  );
  const ipiv = where(parameters.enableIpiv, "enable_ipiv", () => {
    if (!apicv.on) return off(`it needs APICv: ${apicv.why}`);
    return needs(["tertiary", abi.TERTIARY_EXEC_IPI_VIRT]);
  });
  const preemptionTimer = where(
    parameters.preemptionTimer,
    "preemption_timer",
    () => needs(["pin", abi.PIN_BASED_VMX_PREEMPTION_TIMER]),
  );
  return { capabilities, config, apicv, ipiv, flexpriority, vnmi, preemptionTimer, ept, vpid };
}

function uses(config: VmcsConfig, word: VmxControlWord, mask: number): boolean {
  if (word === "tertiary") return (config.tertiary & BigInt(mask)) !== 0n;
  return (config[word] & mask) !== 0;
}

/** Why a control is not used: the processor lacks it, or KVM has dropped it, or what it belongs to. */
function whyUnused(
  capabilities: VmxCapabilities,
  config: VmcsConfig,
  word: VmxControlWord,
  mask: number,
): string {
  const control = VMX_CONTROLS[word].find((row) => row.mask === mask)!;
  if (!capabilities.has(control.feature!)) {
    return `the processor has no "${control.title}" (${control.feature})`;
  }
  const dropped = droppedFor(config, word, mask) ??
    droppedFor(config, "primary", abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS);
  return `KVM does not use "${control.title}": ${dropped!.why}`;
}

function droppedFor(config: VmcsConfig, word: VmxControlWord, mask: number): DroppedControl | undefined {
  return config.dropped.find((row) => row.word === word && (row.mask & mask) !== 0);
}
