/**
 * A descriptor follows its vCPU's thread (arch/x86/kvm/vmx/posted_intr.c): notifications go to the CPU that the vCPU is
 * on; while it sleeps they ask that CPU to wake it; while it waits for a CPU there are none.
 *
 *     on a CPU                        NV 0xf2, SN 0
 *     preempted, or sleeps with IF=0  NV 0xf2, SN 1: interrupts are posted, and nobody hears of them
 *     sleeps with IF=1                NV 0xf1, SN 0, and the vCPU is on its CPU's list of sleepers
 *
 * Only hardware needs that: KVM itself wakes whom it posts to. So a vCPU that goes off its CPU changes the descriptor
 * only where IPI virtualization may be in use (vmx_needs_pi_wakeup).
 *
 * @module
 */

import type { Steps } from "../core/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import type { Pcpu, Sleeper } from "../sched/mod.ts";
import { ndstOf } from "./ipi_virtualization.ts";
import { type PiDescriptor, POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR } from "./posted_descriptor.ts";

/** What a vCPU's descriptor is told when the thread comes and goes. */
export class PiWakeup implements Sleeper {
  readonly #vcpu: Vcpu;
  readonly #descriptor: PiDescriptor;
  /** The CPU that the thread is on, or was on last (vcpu->cpu). */
  #cpu: Pcpu | undefined = undefined;

  /** Follows a vCPU that has not run yet. */
  constructor(vcpu: Vcpu, descriptor: PiDescriptor) {
    this.#vcpu = vcpu;
    this.#descriptor = descriptor;
  }

  /** The thread is on a CPU (vmx_vcpu_pi_load). */
  *load(): Steps {
    const descriptor = this.#descriptor;
    const { machine, vm } = this.#vcpu;
    const pcpu = this.#vcpu.pcpu!;
    const slept = descriptor.nv === POSTED_INTR_WAKEUP_VECTOR;
    yield;
    if (!slept && this.#cpu === pcpu) {
      if (!descriptor.testAndClearSn()) return;
    } else {
      if (slept) {
        this.#cpu!.sleepers.delete(this);
        yield;
      }
      yield* descriptor.update({ sn: false, nv: POSTED_INTR_VECTOR, ndst: ndstOf(machine, pcpu) });
      this.#cpu = pcpu;
    }
    if (vm.quirk("preempted-post-unnoticed")) return;
    yield;
    // What hardware posted while nobody was to hear of it: the synchronization before the entry looks at ON alone.
    if (yield* descriptor.isEmpty()) return;
    yield;
    descriptor.testAndSetOn();
  }

  /** The thread is about to leave its CPU (vmx_vcpu_pi_put). */
  *put(): Steps {
    const { blocked, backend } = this.#vcpu;
    if (blocked && backend.interruptAllowed()) yield* this.#enableWakeup();
    else this.#descriptor.setSn();
  }

  /** Interrupts that are posted from now on are to wake the vCPU; those that were already do so now. */
  *#enableWakeup(): Steps {
    const { vm, engine, cost } = this.#vcpu;
    const pcpu = this.#cpu!;
    pcpu.sleepers.add(this);
    yield;
    if (this.#descriptor.sn) vm.hostFailure("WARN: a vCPU that blocks suppresses notifications");
    const { on } = yield* this.#descriptor.update({ nv: POSTED_INTR_WAKEUP_VECTOR });
    if (!on) return;
    yield;
    const running = engine.running!;
    running.time += cost.kick;
    pcpu.wakeup(running.time + cost.ipiLatency);
  }

  /** The wake-up interrupt has come: it is this vCPU that is to wake if its descriptor says so (pi_wakeup_handler). */
  wakeIfPosted(): void {
    if (this.#descriptor.on && this.#vcpu.blocked) this.#vcpu.wakeUp();
  }
}
