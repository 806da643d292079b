import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { EXCEPTIONS, GP_VECTOR, type Guest, type X86Cpu, X86Fault } from "../../../abi/mod.ts";
import { BACKENDS, GuestError, LimitExceeded, NotModelled } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig } from "../../support/guests.ts";

type Build = (cpu: X86Cpu, a: number, b: number, c: number) => number;

/** Every instruction, with whatever operands. */
const INSTRUCTIONS: readonly Build[] = [
  (cpu, a, b) => cpu.cpuid(a, b),
  (cpu, a) => cpu.rdmsr(a),
  (cpu, a, b, c) => cpu.wrmsr(a, b, c),
  (cpu) => cpu.rdtsc(),
  (cpu, a, b, c) => cpu.loadHypercall(a, b, c, a, b).vmcall(),
  (cpu, a, b, c) => cpu.loadHypercall(a, b, c, a, b).vmmcall(),
  (cpu) => cpu.pause(),
  (cpu) => cpu.cli(),
  (cpu) => cpu.sti(),
  (cpu) => cpu.pushf(),
  (cpu, a) => cpu.in8(a),
  (cpu, a) => cpu.in16(a),
  (cpu, a) => cpu.in32(a),
  (cpu, a, b) => cpu.out8(a, b),
  (cpu, a, b) => cpu.out16(a, b),
  (cpu, a, b) => cpu.out32(a, b),
  (cpu, a) => cpu.load8(a),
  (cpu, a) => cpu.load16(a),
  (cpu, a) => cpu.load32(a),
  (cpu, a) => cpu.load64(a),
  (cpu, a, b) => cpu.store8(a, b),
  (cpu, a, b) => cpu.store16(a, b),
  (cpu, a, b) => cpu.store32(a, b),
  (cpu, a, b, c) => cpu.store64(a, b, c),
  (cpu, a, b) => cpu.btr(a, b),
  (cpu, a, b) => cpu.bts(a, b),
  (cpu, a, b) => cpu.lockBtr(a, b),
  (cpu, a, b) => cpu.lockBts(a, b),
  (cpu, a, b) => cpu.xchg32(a, b),
  (cpu, a, b, c) => cpu.xchg64(a, b, c),
  (cpu, a, b, c) => cpu.cmpxchg32(a, b, c),
  (cpu, a, b, c) => cpu.cmpxchg64(a, b, c),
  (cpu, a, b) => cpu.xadd32(a, b),
  (cpu, a) => cpu.movToCr0(a),
  (cpu, a, b) => cpu.movToCr3(a, b),
  (cpu, a) => cpu.movToCr4(a),
  (cpu, a, b) => cpu.movToCr8(a, b),
  (cpu) => cpu.movFromCr0(),
  (cpu) => cpu.movFromCr3(),
  (cpu) => cpu.movFromCr4(),
  (cpu) => cpu.movFromCr8(),
  (cpu, a) => cpu.lidt(a),
  (cpu, a) => cpu.loadCs(a),
  (cpu) => cpu.iret(),
  (cpu) => cpu.syscall(),
  (cpu, a, b) => cpu.sysret(a, b),
  (cpu) => cpu.ud2(),
  (cpu) => cpu.invd(),
  (cpu) => cpu.wbinvd(),
  (cpu, a) => cpu.work(a),
  (cpu, a, b) => cpu.pauseWhile(a, b),
  (cpu) => cpu.hlt(),
  (cpu) => cpu.movFromCr2(),
  (cpu, a) => cpu.invlpg(a),
  (cpu, a, b) => cpu.invpcid(b, a),
  (cpu) => cpu.stac(),
  (cpu) => cpu.clac(),
  (cpu, a) => cpu.load32(-a % 2 ** 47),
  (cpu, a, b) => cpu.store64(-a % 2 ** 47, b),
  (cpu, a) => cpu.invlpg(-a % 2 ** 47),
];

