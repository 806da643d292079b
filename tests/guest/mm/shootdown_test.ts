import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Guest, X86Cpu } from "../../../abi/mod.ts";
import {
  argumentOf,
  CALL_FUNCTION_SINGLE_VECTOR,
  CALL_FUNCTION_VECTOR,
  futexWait,
  futexWake,
  madviseDontneed,
  mmap,
  mprotect,
  munmap,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
  SIGSEGV,
  type TLB_STATE,
  tlbOf,
} from "../../../guest/mod.ts";
import { type BackendName, BACKENDS, StaleTranslation } from "../../../host/mod.ts";
import type { KernelRigOptions } from "../../support/kernels.ts";
import { PagingRig } from "../../support/tasks.ts";

const PAGE = 4096;
/** Words of the shared page: threads that are there, and a flag that ends them. */
const THERE = 0;
const OVER = 4;

/** Call-function interrupts that each processor has taken. */
function ipis(rig: PagingRig): number[] {
  return Array.from(
    { length: rig.kernel.cpus },
    (_, cpu) => rig.irqs(cpu, CALL_FUNCTION_VECTOR) + rig.irqs(cpu, CALL_FUNCTION_SINGLE_VECTOR),
  );
}

function tlb(rig: PagingRig, cpu: number, name: keyof typeof TLB_STATE.fields): number {
  return rig.vm.memory.word(tlbOf(cpu, name));
}

/** A thread that says that it is there, and spins in user mode until all is over. */
function spinner(cpu: number) {
  return {
    cpu,
    *program(cpu: X86Cpu): Guest {
      const shared = argumentOf(cpu);
      yield cpu.xadd32(shared + THERE, 1);
      yield cpu.pauseWhile(shared + OVER, 0);
    },
  };
}

/** Waits until so many are there. */
function* waitFor(cpu: X86Cpu, shared: number, count: number): Guest {
  for (;;) {
    yield cpu.load32(shared + THERE);
    if (cpu.eax === count) return;
    yield cpu.pauseWhile(shared + THERE, cpu.eax);
  }
}

/** What a thread does: beforehand, and then what is looked at. */
interface Act {
  readonly prepare: (cpu: X86Cpu) => Generator<number, number, void>;
  readonly act: (cpu: X86Cpu, prepared: number) => Guest;
}

/**
 * A thread on processor 0 acts while two others spin on 1 and 2, a program of another address space computes on 3, and 4
 * idles. How often each processor was interrupted for that.
 */
function interrupted(options: KernelRigOptions, { prepare, act }: Act) {
  const rig = new PagingRig({ cpus: 5, ...options });
  const { kernel } = rig;
  const counts: number[][] = [];
  const stranger = kernel.user(function* stranger(cpu) {
    yield cpu.work(100_000_000);
  });
  const [one, two] = [1, 2].map((cpu) => kernel.user(spinner(cpu).program, `spinner ${cpu}`));
  const actor = kernel.user(function* actor(cpu) {
    const shared = argumentOf(cpu);
    yield* waitFor(cpu, shared, 2);
    const prepared = yield* prepare(cpu);
    yield cpu.work(1_000_000); // Everybody has started by now.
    counts.push(ipis(rig));
    yield* act(cpu, prepared);
    counts.push(ipis(rig));
    yield cpu.store32(shared + OVER, 1);
  });
  rig.run(function* (cpu) {
    const { mm, sched } = kernel;
    const strange = yield* mm.create(cpu);
    yield* sched.spawn(cpu, { entry: stranger, cpu: 3, mm: strange });
    yield* mm.put(cpu, strange);
    const space = yield* mm.create(cpu);
    const argument = yield* mm.map(cpu, space, PAGE);
    for (const [n, entry] of [actor, one, two].entries()) {
      yield* sched.spawn(cpu, { entry, argument, cpu: n, mm: space });
    }
    yield* mm.put(cpu, space);
    yield* sched.waitForAll(cpu);
  });
  rig.quiet();
  const [before, after] = counts;
  return { rig, ipis: after.map((count, cpu) => count - before[cpu]) };
}

/** Maps pages and writes them. */
function* written(cpu: X86Cpu, pages: number): Generator<number, number, void> {
  const memory = yield* mmap(cpu, pages * PAGE);
  for (let n = 0; n < pages; n++) yield cpu.store32(memory + n * PAGE, n + 1);
  return memory;
}

