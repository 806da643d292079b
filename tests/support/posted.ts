/**
 * What tests of posted interrupts share: a vCPU's descriptor as text, vCPUs that stand in each state that a sender may
 * find, and an invariant that is looked at after every step of an explored run.
 *
 * @module
 */

import { AssertionError } from "@std/assert";
import { FLAG_IF, RFLAGS } from "../../abi/mod.ts";
import { MpState, type Pcpu, type Steps, straight, type Vcpu, VcpuMode, type Vm } from "../../host/mod.ts";
import type { PiDescriptor, Vmx } from "../../host/vmx/mod.ts";

/** The VMX module's part of a vCPU. */
export function vmx(vcpu: Vcpu): Vmx {
  return vcpu.backend as Vmx;
}

/** A vCPU's descriptor. */
export function descriptor(vcpu: Vcpu): PiDescriptor {
  return vmx(vcpu).posted.descriptor;
}

/** The vectors in a descriptor's PIR, ascending. */
export function pir(vcpu: Vcpu): number[] {
  const all = descriptor(vcpu);
  return Array.from({ length: 256 }, (_, vector) => vector).filter((vector) => all.posted(vector));
}

/** A descriptor in a line: `41 51 ON nv=f2 ndst=3`. */
export function shown(vcpu: Vcpu): string {
  const { on, sn, nv, ndst } = descriptor(vcpu);
  const flags = [...on ? ["ON"] : [], ...sn ? ["SN"] : []];
  return [
    ...pir(vcpu).map((vector) => vector.toString(16)),
    ...flags,
    `nv=${nv.toString(16)}`,
    `ndst=${ndst}`,
  ].join(
    " ",
  );
}

// States of a target.

/** Where a target may be when something is posted to it. */
export const STATES = [
  "never ran",
  "runs in guest mode",
  "runs in the host",
  "is preempted",
  "polls",
  "sleeps with IF=1",
  "sleeps with IF=0",
] as const;
/** One of them. */
export type State = (typeof STATES)[number];

/** Puts a vCPU of a virtual machine that stands still into a state, the way KVM would get it there; answers with its CPU. */
export function put(vcpu: Vcpu, state: State): Pcpu {
  const { scheduler, engine } = vcpu.vm;
  vcpu.mpState = MpState.Runnable;
  if (state === "never ran") return scheduler.pcpus[vcpu.index];
  const sender = engine.running;
  engine.running = vcpu;
  scheduler.ready(vcpu, vcpu.time);
  engine.park(vcpu); // It stands still.
  const pcpu = vcpu.pcpu!;
  straight(vcpu.backend.load()!);
  vcpu.processor.regs[RFLAGS] |= FLAG_IF;
  if (state === "runs in guest mode") vcpu.mode = VcpuMode.InGuest;
  if (state === "is preempted") leave(vcpu);
  if (state === "polls") vcpu.blocked = vcpu.polling = true;
  if (state.startsWith("sleeps")) {
    if (state.endsWith("IF=0")) vcpu.processor.regs[RFLAGS] &= ~FLAG_IF;
    vcpu.blocked = true;
    leave(vcpu);
    vcpu.asleep = true;
  }
  engine.running = sender;
  return pcpu;
}

function leave(vcpu: Vcpu): void {
  const steps = vcpu.backend.put();
  if (steps !== undefined) straight(steps);
  vcpu.vm.scheduler.release(vcpu);
}

/** Whether a CPU's wake-up interrupt is on its way. */
export function wakeupUnderWay(vm: Vm, pcpu: Pcpu): boolean {
  return vm.engine.threads.some(({ name, queued }) => name === `pcpu ${pcpu.id} wake-up` && queued);
}

// Invariants of explored runs.

/**
 * Looks after every step of every vCPU whether somebody knows of what is posted: while notifications are not suppressed
 * and nobody is in the middle of anything, what is in PIR has set ON. Answers with what it saw: how often it could look,
 * and how often not.
 */
export function watchDescriptors(vm: Vm): { looked: number; busy: number } {
  const seen = { looked: 0, busy: 0 };
  let underWay = 0;
  const tracked = <S extends Steps<unknown>>(steps: S): S => {
    underWay++;
    return (function* () {
      const result = yield* steps;
      underWay--;
      return result;
    })() as unknown as S;
  };
  const perform = vm.perform.bind(vm);
  vm.perform = (steps) => perform(tracked(steps));
  for (const vcpu of vm.vcpus) {
    const { processor, backend } = vcpu;
    const performs = processor.perform.bind(processor);
    processor.perform = (steps) => performs(tracked(steps));
    for (const name of ["load", "put", "syncPirToIrr"] as const) {
      const steps = backend[name].bind(backend) as () => Steps<never> | undefined;
      backend[name] = () => {
        const taken = steps();
        return taken === undefined ? undefined : tracked(taken);
      };
    }
    const step = vcpu.step.bind(vcpu);
    vcpu.step = () => {
      step();
      if (underWay > 0) {
        seen.busy++;
        return;
      }
      seen.looked++;
      for (const other of vm.vcpus) {
        const its = descriptor(other);
        if (!its.on && !its.sn && !straight(its.isEmpty())) {
          throw new AssertionError(`vCPU ${other.vcpuId} has ${shown(other)}, and nobody knows`);
        }
      }
    };
  }
  return seen;
}
