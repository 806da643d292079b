import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  DF_VECTOR,
  GATE_INTERRUPT,
  GATE_TRAP,
  GP_VECTOR,
  hex,
  KERNEL32_CS,
  LENGTH,
  NP_VECTOR,
  OP_IRET,
  OP_PAUSE,
  OP_UD2,
  SITE,
  TEXT_BASE,
  UD_VECTOR,
  USER_CS,
  X2APIC_EOI,
  X2APIC_SELF_IPI,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import { DATA, enableX2apic, type GateOptions, Rig, type RigOptions } from "../../support/guests.ts";

const VECTOR = 0x51;
const NOT_PRESENT: GateOptions = { type: 0x0e };

/** Requests an interrupt from itself. */
const interruptSelf = (cpu: X86Cpu, vector = VECTOR) => cpu.wrmsr(X2APIC_SELF_IPI, vector);

/** Where an instruction of the first function in text is. */
const siteOf = (op: number) => hex(TEXT_BASE + SITE[op]);

/** A rig whose handlers write down what reached them, as `vector(error code)`, and step over what faulted. */
function noting(vectors: readonly number[], options: RigOptions = {}, gate: GateOptions = {}) {
  const rig = new Rig(options);
  const seen: string[] = [];
  for (const vector of vectors) {
    rig.on(vector, function* handler(cpu) {
      seen.push(`${cpu.vector}(${cpu.errorCode})`);
      if (vector < 32) cpu.fixup();
      else yield cpu.wrmsr(X2APIC_EOI, 0);
      yield cpu.iret();
    }, gate);
  }
  return { rig, seen };
}

/** Raises #UD, and catches what a handler makes of it. */
function* invalid(cpu: X86Cpu) {
  try {
    yield cpu.ud2();
  } catch {
    // A handler ended as fixup.
  }
}

