import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { DirtyLog, type DirtyLogOptions, GuestMemory, PAGE_SIZE, type Slot } from "../../../host/mod.ts";

const PAGES = 70; // more than one unit of 64, and no multiple of it
const BASE = 2 ** 40; // addresses that are no 32-bit numbers

/** A machine with one logged slot, and processors that remember what they may write. */
class Rig {
  readonly memory = new GuestMemory();
  readonly slot: Slot = this.memory.addSlot({ base: BASE, size: PAGES * PAGE_SIZE });
  readonly log: DirtyLog;
  /** Pages that a processor writes without a fault. */
  readonly remembered = new Set<number>();
  flushes = 0;

  constructor(options: DirtyLogOptions & { readonly flushing?: boolean } = {}) {
    const { flushing = true, ...rest } = options;
    this.log = new DirtyLog(this.memory, {
      ...rest,
      flush: () => {
        this.flushes++;
        if (flushing) this.remembered.clear();
      },
    });
  }

  /** A guest's write; whether it faulted on the log's protection. */
  guestWrites(page: number, value = 1): boolean {
    const address = BASE + page * PAGE_SIZE;
    const faults = !this.remembered.has(page) && this.log.protects(address);
    if (faults) this.log.fault(address);
    this.remembered.add(page);
    this.memory.setByte(address, value);
    return faults;
  }

  /** A host's write. */
  hostWrites(page: number, value = 1): void {
    const address = BASE + page * PAGE_SIZE;
    this.memory.setByte(address, value);
    this.log.mark(address, 1);
  }

  byte(page: number): number {
    return this.memory.byte(BASE + page * PAGE_SIZE);
  }
}

/** The pages of a bitmap. */
function pagesIn(bitmap: Uint32Array): number[] {
  return [...bitmap].flatMap((word, i) =>
    Array.from({ length: 32 }, (_, bit) => 32 * i + bit).filter((n) => (word >>> (n & 31)) & 1)
  );
}

function bitmapOf(...pages: number[]): Uint32Array {
  const bitmap = new Uint32Array(4);
  for (const page of pages) bitmap[page >>> 5] |= 1 << (page & 31);
  return bitmap;
}

const ALL = Array.from({ length: PAGES }, (_, n) => n);

describe("the dirty log", () => {
  it("tells which pages were written, once, in whole units of 64 pages", () => {
    const rig = new Rig();
    rig.log.start(rig.slot);
    for (const page of [0, 31, 32, 63, 64, 69]) rig.guestWrites(page);
    const bitmap = rig.log.get(rig.slot);
    assertEquals(bitmap.length, 4, "128 bits for 70 pages");
    assertEquals(pagesIn(bitmap), [0, 31, 32, 63, 64, 69]);
    assertEquals(pagesIn(rig.log.get(rig.slot)), []);
  });

  it("lets a guest's first write to a page fault, and no other, until it is asked", () => {
    const rig = new Rig();
    rig.log.start(rig.slot);
    assertEquals([rig.guestWrites(5), rig.guestWrites(5), rig.guestWrites(6)], [true, false, true]);
    assertEquals(rig.flushes, 1, "when it began");
    rig.log.get(rig.slot);
    assertEquals(rig.flushes, 2);
    assertEquals([rig.guestWrites(5), rig.guestWrites(5)], [true, false]);
    rig.log.get(rig.slot);
    rig.log.get(rig.slot);
    assertEquals(rig.flushes, 3, "nothing was dirty at the last one, nothing became protected");
  });

  it("finds the host's writes without a fault, in all pages of a range, and leaves them protected", () => {
    const rig = new Rig();
    rig.log.start(rig.slot);
    rig.log.mark(BASE + 2 * PAGE_SIZE - 1, PAGE_SIZE + 2);
    assertEquals(rig.log.protects(BASE + 2 * PAGE_SIZE), true);
    assertEquals(rig.guestWrites(2), true);
    assertEquals(pagesIn(rig.log.get(rig.slot)), [1, 2, 3]);
    rig.log.mark(BASE + PAGES * PAGE_SIZE, 8);
    rig.log.mark(BASE - 1, 1);
    assertEquals(pagesIn(rig.log.get(rig.slot)), [], "nothing is there");
  });

  it("finds the end of a range that reaches from one slot into the next", () => {
    const rig = new Rig();
    const next = rig.memory.addSlot({ base: rig.slot.end, size: PAGE_SIZE });
    rig.log.start(next);
    rig.log.mark(next.base - 4, 8);
    assertEquals(pagesIn(rig.log.get(next)), [0]);
    assertEquals(rig.log.logs(rig.slot), false);
  });

  it("tells a fault of its own from others'", () => {
    const rig = new Rig();
    assertEquals(rig.log.fault(BASE), false, "not logged");
    rig.log.start(rig.slot);
    assertEquals([rig.log.fault(BASE), rig.log.fault(BASE)], [true, false], "another vCPU was faster");
    assertEquals(rig.log.fault(0), false, "nothing is there");
    assertEquals(pagesIn(rig.log.get(rig.slot)), [0]);
  });

  it("protects only what is logged, and only while it is", () => {
    const rig = new Rig();
    assertEquals([rig.log.protects(BASE), rig.log.active], [false, 0]);
    rig.log.start(rig.slot);
    assertEquals([rig.log.protects(BASE), rig.log.protects(0), rig.log.active], [true, false, 1]);
    rig.guestWrites(3);
    rig.log.start(rig.slot);
    assertEquals(rig.flushes, 1, "it had begun already");
    rig.log.stop(rig.slot);
    assertEquals([rig.log.protects(BASE), rig.log.active], [false, 0]);
    rig.log.start(rig.slot);
    assertEquals(pagesIn(rig.log.get(rig.slot)), [], "what was logged before is forgotten");
  });

  it("refuses a slot that is not logged, or gone, with ENOENT's reason", () => {
    const rig = new Rig();
    assertThrows(() => rig.log.get(rig.slot), Error, "KVM_MEM_LOG_DIRTY_PAGES is not set");
    const range = { firstPage: 0, pages: PAGES, bitmap: bitmapOf() };
    assertThrows(() => rig.log.clear(rig.slot, range), Error, "KVM_MEM_LOG_DIRTY_PAGES is not set");
    rig.log.start(rig.slot);
    rig.memory.removeSlot(rig.slot);
    assertThrows(() => rig.log.get(rig.slot), Error, "it is not in use");
    assertThrows(() => rig.log.start(rig.slot), Error, "it is not in use");
  });
});

