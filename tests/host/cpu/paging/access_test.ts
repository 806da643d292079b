import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR3_PWT,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_2M,
  PF_VECTOR,
  PFERR_WRITE,
  PTE_A,
  PTE_D,
  PTE_P,
  PTE_RW,
} from "../../../../abi/mod.ts";

import { DATA } from "../../../support/guests.ts";
import { HOSTS, KERNEL_PAGE, pagingOn, PagingRig, storeEntry, tells } from "../../../support/paging.ts";

const FAR = 0x7f12_3456_7000;
const UPPER = -0x7fff_0000_0000;

for (const { backend, host } of HOSTS) {
  const rigOf = (memory = 2 ** 21) => new PagingRig({ vm: { backend, memory } }, host).fixups();

  describe(`linear addresses under tables (${backend}, ${host} host)`, () => {
    it("lead where the tables that the guest has stored itself say, and flat again with CR3 0", () => {
      const rig = rigOf();
      const [pml4, pdpt, pd, pt] = [0x3_0000, 0x3_1000, 0x3_2000, 0x3_3000];
      rig.finish(function* (cpu) {
        yield cpu.store32(DATA, 0x1111);
        yield cpu.store32(DATA + 0x1000, 0x2222);
        // All by itself: the first 2 MiB at 0, by one table, and DATA's second page at 1 GiB + 4 MiB + 5 pages.
        yield* storeEntry(cpu, pml4, pdpt);
        yield* storeEntry(cpu, pdpt, pd);
        yield* storeEntry(cpu, pd, pt);
        for (let page = 0; page < 512; page++) yield* storeEntry(cpu, pt + 8 * page, 4096 * page);
        yield* storeEntry(cpu, pdpt + 8, 0x3_4000);
        yield* storeEntry(cpu, 0x3_4000 + 8 * 2, 0x3_5000);
        yield* storeEntry(cpu, 0x3_5000 + 8 * 5, DATA + 0x1000);
        const alias = 2 ** 30 + 2 * 2 ** 21 + 5 * 4096;
        yield cpu.movToCr3(pml4);
        yield cpu.load32(alias);
        assertEquals(cpu.eax, 0x2222);
        yield cpu.load32(DATA);
        assertEquals(cpu.eax, 0x1111);
        yield cpu.store32(alias + 8, 0x3333);
        yield cpu.movToCr3(0);
        yield cpu.load32(DATA + 0x1008);
        assertEquals(cpu.eax, 0x3333);
        // No memory is at the alias now: MMIO that nobody answers.
        yield cpu.load32(alias);
        assertEquals(cpu.eax, 0);
      });
      assertEquals(rig.faults, []);
    });

    it("of several pages share a frame: what one stores the others load", () => {
      const rig = rigOf();
      rig.map(FAR, DATA).map(UPPER, DATA).map(-4096, DATA).map(0x40_0000, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        const places = [DATA, FAR, UPPER, -4096, 0x40_0000];
        for (const [i, from] of places.entries()) {
          yield cpu.store32(from + 4 * i, 0x100 + i);
          for (const to of places) {
            yield cpu.load32(to + 4 * i);
            assertEquals(cpu.eax, 0x100 + i);
          }
        }
      });
      assertEquals(rig.word(DATA + 8), 0x102);
      assertEquals(rig.faults, []);
    });

    it("lead into pages of 2 MiB and 1 GiB, to the last byte", () => {
      const rig = rigOf(2 ** 22);
      rig.map(FAR - FAR % 2 ** 21, 0x20_0000, { shift: PAGE_SHIFT_2M });
      rig.map(-(2 ** 30), 0, { shift: PAGE_SHIFT_1G });
      rig.vm.memory.setWord(0x20_0000, 0xaaaa);
      rig.vm.memory.setWord(0x3f_fffc, 0xbbbb);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        for (const base of [FAR - FAR % 2 ** 21, -(2 ** 30) + 0x20_0000]) {
          yield cpu.load32(base);
          assertEquals(cpu.eax, 0xaaaa);
          yield cpu.load32(base + 0x1f_fffc);
          assertEquals(cpu.eax, 0xbbbb);
          yield cpu.store64(base + 0x10_0004, 0x5555, 0x6666);
        }
      });
      assertEquals(rig.vm.memory.read(0x30_0004, 8), 0x6666_0000_5555n);
      assertEquals(rig.faults, []);
    });

    it("have 48 bits: the edges of both halves are mapped, and what lies between raises #GP", () => {
      const rig = rigOf();
      rig.map(2 ** 47 - 4096, DATA).map(-(2 ** 47), DATA + 0x1000);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(2 ** 47 - 4, 1);
        yield cpu.store32(-(2 ** 47), 2);
        // The same address as registers hold it.
        yield cpu.load32(-(2 ** 47));
        assertEquals(cpu.eax, 2);
        assertEquals(yield* tells(() => cpu.load32(2 ** 47)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.store8(2 ** 47, 1)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.load32(2 ** 47 - 2)), "#GP(0)", "the last two bytes are none");
        assertEquals(yield* tells(() => cpu.load64(2 ** 52)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.xadd32(2 ** 53 - 8, 1)), "#GP(0)");
      });
      assertEquals([rig.word(DATA + 0xffc), rig.word(DATA + 0x1000)], [1, 2]);
    });

    it("of the upper half go on at 0 behind the last one", () => {
      const rig = rigOf();
      rig.map(-4096, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(-4, 0x1234_5678);
        yield cpu.store32(-2, 0xddcc_bbaa); // Vector 0's gate is at 0; nobody divides here.
        yield cpu.load32(-2);
        assertEquals(cpu.eax, 0xddcc_bbaa);
      });
      assertEquals([rig.word(DATA + 0xffc), rig.word(0) & 0xffff], [0xbbaa_5678, 0xddcc]);
    });

    it("are translated whatever CR3's cache bits are, which are no part of the table's address", () => {
      const rig = rigOf();
      rig.map(FAR, DATA);
      rig.finish(function* (cpu) {
        yield cpu.movToCr3(rig.tables.root | CR3_PWT | 0x10);
        yield cpu.store32(FAR, 9);
        yield cpu.movFromCr3();
        assertEquals(cpu.eax, rig.tables.root | 0x18);
      });
      assertEquals(rig.word(DATA), 9);
    });
  });

  describe(`every access under tables (${backend}, ${host} host)`, () => {
    it("has its width, and zero-extends what it loads", () => {
      const rig = rigOf();
      rig.map(UPPER, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store64(UPPER, 0x5566_7788, 0x1122_3344);
        yield cpu.store8(UPPER + 1, 0xaa);
        yield cpu.store16(UPPER + 2, 0xbbcc);
        for (
          const [op, value] of [
            [() => cpu.load8(UPPER + 1), 0xaan],
            [() => cpu.load16(UPPER + 1), 0xccaan],
            [() => cpu.load32(UPPER + 1), 0x44bb_ccaan],
            [() => cpu.load64(UPPER), 0x1122_3344_bbcc_aa88n],
          ] as const
        ) {
          yield op();
          assertEquals(cpu.rax, value);
        }
      });
    });

    it("reads, changes and writes in place what read-modify-writes name", () => {
      const rig = rigOf();
      rig.map(UPPER, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store64(UPPER, 10, 0);
        yield cpu.xadd32(UPPER, 5);
        assertEquals(cpu.eax, 10);
        yield cpu.cmpxchg32(UPPER, 15, 0x80);
        assertEquals(cpu.zf, true);
        yield cpu.cmpxchg64(UPPER, 7, 8);
        assertEquals([cpu.zf, cpu.rax], [false, 0x80n]);
        yield cpu.xchg64(UPPER, 3, 4);
        assertEquals(cpu.rax, 0x80n);
        yield cpu.xchg32(UPPER + 4, 6);
        assertEquals(cpu.eax, 4);
      });
      assertEquals(rig.vm.memory.read(DATA, 8), 0x6_0000_0003n);
    });

    it("reaches the words of a bit string to both sides, across pages that lie apart", () => {
      const rig = rigOf();
      rig.map(UPPER, DATA).map(UPPER + 0x1000, DATA + 0x5000).map(UPPER - 0x1000, DATA + 0x9000);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.bts(UPPER, 8 * 4096 + 3);
        yield cpu.lockBts(UPPER, -1);
        yield cpu.bts(UPPER, 5);
        assertEquals(cpu.cf, false);
        yield cpu.lockBtr(UPPER + 0x1000, -8 * 4096 + 5);
        assertEquals(cpu.cf, true);
        // The base itself is never touched where the bit lies elsewhere.
        assertEquals(yield* tells(() => cpu.btr(UPPER + 0x2000, -8 * 4096 + 3)), "ok");
        assertEquals(cpu.cf, true);
      });
      assertEquals([rig.word(DATA), rig.word(DATA + 0x5000), rig.word(DATA + 0x9ffc)], [0, 0, 0x8000_0000]);
    });

    it("faults at the address of the word that holds the bit", () => {
      const rig = rigOf();
      rig.map(UPPER, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.bts(UPPER, 8 * 4096 + 35)), `#PF(${PFERR_WRITE})`);
        assertEquals(rig.lastFault!.cr2, UPPER + 0x1004);
      });
    });
  });

  describe(`an access across pages (${backend}, ${host} host)`, () => {
    it("has each part where its own page leads", () => {
      for (let before = 1; before < 8; before++) {
        const rig = rigOf();
        rig.map(FAR, DATA + 0x7000).map(FAR + 0x1000, DATA);
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          const at = FAR + 0x1000 - before;
          yield cpu.store64(at, 0x0403_0201, 0x0807_0605);
          yield cpu.load64(at);
          assertEquals(cpu.rax, 0x0807_0605_0403_0201n);
          yield cpu.xchg64(at, 0x1413_1211, 0x1817_1615);
          assertEquals(cpu.rax, 0x0807_0605_0403_0201n);
        });
        const { memory } = rig.vm;
        assertEquals(memory.byte(DATA + 0x8000 - before), 0x11);
        assertEquals(memory.byte(DATA + 0x7fff), 0x10 + before);
        assertEquals(memory.byte(DATA), 0x11 + before);
        assertEquals(memory.byte(DATA + 7 - before), 0x18);
        assertEquals(memory.byte(DATA + 0x8000), 0, "the frame behind the first is another's");
      }
    });

    it("whose second page is not mapped faults there, with nothing written and no register changed", () => {
      const rig = rigOf();
      rig.map(FAR, DATA);
      rig.vm.memory.setWord(DATA + 0xffc, 0x7777_7777);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        const at = FAR + 0xffe;
        assertEquals(yield* tells(() => cpu.load32(at)), "#PF(0)");
        assertEquals(rig.lastFault!.cr2, FAR + 0x1000);
        for (
          const op of [
            () => cpu.store32(at, 1),
            () => cpu.store64(at, 1, 2),
            () => cpu.xchg32(at, 1),
            () => cpu.xadd32(at, 0x1234),
            () => cpu.cmpxchg32(at, 0x1234, 1),
            () => cpu.bts(at, 0),
          ]
        ) {
          const flags = cpu.cf;
          assertEquals(yield* tells(op), `#PF(${PFERR_WRITE})`);
          assertEquals([rig.lastFault!.cr2, cpu.cf], [FAR + 0x1000, flags]);
        }
        yield* tells(() => cpu.xadd32(at, 0x1234));
        assertEquals(cpu.eax, 0x1234);
      });
      assertEquals(rig.word(DATA + 0xffc), 0x7777_7777);
    });

    it("whose first page is not mapped faults at its own address", () => {
      const rig = rigOf();
      rig.map(FAR + 0x1000, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.store64(FAR + 0xffd, -1, -1)), `#PF(${PFERR_WRITE})`);
        assertEquals(rig.lastFault!.cr2, FAR + 0xffd);
      });
      assertEquals(rig.word(DATA), 0);
    });

    it("is retried as a whole once the handler has mapped the second page", () => {
      const rig = rigOf();
      rig.map(FAR, DATA).map(FAR + 0x1000, DATA + 0x3000, { flags: 0 });
      const at = rig.entry(FAR + 0x1000);
      rig.on(PF_VECTOR, function* (cpu) {
        yield* storeEntry(cpu, at, DATA + 0x3000);
      });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(FAR + 0xffe, 0xddcc_bbaa);
      });
      assertEquals([rig.word(DATA + 0xffc), rig.word(DATA + 0x3000)], [0xbbaa_0000, 0xddcc]);
      assertEquals(rig.word(at) & (PTE_A | PTE_D), PTE_A | PTE_D);
      assertEquals(rig.word(rig.entry(FAR)) & KERNEL_PAGE, PTE_P | PTE_RW);
    });
  });
}
