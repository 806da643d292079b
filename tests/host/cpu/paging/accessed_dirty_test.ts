import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { PAGE_SHIFT_1G, PAGE_SHIFT_2M, PTE_A, PTE_D, PTE_P } from "../../../../abi/mod.ts";

import { DATA } from "../../../support/guests.ts";
import { HOSTS, KERNEL_PAGE, pagingOn, PagingRig, tells, writeProtect } from "../../../support/paging.ts";

const PAGE = 0x7f00_0000_0000;

for (const { backend, host } of HOSTS) {
  const rigOf = () => new PagingRig({ vm: { backend } }, host).fixups();

  describe(`accessed and dirty flags (${backend}, ${host} host)`, () => {
    const A = PTE_A;
    const flagsOf = (rig: PagingRig, linear: number, levels: number[]) =>
      levels.map((level) => rig.word(rig.entry(linear, level)) & (A | PTE_D));

    it("are set along the way by a read, and by a write in the last entry too", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA).map(PAGE + 4096, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(flagsOf(rig, PAGE, [4, 3, 2, 1]), [0, 0, 0, 0]);
        yield cpu.load32(PAGE);
        assertEquals(flagsOf(rig, PAGE, [4, 3, 2, 1]), [A, A, A, A]);
        assertEquals(flagsOf(rig, PAGE + 4096, [1]), [0], "its neighbour was not used");
        // The TLB has the page, without its dirty flag: the write walks, and sets it.
        yield cpu.store32(PAGE, 1);
        assertEquals(flagsOf(rig, PAGE, [4, 3, 2, 1]), [A, A, A, A | PTE_D]);
        yield cpu.xadd32(PAGE + 4096, 0);
        assertEquals(flagsOf(rig, PAGE + 4096, [1]), [A | PTE_D]);
      });
    });

    it("are set where they are missing, whatever the entries below and above have", () => {
      for (const missing of [4, 3, 2, 1]) {
        for (const write of [false, true]) {
          const rig = rigOf();
          rig.map(PAGE, DATA);
          for (const level of [4, 3, 2, 1]) {
            const at = rig.entry(PAGE, level);
            if (level !== missing) rig.vm.memory.setWord(at, rig.word(at) | A | (level === 1 ? PTE_D : 0));
          }
          rig.finish(function* (cpu) {
            yield* pagingOn(cpu, rig.tables);
            yield write ? cpu.store32(PAGE, 1) : cpu.load32(PAGE);
          });
          const last = missing !== 1 || write ? A | PTE_D : A;
          assertEquals(flagsOf(rig, PAGE, [4, 3, 2, 1]), [A, A, A, last], `${missing}`);
        }
      }
    });

    it("of a large page are in the entry that maps it", () => {
      const rig = rigOf();
      rig.map(PAGE, 0, { shift: PAGE_SHIFT_2M }).map(-(2 ** 30), 0, { shift: PAGE_SHIFT_1G });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(PAGE + DATA, 1);
        yield cpu.store32(-(2 ** 30) + DATA, 1);
      });
      assertEquals(flagsOf(rig, PAGE, [4, 3, 2]), [A, A, A | PTE_D]);
      assertEquals(flagsOf(rig, -(2 ** 30), [4, 3]), [A, A | PTE_D]);
    });

    it("are not set in the page's entry where the access faults", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: PTE_P });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* writeProtect(cpu);
        yield* tells(() => cpu.store32(PAGE, 1));
      });
      assertEquals(flagsOf(rig, PAGE, [1])[0] & PTE_D, 0);
    });

    it("stay as software left them while the TLB has the page, and come back after INVLPG", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA);
      const at = rig.entry(PAGE);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(PAGE, 1);
        yield cpu.store32(at, DATA | KERNEL_PAGE);
        yield cpu.store32(PAGE, 2);
        assertEquals(flagsOf(rig, PAGE, [1]), [0]);
        yield cpu.invlpg(PAGE);
        yield cpu.load32(PAGE);
        assertEquals(flagsOf(rig, PAGE, [1]), [A]);
        yield cpu.store32(PAGE, 3);
        assertEquals(flagsOf(rig, PAGE, [1]), [A | PTE_D]);
      });
    });

    it("of the tables are those of a store to the tables: the page that holds them gets dirty, too", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA);
      const at = rig.entry(PAGE);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(at, DATA | KERNEL_PAGE);
        assertEquals(rig.word(rig.entry(at)) & PTE_D, PTE_D);
        // A walk that sets a flag in a table uses physical addresses: no page that maps the table gets dirty by it.
        const other = at - (at % 4096) - 4096;
        assertEquals(rig.word(rig.entry(other)) & PTE_D, 0);
      });
    });
  });
}
