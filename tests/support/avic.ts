/**
 * What tests of AVIC share: a processor's AVIC and KVM's part of it, the tables as they stand in memory, and guests whose
 * other processors sleep, or spin.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { updateApicv } from "../../host/kvm/apicv.ts";
import { emulatedWrite } from "../../host/lapic/mod.ts";
import { FAR, type MachineOptions, straight, type Vcpu, type Vm, type VmOptions } from "../../host/mod.ts";
import { handleIncompleteIpi } from "../../host/svm/avic/exits.ts";
import { sendDirected, sendIpi } from "../../host/svm/avic/ipi.ts";
import type { Svm } from "../../host/svm/mod.ts";
import type { Exit } from "./events.ts";
import { type ApicMode, rebuildMap, setUp, still, vectors } from "./apic.ts";

/** A vCPU's SVM module. */
export function svm(vcpu: Vcpu): Svm {
  return vcpu.backend as Svm;
}

/** The words at an address of the host's memory. */
export function hostWords(vm: Vm, address: number): Uint32Array {
  return vm.machine.hostMemory.at(address);
}

/** An entry of the physical APIC ID table, taken apart as the manual has it (APM 2 15.29.4.2). */
export interface EntrySeen {
  /** Bit 63. */
  readonly valid: boolean;
  /** Bit 62. */
  readonly running: boolean;
  /** Bits 51:12. */
  readonly page: number;
  /** Bits 11:0. */
  readonly hostId: number;
}

/** An entry of the physical APIC ID table. */
export function physicalEntry(vm: Vm, id: number): EntrySeen {
  const table = hostWords(vm, svm(vm.bootstrap).vmcb.avicPhysicalTable);
  const entry = (BigInt(table[2 * id + 1]) << 32n) | BigInt(table[2 * id]);
  return {
    valid: (entry >> 63n & 1n) === 1n,
    running: (entry >> 62n & 1n) === 1n,
    page: Number(entry & 0x000f_ffff_ffff_f000n),
    hostId: Number(entry & 0xfffn),
  };
}

/** The valid entries of the logical APIC ID table: index and guest physical ID. */
export function logicalEntries(vm: Vm): [index: number, id: number][] {
  const table = hostWords(vm, svm(vm.bootstrap).vmcb.avicLogicalTable);
  return [...table].flatMap((entry, index): [number, number][] =>
    entry >>> 31 === 1 ? [[index, entry & 0xff]] : []
  );
}

/** Which vCPUs, by number, have a vector's request in their page. */
function requestedAt(vm: Vm, vector: number): number[] {
  return vm.vcpus.filter(({ lapic }) => vectors(lapic, 0x200).includes(vector)).map(({ vcpuId }) => vcpuId);
}

/** A virtual machine that stands still, whose vCPUs run or sleep, and send. */
export interface Scene {
  /** The mode of every APIC. */
  readonly mode: ApicMode;
  /** The vCPUs' numbers. */
  readonly ids: readonly number[];
  /** Which vCPUs, by place, sleep. The first one sends. */
  readonly asleep: readonly boolean[];
  /** Their logical xAPIC IDs, 0 for none. */
  readonly logicalIds?: readonly number[];
  /** The destination format of all; flat by default. */
  readonly dfr?: number;
}

/** What became of an IPI. */
export interface Sent {
  /** What the exit told; undefined where there was none. */
  readonly exit: { readonly id: number; readonly index: number } | undefined;
  /** Whose IRR hardware set, by number. */
  readonly byHardware: readonly number[];
  /** Whose IRR is set after KVM has done its part. */
  readonly requested: readonly number[];
  /** Who was woken. */
  readonly woken: readonly number[];
  /** The vCPUs whose doorbell rang. */
  readonly rung: readonly number[];
}

/** A virtual machine on the stage. */
export function stage(scene: Scene, options: VmOptions = {}, machine: MachineOptions = {}): Vm {
  const { mode, ids, asleep, logicalIds, dfr } = scene;
  const acceleration = mode === "xapic" ? "avic" : "x2avic";
  const vm = still(
    { backend: "svm", acceleration, vcpuIds: ids, trace: 256, ...options },
    { pcpus: ids.length, ...machine },
  );
  for (const [place, { lapic }] of vm.vcpus.entries()) {
    setUp(lapic, mode);
    if (mode === "x2apic") continue;
    if (dfr !== undefined) emulatedWrite(lapic, 0x0e0, dfr);
    emulatedWrite(lapic, 0x0d0, (logicalIds?.[place] ?? 0) << 24);
    svm(vm.vcpus[place]).avic?.logicalIds.restore();
  }
  rebuildMap(vm);
  for (const [place, vcpu] of vm.vcpus.entries()) {
    updateApicv(vcpu); // xAPIC IDs above 255 were not unique.
    vcpu.pcpu = vm.scheduler.pcpus[place];
    vcpu.pcpu.current = vcpu;
    straight(svm(vcpu).load() ?? nothing());
    if (asleep[place]) sleep(vcpu);
  }
  return vm;
}

/** The vCPU waits for an event, without a CPU. */
function sleep(vcpu: Vcpu): void {
  vcpu.blocked = true;
  straight(svm(vcpu).blocking() ?? nothing());
  vcpu.asleep = true;
  vcpu.lastPcpu = vcpu.pcpu;
  vcpu.pcpu!.current = undefined;
  vcpu.pcpu = undefined;
}

function* nothing(): Generator<void, void, void> {}

/** The ways in which hardware sends: a step an access, and what most IPIs take in timed runs. */
export type Way = "steps" | "directed";

/** The first vCPU writes its ICR, and KVM handles what that comes to. */
export function sendFrom(vm: Vm, low: number, high: number, way: Way = "steps"): Sent {
  const { bootstrap: sender, scheduler } = vm;
  const { hardware, vmcb } = svm(sender);
  const { processor, lapic } = sender;
  const vector = low & 0xff;
  processor.guestMode = true;
  hardware.avic.loadPointers();
  hardware.avic.evaluate(processor);
  lapic.set(0x310, high);
  lapic.set(0x300, low);
  if (way === "steps" || !sendDirected(hardware.avic, processor, low, high)) {
    straight(sendIpi(hardware.avic, processor, low, high));
  }
  const byHardware = requestedAt(vm, vector);
  const rung = scheduler.pcpus.flatMap(({ notifiedAt, current }) =>
    notifiedAt < FAR && current !== undefined ? [current.vcpuId as number] : []
  );
  let exit: Sent["exit"];
  if (!processor.guestMode) {
    const info2 = BigInt(processor.exitInfo2);
    exit = { id: Number(info2 >> 32n), index: Number(info2 & 0xfffn) };
    assertEquals([processor.exitReason, processor.exitInfo1, vmcb.incompleteIcrHigh], [0x401, low, high]);
    handleIncompleteIpi(sender, svm(sender));
  }
  const woken = vm.vcpus.filter((vcpu) => vcpu.woken).map(({ vcpuId }) => vcpuId as number);
  return { exit, byHardware, requested: requestedAt(vm, vector), woken, rung };
}

/** EXITINFO1 of an unaccelerated access, bit 32: a write. */
const UNACCELERATED_WRITE = 1n << 32n;

/** What exits at an access that AVIC does not carry out. */
export function unaccelerated(offset: number, write: boolean): Exit[] {
  return [["avic_unaccelerated_access", BigInt(offset) | (write ? UNACCELERATED_WRITE : 0n)]];
}
