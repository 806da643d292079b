import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR4_SMAP,
  FLAG_AC,
  FLAG_FIXED,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_2M,
  PF_VECTOR,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  PTE_A,
  PTE_AVAILABLE_HIGH,
  PTE_D,
  PTE_G,
  PTE_NX_HIGH,
  PTE_P,
  PTE_PS,
  PTE_RW,
  PTE_US,
  UD_VECTOR,
  type X86Cpu,
} from "../../../../abi/mod.ts";
import { BACKENDS } from "../../../../host/mod.ts";
import { DATA } from "../../../support/guests.ts";
import {
  addUser,
  KERNEL_PAGE,
  pagingOn,
  PagingRig,
  readCr2,
  setCr4,
  setEfer,
  storeEntry,
  tells,
  USER_PAGE,
  writeProtect,
} from "../../../support/paging.ts";

const PAGE = 0x7f00_0000_0000;
const P = PFERR_PRESENT;
const W = PFERR_WRITE;
const U = PFERR_USER;
const RSVD = PFERR_RSVD;
const pf = (code: number) => `#PF(${code})`;

for (const backend of BACKENDS) {
  const rigOf = () => new PagingRig({ vm: { backend } }).fixups();

  describe(`a page fault of the supervisor's (${backend})`, () => {
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

  describe(`SMAP (${backend})`, () => {
    it("keeps the supervisor off user pages but for accesses between STAC and CLAC", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: USER_PAGE }).map(PAGE + 4096, DATA, { flags: PTE_P | PTE_US });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* writeProtect(cpu);
        assertEquals(yield* tells(() => cpu.store32(PAGE, 1)), "ok");
        yield* setCr4(cpu, CR4_SMAP);
        for (let turn = 0; turn < 2; turn++) {
          assertEquals(yield* tells(() => cpu.load32(PAGE)), pf(P), "though the TLB has it");
          assertEquals(yield* tells(() => cpu.store32(PAGE, 1)), pf(P | W));
          yield cpu.stac();
          yield cpu.pushf();
          assertEquals(cpu.eax & FLAG_AC, FLAG_AC);
          assertEquals(yield* tells(() => cpu.store32(PAGE, 2)), "ok");
          assertEquals(yield* tells(() => cpu.load32(PAGE + 4096)), "ok");
          assertEquals(yield* tells(() => cpu.store32(PAGE + 4096, 2)), pf(P | W), "R/W counts all the same");
          yield cpu.clac();
          yield cpu.pushf();
          assertEquals(cpu.eax & FLAG_AC, 0);
        }
        assertEquals(yield* tells(() => cpu.load32(DATA)), "ok");
        assertEquals(cpu.eax, 2);
      });
    });

    it("with CR0.WP clear lets AC write to read-only user pages", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: PTE_P | PTE_US });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* setCr4(cpu, CR4_SMAP);
        assertEquals(yield* tells(() => cpu.store32(PAGE, 1)), pf(P | W));
        yield cpu.stac();
        assertEquals(yield* tells(() => cpu.store32(PAGE, 1)), "ok");
      });
    });

    it("gives STAC and CLAC to CPL 0 alone: #UD elsewhere", () => {
      const rig = rigOf();
      const seen: string[] = [];
      const user = addUser(rig, function* (cpu) {
        seen.push(yield* tells(() => cpu.stac()), yield* tells(() => cpu.clac()));
      });
      rig.finish(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield cpu.sysret(user);
      });
      assertEquals(seen, [`${UD_VECTOR}(0)`, `${UD_VECTOR}(0)`]);
    });
  });

  describe(`a user's access (${backend})`, () => {
    /** Tells what accesses of a user come to. */
    function asUser(
      rig: PagingRig,
      accesses: (cpu: X86Cpu) => (() => number)[],
      cr4 = 0,
      rflags = FLAG_FIXED,
    ) {
      const seen: string[] = [];
      const user = addUser(rig, function* (cpu) {
        assertEquals(cpu.cpl, 3);
        for (const op of accesses(cpu)) seen.push(yield* tells(op));
      });
      rig.on(PF_VECTOR, function* (cpu) {
        rig.faults.push({
          vector: PF_VECTOR,
          errorCode: cpu.errorCode,
          cr2: yield* readCr2(cpu),
          rip: cpu.interruptedRip,
          cpl: cpu.interruptedCpl,
        });
        cpu.fixup();
      });
      rig.finish(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        if (cr4 !== 0) yield* setCr4(cpu, cr4);
        yield cpu.sysret(user, rflags);
      });
      return seen;
    }

    it("needs U/S in every entry", () => {
      for (const level of [LEVEL_PML4, LEVEL_PDPT, LEVEL_PD, 1]) {
        const rig = rigOf();
        rig.map(PAGE, DATA, { flags: USER_PAGE });
        rig.map(-4096, DATA, { flags: USER_PAGE });
        const at = rig.entry(PAGE, level);
        rig.vm.memory.setWord(at, rig.word(at) & ~PTE_US);
        const seen = asUser(rig, (cpu) => [
          () => cpu.load32(PAGE),
          () => cpu.store32(PAGE, 1),
          () => cpu.store32(-4096, 1),
          () => cpu.load32(DATA),
          () => cpu.load32(0x6000_0000),
          () => cpu.store8(0x6000_0000, 0),
        ]);
        assertEquals(seen, [pf(P | U), pf(P | W | U), "ok", pf(P | U), pf(U), pf(W | U)]);
        assertEquals(rig.faults.map(({ cpl }) => cpl), [3, 3, 3, 3, 3]);
      }
    });

    it("to a read-only page faults though CR0.WP is clear, and AC and SMAP are nothing to it", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: PTE_P | PTE_US });
      const seen = asUser(
        rig,
        (cpu) => [() => cpu.load32(PAGE), () => cpu.store32(PAGE, 1)],
        CR4_SMAP,
        FLAG_FIXED | FLAG_AC,
      );
      assertEquals(seen, ["ok", pf(P | W | U)]);
    });

    it("with a reserved bit in the way tells all of P, U and RSVD", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: USER_PAGE });
      rig.vm.memory.setWord(rig.entry(PAGE) + 4, 1 << 17);
      const seen = asUser(rig, (cpu) => [() => cpu.load32(PAGE), () => cpu.btr(PAGE, 3)]);
      assertEquals(seen, [pf(P | U | RSVD), pf(P | U | W | RSVD)]);
    });

    it("cannot be made with INVLPG, INVPCID or MOV from CR2", () => {
      const rig = rigOf();
      rig.map(PAGE, DATA, { flags: USER_PAGE });
      const seen = asUser(
        rig,
        (cpu) => [() => cpu.invlpg(PAGE), () => cpu.invpcid(2, PAGE), () => cpu.movFromCr2()],
      );
      assertEquals(seen, ["#GP(0)", "#GP(0)", "#GP(0)"]);
    });
  });

  describe(`accessed and dirty flags (${backend})`, () => {
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
