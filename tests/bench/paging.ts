/**
 * What translation is measured with: a guest whose tables map each page of its memory to itself, in pages of 4 KiB, so
 * that the TLB is too small for all.
 *
 * @module
 */

import {
  CR4_PAE,
  CR4_PCIDE,
  entryOf,
  GATE_INTERRUPT,
  type Guest,
  type GuestFunction,
  type Gva,
  KERNEL_CS,
  LEVEL_PT,
  mapPage,
  PF_VECTOR,
  PTE_P,
  PTE_RW,
  Text,
  type X86Cpu,
} from "../../abi/mod.ts";
import { type BackendName, Machine } from "../../host/mod.ts";
import { Stopwatch } from "./stopwatch.ts";

const MEMORY = 2 ** 25;
const TABLES = 0x1c0_0000;
const IDT = 0x2_0000;
const IDT_POINTER = 0x2_1000;
const DATA = 0x40_0000;
/** Where the guest's faults are: a page that is not mapped, at first. */
const HOLE = 0x180_0000;
const HANDLER = 0x9000 as Gva;

const ROUNDS = 100;
/** More than the 1,536 pages that a TLB holds: where each access is to the next page, every one walks. */
const OPERATIONS = 2_000;

/** A load of a processor that does not translate, which must not pay for those that do. */
export function flatLoad(backend: BackendName): Stopwatch {
  return measure(backend, ({ watch, setUp }) =>
    function* main(cpu) {
      yield* setUp(cpu, false);
      for (let round = 0; round < ROUNDS; round++) {
        watch.begin();
        for (let i = 0; i < OPERATIONS; i++) yield cpu.load32(DATA);
        watch.end(OPERATIONS);
      }
    });
}

/** A load whose page's translation is cached. */
export function tlbHit(backend: BackendName): Stopwatch {
  return measure(backend, ({ watch, setUp }) =>
    function* main(cpu) {
      yield* setUp(cpu, true);
      for (let round = 0; round < ROUNDS; round++) {
        watch.begin();
        for (let i = 0; i < OPERATIONS; i++) yield cpu.load32(DATA);
        watch.end(OPERATIONS);
      }
    });
}

/** A load whose page's translation is not cached: a walk of the guest's tables and the host's. */
export function tlbMiss(backend: BackendName): Stopwatch {
  return measure(backend, ({ watch, setUp }) =>
    function* main(cpu) {
      yield* setUp(cpu, true);
      for (let round = 0; round < ROUNDS; round++) {
        watch.begin();
        for (let i = 0; i < OPERATIONS; i++) yield cpu.load32(DATA + 4096 * i);
        watch.end(OPERATIONS);
      }
    });
}

/** MOV to CR3 and a load in the other address space, whose translations are kept. */
export function contextSwitch(backend: BackendName): Stopwatch {
  return measure(backend, ({ watch, root, setUp }) =>
    function* main(cpu) {
      yield* setUp(cpu, true);
      yield cpu.movToCr4(CR4_PAE | CR4_PCIDE);
      for (let round = 0; round < ROUNDS; round++) {
        watch.begin();
        for (let i = 0; i < OPERATIONS; i++) {
          yield cpu.movToCr3(root + 1 + (i & 1), 0x8000_0000);
          yield cpu.load32(DATA);
        }
        watch.end(OPERATIONS);
      }
    });
}

/** A load that faults: #PF, a handler that maps the page, IRET, the load again; and INVLPG, which begins it anew. */
export function demandFault(backend: BackendName): Stopwatch {
  return measure(backend, ({ watch, entry, setUp }) =>
    function* main(cpu) {
      yield* setUp(cpu, true);
      for (let round = 0; round < ROUNDS; round++) {
        watch.begin();
        for (let i = 0; i < OPERATIONS / 5; i++) {
          yield cpu.store32(entry, 0);
          yield cpu.invlpg(HOLE);
          yield cpu.load32(HOLE);
        }
        watch.end(OPERATIONS / 5);
      }
    });
}

/** What a program is measured with. */
interface Plan {
  readonly watch: Stopwatch;
  /** The table of the guest's address space. */
  readonly root: number;
  /** The address of the hole's entry. */
  readonly entry: number;
  /** What a program begins with: an IDT, and the table's use if it is `paged`. */
  readonly setUp: (cpu: X86Cpu, paged: boolean) => Guest;
}

/** Runs a program. It is no function that another delegates to: each yield would cost half as much again. */
function measure(backend: BackendName, program: (plan: Plan) => GuestFunction): Stopwatch {
  const watch = new Stopwatch();
  const text = new Text();
  const vm = new Machine().createVm({ backend, memory: MEMORY });
  let next = TABLES;
  const allocate = (): number => (next += 4096) - 4096;
  const tables = { memory: vm.memory, root: allocate(), allocate };
  for (let page = 0; page < MEMORY; page += 4096) {
    mapPage(tables, page, { physical: page, flags: PTE_P | PTE_RW });
  }
  const { root } = tables;
  const entry = entryOf(tables, HOLE, LEVEL_PT)!;
  text.addAt(HANDLER, function* fault(cpu) {
    yield cpu.movFromCr2();
    yield cpu.store32(entry, (cpu.eax & ~0xfff) | PTE_P | PTE_RW);
  });
  function* setUp(cpu: X86Cpu, paged: boolean): Guest {
    const gate = IDT + 16 * PF_VECTOR;
    yield cpu.store32(gate, KERNEL_CS << 16 | HANDLER & 0xffff);
    yield cpu.store32(gate + 4, HANDLER & 0xffff_0000 | GATE_INTERRUPT << 8);
    yield cpu.store16(IDT_POINTER, 16 * 256 - 1);
    yield cpu.store64(IDT_POINTER + 2, IDT);
    yield cpu.lidt(IDT_POINTER);
    if (paged) yield cpu.movToCr3(root);
  }
  const start = text.add(program({ watch, root, entry, setUp }));
  vm.load(text);
  vm.start(start);
  const { processor } = vm.bootstrap;
  while (!processor.finished && !vm.dead) vm.machine.run(vm.machine.engine.now + 1e9);
  if (vm.dead) throw new Error("Cannot measure translation: the guest has shut down");
  return watch;
}
