/**
 * From reset to a running kernel: the boot processor sets everything up and starts the others with INIT and start-up
 * IPIs; each of those comes through the trampoline, from real mode.
 *
 * @module
 */

import {
  APIC_DM_INIT,
  APIC_DM_STARTUP,
  APIC_INT_ASSERT,
  APIC_INT_LEVELTRIG,
  APIC_SPIV,
  APIC_SPIV_APIC_ENABLED,
  APIC_TASKPRI,
  CR0_ET,
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  EFER_LME,
  type Guest,
  IA32_EFER,
  IA32_GS_BASE,
  KERNEL32_CS,
  KERNEL_CS,
  type X86Cpu,
} from "../../abi/mod.ts";
import { equalMasks, type GuestValue, loadMask, weight } from "./cpumask.ts";
import { describeIdt, loadIdt, setGate } from "./idt.ts";
import type { Kernel } from "./kernel.ts";
import { data, percpu, TRAMPOLINE } from "./memory_map.ts";
import { SPURIOUS_APIC_VECTOR } from "./vectors.ts";

/** EBX of CPUID leaf 0 on AMD's processors: "Auth" (APM 3, appendix E.3.1). */
const AMD_VENDOR_EBX = 0x6874_7541;
/** Any number that memory does not hold by itself. */
const MARK = 0x6b65_726e;
/** What CPUID leaf 0x16 says in EAX: the base frequency in MHz, which is cycles a microsecond (SDM 2A, CPUID). */
const FREQUENCY_LEAF = 0x16;

/** The boot processor's way. */
export function* startKernel(cpu: X86Cpu, kernel: Kernel): Guest {
  yield cpu.cli();
  kernel.unpatch();
  yield* checkMachine(cpu, kernel);
  yield* fillMemory(cpu, kernel);
  if (kernel.hasMm) yield* kernel.mm.boot(cpu);
  if (kernel.hasSched) yield* kernel.sched.boot(cpu);
  yield* describeIdt(cpu, kernel.bits);
  for (let vector = 0; vector < 256; vector++) {
    const handler = kernel.handlerOf(vector);
    if (handler !== undefined) yield* setGate(cpu, vector, handler, kernel.bits);
  }
  yield cpu.cpuid(0);
  kernel.hypercallInstruction = cpu.ebx === AMD_VENDOR_EBX ? "vmmcall" : "vmcall";
  yield* setUpProcessor(cpu, kernel, 0);
  yield* kernel.probeDrivers(cpu);
  yield* setUpApic(cpu, kernel);
  yield* comeOnline(cpu, kernel, 0);
  yield* startOthers(cpu, kernel);
  yield cpu.sti();
  yield* kernel.main(cpu, kernel);
}

/** Whether the machine is the one that the kernel was built for, as far as it would fail without a word. */
function* checkMachine(cpu: X86Cpu, kernel: Kernel): Guest {
  yield cpu.cpuid(0xb);
  if (cpu.edx !== kernel.apicIds[0]) {
    throw new RangeError(`Cannot boot on APIC ID ${cpu.edx}: the table begins with ${kernel.apicIds[0]}`);
  }
  const last = kernel.memory - 4;
  yield cpu.store32(last, MARK);
  yield cpu.load32(last);
  if (cpu.eax !== MARK) throw new RangeError(`Cannot boot: it takes ${kernel.memory} bytes of memory`);
  yield cpu.store32(last, 0);
}

/** What firmware's table says of the processors. */
function* fillMemory(cpu: X86Cpu, kernel: Kernel): Guest {
  for (const [n, apicId] of kernel.apicIds.entries()) {
    yield cpu.store32(percpu(n, "cpu"), n);
    yield cpu.store32(percpu(n, "apicId"), apicId);
    yield cpu.store32(data("apicIds") + 4 * n, apicId);
    yield cpu.bts(data("present"), n);
  }
}

/** What a processor needs before it can take an interrupt. */
function* setUpProcessor(cpu: X86Cpu, kernel: Kernel, n: number): Guest {
  yield cpu.wrmsr(IA32_GS_BASE, percpu(n, "cpu"));
  yield* loadIdt(cpu);
  if (kernel.hasMm) yield* kernel.mm.bootProcessor(cpu, n);
  if (kernel.hasSched) yield* kernel.sched.bootProcessor(cpu, n);
}

/** setup_local_APIC: interrupts are let in, and the APIC is enabled. */
function* setUpApic(cpu: X86Cpu, kernel: Kernel): Guest {
  yield* kernel.apic.enable(cpu);
  yield* kernel.apic.write(cpu, APIC_TASKPRI, kernel.behaviour.taskPriority);
  yield* kernel.apic.write(cpu, APIC_SPIV, APIC_SPIV_APIC_ENABLED | SPURIOUS_APIC_VECTOR);
}

