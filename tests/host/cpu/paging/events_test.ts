import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR4_SMAP,
  DF_VECTOR,
  GP_VECTOR,
  type Guest,
  IDT_GATE64,
  PF_VECTOR,
  PTE_A,
  PTE_D,
  PTE_P,
  UD_VECTOR,
  X2APIC_EOI,
  X2APIC_SELF_IPI,
  type X86Cpu,
} from "../../../../abi/mod.ts";
import { type BackendName, NotModelled } from "../../../../host/mod.ts";
import { DATA, enableX2apic, IDT } from "../../../support/guests.ts";
import {
  addUser,
  HOSTS,
  type HostState,
  pagingOn,
  PagingRig,
  readCr2,
  setCr4,
  setEfer,
  storeEntry,
  tells,
  USER_PAGE,
} from "../../../support/paging.ts";

/** Where guests have their IDT: away from its frame, which is at 0. */
const HIGH_IDT = -0x1000_0000;
/** A pseudo-descriptor for LIDT. */
const POINTER = DATA + 0x100;

/** Loads an IDT of whole pages at a linear address. */
function* loadIdt(cpu: X86Cpu, base: number, limit = 0xfff): Guest {
  yield cpu.store16(POINTER, limit);
  yield cpu.store64(POINTER + 2, base | 0, Math.floor(base / 2 ** 32));
  yield cpu.lidt(POINTER);
}

function rigOf(backend: BackendName, host: HostState): PagingRig {
  const rig = new PagingRig({ vm: { backend } }, host);
  rig.map(HIGH_IDT, IDT);
  return rig;
}

