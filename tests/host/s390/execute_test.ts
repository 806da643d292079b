import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  assembleInstruction,
  LOWCORE,
  MachineFault,
  PGM_ADDRESSING,
  PGM_OPERATION,
  S390_FORMATS,
  S390_OP_LG,
  S390_SYS_CR0,
  type S390Mnemonic,
} from "../../../abi/mod.ts";
import { S390Kernel } from "../../../guest/mod.ts";
import { Machine, RealStorage, type S390Vm } from "../../../host/mod.ts";
import { MEMORY } from "../../support/s390.ts";

const DATA = 0x10_0000;
const U64 = 2n ** 64n;

interface Executed {
  readonly gprs: readonly bigint[];
  readonly cc: number;
  readonly pic: number;
  readonly vm: S390Vm;
  /** Where the instruction was. */
  readonly site: number;
}

/** Executes one instruction's bytes in the place of an LG, with any registers and data. */
function execute(
  bytes: Uint8Array,
  gprs: readonly bigint[],
  data: Readonly<Uint8Array>,
  cc0: number = 0,
): Executed {
  const vm = new Machine().createS390Vm({ memory: MEMORY });
  let [after, cc, pic]: [bigint[], number, number] = [[], -1, 0];
  const kernel = new S390Kernel({
    *main(cpu) {
      const op = cpu.load64(0);
      for (const [number, value] of gprs.entries()) cpu.setRegister(number, value);
      try {
        yield op;
      } catch (error) {
        if (!(error instanceof MachineFault)) throw error;
        pic = error.code;
      }
      after = Array.from({ length: 16 }, (_, number) => cpu.register(number));
      cc = cpu.cc;
    },
  });
  vm.load(kernel.text);
  vm.memory.load(DATA, data);
  const site = kernel.entry + kernel.text.layout.site[S390_OP_LG];
  vm.memory.load(site, Uint8Array.from({ length: 6 }, (_, i) => [7, 0, 7, 0, 7, 0][i])); // nopr
  vm.memory.load(site, bytes);
  vm.vcpus[0].setConditionCode(cc0);
  vm.start(kernel.entry);
  assertEquals(vm.machine.run(1e6).end, "finished");
  return { gprs: after, cc, pic, vm, site };
}

const u64 = fc.bigInt({ min: 0n, max: U64 - 1n });
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });

