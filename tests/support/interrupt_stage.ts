/**
 * Performs scripts (interrupt_scripts.ts): the vCPUs of a virtual machine take the steps in turn.
 *
 *     SEQ      the step whose turn it is
 *     HANDLED  handlers that have ended, or, of those that stay, begun; and processors that have started again
 *
 * @module
 */

import { encodeMsi, type Guest, IA32_APICBASE, type X86Cpu } from "../../abi/mod.ts";
import { IoEventFd, type MachineOptions, type Vm, type VmOptions } from "../../host/mod.ts";
import { type Asking, bringUp, enter, send, tryingRig, until, write } from "./apic.ts";
import { addApicvPort, allowApicv } from "./apicv.ts";
import { AP_START, DATA, type Rig } from "./guests.ts";
import {
  type Cast,
  type Foretold,
  LINES,
  meant,
  otherId,
  QUICK,
  STAYING,
  type Step,
  TIMER,
} from "./interrupt_scripts.ts";
import { route } from "./ioapic.ts";

const NMI = 2;
/** The lines' pins. */
const FIRST_PIN = 2;

const SEQ = DATA;
const HANDLED = DATA + 0x40;
const UP = DATA + 0x80;
const BEGIN = DATA + 0xc0;
/** Ports: a line goes up, a line's driver takes one thing off it, a message is sent. */
const RAISE = 0xa0;
const TAKE = 0xb0;
const MESSAGE = 0xc000;
const PAGE = 0xfee0_0000;
const ELSEWHERE = 0xfed0_0000;
/** Longer than any interrupt is on its way. */
const SETTLES = 50_000;

/** How a script is performed. */
export interface Stage {
  /** The machine. */
  readonly machine?: MachineOptions;
  /** The virtual machine. */
  readonly vm?: VmOptions;
  /** Is told of it before it runs. */
  readonly made?: (vm: Vm) => void;
}

/** What came of it. */
export interface Performed {
  /** The rig. */
  readonly rig: Rig;
  /** How it ended. */
  readonly end: string;
  /** What each vCPU did. */
  readonly logs: readonly (readonly string[])[];
}

