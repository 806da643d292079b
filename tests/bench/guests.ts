/**
 * The guests that are measured: as little of a kernel as an IPI needs, so that the host's cost is what shows. They run
 * in 64-bit mode, with an IDT in memory and the APICs in x2APIC mode.
 *
 * @module
 */

import {
  APIC_DEST_ALLBUT,
  APIC_DEST_LOGICAL,
  APIC_DM_INIT,
  APIC_DM_STARTUP,
  APIC_INT_ASSERT,
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  EFER_LME,
  GATE_INTERRUPT,
  type Guest,
  type GuestFunction,
  type Gva,
  HYPERCALLS,
  IA32_APICBASE,
  IA32_EFER,
  KERNEL_CS,
  Text,
  X2APIC_EOI,
  X2APIC_ICR,
  X2APIC_MSR_BASE,
  type X86Cpu,
} from "../../abi/mod.ts";
import { type Acceleration, type BackendName, Machine, type Vm, type VmOptions } from "../../host/mod.ts";
import { Stopwatch } from "./stopwatch.ts";

/** Where the guests keep things. */
const AP_START = 0x8000 as Gva;
const HANDLERS = 0x9000;
const HANDLER_SIZE = 0x1000;
const ONLINE = 0x2_0000;
const IDT_POINTER = 0x2_1000;
const IDT = 0x2_2000;

const VECTOR = 0x40;
const SPIV = X2APIC_MSR_BASE + 0xf;
const INIT = APIC_INT_ASSERT | APIC_DM_INIT;
const STARTUP = APIC_INT_ASSERT | APIC_DM_STARTUP;

/** How often each figure is measured. */
const ROUNDS = 1_000;
/** About how many operations that takes each time. */
const OPERATIONS = 1_500;
/** Longer than any run. */
const LONG = 2 ** 40;

/** What a guest has done, by its own count. */
class Count {
  /** Operations that began. */
  begun = 0;
  /** Operations that ended. */
  ended = 0;
}

/** A hypercall that does nothing, from the yield to its result in RAX. */
export function vmcall(backend: BackendName): Stopwatch {
  const { nr } = HYPERCALLS.KVM_HC_VAPIC_POLL_IRQ;
  return measure({ backend, vcpus: 1 }, (count) =>
    function* main(cpu) {
      const svm = backend === "svm";
      yield* boot(cpu, 0);
      for (;;) {
        count.begun++;
        cpu.loadHypercall(nr);
        yield svm ? cpu.vmmcall() : cpu.vmcall();
        if (cpu.eax !== 0) throw new Error(`KVM_HC_VAPIC_POLL_IRQ answered ${cpu.eax}`);
        count.ended++;
      }
    });
}

/** An IPI, from being sent to its EOI: two vCPUs that compute answer one another as soon as they have ended one. */
export function ipi(backend: BackendName, acceleration: Acceleration = "none"): Stopwatch {
  return measure({ backend, acceleration, vcpus: 2 }, (count) =>
    function* main(cpu) {
      yield* boot(cpu, 1);
      yield cpu.sti();
      count.begun++;
      yield cpu.wrmsr(X2APIC_ICR, APIC_INT_ASSERT | VECTOR, 1);
      for (;;) yield cpu.work(LONG);
    }, true);
}

/** One IPI to all others, by the shorthand. */
export function broadcast(backend: BackendName, vcpus: number): Stopwatch {
  const pause = pauseOf(vcpus);
  return measure({ backend, vcpus }, (count) =>
    function* main(cpu) {
      yield* boot(cpu, vcpus - 1);
      for (;;) {
        count.begun += vcpus - 1;
        yield cpu.wrmsr(X2APIC_ICR, APIC_DEST_ALLBUT | APIC_INT_ASSERT | VECTOR);
        yield cpu.work(pause);
      }
    });
}

/** One IPI to each cluster of sixteen, its sender left out. */
export function clusters(backend: BackendName, vcpus: number): Stopwatch {
  const pause = pauseOf(vcpus);
  return measure({ backend, vcpus }, (count) =>
    function* main(cpu) {
      yield* boot(cpu, vcpus - 1);
      for (;;) {
        count.begun += vcpus - 1;
        for (let cluster = 0; 16 * cluster < vcpus; cluster++) {
          const members = cluster === 0 ? 0xfffe : 0xffff;
          yield cpu.wrmsr(
            X2APIC_ICR,
            APIC_DEST_LOGICAL | APIC_INT_ASSERT | VECTOR,
            cluster * 0x1_0000 + members,
          );
        }
        yield cpu.work(pause);
      }
    });
}

