import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR4_PCIDE,
  CR4_PGE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_LMA,
  EFER_NX,
  type Guest,
  IA32_EFER,
  KERNEL32_CS,
  KERNEL_CS,
  PAGE_SHIFT_2M,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  PTE_G,
  PTE_P,
  PTE_US,
  type X86Cpu,
} from "../../../../abi/mod.ts";
import { type BackendName, BACKENDS } from "../../../../host/mod.ts";
import { DATA } from "../../../support/guests.ts";
import {
  addUser,
  KERNEL_PAGE,
  pagingOn,
  PagingRig,
  setCr4,
  setEfer,
  storeEntry,
  tells,
  USER_PAGE,
  writeProtect,
} from "../../../support/paging.ts";

// What a processor need not drop it may drop: these tests say that this one keeps all it may (see host/mmu/invalidate.ts),
// so that software that forgets a flush is found out.

const PAGE = 0x7f00_0000_0000;
const OTHER = PAGE + 4096;
const GLOBAL = PAGE + 2 * 4096;
/** Frames with a number of their own. */
const [OLD, NEW] = [DATA, DATA + 0x1000];
const pf = (code: number) => `#PF(${code})`;

/** A rig in which PAGE, OTHER and GLOBAL lead to the old frame. */
function rigOf(backend: BackendName): PagingRig {
  const rig = new PagingRig({ vm: { backend } }).fixups();
  rig.vm.memory.setWord(OLD, 1);
  rig.vm.memory.setWord(NEW, 2);
  rig.map(PAGE, OLD).map(OTHER, OLD).map(GLOBAL, OLD, { flags: KERNEL_PAGE | PTE_G });
  return rig;
}

/** What the three pages hold. */
function* look(cpu: X86Cpu): Generator<number, number[], void> {
  const seen: number[] = [];
  for (const page of [PAGE, OTHER, GLOBAL]) {
    yield cpu.load32(page);
    seen.push(cpu.eax);
  }
  return seen;
}

/** Caches the three pages' translations, has them lead to the new frame, executes something, and looks again. */
function after(
  backend: BackendName,
  act: (cpu: X86Cpu, rig: PagingRig) => Guest,
  { cr4 = CR4_PGE }: { readonly cr4?: number } = {},
): number[] {
  const rig = rigOf(backend);
  let seen: number[] = [];
  rig.finish(function* (cpu) {
    yield* pagingOn(cpu, rig.tables);
    yield* setCr4(cpu, cr4);
    assertEquals(yield* look(cpu), [1, 1, 1]);
    yield* storeEntry(cpu, rig.entry(PAGE), NEW);
    yield* storeEntry(cpu, rig.entry(OTHER), NEW);
    yield* storeEntry(cpu, rig.entry(GLOBAL), NEW, { flags: KERNEL_PAGE | PTE_G });
    assertEquals(yield* look(cpu), [1, 1, 1], "the TLB has them");
    yield* act(cpu, rig);
    seen = yield* look(cpu);
  });
  assertEquals(rig.faults, []);
  return seen;
}

