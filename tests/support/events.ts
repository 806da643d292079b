/**
 * What KVM's tracepoints saw of a guest, for tests: all of it, or what one instruction caused.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { high, u64 } from "../../abi/mod.ts";
import { formatRecord, TP, type Tracepoint, TRACEPOINTS, type Vm } from "../../host/mod.ts";
import { type Asking, tryingRig } from "./apic.ts";
import type { Rig, RigOptions } from "./guests.ts";

/** Records that a tracing rig keeps; a test that needs more has lost its thread. */
const RING = 1 << 15;

/** One event. */
export interface Seen {
  /** The tracepoint. */
  readonly event: Tracepoint;
  /** The vCPU's index, -1 for none. */
  readonly vcpu: number;
  /** When, in cycles. */
  readonly time: number;
  /** Five argument words. */
  readonly args: readonly number[];
}

/** A VM exit: its name as kvm_exit prints it, and the exit qualification or EXITINFO1. */
export type Exit = readonly [name: string, info1: bigint];

/** A rig whose #GP handler fixes up, and whose events are recorded. */
export function tracingRig(options: RigOptions = {}): Rig {
  return tryingRig({ ...options, vm: { trace: RING, ...options.vm } });
}

/** How many events were recorded so far: where those of the future begin. */
export function mark(vm: Vm): number {
  assertEquals(vm.tracer.lost, 0, "the trace ring is too small");
  let count = 0;
  for (const _ of vm.tracer.records()) count++;
  return count;
}

/** The events from a mark on, oldest first. */
export function events(vm: Vm, from: number = 0): Seen[] {
  assertEquals(vm.tracer.lost, 0, "the trace ring is too small");
  return [...vm.tracer.records()].slice(from).map(({ event, ...rest }) => ({
    ...rest,
    event: TRACEPOINTS[event].name as Tracepoint,
  }));
}

/** The events of one tracepoint. */
export function eventsOf(vm: Vm, event: Tracepoint, from: number = 0): Seen[] {
  return events(vm, from).filter((seen) => seen.event === event);
}

/** The events' names in order, those of some tracepoints alone where given. */
export function chain(vm: Vm, from: number = 0, only: readonly Tracepoint[] = []): Tracepoint[] {
  return events(vm, from).map(({ event }) => event).filter((event) =>
    only.length === 0 || only.includes(event)
  );
}

/** The events as text, without who and when. */
export function lines(vm: Vm, from: number = 0): string[] {
  const exitName = (reason: number) => vm.bootstrap.backend.exitName(reason);
  return [...vm.tracer.records()].slice(from).map((record) =>
    formatRecord(record, exitName).replace(/^\s*\S+\s+\S+: /, "")
  );
}

/** The VM exits from a mark on. */
export function exits(vm: Vm, from: number = 0): Exit[] {
  return eventsOf(vm, "kvm_exit", from).map(({ args: [reason, , low, up] }) => [
    vm.bootstrap.backend.exitName(reason),
    u64(low, up),
  ]);
}

/** Executes an instruction; answers with the VM exits that it caused. It may not fault for good. */
export function* exitsOf(vm: Vm, op: number): Asking<Exit[]> {
  const from = mark(vm);
  yield op;
  return exits(vm, from);
}

/** The halves of a number that a 64-bit argument is recorded as. */
export function halves(value: number): [low: number, high: number] {
  return [value >>> 0, high(value)];
}

/** How often an event happened in a virtual machine. */
export function count(vm: Vm, event: Tracepoint): number {
  return vm.tracer.total(TP[event]);
}
