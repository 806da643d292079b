import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_DEFAULT_BASE,
  type Guest,
  type Gva,
  PFERR_FETCH,
  PFERR_PRESENT,
  PFERR_USER,
  PFERR_WRITE,
  type X86Cpu,
} from "../../../abi/mod.ts";
import {
  argumentOf,
  data,
  EFAULT,
  exit,
  futexWait,
  futexWake,
  getcpu,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  minorFaults,
  mmap,
  mmField,
  mprotect,
  munmap,
  NR_mmap,
  PAGE_OFFSET,
  percpu,
  PROT_EXEC,
  PROT_READ,
  PROT_WRITE,
  putUser32,
  schedYield,
  SIGKILL,
  SIGSEGV,
  USER_IMAGE,
  USER_TEXT,
} from "../../../guest/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { PagingRig } from "../../support/tasks.ts";

const PAGE = 4096;

for (const backend of BACKENDS) {
  const vm = { backend };

  describe(`a page that is touched for the first time (${backend})`, () => {
    it("holds zeroes, and takes no frame while it is only read", () => {
      const rig = new PagingRig({ vm });
      const resident = (): number => rig.vm.memory.word(mmField(rig.space, "resident"));
      const seen: number[] = [];
      rig.runProgram([{
        *program(cpu: X86Cpu): Guest {
          const shared = argumentOf(cpu);
          for (let n = 0; n < 4; n++) {
            yield cpu.load64(shared + n * PAGE + 8 * n);
            seen.push(cpu.eax, cpu.raxHigh);
          }
          assertEquals(resident(), 0);
          yield cpu.store32(shared + PAGE, 1);
          assertEquals(resident(), 1);
          for (let n = 0; n < 4; n++) {
            yield cpu.load32(shared + n * PAGE);
            seen.push(cpu.eax);
          }
        },
      }], 4);
      assertEquals(seen, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    });

    it("holds zeroes even where its frame was somebody's before", () => {
      const rig = new PagingRig({ vm, paging: { frames: 32 } });
      const codes = rig.runProgram([1, 2, 3].map(() => ({
        *program(cpu: X86Cpu): Guest {
          for (let round = 0; round < 10; round++) {
            const memory = yield* mmap(cpu, PAGE);
            yield cpu.load32(memory + 2000);
            assertEquals(cpu.eax, 0);
            yield cpu.xadd32(memory + 2000, 0x5555);
            assertEquals(cpu.eax, 0);
            yield* munmap(cpu, memory, PAGE);
          }
        },
      })));
      assertEquals(codes, [0, 0, 0]);
    });

    it("faults once to be read, once more to be written, and never again", () => {
      const rig = new PagingRig({ vm });
      const faults: number[] = [];
      rig.runProgram([{
        *program(cpu: X86Cpu): Guest {
          const shared = argumentOf(cpu);
          yield* minorFaults(cpu, shared);
          const touches = [
            () => cpu.load32(shared + PAGE),
            () => cpu.load32(shared + PAGE + 8),
            () => cpu.store32(shared + PAGE, 1),
            () => cpu.store32(shared + PAGE + 8, 1),
            () => cpu.load32(shared + PAGE),
            () => cpu.store32(shared + 2 * PAGE, 1),
            () => cpu.load32(shared + 2 * PAGE),
          ];
          for (const touch of touches) {
            const before = yield* minorFaults(cpu, shared);
            yield touch();
            faults.push((yield* minorFaults(cpu, shared)) - before);
          }
        },
      }], 3);
      assertEquals(faults, [1, 0, 1, 0, 0, 1, 0]);
    });

    it("comes for the kernel's accesses too: system calls store to it, and futexes look at it", () => {
      const rig = new PagingRig({ cpus: 2, vm });
      const results: number[] = [];
      rig.runProgram([
        {
          cpu: 1,
          *program(cpu: X86Cpu): Guest {
            const shared = argumentOf(cpu);
            results.push(yield* getcpu(cpu, shared + PAGE));
            yield cpu.load32(shared + PAGE);
            results.push(cpu.eax);
            results.push(yield* futexWait(cpu, shared + 2 * PAGE, 0)); // Nobody has touched that page.
            results.push(yield* futexWait(cpu, shared + 2 * PAGE, 0));
          },
        },
        {
          cpu: 0,
          *program(cpu: X86Cpu): Guest {
            const shared = argumentOf(cpu);
            while ((yield* futexWake(cpu, shared + 2 * PAGE, 1)) === 0) yield* schedYield(cpu);
            yield cpu.store32(shared + 2 * PAGE, 1);
            yield* futexWake(cpu, shared + 2 * PAGE, 1);
          },
        },
      ], 3);
      assertEquals(results.slice(0, 3), [0, 1, 0]);
      assert([0, -11].includes(results[3]));
      rig.quiet();
    });

    it("is one page, however many threads touch it at once", () => {
      for (let seed = 0; seed < 4; seed++) {
        const rig = new PagingRig({
          cpus: 4,
          sched: { timer: "off" },
          vm,
          machine: { policy: { random: seed }, staleness: true },
        });
        const totals: number[] = [];
        rig.runProgram([0, 1, 2, 3].map((cpu) => ({
          cpu,
          *program(cpu: X86Cpu): Guest {
            const shared = argumentOf(cpu);
            if (cpu.gsBase % 0x2000 === 0) yield cpu.load32(shared); // Some get the page of zeroes first.
            yield cpu.xadd32(shared, 1);
            yield cpu.xadd32(shared + 4, 1);
            if (cpu.eax === 3) {
              yield cpu.load32(shared);
              totals.push(cpu.eax);
              assertEquals(rig.vm.memory.word(mmField(rig.space, "resident")), 1);
            }
          },
        })));
        assertEquals(totals, [4], `seed ${seed}`);
      }
    });
  });

  describe(`a user program that touches what it may not (${backend})`, () => {
    const read = PFERR_USER;
    const write = PFERR_USER | PFERR_WRITE;
    const present = PFERR_PRESENT;

    /** What becomes of a program that makes one access. */
    function ends(touch: (cpu: X86Cpu, shared: number) => Generator<number, number, void>): string {
      const rig = new PagingRig({ vm });
      let after = false;
      const codes = rig.runProgram([{
        *program(cpu: X86Cpu): Guest {
          const shared = argumentOf(cpu);
          yield yield* touch(cpu, shared);
          after = true;
        },
      }, {
        *program(cpu: X86Cpu): Guest {
          yield cpu.work(1e6);
          yield* exit(cpu, 5); // Others are not disturbed.
        },
      }], 2);
      assertEquals([codes, after], [[SIGSEGV, 5 << 8], false]);
      assertEquals(rig.kernel.log.length, 1);
      const [, address, error, why] =
        /^task 1: segfault at (0x[0-9a-f]+) ip 0x[0-9a-f]+ error (0x[0-9a-f]+): (.*)$/.exec(
          rig.kernel.log[0],
        )!;
      const relative = Number(address) - rig.shared;
      return `${relative >= 0 && relative < 1e6 ? `shared + ${relative}` : address} ${error} ${why}`;
    }
    const access = (build: (cpu: X86Cpu, shared: number) => number) =>
      ends(function* (cpu, shared) {
        yield cpu.pause();
        return build(cpu, shared);
      });
    const hex = (code: number): string => `0x${code.toString(16)}`;

    it("ends: the kernel's pages are there, and are not for it, at any of their addresses", () => {
      for (
        const address of [percpu(0, "cpu"), data("online"), 0x10_0000, 0x8000, APIC_DEFAULT_BASE, PAGE_OFFSET]
      ) {
        const at = address < 0 ? "0xffff888000000000" : hex(address);
        assertEquals(access((cpu) => cpu.load32(address)), `${at} ${hex(read | present)} a kernel address`);
        assertEquals(
          access((cpu) => cpu.store32(address, 1)),
          `${at} ${hex(write | present)} a kernel address`,
        );
      }
    });

    it("ends: nothing is mapped there", () => {
      assertEquals(
        access((cpu, shared) => cpu.load32(shared + 2 * PAGE)),
        `shared + ${2 * PAGE} ${hex(read)} no mapping there`,
      );
      assertEquals(
        access((cpu) => cpu.store8(USER_TEXT + 2 ** 20, 1)),
        `0x4100000 ${hex(write)} no mapping there`,
      );
      assertEquals(access((cpu) => cpu.load32(0)), `0x0 ${hex(read | present)} a kernel address`);
    });

    it("ends: the mapping does not allow it, whether the page is there or not", () => {
      const why = "the mapping does not allow it";
      assertEquals(
        ends(function* (cpu, shared) {
          yield* mprotect(cpu, shared, PAGE, PROT_READ);
          return cpu.store32(shared, 1);
        }),
        `shared + 0 ${hex(write)} ${why}`,
      );
      assertEquals(
        ends(function* (cpu, shared) {
          yield cpu.store32(shared, 1);
          yield* mprotect(cpu, shared, PAGE, PROT_READ);
          yield cpu.load32(shared);
          assertEquals(cpu.eax, 1);
          return cpu.store32(shared, 2);
        }),
        `shared + 0 ${hex(write | present)} ${why}`,
      );
      assertEquals(
        ends(function* (cpu, shared) {
          yield cpu.store32(shared + PAGE, 1);
          yield* mprotect(cpu, shared + PAGE, PAGE, 0);
          return cpu.load32(shared + PAGE);
        }),
        `shared + ${PAGE} ${hex(read)} ${why}`,
      );
    });

    it("ends: its own text is for reading and executing", () => {
      assertEquals(
        ends(function* (cpu) {
          yield cpu.load32(USER_TEXT);
          return cpu.store32(USER_TEXT, 0);
        }),
        `0x4000000 ${hex(write | present)} the mapping does not allow it`,
      );
    });

    it("gets EFAULT where it has the kernel do it, and the kernel's memory stays as it is", () => {
      const rig = new PagingRig({ cpus: 2, vm });
      const results: number[] = [];
      rig.runProgram([{
        cpu: 1,
        *program(cpu: X86Cpu): Guest {
          const shared = argumentOf(cpu);
          yield* mprotect(cpu, shared, PAGE, PROT_READ);
          for (const address of [data("dead"), PAGE_OFFSET + data("dead"), shared, shared + PAGE, -8, 8]) {
            results.push(yield* getcpu(cpu, address));
          }
        },
      }]);
      assertEquals(results, Array(6).fill(-EFAULT));
      assertEquals(rig.vm.memory.word(data("dead")), 0); // Not 1, its processor.
      rig.quiet();
    });
  });

  describe(`text in pages (${backend})`, () => {
    const AT = 0x800_0000 as Gva;

    /** A kernel thread maps a page at AT, brings it in, and goes to user mode there. */
    function executed(
      prot: number,
    ): { readonly ran: boolean; readonly log: readonly string[]; readonly code: number } {
      const rig = new PagingRig({ vm });
      const { kernel } = rig;
      let ran = false;
      kernel.text.addMapped({ address: AT, load: USER_IMAGE + 0x1000 }, function* jumped(cpu) {
        yield cpu.pause();
        ran = true;
        yield* exit(cpu, 6);
      });
      const codes = rig.runTasks([{
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          const space = yield* kernel.mm.create(cpu);
          yield* kernel.mm.use(cpu, space);
          const call = kernel.sched.syscalls.at(NR_mmap)!;
          const flags = MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED;
          yield* call(cpu, kernel.sched, [AT, PAGE, prot, flags, -1, 0]);
          if ((prot & PROT_WRITE) !== 0) yield* putUser32(cpu, kernel, AT, 0);
          yield cpu.sysret(AT);
        },
      }]);
      return { ran, log: kernel.log, code: codes[0] };
    }

    it("is executed where its mapping says so", () => {
      for (const prot of [PROT_EXEC | PROT_READ, PROT_EXEC | PROT_READ | PROT_WRITE]) {
        assertEquals(executed(prot), { ran: true, log: [], code: 6 << 8 });
      }
    });

    it("is never executed where it does not: data is no program", () => {
      // Where nothing is there yet, access_error has the page brought in first: the second fault is refused.
      for (const prot of [PROT_READ | PROT_WRITE, PROT_READ]) {
        const { ran, log, code } = executed(prot);
        const error = PFERR_USER | PFERR_FETCH | PFERR_PRESENT;
        assertEquals([ran, code], [false, SIGSEGV]);
        assertEquals(log, [
          `task 1: segfault at 0x8000000 ip 0x8000000 error 0x${
            error.toString(16)
          }: the mapping does not allow it`,
        ]);
      }
    });
  });

  describe(`memory that is used up (${backend})`, () => {
    it("ends who asks for more, and what it had serves the others", () => {
      const rig = new PagingRig({ vm, paging: { frames: 64 } });
      const codes = rig.runProgram([{
        *program(cpu: X86Cpu): Guest {
          const memory = yield* mmap(cpu, 100 * PAGE);
          for (let n = 0; n < 100; n++) yield cpu.store32(memory + n * PAGE, n);
        },
      }]);
      assertEquals(codes, [SIGKILL]);
      assert(
        /^task 1: out of memory at 0x[0-9a-f]+ ip .* no memory$/.test(rig.kernel.log[0]),
        rig.kernel.log[0],
      );
      // The kernel's own tables, and what the idle task has borrowed: a PML4, a PDPT, a PD.
      assert(rig.mm("used") <= 12, String(rig.mm("used")));
    });
  });
}
