import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  BO_ALWAYS,
  BO_COUNT,
  BO_FALSE,
  BO_TRUE,
  encodePpc,
  MachineFault,
  MSR_SF,
  PPC_CR,
  PPC_CTR,
  PPC_LR,
  PPC_XER,
  ppcAsm,
  SPRS,
} from "../../../abi/mod.ts";
import type { PpcVmOptions } from "../../../host/mod.ts";
import { CODE, DATA, routine, runPpc } from "../../support/ppc.ts";

/** Registers by number, before and after words. */
type Registers = Readonly<Record<number, bigint>>;

function run(
  words: readonly number[],
  before: Registers,
  options: PpcVmOptions = {},
  narrow = false,
): Map<number, bigint> {
  const after = new Map<number, bigint>();
  runPpc(options, function* (cpu) {
    yield cpu.mfmsr();
    const msr = cpu.r3;
    if (narrow) yield cpu.mtmsrd(msr & ~MSR_SF);
    for (const [number, value] of Object.entries(before)) cpu.setRegister(Number(number), value);
    yield cpu.call(CODE);
    for (let r = 0; r < 36; r++) after.set(r, cpu.register(r));
    if (narrow) yield cpu.mtmsrd(msr);
  }, { code: routine(...words) });
  return after;
}

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const MANY = { numRuns: 25 };

/** Bits of a 64-bit value, the most significant one first. */
function bits(value: bigint): number[] {
  return Array.from({ length: 64 }, (_, i) => Number((value >> BigInt(63 - i)) & 1n));
}
function number(list: readonly number[]): bigint {
  return list.reduce((value, bit) => (value << 1n) | BigInt(bit), 0n);
}

