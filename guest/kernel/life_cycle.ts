/**
 * The kernel's ways down: a processor goes off, the machine sleeps, restarts or crashes. Each runs the paravirtual
 * drivers' hook where the kernel runs it.
 *
 * @module
 */

import { APIC_SPIV, type Guest, type X86Cpu } from "../../abi/mod.ts";
import { withInterruptsOff } from "../apic/driver.ts";
import type { Kernel } from "./kernel.ts";
import { data } from "./memory_map.ts";
import { flushCallFunctionQueue, smpCallFunctionMany } from "./smp.ts";
import { SPURIOUS_APIC_VECTOR } from "./vectors.ts";

/**
 * Takes this processor off line: it disables what it shares with the host and halts for good, until another starts it
 * again with INIT. To be run by a processor's own program.
 */
export function* cpuDown(cpu: X86Cpu, kernel: Kernel): Guest {
  yield cpu.cli();
  yield cpu.load32(cpu.gsBase);
  const n = cpu.eax;
  yield* kernel.runHook(cpu, "offline");
  yield cpu.lockBtr(data("online"), n);
  if (kernel.behaviour.silencesDeadApics) yield* kernel.apic.write(cpu, APIC_SPIV, SPURIOUS_APIC_VECTOR);
  // Whoever called this processor before it went waits for it (smpcfd_dying_cpu).
  yield* flushCallFunctionQueue(cpu, kernel);
  yield cpu.lockBts(data("dead"), n);
  for (;;) yield cpu.hlt();
}

/** The boot processor's last and first steps around a sleep of the whole machine. The others are off line. */
export function* suspend(cpu: X86Cpu, kernel: Kernel): Guest {
  yield* withInterruptsOff(cpu, kernel.runHook(cpu, "suspend"));
}

/** After {@linkcode suspend}. */
export function* resume(cpu: X86Cpu, kernel: Kernel): Guest {
  yield* withInterruptsOff(cpu, kernel.runHook(cpu, "resume"));
}

/** A crash: this processor alone disables its areas. Interrupts stay off; what comes next is another kernel's. */
export function* crash(cpu: X86Cpu, kernel: Kernel): Guest {
  yield cpu.cli();
  yield* kernel.runHook(cpu, "crash");
}

/**
 * Every processor disables its areas, until v5.13 the caller last: what happens before a restart, or before another
 * kernel is started in this memory. `func` is the address that {@linkcode linkReboot} gave.
 */
export function* reboot(cpu: X86Cpu, kernel: Kernel, func: number): Guest {
  // What decides about single calls has the caller run its part before it waits (smp_call_function_many_cond).
  const runLocal = kernel.behaviour.singleCallWhen === "one-ipi";
  yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0, runLocal });
  if (!runLocal) yield* withInterruptsOff(cpu, kernel.runHook(cpu, "reboot"));
}

/** Links what {@linkcode reboot} has other processors run. */
export function linkReboot(kernel: Kernel): number {
  return kernel.smpFunction((cpu) => kernel.runHook(cpu, "reboot"), "kvm_pv_guest_cpu_reboot");
}