for (const backend of BACKENDS) {
  describe(`the TLB (${backend})`, () => {
    it("goes on with what it has until the guest invalidates it: INVLPG of its page, and no other", () => {
      assertEquals(
        after(backend, function* (cpu) {
          yield cpu.invlpg(PAGE + 0xabc);
        }),
        [2, 1, 1],
      );
      assertEquals(
        after(backend, function* (cpu) {
          yield cpu.invlpg(GLOBAL);
        }),
        [1, 1, 2],
      );
      assertEquals(
        after(backend, function* (cpu) {
          yield cpu.invlpg(-PAGE);
          yield cpu.invlpg(2 ** 47); // Not canonical: no operation (SDM 2A, INVLPG).
          yield cpu.invlpg(PAGE - 1);
        }),
        [1, 1, 1],
      );
    });

    it("loses all but global ones by MOV to CR3, whatever it writes", () => {
      assertEquals(
        after(backend, function* (cpu, rig) {
          yield* pagingOn(cpu, rig.tables);
        }),
        [2, 2, 1],
      );
    });

    it("knows no global ones while CR4.PGE is clear", () => {
      assertEquals(
        after(backend, function* (cpu, rig) {
          yield* pagingOn(cpu, rig.tables);
        }, { cr4: 0 }),
        [2, 2, 2],
      );
    });

    it("loses all by a change of CR4.PGE, either way", () => {
      assertEquals(
        after(backend, function* (cpu) {
          yield* setCr4(cpu, 0);
        }),
        [2, 2, 2],
      );
      assertEquals(
        after(backend, function* (cpu) {
          yield* setCr4(cpu, CR4_PGE);
        }, { cr4: 0 }),
        [2, 2, 2],
      );
    });

    it("loses those of the current PCID when CR4.SMEP is set", () => {
      assertEquals(
        after(backend, function* (cpu) {
          yield* setCr4(cpu, CR4_PGE | CR4_SMEP);
        }),
        [2, 2, 2],
      );
    });

    it("keeps all over exits that are no concern of its: CPUID, an MSR, WBINVD, a port", () => {
      assertEquals(
        after(backend, function* (cpu) {
          yield cpu.cpuid(0);
          yield cpu.wrmsr(0x10, 5);
          yield cpu.wbinvd();
          yield cpu.out8(0x80, 1);
        }),
        [1, 1, 1],
      );
    });

    it("drops a whole large page by INVLPG of any address in it", () => {
      const rig = rigOf(backend);
      rig.map(-(2 ** 21), 0, { shift: PAGE_SHIFT_2M });
      const at = rig.entry(-(2 ** 21), 2);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        const far = -(2 ** 21) + OLD;
        // Where EPT maps it in pieces, a violation of one may take the others along.
        for (const page of [far, far + 0x1000, far]) yield cpu.load32(page);
        yield cpu.store32(at, 0);
        yield cpu.load32(far);
        assertEquals(cpu.eax, 1);
        yield cpu.invlpg(-1);
        assertEquals(yield* tells(() => cpu.load32(far)), pf(0));
        assertEquals(yield* tells(() => cpu.load32(far + 0x1000)), pf(0));
      });
    });

    it("holds nothing of a page that was absent: mapped, it is there without a flush", () => {
      const rig = rigOf(backend);
      rig.map(PAGE + 0x8000, 0, { flags: 0 });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.load32(PAGE + 0x8000)), pf(0));
        yield* storeEntry(cpu, rig.entry(PAGE + 0x8000), NEW);
        yield cpu.load32(PAGE + 0x8000);
        assertEquals(cpu.eax, 2);
      });
    });

    it("drops what faults: rights that the tables have gained take effect by the fault's retry at the latest", () => {
      const rig = rigOf(backend);
      rig.map(PAGE, OLD, { flags: PTE_P });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* writeProtect(cpu);
        yield cpu.load32(PAGE);
        yield* storeEntry(cpu, rig.entry(PAGE), OLD);
        // A walk finds the right: no fault needs to be taken.
        assertEquals(yield* tells(() => cpu.store32(PAGE, 7)), "ok");
        yield* storeEntry(cpu, rig.entry(PAGE), NEW, { flags: PTE_P });
        yield cpu.store32(PAGE, 8);
        assertEquals([rig.word(OLD), rig.word(NEW)], [8, 2], "rights that were taken away still serve");
        yield cpu.invlpg(PAGE);
        assertEquals(yield* tells(() => cpu.store32(PAGE, 9)), pf(PFERR_PRESENT | PFERR_WRITE));
      });
    });
  });

  describe(`registers that paging depends on (${backend})`, () => {
    it("take effect at once without a flush: CR0.WP", () => {
      const rig = rigOf(backend);
      rig.map(PAGE, OLD, { flags: PTE_P });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(PAGE, 5);
        yield cpu.movFromCr0();
        const cr0 = cpu.eax;
        yield* writeProtect(cpu);
        assertEquals(yield* tells(() => cpu.store32(PAGE, 6)), pf(PFERR_PRESENT | PFERR_WRITE));
        yield cpu.movToCr0(cr0);
        assertEquals(yield* tells(() => cpu.store32(PAGE, 7)), "ok");
      });
      assertEquals(rig.word(OLD), 7);
    });

    it("take effect at once without a flush: CR4.SMAP and RFLAGS.AC, for reads and writes each", () => {
      for (
        const [op, code] of [
          [(cpu: X86Cpu) => cpu.load32(PAGE), PFERR_PRESENT],
          [(cpu: X86Cpu) => cpu.store32(PAGE, 6), PFERR_PRESENT | PFERR_WRITE],
        ] as const
      ) {
        const rig = rigOf(backend);
        rig.map(PAGE, OLD, { flags: USER_PAGE });
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          yield cpu.store32(PAGE, 5);
          yield* setCr4(cpu, CR4_SMAP);
          assertEquals(yield* tells(() => op(cpu)), pf(code), "the first access that meets what is cached");
          yield cpu.stac();
          yield cpu.store32(PAGE, 5);
          yield cpu.clac();
          assertEquals(yield* tells(() => op(cpu)), pf(code));
          yield* setCr4(cpu, 0);
          assertEquals(yield* tells(() => op(cpu)), "ok");
        });
      }
    });

    it("take effect at once without a flush: the privilege level, on what the supervisor has cached", () => {
      for (
        const [op, code] of [
          [(cpu: X86Cpu) => cpu.load32(PAGE), PFERR_PRESENT | PFERR_USER],
          [(cpu: X86Cpu) => cpu.store32(PAGE, 6), PFERR_PRESENT | PFERR_USER | PFERR_WRITE],
          [(cpu: X86Cpu) => cpu.store32(OTHER, 6), PFERR_PRESENT | PFERR_USER | PFERR_WRITE],
        ] as const
      ) {
        const rig = rigOf(backend);
        rig.map(OTHER, OLD, { flags: PTE_P | PTE_US });
        let seen = "";
        const user = addUser(rig, function* (cpu) {
          seen = yield* tells(() => op(cpu));
        });
        rig.finish(function* (cpu) {
          yield* setEfer(cpu);
          yield* pagingOn(cpu, rig.tables);
          yield cpu.store32(PAGE, 5);
          yield cpu.store32(OTHER, 5); // CR0.WP is clear.
          yield cpu.sysret(user);
        });
        assertEquals(seen, pf(code));
      }
    });

    it("take effect at once without a flush: IA32_EFER.NXE makes XD a reserved bit, and none", () => {
      const rig = rigOf(backend);
      rig.map(PAGE, OLD, { noExecute: true }).map(OTHER, OLD, { noExecute: true });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.load32(PAGE)), pf(PFERR_PRESENT | PFERR_RSVD));
        yield* setEfer(cpu, EFER_NX);
        assertEquals(yield* tells(() => cpu.load32(PAGE)), "ok");
        yield cpu.rdmsr(IA32_EFER);
        yield cpu.wrmsr(IA32_EFER, cpu.eax & ~EFER_NX);
        assertEquals(yield* tells(() => cpu.load32(OTHER)), pf(PFERR_PRESENT | PFERR_RSVD));
      });
    });

    it("that reserve bits refuse them: CR3 above MAXPHYADDR and bit 63 without PCIDs, CR4, IA32_EFER", () => {
      const rig = rigOf(backend);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        for (const high of [1 << 14, 1 << 19, 1 << 20, 0x7fff_ffff, 0x8000_0000]) {
          assertEquals(yield* tells(() => cpu.movToCr3(rig.tables.root, high)), "#GP(0)", `${high}`);
        }
        // The PCID must be 0 when PCIDE is set; long mode needs PAE; LA57 is not offered.
        yield cpu.movToCr3(rig.tables.root | 8);
        assertEquals(yield* tells(() => cpu.movToCr4(0x20 | CR4_PCIDE)), "#GP(0)");
        yield cpu.movToCr3(rig.tables.root);
        assertEquals(yield* tells(() => cpu.movToCr4(0)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.movToCr4(0x20 | (1 << 12))), "#GP(0)");
        assertEquals(yield* tells(() => cpu.wrmsr(IA32_EFER, 1 << 13)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.movToCr4(0x20 | CR4_PCIDE)), "ok");
        assertEquals(yield* tells(() => cpu.movToCr3(rig.tables.root | 7, 0x8000_0000)), "ok");
        yield cpu.movFromCr3();
        assertEquals(cpu.rax, BigInt(rig.tables.root | 7), "bit 63 is not kept");
        assertEquals(yield* tells(() => cpu.movToCr3(rig.tables.root, 0xc000_0000)), "#GP(0)");
        // CR0.PG cannot be cleared in 64-bit mode.
        assertEquals(yield* tells(() => cpu.movToCr0(1)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.load32(PAGE)), "ok");
        // Nor in compatibility mode, with PCIDs: and long mode is what it was.
        yield cpu.loadCs(KERNEL32_CS);
        assertEquals(yield* tells(() => cpu.movToCr0(1)), "#GP(0)");
        yield cpu.loadCs(KERNEL_CS);
        yield cpu.rdmsr(IA32_EFER);
        assertEquals(cpu.eax & EFER_LMA, EFER_LMA);
        assertEquals(yield* tells(() => cpu.load32(PAGE)), "ok");
      });
    });

    it("ignore what CR0 reserves (kvm_set_cr0)", () => {
      const rig = rigOf(backend);
      rig.finish(function* (cpu) {
        yield cpu.movFromCr0();
        const cr0 = cpu.eax;
        assertEquals(yield* tells(() => cpu.movToCr0((cr0 | 0x1ffa_ffc0) >>> 0)), "ok");
        yield cpu.movFromCr0();
        assertEquals(cpu.eax, cr0);
      });
    });
  });
}