describe("integer instructions", () => {
  it("rotate and mask as the manual's pseudo-code does, bit by bit", () => {
    fc.assert(
      fc.property(u64, u64, fc.nat(31), fc.nat(31), fc.nat(31), (rs, ra, SH, MB, ME) => {
        const low = bits(rs).slice(32);
        const rotated = Array.from({ length: 64 }, (_, i) => low[(i + SH) % 32]);
        const inMask = (i: number) => {
          const [mb, me] = [MB + 32, ME + 32];
          return mb <= me ? i >= mb && i <= me : i <= me || i >= mb;
        };
        const masked = number(rotated.map((bit, i) => inMask(i) ? bit : 0));
        const inserted = number(rotated.map((bit, i) => inMask(i) ? bit : bits(ra)[i]));
        const after = run([
          encodePpc("rlwinm", { RA: 5, RS: 3, SH, MB, ME }),
          encodePpc("rlwimi", { RA: 4, RS: 3, SH, MB, ME }),
        ], { 3: rs, 4: ra });
        assertEquals([after.get(5), after.get(4)], [masked, inserted]);
      }),
      MANY,
    );
    fc.assert(
      fc.property(u64, fc.nat(63), fc.nat(63), (rs, SH6, end) => {
        const rotated = Array.from({ length: 64 }, (_, i) => bits(rs)[(i + SH6) % 64]);
        const after = run([
          encodePpc("rldicl", { RA: 5, RS: 3, SH6, MB6: end }),
          encodePpc("rldicr", { RA: 6, RS: 3, SH6, ME6: end }),
        ], { 3: rs });
        assertEquals(after.get(5), number(rotated.map((bit, i) => i >= end ? bit : 0)));
        assertEquals(after.get(6), number(rotated.map((bit, i) => i <= end ? bit : 0)));
      }),
      MANY,
    );
  });

  it("compute modulo the register's width, and tell the sign in CR0 by the mode's", () => {
    fc.assert(
      fc.property(
        u64,
        u64,
        fc.constantFrom<["wide" | "narrow" | "core32", number]>(["wide", 64], ["narrow", 32], ["core32", 32]),
        (
          a,
          b,
          [kind, width],
        ) => {
          const core = kind === "core32" ? 32 : 64;
          const options: PpcVmOptions = { host: kind === "core32" ? "book3s-32-pr" : "book3s-64-pr" };
          const after = run(
            [
              encodePpc("add", { RT: 5, RA: 3, RB: 4, RC: 1 }),
              encodePpc("subf", { RT: 6, RA: 3, RB: 4 }),
              encodePpc("neg", { RT: 7, RA: 3 }),
              encodePpc("nor", { RA: 8, RS: 3, RB: 4 }),
              encodePpc("andc", { RA: 9, RS: 3, RB: 4 }),
            ],
            { 3: a, 4: b },
            options,
            kind === "narrow",
          );
          const cut = (value: bigint) => BigInt.asUintN(core, value);
          assertEquals(
            [5, 6, 7, 8, 9].map((r) => after.get(r)),
            [cut(a + b), cut(b - a), cut(-a), cut(~(a | b)), cut(a & ~b)],
          );
          const sum = BigInt.asIntN(width, a + b);
          assertEquals(after.get(PPC_CR)! >> 28n, sum < 0n ? 8n : sum > 0n ? 4n : 2n);
        },
      ),
      { numRuns: 30 },
    );
  });

  it("compare 32 or 64 bits, signed or not, into any field, beside XER's overflow", () => {
    fc.assert(
      fc.property(u64, u64, fc.nat(7), fc.nat(1), fc.boolean(), (a, b, BF, L, overflow) => {
        const after = run([
          encodePpc("cmp", { BF, L, RA: 3, RB: 4 }),
          encodePpc("mfcr", { RT: 5 }),
          encodePpc("cmpl", { BF, L, RA: 3, RB: 4 }),
        ], { 3: a, 4: b, [PPC_XER]: overflow ? 0x8000_0000n : 0n, [PPC_CR]: 0n });
        const width = L === 1 ? 64 : 32;
        const field = (x: bigint, y: bigint) => (x < y ? 8n : x > y ? 4n : 2n) | (overflow ? 1n : 0n);
        const at = BigInt(28 - 4 * BF);
        assertEquals(after.get(5), field(BigInt.asIntN(width, a), BigInt.asIntN(width, b)) << at);
        assertEquals(after.get(PPC_CR), field(BigInt.asUintN(width, a), BigInt.asUintN(width, b)) << at);
      }),
      MANY,
    );
  });

  it("take a zero for register 0 in addresses and immediates, and register 0 itself elsewhere", () => {
    const after = run([
      encodePpc("addi", { RT: 3, RA: 0, SI: 5 }),
      encodePpc("addis", { RT: 4, RA: 0, SI: -1 }),
      encodePpc("ori", { RA: 5, RS: 0, UI: 1 }),
    ], { 0: 0x10n });
    assertEquals([after.get(3), after.get(4), after.get(5)], [5n, 0xffff_ffff_ffff_0000n, 0x11n]);
  });

  it("carry out of a subtraction from an immediate", () => {
    for (const [a, carry] of [[5n, true], [7n, true], [8n, false], [2n ** 64n - 1n, false]] as const) {
      const after = run([encodePpc("subfic", { RT: 5, RA: 3, SI: 7 })], { 3: a });
      assertEquals(after.get(5), BigInt.asUintN(64, 7n - a));
      assertEquals((after.get(PPC_XER)! & 0x2000_0000n) !== 0n, carry);
    }
  });
});

