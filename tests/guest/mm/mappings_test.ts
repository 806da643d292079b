import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Guest, X86Cpu } from "../../../abi/mod.ts";
import {
  argumentOf,
  EINVAL,
  ENOMEM,
  madviseDontneed,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  mmap,
  mprotect,
  munmap,
  NR_madvise,
  NR_mmap,
  PERCPU,
  PROT_EXEC,
  PROT_READ,
  PROT_SEM,
  PROT_WRITE,
  schedYield,
  SIGSEGV,
  syscall,
  TASK_SIZE,
  USER_IMAGE,
  USER_TEXT,
} from "../../../guest/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { PagingRig, TaskRig } from "../../support/tasks.ts";

const PAGE = 4096;

/** Runs a program in an address space of its own: exit code and messages. */
function ran(backend: (typeof BACKENDS)[number], program: (cpu: X86Cpu) => Guest, frames: number = 256) {
  const rig = new PagingRig({ vm: { backend }, machine: { staleness: true }, paging: { frames } });
  const [code] = rig.runProgram([{ program }]);
  return { rig, code, log: rig.kernel.log };
}

for (const backend of BACKENDS) {
  describe(`mappings (${backend})`, () => {
    it("are placed from the top down, without overlap, and in gaps that fit", () => {
      const { code } = ran(backend, function* (cpu) {
        const a = yield* mmap(cpu, 3 * PAGE);
        const b = yield* mmap(cpu, 1); // A page, whatever was asked for.
        const c = yield* mmap(cpu, 2 * PAGE);
        assertEquals([a - b, b - c], [PAGE, 2 * PAGE]);
        assertEquals(yield* munmap(cpu, a + PAGE, PAGE), 0);
        assertEquals(yield* mmap(cpu, 2 * PAGE), c - 2 * PAGE); // The gap is too small for that.
        assertEquals(yield* mmap(cpu, PAGE), a + PAGE);
      });
      assertEquals(code, 0);
    });

    it("are cut where a part of them is unmapped: what is left keeps its content, the rest is gone", () => {
      const { code, log } = ran(backend, function* (cpu) {
        const a = yield* mmap(cpu, 5 * PAGE);
        for (let n = 0; n < 5; n++) yield cpu.store32(a + n * PAGE, n + 1);
        assertEquals(yield* munmap(cpu, a + 2 * PAGE, PAGE), 0);
        for (const n of [0, 1, 3, 4]) {
          yield cpu.load32(a + n * PAGE);
          assertEquals(cpu.eax, n + 1);
        }
        yield cpu.load32(a + 2 * PAGE);
      });
      assertEquals(code, SIGSEGV);
      assert(log[0].endsWith("no mapping there"), log[0]);
    });

    it("at a fixed address replace what is there, with zeroes", () => {
      const { code } = ran(backend, function* (cpu) {
        const a = yield* mmap(cpu, 3 * PAGE);
        for (let n = 0; n < 3; n++) yield cpu.store32(a + n * PAGE, n + 1);
        assertEquals(yield* mmap(cpu, PAGE, PROT_READ | PROT_WRITE, a + PAGE), a + PAGE);
        const values: number[] = [];
        for (let n = 0; n < 3; n++) {
          yield cpu.load32(a + n * PAGE);
          values.push(cpu.eax);
        }
        assertEquals(values, [1, 0, 3]);
      });
      assertEquals(code, 0);
    });

    it("are refused where they cannot be", () => {
      const results: number[] = [];
      const { code } = ran(backend, function* (cpu) {
        const a = yield* mmap(cpu, PAGE);
        results.push(
          yield* mmap(cpu, 0),
          yield* mmap(cpu, 2 ** 50),
          yield* mmap(cpu, PAGE, 3, a + 1),
          yield* mmap(cpu, PAGE, 3, PERCPU), // The kernel's.
          yield* mmap(cpu, PAGE, 3, -PAGE),
          yield* mmap(cpu, PAGE, 3, TASK_SIZE),
          yield* syscall(cpu, NR_mmap, 0, PAGE, 3, MAP_PRIVATE, 0, 0), // Files are not modelled.
          yield* syscall(cpu, NR_mmap, 0, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | 0x8000, -1, 0),
          yield* syscall(cpu, NR_mmap, 0, PAGE, 3, MAP_ANONYMOUS, -1, 0), // Neither private nor shared.
          yield* munmap(cpu, a + 8, PAGE),
          yield* munmap(cpu, a, 0),
          yield* munmap(cpu, PERCPU, PAGE),
          yield* mprotect(cpu, a - PAGE, 2 * PAGE, PROT_READ), // The first page is not mapped.
          yield* mprotect(cpu, a, PAGE, PROT_READ | 0x10),
          yield* madviseDontneed(cpu, a - PAGE, 2 * PAGE),
          yield* syscall(cpu, NR_madvise, a, PAGE, 99),
        );
        yield cpu.store32(a, 1); // And what is there is as it was.
      });
      assertEquals(results, [
        -EINVAL,
        -ENOMEM,
        -EINVAL,
        -ENOMEM,
        -ENOMEM,
        -ENOMEM,
        -EINVAL,
        -EINVAL,
        -EINVAL,
        -EINVAL,
        -EINVAL,
        -EINVAL,
        -ENOMEM,
        -EINVAL,
        -ENOMEM,
        -EINVAL,
      ]);
      assertEquals(code, 0);
    });

    it("lose rights and get them back, and keep their content all along", () => {
      const { code } = ran(backend, function* (cpu) {
        const a = yield* mmap(cpu, 3 * PAGE);
        for (let n = 0; n < 3; n++) yield cpu.store32(a + n * PAGE, n + 1);
        for (const prot of [PROT_READ, 0, PROT_READ, PROT_SEM, PROT_READ | PROT_WRITE | PROT_SEM]) {
          assertEquals(yield* mprotect(cpu, a + PAGE, PAGE, prot), 0);
        }
        for (let n = 0; n < 3; n++) {
          yield cpu.xadd32(a + n * PAGE, 10);
          assertEquals(cpu.eax, n + 1);
        }
      });
      assertEquals(code, 0);
    });

    it("give their content up where that is advised, and are still there", () => {
      const { code } = ran(backend, function* (cpu) {
        const a = yield* mmap(cpu, 3 * PAGE);
        for (let n = 0; n < 3; n++) yield cpu.store32(a + n * PAGE, n + 1);
        assertEquals(yield* madviseDontneed(cpu, a + PAGE, PAGE), 0);
        const values: number[] = [];
        for (let n = 0; n < 3; n++) {
          yield cpu.load32(a + n * PAGE);
          values.push(cpu.eax);
        }
        assertEquals(values, [1, 0, 3]);
        yield cpu.store32(a + PAGE, 9);
      });
      assertEquals(code, 0);
    });

    it("have their frames given back after everybody has forgotten them, not before", () => {
      let used: () => number = () => 0;
      let taken = -1;
      const kept: boolean[] = [];
      const rig = new TaskRig({
        cpus: 2,
        vm: { backend },
        paging: {
          frames: 128,
          witness: {
            changed: () => taken = used(),
            gone: (_range, reason) => {
              if (reason === "page freed") kept.push(used() === taken);
            },
          },
        },
      });
      const { kernel } = rig;
      used = () => rig.vm.memory.word(kernel.mm.dataAt("used"));
      const entry = kernel.user(function* program(cpu) {
        const a = yield* mmap(cpu, 4 * PAGE);
        for (let n = 0; n < 4; n++) yield cpu.store32(a + n * PAGE, 1);
        yield* madviseDontneed(cpu, a, PAGE);
        yield* munmap(cpu, a + PAGE, 2 * PAGE);
      });
      rig.run(function* (cpu) {
        const space = yield* kernel.mm.create(cpu);
        yield* kernel.sched.spawn(cpu, { entry, mm: space });
        yield* kernel.mm.put(cpu, space);
        yield* kernel.sched.waitForAll(cpu);
      });
      assertEquals(kept.length >= 4, true); // madvise, munmap, and each mapping at the end.
      assertEquals(kept.every((before) => before), true);
    });

    it("of a program's image are copied where they are written, for that program alone", () => {
      const rig = new PagingRig({ vm: { backend }, machine: { staleness: true } });
      const { kernel } = rig;
      const seen: number[][] = [];
      const entry = kernel.user(function* program(cpu) {
        const writes = argumentOf(cpu) === 1;
        yield cpu.load32(USER_TEXT);
        const first = cpu.eax;
        if (writes) {
          const prot = PROT_READ | PROT_WRITE | PROT_EXEC;
          assertEquals(yield* mprotect(cpu, USER_TEXT, PAGE, prot), 0);
          yield cpu.store32(USER_TEXT + 0xf00, 0x1234);
        }
        yield* schedYield(cpu);
        yield cpu.load32(USER_TEXT);
        const again = cpu.eax;
        yield cpu.load32(USER_TEXT + 0xf00);
        seen.push([Number(writes), again - first, cpu.eax]);
      });
      rig.run(function* (cpu) {
        for (const argument of [1, 0]) {
          const space = yield* kernel.mm.create(cpu);
          yield* kernel.sched.spawn(cpu, { entry, argument, mm: space });
          yield* kernel.mm.put(cpu, space);
        }
        yield* kernel.sched.waitForAll(cpu);
      });
      assertEquals(seen, [[1, 0, 0x1234], [0, 0, 0]]);
      assertEquals(rig.vm.memory.word(USER_IMAGE), 0xfa1e_0ff3); // ENDBR64: the image is as it was loaded.
      assertEquals(rig.vm.memory.word(USER_IMAGE + 0xf00), 0);
      rig.quiet();
    });

    it("use frames over and over, tables too: a program can map more in its life than there is memory", () => {
      const { code, rig } = ran(backend, function* (cpu) {
        for (let round = 0; round < 7; round++) {
          const a = yield* mmap(cpu, 8 * PAGE);
          const far = yield* mmap(cpu, PAGE, PROT_READ | PROT_WRITE, 0x10_0000_0000 * (round + 1));
          assertEquals(far, 0x10_0000_0000 * (round + 1));
          for (let n = 0; n < 8; n++) yield cpu.store32(a + n * PAGE, n);
          yield cpu.store32(far, 1);
          assertEquals([yield* munmap(cpu, a, 8 * PAGE), yield* munmap(cpu, far, PAGE)], [0, 0]);
        }
      }, 28);
      assertEquals(code, 0);
      rig.quiet();
    });

    it("are all given back when their program ends, in whatever way", () => {
      for (const last of [(cpu: X86Cpu) => cpu.pause(), (cpu: X86Cpu) => cpu.ud2()]) {
        const { rig } = ran(backend, function* (cpu) {
          const a = yield* mmap(cpu, 20 * PAGE);
          for (let n = 0; n < 20; n += 2) yield cpu.store32(a + n * PAGE, n);
          yield cpu.load32(a + PAGE);
          yield last(cpu);
        });
        // The kernel's own, and the PML4, the PDPT and the PD that the idle task has borrowed.
        const idle = new PagingRig({ vm: { backend } });
        idle.run();
        assertEquals(rig.mm("used") - idle.mm("used"), 3);
      }
    });
  });
}
