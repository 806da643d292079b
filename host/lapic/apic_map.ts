/**
 * The optimized APIC map: from destination to local APICs without asking each. It is rebuilt when an ID, a logical
 * destination or an enable bit changes, and it is absent, or without its logical half, where IDs are ambiguous.
 *
 * @module
 */

import { APIC_DFR, APIC_DFR_FLAT, APIC_LDR, lowestBit } from "../../abi/mod.ts";
import { setApicvInhibit } from "../kvm/apicv.ts";
import type { Vm } from "../kvm/vm.ts";
import type { Lapic } from "./lapic.ts";

/** How logical destinations are looked up. */
export enum LogicalMode {
  /** No software-enabled APIC has a logical ID. */
  SoftwareDisabled,
  /** xAPIC, flat: eight slots. */
  XapicFlat,
  /** xAPIC, cluster: sixteen clusters of four. */
  XapicCluster,
  /** x2APIC: groups of sixteen IDs. */
  X2apic,
  /** APICs disagree: every one must be asked. */
  Disabled,
}

/** A slot of the map. */
export type MapSlot = Lapic | undefined;

/** A built map. */
export class ApicMap {
  /** The highest ID that has a slot. */
  declare readonly maxApicId: number;
  /** Slots by physical ID. */
  declare readonly phys: MapSlot[];
  /** How logical destinations are looked up. */
  logicalMode: LogicalMode = LogicalMode.SoftwareDisabled;
  /** Flat slots by bit. */
  readonly flat: MapSlot[] = new Array(8).fill(undefined);
  /** Cluster slots: four for each of sixteen clusters. */
  readonly cluster: MapSlot[] = new Array(64).fill(undefined);

  /** An empty map. */
  constructor(maxApicId: number) {
    this.maxApicId = maxApicId;
    this.phys = new Array(maxApicId + 1).fill(undefined);
  }
}

/** The slots that a logical destination selects. */
export class LogicalGroup {
  /** Where the slots are. */
  slots: readonly MapSlot[] = [];
  /** The slot of bit 0. */
  first = 0;
  /** Which of sixteen slots. */
  mask = 0;

  /** Looks a destination up. false where the map cannot say. */
  find(map: ApicMap, destination: number): boolean {
    this.first = 0;
    this.mask = 0;
    switch (map.logicalMode) {
      case LogicalMode.SoftwareDisabled:
        this.slots = map.flat;
        return true;
      case LogicalMode.XapicFlat:
        this.slots = map.flat;
        this.mask = destination & 0xff;
        return true;
      case LogicalMode.XapicCluster:
        this.slots = map.cluster;
        this.first = 4 * ((destination >>> 4) & 0xf);
        this.mask = destination & 0xf;
        return true;
      case LogicalMode.X2apic: {
        const first = 16 * (destination >>> 16);
        if (first > map.maxApicId) return true;
        const size = Math.min(map.maxApicId - first + 1, 16);
        this.slots = map.phys;
        this.first = first;
        this.mask = destination & (0xffff >>> (16 - size));
        return true;
      }
      case LogicalMode.Disabled:
        return false;
    }
  }
}

/** The state of a virtual machine's map. */
export enum MapState {
  /** It is current. */
  Clean,
  /** Somebody rebuilds it, and nothing has changed since. */
  Updating,
  /** Something has changed. */
  Dirty,
}

/**
 * Rebuilds the map. It reads state that other vCPUs change at the same time, so each such access is a step of its
 * own: a change that comes in between leaves the map dirty, and whoever made it rebuilds it again.
 */
export function* recalculateApicMap(vm: Vm): Generator<void, void, void> {
  if (vm.apicMapState === MapState.Clean) return;
  yield* vm.apicMapLock.lock();
  try {
    yield* rebuild(vm);
  } finally {
    vm.apicMapLock.unlock();
  }
}

