import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CPUID_7_EBX_INVPCID,
  CR4_PCIDE,
  CR4_PGE,
  type Guest,
  type PageTables,
  PF_VECTOR,
  PTE_G,
  UD_VECTOR,
  type X86Cpu,
} from "../../../../abi/mod.ts";
import { type BackendName, BACKENDS, type CpuidEntry } from "../../../../host/mod.ts";
import { DATA } from "../../../support/guests.ts";
import { KERNEL_PAGE, pagingOn, PagingRig, setCr4, storeEntry, tells } from "../../../support/paging.ts";

const PAGE = -0x4000_0000_0000;
const OTHER = PAGE + 4096;
const GLOBAL = PAGE + 2 * 4096;
/** INVPCID's descriptor. */
const DESCRIPTOR = DATA + 0x8000;

/** The frame that a process's pages lead to first, and the one that they lead to after a change. */
const frameOf = (process: number, changed: boolean) => DATA + 0x1000 * (2 * process + (changed ? 1 : 0));

/** Processes with tables of their own; process i has PCID i + 1. Their pages hold 10 * i, and one more after a change. */
class Processes extends PagingRig {
  readonly all: PageTables[];

  constructor(backend: BackendName, count = 2, cpuid: readonly CpuidEntry[] = []) {
    super({ vm: { backend, cpuid, ...(backend === "vmx" && { acceleration: "apicv" }) } });
    this.fixups();
    this.all = [this.tables];
    while (this.all.length < count) this.all.push(this.hierarchy());
    for (const [i, tables] of this.all.entries()) {
      const frame = frameOf(i, false);
      this.vm.memory.setWord(frame, 10 * i);
      this.vm.memory.setWord(frameOf(i, true), 10 * i + 1);
      this.map(PAGE, frame, {}, tables).map(OTHER, frame, {}, tables);
      this.map(GLOBAL, frameOf(0, false), { flags: KERNEL_PAGE | PTE_G }, tables);
    }
  }

  /** Turns PCIDs on, as process 0 with PCID 1, and lets every process look at its pages, so that all are cached. */
  *warm(cpu: X86Cpu): Guest {
    yield* pagingOn(cpu, this.all[0]);
    yield* setCr4(cpu, CR4_PGE | CR4_PCIDE);
    for (let i = 0; i < this.all.length; i++) {
      yield* this.switchTo(cpu, i);
      assertEquals(yield* this.look(cpu), [10 * i, 10 * i, 0]);
    }
    yield* this.switchTo(cpu, 0);
  }

  *switchTo(cpu: X86Cpu, process: number, keep = true): Guest {
    yield* pagingOn(cpu, this.all[process], process + 1, keep);
  }

  /** Changes all pages in all tables. */
  *change(cpu: X86Cpu): Guest {
    for (const [i, tables] of this.all.entries()) {
      yield* storeEntry(cpu, this.entry(PAGE, 1, tables), frameOf(i, true));
      yield* storeEntry(cpu, this.entry(OTHER, 1, tables), frameOf(i, true));
      yield* storeEntry(cpu, this.entry(GLOBAL, 1, tables), frameOf(0, true), { flags: KERNEL_PAGE | PTE_G });
    }
  }

  *look(cpu: X86Cpu): Generator<number, number[], void> {
    const seen: number[] = [];
    for (const page of [PAGE, OTHER, GLOBAL]) {
      yield cpu.load32(page);
      seen.push(cpu.eax);
    }
    return seen;
  }

  /** Of each process: which of its three pages are found changed. */
  *changed(cpu: X86Cpu): Generator<number, string[], void> {
    const found: string[] = [];
    for (let i = 0; i < this.all.length; i++) {
      yield* this.switchTo(cpu, i);
      const [page, other, global] = yield* this.look(cpu);
      found.push(
        `${page % 10 === 1 ? "page " : ""}${other % 10 === 1 ? "other " : ""}${global === 1 ? "global" : ""}`
          .trim(),
      );
    }
    return found;
  }

  *invpcid(cpu: X86Cpu, type: number, pcid = 0, address = 0): Guest {
    yield cpu.store64(DESCRIPTOR, pcid);
    yield cpu.store64(DESCRIPTOR + 8, address | 0, Math.floor(address / 2 ** 32));
    yield cpu.invpcid(type, DESCRIPTOR);
  }

  /** What is found changed after process 0 has executed something. */
  after(act: (cpu: X86Cpu) => Guest): string[] {
    let found: string[] = [];
    // deno-lint-ignore no-this-alias
    const rig = this;
    this.finish(function* (cpu) {
      yield* rig.warm(cpu);
      yield* rig.change(cpu);
      yield* act(cpu);
      found = yield* rig.changed(cpu);
    });
    assertEquals(this.faults, []);
    return found;
  }
}

