import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { type ArrayGeometry, NO_EPT, Tlb, type TlbTags, type TlbTranslation } from "../../../host/mmu/mod.ts";
import { ADDRESSES, samePage, TAGS, TINY, TRANSLATIONS } from "./tlb_models.ts";

/** An entry of the model. */
interface Cached {
  readonly found: TlbTranslation;
  readonly tags: TlbTags;
}

/** The obvious array: a list for each set, the entry that was used last at its end. */
class Model {
  readonly #sets = new Map<string, Cached[]>();
  readonly #geometry: ArrayGeometry;
  tags: TlbTags = { vpid: 0, pcid: 0, root: NO_EPT };

  constructor(geometry: ArrayGeometry) {
    this.#geometry = geometry;
  }

  /** Where a page of some size that translates an address would be. */
  #set(address: number, shift: number): { set: Cached[]; ways: number } {
    const bank = shift === 12 ? "small" : shift === 21 ? "large" : "huge";
    const { sets, ways } = this.#geometry[bank];
    const key = `${bank} ${((Math.floor(address / 2 ** shift) % sets) + sets) % sets}`;
    const set = this.#sets.get(key) ?? [];
    this.#sets.set(key, set);
    return { set, ways };
  }

  #find(set: Cached[], address: number): Cached | undefined {
    const { vpid, pcid, root } = this.tags;
    return set.find(({ found, tags }) =>
      samePage(found.linear, address, found.shift) && tags.vpid === vpid && tags.root === root &&
      (found.global || tags.pcid === pcid)
    );
  }

  /** The physical address of an address; undefined where nothing answers. The smallest page does. */
  lookup(address: number): number | undefined {
    for (const shift of [12, 21, 30]) {
      const { set } = this.#set(address, shift);
      const entry = this.#find(set, address);
      if (entry === undefined) continue;
      set.splice(set.indexOf(entry), 1);
      set.push(entry);
      return entry.found.physical;
    }
    return undefined;
  }

  insert(found: TlbTranslation): void {
    const { set, ways } = this.#set(found.linear, found.shift);
    const old = this.#find(set, found.linear);
    if (old !== undefined) set.splice(set.indexOf(old), 1);
    else if (set.length === ways) set.shift();
    set.push({ found, tags: this.tags });
  }

  /** What MOV to CR3 drops. */
  dropPcid(pcid: number): number {
    let dropped = 0;
    for (const [key, set] of this.#sets) {
      const kept = set.filter(({ found, tags }) =>
        found.global || tags.vpid !== this.tags.vpid || tags.pcid !== pcid
      );
      dropped += set.length - kept.length;
      this.#sets.set(key, kept);
    }
    return dropped;
  }
}

type Event = (tlb: Tlb, model: Model) => readonly [unknown, unknown];

const event: fc.Arbitrary<Event> = fc.oneof(
  {
    weight: 8,
    arbitrary: ADDRESSES.map((address): Event => (tlb, model) => {
      const slot = tlb.linear.lookupAddress(address);
      return [slot < 0 ? undefined : tlb.linear.physical(slot), model.lookup(address)];
    }),
  },
  {
    weight: 4,
    arbitrary: TRANSLATIONS.map((found): Event => (tlb, model) => {
      const slot = tlb.linear.insert(found);
      model.insert(found);
      return [tlb.linear.physical(slot), found.physical];
    }),
  },
  {
    weight: 2,
    arbitrary: TAGS.map((tags): Event => (tlb, model) => {
      tlb.setTags(tags);
      model.tags = tags;
      return [undefined, undefined];
    }),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom(0, 1, 0xfff).map((pcid): Event => (tlb, model) => [
      tlb.drop({
        kinds: 7,
        vpid: model.tags.vpid,
        exceptVpid0: false,
        pcid,
        root: -1,
        globals: "kept",
        address: undefined,
        piece: false,
      }),
      model.dropPcid(pcid),
    ]),
  },
);

describe("an array of cached translations", () => {
  it("answers as a list for each set does that keeps what was used last, whatever the size and the tags", () => {
    const seen = { found: 0, missed: 0 };
    fc.assert(
      fc.property(fc.array(event, { minLength: 20, maxLength: 120 }), (events) => {
        const tlb = new Tlb("vmx", TINY);
        const model = new Model(TINY.linear);
        for (const happens of events) {
          const [ours, theirs] = happens(tlb, model);
          assertEquals(ours, theirs);
          if (ours === undefined) seen.missed++;
          else seen.found++;
        }
      }),
      { numRuns: 400, seed: 1 },
    );
    assert(seen.found > 1000 && seen.missed > 1000);
  });
});