for (const backend of BACKENDS) {
  for (const mode of ["64-bit", "32-bit"] as const) {
    const options: RigOptions = { mode, vm: { backend } };

    describe(`delivery through a ${mode} IDT (${backend})`, () => {
      it("runs the vector's handler, with IF clear behind an interrupt gate and kept behind a trap gate", () => {
        for (const [type, enabled] of [[GATE_INTERRUPT, false], [GATE_TRAP, true]] as const) {
          const rig = new Rig(options);
          const seen: unknown[] = [];
          rig.on(UD_VECTOR, function* (cpu) {
            seen.push(cpu.vector, cpu.errorCode, cpu.interruptsEnabled);
            cpu.skip();
            yield cpu.iret();
            seen.push("not reached");
          }, { type }).finish(function* (cpu) {
            yield cpu.sti();
            yield cpu.ud2();
            seen.push(cpu.interruptsEnabled);
          });
          assertEquals(seen, [UD_VECTOR, 0, enabled, true]);
        }
      });

      it("of a vector whose gate is not present raises #NP, whose error code names the vector in the IDT", () => {
        const { rig, seen } = noting([NP_VECTOR], options);
        rig.gate(UD_VECTOR, 0, NOT_PRESENT);
        rig.finish(invalid);
        // SDM 3A 6.13: index << 3, IDT, EXT (an earlier exception is external).
        assertEquals(seen, [`${NP_VECTOR}(${(UD_VECTOR << 3) | 3})`]);
      });

      it("through a gate of another type raises #GP", () => {
        for (const type of [0x85, 0x8c, 0x80, 0x9e]) { // Task, call; none; an interrupt gate's, but for bit 4.
          const { rig, seen } = noting([GP_VECTOR], options);
          rig.gate(UD_VECTOR, 0, { type });
          rig.finish(invalid);
          assertEquals(seen, [`${GP_VECTOR}(${(UD_VECTOR << 3) | 3})`]);
        }
      });

      it("beyond the IDT's limit raises #GP", () => {
        const { rig, seen } = noting([UD_VECTOR, VECTOR], options);
        rig.on(GP_VECTOR, function* (cpu) {
          seen.push(`${cpu.vector}(${cpu.errorCode})`);
          yield cpu.iret(); // It took an interrupt's place: no instruction is at fault.
        }).finish(function* (cpu) {
          yield* enableX2apic(cpu);
          const gate = mode === "64-bit" ? 16 : 8;
          yield cpu.store16(DATA, gate * 32 - 1); // Exceptions alone.
          yield cpu.store32(DATA + 2, 0);
          yield cpu.store32(DATA + 6, 0);
          yield cpu.lidt(DATA);
          yield* invalid(cpu);
          yield interruptSelf(cpu);
          yield cpu.sti();
          yield cpu.pause();
          yield cpu.pause();
        });
        assertEquals(seen, [`${UD_VECTOR}(0)`, `${GP_VECTOR}(${(VECTOR << 3) | 3})`]);
      });

      it("to a code segment that the GDT lacks, or a user's, raises #GP with the selector", () => {
        const bad = [0x18, USER_CS];
        if (mode === "64-bit") bad.push(KERNEL32_CS); // A 64-bit gate leads to 64-bit code.
        for (const selector of bad) {
          const { rig, seen } = noting([GP_VECTOR], options);
          rig.on(UD_VECTOR, function* (cpu) {
            seen.push("not reached");
            yield cpu.iret();
          }, { selector });
          rig.finish(invalid);
          assertEquals(seen, [`${GP_VECTOR}(${(selector & 0xfffc) | 1})`]);
        }
      });

      it("that fails twice is a double fault, with error code 0", () => {
        const { rig, seen } = noting([DF_VECTOR], options);
        rig.gate(GP_VECTOR, 0, NOT_PRESENT);
        rig.finish(function* (cpu) {
          try {
            yield cpu.rdmsr(0x1234);
          } catch {
            // What the handler of #DF makes of it.
          }
        });
        assertEquals(seen, [`${DF_VECTOR}(0)`]);
      });

      it("of a benign exception that fails is no double fault: the second exception is delivered", () => {
        // SDM 3A table 6-5: #UD, then #NP.
        const { rig, seen } = noting([NP_VECTOR, DF_VECTOR], options);
        rig.gate(UD_VECTOR, 0, NOT_PRESENT);
        rig.finish(invalid);
        assertEquals(seen.length, 1);
        assertEquals(seen[0].startsWith(`${NP_VECTOR}(`), true);
      });

      it("that fails three times shuts the virtual machine down", () => {
        const rig = new Rig(options);
        const seen: string[] = [];
        const result = rig.run(function* (cpu) {
          seen.push("began");
          yield cpu.ud2();
          seen.push("went on");
        });
        assertEquals(result.end, "shutdown");
        assertEquals(seen, ["began"]);
        assertEquals(rig.vm.exits()[backend === "vmx" ? "TRIPLE_FAULT" : "shutdown"], 1);
        assertEquals(rig.vm.counters().kvm_userspace_exit, 1);
      });
    });
  }

  describe(`interrupts (${backend})`, () => {
    const options: RigOptions = { vm: { backend } };

    it("wait while IF is clear, and are taken once it is set", () => {
      const { rig, seen } = noting([VECTOR], options);
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield interruptSelf(cpu);
        for (let i = 0; i < 10; i++) yield cpu.pause();
        assertEquals(seen, []);
        yield cpu.sti();
        yield cpu.pause();
        yield cpu.pause();
        assertEquals(seen, [`${VECTOR}(0)`]);
      });
    });

    it("are held off by STI for exactly one more instruction", () => {
      const { rig, seen } = noting([VECTOR], options);
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield interruptSelf(cpu);
        yield cpu.sti();
        yield cpu.cli();
        for (let i = 0; i < 10; i++) yield cpu.pause();
        assertEquals(seen, [], "STI; CLI lets nothing in");
        yield cpu.sti();
        yield cpu.pause();
        yield cpu.cli();
        assertEquals(seen, [`${VECTOR}(0)`], "STI; PAUSE; CLI lets one in before the CLI");
      });
    });

    it("that wait for STI end the HLT behind it: no wake-up is lost", () => {
      const { rig, seen } = noting([VECTOR], options);
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield interruptSelf(cpu);
        yield cpu.sti();
        yield cpu.hlt();
      });
      assertEquals(seen, [`${VECTOR}(0)`]);
    });

    it("nest where the handler lets them, higher class first", () => {
      const rig = new Rig(options);
      const order: string[] = [];
      const handler = (name: string, inside?: (cpu: X86Cpu) => number) =>
        function* (cpu: X86Cpu) {
          order.push(`${name} begins`);
          yield cpu.sti();
          if (inside !== undefined) yield inside(cpu);
          yield cpu.pause();
          yield cpu.cli();
          order.push(`${name} ends`);
          yield cpu.wrmsr(X2APIC_EOI, 0);
        };
      rig.on(0x41, handler("0x41", (cpu) => interruptSelf(cpu, 0x61)));
      rig.on(0x61, handler("0x61", (cpu) => interruptSelf(cpu, 0x62))); // The same class: it waits.
      rig.on(0x62, handler("0x62"));
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.sti();
        yield interruptSelf(cpu, 0x41);
        yield cpu.pause();
        order.push("program");
      });
      assertEquals(order, [
        "0x41 begins",
        "0x61 begins",
        "0x61 ends",
        "0x62 begins",
        "0x62 ends",
        "0x41 ends",
        "program",
      ]);
    });

    it("leave the interrupted activation's registers and flags as they were", () => {
      const { rig, seen } = noting([], options);
      rig.on(VECTOR, function* (cpu) {
        seen.push("handled");
        yield cpu.cpuid(0); // EAX, EBX, ECX, EDX.
        yield cpu.load64(DATA); // RDI.
        yield cpu.lockBts(DATA, 0); // CF.
        yield cpu.cmpxchg32(DATA, 5, 5); // ZF.
        cpu.loadHypercall(1, 2, 3, 4, 5);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.store32(DATA, 5);
        yield interruptSelf(cpu);
        cpu.loadHypercall(0xa, -1n, -2n, -3n, -4n);
        yield cpu.lockBts(DATA, 0); // CF is set.
        const registers = ["rbx", "rcx", "rdx", "rsi", "rdi", "rax"];
        yield cpu.sti();
        const before = registers.map((name) => cpu.register(name));
        const { cf, zf } = cpu;
        yield cpu.pause();
        yield cpu.pause();
        assertEquals(seen, ["handled"]);
        assertEquals(registers.map((name) => cpu.register(name)), before);
        assertEquals([cpu.cf, cpu.zf], [cf, zf]);
        assertEquals([cpu.cf, cpu.interruptsEnabled], [true, true]);
      });
    });

    it("tell their handler where they came from", () => {
      const rig = new Rig(options);
      const seen: number[] = [];
      rig.on(VECTOR, function* (cpu) {
        seen.push(cpu.vector, cpu.interruptedRip, cpu.interruptedCpl);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.finish(function* program(cpu) {
        yield* enableX2apic(cpu);
        yield interruptSelf(cpu);
        yield cpu.sti();
        yield cpu.pause();
        yield cpu.rdtsc();
        assertEquals(cpu.vector, 0xffff_ffff, "no event delivered a program");
      });
      const program = rig.text.blocks.find(({ name }) => name === "program")!;
      const behind = program.address + SITE[OP_PAUSE] + LENGTH[OP_PAUSE];
      assertEquals(seen, [VECTOR, behind, 0]);
    });
  });
}

