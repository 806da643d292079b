import { assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_PE,
  CR0_PG,
  CR0_WP,
  GeneralProtection,
  GP_VECTOR,
  type Guest,
  InvalidOpcode,
  MAX_FRAMES,
  OP_PAUSE,
  PageFault,
  PF_VECTOR,
  SYS_CR2,
  TEXT_BASE,
  UD_VECTOR,
  X2APIC_EOI,
  X2APIC_SELF_IPI,
  type X86Cpu,
  X86Fault,
} from "../../../abi/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig, type RigOptions } from "../../support/guests.ts";

const NO_MSR = 0x1234;
const READ_ONLY = 0x40_0000;

/** A rig whose exceptions end as fixups, as those of a kernel with an exception table do. */
function rigWithFixups(options: RigOptions = {}): Rig {
  const rig = new Rig(options);
  for (const vector of [UD_VECTOR, GP_VECTOR, PF_VECTOR]) {
    rig.on(vector, function* (cpu) {
      cpu.fixup();
      yield cpu.iret();
    });
  }
  return rig;
}

/** What a run of a program throws. */
function errorOf(program: (cpu: X86Cpu) => Guest, rig: Rig = new Rig()): GuestError {
  rig.start(program);
  return assertThrows(() => rig.vm.machine.run(), GuestError);
}

