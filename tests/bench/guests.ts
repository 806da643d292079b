/**
 * The guests that are measured: as little of a kernel as an IPI needs, so that the host's cost is what shows. They run
 * in 64-bit mode, with an IDT in memory and the APICs in x2APIC mode.
 *
 * @module
 */

import {
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  EFER_LME,
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
import { type Acceleration, type BackendName, Machine, type VmOptions } from "../../host/mod.ts";
import { Stopwatch } from "./stopwatch.ts";

/** Where the guests keep things. */
const AP_START = 0x8000 as Gva;
const HANDLER = 0x9000 as Gva;
const ONLINE = 0x2_0000;
const IDT_POINTER = 0x2_1000;
const IDT = 0x2_2000;

const VECTOR = 0x40;
const SPIV = X2APIC_MSR_BASE + 0xf;
/** ICR: assert; and with that INIT, a start-up IPI, all but self, logical destination. */
const ASSERT = 1 << 14;
const INIT = ASSERT | 5 << 8;
const STARTUP = ASSERT | 6 << 8;
const ALL_BUT_SELF = 3 << 18;
const LOGICAL = 1 << 11;

const ROUNDS = 150;
const OPERATIONS = 5_000;

/** A hypercall that does nothing, from the yield to its result in RAX. */
export function vmcall(backend: BackendName): Stopwatch {
  const watch = new Stopwatch();
  run({ backend }, function* main(cpu) {
    const svm = backend === "svm";
    const { nr } = HYPERCALLS.KVM_HC_VAPIC_POLL_IRQ;
    yield* boot(cpu, 0);
    for (let round = 0; round < ROUNDS; round++) {
      watch.begin();
      for (let i = 0; i < OPERATIONS; i++) {
        cpu.loadHypercall(nr);
        yield svm ? cpu.vmmcall() : cpu.vmcall();
        if (cpu.eax !== 0) throw new Error(`KVM_HC_VAPIC_POLL_IRQ answered ${cpu.eax}`);
      }
      watch.end(OPERATIONS);
    }
  });
  return watch;
}

/** An IPI to another vCPU that computes, and is back at it before the next one comes. */
export function ipi(backend: BackendName, acceleration: Acceleration = "none"): Stopwatch {
  return interrupts({ backend, acceleration, vcpus: 2 }, (plan) =>
    function* main(cpu) {
      yield* boot(cpu, plan.others);
      for (let round = 0; round < ROUNDS; round++) {
        plan.begin();
        for (let i = 0; i < plan.sends; i++) {
          yield cpu.wrmsr(X2APIC_ICR, ASSERT | VECTOR, 1);
          yield cpu.work(plan.pause);
        }
        plan.end();
      }
    });
}

/** One IPI to all others, by the shorthand. */
export function broadcast(backend: BackendName, vcpus: number): Stopwatch {
  return interrupts({ backend, vcpus }, (plan) =>
    function* main(cpu) {
      yield* boot(cpu, plan.others);
      for (let round = 0; round < ROUNDS; round++) {
        plan.begin();
        for (let i = 0; i < plan.sends; i++) {
          yield cpu.wrmsr(X2APIC_ICR, ALL_BUT_SELF | ASSERT | VECTOR);
          yield cpu.work(plan.pause);
        }
        plan.end();
      }
    });
}

/** One IPI to each cluster of sixteen, its sender left out. */
export function clusters(backend: BackendName, vcpus: number): Stopwatch {
  return interrupts({ backend, vcpus }, (plan) =>
    function* main(cpu) {
      yield* boot(cpu, plan.others);
      for (let round = 0; round < ROUNDS; round++) {
        plan.begin();
        for (let i = 0; i < plan.sends; i++) {
          for (let cluster = 0; 16 * cluster < vcpus; cluster++) {
            const members = cluster === 0 ? 0xfffe : 0xffff;
            yield cpu.wrmsr(X2APIC_ICR, LOGICAL | ASSERT | VECTOR, cluster * 0x1_0000 + members);
          }
          yield cpu.work(plan.pause);
        }
        plan.end();
      }
    });
}

/** How interrupts are measured: `sends` times to all others, then `pause` cycles in which they are served. */
class Plan {
  readonly watch = new Stopwatch();
  readonly others: number;
  readonly sends: number;
  readonly pause: number;
  /** Interrupts whose handler has done its EOI. */
  ended = 0;

  constructor(others: number) {
    this.others = others;
    this.sends = Math.max(2, Math.ceil(OPERATIONS / 5 / others));
    this.pause = 30_000 + 2_000 * others;
  }

  begin(): void {
    this.watch.begin();
  }

  end(): void {
    this.watch.end(this.sends * this.others);
  }
}

/** Measures interrupts, each of which must have been ended: otherwise nothing was measured. */
function interrupts(
  options: VmOptions & { vcpus: number },
  program: (plan: Plan) => GuestFunction,
): Stopwatch {
  const plan = new Plan(options.vcpus - 1);
  run(options, program(plan), function* handler(cpu) {
    yield cpu.wrmsr(X2APIC_EOI, 0);
    plan.ended++;
  });
  const sent = ROUNDS * plan.sends * plan.others;
  if (plan.ended !== sent) throw new Error(`Cannot measure IPIs: ${sent} were sent, and ${plan.ended} ended`);
  return plan.watch;
}

/** Runs `program` on the bootstrap processor of a new machine; the others compute, with interrupts enabled. */
function run(options: VmOptions, program: GuestFunction, handler?: GuestFunction): void {
  const text = new Text();
  if (handler !== undefined) text.addAt(HANDLER, handler);
  text.addAt(AP_START, function* secondary(cpu) {
    yield cpu.movToCr4(CR4_PAE);
    yield cpu.wrmsr(IA32_EFER, EFER_LME);
    yield cpu.movToCr0(CR0_PG | CR0_PE);
    yield cpu.loadCs(KERNEL_CS);
    yield* setUp(cpu);
    yield cpu.xadd32(ONLINE, 1);
    yield cpu.sti();
    for (;;) yield cpu.work(2 ** 40);
  });
  const entry = text.add(program);
  const vm = new Machine().createVm({ ...options, memory: 2 ** 21 });
  vm.load(text);
  vm.start(entry);
  const { processor } = vm.bootstrap;
  while (!processor.finished) vm.machine.run(vm.machine.engine.now + 1e9);
}

/** What every program begins with. */
function* boot(cpu: X86Cpu, others: number): Guest {
  yield* writeIdt(cpu);
  yield* setUp(cpu);
  if (others > 0) yield* startOthers(cpu, others);
}

function* writeIdt(cpu: X86Cpu): Guest {
  const gate = IDT + 16 * VECTOR;
  yield cpu.store32(gate, KERNEL_CS << 16 | HANDLER & 0xffff);
  yield cpu.store32(gate + 4, HANDLER & 0xffff_0000 | 0x8e00);
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
  yield cpu.wrmsr(X2APIC_ICR, ALL_BUT_SELF | INIT);
  yield cpu.wrmsr(X2APIC_ICR, ALL_BUT_SELF | STARTUP | AP_START >>> 12);
  for (let online = 0; online < others; online = cpu.eax) {
    yield cpu.pauseWhile(ONLINE, online);
    yield cpu.load32(ONLINE);
  }
}
