import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { CR4_PGE, type Guest, type PageTables, PTE_G, type X86Cpu } from "../../../../abi/mod.ts";
import {
  type BackendName,
  BACKENDS,
  GuestError,
  type MachineOptions,
  NotModelled,
  type VmOptions,
} from "../../../../host/mod.ts";
import { DATA, enableX2apic, ONLINE, startAps } from "../../../support/guests.ts";
import { KERNEL_PAGE, pagingOn, PagingRig, setCr4, storeEntry } from "../../../support/paging.ts";

const PAGE = 0x7000_0000_0000;
const ALIAS = -0x6000_0000_0000;
const [OLD, NEW] = [DATA, DATA + 0x1000];
/** A word by which programs take turns. */
const TURN = DATA + 0x8000;

/** Waits until it is somebody's turn. */
function* turn(cpu: X86Cpu, number: number): Guest {
  for (;;) {
    yield cpu.load32(TURN);
    if (cpu.eax === number) return;
    yield cpu.pauseWhile(TURN, cpu.eax);
  }
}

interface Pair {
  readonly machine?: MachineOptions;
  readonly vm?: VmOptions;
}

/** Two vCPUs: PAGE leads to the old frame, which holds 1; the new one holds 2. */
function pairOf(backend: BackendName, { machine = {}, vm = {} }: Pair = {}): PagingRig {
  const rig = new PagingRig({ machine, vm: { backend, vcpus: 2, ...vm } }).fixups();
  rig.vm.memory.setWord(OLD, 1);
  rig.vm.memory.setWord(NEW, 2);
  rig.map(PAGE, OLD).map(ALIAS, TURN);
  return rig;
}

/** Runs a program on each, under tables of their own, or the same. */
function both(
  rig: PagingRig,
  { first, second, tables = rig.tables }: {
    readonly first: (cpu: X86Cpu) => Guest;
    readonly second: (cpu: X86Cpu) => Guest;
    readonly tables?: PageTables;
  },
): void {
  rig.aps(function* ap(cpu) {
    yield* pagingOn(cpu, tables);
    yield* second(cpu);
  });
  rig.finish(function* bsp(cpu) {
    yield* enableX2apic(cpu);
    yield* startAps(cpu, 1);
    yield* pagingOn(cpu, rig.tables);
    yield* first(cpu);
  });
  assertEquals(rig.faults, []);
}

