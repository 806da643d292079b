import { assert, assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  type MachineFault,
  MIPS_CP0,
  MIPS_GPR,
  type MipsCpu,
  mipsKseg0,
  mipsRegisterAddress,
} from "../../../abi/mod.ts";
import { ArchGuestError, LimitExceeded, Machine } from "../../../host/mod.ts";
import { MipsRig } from "../../support/mips.ts";

const DATA = mipsKseg0(0x4000);
const STUB = mipsKseg0(0x6000);
const JR_RA = 0x03e0_0008;

/** The error that running a program ends with. */
function failure(rig: MipsRig, program: (cpu: MipsCpu) => Generator<number, void, void>): ArchGuestError {
  return assertThrows(() => rig.run(program), ArchGuestError);
}

describe("activations", () => {
  it("a handler sees the registers as they were, and what it does to them is gone when it returns", () => {
    const seen: bigint[] = [];
    const rig = new MipsRig({
      *handler(cpu) {
        seen.push(cpu.gpr("s0"));
        cpu.setRegister(MIPS_GPR.s0, 99);
        yield cpu.lw(DATA);
        yield cpu.dmfc0Epc();
        yield cpu.dmtc0Epc(cpu.value64 + 4n);
      },
    });
    rig.run(function* (cpu) {
      cpu.setRegister(MIPS_GPR.s0, 7);
      yield cpu.syscall();
      seen.push(cpu.gpr("s0"));
    });
    assertEquals(seen, [7n, 7n]);
  });

  it("a handler gives a value back in the registers of whom it interrupted", () => {
    const rig = new MipsRig({
      *handler(cpu) {
        cpu.setInterruptedRegister(MIPS_GPR.v0, cpu.interruptedRegister(MIPS_GPR.a0) + 1n);
        yield cpu.dmfc0Epc();
        yield cpu.dmtc0Epc(cpu.value64 + 4n);
      },
    });
    let answer = 0n;
    rig.run(function* (cpu) {
      cpu.setRegister(MIPS_GPR.a0, 41);
      yield cpu.syscall();
      answer = cpu.gpr("v0");
    });
    assertEquals(answer, 42n);
  });

  it("an instruction is executed again where its handler returns to it, and done where it returns behind it", () => {
    const tries: number[] = [];
    const rig = new MipsRig({
      *handler(cpu) {
        yield cpu.mfc0Cause();
        tries.push((cpu.value32 >>> 2) & 0x1f);
        if (tries.length < 3) return;
        yield cpu.dmfc0Epc();
        yield cpu.dmtc0Epc(cpu.value64 + 4n);
      },
    });
    let after = false;
    rig.run(function* (cpu) {
      yield cpu.lw(DATA + 2);
      after = true;
    });
    assertEquals([tries, after], [[4, 4, 4], true]);
  });

  it("a fixup throws into the function, which goes on; what it yields in its catch is executed", () => {
    let word = 0;
    let caught: unknown;
    new MipsRig().run(function* (cpu) {
      yield cpu.sw(DATA, 5);
      try {
        yield cpu.lw(DATA + 1);
      } catch (fault) {
        caught = fault;
        yield cpu.lw(DATA);
        word = cpu.value32;
      }
    });
    assertInstanceOf(caught, Error);
    const { exception, code, instruction } = caught as MachineFault;
    assertEquals([exception, code, instruction, word], ["AdEL", 4, "lw $t1, 0($t0)", 5]);
  });

  it("a fixup that nobody catches ends the run, and says whose it was", () => {
    const error = failure(new MipsRig(), function* (cpu) {
      yield cpu.lw(DATA + 1);
    });
    assertEquals(error.where, "start");
    assertStringIncludes(error.message, "lw $t1, 0($t0) caused AdEL (0x4)");
  });

  it("a handler's own fault nests: EPC stays, and both go on", () => {
    const order: string[] = [];
    const rig = new MipsRig({
      *handler(cpu) {
        yield cpu.mfc0Cause();
        if (((cpu.value32 >>> 2) & 0x1f) === 9) {
          order.push("inner");
          const outer = cpu.system(MIPS_CP0.epc);
          // EXL was set: EPC is still the outer one's. The way back is behind the BREAK.
          const { block } = cpu.interrupted("look");
          yield cpu.dmtc0Epc(block.address + cpu.layout.behind[18]);
          assert(outer !== cpu.system(MIPS_CP0.epc));
          return;
        }
        order.push("outer");
        yield cpu.dmfc0Epc();
        const epc = cpu.value64;
        yield cpu.break();
        order.push("outer goes on");
        yield cpu.mfc0Status();
        yield cpu.mtc0Status(cpu.value32 | 2);
        yield cpu.dmtc0Epc(epc + 4n);
      },
    });
    rig.run(function* (cpu) {
      yield cpu.syscall();
      order.push("program");
    });
    assertEquals(order, ["outer", "inner", "outer goes on", "program"]);
  });

  it("words outside text are executed as they stand, until they come back", () => {
    const rig = new MipsRig();
    // lui t1, 0x8000; ori t1, t1, 0x4000; addiu v0, zero, 7; jr ra; sw v0, 0(t1)
    rig.text.addWords(STUB, [0x3c09_8000, 0x3529_4000, 0x2402_0007, JR_RA, 0xad22_0000]);
    let found: unknown;
    rig.run(function* (cpu) {
      yield cpu.call(STUB);
      found = [cpu.gpr("v0"), cpu.gpr("t1")];
      yield cpu.lw(DATA);
      assertEquals(cpu.value32, 7);
    });
    assertEquals(found, [7n, 0xffff_ffff_8000_4000n]);
  });

  it("what somebody patches over an instruction is what happens there", () => {
    const rig = new MipsRig();
    let value = 0;
    rig.run(function* (cpu) {
      yield cpu.sw(DATA, 1);
      yield cpu.sw(DATA + 8, 2);
      const { address } = rig.text.blocks.at(-1)!;
      yield cpu.sw(address + cpu.layout.site[5], 0x8d09_0008); // lw t1, 8(t0)
      yield cpu.lw(DATA);
      value = cpu.value32;
    });
    assertEquals(value, 2);
  });

  it("a jump into the middle of a function, or to where no memory is, does not pass", () => {
    const rig = new MipsRig();
    const error = failure(rig, function* (cpu) {
      yield cpu.call(rig.text.blocks[0].address + 4);
    });
    assertEquals(error.pc, rig.text.blocks[0].address + 4);
    assertStringIncludes(error.message, "neither an entry nor a continuation of a function is there");

    const far = new MipsRig();
    far.run(function* (cpu) {
      yield cpu.call(mipsKseg0(0x1fff_f000));
    });
    assertEquals(far.vm.ending, "KVM_EXIT_INTERNAL_ERROR: a fetch from 0xffffffff9ffff000");
  });

  it("a forgotten yield, a foreign number and an instruction built twice are told in guest terms", () => {
    const twice = failure(new MipsRig(), function* (cpu) {
      cpu.syscall();
      yield cpu.lw(DATA);
    });
    assertStringIncludes(
      twice.message,
      "Cannot build lw $t1, 0($t0): syscall was built before it and not yielded",
    );
    const foreign = failure(new MipsRig(), function* () {
      yield 5;
    });
    assertStringIncludes(foreign.message, "it yielded 5; what it yields must be built by its cpu handle");
    // deno-lint-ignore require-yield
    const forgotten = failure(new MipsRig(), function* (cpu) {
      cpu.syscall();
    });
    assertStringIncludes(forgotten.message, "it built syscall and did not yield it");
  });

  it("an operand that is no number leaves nothing pending", () => {
    new MipsRig().run(function* (cpu) {
      assertThrows(() => cpu.sb(DATA, 0.5), RangeError, "Cannot load 0.5 into a register");
      yield cpu.sb(DATA, 1);
    });
  });

  it("an exception without a handler is a loud error: memory full of NOPs would lead anywhere", () => {
    const error = failure(new MipsRig({ handler: undefined }), function* (cpu) {
      yield cpu.syscall();
    });
    assertStringIncludes(error.message, "Sys (SYSCALL) finds no handler at its vector, 0x80000180");
  });

  it("handlers nest up to a limit that is named", () => {
    const rig = new MipsRig({
      *handler(cpu) {
        yield cpu.syscall();
      },
    });
    const error = failure(rig, function* (cpu) {
      yield cpu.syscall();
    });
    assertStringIncludes(error.message, "24 activations are nested already, the most allowed");
  });
});

