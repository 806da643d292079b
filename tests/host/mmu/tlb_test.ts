import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  COMBINED,
  DEFAULT_TLB_GEOMETRY,
  GUEST_PHYSICAL,
  LINEAR,
  NO_EPT,
  Tlb,
  TLB_GLOBAL,
  TLB_HOST_EXECUTABLE,
  TLB_HOST_READABLE,
  TLB_HOST_WRITABLE,
  TLB_USER,
} from "../../../host/mmu/mod.ts";
import { TINY, translation } from "./tlb_models.ts";

describe("an entry", () => {
  it("comes back with its tags, rights and the rights of the second dimension", () => {
    const tlb = new Tlb("vmx");
    tlb.setTags({ vpid: 7, pcid: 0xabc, root: 0x12_3456_7000 });
    const host = {
      guest: 0x20_0000_0000,
      physical: 2 ** 51,
      readable: true,
      writable: false,
      executable: false,
      dirty: false,
    };
    const found = translation(-(2 ** 47) + 0x5000, {
      physical: 2 ** 51,
      writable: false,
      memoryType: 6,
      host,
    });
    const slot = tlb.linear.insert(found);
    assertEquals(tlb.linear.entry(slot), {
      ...found,
      span: 12,
      dirty: false, // A write still has to set EPT's flag.
      kind: COMBINED,
      vpid: 7,
      pcid: 0xabc,
      root: 0x12_3456_7000,
    });
    assertEquals(tlb.linear.physical(slot), 2 ** 51);
    assertEquals(
      tlb.linear.flags(slot) & (TLB_HOST_READABLE | TLB_HOST_WRITABLE | TLB_HOST_EXECUTABLE),
      TLB_HOST_READABLE,
    );
    assertEquals(tlb.linear.flags(slot) & (TLB_USER | TLB_GLOBAL), TLB_USER);
  });

  it("is of the kind that its tags and its array make it", () => {
    const tlb = new Tlb("vmx");
    tlb.linear.insert(translation(0x5000));
    tlb.setTags({ vpid: 7, pcid: 3, root: 0 }); // Tables at address 0 are tables.
    tlb.linear.insert(translation(0x6000));
    const page = { guest: 0x7000, physical: 0x8000, shift: 12, readable: true, writable: true } as const;
    tlb.insertHostPage({ ...page, executable: true, dirty: true });
    assertEquals(tlb.entries().map(({ kind, vpid, pcid, root }) => [kind, vpid, pcid, root]), [
      [LINEAR, 0, 0, NO_EPT],
      [COMBINED, 7, 3, 0],
      [GUEST_PHYSICAL, 0, 0, 0],
    ]);
  });

  it("answers for all of its page and nothing beside it, whatever its size and half", () => {
    for (const shift of [12, 21, 30] as const) {
      for (const base of [3 * 2 ** 30, 2 ** 47 - 2 ** 30, -(2 ** 47), -(2 ** 30)]) {
        const tlb = new Tlb("vmx");
        const slot = tlb.linear.insert(translation(base, { shift }));
        assertEquals(tlb.linear.lookupAddress(base), slot);
        assertEquals(tlb.linear.lookupAddress(base + 2 ** shift - 1), slot);
        assertEquals(tlb.linear.lookup(Math.floor(base / 2 ** 32) >>> 0, base >>> 0), slot);
        assertEquals(tlb.linear.lookupAddress(base - 1), -1);
        assertEquals(tlb.linear.lookupAddress(base + 2 ** shift), -1);
        assertEquals([tlb.linear.hits, tlb.linear.misses], [3, 2]);
      }
    }
  });

  it("takes the place of the one that answered before it", () => {
    const { linear } = new Tlb("vmx");
    const first = linear.insert(translation(0x5000, { dirty: false }));
    assertEquals(linear.insert(translation(0x5000, { physical: 0x9000 })), first);
    assertEquals([linear.valid, linear.physical(first)], [1, 0x9000]);
  });
});

describe("a page within a larger one of EPT's", () => {
  it("has its own guest-physical address", () => {
    const { linear } = new Tlb("vmx");
    const rights = { readable: true, writable: true, executable: true, dirty: true };
    const host = { ...rights, guest: 0x40_0000, physical: 0x1000_0000 };
    const slot = linear.insert(translation(0x7000, { physical: 0x1000_3000, host }));
    assertEquals(linear.entry(slot)!.host, { ...rights, guest: 0x40_3000, physical: 0x1000_3000 });
  });
});

describe("a full set", () => {
  it("gives up the entry that was used longest ago", () => {
    const { linear } = new Tlb("vmx", TINY); // 4 sets of 2 ways: these three share one.
    for (const page of [0x0000, 0x4000]) linear.insert(translation(page));
    linear.lookupAddress(0x0000);
    linear.insert(translation(0x8000));
    assert(linear.lookupAddress(0x0000) >= 0);
    assertEquals(linear.lookupAddress(0x4000), -1);
    assert(linear.lookupAddress(0x8000) >= 0);
  });

  it("leaves other sets, sizes and kinds alone", () => {
    const tlb = new Tlb("vmx", TINY);
    tlb.linear.insert(translation(0x1000));
    tlb.linear.insert(translation(0, { shift: 21 }));
    const page = { guest: 0, physical: 0, shift: 12, readable: true, writable: true } as const;
    tlb.insertHostPage({ ...page, executable: true, dirty: true });
    for (let page = 0; page < 10; page++) tlb.linear.insert(translation(page * 0x4000));
    assert(tlb.linear.lookupAddress(0x1000) >= 0);
    assert(tlb.linear.lookupAddress(0x1f_f000) >= 0);
    assert(tlb.guestPhysical.lookupAddress(0) >= 0);
    assertEquals(tlb.linear.valid, 4);
  });

  it("holds as many pages in a row as the bank has entries", () => {
    const { linear } = new Tlb("vmx");
    const { sets, ways } = DEFAULT_TLB_GEOMETRY.linear.small;
    for (let page = 0; page < sets * ways; page++) linear.insert(translation(-(2 ** 40) + page * 0x1000));
    assertEquals(linear.valid, 1536);
    linear.insert(translation(0));
    assertEquals(linear.valid, 1536);
  });
});

describe("a geometry", () => {
  it("has a power of two of sets, and at least one way", () => {
    const sized = (sets: number, ways: number) => () =>
      new Tlb("vmx", { ...TINY, linear: { ...TINY.linear, large: { sets, ways } } });
    assertThrows(
      sized(3, 1),
      RangeError,
      "Cannot build a TLB with 3 sets of large pages: allowed are powers of two",
    );
    assertThrows(
      sized(1, 0),
      RangeError,
      "Cannot build a TLB with 0 ways for large pages: allowed are 1 and more",
    );
  });
});
