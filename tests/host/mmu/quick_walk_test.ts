import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  CR4_PGE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_LMA,
  EFER_NX,
  EPT_R,
  eptMisconfigured,
  LEVEL_PML4,
  LEVEL_PT,
  mapsPage,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_4K,
  PTE_P,
  PTE_PS,
  reservedBitSet,
} from "../../../abi/mod.ts";
import { DEMAND_AC, DEMAND_USER, demandsOf } from "../../../host/mmu/demand.ts";
import {
  type AccessKind,
  flagsOf,
  type Invalidation,
  type Mapping,
  type PagingState,
  serves,
} from "../../../host/mmu/mod.ts";
import { ABSENT, DENIED, FOUND, UNKNOWN } from "../../../host/mmu/quick_walk.ts";
import { eptFormat, ordinaryFormat, type TableFormat } from "../../../host/mmu/table_format.ts";
import { oddBits, SHIFTS, type Vendor, World } from "./quick_world.ts";
import { EPT_FEATURES } from "./tables.ts";
import { TINY } from "./tlb_models.ts";

const PAGES = 8;

const target = fc.oneof(
  { weight: 12, arbitrary: fc.nat(PAGES - 1).map((page) => BigInt(page) << 12n) },
  { weight: 1, arbitrary: fc.constantFrom(0x20_0000n, 0x60_0000n, 0x80_0000n, 1n << 40n, 1n << 48n) },
);
/** Mostly present and open; large pages, reserved bits and missing rights now and then. */
const entry = fc.tuple(
  fc.oneof(
    { weight: 9, arbitrary: fc.constantFrom(7n, 0x27n, 0x67n, 0x167n) },
    { weight: 4, arbitrary: fc.bigInt({ min: 0n, max: 0xfffn }) },
    { weight: 3, arbitrary: fc.constantFrom(0n, 1n, 3n, 5n, 0x87n, 0xe7n, 0x85n) },
  ),
  fc.oneof({ weight: 9, arbitrary: fc.constant(0n) }, { weight: 1, arbitrary: fc.constant(1n << 63n) }),
  target,
).map(([flags, nx, at]) => flags | nx | at);
const pages = fc.array(fc.array(entry, { minLength: 4, maxLength: 4 }), {
  minLength: PAGES,
  maxLength: PAGES,
});
const indices = fc.array(fc.nat(3), { minLength: 4, maxLength: 4 });
const linear = fc.tuple(indices, fc.nat(0xfff)).map(([on, offset]) =>
  on.reduce((at, n) => at * 512 + n, 0) * 0x1000 + offset
);
const access: fc.Arbitrary<AccessKind> = fc.record({
  kind: fc.constantFrom("read", "write", "fetch"),
  user: fc.boolean(),
  implicit: fc.boolean(),
}).map(({ kind, user, implicit }) => ({
  write: kind === "write",
  fetch: kind === "fetch",
  user,
  implicit: implicit && kind === "read",
}));

const state: fc.Arbitrary<PagingState> = fc.record({
  pg: fc.constantFrom(CR0_PG, CR0_PG, CR0_PG, CR0_PG, 0),
  wp: fc.constantFrom(CR0_WP, 0),
  cr4: fc.subarray([CR4_SMEP, CR4_SMAP, CR4_PGE]),
  nxe: fc.constantFrom(EFER_NX, EFER_NX, 0),
  ac: fc.boolean(),
  cr3: fc.constantFrom(0, 0, 0x1001),
}).map(({ pg, wp, cr4, nxe, ac, cr3 }) => ({
  cr0: CR0_PE | pg | wp,
  cr3,
  cr4: cr4.reduce((bits, bit) => bits | bit, CR4_PAE),
  efer: EFER_LMA | nxe,
  ac,
}));

/** What happens to a world: something that returns what it came to. */
type Event = (world: World, quickly: boolean) => unknown;

function invalidation(vendor: Vendor): fc.Arbitrary<Invalidation> {
  const names = vendor === "vmx"
    ? ["INVLPG", "EPT violation", "INVEPT type 2"] as const
    : ["INVLPG", "TLB_CONTROL 3"] as const;
  return fc.tuple(fc.constantFrom(...names), linear).map(([operation, address]) => ({
    operation,
    address,
    vpid: 1,
  }));
}

function event(vendor: Vendor): fc.Arbitrary<Event> {
  const walk = fc.tuple(linear, access).map(([at, kind]): Event => (world, quickly) =>
    quickly ? world.walkQuickly(at, kind) : world.walk(at, kind)
  );
  const write = fc.tuple(fc.nat(PAGES - 1), fc.nat(3), entry).map(([page, n, value]): Event => (world) =>
    world.write(page, n, value)
  );
  const turn = fc.tuple(fc.nat(5), fc.nat(7), fc.constantFrom(...oddBits(vendor)))
    .map(([table, n, bits]): Event => (world) => world.turn(table, n, bits));
  const become = state.map((registers): Event => (world) => world.become(registers));
  const drop = invalidation(vendor).map((operation): Event => (world) => world.invalidate(operation));
  return fc.oneof(
    { weight: 12, arbitrary: walk },
    { weight: 2, arbitrary: write },
    { weight: 2, arbitrary: turn },
    { weight: 1, arbitrary: become },
    { weight: 2, arbitrary: drop },
  );
}

