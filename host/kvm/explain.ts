/**
 * Why each accelerated path, and each paravirtual feature, is or is not in use now: from what the processor has, module
 * parameters, the host's year, CPUID, the state of each vCPU's APIC, and what inhibits APICv.
 *
 * @module
 */

import { type KvmFeature, SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE } from "../../abi/mod.ts";
import { APICV_INHIBITS, inhibitNames } from "./apicv.ts";
import type { BackendName } from "./backends.ts";
import type { Vcpu } from "./vcpu.ts";
import type { Vm } from "./vm.ts";

/** Why a path is or is not in use, on those vCPUs for which the answer is the same. */
export interface Explanation {
  /** The path's name. */
  readonly path: string;
  /** Whether it is in use. */
  readonly inUse: boolean;
  /** Why. */
  readonly why: string;
  /** On which vCPUs, by number. */
  readonly vcpus: readonly number[];
}

interface Verdict {
  readonly inUse: boolean;
  readonly why: string;
}

function yes(why: string): Verdict {
  return { inUse: true, why };
}

function no(why: string): Verdict {
  return { inUse: false, why };
}

/** A path. */
interface Path {
  readonly name: string;
  /** The vendor that has it; both where none is named. */
  readonly backend?: BackendName;
  explain(vcpu: Vcpu): Verdict;
}

/** The paths, hardware's first. */
const PATHS: readonly Path[] = [
  { name: "APICv", backend: "vmx", explain: apicv },
  { name: "posted interrupts", backend: "vmx", explain: withApicv("what is accepted is posted") },
  { name: "x2APIC virtualization", backend: "vmx", explain: virtualX2apic },
  { name: "IPI virtualization", backend: "vmx", explain: ipiVirtualization },
  { name: "AVIC", backend: "svm", explain: apicv },
  { name: "x2AVIC", backend: "svm", explain: x2avic },
  { name: "AVIC's IPIs", backend: "svm", explain: avicIpis },
  { name: "AVIC's kick without a search", backend: "svm", explain: avicKick },
  { name: "ICR fast path", explain: icrFastPath },
  { name: "TSC-deadline fast path", explain: deadlineFastPath },
  { name: "HLT fast path", explain: haltFastPath },
  { name: "halt polling", explain: haltPolling },
  { name: "PV EOI", explain: pvEoi },
  { name: "PV IPI", explain: pvIpi },
  { name: "PV kick", explain: offered("PV_UNHALT", "KVM_HC_KICK_CPU ends a halt") },
  { name: "PV yield", explain: offered("PV_SCHED_YIELD", "KVM_HC_SCHED_YIELD gives the CPU to who waits") },
];

/** Why each path is or is not in use: a row for each answer that some vCPU gives. */
export function explain(vm: Vm): Explanation[] {
  const rows: Explanation[] = [];
  for (const { name, backend, explain } of PATHS) {
    if (backend !== undefined && backend !== vm.backend) continue;
    const answers = new Map<string, Verdict & { readonly vcpus: number[] }>();
    for (const vcpu of vm.vcpus) {
      const verdict = explain(vcpu);
      const key = `${verdict.inUse} ${verdict.why}`;
      const answer = answers.get(key) ?? { ...verdict, vcpus: [] };
      answer.vcpus.push(vcpu.vcpuId);
      answers.set(key, answer);
    }
    for (const answer of answers.values()) rows.push({ path: name, ...answer });
  }
  return rows;
}

// Hardware that delivers interrupts.

/** APICv, or AVIC. */
function apicv({ vm, lapic }: Vcpu): Verdict {
  if (!vm.enableApicv) return no(vm.vmxSetup?.apicv.why ?? withoutAvic(vm));
  const against = inhibition(vm) ?? (lapic.hardwareEnabled ? undefined : "the local APIC is disabled");
  if (lapic.apicvActive) {
    return yes(against === undefined ? "nothing inhibits it" : `until the next entry: ${against}`);
  }
  return no(against ?? "from the next entry on nothing inhibits it");
}

