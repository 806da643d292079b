import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_LMA,
  EFER_NX,
  EPT_RWX,
  EPT_WB,
  highOf,
  lowOf,
  mapPage,
  PAGE_SHIFT_2M,
} from "../../../abi/mod.ts";
import { GuestMemory } from "../../../host/mod.ts";
import { type AccessKind, Ept, translate } from "../../../host/mmu/mod.ts";
import { refer } from "./reference.ts";
import { EPT_FEATURES, eptPointer, FEATURES, outcome } from "./tables.ts";

/** The guest's tables are in these pages, those of EPT in the ones above. */
const PAGES = 8;
const EPT_ROOT = 0x1_0000;

const address = fc.oneof(
  { weight: 12, arbitrary: fc.nat(PAGES - 1).map((page) => BigInt(page) << 12n) },
  { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 40n - 1n }).map((a) => a << 12n) },
);
/** Mostly present and open; each other bit now and then. */
const entry = fc.tuple(
  fc.oneof(
    { weight: 8, arbitrary: fc.constant(7n) },
    { weight: 5, arbitrary: fc.bigInt({ min: 0n, max: 0xfffn }) },
    { weight: 2, arbitrary: fc.constantFrom(1n, 3n, 5n, 0x87n, 0x67n, 0x85n) },
  ),
  fc.oneof({ weight: 9, arbitrary: fc.constant(0n) }, { weight: 1, arbitrary: fc.constant(1n << 63n) }),
  address,
).map(([flags, nx, at]) => flags | nx | at);
/** Entries 0 to 3 of each page. */
const tables = fc.array(fc.array(entry, { minLength: 4, maxLength: 4 }), {
  minLength: PAGES,
  maxLength: PAGES,
});

const linear = fc.tuple(
  fc.array(fc.nat(3), { minLength: 4, maxLength: 4 }),
  fc.nat(0xfff),
).map(([indices, offset]) => indices.reduce((at, n) => at * 512 + n, 0) * 0x1000 + offset);

const access: fc.Arbitrary<AccessKind> = fc.record({
  kind: fc.constantFrom("read", "write", "fetch"),
  user: fc.boolean(),
  implicit: fc.boolean(),
}).map(({ kind, user, implicit }) => ({
  write: kind === "write",
  fetch: kind === "fetch",
  user,
  implicit: implicit && kind !== "fetch",
}));

const state = fc.record({
  wp: fc.boolean(),
  smep: fc.boolean(),
  smap: fc.boolean(),
  nxe: fc.boolean(),
  ac: fc.boolean(),
});
type State = typeof state extends fc.Arbitrary<infer T> ? T : never;

function fill(memory: GuestMemory, base: number, pages: bigint[][]): void {
  for (const [page, entries] of pages.entries()) {
    for (const [n, value] of entries.entries()) {
      const at = base + page * 0x1000 + n * 8;
      memory.setWord(at, lowOf(value));
      memory.setWord(at + 4, highOf(value));
    }
  }
}

function registers({ wp, smep, smap, nxe, ac }: State) {
  return {
    cr0: CR0_PG | CR0_PE | (wp ? CR0_WP : 0),
    cr3: 0,
    cr4: CR4_PAE | (smep ? CR4_SMEP : 0) | (smap ? CR4_SMAP : 0),
    efer: EFER_LMA | (nxe ? EFER_NX : 0),
    ac,
  };
}

function memoryWith(prepare: (memory: GuestMemory) => void): GuestMemory {
  const memory = new GuestMemory();
  memory.addSlot({ base: 0, size: 0x4_0000 });
  prepare(memory);
  return memory;
}

/** That at least one outcome of each kind came up: a property of faults alone would say little. */
function assertVaried(outcomes: Iterable<string>, kinds: readonly RegExp[]): void {
  const all = [...outcomes];
  for (const kind of kinds) assert(all.some((found) => kind.test(found)), `none of ${kind}`);
}

describe("walks of random tables", () => {
  it("do what the obvious walker does, and leave the same memory", () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(tables, linear, access, state, (pages, at, kind, on) => {
        const [ours, theirs] = [0, 1].map(() => memoryWith((memory) => fill(memory, 0, pages)));
        const found = translate({ memory: ours, state: registers(on), features: FEATURES }, at, kind);
        const expected = refer({ ...on, memory: theirs, cr3: 0n }, BigInt(at), kind);
        assertEquals([outcome(found, at), found.accesses], expected);
        assertEquals(ours.u8, theirs.u8);
        seen.add(expected[0].replace(/^0x.*/, "a page"));
      }),
      { numRuns: 1500, seed: 1 },
    );
    assertVaried(seen, [/^a page/, /#PF\(0x[0-7]\)/, /#PF\(0x9\)/, /#PF\(0x1[0-7]\)/]);
  });

  it("do so under EPT with random entries", () => {
    const seen = new Set<string>();
    /** Of the last level: a right, a type or a reserved bit that is off, on some pages. */
    const odd = fc.array(
      fc.tuple(
        fc.nat(PAGES - 1),
        fc.constantFrom(0n, 0x31n, 0x33n, 0x34n, 0x36n, 0x3fn, 0x35n, 1n << 47n | 0x37n),
      ),
      { maxLength: 2 },
    );
    fc.assert(
      fc.property(tables, linear, access, state, odd, fc.boolean(), (pages, at, kind, on, changes, ad) => {
        const memories = [0, 1].map(() =>
          memoryWith((memory) => {
            fill(memory, 0, pages);
            let free = EPT_ROOT;
            const allocate = () => (free += 0x1000);
            const ept = { memory, root: EPT_ROOT, ept: true, allocate };
            for (let page = 0; page < PAGES; page++) {
              mapPage(ept, page * 0x1000, { physical: page * 0x1000, flags: EPT_RWX | EPT_WB });
            }
            mapPage(ept, 0x4000_0000, {
              physical: 0x8000_0000,
              flags: EPT_RWX | EPT_WB,
              shift: PAGE_SHIFT_2M,
            });
            const last = free;
            for (const [page, value] of changes) {
              if (value === 0n) memory.setWord(0x1_3000 + page * 8, 0);
              else {
                memory.setWord(0x1_3000 + page * 8, lowOf(value | BigInt(page * 0x1000)));
                memory.setWord(0x1_3000 + page * 8 + 4, highOf(value));
              }
            }
            assert(last >= 0x1_3000);
          })
        );
        const [ours, theirs] = memories;
        const eptp = eptPointer(EPT_ROOT, ad);
        const second = new Ept({ memory: ours, eptp, features: EPT_FEATURES });
        const found = translate({ memory: ours, state: registers(on), features: FEATURES, second }, at, kind);
        const expected = refer({ ...on, memory: theirs, cr3: 0n, eptp: BigInt(eptp) }, BigInt(at), kind);
        assertEquals([outcome(found, at), found.accesses], expected);
        assertEquals(ours.u8, theirs.u8);
        seen.add(expected[0].replace(/^0x.*/, "a page"));
        assert(expected[1] <= 24);
      }),
      { numRuns: 1500, seed: 2 },
    );
    assertVaried(seen, [
      /^a page/,
      /#PF/,
      /^violation 0x[4-7a-f]?8[0-9a-f] /,
      /^violation 0x[1-9a-f][0-9a-f]{2} /,
      /^misconf/,
    ]);
  });
});
