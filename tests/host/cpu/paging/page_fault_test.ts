import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  PF_VECTOR,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_WRITE,
  PTE_AVAILABLE_HIGH,
  PTE_D,
  PTE_G,
  PTE_NX_HIGH,
  PTE_P,
  PTE_PS,
  PTE_RW,
} from "../../../../abi/mod.ts";

import { DATA } from "../../../support/guests.ts";
import {
  HOSTS,
  KERNEL_PAGE,
  pagingOn,
  PagingRig,
  readCr2,
  storeEntry,
  tells,
  writeProtect,
} from "../../../support/paging.ts";

const PAGE = 0x7f00_0000_0000;
const P = PFERR_PRESENT;
const W = PFERR_WRITE;
const RSVD = PFERR_RSVD;
const pf = (code: number) => `#PF(${code})`;

for (const { backend, host } of HOSTS) {
  const rigOf = () => new PagingRig({ vm: { backend } }, host).fixups();

  describe(`a page fault of the supervisor's (${backend}, ${host} host)`, () => {
    it("tells absence at every level, and a write as such", () => {
      for (const level of [LEVEL_PML4, LEVEL_PDPT, LEVEL_PD, 1]) {
        const rig = rigOf();
        rig.map(PAGE, DATA);
        const at = rig.entry(PAGE, level);
        rig.vm.memory.setWord(at, rig.word(at) & ~PTE_P);
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          assertEquals(yield* tells(() => cpu.load32(PAGE + 4)), pf(0));
          assertEquals(yield* tells(() => cpu.store32(PAGE + 4, 1)), pf(W));
          assertEquals(yield* tells(() => cpu.xadd32(PAGE + 4, 1)), pf(W));
        });
        assertEquals(rig.faults.map(({ cr2 }) => cr2), Array(3).fill(PAGE + 4));
      }
    });

    it("leaves the address in CR2, also one of the upper half, until the next one", () => {
      const rig = rigOf();
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* readCr2(cpu), 0);
        yield* tells(() => cpu.load8(-0x1234));
        assertEquals(yield* readCr2(cpu), -0x1234);
        yield cpu.load8(DATA);
        yield* tells(() => cpu.load32(2 ** 47)); // #GP leaves CR2 alone.
        assertEquals(yield* readCr2(cpu), -0x1234);
        assertEquals(yield* tells(() => cpu.load8(2 ** 47 - 1)), pf(0));
        assertEquals(yield* readCr2(cpu), 2 ** 47 - 1);
      });
    });

    it("of a write to a read-only page is there with CR0.WP alone, whichever level denies it", () => {
      for (const level of [LEVEL_PML4, LEVEL_PDPT, LEVEL_PD, 1]) {
        const rig = rigOf();
        rig.map(PAGE, DATA);
        const at = rig.entry(PAGE, level);
        rig.vm.memory.setWord(at, rig.word(at) & ~PTE_RW);
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          assertEquals(yield* tells(() => cpu.store32(PAGE, 1)), "ok");
          yield* writeProtect(cpu);
          assertEquals(yield* tells(() => cpu.store32(PAGE, 2)), pf(P | W));
          assertEquals(yield* tells(() => cpu.cmpxchg32(PAGE, 9, 3)), pf(P | W), "it would write, too");
          assertEquals(yield* tells(() => cpu.load32(PAGE)), "ok");
          assertEquals(cpu.eax, 1);
        });
      }
    });

    it("of a reserved bit says so, at every level, before rights are looked at", () => {
      // MAXPHYADDR is 46: bits 51:46. PS in a PML4E. Bits of the address below a large page's size.
      const cases: [level: number, low: number, high: number][] = [
        [LEVEL_PML4, 0, 1 << 14],
        [LEVEL_PML4, PTE_PS, 0],
        [LEVEL_PDPT, 0, 1 << 19],
        [LEVEL_PDPT, PTE_PS | (1 << 13), 0],
        [LEVEL_PD, 0, 1 << 15],
        [LEVEL_PD, PTE_PS | (1 << 20), 0],
        [1, 0, 1 << 14],
        [1, 0, PTE_NX_HIGH], // IA32_EFER.NXE is clear.
      ];
      for (const [level, low, high] of cases) {
        const rig = rigOf();
        rig.map(PAGE, 0);
        const at = rig.entry(PAGE, level);
        const kept = level > 1 && (low & PTE_PS) !== 0 && level < LEVEL_PML4 ? PTE_P : rig.word(at) & ~PTE_RW;
        rig.vm.memory.setWord(at, kept | low);
        rig.vm.memory.setWord(at + 4, high);
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          yield* writeProtect(cpu);
          assertEquals(yield* tells(() => cpu.load32(PAGE + 8)), pf(P | RSVD), `${level} ${low} ${high}`);
          assertEquals(yield* tells(() => cpu.store32(PAGE + 8, 1)), pf(P | RSVD | W));
        });
      }
    });

    it("is not caused by bits that are ignored, nor by reserved ones of an absent entry", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: KERNEL_PAGE | 0xe00 });
      rig.vm.memory.setWord(rig.entry(PAGE) + 4, PTE_AVAILABLE_HIGH);
      const pdpte = rig.entry(PAGE, LEVEL_PDPT);
      rig.vm.memory.setWord(pdpte, rig.word(pdpte) | PTE_D | PTE_G);
      rig.map(PAGE + 4096, 0, { flags: 0 });
      rig.vm.memory.setWord(rig.entry(PAGE + 4096) + 4, 0xffff_ffff);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.store32(PAGE, 1)), "ok");
        assertEquals(yield* tells(() => cpu.store32(PAGE + 4096, 1)), pf(W));
      });
    });

    it("of AMD's reserved bit 8 in a PML4E is AMD's alone", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA);
      const at = rig.entry(PAGE, LEVEL_PML4);
      rig.vm.memory.setWord(at, rig.word(at) | PTE_G);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        const told = yield* tells(() => cpu.load32(PAGE));
        assertEquals(told, backend === "svm" ? pf(P | RSVD) : "ok");
      });
    });

    it("is over once its handler has mapped the page: the instruction is executed again", () => {
      const rig = rigOf();
      rig.map(PAGE, 0, { flags: 0 });
      const at = rig.entry(PAGE);
      const seen: number[] = [];
      rig.on(PF_VECTOR, function* (cpu) {
        seen.push(cpu.errorCode, yield* readCr2(cpu), cpu.interruptedRip);
        yield* storeEntry(cpu, at, DATA);
      });
      let site = 0;
      rig.finish(function* main(cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(DATA + 12, 40);
        site = rig.vm.bootstrap.processor.rip;
        yield cpu.xadd32(PAGE + 12, 2);
        assertEquals(cpu.eax, 40);
      });
      assertEquals(seen.slice(0, 2), [W, PAGE + 12]);
      assertEquals(Math.floor(seen[2] / 256), Math.floor(site / 256));
      assertEquals(rig.word(DATA + 12), 42);
    });

    it("comes again for as long as the handler does nothing about it", () => {
      const rig = rigOf();
      let turns = 0;
      rig.on(PF_VECTOR, function* (cpu) {
        if (++turns === 5) cpu.fixup();
        yield cpu.iret();
      });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.load32(PAGE)), pf(0));
      });
      assertEquals(turns, 5);
    });
  });
}