function withoutAvic({ acceleration, behaviour, semantics }: Vm): string {
  if (acceleration === "none") return "the processor has no AVIC";
  if (behaviour.avic === "none") return `KVM of ${semantics} does not know AVIC: it came in v4.7`;
  return "module parameter avic is off";
}

function inhibition({ apicvInhibits }: Vm): string | undefined {
  if (apicvInhibits === 0) return undefined;
  const reasons = inhibitNames(apicvInhibits).map((name) => `${name}, as ${APICV_INHIBITS[name].why}`);
  return `inhibited by ${reasons.join("; ")}`;
}

/** What comes and goes with APICv. */
function withApicv(effect: string): (vcpu: Vcpu) => Verdict {
  return (vcpu) => vcpu.lapic.apicvActive ? yes(effect) : no(`it needs APICv: ${apicv(vcpu).why}`);
}

function virtualX2apic(vcpu: Vcpu): Verdict {
  const { lapic } = vcpu;
  const config = vcpu.vm.vmxSetup!.config;
  if ((config.secondary & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) === 0) {
    const dropped = config.dropped.find(({ word, mask }) =>
      word === "secondary" && (mask & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) !== 0
    );
    return no(dropped?.why ?? "the processor does not have it (virtual_x2apic)");
  }
  if (!lapic.x2apicMode) return no(outsideX2apicMode(vcpu));
  return yes(
    lapic.apicvActive
      ? "reads do not exit, nor do writes of the TPR, the EOI and the self-IPI register"
      : `for the TPR alone, as without APICv: ${apicv(vcpu).why}`,
  );
}

function outsideX2apicMode({ lapic }: Vcpu): string {
  return `the local APIC is ${lapic.hardwareEnabled ? "in xAPIC mode" : "disabled"}`;
}

function ipiVirtualization(vcpu: Vcpu): Verdict {
  const { vm, lapic } = vcpu;
  if (!vm.enableIpiv) return no(vm.vmxSetup!.ipiv.why);
  if (!lapic.apicvActive) return no(`it needs APICv: ${apicv(vcpu).why}`);
  return yes("fixed, edge-triggered IPIs to one physical ID do not exit");
}

function x2avic(vcpu: Vcpu): Verdict {
  const { vm, lapic } = vcpu;
  if (!lapic.apicvActive) return no(`it needs AVIC: ${apicv(vcpu).why}`);
  if (vm.acceleration !== "x2avic") return no("the processor has no x2AVIC");
  if (!vm.x2avicEnabled) return no(`KVM of ${vm.semantics} does not know x2AVIC: it came in v6.0`);
  return lapic.x2apicMode ? yes("the MSRs of the x2APIC reach its page") : no(outsideX2apicMode(vcpu));
}

/** Whether hardware sends them. */
function sendsByAvic({ vm, lapic }: Vcpu): boolean {
  return lapic.apicvActive && (!lapic.x2apicMode || vm.x2avicEnabled);
}

function avicIpis(vcpu: Vcpu): Verdict {
  if (!vcpu.lapic.apicvActive) return no(`they need AVIC: ${apicv(vcpu).why}`);
  if (!sendsByAvic(vcpu)) return no("in x2APIC mode they need x2AVIC: writes of the ICR exit");
  if (!vcpu.vm.enableIpiv) {
    return no("module parameter enable_ipiv is off: no target seems to run, and each IPI exits");
  }
  return yes("fixed, edge-triggered IPIs exit only if a target does not run");
}

function avicKick(vcpu: Vcpu): Verdict {
  const { avicKick, behaviour } = vcpu.vm;
  if (!sendsByAvic(vcpu)) return no("IPIs are not AVIC's here, and none is incomplete");
  if (avicKick === "slow") {
    return no(
      behaviour.avicKick === "slow"
        ? `KVM of ${vcpu.vm.semantics} asks every vCPU: looking targets up came in v5.19`
        : "it is told to ask every vCPU",
    );
  }
  return avicKick === "2022"
    ? yes("as of 2022: one target is looked up; for shorthands every vCPU is asked")
    : yes("every target is looked up; for shorthands and physical broadcasts every vCPU is asked");
}

