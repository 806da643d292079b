import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { GuestMemory } from "../../../host/mod.ts";
import { HostMemory, PageWindow, PhysicalSpace, type Slot } from "../../../host/memory/mod.ts";

const GIB = 2 ** 30;

function setting(size: number): { own: HostMemory; memory: GuestMemory; slot: Slot; window: PageWindow } {
  const own = new HostMemory();
  const space = new PhysicalSpace(own);
  const memory = new GuestMemory(space);
  const slot = memory.addSlot({ base: 0x10_0000, size });
  return { own, memory, slot, window: new PageWindow(space) };
}

/** Opens the page of an address, in halves. */
function opens(window: PageWindow, address: number): boolean {
  return window.open(Math.floor(address / 2 ** 32), address | 0);
}

describe("a window", () => {
  it("shows the words of a guest's page, and tells of what is set in them", () => {
    const { memory, slot, window } = setting(0x4000);
    memory.setWord(0x10_2008, 0x8000_0001);
    assert(opens(window, slot.host + 0x2abc));
    assertEquals(window.word(2) >>> 0, 0x8000_0001);
    let told = 0;
    memory.watch({ address: 0x10_2008, stored: () => told++ });
    window.or(2, 0x20);
    window.or(3, 0x20);
    assertEquals([memory.word(0x10_2008), memory.word(0x10_200c), told], [0x8000_0021, 0x20, 1]);
    window.store(2, -1);
    assertEquals(told, 1);
    window.stored(2, 8);
    assertEquals([memory.word(0x10_2008), told], [0xffff_ffff, 2]);
  });

  it("opens on no page beside a slot, nor on one behind it in the same GiB", () => {
    const { slot, window } = setting(0x4000);
    for (
      const address of [0, 0x10_0000, slot.host - 1, slot.host + 0x4000, slot.host + GIB, 2 ** 46, 2 ** 51]
    ) {
      assertEquals(opens(window, address), false, address.toString(16));
    }
  });

  it("finds the pages of a slot of more than a GiB", () => {
    const { slot, memory, window } = setting(GIB + 0x2000);
    memory.setWord(0x10_0000 + GIB + 0x1004, 7);
    assert(opens(window, slot.host + GIB + 0x1000));
    assertEquals(window.word(1), 7);
    assertEquals(opens(window, slot.host + GIB + 0x2000), false);
  });

  it("does not open again on a slot that is gone, and finds the one that came after", () => {
    const { memory, slot, window } = setting(0x4000);
    assert(opens(window, slot.host));
    memory.removeSlot(slot);
    assertEquals(opens(window, slot.host), false);
    const next = memory.addSlot({ base: 0x10_0000, size: 0x4000 });
    memory.setWord(0x10_0000, 5);
    assert(opens(window, next.host));
    assertEquals(window.word(0), 5);
  });

  it("opens on the host's own pages, as long as they are there, and on nothing smaller", () => {
    const { own, window } = setting(0x4000);
    const page = own.allocate(4096, 4096);
    const line = own.allocate(64);
    page.words[1023] = 9;
    assert(opens(window, page.address));
    assertEquals(window.word(1023), 9);
    assertEquals(opens(window, line.address), false);
    assert(opens(window, page.address));
    own.free(page);
    assertEquals(opens(window, page.address), false);
  });
});