describe("the dirty log under manual protection", () => {
  it("clears and protects what is cleared by hand, not what is read", () => {
    const rig = new Rig({ manualProtect: true });
    rig.log.start(rig.slot);
    for (const page of [1, 2, 65]) rig.guestWrites(page);
    assertEquals(pagesIn(rig.log.get(rig.slot)), [1, 2, 65]);
    assertEquals(pagesIn(rig.log.get(rig.slot)), [1, 2, 65]);
    assertEquals([rig.guestWrites(1), rig.flushes], [false, 1]);
    rig.log.clear(rig.slot, { firstPage: 0, pages: 64, bitmap: bitmapOf(1, 7) });
    assertEquals(pagesIn(rig.log.get(rig.slot)), [2, 65]);
    assertEquals([rig.guestWrites(1), rig.guestWrites(2)], [true, false]);
  });

  it("does not protect anew, nor flush for, a page that was not dirty", () => {
    const rig = new Rig({ manualProtect: true });
    rig.log.start(rig.slot);
    rig.guestWrites(4);
    rig.log.clear(rig.slot, { firstPage: 0, pages: PAGES, bitmap: bitmapOf(5) });
    assertEquals([rig.flushes, rig.log.protects(BASE + 4 * PAGE_SIZE)], [1, false]);
    assertEquals(pagesIn(rig.log.get(rig.slot)), [4]);
  });

  it("counts its bitmap from the first page", () => {
    const rig = new Rig({ manualProtect: true });
    rig.log.start(rig.slot);
    for (const page of [1, 65]) rig.guestWrites(page);
    rig.log.clear(rig.slot, { firstPage: 64, pages: 6, bitmap: bitmapOf(1) });
    assertEquals(pagesIn(rig.log.get(rig.slot)), [1]);
  });

  it("takes multiples of 64 pages, or all up to the end", () => {
    const rig = new Rig({ manualProtect: true });
    rig.log.start(rig.slot);
    const clear = (firstPage: number, pages: number, bitmap = bitmapOf()) =>
      rig.log.clear(rig.slot, { firstPage, pages, bitmap });
    for (const [first, pages] of [[0, 0], [0, 64], [0, 70], [64, 0], [64, 6]]) clear(first, pages);
    for (
      const [first, pages] of [
        [1, 64],
        [32, 38],
        [0, 63],
        [0, 69],
        [0, 71],
        [0, 128],
        [64, 7],
        [64, 5],
        [
          128,
          0,
        ],
        [-64, 64],
        [0, -64],
        [0.5, 64],
      ]
    ) {
      assertThrows(() => clear(first, pages), RangeError, "multiples of 64, or all up to page 70");
    }
    assertThrows(() => clear(0, 70, new Uint32Array(2)), RangeError, "a bit for each");
  });

  it("may begin with every page dirty and none protected: no fault before its first clearing", () => {
    const rig = new Rig({ manualProtect: true, initiallySet: true });
    rig.log.start(rig.slot);
    assertEquals([rig.guestWrites(5), rig.flushes], [false, 0]);
    const bitmap = rig.log.get(rig.slot);
    assertEquals(pagesIn(bitmap), ALL, "and no page behind the slot's last");
    rig.log.clear(rig.slot, { firstPage: 0, pages: PAGES, bitmap });
    assertEquals(pagesIn(rig.log.get(rig.slot)), []);
    assertEquals(ALL.every((page) => rig.guestWrites(page)), true);
    assertThrows(() => new Rig({ initiallySet: true }), RangeError, "with manualProtect only");
  });
});