// KVM's fast paths.

function icrFastPath(vcpu: Vcpu): Verdict {
  const { vm, lapic } = vcpu;
  if (!vm.behaviour.icrFastPath) return no(`KVM of ${vm.semantics} has none: it came in v5.5`);
  if (!lapic.x2apicMode) return no(outsideX2apicMode(vcpu));
  if (vm.backend === "vmx" && vm.enableIpiv && lapic.apicvActive) {
    return no(
      "writes of the ICR do not exit: IPI virtualization is in use, and what it leaves comes as APIC_WRITE",
    );
  }
  if (vm.backend === "svm" && sendsByAvic(vcpu)) return no("writes of the ICR do not exit: x2AVIC is in use");
  if (!vm.behaviour.icrFastPathReenters) return yes("for one fixed IPI to one physical ID");
  return vm.apicMap === undefined
    ? no("there is no APIC map: two local APICs have the same ID")
    : yes("for whatever the APIC map resolves");
}

function deadlineFastPath({ vm, backend }: Vcpu): Verdict {
  const { timerFastPath, deadlineFastPath } = vm.behaviour;
  if (deadlineFastPath) return yes("writes of IA32_TSC_DEADLINE re-enter the guest at once");
  if (!timerFastPath) return no(`KVM of ${vm.semantics} has none: it came in v5.8`);
  return backend.hasPreemptionTimer
    ? yes("there is a VMX-preemption timer")
    : no(`there is no VMX-preemption timer, which KVM of ${vm.semantics} needs for it: until v6.18`);
}

function haltFastPath({ vm }: Vcpu): Verdict {
  return vm.behaviour.haltFastPath
    ? yes("a HLT for which something waits re-enters the guest at once")
    : no(`KVM of ${vm.semantics} has none: it came in v6.12`);
}

function haltPolling({ vm, msrs }: Vcpu): Verdict {
  if (!vm.behaviour.haltPolling) return no(`KVM of ${vm.semantics} has none: it came in v4.0`);
  if (vm.haltPollNs === 0) return no("module parameter halt_poll_ns is 0");
  if (!msrs.pollControl) return no("the guest polls by itself: it has cleared MSR_KVM_POLL_CONTROL");
  if (!vm.scheduler.single()) return no("somebody waits for a CPU");
  return yes(`for at most ${vm.haltPollNs} ns`);
}

// Paravirtual features.

/** What is against a feature before the guest is asked: the host does not know it, or CPUID does not offer it. */
function withheld({ vm, cpuid }: Vcpu, feature: KvmFeature): Verdict | undefined {
  if (!vm.knows(feature)) return no(`KVM of ${vm.semantics} does not know it`);
  return cpuid.pvHas(feature) ? undefined : no(`CPUID does not offer KVM_FEATURE_${feature}`);
}

/** A feature that is there for whoever calls. */
function offered(feature: KvmFeature, effect: string): (vcpu: Vcpu) => Verdict {
  return (vcpu) => withheld(vcpu, feature) ?? yes(`offered: ${effect}`);
}

function pvEoi(vcpu: Vcpu): Verdict {
  const against = withheld(vcpu, "PV_EOI");
  if (against !== undefined) return against;
  if (!vcpu.pvEoi.enabled) return no("the guest has not enabled it");
  if (vcpu.lapic.apicvActive) {
    return no(`${vcpu.vm.backend === "vmx" ? "APICv" : "AVIC"} ends interrupts: it is never armed`);
  }
  const now = vcpu.pvEoi.explain();
  return yes(now === "armed" ? "the interrupt in service needs no exit" : `enabled; not armed now: ${now}`);
}

function pvIpi(vcpu: Vcpu): Verdict {
  const against = withheld(vcpu, "PV_SEND_IPI");
  if (against !== undefined) return against;
  return vcpu.vm.apicMap === undefined
    ? no("there is no APIC map, as two local APICs have the same ID: KVM_HC_SEND_IPI answers -KVM_EOPNOTSUPP")
    : yes("offered: KVM_HC_SEND_IPI reaches up to 128 local APICs");
}
