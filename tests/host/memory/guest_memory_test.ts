import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  GuestCache,
  GuestMemory,
  Machine,
  PAGE_SIZE,
  SLOT_LIMIT,
  SLOT_SIZE_LIMIT,
} from "../../../host/mod.ts";

const HIGH_BASE = 2 ** 40;

/** Three slots: two that touch at 64 KiB, a gap, and one far above 4 GiB. */
function threeSlots(): GuestMemory {
  const memory = new GuestMemory();
  memory.addSlot({ base: 0, size: 0x1_0000 });
  memory.addSlot({ base: HIGH_BASE, size: PAGE_SIZE });
  memory.addSlot({ base: 0x1_0000, size: 0x1_0000 });
  return memory;
}

describe("memory slots", () => {
  it("may come in any order, and touch", () => {
    const memory = threeSlots();
    assertEquals(memory.slots.map(String), [
      "[0x0, 0x10000)",
      "[0x10000, 0x20000)",
      "[0x10000000000, 0x10000001000)",
    ]);
    assertEquals(memory.find(0xffff, 1)?.base, 0);
    assertEquals(memory.find(0x1_0000, 4)?.base, 0x1_0000);
    assertEquals(memory.find(0xffff, 2), undefined, "no single slot backs both bytes");
    assertEquals(memory.find(0x2_0000, 1), undefined);
  });

  it("must not overlap", () => {
    const memory = threeSlots();
    for (const [base, size] of [[0, 4096], [0xf000, 0x2000], [0, 0x100_0000], [0x1_f000, 4096]]) {
      assertThrows(() => memory.addSlot({ base, size }), RangeError, "it overlaps [0x");
    }
    assertEquals(memory.slots.length, 3);
  });

  it("must be whole pages within the physical address space", () => {
    const memory = new GuestMemory();
    for (const base of [1, 4095, -4096, 2 ** 52, 0.5, NaN]) {
      assertThrows(() => memory.addSlot({ base, size: 4096 }), RangeError, `a memory slot at ${base}`);
    }
    for (const size of [0, 1, 4097, -4096, SLOT_SIZE_LIMIT + 4096, NaN]) {
      assertThrows(() => memory.addSlot({ base: 0, size }), RangeError, `of ${size} bytes`);
    }
    assertThrows(() => memory.addSlot({ base: 2 ** 52 - 4096, size: 8192 }), RangeError, "2^52");
  });

  it("are limited in number, and one that is removed makes room", () => {
    const memory = new GuestMemory();
    const slots = Array.from(
      { length: SLOT_LIMIT },
      (_, n) => memory.addSlot({ base: n * 8192, size: 4096 }),
    );
    assertThrows(() => memory.addSlot({ base: 4096, size: 4096 }), RangeError, `${SLOT_LIMIT} already`);
    memory.removeSlot(slots[7]);
    assertEquals(memory.backed(7 * 8192, 1), false);
    assertThrows(() => memory.removeSlot(slots[7]), RangeError, "it is not in use");
    memory.addSlot({ base: 4096, size: 4096 });
    assertEquals(memory.backed(0, 3 * 4096), true);
  });

  it("of a virtual machine that cannot be are refused by name", () => {
    const vm = (options: Parameters<Machine["createVm"]>[0]) => new Machine().createVm(options);
    assertThrows(() => vm({ memory: 1000 }), RangeError, "of 1000 bytes");
    assertThrows(() => vm({ memory: 4 * 2 ** 30 }), RangeError, "the I/O APIC is at 0xfec00000");
    assertThrows(() => vm({ memory: 8192, slots: [{ base: 4096, size: 4096 }] }), RangeError, "overlaps");
    for (const base of [0xfec0_0000, 0xfee0_0000, 0xfee0_f000, 0xfebf_f000]) {
      assertThrows(() => vm({ slots: [{ base, size: 8192 }] }), RangeError, "is the APICs'");
    }
    assertEquals(vm({ memory: 0 }).memory.slots, []);
  });
});

describe("the host's view of memory", () => {
  it("is little-endian, at any alignment and across slots that touch", () => {
    fc.assert(fc.property(fc.nat(15), fc.integer({ min: 1, max: 8 }), fc.bigInt(), (offset, bytes, raw) => {
      const memory = threeSlots();
      const address = 0x1_0000 - 8 + offset;
      const value = BigInt.asUintN(8 * bytes, raw);
      memory.write(address - 1, bytes + 2, -1n);
      assertEquals(memory.write(address, bytes, value), true);
      assertEquals(memory.read(address, bytes), value);
      for (let i = 0; i < bytes; i++) {
        assertEquals(memory.byte(address + i), Number((value >> BigInt(8 * i)) & 0xffn));
      }
      assertEquals([memory.byte(address - 1), memory.byte(address + bytes)], [0xff, 0xff]);
      if (bytes === 4) assertEquals(memory.word(address), Number(value));
    }));
  });

  it("says where nothing is, and writes nothing of a range that is backed in part", () => {
    const memory = threeSlots();
    assertEquals(memory.read(0x1_fffc, 8), undefined);
    for (const address of [2 ** 52, 2 ** 60, 2 ** 64, -8]) {
      assertEquals([memory.backed(address, 4), memory.writable(address, 4)], [false, false], `${address}`);
    }
    assertEquals(memory.write(0x1_fffc, 8, -1n), false);
    assertEquals(memory.load(0x1_fffc, new Uint8Array(8).fill(1)), false);
    assertEquals(memory.word(0x1_fffc), 0);
    assertThrows(() => memory.byte(0x2_0000), RangeError, "Cannot read guest memory at 0x20000: not backed");
    assertThrows(() => memory.setWord(0x2_0000, 1), RangeError, "Cannot write guest memory at 0x20000");
    assertThrows(() => memory.word(0x1_fffe), RangeError, "0x20000");
  });

  it("reaches a slot above 4 GiB as it does one at 0", () => {
    const memory = threeSlots();
    memory.setWord(HIGH_BASE + 2, 0x1234_5678);
    assertEquals(memory.word(HIGH_BASE + 2), 0x1234_5678);
    assertEquals(memory.word(HIGH_BASE + 4), 0x1234);
    assertEquals(memory.word(2), 0);
  });

  it("gives 64 bits as a number only where a number can hold them", () => {
    const memory = threeSlots();
    memory.write(8, 8, 2n ** 53n - 1n);
    assertEquals(memory.quad(8), 2 ** 53 - 1);
    memory.write(8, 8, 2n ** 53n);
    assertThrows(() => memory.quad(8), RangeError, "Cannot read 64 bits at 0x8");
  });

  it("cannot write where the slot is KVM_MEM_READONLY, though a loader can", () => {
    const memory = new GuestMemory();
    memory.addSlot({ base: 0, size: 4096 });
    memory.addSlot({ base: 4096, size: 4096, readonly: true });
    assertEquals(memory.write(4096, 4, 1n), false);
    assertEquals(memory.write(4094, 4, 1n), false, "half of it is read-only");
    assertEquals(memory.word(4092), 0);
    assertEquals(memory.load(4096, Uint8Array.of(1)), true);
    assertEquals(memory.read(4094, 4), 0x1_0000n);
  });
});

