import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR4_SMAP,
  FLAG_AC,
  FLAG_FIXED,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  PF_VECTOR,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  PTE_P,
  PTE_US,
  UD_VECTOR,
  type X86Cpu,
} from "../../../../abi/mod.ts";

import { DATA } from "../../../support/guests.ts";
import {
  addUser,
  HOSTS,
  pagingOn,
  PagingRig,
  readCr2,
  setCr4,
  setEfer,
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

for (const { backend, host } of HOSTS) {
  const rigOf = () => new PagingRig({ vm: { backend } }, host).fixups();

  describe(`SMAP (${backend}, ${host} host)`, () => {
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

  describe(`a user's access (${backend}, ${host} host)`, () => {
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
}
