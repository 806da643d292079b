import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_DEFAULT_BASE,
  EFER_NX,
  type Guest,
  LEVEL_PML4,
  PFERR_USER,
  PFERR_WRITE,
  PTE_A,
  PTE_D,
  PTE_PS,
  type X86Cpu,
} from "../../../../abi/mod.ts";
import { type Acceleration, type BackendName, BACKENDS, GuestError, TP } from "../../../../host/mod.ts";
import { DATA } from "../../../support/guests.ts";
import { IOAPIC } from "../../../support/ioapic.ts";
import {
  addUser,
  KERNEL_PAGE,
  pagingOn,
  PagingRig,
  setEfer,
  storeEntry,
  tells,
  USER_PAGE,
} from "../../../support/paging.ts";

const READ_ONLY = 0x40_0000;
/** Addresses whose table is elsewhere: the PML4E of this half a terabyte says where. */
const ELSEWHERE = 2 ** 40;
const AD = PTE_A | PTE_D;

function rigOf(backend: BackendName, acceleration: Acceleration = "none"): PagingRig {
  return new PagingRig({
    vm: { backend, acceleration, slots: [{ base: READ_ONLY, size: 0x4000, readonly: true }] },
  }).fixups();
}

/** Has ELSEWHERE's PML4E lead to a table. */
function lead(rig: PagingRig, table: number): void {
  const at = rig.entry(ELSEWHERE, LEVEL_PML4);
  rig.vm.memory.setWord(at, (table | USER_PAGE) >>> 0);
  rig.vm.memory.setWord(at + 4, Math.floor(table / 2 ** 32));
}

