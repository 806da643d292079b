import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type Call,
  decodeCall,
  decodeStatus,
  encodeCall,
  encodeResults,
  type HypercallArch,
  HYPERCALLS,
  INSTRUCTIONS,
  isFailure,
  MIPS_CONVENTION,
  type RegisterValues,
  viewed,
  type WidthMode,
  X86_CONVENTION,
  X86Cpu,
} from "../../abi/mod.ts";
import { CONVENTIONS } from "../support/conventions.ts";

const U64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const ANY = fc.bigInt({ min: -(1n << 70n), max: 1n << 70n });
const MODES: readonly WidthMode[] = ["wide", "narrow"];

/** A register file that holds junk where nobody wrote. */
function file(values: RegisterValues, junk: bigint): (register: string) => bigint {
  return (register) => values[register] ?? junk;
}

describe("conventions", () => {
  it("exist for all four architectures", () => {
    assertEquals(new Set(CONVENTIONS.map(({ arch }) => arch)), new Set(["x86", "s390", "ppc", "mips"]));
  });

  it("pass x86's arguments in RBX, RCX, RDX, RSI and MIPS' in a0 to a3", () => {
    assertEquals(X86_CONVENTION.arguments, ["rbx", "rcx", "rdx", "rsi"]);
    assertEquals(MIPS_CONVENTION.arguments, ["a0", "a1", "a2", "a3"]);
    assertEquals([X86_CONVENTION.number, MIPS_CONVENTION.number], ["rax", "v0"]);
    assertEquals([X86_CONVENTION.results, MIPS_CONVENTION.results], [["rax"], ["v0"]]);
  });
});

describe("views of a register", () => {
  it("cut, zero-extend and sign-extend, whatever the value", () => {
    fc.assert(fc.property(ANY, (value) => {
      const low = value & 0xffff_ffffn;
      assertEquals(viewed(value, "u64"), value & 0xffff_ffff_ffff_ffffn);
      assertEquals(viewed(value, "u32"), low);
      assertEquals(viewed(value, "s32"), low >= 0x8000_0000n ? low | 0xffff_ffff_0000_0000n : low);
    }));
  });

  it("-KVM_ENOSYS is 0xfffffffffffffc18, 0xfffffc18 on a 32-bit x86 guest, sign-extended on MIPS", () => {
    const result = (convention: typeof CONVENTIONS[number], mode: WidthMode) =>
      Object.values(encodeResults(convention, [-1000n], mode))[0];
    assertEquals(result(X86_CONVENTION, "wide"), 0xffff_ffff_ffff_fc18n);
    assertEquals(result(X86_CONVENTION, "narrow"), 0xffff_fc18n);
    assertEquals(result(MIPS_CONVENTION, "wide"), 0xffff_ffff_ffff_fc18n);
    assertEquals(result(MIPS_CONVENTION, "narrow"), 0xffff_ffff_ffff_fc18n);
  });
});

