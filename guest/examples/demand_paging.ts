/**
 * Demand paging: a program maps memory, and pages come when it touches them. A page that is read first is the one page of
 * zeroes, and is replaced when it is written; one that is written first is its own at once.
 *
 *     deno run -P=examples guest/examples/demand_paging.ts [--pages N] [--backend vmx|svm] [--json]
 *
 * runs it, and prints faults, walks of the tables, exits and cycles a page.
 *
 * @module
 */

import {
  type Guest,
  Kernel,
  type KernelOptions,
  madviseDontneed,
  minorFaults,
  mmap,
  rdtsc,
  type X86Cpu,
} from "@exitless/exitless";

/** What the program does with each of its pages, in this order. */
export const PHASES = ["read", "write after read", "read again", "write"] as const;
/** One of them. */
export type Phase = typeof PHASES[number];

/** What the program measured of a phase. */
export interface PhaseTiming {
  /** Cycles. */
  readonly cycles: number;
  /** Page faults. */
  readonly faults: number;
}

/** How the program is run. */
export interface DemandPagingOptions extends Omit<KernelOptions, "main" | "secondary" | "cpus" | "apicIds"> {
  /** Pages that it touches. */
  readonly pages: number;
  /** Called when a phase begins. */
  readonly begin?: (phase: Phase) => void;
  /** Called when it has ended. */
  readonly end?: (phase: Phase) => void;
  /** Called with what the program has measured. */
  readonly measured?: (phase: Phase, timing: PhaseTiming) => void;
}

const PAGE = 4096;
/** Frames that the kernel needs besides the program's pages: tables, and a few pages more. */
const FRAMES = 64;

/** Links the guest. Throws `RangeError` for options that cannot be. */
export function demandPaging(options: DemandPagingOptions): Kernel {
  const { pages, begin, end, measured } = options;
  if (!Number.isInteger(pages) || pages < 1) {
    throw new RangeError(`Cannot touch ${pages} pages: allowed are whole numbers from 1`);
  }
  const tables = Math.ceil(pages / 512) + 1;
  const kernel: Kernel = new Kernel({
    ...options,
    paging: { frames: pages + tables + FRAMES, ...typeof options.paging === "object" ? options.paging : {} },
    *main(cpu: X86Cpu): Guest {
      const space = yield* kernel.mm.create(cpu);
      yield* kernel.sched.spawn(cpu, { entry: program, mm: space });
      yield* kernel.mm.put(cpu, space);
      yield* kernel.sched.waitForAll(cpu);
    },
  });

  const program = kernel.user(function* program(cpu: X86Cpu): Guest {
    const usage = yield* mmap(cpu, PAGE);
    yield* minorFaults(cpu, usage); // The page is there from now on.
    const memory = yield* mmap(cpu, pages * PAGE);

    /** Does something with every page. */
    function* phase(name: Phase, touch: (page: number) => number): Guest {
      const faults = yield* minorFaults(cpu, usage);
      begin?.(name);
      const start = yield* rdtsc(cpu);
      for (let n = 0; n < pages; n++) yield touch(memory + n * PAGE);
      const cycles = (yield* rdtsc(cpu)) - start;
      end?.(name);
      measured?.(name, { cycles, faults: (yield* minorFaults(cpu, usage)) - faults });
    }

    yield* phase("read", (page) => cpu.load32(page));
    yield* phase("write after read", (page) => cpu.store32(page, 1));
    yield* phase("read again", (page) => cpu.load32(page));
    yield* madviseDontneed(cpu, memory, pages * PAGE);
    yield* phase("write", (page) => cpu.store32(page, 1));
  }, "program");

  return kernel;
}

if (import.meta.main) {
  // Not awaited: the experiments that the command line knows import this very file.
  import("@exitless/exitless/cli").then(({ main }) => main(["run", "demand-paging", ...Deno.args]));
}