describe("a watch on a word", () => {
  /** Watches a word, and counts the stores that it is told of. */
  function watch(memory: GuestMemory, address: number) {
    const watcher = { address, told: 0, stored: () => void watcher.told++ };
    memory.watch(watcher);
    return watcher;
  }

  it("is told of each store that touches one of its bytes, and of no other", () => {
    const at = fc.nat(200);
    const stores = fc.array(fc.tuple(at, fc.constantFrom(1, 2, 4, 8, 100)), { maxLength: 20 });
    fc.assert(fc.property(fc.array(at, { maxLength: 6 }), stores, (watched, stores) => {
      const memory = threeSlots();
      const watchers = watched.map((address) => watch(memory, 0xff00 + address));
      for (const [address, bytes] of stores) memory.stored(0xff00 + address, bytes);
      for (const { address, told } of watchers) {
        const touching = stores.filter(([at, bytes]) => {
          const first = 0xff00 + at;
          return first < address + 4 && first + bytes > address;
        });
        assertEquals(told, touching.length);
      }
    }));
  });

  it("is told by whatever stores: the host's word and bytes, a loader, a cache", () => {
    const memory = threeSlots();
    const watcher = watch(memory, 0x1000);
    memory.setWord(0x1000, 1);
    memory.write(0x1003, 1, 1n);
    memory.load(0xfff, new Uint8Array(2));
    const cache = new GuestCache(memory);
    cache.init(0x1000, 1);
    cache.writeByte(1);
    assertEquals(watcher.told, 4);
    memory.setWord(0x1004, 1);
    memory.word(0x1000);
    assertEquals(watcher.told, 4);
  });

  it("ends when it is ended, and the others go on", () => {
    const memory = threeSlots();
    const watchers = [0, 0, 4].map((address) => watch(memory, address));
    memory.unwatch(watchers[0]);
    memory.stored(0, 8);
    assertEquals(watchers.map(({ told }) => told), [0, 1, 1]);
    assertEquals(memory.watched, 2);
    memory.unwatch(watchers[2]);
    memory.unwatch(watchers[1]);
    memory.stored(0, 8);
    assertEquals(watchers.map(({ told }) => told), [0, 1, 1]);
    assertEquals(memory.watched, 0);
  });
});

describe("a cached guest address", () => {
  it("reads and writes the byte, and notices that its slot has gone or come back", () => {
    const memory = new GuestMemory();
    const slot = memory.addSlot({ base: 0x1_0000, size: 4096 });
    const cache = new GuestCache(memory);
    assertEquals(cache.init(0x1_0800, 1), true);
    assertEquals([cache.writeByte(5), cache.readByte(), memory.byte(0x1_0800)], [true, 5, 5]);
    memory.removeSlot(slot);
    assertEquals([cache.writeByte(6), cache.readByte()], [false, -1]);
    memory.addSlot({ base: 0x1_0000, size: 8192 });
    assertEquals([cache.readByte(), cache.writeByte(7), memory.byte(0x1_0800)], [0, true, 7]);
  });

  it("keeps its address when it is pointed to where nothing is, and fails until the slots change", () => {
    const memory = new GuestMemory();
    memory.addSlot({ base: 0, size: 4096 });
    const cache = new GuestCache(memory);
    assertEquals(cache.init(16, 4), true);
    assertEquals(cache.init(4094, 4), false);
    assertEquals([cache.gpa, cache.length], [16, 4]);
    assertEquals([cache.readByte(), cache.writeByte(1), memory.byte(16)], [-1, false, 0]);
    memory.addSlot({ base: 0x1_0000, size: 4096 });
    assertEquals([cache.writeByte(1), cache.readByte(), memory.byte(16)], [true, 1, 1]);
  });

  it("does not take a read-only slot, and loses one that becomes read-only: KVM looks for where it may write", () => {
    const memory = new GuestMemory();
    const slot = memory.addSlot({ base: 0, size: 4096 });
    const cache = new GuestCache(memory);
    assertEquals(cache.init(16, 1), true);
    memory.removeSlot(slot);
    memory.addSlot({ base: 0, size: 4096, readonly: true });
    assertEquals([cache.readByte(), cache.writeByte(1), memory.byte(16)], [-1, false, 0]);
    assertEquals(cache.init(16, 1), false);
  });
});