for (const backend of BACKENDS) {
  describe(`two processors with the same tables (${backend})`, () => {
    it("have a TLB each: INVLPG on one leaves the other's entry, until that executes its own", () => {
      const rig = pairOf(backend);
      const seen: Record<string, number> = {};
      both(rig, {
        *first(cpu) {
          yield cpu.load32(PAGE);
          yield* turn(cpu, 1);
          yield* storeEntry(cpu, rig.entry(PAGE), NEW);
          yield cpu.invlpg(PAGE);
          yield cpu.load32(PAGE);
          seen.first = cpu.eax;
          yield cpu.store32(TURN, 2);
          yield* turn(cpu, 3);
        },
        *second(cpu) {
          yield cpu.load32(PAGE);
          yield cpu.store32(TURN, 1);
          yield* turn(cpu, 2);
          yield cpu.load32(PAGE);
          seen.stale = cpu.eax;
          yield cpu.invlpg(PAGE);
          yield cpu.load32(PAGE);
          seen.second = cpu.eax;
          yield cpu.store32(TURN, 3);
        },
      });
      assertEquals(seen, { first: 2, stale: 1, second: 2 });
    });

    it("find what the other has mapped at once: nothing absent is cached", () => {
      const rig = pairOf(backend);
      rig.map(PAGE + 4096, 0, { flags: 0 });
      let seen = 0;
      both(rig, {
        *first(cpu) {
          yield* turn(cpu, 1);
          yield cpu.load32(PAGE + 4096);
          seen = cpu.eax;
        },
        *second(cpu) {
          yield* storeEntry(cpu, rig.entry(PAGE + 4096), NEW);
          yield cpu.store32(TURN, 1);
        },
      });
      assertEquals(seen, 2);
    });
  });

  describe(`a processor that gets INIT under tables (${backend})`, () => {
    it("starts without them, and has none of its translations when it turns paging on again", () => {
      const rig = pairOf(backend);
      const other = rig.hierarchy();
      rig.map(PAGE, OLD, { flags: KERNEL_PAGE | PTE_G });
      rig.map(PAGE, NEW, {}, other).map(ALIAS, TURN, {}, other);
      const seen: number[] = [];
      rig.aps(function* ap(cpu) {
        yield* setCr4(cpu, CR4_PGE);
        const life = seen.length;
        yield* pagingOn(cpu, life === 0 ? rig.tables : other);
        yield cpu.load32(PAGE);
        seen.push(cpu.eax);
        yield cpu.store32(TURN, life + 1);
        for (;;) yield cpu.hlt();
      });
      rig.run(function* bsp(cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        yield* turn(cpu, 1);
        yield cpu.store32(ONLINE, 0);
        yield* startAps(cpu, 1);
        yield* turn(cpu, 2);
      });
      assertEquals(seen, [1, 2], "a global translation of PCID 0 does not outlive INIT");
      assertEquals(rig.faults, []);
    });
  });

  describe(`two vCPUs that share a CPU (${backend})`, () => {
    const shared: Pair = { machine: { pcpus: 1, timeSlice: 5_000 } };

    it("do not use each other's translations, global ones either", () => {
      const rig = pairOf(backend, shared);
      const other = rig.hierarchy();
      rig.map(PAGE, OLD, { flags: KERNEL_PAGE | PTE_G });
      rig.map(PAGE, NEW, { flags: KERNEL_PAGE | PTE_G }, other).map(ALIAS, TURN, {}, other);
      const look = (value: number) =>
        function* (cpu: X86Cpu): Guest {
          yield* setCr4(cpu, CR4_PGE);
          for (let round = 0; round < 50; round++) {
            yield cpu.load32(PAGE);
            assertEquals(cpu.eax, value);
            yield cpu.work(500);
          }
        };
      both(rig, { first: look(1), second: look(2), tables: other });
    });

    it("keep their own over the other's flushes: what one drops is its own", () => {
      const rig = pairOf(backend, shared);
      const other = rig.hierarchy();
      rig.map(PAGE, NEW, {}, other).map(ALIAS, TURN, {}, other);
      let seen = 0;
      both(rig, {
        *first(cpu) {
          yield cpu.load32(PAGE);
          yield* storeEntry(cpu, rig.entry(PAGE), NEW);
          yield cpu.store32(TURN, 1);
          yield* turn(cpu, 2);
          yield cpu.load32(PAGE);
          seen = cpu.eax;
        },
        *second(cpu) {
          yield* turn(cpu, 1);
          yield cpu.load32(PAGE);
          yield cpu.invlpg(PAGE);
          yield* pagingOn(cpu, other);
          yield* setCr4(cpu, CR4_PGE);
          yield cpu.store32(TURN, 2);
        },
        tables: other,
      });
      assertEquals(seen, 1, "with VPIDs, and ASIDs, it is still there");
    });
  });

  describe(`a PAUSE loop on a translated word (${backend})`, () => {
    const stores: Record<string, (cpu: X86Cpu) => number> = {
      "a store through another alias": (cpu) => cpu.store32(ALIAS, 7),
      "a byte of it": (cpu) => cpu.store8(ALIAS, 7),
      "a locked exchange": (cpu) => cpu.xchg32(ALIAS, 7),
      "an access of 64 bits across it": (cpu) => cpu.store64(ALIAS - 4, 0, 7),
    };

    /** The spinner's clock when it is through, and the machine's trace. */
    function spin(bulkSpin: boolean, store: (cpu: X86Cpu) => number, at = TURN) {
      const rig = pairOf(backend, { vm: { bulkSpin, trace: 1000 } });
      rig.map(ALIAS - 4096, TURN - 4096);
      let clock = 0;
      let steps = 0;
      both(rig, {
        *first(cpu) {
          yield cpu.pauseWhile(at, 0);
          clock = rig.vm.bootstrap.clock;
          steps = rig.vm.bootstrap.processor.instructions;
          yield cpu.load32(TURN);
          assertEquals(cpu.eax, 7);
        },
        *second(cpu) {
          yield cpu.work(123_456);
          yield store(cpu);
        },
      });
      return { clock, steps, trace: rig.vm.tracer.bytes() };
    }

    for (const [name, store] of Object.entries(stores)) {
      it(`ends by ${name}, at the same time whether it sleeps or turns`, () => {
        const bulk = spin(true, store);
        const slow = spin(false, store);
        assertEquals(bulk.clock > 123_456, true);
        assertEquals([bulk.clock, bulk.steps], [slow.clock, slow.steps]);
        assertEquals(bulk.trace, slow.trace);
      });
    }

    it("spins on the frame that its page leads to: a change of the tables alone does not wake it", () => {
      for (const bulkSpin of [true, false]) {
        const rig = pairOf(backend, { vm: { bulkSpin } });
        const order: string[] = [];
        both(rig, {
          *first(cpu) {
            yield cpu.store32(TURN, 1);
            yield cpu.pauseWhile(PAGE, 1);
            order.push("woken");
            yield cpu.load32(PAGE);
            assertEquals(cpu.eax, 5, "its TLB still has the old frame");
          },
          *second(cpu) {
            yield* turn(cpu, 1);
            yield cpu.work(100_000);
            yield* storeEntry(cpu, rig.entry(PAGE), NEW); // Holds 2, which would end the loop.
            yield cpu.work(5_000);
            order.push("store");
            yield cpu.store32(OLD, 5);
          },
        });
        assertEquals(order, ["store", "woken"]);
      }
    });

    it("faults as a load does, and spins once the handler has mapped the page", () => {
      const rig = pairOf(backend);
      rig.map(PAGE + 4096, 0, { flags: 0 });
      const at = rig.entry(PAGE + 4096);
      let faults = 0;
      rig.on(14, function* (cpu) {
        faults++;
        assertEquals(cpu.errorCode, 0);
        yield* storeEntry(cpu, at, TURN);
      });
      both(rig, {
        *first(cpu) {
          yield cpu.pauseWhile(PAGE + 4096, 0);
        },
        *second(cpu) {
          yield cpu.work(5_000);
          yield cpu.store32(ALIAS, 1);
        },
      });
      assertEquals(faults, 1);
    });

    it("on a word in two pages is not modelled, and says so", () => {
      const rig = pairOf(backend);
      rig.map(PAGE + 4096, NEW);
      rig.start(function* odd(cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.pauseWhile(PAGE + 4094, 0);
      });
      const error = assertThrows(() => rig.vm.machine.run(1e6), Error);
      assertEquals(error instanceof GuestError || error instanceof NotModelled, true, String(error));
      assertStringIncludes(error.message, "PAUSE loop");
    });
  });
}