for (const convention of CONVENTIONS) {
  const { arch, widths } = convention;
  const call: fc.Arbitrary<Call> = fc.record({
    number: ANY,
    arguments: fc.array(ANY, { maxLength: convention.arguments.length }),
  });

  describe(`the convention of ${arch}, ${convention.instructions.map(({ name }) => name).join(" or ")}`, () => {
    it("names no register twice among number and arguments, nor among results", () => {
      const inputs = [convention.number, ...convention.arguments];
      assertEquals(new Set(inputs).size, inputs.length);
      assertEquals(new Set(convention.results).size, convention.results.length);
    });

    it("decodes what it encoded, as far as the mode's width goes", () => {
      fc.assert(fc.property(call, fc.constantFrom(...MODES), U64, (call, mode, junk) => {
        const registers = encodeCall(convention, call, mode);
        const decoded = decodeCall(convention, file(registers, junk), mode);
        assertEquals(decoded.number, viewed(call.number, widths.number[mode]));
        for (const [index, value] of call.arguments.entries()) {
          assertEquals(decoded.arguments[index], viewed(value, widths.arguments[mode]));
        }
        assertEquals(decoded.arguments.length, convention.arguments.length);
      }));
    });

    it("touches no register but the number's and those of the arguments given", () => {
      fc.assert(fc.property(call, fc.constantFrom(...MODES), (call, mode) => {
        const given = convention.arguments.slice(0, call.arguments.length);
        assertEquals(
          new Set(Object.keys(encodeCall(convention, call, mode))),
          new Set([convention.number, ...given]),
        );
      }));
    });

    it("looks at no bit of a register beyond its view", () => {
      const { number, arguments: args } = convention;
      const flips = fc.bigInt({ min: 0n, max: 0xffff_ffffn });
      fc.assert(fc.property(fc.constantFrom(...MODES), U64, flips, (mode, value, flip) => {
        const changed = value ^ (flip << 32n);
        for (const register of [number, ...args]) {
          const view = register === number ? widths.number[mode] : widths.arguments[mode];
          const take = (held: bigint) => {
            const { number: nr, arguments: list } = decodeCall(convention, () => held, mode);
            return register === number ? nr : list[args.indexOf(register)];
          };
          if (view === "u64") assertEquals(take(value) ^ take(changed), flip << 32n);
          else assertEquals(take(value), take(changed));
        }
      }));
    });

    it("gives a status back as the host meant it, if it fits", () => {
      const small = fc.bigInt({ min: -(1n << 31n), max: (1n << 31n) - 1n });
      fc.assert(fc.property(small, fc.constantFrom(...MODES), U64, (status, mode, junk) => {
        const registers = encodeResults(convention, [status], mode);
        assertEquals(decodeStatus(convention, file(registers, junk), mode), status);
      }));
    });

    it("refuses more arguments and results than it has registers", () => {
      const { arguments: args, results } = convention;
      assertThrows(
        () => encodeCall(convention, { number: 0n, arguments: [...args, ""].map(() => 0n) }, "wide"),
        RangeError,
        `Cannot pass ${args.length + 1} arguments on ${arch}: allowed are up to ${args.length}`,
      );
      assertThrows(
        () => encodeResults(convention, [...results, ""].map(() => 0n), "wide"),
        RangeError,
        `Cannot return ${results.length + 1} values on ${arch}: allowed are up to ${results.length}`,
      );
    });

    it("calls what an unknown number gets a failure, unless it is no result at all", () => {
      const { unknown } = convention.errors;
      if (unknown.kind === "registers") assert(isFailure(convention, unknown.values[0]));
      assertEquals(isFailure(convention, 0n), false);
    });

    it("has room for the arguments of each call of its table", () => {
      for (const [name, spec] of Object.entries(HYPERCALLS)) {
        if (!(spec.arch as readonly HypercallArch[]).includes(arch as HypercallArch)) continue;
        assert(spec.args.length <= convention.arguments.length, name);
      }
    });
  });
}

describe("x86's description", () => {
  it("has the instructions that guests execute", () => {
    for (const { text, units } of X86_CONVENTION.instructions) {
      assertEquals(INSTRUCTIONS.find((instruction) => instruction.text === text)?.bytes, [...units]);
    }
  });

  it("loads the registers that the handle loads", () => {
    fc.assert(fc.property(fc.array(U64, { maxLength: 4 }), fc.nat(0xffff), (args, nr) => {
      const cpu = new X86Cpu();
      const before = Object.fromEntries(
        ["rax", "rbx", "rcx", "rdx", "rsi", "rdi"].map((r) => [r, cpu.register(r)]),
      );
      cpu.loadHypercall(nr, args[0], args[1], args[2], args[3]);
      const expected = {
        ...before,
        ...encodeCall(X86_CONVENTION, { number: BigInt(nr), arguments: args }, "wide"),
      };
      for (const [register, value] of Object.entries(expected)) assertEquals(cpu.register(register), value);
    }));
  });
});