describe("quick walks", () => {
  for (const vendor of ["vmx", "svm"] as const) {
    it(`do what the reference does, and leave the same memory and the same TLB: ${vendor}`, () => {
      const came = new Map<number, number>();
      const world = fc.record({
        vendor: fc.constant(vendor),
        accessedDirty: fc.boolean(),
        shift: fc.constantFrom(...SHIFTS),
        geometry: fc.constantFrom(undefined, TINY),
        pages,
      });
      fc.assert(
        fc.property(
          world,
          state,
          fc.array(event(vendor), { minLength: 10, maxLength: 40 }),
          (options, registers, events) => {
            const [quick, reference] = [new World(options, registers), new World(options, registers)];
            for (const happens of events) {
              assertEquals(happens(quick, true), happens(reference, false));
              assertEquals(quick.snapshot(), reference.snapshot());
            }
            for (const [kind, times] of quick.outcomes) came.set(kind, (came.get(kind) ?? 0) + times);
          },
        ),
        { numRuns: 120, seed: 1 },
      );
      for (const kind of [FOUND, ABSENT, DENIED, UNKNOWN]) {
        assert((came.get(kind) ?? 0) > 20, `${kind}: rare`);
      }
    });
  }
});

/** The bits of an entry's half that are reserved in a format, one by one, as `refuses` has it. */
function reservedBits(refuses: (bit: number) => boolean): number {
  let bits = 0;
  for (let bit = 0; bit < 32; bit++) if (refuses(1 << bit >>> 0)) bits |= 1 << bit;
  return bits;
}

/** Holds a format's masks against the rule for whole entries. `least` is what makes an entry present. */
function assertMasks(
  format: TableFormat,
  least: number,
  refuses: (low: number, high: number, level: number) => boolean,
): void {
  for (let level = LEVEL_PML4; level >= LEVEL_PT; level--) {
    for (const low of [least, least | PTE_PS]) {
      const masks = mapsPage(low, level) ? format.reservedInPage : format.reservedInTable;
      const pml4 = level === LEVEL_PML4 && low !== least;
      if (refuses(low, 0, level)) assert(pml4 || (masks[level] & PTE_PS) !== 0, `level ${level}`);
      else {
        // Bits that change what the entry is, and memory types, are no part of the masks.
        const others = reservedBits((bit) =>
          bit !== PTE_PS && (bit & 0x3f) === 0 && refuses(low | bit, 0, level)
        );
        assertEquals(masks[level] & ~0xff, others & ~0xff, `level ${level}, ${low.toString(16)}`);
        assertEquals(reservedBits((bit) => refuses(low, bit, level)), format.reservedHigh | 0);
      }
    }
  }
}

describe("a format's masks", () => {
  it("are the ordinary format's reserved bits, for every processor", () => {
    for (const maxPhysicalBits of [36, 46, 52]) {
      for (const pages1G of [false, true]) {
        for (const nx of [false, true]) {
          for (const amd of [false, true]) {
            const features = { maxPhysicalBits, pages1G, amd };
            assertMasks(
              ordinaryFormat(features, nx),
              PTE_P,
              (low, high, level) => reservedBitSet({ low, high, nx }, level, features),
            );
          }
        }
      }
    }
  });

  it("are those of EPT", () => {
    for (const pages1G of [false, true]) {
      for (const pages2M of [false, true]) {
        const features = { ...EPT_FEATURES, pages1G, pages2M };
        const format = eptFormat(features, true);
        assertMasks(format, EPT_R, (low, high, level) => eptMisconfigured({ low, high }, level, features));
        for (let level = LEVEL_PML4; level > LEVEL_PT; level--) {
          assertEquals(format.reservedInTable[level], 0x78);
        }
      }
    }
  });
});