/** Big-endian, or the other way round. */
function number(from: Uint8Array, little: boolean = false): bigint {
  const ordered = little ? from.toReversed() : from;
  return ordered.reduce((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

const LOADS: readonly (readonly [name: S390Mnemonic, size: number, little: boolean, keeps: boolean])[] = [
  ["LLGC", 1, false, false],
  ["LLGH", 2, false, false],
  ["LLGF", 4, false, false],
  ["LG", 8, false, false],
  ["LRVH", 2, true, true],
  ["LRV", 4, true, true],
  ["LRVG", 8, true, false],
];
const STORES: readonly (readonly [name: S390Mnemonic, size: number, little: boolean])[] = [
  ["STC", 1, false],
  ["STH", 2, false],
  ["ST", 4, false],
  ["STG", 8, false],
  ["STRVH", 2, true],
  ["STRV", 4, true],
  ["STRVG", 8, true],
];

/** An operand somewhere in the 64 bytes at DATA, by any base, index and displacement. */
const operand = fc.record({
  r1: fc.nat(15),
  x2: fc.nat(15),
  b2: fc.nat(15),
  d2: fc.nat(0xfff),
  dh2: fc.nat(0xff),
  offset: fc.nat(56),
  gprs: fc.array(u64, { minLength: 16, maxLength: 16 }),
}, { noNullPrototype: true });

/** Registers with which the operand is at its place; undefined where these fields reach nothing. */
function placed(
  { x2, b2, d2, dh2, offset, gprs }: typeof operand extends fc.Arbitrary<infer T> ? T : never,
  wide: boolean,
) {
  const address = BigInt(DATA + offset);
  const displacement = BigInt(d2) + (wide ? BigInt.asIntN(8, BigInt(dh2)) * 4096n : 0n);
  const loaded = [...gprs];
  const rest = BigInt.asUintN(64, address - displacement);
  if (x2 === 0 && b2 === 0) return undefined;
  if (x2 !== 0 && b2 !== 0) {
    if (x2 === b2) return undefined;
    loaded[b2] = BigInt.asUintN(64, rest - loaded[x2]);
  } else {
    loaded[x2 || b2] = rest;
  }
  return loaded;
}

describe("the CPU, whatever the fields and registers", () => {
  for (const [name, size, little, keeps] of LOADS) {
    it(`loads with ${name}`, () => {
      fc.assert(
        fc.property(operand, bytes(64), (operand, data) => {
          const { r1, x2, b2, d2, dh2, offset } = operand;
          const gprs = placed(operand, true);
          if (gprs === undefined) return;
          const found = number(data.slice(offset, offset + size), little);
          const bits = BigInt(8 * size);
          const expected = [...gprs];
          expected[r1] = keeps ? ((gprs[r1] >> bits) << bits) | found : found;
          const result = execute(
            assembleInstruction(S390_FORMATS[name], "big", { r1, x2, b2, d2, dh2 }),
            gprs,
            data,
          );
          assertEquals([result.pic, result.gprs], [0, expected]);
        }),
        { numRuns: 30 },
      );
    });
  }

  for (const [name, size, little] of STORES) {
    it(`stores with ${name}`, () => {
      fc.assert(
        fc.property(operand, bytes(64), (operand, data) => {
          const { r1, x2, b2, d2, dh2, offset } = operand;
          const format = S390_FORMATS[name];
          const wide = format.units.length === 3;
          const gprs = placed(operand, wide);
          if (gprs === undefined) return;
          const image = Array.from({ length: size }, (_, i) => Number((gprs[r1] >> BigInt(8 * i)) & 0xffn));
          const expected = [...data];
          expected.splice(offset, size, ...(little ? image : image.toReversed()));
          const fields = wide ? { r1, x2, b2, d2, dh2 } : { r1, x2, b2, d2 };
          const result = execute(assembleInstruction(format, "big", fields), gprs, data);
          assertEquals([result.pic, result.gprs, [...result.vm.words.bytes(DATA, 64)!]], [0, gprs, expected]);
        }),
        { numRuns: 30 },
      );
    });
  }

  it("compares and swaps words, by the low halves of the registers", () => {
    const picks = fc.record({ r1: fc.nat(15), r3: fc.nat(15), equal: fc.boolean() });
    fc.assert(
      fc.property(picks, fc.array(u64, { minLength: 16, maxLength: 16 }), bytes(64), (picks, gprs, data) => {
        const { r1, r3, equal } = picks;
        if (r1 === 5 || r3 === 5) return; // the base
        gprs[5] = BigInt(DATA);
        const word = number(data.slice(0, 4));
        if (equal) gprs[r1] = ((gprs[r1] >> 32n) << 32n) | word;
        const same = (gprs[r1] & 0xffff_ffffn) === word;
        const expected = [...gprs];
        if (!same) expected[r1] = ((gprs[r1] >> 32n) << 32n) | word;
        const { vm, cc, gprs: after } = execute(
          assembleInstruction(S390_FORMATS.CS, "big", { r1, r3, b2: 5, d2: 0 }),
          gprs,
          data,
        );
        assertEquals([cc, after], [same ? 0 : 1, expected]);
        assertEquals(BigInt(vm.words.read(DATA, 4)!), same ? gprs[r3] & 0xffff_ffffn : word);
      }),
      { numRuns: 60 },
    );
  });

  it("reaches memory up to its last byte, and is interrupted for one more", () => {
    for (const [name, size] of [...LOADS, ...STORES]) {
      const at = (address: number) => {
        const gprs = Array.from({ length: 16 }, () => 0n);
        gprs[1] = BigInt(address);
        return execute(assembleInstruction(S390_FORMATS[name], "big", {}), gprs, new Uint8Array(64));
      };
      assertEquals([at(MEMORY - size).pic, at(MEMORY - size + 1).pic], [0, PGM_ADDRESSING], name);
    }
  });
});

describe("the CPU", () => {
  const none = () => Array.from({ length: 16 }, () => 0n);
  const run = (
    text: string,
    gprs: readonly bigint[] = none(),
    data: readonly number[] = [],
    cc: number = 0,
  ) =>
    execute(Uint8Array.from(text.split(" "), (byte) => parseInt(byte, 16)), gprs, Uint8Array.from(data), cc);

  it("branches by its condition code, and not to register 0", () => {
    const { site } = run("07 00");
    const gprs = none();
    gprs[5] = BigInt(site + 6);
    for (let mask = 0; mask < 16; mask++) {
      for (let cc = 0; cc < 4; cc++) {
        // What stands behind the branch is no instruction.
        const taken = run(`07 ${(16 * mask + 5).toString(16)} 00 00`, gprs, [], cc);
        assertEquals(taken.pic, (mask & (8 >> cc)) !== 0 ? 0 : PGM_OPERATION, `mask ${mask}, code ${cc}`);
      }
    }
    assertEquals(run("07 f0 07 00").pic, 0);
  });

  it("branches on count, as often as the count says", () => {
    const count = (n: bigint) => {
      const gprs = none();
      gprs[5] = n;
      const { vm, pic, gprs: after } = run("07 00 a7 57 ff ff", gprs);
      assertEquals([pic, after[5]], [0, 0n]);
      return vm.vcpus[0].instructions;
    };
    assertEquals(count(6n) - count(1n), 10);
  });

  it("loads and stores control registers from one to another, round the end", () => {
    const gprs = none();
    gprs[1] = BigInt(DATA);
    const values = [1, 2, 3, 4].flatMap((value) => [0, 0, 0, 0, 0, 0, 0, value]);
    const loaded = run("eb e1 10 00 00 2f", gprs, values).vm;
    const { context } = loaded.vcpus[0];
    assertEquals([14, 15, 0, 1].map((register) => context.system(S390_SYS_CR0 + register)), [1n, 2n, 3n, 4n]);
    const stored = run("eb e0 10 00 00 25", gprs).vm;
    assertEquals([0, 8, 16].map((at) => stored.words.read64(DATA + at)), [0xc200_0000n, 0n, 0xe0n]);
  });

  it("tells the number of a supervisor call", () => {
    const { vm, pic } = run("0a 2a");
    const { svc_code, svc_ilc } = LOWCORE.fields;
    assertEquals([pic, vm.words.read(svc_code.offset, 2), vm.words.read(svc_ilc.offset, 2)], [0, 0x2a, 2]);
  });

  it("has a prefix of the bits that a prefix has", () => {
    const gprs = none();
    gprs[1] = BigInt(DATA);
    const { vm, pic } = run("b2 10 10 00", gprs, [0x80, 0x00, 0x5f, 0xff]);
    assertEquals([pic, vm.vcpus[0].storage.prefix], [0, 0x4000]);
  });
});

describe("real storage", () => {
  it("has the first 8 KiB and those at the prefix in each other's place, byte by byte, across pages", () => {
    const addresses = fc.oneof(
      fc.nat(0x3010),
      fc.integer({ min: 0x3ff0, max: 0x6010 }),
      fc.integer({ min: 0x7ff0, max: 0xa010 }),
    );
    fc.assert(
      fc.property(fc.constantFrom(0, 0x4000, 0x8000), addresses, u64, (prefix, address, value) => {
        const vm = new Machine().createS390Vm({ memory: MEMORY });
        const storage = new RealStorage(vm.words);
        storage.prefix = prefix;
        assert(storage.write(address, 8, value));
        assertEquals(storage.read(address, 8), value);
        for (let i = 0; i < 8; i++) {
          const real = address + i;
          const absolute = real < 0x2000
            ? real + prefix
            : real >= prefix && real < prefix + 0x2000
            ? real - prefix
            : real;
          assertEquals(vm.memory.byte(absolute), Number((value >> BigInt(56 - 8 * i)) & 0xffn));
        }
      }),
      { numRuns: 100 },
    );
  });

  it("writes all or nothing", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const storage = new RealStorage(vm.words);
    assertEquals(storage.write(MEMORY - 4, 8, U64 - 1n), false);
    assertEquals(storage.writeBytes(MEMORY - 4, new Uint8Array(8).fill(1)), false);
    assertEquals(vm.words.read(MEMORY - 4, 4), 0);
    assertEquals(storage.fault(BigInt(MEMORY - 4), 8), { kind: "addressing" });
    assertEquals(storage.fault(BigInt(MEMORY - 8), 8), undefined);
  });
});
