/**
 * `exitless explain`: which accelerated paths and paravirtual features are in use on the machines of an experiment, or on
 * one that is put together by hand, and why not the others.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../abi/mod.ts";
import { type ApicName, GUEST_SEMANTICS, type GuestSemantics, Kernel } from "../guest/mod.ts";
import {
  type Acceleration,
  ACCELERATIONS,
  type BackendName,
  BACKENDS,
  type Explanation,
  HOST_SEMANTICS,
  type HostSemantics,
  Machine,
  Vm,
} from "../host/mod.ts";
import {
  type AnyVm,
  checkedOptions,
  type Experiment,
  type ExperimentOptions,
  type OptionSpec,
} from "./experiments/experiment.ts";
import { explanationText } from "./report/explanation.ts";
import { wrapped } from "./report/table.ts";

/** A machine, and what it says of itself. */
export interface ExplainedMachine {
  /** Its name: that of an experiment's run, or what it is. */
  readonly name: string;
  /** Which vendor's virtualization. */
  readonly backend: BackendName;
  /** What the processor has. */
  readonly acceleration: Acceleration;
  /** Whose KVM. */
  readonly hostSemantics: HostSemantics;
  /** vCPUs. */
  readonly vcpus: number;
  /** Why each path is or is not in use, at the end of the run. */
  readonly explanations: readonly Explanation[];
}

const SWITCH = ["on", "off"] as const;

/** What a machine can be put together from. */
export const MACHINE_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  vcpus: { meaning: "vCPUs", default: 2, min: 1, max: 1024 },
  acceleration: {
    meaning: "processor",
    default: "most",
    choices: ["most", ...new Set(Object.values(ACCELERATIONS).flat())],
  },
  host: { meaning: "whose KVM", default: "v6.19", choices: Object.keys(HOST_SEMANTICS) },
  guest: { meaning: "whose guest kernel", default: "v6.19", choices: Object.keys(GUEST_SEMANTICS) },
  apic: {
    meaning: "APIC driver",
    default: "x2apic-physical",
    choices: ["x2apic-physical", "x2apic-cluster", "xapic"] satisfies ApicName[],
  },
  apicv: { meaning: "module parameter enable_apicv or avic", default: "on", choices: SWITCH },
  ipiv: { meaning: "module parameter enable_ipiv", default: "on", choices: SWITCH },
};

/** Runs an experiment, and asks each of its machines. Throws `RangeError` where they are not x86's. */
export function explainExperiment(experiment: Experiment, options: ExperimentOptions): ExplainedMachine[] {
  const { name: what, backends } = experiment.narrowed?.(options) ?? experiment;
  if (backends.length === 0) throw new RangeError(`Cannot explain ${what}: allowed are machines of x86`);
  const machines: ExplainedMachine[] = [];
  const done = (name: string, vm: AnyVm) => {
    if (vm instanceof Vm) machines.push(explained(name, vm));
  };
  experiment.run(options, { records: 0, done });
  return machines;
}

/** Boots a guest on a machine of one's own, and asks that. Throws `RangeError` for what cannot be. */
export function explainMachine(
  backend: string,
  given: Readonly<Record<string, number | string>>,
): ExplainedMachine {
  const vendor = BACKENDS.find((name) => name === backend);
  if (vendor === undefined) {
    throw new RangeError(`Cannot explain backend ${backend}: allowed are ${BACKENDS.join(", ")}`);
  }
  const { vcpus, acceleration, host, guest, apic, apicv, ipiv } = checkedOptions(
    "explain a machine",
    MACHINE_OPTIONS,
    given,
  );
  const wide = Number(vcpus) > 255;
  const vm = new Machine().createVm({
    backend: vendor,
    vcpus: Number(vcpus),
    acceleration: acceleration === "most" ? ACCELERATIONS[vendor].at(-1)! : acceleration as Acceleration,
    hostSemantics: host as HostSemantics,
    apicv: apicv === "on",
    ipiv: ipiv === "on",
    // The guest's choice, as far as the machine leaves it one.
    x2apic: apic !== "xapic",
    x2apicApi32BitIds: wide,
    x2apicApiDisableBroadcastQuirk: wide,
  });
  const kernel = new Kernel({
    cpus: Number(vcpus),
    apic: apic as ApicName,
    guestSemantics: guest as GuestSemantics,
    *main(cpu: X86Cpu): Guest {
      yield cpu.work(SETTLE);
    },
  });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  vm.machine.run();
  return explained(`${apic} guest of ${guest}`, vm);
}

/** Cycles after which every processor that has nothing to do sleeps. */
const SETTLE = 1_000_000;

function explained(name: string, vm: Vm): ExplainedMachine {
  const { backend, acceleration, semantics, vcpus } = vm;
  return {
    name,
    backend,
    acceleration,
    hostSemantics: semantics,
    vcpus: vcpus.length,
    explanations: vm.explain(),
  };
}

/** The machines as text; those that say the same are one paragraph. */
export function explainReport(machines: readonly ExplainedMachine[], columns: number): string {
  const paragraphs = new Map<string, string[]>();
  for (const machine of machines) {
    const { name, backend, acceleration, hostSemantics, vcpus, explanations } = machine;
    const body = [
      `${backend} with ${
        acceleration === "none" ? "no acceleration" : acceleration
      }, host of ${hostSemantics}`,
      explanationText(explanations, vcpus, columns),
    ].join("\n");
    paragraphs.set(body, [...paragraphs.get(body) ?? [], name]);
  }
  return [...paragraphs].map(([body, names]) => {
    const [title, ...lines] = body.split("\n");
    return [wrapped(`${names.join(", ")}: ${title}`, columns), ...lines].join("\n");
  }).join("\n\n");
}