for (const backend of BACKENDS) {
  const accelerations: Acceleration[] = backend === "vmx" ? ["none", "apicv"] : ["none", "avic", "x2avic"];

  describe(`tables where no memory is (${backend})`, () => {
    // Hardware exits, for the table's address; KVM emulates the instruction, and its walk cannot read the table, which is
    // a page fault without P (paging_tmpl.h, walk_addr_generic: a bad host address ends it before the entry is looked at).
    for (
      const [name, table] of [["a hole", 0xd000_0000], ["the I/O APIC", IOAPIC], ["far up", 2 ** 45]] as const
    ) {
      it(`raise page faults of an absent page: in ${name}`, () => {
        const rig = rigOf(backend);
        lead(rig, table);
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          for (let turn = 0; turn < 2; turn++) {
            assertEquals(yield* tells(() => cpu.load32(ELSEWHERE + 12)), "#PF(0)");
            assertEquals(yield* tells(() => cpu.xadd32(ELSEWHERE + 12, 1)), `#PF(${PFERR_WRITE})`);
          }
          assertEquals(rig.lastFault!.cr2, ELSEWHERE + 12);
        });
      });
    }

    it("cost a fault in KVM, which marks the page as MMIO; the hardware tells an access to a table as such", () => {
      const rig = new PagingRig({ vm: { backend, trace: 1000 } }).fixups();
      lead(rig, 0xd000_0000);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        for (let turn = 0; turn < 3; turn++) yield* tells(() => cpu.load32(ELSEWHERE));
      });
      const codes = [...rig.vm.tracer.records()]
        .filter(({ event, args }) => event === TP.kvm_page_fault && args[0] === 0xd000_0000)
        .map(({ args }) => [args[2], args[3]]);
      // VMX: a read, of a linear address, not what it translates to; then EPT misconfigurations. SVM: accesses to tables
      // count as writes; EXITINFO1 bit 33, and a reserved bit once the page is marked.
      const expected = backend === "vmx" ? [[0x81, 0]] : [[0x6, 2], [0xf, 2], [0xf, 2]];
      assertEquals(codes, expected);
      if (backend === "vmx") assertEquals(rig.vm.exits().EPT_MISCONFIG, 2);
    });

    it("tell a user's access as such", () => {
      const rig = rigOf(backend);
      lead(rig, 0xd000_0000);
      const seen: string[] = [];
      const user = addUser(rig, function* (cpu) {
        seen.push(yield* tells(() => cpu.load32(ELSEWHERE)), yield* tells(() => cpu.store8(ELSEWHERE, 1)));
      });
      rig.finish(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield cpu.sysret(user);
      });
      assertEquals(seen, [`#PF(${PFERR_USER})`, `#PF(${PFERR_USER | PFERR_WRITE})`]);
    });

    for (const acceleration of accelerations) {
      it(`are not the APIC's registers: at its page (${acceleration})`, () => {
        const rig = rigOf(backend, acceleration);
        lead(rig, APIC_DEFAULT_BASE);
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          // The entry for the fifth GiB is where the APIC's version is: 0x30.
          for (const index of [0, 4, 6, 0x1f, 0x60]) {
            assertEquals(yield* tells(() => cpu.load32(ELSEWHERE + 2 ** 30 * index)), "#PF(0)");
            assertEquals(
              yield* tells(() => cpu.store32(ELSEWHERE + 2 ** 30 * index, 1)),
              `#PF(${PFERR_WRITE})`,
            );
          }
        });
      });
    }

    it("of the code end the run with an error that says where", () => {
      for (const root of [0xd000_0000, 2 ** 32 - 4096, APIC_DEFAULT_BASE, IOAPIC, 0x20_0000]) {
        const rig = rigOf(backend);
        rig.start(function* lost(cpu) {
          yield cpu.movToCr3(root);
          yield cpu.pause();
        });
        const error = assertThrows(() => rig.vm.machine.run(1e6), GuestError);
        assertStringIncludes(error.message, "no memory is there");
        assertStringIncludes(error.message, `0x${root.toString(16)}`);
      }
    });
  });

  describe(`tables in a read-only slot (${backend})`, () => {
    /** A PDPT and a PD there, of 2 MiB and 1 GiB pages. */
    function readOnlyTables(flags: number): { rig: PagingRig; words: () => number[] } {
      const rig = rigOf(backend);
      const { u32 } = rig.vm.memory.find(READ_ONLY, 1)!;
      lead(rig, READ_ONLY);
      u32[0] = (READ_ONLY + 0x1000) | KERNEL_PAGE | (flags & PTE_A);
      u32[2] = 0 | KERNEL_PAGE | PTE_PS | flags;
      u32[1024] = 0 | KERNEL_PAGE | PTE_PS | flags;
      return { rig, words: () => [u32[0], u32[2], u32[1024]] };
    }

    for (const [name, flags] of [["set", AD], ["clear", 0]] as const) {
      it(`translate, with flags that are ${name} and stay so: KVM emulates what hardware cannot (${name})`, () => {
        const { rig, words } = readOnlyTables(flags);
        const before = words();
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          for (const base of [ELSEWHERE, ELSEWHERE + 2 ** 30]) {
            for (let turn = 0; turn < 2; turn++) {
              assertEquals(yield* tells(() => cpu.store32(base + DATA, 7 + turn)), "ok");
              yield cpu.xadd32(base + DATA, 1);
              assertEquals(cpu.eax, 7 + turn);
              yield cpu.load32(DATA);
              assertEquals(cpu.eax, 8 + turn);
            }
          }
        });
        assertEquals(words(), before);
      });
    }
  });

  describe(`tables that map themselves (${backend})`, () => {
    it("are found through themselves: the PML4 as a PDPT, a PD, a PT, and a page", () => {
      const rig = rigOf(backend);
      const { root } = rig.tables;
      const SLOT = 256 + 37;
      rig.vm.memory.setWord(root + 8 * SLOT, root | KERNEL_PAGE);
      const base = (SLOT - 512) * 2 ** 39;
      const self = base + SLOT * 2 ** 30 + SLOT * 2 ** 21 + SLOT * 4096;
      rig.map(ELSEWHERE, DATA);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.load64(self + 8 * SLOT);
        assertEquals(Number(cpu.rax) & ~0xfff, root);
        // The PTE of an address, by the address alone: base + address / 512, within 48 bits.
        yield cpu.load32(base + ELSEWHERE / 512);
        assertEquals(cpu.eax & ~0xfff, DATA);
        // And changed there.
        yield cpu.store32(base + ELSEWHERE / 512, (DATA + 0x1000) | KERNEL_PAGE);
        yield cpu.store32(DATA + 0x1000, 5);
        yield cpu.load32(ELSEWHERE);
        assertEquals(cpu.eax, 5);
        assertEquals(rig.word(root + 8 * SLOT) & AD, PTE_A, "the page of the PML4 was not written");
      });
    });

    it("whose page is the PTE's own keep the flags that the walk sets, and what is stored after", () => {
      const rig = rigOf(backend);
      rig.map(ELSEWHERE, 0);
      const at = rig.entry(ELSEWHERE);
      const table = at - (at % 4096);
      rig.vm.memory.setWord(at, table | KERNEL_PAGE);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        // A read-modify-write of the entry that it goes through: the flags are set first.
        yield cpu.xadd32(ELSEWHERE + (at % 4096), 0x200);
        assertEquals(cpu.eax, table | KERNEL_PAGE | AD);
      });
      assertEquals(rig.word(at), (table | KERNEL_PAGE | AD) + 0x200);
    });
  });

  describe(`tables without memory of their own for long (${backend})`, () => {
    it("are used as they are when the guest frees and reuses them: the next walk reads what is there", () => {
      const rig = rigOf(backend);
      rig.map(ELSEWHERE, DATA);
      const pdpt = rig.word(rig.entry(ELSEWHERE, LEVEL_PML4)) & ~0xfff;
      function* lookFor(cpu: X86Cpu, expected: string): Guest {
        yield cpu.invlpg(ELSEWHERE);
        assertEquals(yield* tells(() => cpu.load32(ELSEWHERE)), expected);
      }
      rig.finish(function* (cpu) {
        yield* setEfer(cpu, EFER_NX);
        yield* pagingOn(cpu, rig.tables);
        yield* lookFor(cpu, "ok");
        yield cpu.store64(pdpt, 0xffff_ffff, 0xffff_ffff);
        yield* lookFor(cpu, "#PF(9)"); // Reserved bits.
        yield cpu.store64(pdpt, 0, 0xffff_ffff);
        yield* lookFor(cpu, "#PF(0)");
        yield* storeEntry(cpu, pdpt, 0, { flags: KERNEL_PAGE | PTE_PS });
        yield* lookFor(cpu, "ok");
      });
      assertEquals(rig.faults.length, 2);
    });
  });
}