/** Performs what was foretold. */
export function perform(
  cast: Cast,
  foretold: Foretold,
  { machine, vm: options, made }: Stage = {},
): Performed {
  const { mode, cpus, clusters } = cast;
  const { steps, handled } = foretold;
  const rig = tryingRig({
    machine: { limits: { steps: 2e6 }, ...machine },
    vm: { vcpus: cpus, ...options },
  });
  const { vm } = rig;
  const { explores } = vm.engine;
  made?.(vm);
  addDevices(vm);
  const logs: string[][] = vm.vcpus.map(() => []);
  const ids = vm.vcpus.map(({ index }) => index);
  const began = new Set<number>();
  /** By vCPU: of the handlers that stay, whether they have ended their interrupt; the latest last. */
  const ended: boolean[][] = vm.vcpus.map(() => []);
  const index = (cpu: X86Cpu) => vm.vcpus.findIndex(({ processor }) => processor.context === cpu);
  const logical = (mask: number) => mode === "xapic" && clusters ? 0x20 | mask : mask;
  const inHigh = (destination: number) => mode === "xapic" ? destination << 24 : destination;

  /** The vCPU takes its turns. Comes back where a handler that stays is to leave, and at the end. */
  function* play(cpu: X86Cpu, who: number): Asking<void> {
    for (;;) {
      yield cpu.load32(SEQ);
      const seq = cpu.eax;
      if (seq === steps.length) return;
      const step = steps[seq];
      if (step.cpu !== who) {
        yield cpu.pauseWhile(SEQ, seq);
      } else if (!began.has(seq)) {
        began.add(seq);
        if (step.do === "leave") return;
        if (step.do !== "halt") logs[who].push(step.do);
        yield* act(cpu, step, seq);
        if (!explores) yield cpu.work(SETTLES);
      } else {
        yield cpu.load32(HANDLED);
        const runs = cpu.eax;
        yield cpu.load32(SEQ);
        if (cpu.eax !== seq) continue; // A handler that stayed has gone on.
        if (runs !== handled[seq]) yield cpu.pauseWhile(HANDLED, runs);
        else yield cpu.store32(SEQ, seq + 1);
      }
    }
  }

  function* act(cpu: X86Cpu, step: Step, seq: number): Asking<void> {
    switch (step.do) {
      case "ipi":
        return yield* sendIpi(cpu, step);
      case "msi":
        return yield cpu.out32(MESSAGE, (ids[step.to] << 8) | step.vector);
      case "nmi":
        return yield* send(cpu, mode, { low: 0x4400, high: inHigh(ids[step.to]) });
      case "restart":
        yield* send(cpu, mode, { low: 0x4500, high: inHigh(ids[step.to]) });
        return yield* send(cpu, mode, { low: 0x4600 | (AP_START >>> 12), high: inHigh(ids[step.to]) });
      case "line":
        return yield cpu.out8(RAISE + step.pin, 0);
      case "tpr":
        yield* write(cpu, mode, 0x080, step.value << 4);
        return;
      case "cr8":
        return yield cpu.movToCr8(step.value);
      case "cli":
        return yield cpu.cli();
      case "sti":
        return yield cpu.sti();
      case "halt": {
        yield cpu.cli();
        yield cpu.store32(SEQ, seq + 1); // Whatever comes from here on ends the halt.
        yield cpu.sti();
        return yield cpu.hlt();
      }
      case "timer":
        yield* write(cpu, mode, 0x320, TIMER);
        yield* write(cpu, mode, 0x380, 1000);
        return;
      case "eoi":
        ended[step.cpu][ended[step.cpu].length - 1] = true;
        yield* write(cpu, mode, 0x0b0, 0);
        return;
      case "id":
        ids[step.cpu] = ids[step.cpu] === step.cpu ? otherId(step.cpu) : step.cpu;
        yield* write(cpu, mode, 0x020, ids[step.cpu] << 24);
        return;
      case "off":
        ids[step.cpu] = step.cpu;
        yield* setBase(cpu, PAGE);
        yield* setBase(cpu, PAGE | 0x800);
        if (mode === "x2apic") yield* setBase(cpu, PAGE | 0xc00);
        return;
      case "move": {
        const enabled = mode === "xapic" ? 0x800 : 0xc00;
        yield* setBase(cpu, ELSEWHERE | enabled);
        return yield* setBase(cpu, PAGE | enabled);
      }
      case "inhibit":
      case "allow":
        return yield allowApicv(cpu, step.do === "allow");
      case "leave":
        return;
    }
  }

  function* setBase(cpu: X86Cpu, base: number): Asking<void> {
    yield cpu.wrmsr(IA32_APICBASE, base | (index(cpu) === 0 ? 0x100 : 0), 0);
  }

  function* sendIpi(cpu: X86Cpu, step: Step & { readonly do: "ipi" }): Asking<void> {
    const targets = meant(cast, step);
    const mask = Array.from({ length: cpus }, (_, cpu) => (step.to >> cpu) & 1 ? 1 << cpu : 0)
      .reduce((a, b) => a | b);
    const low = 0x4000 | step.vector;
    switch (step.how) {
      case "physical":
        return yield* send(cpu, mode, { low, high: inHigh(ids[targets[0]]) });
      case "logical":
        return yield* send(cpu, mode, { low: low | 0x800, high: inHigh(logical(mask)) });
      case "lowest":
        return yield* send(cpu, mode, { low: low | 0x900, high: inHigh(logical(mask)) });
      case "self":
        if (mode === "xapic") return yield* send(cpu, mode, { low: low | 0x4_0000, high: 0 });
        return yield cpu.wrmsr(0x83f, step.vector);
      case "all":
        return yield* send(cpu, mode, { low: low | 0x8_0000, high: 0 });
      case "others":
        return yield* send(cpu, mode, { low: low | 0xc_0000, high: 0 });
      case "broadcast":
        return yield* send(cpu, mode, { low, high: inHigh(mode === "xapic" ? 0xff : 0xffff_ffff) });
    }
  }

  for (const vector of [...QUICK, ...LINES, TIMER]) {
    const pin = LINES.indexOf(vector as typeof LINES[number]);
    rig.on(vector, function* quick(cpu) {
      logs[index(cpu)].push(vector.toString(16));
      if (pin >= 0) yield cpu.out8(TAKE + pin, 0);
      yield* write(cpu, mode, 0x0b0, 0);
      yield cpu.xadd32(HANDLED, 1);
    });
  }
  for (const vector of STAYING) {
    rig.on(vector, function* staying(cpu) {
      const who = index(cpu);
      logs[who].push(vector.toString(16));
      ended[who].push(false);
      yield cpu.xadd32(HANDLED, 1);
      yield* play(cpu, who);
      yield cpu.cli();
      logs[who].push(`${vector.toString(16)} leaves`, "leave");
      if (!ended[who].pop()) yield* write(cpu, mode, 0x0b0, 0);
    });
  }
  rig.on(NMI, function* nmi(cpu) {
    logs[index(cpu)].push("nmi");
    yield cpu.xadd32(HANDLED, 1);
  });

  function* setUp(cpu: X86Cpu): Asking<void> {
    yield* enter(cpu, mode);
    yield* write(cpu, mode, 0x3e0, 0xb); // The timer counts every cycle of the bus.
    if (mode === "x2apic") return;
    yield* write(cpu, mode, 0x0e0, clusters ? 0x0fff_ffff : 0xffff_ffff);
    yield* write(cpu, mode, 0x0d0, logical(1 << index(cpu)) << 24);
  }
  let up = 0;
  rig.aps(function* (cpu): Guest {
    const who = index(cpu);
    const again = ++up >= cpus;
    yield* setUp(cpu);
    if (again) {
      logs[who].push("starts");
      ended[who].length = 0;
      yield cpu.xadd32(HANDLED, 1);
    } else {
      yield cpu.xadd32(UP, 1);
      yield cpu.sti();
      yield* until(cpu, BEGIN, 1);
    }
    yield* play(cpu, who);
    yield cpu.cli();
    for (;;) yield cpu.hlt();
  });
  const { end } = rig.run(function* (cpu) {
    yield* setUp(cpu);
    if (cpus > 1) yield* bringUp(cpu, mode, cpus - 1);
    yield* until(cpu, UP, cpus - 1);
    for (const [pin, vector] of LINES.entries()) {
      const destination = logical(1 << (pin % cpus));
      yield* route(cpu, FIRST_PIN + pin, { vector, level: true, logical: true, destination });
    }
    yield cpu.sti();
    yield cpu.store32(BEGIN, 1);
    yield* play(cpu, 0);
  }, Infinity);
  return { rig, end, logs };
}

/** Lines that count what their devices have, and a port whose writes are messages. */
function addDevices(vm: Vm): void {
  addApicvPort(vm);
  vm.pioBus.add(
    new IoEventFd(MESSAGE, 4, (value) => {
      const word = Number(value);
      vm.signalMsi(encodeMsi({ vector: word & 0xff, destination: word >>> 8 }, "xapic"));
    }),
  );
  for (const pin of LINES.keys()) {
    let things = 0;
    const change = (by: number) => {
      things += by;
      vm.routing.setLevel(FIRST_PIN + pin, things > 0);
      return true;
    };
    vm.pioBus.add({ base: RAISE + pin, length: 1, read: () => undefined, write: () => change(1) });
    vm.pioBus.add({ base: TAKE + pin, length: 1, read: () => undefined, write: () => change(-1) });
  }
}