for (const backend of BACKENDS) {
  describe(`an instruction that faults (${backend})`, () => {
    const options: RigOptions = { vm: { backend } };

    it("throws into the function where its handler fixes up: this is rdmsr_safe", () => {
      const rig = rigWithFixups(options);
      function* rdmsrSafe(cpu: X86Cpu): Generator<number, boolean, void> {
        try {
          yield cpu.rdmsr(NO_MSR);
          return true;
        } catch (error) {
          assertInstanceOf(error, GeneralProtection);
          assertEquals([error.vector, error.errorCode, error.instruction], [GP_VECTOR, 0, "rdmsr"]);
          assertEquals(error.message, "Cannot execute rdmsr: #GP(0x0)");
          return false;
        }
      }
      const answers: boolean[] = [];
      rig.finish(function* (cpu) {
        answers.push(yield* rdmsrSafe(cpu));
        yield cpu.pause();
        answers.push(yield* rdmsrSafe(cpu));
      });
      assertEquals(answers, [false, false]);
    });

    it("throws what the exception is", () => {
      const rig = rigWithFixups({
        vm: { ...options.vm!, slots: [{ base: READ_ONLY, size: 4096, guestReadonly: true }] },
      });
      const caught: X86Fault[] = [];
      rig.finish(function* (cpu) {
        yield cpu.movToCr0(CR0_PE | CR0_PG | CR0_WP);
        for (const faulty of [() => cpu.ud2(), () => cpu.rdmsr(NO_MSR), () => cpu.store32(READ_ONLY, 1)]) {
          try {
            yield faulty();
          } catch (error) {
            assertInstanceOf(error, X86Fault);
            caught.push(error);
          }
        }
      });
      assertEquals(caught.map(({ name }) => name), ["InvalidOpcode", "GeneralProtection", "PageFault"]);
      assertInstanceOf(caught[0], InvalidOpcode);
      assertInstanceOf(caught[2], PageFault);
    });

    it("goes through `finally` blocks and out of sub-functions, as an exception does", () => {
      const rig = rigWithFixups(options);
      const order: string[] = [];
      function* inner(cpu: X86Cpu): Guest {
        try {
          yield cpu.ud2();
        } finally {
          yield cpu.pause();
          order.push("finally");
        }
      }
      rig.finish(function* (cpu) {
        try {
          yield* inner(cpu);
        } catch (error) {
          order.push((error as Error).name);
        }
        yield cpu.pause();
        order.push("end");
      });
      assertEquals(order, ["finally", "InvalidOpcode", "end"]);
    });

    it("is retried, operands and all, where its handler only returns: this is demand paging", () => {
      const rig = new Rig({
        vm: { ...options.vm!, slots: [{ base: READ_ONLY, size: 8192, guestReadonly: true }] },
      });
      const faults: number[] = [];
      rig.on(PF_VECTOR, function* (cpu) {
        const { sys } = rig.vm.bootstrap.processor;
        faults.push(cpu.errorCode, sys[SYS_CR2]);
        yield cpu.store64(DATA, -1, -1); // Clobbers RAX and RDI.
        yield cpu.movToCr0(CR0_PE | CR0_PG);
      }).finish(function* (cpu) {
        yield cpu.movToCr0(CR0_PE | CR0_PG | CR0_WP);
        yield cpu.load32(READ_ONLY + 8); // Reading is allowed.
        assertEquals(faults, []);
        yield cpu.store64(READ_ONLY + 4094, 0x1234_5678, 0x9abc_def0);
        yield cpu.load64(READ_ONLY + 4094);
        assertEquals(cpu.rax, 0x9abc_def0_1234_5678n);
      });
      // SDM 3A 4.7: present, write, supervisor.
      assertEquals(faults, [3, READ_ONLY + 4094]);
    });

    it("names in CR2 the first byte that faults, also where the access begins on another page", () => {
      const rig = rigWithFixups({
        vm: {
          ...options.vm!,
          memory: READ_ONLY,
          slots: [{ base: READ_ONLY, size: 4096, guestReadonly: true }],
        },
      });
      rig.finish(function* (cpu) {
        yield cpu.movToCr0(CR0_PE | CR0_PG | CR0_WP);
        try {
          yield cpu.store32(READ_ONLY - 1, -1);
        } catch {
          yield cpu.load32(READ_ONLY - 4);
          assertEquals(cpu.eax, 0, "nothing is written");
        }
      });
      assertEquals(rig.vm.bootstrap.processor.sys[SYS_CR2], READ_ONLY);
    });

    it("is done with where its handler has emulated it and skips it", () => {
      const rig = new Rig(options);
      rig.on(UD_VECTOR, function* (cpu) {
        cpu.setInterruptedRax(42, 7);
        cpu.skip();
        yield cpu.iret();
      }).finish(function* (cpu) {
        yield cpu.ud2();
        assertEquals(cpu.rax, 7n << 32n | 42n);
        yield cpu.ud2();
      });
    });

    it("in a handler faults in its turn: handlers nest", () => {
      const rig = rigWithFixups(options);
      const order: string[] = [];
      rig.on(0x40, function* (cpu) {
        try {
          yield cpu.rdmsr(NO_MSR);
        } catch (error) {
          order.push((error as Error).name);
        }
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
        yield cpu.pause();
        order.push("program");
      });
      assertEquals(order, ["GeneralProtection", "program"]);
    });

    it("beyond the physical address space raises #GP", () => {
      const rig = rigWithFixups(options);
      let caught = 0;
      rig.finish(function* (cpu) {
        for (const address of [2 ** 52, 2 ** 52 - 4, 2 ** 53 - 8]) {
          try {
            yield cpu.load64(address);
          } catch (error) {
            assertInstanceOf(error, GeneralProtection);
            caught++;
          }
        }
      });
      assertEquals(caught, 3);
    });
  });
}

describe("a fault that nobody catches", () => {
  it("is an error that names processor, function, instruction pointer and instruction", () => {
    const error = errorOf(function* careless(cpu) {
      yield cpu.pause();
      yield cpu.rdmsr(NO_MSR);
    }, rigWithFixups());
    assertStringIncludes(error.message, "Cannot go on in careless on vcpu 0 at RIP 0x1003");
    assertStringIncludes(error.message, "nobody caught #GP of rdmsr");
    assertEquals([error.processor, error.where], ["vcpu 0", "careless"]);
    assertInstanceOf(error.cause, GeneralProtection);
  });
});

