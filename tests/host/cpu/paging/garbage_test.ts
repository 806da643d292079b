import { assert } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  CR4_PCIDE,
  CR4_PGE,
  CR4_SMAP,
  CR4_SMEP,
  entryOf,
  EXCEPTIONS,
  type Guest,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  PTE_P,
  type X86Cpu,
} from "../../../../abi/mod.ts";
import { type Acceleration, BACKENDS, GuestError, LimitExceeded, NotModelled } from "../../../../host/mod.ts";
import { DATA } from "../../../support/guests.ts";
import {
  addUser,
  attempt,
  pagingOn,
  PagingRig,
  setCr4,
  setEfer,
  TABLES,
  USER_PAGE,
  USER_TEXT,
  writeProtect,
} from "../../../support/paging.ts";

const READ_ONLY = 0x40_0000;
const UPPER_SLOT = 2 ** 40;

/** What an entry may hold where nobody has thought about it: frames that are tables, devices, nothing, or no address. */
const ADDRESSES = [
  ...[0, DATA, TABLES, TABLES + 0x1000, TABLES + 0x2000, 0x10_0000, 0x20_0000, READ_ONLY, UPPER_SLOT],
  ...[0xfec0_0000, 0xfee0_0000, 0xd000_0000, 0xffff_f000, 2 ** 32, 2 ** 45, 2 ** 46 - 4096, 2 ** 46, 2 ** 47],
  ...[2 ** 48, 2 ** 51, 2 ** 52 - 4096],
];
const FLAGS = [0, 1, 3, 5, 7, 0x63, 0x67, 0x81, 0x83, 0x87, 0xe3, 0x103, 0x107, 0x1e7, 0x1083];
const half = fc.oneof(fc.constantFrom(0, 1, 3, 7, 0x83, 0x8000_0000, 0xffff_ffff), fc.nat(0xffff_ffff));
/** An entry's halves. */
const entry = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.tuple(fc.constantFrom(...ADDRESSES), fc.constantFrom(...FLAGS), fc.boolean()).map((
      [address, flags, noExecute],
    ) => [(address | flags) >>> 0, (Math.floor(address / 2 ** 32) | (noExecute ? 0x8000_0000 : 0)) >>> 0]),
  },
  { weight: 1, arbitrary: fc.tuple(half, half) },
);

/** Addresses: of both halves, their edges, those of devices, and of no memory at all. */
const linear = fc.oneof(
  fc.constantFrom(
    ...[
      0,
      8,
      DATA,
      DATA + 0xffd,
      TABLES,
      TABLES + 0xffc,
      0x10_0000,
      0x1f_fffe,
      0x20_0000,
      READ_ONLY,
      0xfee0_0020,
    ],
    ...[
      0xfec0_0000,
      0xd000_0ffe,
      2 ** 30,
      2 ** 39,
      2 ** 39 - 3,
      UPPER_SLOT,
      2 ** 47 - 8,
      2 ** 47 - 1,
      2 ** 47,
    ],
    ...[
      2 ** 52 - 1,
      2 ** 52,
      2 ** 53 - 1,
      -1,
      -3,
      -8,
      -4096,
      -(2 ** 21),
      -(2 ** 30) + DATA,
      -(2 ** 39),
      -(2 ** 47),
    ],
  ),
  fc.nat(0x3f_ffff),
  fc.tuple(fc.nat(511), fc.nat(2 ** 32 - 1)).map(([top, rest]) =>
    (top < 256 ? top : top - 512) * 2 ** 39 + rest
  ),
);
const CR4 = [0, CR4_PGE, CR4_PCIDE, CR4_PCIDE | CR4_PGE, CR4_SMEP, CR4_SMAP, CR4_SMAP | CR4_SMEP | CR4_PGE];

type Build = (cpu: X86Cpu, at: number, value: number, more: number) => number;
const INSTRUCTIONS: readonly Build[] = [
  (cpu, at) => cpu.load8(at),
  (cpu, at) => cpu.load16(at),
  (cpu, at) => cpu.load32(at),
  (cpu, at) => cpu.load64(at),
  (cpu, at, value) => cpu.store8(at, value),
  (cpu, at, value) => cpu.store16(at, value),
  (cpu, at, value) => cpu.store32(at, value),
  (cpu, at, value, more) => cpu.store64(at, value, more),
  (cpu, at, value) => cpu.btr(at, value),
  (cpu, at, value) => cpu.lockBts(at, value),
  (cpu, at, value) => cpu.xchg32(at, value),
  (cpu, at, value, more) => cpu.xchg64(at, value, more),
  (cpu, at, value, more) => cpu.cmpxchg32(at, value, more),
  (cpu, at, value, more) => cpu.cmpxchg64(at, value, more),
  (cpu, at, value) => cpu.xadd32(at, value),
  (cpu, at) => cpu.invlpg(at),
  (cpu, at, value) => cpu.invpcid(value & 7, at),
  (cpu, at) => cpu.lidt(at),
  (cpu, at, value) => cpu.pauseWhile(at, value),
  (cpu, at) => cpu.movToCr3(at >>> 0, Math.floor(at / 2 ** 32) & 0x8000_3fff),
  (cpu, _at, value) => cpu.movToCr4(0x20 | CR4[value % CR4.length]),
  (cpu, _at, value) => cpu.movToCr0(0x8000_0011 | (value << 16)),
  (cpu) => cpu.movFromCr2(),
  (cpu) => cpu.movFromCr3(),
  (cpu) => cpu.stac(),
  (cpu) => cpu.clac(),
  (cpu) => cpu.loadHypercall(1).vmcall(),
  (cpu) => cpu.loadHypercall(1).vmmcall(),
  (cpu, at, value) => cpu.wrmsr(0xc000_0080, value & 1 ? 0xd01 : 0x501, at & 0),
  (cpu, at) => cpu.wrmsr(0x4b56_4d04, (at & ~3) | 1, Math.floor(at / 2 ** 32)),
  (cpu) => cpu.ud2(),
  (cpu) => cpu.rdtsc(),
];
const act = fc.tuple(fc.nat(INSTRUCTIONS.length - 1), linear, half, half);

