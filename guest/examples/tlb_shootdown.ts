/**
 * TLB shootdowns: threads of one program read the same pages on all processors, and one of them unmaps the pages. Before
 * their frames may be used again, every processor has to forget where they were.
 *
 *     deno run -P=examples guest/examples/tlb_shootdown.ts [--vcpus N] [--pages N] [--quirk skip-one-cpu] [--json]
 *
 * runs it on more and more processors, and prints IPIs and cycles of a munmap, and what an oracle says of each use of a
 * cached translation. With the quirk the kernel forgets a processor, and the oracle tells.
 *
 * @module
 */

import {
  argumentOf,
  type Guest,
  Kernel,
  type KernelOptions,
  type Layout,
  layout,
  loadU64,
  madviseDontneed,
  mmap,
  type MmOptions,
  munmap,
  putUser32,
  rdtsc,
  storeU64,
  type X86Cpu,
} from "@exitless/exitless";

/** What the threads share. */
const SHARED: Layout<"round" | "readers" | "memory" | "wrong"> = layout("shared", {
  round: "u32",
  readers: "u32",
  memory: "u64",
  wrong: "u32",
});

/** How the guest is run. */
export interface ShootdownOptions extends Omit<KernelOptions, "main" | "secondary" | "paging" | "apicIds"> {
  /** Processors: a thread each. */
  readonly cpus: number;
  /** munmaps that are measured; one comes before them. */
  readonly times: number;
  /** Pages of each. */
  readonly pages: number;
  /** Memory management's options: its witness, its deviation. */
  readonly paging?: MmOptions;
  /** Called before each munmap that is measured. */
  readonly begin?: () => void;
  /** Called after it, with its cycles. */
  readonly end?: (cycles: number) => void;
  /** Called at the end, with the number of reads that found something else than what was written. */
  readonly over?: (wrong: number) => void;
}

const PAGE = 4096;
/** The last round: the readers end. */
const OVER = 0xffff_ffff;

/** Links the guest. Throws `RangeError` for options that cannot be. */
export function tlbShootdown(options: ShootdownOptions): Kernel {
  const { cpus, times, pages, begin, end, over } = options;
  for (const [what, value] of Object.entries({ times, pages })) {
    if (!Number.isInteger(value) || value < 1) {
      throw new RangeError(`Cannot unmap with ${what} ${value}: allowed are whole numbers from 1`);
    }
  }
  const kernel: Kernel = new Kernel({
    ...options,
    paging: { frames: 3 * pages + 128, ...options.paging },
    sched: { tasks: cpus, ...typeof options.sched === "object" ? options.sched : {} },
    *main(cpu: X86Cpu): Guest {
      const { mm, sched } = kernel;
      const space = yield* mm.create(cpu);
      const shared = yield* mm.map(cpu, space, PAGE);
      yield* mm.use(cpu, space);
      yield* putUser32(cpu, kernel, shared, 0); // The page is there before anybody waits for it.
      yield* mm.unuse(cpu);
      for (let n = 1; n < cpus; n++) {
        yield* sched.spawn(cpu, { entry: reader, argument: shared, cpu: n, mm: space });
      }
      yield* sched.spawn(cpu, { entry: owner, argument: shared, cpu: 0, mm: space });
      yield* mm.put(cpu, space);
      yield* sched.waitForAll(cpu);
    },
  });

  /**
   * Maps, lets all others read, unmaps; and again, at the same address. The frames that are freed go to another mapping:
   * whoever still knew them would read what is there.
   */
  const owner = kernel.user(function* owner(cpu: X86Cpu): Guest {
    const at = sharedAt(cpu);
    const other = yield* mmap(cpu, pages * PAGE);
    for (let round = 1; round <= times + 1; round++) {
      const memory = yield* mmap(cpu, pages * PAGE);
      yield* fill(cpu, memory, round);
      yield* storeU64(cpu, 64, at("memory"), memory);
      yield cpu.store32(at("readers"), 0);
      yield cpu.store32(at("round"), round);
      for (let readers = 0; readers < cpus - 1; readers = cpu.eax) {
        yield cpu.pauseWhile(at("readers"), readers);
        yield cpu.load32(at("readers"));
      }
      yield* madviseDontneed(cpu, other, pages * PAGE); // Its frames are the next round's.
      if (round > 1) begin?.();
      const start = yield* rdtsc(cpu);
      yield* munmap(cpu, memory, pages * PAGE);
      const cycles = (yield* rdtsc(cpu)) - start;
      if (round > 1) end?.(cycles);
      yield* fill(cpu, other, 0);
    }
    yield cpu.load32(at("wrong"));
    over?.(cpu.eax);
    yield cpu.store32(at("round"), OVER);
  }, "owner");

  function* fill(cpu: X86Cpu, memory: number, value: number): Guest {
    for (let page = 0; page < pages; page++) yield cpu.store32(memory + page * PAGE, value);
  }

  /** Reads every page, and says so. */
  const reader = kernel.user(function* reader(cpu: X86Cpu): Guest {
    const at = sharedAt(cpu);
    for (let round = 0;;) {
      yield cpu.pauseWhile(at("round"), round);
      yield cpu.load32(at("round"));
      round = cpu.eax;
      if (round === OVER) return;
      const memory = yield* loadU64(cpu, 64, at("memory"));
      for (let page = 0; page < pages; page++) {
        yield cpu.load32(memory + page * PAGE);
        if (cpu.eax !== round) yield cpu.xadd32(at("wrong"), 1);
      }
      yield cpu.xadd32(at("readers"), 1);
    }
  }, "reader");

  return kernel;
}

/** Where the threads' variables are: the page that a thread was started with. */
function sharedAt(cpu: X86Cpu): (name: keyof typeof SHARED.fields) => number {
  const shared = argumentOf(cpu);
  return (name) => shared + SHARED.fields[name].offset;
}

if (import.meta.main) {
  // Not awaited: the experiments that the command line knows import this very file.
  import("@exitless/exitless/cli").then(({ main }) => main(["run", "tlb-shootdown", ...Deno.args]));
}