/** Numbers at which something changes: modes, registers, pages, MSRs, widths. */
const EDGES = [
  ...[0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 0xff, 0x100, 0xfff, 0x1000, 0xffff],
  ...[DATA, 0x10_0000, 0x1f_ffff, 0x20_0000, 0xd000_0000, 0xfec0_0010, 0xfee0_0020, 0xfee0_00b0, 0xfee0_0300],
  ...[0x10, 0x1b, 0x3b, 0x6e0, 0x802, 0x80b, 0x830, 0x838, 0x83f, 0x4b56_4d04, 0x4b56_4d05, 0xc000_0080],
  ...[
    0x8000_0001,
    0x8001_0033,
    0xfee0_0800,
    0xfee0_0c00,
    0x4500,
    0xc_4500,
    0x4400,
    0x4608,
    0x4_0040,
    0x8_0040,
  ],
  ...[0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 2 ** 32, 2 ** 40, 2 ** 52 - 1, 2 ** 52, 2 ** 53 - 1],
];

const operand = fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...EDGES) }, fc.nat(0xffff_ffff));
const act = fc.tuple(fc.nat(INSTRUCTIONS.length - 1), operand, operand, operand);

describe("whatever a guest executes", () => {
  it("ends in guest terms: a result, or an error that says what went wrong there", () => {
    const options = fc.record({
      acts: fc.array(act, { minLength: 1, maxLength: 20 }),
      backend: fc.constantFrom(...BACKENDS),
      mode: fc.constantFrom("64-bit" as const, "32-bit" as const),
      policy: fc.constantFrom("timed" as const, { random: 7 }),
      handled: fc.boolean(),
      x2apic: fc.boolean(),
    });
    fc.assert(
      fc.property(options, ({ acts, backend, mode, policy, handled, x2apic }) => {
        const limits = { steps: 20_000, exits: 2_000 };
        const rig = new Rig({
          mode,
          machine: { pcpus: 2, policy, limits },
          vm: { backend, vcpus: 2, trace: 64 },
        });
        for (const { vector } of handled ? EXCEPTIONS : []) {
          rig.on(vector, function* (cpu): Guest {
            // A fault goes into the function that caused it; what came in place of an interrupt only returns.
            if (cpu.top.below.pending !== 0) cpu.fixup();
            yield cpu.iret();
          });
        }
        rig.start(function* program(cpu) {
          if (x2apic) yield* enableX2apic(cpu);
          for (const [instruction, a, b, c] of acts) {
            try {
              yield INSTRUCTIONS[instruction](cpu, a, b, c);
            } catch (error) {
              if (!(error instanceof X86Fault)) throw error;
            }
          }
        });
        let end: string;
        try {
          ({ end } = rig.vm.machine.run(1e12));
        } catch (error) {
          const known = [GuestError, NotModelled, LimitExceeded].some((kind) => error instanceof kind);
          // What the handle refuses is told by the guest's error, which names its cause.
          if (!known) throw error;
          const { cause } = error as Error;
          if (
            cause instanceof Error && !(cause instanceof X86Fault) &&
            !/^Cannot (address|load|build) /.test(cause.message)
          ) {
            throw cause;
          }
          return;
        }
        assertEquals(["finished", "halted", "shutdown", "deadline"].includes(end), true, end);
      }),
      { numRuns: 300 },
    );
  });

  it("is executed the same again", () => {
    const seen = new Set<number>();
    const acts = fc.array(act, { minLength: 1, maxLength: 10 });
    fc.assert(
      fc.property(acts, fc.constantFrom(...BACKENDS), (acts, backend) => {
        const run = () => {
          const rig = new Rig({
            machine: { pcpus: 1, limits: { steps: 5_000 } },
            vm: { backend, trace: 1000 },
          });
          rig.on(GP_VECTOR, function* (cpu): Guest {
            if (cpu.top.below.pending !== 0) cpu.fixup();
            yield cpu.iret();
          });
          rig.start(function* program(cpu) {
            for (const [instruction, a, b, c] of acts) {
              seen.add(instruction);
              try {
                yield INSTRUCTIONS[instruction](cpu, a, b, c);
              } catch (error) {
                if (!(error instanceof X86Fault)) throw error;
              }
            }
          });
          let end: string;
          try {
            ({ end } = rig.vm.machine.run(1e12));
          } catch (error) {
            end = String(error);
          }
          return { end, trace: rig.vm.tracer.bytes(), clock: rig.vm.bootstrap.clock };
        };
        assertEquals(run(), run());
      }),
      { numRuns: 100 },
    );
    assertEquals(seen.size > INSTRUCTIONS.length / 2, true, "most instructions have had their turn");
  });
});
