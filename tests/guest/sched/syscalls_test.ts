import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  FLAG_AC,
  FLAG_IF,
  type Guest,
  hex,
  IA32_EFER,
  IA32_FMASK,
  IA32_LSTAR,
  IA32_STAR,
  R10,
  R8,
  R9,
  RDI,
  RDX,
  RFLAGS,
  RSI,
  type X86Cpu,
  X86Fault,
} from "../../../abi/mod.ts";
import {
  ENOSYS,
  exit,
  rdmsr,
  SIGILL,
  SIGSEGV,
  syscall,
  SyscallTable,
  taskField,
} from "../../../guest/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { TaskRig } from "../../support/tasks.ts";

for (const backend of BACKENDS) {
  describe(`a system call (${backend})`, () => {
    it("gets six arguments in the registers of the ABI, and returns a signed result", () => {
      const rig = new TaskRig({ vm: { backend } });
      const seen: unknown[] = [];
      rig.kernel.sched.syscalls.add(500, function* (cpu, _sched, args) {
        seen.push(args, cpu.cpl, cpu.interruptsEnabled);
        yield cpu.work(1);
        return -(2 ** 40);
      });
      const values = [1, -1, 2 ** 40, -(2 ** 40), 2 ** 31, 0x7fff_ffff_f000];
      let result = 0;
      rig.runTasks([{
        *program(cpu: X86Cpu): Guest {
          result = yield* syscall(cpu, 500, ...values);
          for (const [n, word] of [RDI, RSI, RDX, R10, R8, R9].entries()) {
            const kept = (cpu.regs[word + 1] | 0) * 2 ** 32 + cpu.regs[word];
            assertEquals(kept, values[n]);
          }
        },
      }]);
      assertEquals(seen, [values, 0, true]);
      assertEquals(result, -(2 ** 40));
    });

    it("that there is not is refused, and the program goes on", () => {
      const rig = new TaskRig({ vm: { backend } });
      const results: number[] = [];
      const codes = rig.runTasks([{
        *program(cpu: X86Cpu): Guest {
          for (const nr of [400, 0xffff_ffff]) results.push(yield* syscall(cpu, nr));
          yield* exit(cpu, 1);
        },
      }]);
      assertEquals([results, codes], [[-ENOSYS, -ENOSYS], [256]]);
    });

    it("takes none of the caller's flags into the kernel, and gives all of them back", () => {
      const rig = new TaskRig({ vm: { backend } });
      const entry: number[] = [];
      rig.kernel.sched.syscalls.add(500, function* (cpu) {
        entry.push(cpu.regs[RFLAGS] & (FLAG_AC | FLAG_IF));
        yield cpu.work(1);
        return 0;
      });
      rig.runTasks([{
        *program(cpu: X86Cpu): Guest {
          cpu.regs[RFLAGS] |= FLAG_AC; // POPF, which user code may use to set AC.
          yield* syscall(cpu, 500);
          assertEquals(cpu.regs[RFLAGS] & (FLAG_AC | FLAG_IF), FLAG_AC | FLAG_IF);
        },
      }]);
      assertEquals(entry, [FLAG_IF]); // The kernel's own STI; AC would let it touch user pages under SMAP.
    });

    it("finds each processor set up for it", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      const seen: string[][] = [];
      rig.runTasks([0, 1].map((n) => ({
        cpu: n,
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          const values: string[] = [];
          for (const msr of [IA32_EFER, IA32_STAR, IA32_LSTAR, IA32_FMASK]) {
            values.push(hex(yield* rdmsr(cpu, msr)));
          }
          seen.push(values);
        },
      })));
      const entry = rig.kernel.text.blocks.find(({ name }) => name === "entry_SYSCALL_64")!.address;
      // SCE, LME, LMA; __USER32_CS and __KERNEL_CS; CF PF AF ZF SF TF IF DF OF IOPL NT RF AC ID.
      const wanted = ["0x501", "0x23001000000000", hex(entry), "0x257fd5"];
      assertEquals(seen, [wanted, wanted]);
    });
  });

  describe(`a user program that does what it may not (${backend})`, () => {
    it("ends with a signal and a message that says where; others go on", () => {
      const rig = new TaskRig({ vm: { backend } });
      const after: string[] = [];
      const bad = (what: (cpu: X86Cpu) => number) => ({
        *program(cpu: X86Cpu): Guest {
          yield what(cpu);
          after.push("the program went on");
        },
      });
      const codes = rig.runTasks([
        bad((cpu) => cpu.hlt()),
        bad((cpu) => cpu.cli()),
        bad((cpu) => cpu.movToCr3(0)),
        bad((cpu) => cpu.wrmsr(IA32_LSTAR, 0)),
        bad((cpu) => cpu.ud2()),
        {
          *program(cpu: X86Cpu): Guest {
            yield cpu.work(100);
            yield* exit(cpu, 9);
          },
        },
      ]);
      assertEquals(codes, [SIGSEGV, SIGSEGV, SIGSEGV, SIGSEGV, SIGILL, 9 << 8]);
      assertEquals(after, []);
      assertEquals(rig.kernel.log.map((line) => line.replace(/0x[0-9a-f]{5,}/, "RIP")), [
        "task 1: #GP(0x0) at ip RIP",
        "task 2: #GP(0x0) at ip RIP",
        "task 3: #GP(0x0) at ip RIP",
        "task 4: #GP(0x0) at ip RIP",
        "task 5: #UD(0x0) at ip RIP",
      ]);
    });

    it("does not take the kernel's own fixups away", () => {
      const rig = new TaskRig({ vm: { backend } });
      let caught: unknown;
      rig.runTasks([{
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          try {
            yield cpu.rdmsr(0x1234_5678);
          } catch (fault) {
            caught = fault;
          }
        },
      }]);
      assertEquals(caught instanceof X86Fault, true);
      assertEquals(rig.kernel.log, []);
    });
  });
}

describe("the table of system calls", () => {
  it("takes each number once", () => {
    const table = new SyscallTable();
    table.add(1, function* (cpu) {
      yield cpu.pause();
      return 0;
    });
    assertThrows(
      () => table.add(1, table.at(1)!),
      RangeError,
      "Cannot add system call 1: it is there already",
    );
    assertEquals(table.at(2), undefined);
  });

  it("has its tasks in guest memory", () => {
    const rig = new TaskRig();
    rig.runTasks([{ *program(): Guest {} }]);
    assertEquals(rig.vm.memory.word(taskField(rig.tasks[0], "pid")), 1);
  });
});