/** The drivers' turn, and then everybody may send this processor interrupts. */
function* comeOnline(cpu: X86Cpu, kernel: Kernel, n: number): Guest {
  if (kernel.hasSched) yield* kernel.sched.bootTimer(cpu, n);
  yield* kernel.runHook(cpu, "online");
  yield cpu.lockBts(data("bootedOnce"), n);
  yield cpu.lockBts(data("online"), n);
}

/** Starts every processor but the boot processor, one behind the other, and waits for all. */
function* startOthers(cpu: X86Cpu, kernel: Kernel): Guest {
  yield cpu.cpuid(FREQUENCY_LEAF);
  const microsecond = cpu.eax & 0xffff;
  for (let n = 1; n < kernel.cpus; n++) yield* wakeUp(cpu, kernel, n, microsecond);
  for (let n = 1; n < kernel.cpus; n++) yield* waitInMask(cpu, data("online"), n);
  yield* updateShorthand(cpu, kernel);
}

/** Starts a processor that went off line, and waits for it. Throws `RangeError` for one that is not there. */
export function* cpuUp(cpu: X86Cpu, kernel: Kernel, n: number): Guest {
  if (kernel.apicIds[n] === undefined) {
    throw new RangeError(`Cannot start processor ${n}: allowed are 0 to ${kernel.cpus - 1}`);
  }
  if (yield* kernel.online(cpu, n)) return;
  yield* waitInMask(cpu, data("dead"), n);
  yield cpu.lockBtr(data("dead"), n);
  yield cpu.cpuid(FREQUENCY_LEAF);
  yield* wakeUp(cpu, kernel, n, cpu.eax & 0xffff);
  yield* waitInMask(cpu, data("online"), n);
  yield* updateShorthand(cpu, kernel);
}

/** INIT, its end, and two start-up IPIs (wakeup_secondary_cpu_via_init). */
function* wakeUp(cpu: X86Cpu, kernel: Kernel, n: number, microsecond: number): Guest {
  const { apic } = kernel;
  const apicId = kernel.apicIds[n];
  yield* apic.writeIcr(cpu, APIC_INT_LEVELTRIG | APIC_INT_ASSERT | APIC_DM_INIT, apicId);
  yield* apic.writeIcr(cpu, APIC_INT_LEVELTRIG | APIC_DM_INIT, apicId);
  for (let times = 0; times < 2; times++) {
    yield* apic.writeIcr(cpu, APIC_DM_STARTUP | (TRAMPOLINE >>> 12), apicId);
    yield cpu.work(10 * microsecond);
  }
}

/** Waits until a processor is in a mask in memory. */
function* waitInMask(cpu: X86Cpu, mask: number, n: number): Guest {
  const word = mask + 4 * (n >>> 5);
  for (;;) {
    yield cpu.load32(word);
    if (((cpu.eax >>> (n & 31)) & 1) !== 0) return;
    yield cpu.pauseWhile(word, cpu.eax);
  }
}

/** Shorthands reach processors that were never booted as well: they are used only when there are none. */
function* updateShorthand(cpu: X86Cpu, kernel: Kernel): Guest {
  const present = yield* loadMask(cpu, data("present"), kernel.cpus);
  const booted = yield* loadMask(cpu, data("bootedOnce"), kernel.cpus);
  const online = yield* loadMask(cpu, data("online"), kernel.cpus);
  kernel.ipiShorthand = kernel.behaviour.ipiShorthand && equalMasks(present, booted) && weight(online) > 1;
}

/** Every other processor's way, from a start-up IPI on. */
export function* secondaryStart(cpu: X86Cpu, kernel: Kernel): Guest {
  yield cpu.cli();
  if (kernel.bits === 64) {
    yield cpu.movToCr4(CR4_PAE);
    if (kernel.hasMm) yield* kernel.mm.enterLongMode(cpu);
    else {
      yield cpu.wrmsr(IA32_EFER, EFER_LME);
      yield cpu.movToCr0(CR0_PE | CR0_ET | CR0_PG);
    }
    yield cpu.loadCs(KERNEL_CS);
  } else {
    yield cpu.movToCr0(CR0_PE | CR0_ET);
    yield cpu.loadCs(KERNEL32_CS);
  }
  const n = yield* whoAmI(cpu, kernel);
  yield* setUpProcessor(cpu, kernel, n);
  yield* setUpApic(cpu, kernel);
  yield* comeOnline(cpu, kernel, n);
  yield cpu.sti();
  yield* kernel.secondary(cpu, kernel);
  yield cpu.cli();
  for (;;) yield cpu.hlt();
}

/** A processor knows its APIC ID; firmware's table says which number that is. */
function* whoAmI(cpu: X86Cpu, kernel: Kernel): GuestValue<number> {
  yield cpu.cpuid(0xb);
  const apicId = cpu.edx;
  for (let n = 0; n < kernel.cpus; n++) {
    yield cpu.load32(data("apicIds") + 4 * n);
    if (cpu.eax === apicId) return n;
  }
  throw new RangeError(`Cannot start a processor: firmware's table has no APIC ID ${apicId}`);
}