/** Cycles in which all others have served what was sent to them. */
function pauseOf(vcpus: number): number {
  return 30_000 + 2_000 * vcpus;
}

/** Measures what a guest does for ever, in slices of simulated time: nothing but that is in the guest's own loop. */
function measure(
  options: VmOptions & { vcpus: number },
  program: (count: Count) => GuestFunction,
  answer = false,
): Stopwatch {
  const count = new Count();
  const { machine } = start(options, program(count), answer ? answering(count) : ending(count));
  let deadline = 0;
  const slice = (cycles: number): number => {
    const { ended } = count;
    deadline += cycles;
    machine.run(deadline);
    return count.ended - ended;
  };
  while (count.ended === 0) slice(1_000_000);
  const cycles = Math.ceil(OPERATIONS / slice(10_000_000) * 10_000_000);
  const watch = new Stopwatch();
  for (let round = 0; round < ROUNDS; round++) {
    watch.begin();
    watch.end(slice(cycles));
  }
  const lost = count.begun - count.ended;
  if (lost > options.vcpus) {
    throw new Error(`Cannot measure: ${lost} of ${count.begun} operations have not ended`);
  }
  return watch;
}

/** A handler that ends its interrupt. */
function ending(count: Count): GuestFunction[] {
  return [function* handler(cpu) {
    yield cpu.wrmsr(X2APIC_EOI, 0);
    count.ended++;
  }];
}

/** Two handlers that end theirs, and then send the other's vector to the other vCPU. */
function answering(count: Count): GuestFunction[] {
  const handler = (vector: number, vcpu: number): GuestFunction =>
    function* handler(cpu) {
      yield cpu.wrmsr(X2APIC_EOI, 0);
      count.ended++;
      count.begun++;
      yield cpu.wrmsr(X2APIC_ICR, APIC_INT_ASSERT | vector, vcpu);
    };
  return [handler(VECTOR + 1, 0), handler(VECTOR, 1)];
}

/** Starts `program` on the bootstrap processor of a new machine; the others compute, with interrupts enabled. */
function start(options: VmOptions, program: GuestFunction, handlers: readonly GuestFunction[]): Vm {
  const text = new Text();
  handlers.forEach((handler, i) => text.addAt(HANDLERS + i * HANDLER_SIZE as Gva, handler));
  text.addAt(AP_START, function* secondary(cpu) {
    yield cpu.movToCr4(CR4_PAE);
    yield cpu.wrmsr(IA32_EFER, EFER_LME);
    yield cpu.movToCr0(CR0_PG | CR0_PE);
    yield cpu.loadCs(KERNEL_CS);
    yield* setUp(cpu);
    yield cpu.xadd32(ONLINE, 1);
    yield cpu.sti();
    for (;;) yield cpu.work(LONG);
  });
  const entry = text.add(program);
  const vm = new Machine().createVm({ ...options, memory: 2 ** 21 });
  vm.load(text);
  vm.start(entry);
  return vm;
}

/** What every program begins with. */
function* boot(cpu: X86Cpu, others: number): Guest {
  yield* writeIdt(cpu);
  yield* setUp(cpu);
  if (others > 0) yield* startOthers(cpu, others);
}

function* writeIdt(cpu: X86Cpu): Guest {
  for (const i of [0, 1]) {
    const gate = IDT + 16 * (VECTOR + i);
    const handler = HANDLERS + i * HANDLER_SIZE;
    yield cpu.store32(gate, KERNEL_CS << 16 | handler & 0xffff);
    yield cpu.store32(gate + 4, handler & 0xffff_0000 | GATE_INTERRUPT << 8);
  }
  yield cpu.store16(IDT_POINTER, 16 * 256 - 1);
  yield cpu.store64(IDT_POINTER + 2, IDT);
}

function* setUp(cpu: X86Cpu): Guest {
  yield cpu.lidt(IDT_POINTER);
  yield cpu.rdmsr(IA32_APICBASE);
  yield cpu.wrmsr(IA32_APICBASE, cpu.eax | 0xc00, cpu.edx);
  yield cpu.wrmsr(SPIV, 0x1ff);
}

function* startOthers(cpu: X86Cpu, others: number): Guest {
  yield cpu.wrmsr(X2APIC_ICR, APIC_DEST_ALLBUT | INIT);
  yield cpu.wrmsr(X2APIC_ICR, APIC_DEST_ALLBUT | STARTUP | AP_START >>> 12);
  for (let online = 0; online < others; online = cpu.eax) {
    yield cpu.pauseWhile(ONLINE, online);
    yield cpu.load32(ONLINE);
  }
}