function* rebuild(vm: Vm): Generator<void, void, void> {
  let maxId = 255; // Room for every xAPIC ID.
  for (;;) {
    if (vm.apicMapState === MapState.Clean) return;
    vm.apicMapState = MapState.Updating;
    yield;
    for (const vcpu of vm.vcpus) {
      if (vcpu.lapic.hardwareEnabled) maxId = Math.max(maxId, vcpu.lapic.x2apicId);
    }
    const map = new ApicMap(maxId);
    yield;
    const outcome = fill(map, vm);
    if (outcome === "grown") continue;
    yield;
    vm.apicMap = outcome === "aliased" ? undefined : map;
    if (vm.apicMapState === MapState.Updating) vm.apicMapState = MapState.Clean;
    inhibitAcceleration(vm);
    vm.requestScanIoapic();
    return;
  }
}

/**
 * Hardware finds targets by the same IDs: where they are ambiguous it must not look (kvm_recalculate_apic_map). KVM's
 * tables say whose ID is the vCPU's own number.
 */
function inhibitAcceleration(vm: Vm): void {
  const { apicMap } = vm;
  setApicvInhibit(vm, "PHYSICAL_ID_ALIASED", apicMap === undefined);
  setApicvInhibit(
    vm,
    "LOGICAL_ID_ALIASED",
    apicMap?.logicalMode === LogicalMode.Disabled || apicMap === undefined,
  );
  setApicvInhibit(vm, "APIC_ID_MODIFIED", vm.vcpus.some(({ lapic }) => xapicIdModified(lapic)));
}

function xapicIdModified(lapic: Lapic): boolean {
  return lapic.hardwareEnabled && !lapic.x2apicMode && lapic.xapicId !== (lapic.x2apicId & 0xff);
}

function fill(map: ApicMap, vm: Vm): "filled" | "aliased" | "grown" {
  for (const vcpu of vm.vcpus) {
    const { lapic } = vcpu;
    if (!lapic.hardwareEnabled) continue;
    // A vCPU that enabled its APIC after the room was measured (lapic.c returns -E2BIG and starts over).
    if (lapic.x2apicId > map.maxApicId) {
      if (!vm.quirk("apic-map-stale-size")) return "grown";
      vm.hostFailure(
        `the APIC map has room for IDs up to ${map.maxApicId}, and KVM writes slot ${lapic.x2apicId}`,
      );
    }
    if (!placePhysical(map, lapic, vm.x2apicFormat)) return "aliased";
    placeLogical(map, lapic);
  }
  return "filled";
}

function placePhysical(map: ApicMap, lapic: Lapic, x2apicFormat: boolean): boolean {
  const { phys } = map;
  const { x2apicId, xapicId, x2apicMode } = lapic;
  if (x2apicFormat) {
    // With 32-bit IDs an x2APIC ID is always reachable, and aliased xAPIC IDs are ignored.
    if (x2apicMode || x2apicId > 0xff) phys[x2apicId] = lapic;
    if (!x2apicMode && phys[xapicId] === undefined) phys[xapicId] = lapic;
    return true;
  }
  const id = x2apicMode ? x2apicId : xapicId;
  if (phys[id] !== undefined) return false;
  phys[id] = lapic;
  return true;
}

function placeLogical(map: ApicMap, lapic: Lapic): void {
  if (map.logicalMode === LogicalMode.Disabled || !lapic.softwareEnabled) return;
  const ldr = lapic.get(APIC_LDR);
  if (ldr === 0) return;
  const mode: LogicalMode = lapic.x2apicMode
    ? LogicalMode.X2apic
    : lapic.get(APIC_DFR) === APIC_DFR_FLAT
    ? LogicalMode.XapicFlat
    : LogicalMode.XapicCluster;
  if (map.logicalMode === LogicalMode.SoftwareDisabled) {
    map.logicalMode = mode;
  } else if (map.logicalMode !== mode) {
    map.logicalMode = LogicalMode.Disabled;
    return;
  }
  if (mode === LogicalMode.X2apic) return; // Its LDR follows from its ID, and so do its slots.
  const group = new LogicalGroup();
  group.find(map, ldr >>> 24);
  if (group.mask === 0) return;
  const bit = lowestBit(group.mask);
  const slots = group.slots as MapSlot[];
  if ((group.mask & (group.mask - 1)) !== 0 || slots[group.first + bit] !== undefined) {
    map.logicalMode = LogicalMode.Disabled;
  } else {
    slots[group.first + bit] = lapic;
  }
}