for (const { backend, host } of HOSTS) {
  describe(`event delivery through tables (${backend}, ${host} host)`, () => {
    it("reads the gate at the IDT's linear address, for faults and interrupts", () => {
      const rig = rigOf(backend, host).fixups();
      let interrupts = 0;
      rig.on(0x40, function* (cpu) {
        interrupts++;
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, HIGH_IDT);
        yield* storeEntry(cpu, rig.entry(IDT), 0, { flags: 0 });
        yield cpu.invlpg(IDT);
        assertEquals(yield* tells(() => cpu.ud2()), `${UD_VECTOR}(0)`);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
        yield cpu.work(10_000);
        assertEquals(interrupts, 1);
        assertEquals(yield* tells(() => cpu.load32(0)), "#PF(0)", "nothing is at 0 for the program");
      });
    });

    it("sets the accessed flag of the IDT's page, not the dirty one", () => {
      const rig = rigOf(backend, host).fixups();
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, HIGH_IDT);
        assertEquals(rig.word(rig.entry(HIGH_IDT)) & PTE_A, 0);
        yield* tells(() => cpu.ud2());
      });
      assertEquals(rig.word(rig.entry(HIGH_IDT)) & (PTE_A | PTE_D), PTE_A);
    });

    it("reads a gate from two pages where the IDT lies across them", () => {
      const rig = rigOf(backend, host);
      const base = 0x5000_0000 - 16 * PF_VECTOR - 8;
      rig.map(0x5000_0000 - 4096, DATA + 0x3000).map(0x5000_0000, DATA + 0x6000);
      rig.fixups([PF_VECTOR]);
      const { memory } = rig.vm;
      for (let i = 0; i < 16; i += 4) {
        const word = memory.word(IDT + 16 * PF_VECTOR + i);
        memory.setWord(i < 8 ? DATA + 0x3ff8 + i : DATA + 0x6000 + i - 8, word);
      }
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, base);
        assertEquals(yield* tells(() => cpu.load32(0x6000_0000)), "#PF(0)");
      });
    });

    it("at CPL 3 reads a supervisor's IDT all the same: it is the processor's own access", () => {
      const rig = rigOf(backend, host).fixups();
      let seen = "";
      const user = addUser(rig, function* (cpu) {
        seen = yield* tells(() => cpu.ud2());
      });
      rig.finish(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, HIGH_IDT);
        yield cpu.sysret(user);
      });
      assertEquals(seen, `${UD_VECTOR}(0)`);
      assertEquals(rig.faults.map(({ cpl }) => cpl), [3]);
    });

    it("ends in a double fault where a page fault's own gate cannot be read, with the gate's address in CR2", () => {
      const rig = rigOf(backend, host);
      // #DF's gate is in the page before: the IDT ends in two pages, of which the second is absent.
      const base = 0x5000_0000 - 16 * PF_VECTOR;
      rig.map(0x5000_0000 - 4096, DATA + 0x3000);
      const seen: number[] = [];
      rig.on(DF_VECTOR, function* (cpu) {
        seen.push(cpu.vector, cpu.errorCode, yield* readCr2(cpu));
        cpu.fixup();
      });
      rig.vm.memory.load(
        DATA + 0x3000 + (base + 16 * DF_VECTOR) % 4096,
        gateBytes(rig, IDT + 16 * DF_VECTOR),
      );
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, base);
        assertEquals(yield* tells(() => cpu.load32(0x6000_0000)), `${DF_VECTOR}(0)`);
      });
      assertEquals(seen, [DF_VECTOR, 0, base + 16 * PF_VECTOR]);
    });

    it("raises #PF in place of a benign exception or an interrupt whose gate is in an absent page", () => {
      const rig = rigOf(backend, host);
      // Vector 0x40's gate is in the second page, #PF's in the first one.
      const base = 0x5000_0000 - 16 * 0x40;
      rig.map(0x5000_0000 - 4096, DATA + 0x3000);
      const seen: (number | string)[] = [];
      rig.on(0x40, function* (cpu) {
        seen.push("interrupt");
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.vm.memory.load(DATA + 0x5000, gateBytes(rig, IDT + 16 * 0x40));
      // The entry of the absent page is in another table: 0x5000_0000 begins one.
      rig.map(0x5000_0000, 0, { flags: 0 });
      const at = rig.entry(0x5000_0000);
      rig.on(PF_VECTOR, function* (cpu) {
        seen.push(cpu.errorCode, yield* readCr2(cpu));
        yield* storeEntry(cpu, at, DATA + 0x5000);
      });
      rig.vm.memory.load(
        DATA + 0x3000 + (base + 16 * PF_VECTOR) % 4096,
        gateBytes(rig, IDT + 16 * PF_VECTOR),
      );
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, base);
        yield cpu.sti();
        // The interrupt is acknowledged when its delivery begins: the #PF's handler runs, and it is lost to the guest
        // until it is sent again.
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
        yield cpu.work(10_000);
        assertEquals(seen, [0, 0x5000_0000]);
        yield cpu.wrmsr(X2APIC_EOI, 0);
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
        yield cpu.work(10_000);
      });
      assertEquals(seen, [0, 0x5000_0000, "interrupt"]);
    });

    it("is a triple fault where nothing of the IDT is mapped", () => {
      const rig = rigOf(backend, host).fixups();
      const { end } = rig.run(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, 0x5000_0000);
        yield cpu.load32(0x6000_0000);
        yield cpu.store32(DATA, 1);
      });
      assertEquals(end, "shutdown");
      assertEquals([rig.faults, rig.word(DATA)], [[], 0]);
    });

    it("is a triple fault for a program that has mapped nothing of itself", () => {
      const rig = rigOf(backend, host).fixups();
      const nothing = rig.emptyHierarchy();
      const { end } = rig.run(function* (cpu) {
        yield* pagingOn(cpu, nothing);
        yield cpu.store32(DATA, 1);
      });
      assertEquals([end, rig.word(DATA)], ["shutdown", 0]);
    });

    it("minds reserved bits on the way to the IDT, and SMAP, with AC set or not", () => {
      const reserved = rigOf(backend, host).fixups([DF_VECTOR]);
      reserved.vm.memory.setWord(reserved.entry(HIGH_IDT) + 4, 1 << 15);
      const { end } = reserved.run(function* (cpu) {
        yield* pagingOn(cpu, reserved.tables);
        yield* loadIdt(cpu, HIGH_IDT);
        yield cpu.ud2();
      });
      assertEquals(end, "shutdown");
      const smap = rigOf(backend, host).fixups();
      smap.map(HIGH_IDT, IDT, { flags: USER_PAGE });
      const run = smap.run(function* (cpu) {
        yield* pagingOn(cpu, smap.tables);
        yield* loadIdt(cpu, HIGH_IDT);
        yield* tells(() => cpu.ud2());
        yield* setCr4(cpu, CR4_SMAP);
        yield cpu.stac();
        yield* tells(() => cpu.ud2());
      });
      assertEquals([run.end, smap.faults.length], ["shutdown", 1]);
    });
  });

  describe(`an IDT in a user's page, with SMAP (${backend}, ${host} host)`, () => {
    /** Reads it by an instruction, so that the TLB has it, and has an exception delivered. */
    function read(user: boolean): number {
      const rig = rigOf(backend, host).fixups();
      rig.map(HIGH_IDT, IDT, { flags: USER_PAGE });
      function* program(cpu: X86Cpu): Guest {
        yield cpu.load32(HIGH_IDT);
        yield cpu.store32(user ? HIGH_IDT + 0xff0 : DATA, 1);
        yield* tells(() => cpu.ud2());
      }
      const entry = addUser(rig, program);
      const { end } = rig.run(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, HIGH_IDT);
        yield* setCr4(cpu, CR4_SMAP);
        yield cpu.stac();
        if (user) yield cpu.sysret(entry);
        else yield* program(cpu);
      });
      assertEquals([end, rig.faults], ["shutdown", []]);
      return user ? rig.word(IDT + 0xff0) : rig.word(DATA);
    }

    it("is read by a program with AC, but not by the processor", () => {
      assertEquals(read(false), 1);
    });

    it("is read by the user, but not by the processor: that is the supervisor's access at any CPL", () => {
      assertEquals(read(true), 1);
    });
  });

  describe(`LIDT (${backend}, ${host} host)`, () => {
    it("reads its operand through the tables, and faults where the tables do", () => {
      const rig = rigOf(backend, host).fixups();
      rig.map(0x5000_0000, DATA);
      rig.map(0x5000_2000, DATA, { flags: PTE_P });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.lidt(0x6000_0000)), "#PF(0)");
        assertEquals(yield* tells(() => cpu.lidt(0x5000_0ff8)), "#PF(0)");
        assertEquals(rig.lastFault!.cr2, 0x5000_1000);
        assertEquals(yield* tells(() => cpu.lidt(2 ** 47 - 4)), "#GP(0)");
        yield cpu.store16(DATA + 0x100, 0xfff);
        yield cpu.store64(DATA + 0x102, HIGH_IDT, 0xffff_ffff);
        yield cpu.lidt(0x5000_2100);
        yield cpu.store32(rig.entry(IDT), 0);
        yield cpu.invlpg(IDT);
        assertEquals(yield* tells(() => cpu.ud2()), `${UD_VECTOR}(0)`);
      });
    });

    it("of a base that is not canonical raises #GP, and the IDT stays what it was", () => {
      for (const paging of [false, true]) {
        const rig = rigOf(backend, host).fixups();
        rig.finish(function* (cpu) {
          if (paging) yield* pagingOn(cpu, rig.tables);
          yield cpu.store16(POINTER, 0xfff);
          for (const high of [0x8000, 0xffff_0000, 0x7fff_ffff]) {
            yield cpu.store64(POINTER + 2, 0, high);
            assertEquals(yield* tells(() => cpu.lidt(POINTER)), "#GP(0)", `${high}`);
          }
          assertEquals(rig.lastFault!.vector, GP_VECTOR);
          assertEquals(yield* tells(() => cpu.ud2()), `${UD_VECTOR}(0)`);
        });
      }
    });

    it("of an IDT at an odd address is refused, in guest terms, once a gate of it is wanted", () => {
      const rig = rigOf(backend, host).fixups();
      rig.start(function* odd(cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* loadIdt(cpu, HIGH_IDT + 2);
        yield cpu.ud2();
      });
      const error = assertThrows(() => rig.vm.machine.run(), NotModelled);
      assertStringIncludes(error.message, "not aligned to 4 bytes");
    });
  });
}

/** The bytes of a gate. */
function gateBytes(rig: PagingRig, address: number): Uint8Array {
  return Uint8Array.from({ length: IDT_GATE64.size }, (_, i) => rig.vm.memory.byte(address + i));
}