const NOTHING = "";
const BOTH = "page other";
const ALL = "page other global";

for (const backend of BACKENDS) {
  describe(`process-context identifiers (${backend})`, () => {
    it("keep the translations of processes apart, and alive over switches with bit 63", () => {
      const rig = new Processes(backend, 3);
      assertEquals(
        rig.after(function* (cpu) {
          for (const process of [1, 2, 1, 0]) yield* rig.switchTo(cpu, process);
        }),
        [NOTHING, NOTHING, NOTHING],
      );
    });

    it("are what MOV to CR3 without bit 63 flushes: of the new one all but globals, of others nothing", () => {
      const rig = new Processes(backend, 3);
      assertEquals(
        rig.after(function* (cpu) {
          yield* rig.switchTo(cpu, 1, false);
        }),
        [NOTHING, BOTH, NOTHING],
      );
    });

    it("bound INVLPG: another process keeps the page, a global one goes for all", () => {
      const rig = new Processes(backend);
      assertEquals(
        rig.after(function* (cpu) {
          yield cpu.invlpg(PAGE);
        }),
        ["page", NOTHING],
      );
      const global = new Processes(backend);
      assertEquals(
        global.after(function* (cpu) {
          yield* global.switchTo(cpu, 1);
          yield cpu.invlpg(GLOBAL);
        }),
        ["global", "global"],
      );
    });

    it("are tags of what is cached, not of who made it: the same PCID with other tables uses what is there", () => {
      const rig = new Processes(backend);
      rig.finish(function* (cpu) {
        yield* rig.warm(cpu);
        yield* pagingOn(cpu, rig.all[1], 1, true);
        yield cpu.load32(PAGE);
        assertEquals(cpu.eax, 0, "process 0's translation");
        yield* pagingOn(cpu, rig.all[1], 1);
        yield cpu.load32(PAGE);
        assertEquals(cpu.eax, 10);
      });
    });

    it("may be any number to 4095; PCID 0 is one of them", () => {
      const rig = new Processes(backend);
      rig.finish(function* (cpu) {
        yield* rig.warm(cpu);
        yield* pagingOn(cpu, rig.all[0], 4095);
        assertEquals(yield* rig.look(cpu), [0, 0, 0]);
        yield* pagingOn(cpu, rig.all[1], 0);
        assertEquals(yield* rig.look(cpu), [10, 10, 0]);
        yield* rig.change(cpu);
        yield* pagingOn(cpu, rig.all[0], 4095, true);
        assertEquals(yield* rig.look(cpu), [0, 0, 0]);
        yield* pagingOn(cpu, rig.all[1], 0, true);
        assertEquals(yield* rig.look(cpu), [10, 10, 0]);
        yield* pagingOn(cpu, rig.all[1], 0);
        assertEquals(yield* rig.look(cpu), [11, 11, 0]);
      });
    });
  });

  describe(`INVPCID (${backend})`, () => {
    it("of type 0 drops one page of one PCID, no global one", () => {
      const rig = new Processes(backend);
      assertEquals(
        rig.after(function* (cpu) {
          yield* rig.invpcid(cpu, 0, 2, PAGE + 123);
          yield* rig.invpcid(cpu, 0, 2, GLOBAL);
        }),
        [NOTHING, "page"],
      );
    });

    it("of type 1 drops one PCID's, the current one or not, no global ones", () => {
      for (const pcid of [1, 2]) {
        const rig = new Processes(backend);
        assertEquals(
          rig.after(function* (cpu) {
            yield* rig.invpcid(cpu, 1, pcid, 2 ** 50); // Its address is of no meaning here.
          }),
          pcid === 1 ? [BOTH, NOTHING] : [NOTHING, BOTH],
        );
      }
    });

    it("of type 2 drops all, global ones too, and of type 3 all but these", () => {
      for (const [type, found] of [[2, ALL], [3, BOTH]] as const) {
        const rig = new Processes(backend);
        assertEquals(
          rig.after(function* (cpu) {
            yield* rig.invpcid(cpu, type, 77);
          }),
          [found, found],
        );
      }
    });

    it("of a PCID that nobody has drops nothing", () => {
      const rig = new Processes(backend);
      assertEquals(
        rig.after(function* (cpu) {
          yield* rig.invpcid(cpu, 1, 3);
          yield* rig.invpcid(cpu, 0, 0, PAGE);
        }),
        [NOTHING, NOTHING],
      );
    });

    it("raises #GP for a type above 3, a PCID of more than 12 bits, and an address that is none", () => {
      const rig = new Processes(backend);
      const bad: [type: number, pcidLow: number, pcidHigh: number, addressHigh: number][] = [
        [4, 0, 0, 0],
        [0xffff_ffff, 0, 0, 0],
        [0, 0x1000, 0, 0],
        [1, 0x8000_0001, 0, 0],
        [2, 1, 1, 0],
        [3, 1, 0x8000_0000, 0],
        [0, 1, 0, 0x8000],
        [0, 1, 0, 0xffff_7fff],
      ];
      rig.finish(function* (cpu) {
        yield* rig.warm(cpu);
        yield* rig.change(cpu);
        for (const [type, low, high, address] of bad) {
          yield cpu.store64(DESCRIPTOR, low, high);
          yield cpu.store64(DESCRIPTOR + 8, 0, address);
          assertEquals(yield* tells(() => cpu.invpcid(type, DESCRIPTOR)), "#GP(0)", `${type} ${low} ${high}`);
        }
        assertEquals(yield* rig.changed(cpu), [NOTHING, NOTHING]);
      });
    });

    it("without CR4.PCIDE knows PCID 0 alone: types 0 and 1 raise #GP for another", () => {
      const rig = new Processes(backend);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* rig.look(cpu), [0, 0, 0]);
        yield* rig.change(cpu);
        assertEquals(yield* tells(() => cpu.invpcid(0, DESCRIPTOR)), "ok"); // PCID 0, address 0.
        yield cpu.store64(DESCRIPTOR, 1);
        assertEquals(yield* tells(() => cpu.invpcid(0, DESCRIPTOR)), "#GP(0)");
        assertEquals(yield* tells(() => cpu.invpcid(1, DESCRIPTOR)), "#GP(0)");
        assertEquals(yield* rig.look(cpu), [0, 0, 0]);
        assertEquals(yield* tells(() => cpu.invpcid(3, DESCRIPTOR)), "ok");
        assertEquals(yield* rig.look(cpu), [1, 1, 1], "CR4.PGE is clear: the page is not global");
      });
    });

    it("reads its descriptor through the tables: from a page that is not mapped it raises #PF", () => {
      const rig = new Processes(backend);
      rig.map(PAGE + 0x10_0000, DESCRIPTOR);
      rig.finish(function* (cpu) {
        yield* rig.warm(cpu);
        assertEquals(yield* tells(() => cpu.invpcid(2, 0x6000_0000)), "#PF(0)");
        assertEquals(yield* tells(() => cpu.invpcid(2, PAGE + 0x10_0ff8)), "#PF(0)", "half of it");
        assertEquals(rig.faults.map(({ vector, cr2 }) => [vector, cr2]), [
          [PF_VECTOR, 0x6000_0000],
          [PF_VECTOR, PAGE + 0x10_1000],
        ]);
        assertEquals(yield* tells(() => cpu.invpcid(2, 2 ** 47)), "#GP(0)");
        yield cpu.store64(DESCRIPTOR, 2);
        yield* rig.change(cpu);
        yield cpu.invpcid(1, PAGE + 0x10_0000);
        assertEquals(yield* rig.changed(cpu), [NOTHING, BOTH]);
      });
    });
  });
}