/** Most guests keep what they run on: the IDT, tables and text. Words anywhere take it from the others. */
function spared(address: number, level: number): boolean {
  const own = 2 ** (3 + 9 * level);
  return address < 0 || address >= Math.max(own, 0x20_0000);
}

const guests = fc.record({
  /** Entries of the hierarchy that are written over: which address's, at which level. */
  entries: fc.array(
    fc.tuple(linear, fc.constantFrom(1, LEVEL_PD, LEVEL_PDPT, LEVEL_PML4), entry).filter(([address, level]) =>
      spared(address, level)
    ),
    { maxLength: 12 },
  ),
  /** Words anywhere in the tables. */
  words: fc.oneof(
    { weight: 4, arbitrary: fc.constant([]) },
    { weight: 1, arbitrary: fc.array(fc.tuple(fc.nat(0xfff), half), { maxLength: 12 }) },
  ),
  root: fc.oneof({ weight: 5, arbitrary: fc.constant(undefined) }, {
    weight: 1,
    arbitrary: fc.constantFrom(...ADDRESSES),
  }),
  acts: fc.array(act, { minLength: 1, maxLength: 12 }),
  user: fc.boolean(),
  handled: fc.boolean(),
  wp: fc.boolean(),
  cr4: fc.constantFrom(...CR4),
  staleness: fc.boolean(),
  policy: fc.constantFrom("timed" as const, { random: 5 }),
  host: fc.record({ vpid: fc.boolean(), hostHugePages: fc.boolean() }),
});

for (const backend of BACKENDS) {
  const accelerations: Acceleration[] = backend === "vmx"
    ? ["none", "apicv", "ipiv"]
    : ["none", "avic", "x2avic"];

  describe(`whatever stands in a guest's tables (${backend})`, () => {
    it("ends in guest terms: a result, a shutdown, or an error that says what went wrong there", () => {
      const ends: Record<string, number> = {};
      fc.assert(
        fc.property(guests, fc.constantFrom(...accelerations), (guest, acceleration) => {
          const { entries, words, root, acts, user, handled, wp, cr4, staleness, policy, host } = guest;
          const rig = new PagingRig({
            machine: { pcpus: 1, policy, staleness, limits: { steps: 5_000, exits: 1_000 } },
            vm: {
              ...host,
              backend,
              acceleration,
              trace: 64,
              slots: [{ base: READ_ONLY, size: 8192, readonly: true }, { base: UPPER_SLOT, size: 4096 }],
            },
          });
          const { memory } = rig.vm;
          for (const { vector } of handled ? EXCEPTIONS : []) {
            rig.on(vector, function* (cpu): Guest {
              if (cpu.top.below.pending !== 0) cpu.fixup();
              yield cpu.iret();
            });
          }
          function* program(cpu: X86Cpu): Guest {
            for (const [instruction, at, value, more] of acts) {
              yield* attempt(() => INSTRUCTIONS[instruction](cpu, at, value, more));
            }
          }
          const entryPoint = addUser(rig, program);
          rig.map(USER_TEXT, USER_TEXT, { flags: USER_PAGE });
          // Where no table of a level is, the entry above it is meant.
          const places = entries.map(([address, level, halves]) => {
            for (let up = level; up < LEVEL_PML4; up++) {
              const at = entryOf(rig.tables, address, up);
              if (at !== undefined) return [at, halves] as const;
            }
            return [rig.entry(address, LEVEL_PML4), halves] as const;
          });
          for (const [at, [low, high]] of places) {
            memory.setWord(at, low);
            memory.setWord(at + 4, high);
          }
          for (const [word, value] of words) {
            if (memory.word(TABLES + 4 * word) !== 0) memory.setWord(TABLES + 4 * word, value | PTE_P);
          }
          rig.start(function* start(cpu) {
            yield* setEfer(cpu);
            if (wp) yield* writeProtect(cpu);
            yield* setCr4(cpu, cr4);
            if (root === undefined) yield* pagingOn(cpu, rig.tables);
            else yield* attempt(() => cpu.movToCr3(root >>> 0, Math.floor(root / 2 ** 32)));
            if (user) yield cpu.sysret(entryPoint);
            else yield* program(cpu);
          });
          let end: string;
          try {
            ({ end } = rig.vm.machine.run(1e9));
          } catch (error) {
            const known = [GuestError, NotModelled, LimitExceeded].find((kind) => error instanceof kind);
            if (known === undefined) throw error;
            const { cause } = error as Error;
            const refused = cause instanceof Error &&
              /^Cannot (address|load|build|execute) /.test(cause.message);
            if (cause !== undefined && !refused) throw cause;
            end = `${known.name}: ${
              (error as Error).message.replace(/^.*?: /, "").replace(/0x[0-9a-f]+/g, "N")
            }`;
          }
          ends[end] = (ends[end] ?? 0) + 1;
        }),
        { numRuns: 200 },
      );
      assert(ends.finished > 40 && ends.shutdown > 10, JSON.stringify(ends));
    });
  });
}