describe("loads and stores", () => {
  for (const order of ["big", "little"] as const) {
    it(`put their bytes in the mode's order, and byte-reversed ones in the other: ${order}-endian`, () => {
      const address = BigInt(DATA);
      const vm = { bytes: [] as number[] };
      runPpc({ order }, function* (cpu) {
        cpu.setRegister(3, 0x0102_0304_0506_0708n);
        cpu.setRegister(4, address);
        yield cpu.call(CODE);
        assertEquals(
          [5, 6, 7, 8].map((r) => cpu.register(r)),
          order === "big"
            ? [0x0102_0304n, 0x0102n, 0x01n, 0x0403_0201n]
            : [0x0506_0708n, 0x0708n, 0x08n, 0x0807_0605n],
        );
        for (let i = 0; i < 16; i++) {
          yield cpu.lbz(DATA + i);
          vm.bytes.push(Number(cpu.r3));
        }
      }, {
        code: routine(
          encodePpc("std", { RS: 3, DS: 0, RA: 4 }),
          encodePpc("lwz", { RT: 5, D: 0, RA: 4 }),
          encodePpc("lhz", { RT: 6, D: 0, RA: 4 }),
          encodePpc("lbz", { RT: 7, D: 0, RA: 4 }),
          encodePpc("lwbrx", { RT: 8, RA: 0, RB: 4 }),
          ppcAsm.li(9, 8),
          encodePpc("stwbrx", { RS: 3, RA: 4, RB: 9 }),
          encodePpc("sth", { RS: 3, D: 12, RA: 4 }),
          encodePpc("stb", { RS: 3, D: 14, RA: 4 }),
        ),
      });
      const little = [8, 7, 6, 5, 4, 3, 2, 1, 5, 6, 7, 8, 8, 7, 8, 0];
      const big = [1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 7, 8, 8, 0];
      assertEquals(vm.bytes, order === "big" ? big : little);
    });
  }

  it("address modulo the mode's width", () => {
    const words = [encodePpc("stw", { RS: 5, D: -4, RA: 4 }), encodePpc("lwz", { RT: 6, D: -4, RA: 4 })];
    const after = run(words, { 4: 0xffff_ffff_0000_0000n + BigInt(DATA), 5: 0x1234n }, {}, true);
    assertEquals(after.get(6), 0x1234n);
  });

  it("fault where no memory is, and leave register and memory as they were", () => {
    for (const host of ["book3s-64-pr", "book3s-32-pr", "e500v2", "e500mc", "book3s-64-hv"] as const) {
      const booke = host.startsWith("e500");
      runPpc({ host }, function* (cpu) {
        for (
          const word of [encodePpc("lwz", { RT: 5, D: 0, RA: 4 }), encodePpc("stw", { RS: 5, D: 0, RA: 4 })]
        ) {
          const store = word >>> 26 === 36;
          cpu.setRegister(4, 0x7fff_0000);
          cpu.setRegister(5, 5);
          let fault: MachineFault | undefined;
          try {
            yield cpu.call(store ? CODE + 8 : CODE);
          } catch (error) {
            if (!(error instanceof MachineFault)) throw error;
            fault = error;
          }
          assertEquals(fault?.exception, "DATA_STORAGE");
          assertEquals(cpu.register(5), 5n);
          yield cpu.mfspr(booke ? "DEAR" : "DAR");
          assertEquals(cpu.r3, 0x7fff_0000n);
          yield cpu.mfspr(booke ? "ESR" : "DSISR");
          const expected = booke ? (store ? 0x80_0000n : 0n) : store ? 0x4200_0000n : 0x4000_0000n;
          assertEquals(cpu.r3, expected, `${host} ${store}`);
        }
      }, {
        code: [
          ...routine(encodePpc("lwz", { RT: 5, D: 0, RA: 4 })),
          ...routine(encodePpc("stw", { RS: 5, D: 0, RA: 4 })),
        ],
      });
    }
  });
});