/** What happens between two looks. */
const event = fc.record({
  who: fc.constantFrom("guest", "guest", "host", "step", "step", "copy"),
  page: fc.nat(PAGES - 1),
});

/**
 * A migration: user space collects the log in steps and copies pages one by one, while guest and host go on writing.
 * Answers with the pages whose copies are wrong at the end.
 */
function migrate(rig: Rig, events: readonly { who: string; page: number }[]): number[] {
  const { log, slot } = rig;
  const manual = pagesIn(log.get(slot)).length === PAGES; // initially set, and nothing was cleared
  const copies = new Uint8Array(PAGES);
  const toCopy: number[] = [];
  function* round(): Generator<void, void, void> {
    const found = yield* log.getInSteps(slot);
    if (manual) yield* log.clearInSteps(slot, { firstPage: 0, pages: PAGES, bitmap: found });
    toCopy.push(...pagesIn(found));
  }
  const copyOne = () => {
    const page = toCopy.shift();
    if (page !== undefined) copies[page] = rig.byte(page);
  };
  let collecting = round();
  let value = 0;
  for (const { who, page } of events) {
    value = value % 255 + 1;
    if (who === "guest") rig.guestWrites(page, value);
    else if (who === "host") rig.hostWrites(page, value);
    else if (who === "copy") copyOne();
    else if (collecting.next().done) collecting = round();
  }
  // The guest is paused; what is under way ends, and another round follows.
  while (!collecting.next().done);
  for (const _ of round());
  while (toCopy.length > 0) copyOne();
  return ALL.filter((page) => copies[page] !== rig.byte(page));
}

describe("a migration", () => {
  for (const manual of [false, true]) {
    it(`loses no write, whoever comes between (${manual ? "manual protection" : "get and clear"})`, () => {
      fc.assert(
        fc.property(fc.array(event, { maxLength: 120 }), (events) => {
          const rig = new Rig(manual ? { manualProtect: true, initiallySet: true } : {});
          rig.log.start(rig.slot);
          assertEquals(migrate(rig, events), []);
        }),
        { numRuns: 150 },
      );
    });
  }

  it("loses writes if what processors remember is not flushed", () => {
    const rig = new Rig({ flushing: false });
    rig.log.start(rig.slot);
    const [guest, step, copy] = ["guest", "step", "copy"].map((who) => ({ who, page: 9 }));
    const round = [step, step, step];
    assertEquals(migrate(rig, [guest, ...round, copy, guest]), [9]);
    const flushed = new Rig();
    flushed.log.start(flushed.slot);
    assertEquals(migrate(flushed, [guest, ...round, copy, guest]), []);
  });

  it("hears exactly what was written since it asked last, where nobody comes between", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(PAGES - 1), fc.constantFrom("guest", "host", "get"))),
        (events) => {
          const rig = new Rig();
          rig.log.start(rig.slot);
          const written = new Set<number>();
          for (const [page, what] of events) {
            if (what === "get") {
              assertEquals(pagesIn(rig.log.get(rig.slot)), [...written].sort((a, b) => a - b));
              written.clear();
            } else {
              if (what === "guest") rig.guestWrites(page);
              else rig.hostWrites(page);
              written.add(page);
            }
          }
          for (const page of ALL) {
            const free = !rig.log.protects(BASE + page * PAGE_SIZE);
            assertEquals(free && !written.has(page), false, "what is written without a fault is in the log");
          }
        },
      ),
      { numRuns: 100 },
    );
  });
});