for (const backend of BACKENDS) {
  const vm = { backend };
  describe(`a shootdown (${backend})`, () => {
    const nobody = [0, 0, 0, 0, 0];
    const threads = [0, 1, 1, 0, 0];
    const prepare = (cpu: X86Cpu) => written(cpu, 2);

    it("interrupts the processors that run the program, once, and no other: no stranger, nobody idle, not itself", () => {
      const acts: ((cpu: X86Cpu, memory: number) => Guest)[] = [
        function* (cpu, memory) {
          yield* munmap(cpu, memory, 2 * PAGE);
        },
        function* (cpu, memory) {
          yield* madviseDontneed(cpu, memory, PAGE);
        },
        function* (cpu, memory) {
          yield* mprotect(cpu, memory, 2 * PAGE, PROT_READ);
        },
        function* (cpu, memory) {
          yield* mprotect(cpu, memory, PAGE, 0);
        },
        function* (cpu, memory) {
          yield* mprotect(cpu, memory, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC); // NX goes: pte_flags_need_flush.
        },
        function* (cpu, memory) {
          yield* mmap(cpu, PAGE, PROT_READ, memory); // In the place of what is there.
        },
      ];
      for (const act of acts) assertEquals(interrupted({ vm }, { prepare, act }).ipis, threads);
    });

    it("is not needed where nothing was there, or nothing is lost", () => {
      const acts: ((cpu: X86Cpu, memory: number) => Guest)[] = [
        function* (cpu) {
          yield* mmap(cpu, 9 * PAGE);
        },
        function* (cpu) {
          const untouched = yield* mmap(cpu, 9 * PAGE);
          yield* munmap(cpu, untouched, 9 * PAGE);
        },
        function* (cpu, memory) {
          yield* mprotect(cpu, memory, 2 * PAGE, PROT_READ | PROT_WRITE);
          yield cpu.store32(memory, 1);
        },
        function* (cpu) {
          yield* written(cpu, 3); // Pages that come.
        },
      ];
      for (const act of acts) assertEquals(interrupted({ vm }, { prepare, act }).ipis, nobody);
    });

    it("is needed where the page of zeroes is replaced: others may have read it there", () => {
      const { ipis } = interrupted({ vm }, {
        *prepare(cpu) {
          const memory = yield* mmap(cpu, PAGE);
          yield cpu.load32(memory);
          return memory;
        },
        *act(cpu, memory) {
          yield cpu.store32(memory, 1);
        },
      });
      assertEquals(ipis, threads);
    });

    it("goes page by page up to 33 of them, and drops everything above that", () => {
      for (const [pages, kind] of [[1, "pageFlushes"], [33, "pageFlushes"], [34, "fullFlushes"]] as const) {
        const done = interrupted({ vm, paging: { frames: 300 } }, {
          prepare: (cpu) => written(cpu, pages),
          *act(cpu, memory) {
            yield* munmap(cpu, memory, pages * PAGE);
          },
        });
        // Starting up has flushed the shared page: it was read first, and then written.
        const of = (name: "pageFlushes" | "fullFlushes") => [0, 1, 2].map((cpu) => tlb(done.rig, cpu, name));
        assert(of(kind).every((count) => count >= 1), `${pages}: ${of(kind)}`);
        if (kind === "pageFlushes") assertEquals(of("fullFlushes"), [0, 0, 0]);
      }
    });

    it("reaches a lazy processor where tables go, which then lets go of them; it is spared where only pages do", () => {
      for (const tables of [false, true]) {
        const rig = new PagingRig({ cpus: 2, vm, machine: { staleness: true } });
        let before: number[] = [];
        let after: number[] = [];
        let loaded = -1;
        const codes = rig.runProgram([
          {
            cpu: 1,
            *program(cpu: X86Cpu): Guest {
              const shared = argumentOf(cpu);
              yield cpu.xadd32(shared + THERE, 1);
              yield* futexWait(cpu, shared + OVER, 0); // Its processor idles, and keeps the address space, lazily.
              yield cpu.load32(shared + PAGE);
              assertEquals(cpu.eax, 2);
            },
          },
          {
            cpu: 0,
            *program(cpu: X86Cpu): Guest {
              const shared = argumentOf(cpu);
              yield* waitFor(cpu, shared, 1);
              yield cpu.store32(shared + PAGE, 1);
              const memory = yield* mmap(cpu, PAGE, 3, tables ? 0x20_0000_0000 : undefined);
              yield cpu.store32(memory, 1);
              yield cpu.work(10_000_000);
              assertEquals(tlb(rig, 1, "isLazy"), 1);
              before = ipis(rig);
              yield* munmap(cpu, memory, PAGE); // The only page of its tables, or one among others.
              yield* madviseDontneed(cpu, shared + PAGE, PAGE);
              yield cpu.store32(shared + PAGE, 2);
              after = ipis(rig);
              loaded = tlb(rig, 1, "loadedMm");
              yield cpu.store32(shared + OVER, 1);
              yield* futexWake(cpu, shared + OVER, 1);
            },
          },
        ], 2);
        assertEquals(codes, [0, 0]);
        assertEquals(after[1] - before[1], tables ? 1 : 0);
        assertEquals(loaded === rig.kernel.mm.init, tables);
      }
    });

    it("is over before mprotect returns: no write of anybody's comes after", () => {
      const rig = new PagingRig({ cpus: 3, vm, machine: { staleness: true } });
      let changed = -1;
      let last = -1;
      const writer = (cpu: number) => ({
        cpu,
        *program(cpu: X86Cpu): Guest {
          const shared = argumentOf(cpu);
          yield cpu.xadd32(shared + THERE, 1);
          for (;;) yield cpu.xadd32(shared + PAGE, 1);
        },
      });
      const codes = rig.runProgram([writer(1), writer(2), {
        cpu: 0,
        *program(cpu: X86Cpu): Guest {
          const shared = argumentOf(cpu);
          yield* waitFor(cpu, shared, 2);
          yield cpu.work(20_000);
          yield* mprotect(cpu, shared + PAGE, PAGE, PROT_READ);
          yield cpu.load32(shared + PAGE);
          changed = cpu.eax;
          yield cpu.work(1_000_000);
          yield cpu.load32(shared + PAGE);
          last = cpu.eax;
        },
      }], 2);
      assertEquals(codes, [SIGSEGV, SIGSEGV, 0]);
      assertGreater(changed, 0);
      assertEquals(last, changed);
    });
  });
}