describe("a run of a MIPS machine", () => {
  /** A program that never ends. */
  function* forever(cpu: MipsCpu): Generator<number, void, void> {
    for (;;) yield cpu.loadHypercall({ number: 6n, arguments: [] }).hypcall();
  }

  it("stops at the limit of exits, naming it", () => {
    const rig = new MipsRig({ machine: { limits: { exits: 10 } } });
    const error = assertThrows(() => rig.run(forever), LimitExceeded);
    assertStringIncludes(error.message, "raise limits.exits");
    assertEquals(rig.vm.exits(), { HC: 10 });
  });

  it("stops at a deadline, and goes on from there", () => {
    const { vm, text } = new MipsRig();
    vm.load(text);
    const entry = text.add(forever);
    vm.load(text);
    vm.start(entry);
    const { end } = vm.machine.run(100_000);
    const { HC: first } = vm.exits();
    assertEquals(end, "deadline");
    vm.machine.run(200_000);
    assert(vm.exits().HC > first);
  });

  it("is the same again, record by record, under every policy", () => {
    for (const policy of ["timed", { random: 3 }] as const) {
      const bytes = [0, 1].map(() => {
        const machine = new Machine({ policy });
        const vms = [0, 1].map(() => machine.createMipsVm({ host: "imgtec", trace: 64 }));
        for (const [i, vm] of vms.entries()) {
          const { text } = new MipsRig();
          const entry = text.add(function* (cpu) {
            yield cpu.work(1000 * (i + 1));
            for (let n = 0; n < 5; n++) yield cpu.loadHypercall({ number: 6n, arguments: [] }).hypcall();
          });
          vm.load(text);
          vm.start(entry);
        }
        assertEquals(machine.run().end, "finished");
        return vms.map((vm) => [...vm.tracer.bytes()]);
      });
      assertEquals(bytes[0], bytes[1]);
    }
  });

  it("starts vCPUs at entries of their own, each with its own registers", () => {
    const { vm, text } = new MipsRig({ vcpus: 3 });
    const entries = [0, 1, 2].map((i) =>
      text.add(function* (cpu) {
        cpu.setRegister(MIPS_GPR.s0, i);
        yield cpu.sw(DATA + 8 * i, i + 1);
        assertEquals(cpu.gpr("s0"), BigInt(i));
      }, `cpu${i}`)
    );
    vm.load(text);
    for (const [i, vcpu] of vm.vcpus.entries()) vcpu.start(entries[i]);
    assertEquals(vm.machine.run().end, "finished");
    assertEquals([0, 8, 16].map((at) => vm.words.read(0x4000 + at, 4)), [1, 2, 3]);
  });

  it("refuses options that cannot be", () => {
    const machine = new Machine();
    const refused: [Parameters<Machine["createMipsVm"]>[0], string][] = [
      [{ vcpus: 0 }, "Cannot build a virtual machine of 0 vCPUs: allowed are 1 to 64"],
      [{ countHz: 0 }, "Cannot run Count at 0 Hz: allowed are 1 to 2^32 - 1"],
      [
        { host: "xen" as "none" },
        "Cannot simulate a MIPS host xen: allowed are mainline, imgtec, cavium, none",
      ],
    ];
    for (const [options, message] of refused) {
      assertThrows(() => machine.createMipsVm(options), RangeError, message);
    }
    assertThrows(
      () => machine.createMipsVm({ memory: 0x1000 }).load(new MipsRig().text),
      RangeError,
      "Cannot load text at 0x80100000: no memory there",
    );
  });

  it("EPC and addresses of the 32-bit segments are sign-extended in 64-bit registers", () => {
    let epc = 0n;
    const rig = new MipsRig({
      *handler(cpu) {
        yield cpu.dmfc0Epc();
        epc = cpu.value64;
        yield cpu.dmtc0Epc(epc + 4n);
      },
    });
    rig.run(function* (cpu) {
      yield cpu.syscall();
    });
    const { address } = rig.text.blocks.at(-1)!;
    assertEquals(epc, mipsRegisterAddress(address + rig.text.layout.site[17]));
    assertEquals(epc >> 32n, 0xffff_ffffn);
  });
});