describe("branches", () => {
  it("go where their condition says, and leave their way back in LR", () => {
    const cr = (bit: number) => BigInt(0x8000_0000 >>> bit);
    for (
      const [BO, set, taken] of [
        [BO_TRUE, true, true],
        [BO_TRUE, false, false],
        [BO_FALSE, true, false],
        [BO_FALSE, false, true],
        [BO_ALWAYS, false, true],
      ] as const
    ) {
      const after = run([
        encodePpc("bc", { BO, BI: 9, BD: 8 }),
        ppcAsm.li(3, 1),
      ], { 3: 0n, [PPC_CR]: set ? cr(9) : 0n });
      assertEquals(after.get(3), taken ? 0n : 1n);
    }
    const calls = run([
      ppcAsm.mfspr(31, SPRS.LR),
      encodePpc("b", { LI: 12, LK: 1 }),
      ppcAsm.mtspr(SPRS.LR, 31),
      encodePpc("b", { LI: 12 }),
      ppcAsm.mfspr(5, SPRS.LR),
      encodePpc("bclr", { BO: BO_ALWAYS, BI: 0 }),
    ], {});
    assertEquals(calls.get(5), BigInt(CODE + 8));
  });

  it("count CTR down to zero, in the mode's width", () => {
    const loop = [
      encodePpc("addi", { RT: 3, RA: 3, SI: 1 }),
      encodePpc("bc", { BO: BO_COUNT, BI: 0, BD: -4 }),
    ];
    // CTR is what calls the routine: the loop sets it anew.
    const body = [ppcAsm.mtspr(SPRS.CTR, 4), ...loop];
    assertEquals(run(body, { 3: 0n, 4: 7n }).get(3), 7n);
    assertEquals(run(body, { 3: 0n, 4: 0xffff_ffff_0000_0003n }, {}, true).get(3), 3n);
  });

  it("compute for as many cycles as CTR says where they go to themselves", () => {
    let clock = 0;
    const vm = runPpc({}, function* (cpu) {
      yield cpu.mftb();
      const begun = cpu.r3;
      yield cpu.work(1_000_000);
      yield cpu.mftb();
      clock = Number(cpu.r3 - begun);
      assertEquals(cpu.register(PPC_CTR), 0n);
    });
    assertEquals(clock >= 1_000_000 && clock < 1_000_100, true);
    assertEquals(vm.machine.engine.steps < 100, true);
  });

  it("to nowhere end in an instruction storage interrupt", () => {
    let srr0 = 0n;
    runPpc({}, function* (cpu) {
      yield cpu.call(0x7fff_0000);
    }, {
      handlers: {
        *INST_STORAGE(cpu) {
          yield cpu.mfspr("SRR0");
          srr0 = cpu.r3;
          yield cpu.mfspr("SRR1");
          assertEquals(cpu.r3 & 0x4000_0000n, 0x4000_0000n);
          yield cpu.mtspr("SRR0", cpu.interruptedRegister(PPC_LR));
          yield cpu.mfspr("SRR1");
          yield cpu.mtspr("SRR1", cpu.r3 & ~0x4000_0000n);
        },
      },
    });
    assertEquals(srr0, 0x7fff_0000n);
  });
});

describe("traps", () => {
  it("trap where one of their conditions holds, and nowhere else", () => {
    const conditions = (a: bigint, b: bigint) => {
      const [ua, ub] = [BigInt.asUintN(32, a), BigInt.asUintN(32, b)];
      return (a < b ? 16 : 0) | (a > b ? 8 : 0) | (a === b ? 4 : 0) | (ua < ub ? 2 : 0) | (ua > ub ? 1 : 0);
    };
    const values = [-1n, 0n, 1n, 2n];
    for (const a of values) {
      for (const b of values) {
        for (let TO = 0; TO < 32; TO += 5) {
          let trapped = false;
          runPpc({}, function* (cpu) {
            cpu.setRegister(3, a);
            cpu.setRegister(4, b);
            try {
              yield cpu.call(CODE);
            } catch {
              trapped = true;
            }
          }, { code: routine(encodePpc("tw", { TO, RA: 3, RB: 4 })) });
          assertEquals(trapped, (TO & conditions(a, b)) !== 0, `${TO} ${a} ${b}`);
        }
      }
    }
  });
});