describe("two shootdowns", () => {
  it("that meet on a processor are both carried out: the first drops everything, and takes the second along", () => {
    const rig = new PagingRig({ cpus: 3 });
    const { kernel } = rig;
    const { mm, sched } = kernel;
    const GO = 0x60_0000;
    let [space, memory] = [0, 0];
    let flushes: number[] = [];
    const count = (): number[] => [tlb(rig, 1, "pageFlushes"), tlb(rig, 1, "fullFlushes")];
    const reader = sched.kernelThread(function* reader(cpu) {
      yield* mm.use(cpu, space);
      flushes = count();
      yield cpu.cli();
      yield cpu.store32(GO, 1);
      yield cpu.work(5_000_000); // Both have asked by now, and wait for this processor.
      yield cpu.sti();
      yield cpu.work(100_000);
      flushes = count().map((flush, n) => flush - flushes[n]);
      yield* mm.unuse(cpu);
    }, "reader");
    const askers = [0, 2].map((page) =>
      sched.kernelThread(function* asker(cpu) {
        yield cpu.pauseWhile(GO, 0);
        const start = memory + page * PAGE;
        yield* mm.flushRange(cpu, space, { start, end: start + PAGE });
      }, `asker ${page}`)
    );
    rig.run(function* (cpu) {
      space = yield* mm.create(cpu);
      memory = yield* mm.map(cpu, space, 3 * PAGE);
      yield* sched.spawn(cpu, { entry: reader, cpu: 1 });
      for (const [n, entry] of askers.entries()) yield* sched.spawn(cpu, { entry, cpu: 2 * n });
      yield* sched.waitForAll(cpu);
    });
    assertEquals(flushes, [0, 1]); // No INVLPG: it would have left out what is between tlb_gen's last values.
  });
});

/** Threads read and write pages that one of them gives up again and again: who reads a page must find what is its. */
function turmoil(
  seed: number,
  backend: BackendName,
  paging: { readonly shootdownForgets?: number } = {},
): PagingRig {
  const rig = new PagingRig({
    cpus: 3,
    sched: { timer: "off" },
    vm: { backend },
    machine: { policy: { random: seed }, staleness: true, limits: { steps: 1e7 } },
    paging,
  });
  const VALUE = 0x1000;
  const reader = (cpu: number) => ({
    cpu,
    *program(cpu: X86Cpu): Guest {
      const shared = argumentOf(cpu);
      yield cpu.xadd32(shared + THERE, 1);
      do {
        for (const page of [1, 2]) {
          yield cpu.load32(shared + page * PAGE);
          assert(cpu.eax === 0 || cpu.eax === VALUE + page, `page ${page} holds ${cpu.eax}`);
        }
        yield cpu.load32(shared + OVER);
      } while (cpu.eax === 0);
    },
  });
  rig.runProgram([reader(1), reader(2), {
    cpu: 0,
    *program(cpu: X86Cpu): Guest {
      const shared = argumentOf(cpu);
      yield* waitFor(cpu, shared, 2);
      for (let round = 0; round < 3; round++) {
        for (const page of [1, 2]) yield cpu.store32(shared + page * PAGE, VALUE + page);
        yield* madviseDontneed(cpu, shared + PAGE, 2 * PAGE);
        const other = yield* mmap(cpu, 2 * PAGE); // Takes the frames.
        for (const page of [0, 1]) yield cpu.store32(other + page * PAGE, 0xbad);
      }
      yield cpu.store32(shared + OVER, 1);
    },
  }], 3);
  return rig.quiet();
}

describe("shootdowns, whoever is first,", () => {
  for (const backend of BACKENDS) {
    it(`leave nobody a page that has gone to somebody else: no use is a failure (${backend})`, () => {
      let stale = 0;
      for (let seed = 0; seed < 3; seed++) {
        const { staleness } = turmoil(seed, backend).vm.machine;
        stale += staleness!.legallyStale;
        assertGreater(staleness!.fresh, 0);
      }
      assertGreater(stale, 0); // Some were used before the flush, which is allowed: the oracle had something to judge.
    });

    it(`that forget a processor are found out within few schedules (${backend})`, () => {
      let found = 0;
      for (let seed = 0; seed < 2; seed++) {
        const failure = assertThrows(() => turmoil(seed, backend, { shootdownForgets: 2 }), StaleTranslation);
        assertEquals([failure.blame, failure.cpu], ["software", 2]);
        found++;
      }
      assertEquals(found, 2);
    });
  }
});