describe("what no hardware could go on with", () => {
  it("is an IDT that no memory backs", () => {
    const rig = new Rig();
    rig.start(function* lost(cpu) {
      yield cpu.store16(DATA, 0xfff);
      yield cpu.store64(DATA + 2, 0, 1);
      yield cpu.lidt(DATA);
      yield cpu.ud2();
    });
    assertThrows(
      () => rig.vm.machine.run(),
      GuestError,
      `lost on vcpu 0 at RIP ${siteOf(OP_UD2)}: its IDT is at 0x100000060, which no memory backs`,
    );
  });

  it("is a gate that leads to no function, or into the middle of one", () => {
    for (const address of [0x5000, 0x10_0004]) {
      const rig = new Rig();
      rig.gate(UD_VECTOR, address);
      rig.start(function* lost(cpu) {
        yield cpu.ud2();
      });
      assertThrows(
        () => rig.vm.machine.run(),
        GuestError,
        `0x${address.toString(16)} is not the entry of a guest function`,
      );
    }
  });

  it("is an IRET that no event precedes", () => {
    const rig = new Rig();
    rig.start(function* program(cpu) {
      yield cpu.iret();
    });
    assertThrows(
      () => rig.vm.machine.run(),
      GuestError,
      `program on vcpu 0 at RIP ${siteOf(OP_IRET)}: it executed IRET, but no event delivered this activation`,
    );
  });
});