describe("a demand", () => {
  it("is met by the entries that the reference says serve the access", () => {
    const mapping = fc.record({
      writable: fc.boolean(),
      user: fc.boolean(),
      executable: fc.boolean(),
      global: fc.boolean(),
      dirty: fc.boolean(),
      host: fc.record({
        readable: fc.boolean(),
        writable: fc.boolean(),
        executable: fc.boolean(),
        dirty: fc.boolean(),
      }),
    });
    let met = 0;
    fc.assert(
      fc.property(mapping, access, state, (rights, kind, registers) => {
        const found = { ...rights, linear: 0, physical: 0, shift: PAGE_SHIFT_4K } as unknown as Mapping;
        const number = kind.implicit ? 3 : kind.fetch ? 2 : kind.write ? 1 : 0;
        const mode = 2 * number + (kind.user ? DEMAND_USER : 0) + (registers.ac ? DEMAND_AC : 0);
        const { needs, forbids } = demandsOf(registers)[mode];
        const flags = flagsOf(found);
        const served = (flags & needs) === needs && (flags & forbids) === 0;
        if (served) met++;
        const on = (registers.cr0 & CR0_PG) !== 0 ? registers : { ...registers, cr4: CR4_PAE };
        assertEquals(served, serves(found, kind, on));
      }),
      { numRuns: 3000, seed: 1 },
    );
    assert(met > 300);
  });
});

describe("a walk of a page of 1 GiB in both dimensions", () => {
  it("fills one entry, and is charged for the entries of both", () => {
    const options = { accessedDirty: true, shift: PAGE_SHIFT_1G, geometry: undefined } as const;
    const registers = { cr0: CR0_PG | CR0_PE, cr3: 0, cr4: CR4_PAE, efer: EFER_LMA, ac: false };
    for (const vendor of ["vmx", "svm"] as const) {
      const world = new World({ ...options, vendor, pages: [[0x1007n], [0x87n]] }, registers);
      // PML4E and PDPTE lie in one page of the second dimension's, two entries down, and so does the page itself.
      assertEquals(world.walkQuickly(0x5123, { write: true, fetch: false, user: false }), [
        `0x${(world.memory.slots[0].host + 0x5123).toString(16)}`,
        2 + 2,
      ]);
      assertEquals([world.cpu.tlb.linear.valid, world.cpu.tlb.guestPhysical.valid], [1, 1]);
      assertEquals([world.memory.word(0), world.memory.word(0x1000)], [0x1027, 0xe7]);
    }
  });
});

describe("an accessed flag in a table that EPT lets be read alone", () => {
  it("is an EPT violation, as the reference reports it, and its walk is charged once", () => {
    const registers = { cr0: CR0_PG | CR0_PE, cr3: 0, cr4: CR4_PAE, efer: EFER_LMA, ac: false };
    const pages = [[0x1007n], [0x2007n], [0x3007n], [0x5067n]];
    const options = {
      vendor: "vmx",
      accessedDirty: false,
      shift: PAGE_SHIFT_4K,
      geometry: undefined,
    } as const;
    const [quick, reference] = [0, 1].map(() => new World({ ...options, pages }, registers));
    // The table of the last level is the fourth of EPT's; entry 1 maps the page of the guest's PDPT.
    for (const world of [quick, reference]) world.turn(3, 1, 2n);
    const read = { write: false, fetch: false, user: false };
    const found = quick.walkQuickly(0x123, read);
    // Four entries, and four of EPT's on the way to each; to a write of R and X, of a linear address's tables.
    assertEquals(found, ["violation 0xaa at 0x1000", 4 * 5]);
    assertEquals(found, reference.walk(0x123, read));
    assertEquals(quick.snapshot(), reference.snapshot());
    assertEquals([quick.memory.word(0), quick.memory.word(0x1000)], [0x1027, 0x2007]);
  });
});

describe("a quick walker that is told of other tables", () => {
  it("walks those from then on, and the first ones when it is back at them", () => {
    const registers = { cr0: CR0_PG | CR0_PE, cr3: 0, cr4: CR4_PAE, efer: EFER_LMA, ac: false };
    const pages = [[0x1007n], [0x2007n], [0x3007n], [0x5067n]];
    for (const vendor of ["vmx", "svm"] as const) {
      const shift = PAGE_SHIFT_4K;
      const options = { vendor, accessedDirty: true, shift, geometry: undefined, pages } as const;
      const [world, other] = [0, 1].map(() => new World(options, registers));
      const read = { write: false, fetch: false, user: false };
      const found = world.walkQuickly(0x123, read);
      assertEquals(found[1], 4 * 5 + 4);
      world.quick.detach();
      assertEquals(world.walkQuickly(0x123, read)[0], found[0]);
      assertEquals(world.outcomes.get(UNKNOWN), 1);
      // Another CPU knows nothing of the same tables.
      world.attachTo(other.cpu);
      other.cpu.tlb.setTags(world.cpu.tlb.tags);
      assertEquals(world.quick.walk(0, 0x123, demandsOf(registers)[0]), FOUND);
      assertEquals([world.quick.accesses, other.cpu.tlb.guestPhysical.valid], [4 * 5 + 4, 5]);
      world.attachTo(world.cpu);
      assertEquals(world.quick.walk(0, 0x123, demandsOf(registers)[0]), FOUND);
      assertEquals(world.quick.accesses, 4);
    }
  });
});