describe("a mistake in guest code is told in guest terms:", () => {
  it("an exception that escapes", () => {
    const cause = new TypeError("no such thing");
    // deno-lint-ignore require-yield
    const error = errorOf(function* buggy() {
      throw cause;
    });
    assertEquals(
      error.message,
      `Cannot go on in buggy on vcpu 0 at RIP 0x${TEXT_BASE.toString(16)}: no such thing`,
    );
    assertEquals(error.cause, cause);
  });

  it("a forgotten yield, naming both instructions", () => {
    const error = errorOf(function* forgetful(cpu) {
      cpu.rdtsc();
      yield cpu.pause();
    });
    assertStringIncludes(error.message, "forgetful on vcpu 0");
    assertStringIncludes(error.message, "Cannot build pause: rdtsc was built before it and not yielded");
  });

  it("a forgotten yield at the end", () => {
    const error = errorOf(function* forgetful(cpu) {
      yield cpu.pause();
      cpu.cpuid(0);
    });
    assertStringIncludes(error.message, "it returned without yielding cpuid, which it had built");
  });

  it("a yield of what its handle did not build", () => {
    for (const foreign of [OP_PAUSE, 0, 999, "hlt", undefined]) {
      const error = errorOf(function* foreigner() {
        yield foreign as number;
      });
      assertStringIncludes(
        error.message,
        `it yielded ${foreign}; what it yields must be built by its cpu handle`,
      );
    }
  });

  it("a function that is no generator function", () => {
    for (const plain of [() => undefined, () => [1], async function* () {}]) {
      const error = errorOf(plain as unknown as (cpu: X86Cpu) => Guest);
      assertStringIncludes(error.message, "it is no generator function");
    }
  });

  it("a yield of another instruction than was built", () => {
    const error = errorOf(function* mixed(cpu) {
      cpu.rdtsc();
      yield OP_PAUSE;
    });
    assertStringIncludes(error.message, "it built rdtsc and yielded pause");
  });

  it("an address that is no number", () => {
    for (const address of [-(2 ** 47) - 1, 0.5, NaN, 2 ** 53]) {
      const error = errorOf(function* lost(cpu) {
        yield cpu.load32(address);
      });
      assertStringIncludes(
        error.message,
        `Cannot address ${address}: allowed are whole numbers from -2^47 to 2^53 - 1`,
      );
    }
  });

  it("a handler's question where nothing was interrupted", () => {
    const calls: [string, (cpu: X86Cpu) => void][] = [
      ["fix up", (cpu) => cpu.fixup()],
      ["skip an instruction", (cpu) => cpu.skip()],
      ["return a value", (cpu) => cpu.setInterruptedRax(0)],
      ["read the interrupted RIP", (cpu) => void cpu.interruptedRip],
    ];
    for (const [what, call] of calls) {
      const error = errorOf(function* program(cpu) {
        yield cpu.pause();
        call(cpu);
      });
      assertStringIncludes(error.message, `Cannot ${what}: no activation was interrupted`);
    }
  });

  it("a fixup or a skip where an interrupt came between two instructions", () => {
    for (const verb of ["fixup", "skip"] as const) {
      const rig = new Rig().on(0x40, function* handler(cpu) {
        cpu[verb]();
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      const error = errorOf(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
        yield cpu.pause();
      }, rig);
      assertStringIncludes(error.message, "handler on vcpu 0");
      assertStringIncludes(error.message, "no instruction is pending there");
    }
  });

  it("handlers that nest without end", () => {
    const rig = new Rig().on(UD_VECTOR, function* again(cpu) {
      yield cpu.ud2();
    });
    const error = errorOf(function* (cpu) {
      yield cpu.ud2();
    }, rig);
    assertStringIncludes(error.message, `again on vcpu 0`);
    assertStringIncludes(error.message, `${MAX_FRAMES} activations are nested already, the most allowed`);
    assertEquals(rig.vm.bootstrap.processor.context.depth, MAX_FRAMES);
  });

  it("an activation whose RIP a handler sent astray", () => {
    const rig = new Rig().on(UD_VECTOR, function* handler(cpu) {
      const interrupted = cpu.top.below;
      interrupted.rip = 0x1234;
      yield cpu.iret();
    });
    const error = errorOf(function* astray(cpu) {
      yield cpu.ud2();
    }, rig);
    assertStringIncludes(error.message, "astray on vcpu 0");
    assertStringIncludes(error.message, "RIP 0x1234 is neither an entry nor a continuation");
  });
});