// vmx_adjust_secondary_exec_control's INVPCID; svm_recalc_instruction_intercepts.
describe("INVPCID that CPUID keeps from a guest", () => {
  for (const backend of BACKENDS) {
    it(`is an invalid opcode, though the processor has it, and drops nothing (${backend})`, () => {
      const model = new Processes(backend).vm.bootstrap.cpuid.find(7, 0)!;
      const registers = [model[0], model[1] & ~CPUID_7_EBX_INVPCID, model[2], model[3]] as const;
      const rig = new Processes(backend, 2, [{ leaf: 7, subleaf: 0, registers }]);
      rig.finish(function* (cpu) {
        yield* rig.warm(cpu);
        yield* rig.change(cpu);
        assertEquals(yield* tells(() => cpu.invpcid(2, DESCRIPTOR)), `${UD_VECTOR}(0)`);
        assertEquals(yield* rig.changed(cpu), [NOTHING, NOTHING]);
      });
    });
  }
});

describe("INVPCID on the plainest processor (vmx)", () => {
  it("is an invalid opcode where CPUID does not offer it", () => {
    // The plainest processor of VMX here has PCIDs alone, as those before Haswell.
    const rig = new PagingRig({ vm: { backend: "vmx", acceleration: "none" } }).fixups();
    rig.finish(function* (cpu) {
      yield* pagingOn(cpu, rig.tables);
      assertEquals(yield* tells(() => cpu.invpcid(2, DESCRIPTOR)), `${UD_VECTOR}(0)`);
    });
  });
});
