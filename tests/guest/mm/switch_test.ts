import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { CR3_PCID, type Guest, type X86Cpu } from "../../../abi/mod.ts";
import {
  argumentOf,
  CALL_FUNCTION_SINGLE_VECTOR,
  CALL_FUNCTION_VECTOR,
  futexWait,
  futexWake,
  getUser32,
  MADV_DONTNEED,
  madviseDontneed,
  type MmOptions,
  NR_madvise,
  putUser32,
  schedYield,
  syscall,
  tlbOf,
} from "../../../guest/mod.ts";
import { BACKENDS, StaleTranslation } from "../../../host/mod.ts";
import type { KernelRigOptions } from "../../support/kernels.ts";
import { PagingRig } from "../../support/tasks.ts";

const PAGE = 4096;
/** A system call that answers with the current PCID. */
const PCID = 700;

/** Runs a program in several address spaces at once, on one processor; each has some memory, which is its argument. */
function programs(
  options: KernelRigOptions,
  count: number,
  program: (cpu: X86Cpu, n: number) => Guest,
): PagingRig {
  const rig = new PagingRig(options);
  const { kernel } = rig;
  kernel.sched.syscalls.add(PCID, function* (cpu) {
    yield cpu.movFromCr3();
    return cpu.eax & CR3_PCID;
  });
  const entries = Array.from(
    { length: count },
    (_, n) => kernel.user((cpu: X86Cpu) => program(cpu, n), `program ${n}`),
  );
  rig.run(function* (cpu) {
    for (const entry of entries) {
      const space = yield* kernel.mm.create(cpu);
      const argument = yield* kernel.mm.map(cpu, space, 4 * PAGE);
      yield* kernel.sched.spawn(cpu, { entry, argument, mm: space, cpu: 0 });
      yield* kernel.mm.put(cpu, space);
    }
    yield* kernel.sched.waitForAll(cpu);
  });
  return rig.quiet();
}

for (const backend of BACKENDS) {
  describe(`a switch of address spaces (${backend})`, () => {
    /** Walks of the last turn, in which two programs have touched four pages each, for the sixth time. */
    function walksOfATurn(pcid: boolean): number {
      let walks = 0;
      let rig: PagingRig | undefined = undefined;
      const count = (): number => rig!.vm.bootstrap.processor.mmu!.walks;
      rig = new PagingRig({ vm: { backend }, paging: { pcid } });
      const { kernel } = rig;
      const entries = [0, 1].map((n) =>
        kernel.user(function* program(cpu) {
          const memory = argumentOf(cpu);
          for (let turn = 0; turn < 6; turn++) {
            if (n === 0 && turn === 5) walks = count();
            for (let page = 0; page < 4; page++) yield cpu.xadd32(memory + page * PAGE, 1);
            if (n === 1 && turn === 5) walks = count() - walks;
            yield* schedYield(cpu);
          }
        })
      );
      rig.run(function* (cpu) {
        for (const entry of entries) {
          const space = yield* kernel.mm.create(cpu);
          const argument = yield* kernel.mm.map(cpu, space, 4 * PAGE);
          yield* kernel.sched.spawn(cpu, { entry, argument, mm: space });
          yield* kernel.mm.put(cpu, space);
        }
        yield* kernel.sched.waitForAll(cpu);
      });
      return walks;
    }

    it("keeps what the TLB knows of the one that comes back; without PCIDs it is dropped each time", () => {
      assertEquals(walksOfATurn(true), 0);
      // The text and the four pages of the second program, at least.
      assert(walksOfATurn(false) >= 5);
    });

    it("has six PCIDs to give out, from 1, in turn: the seventh address space gets the first one's", () => {
      const seen: number[] = [];
      const rig = programs({ vm: { backend }, machine: { staleness: true } }, 7, function* (cpu, n) {
        const memory = argumentOf(cpu);
        for (let turn = 0; turn < 3; turn++) {
          yield cpu.xadd32(memory, 1);
          assertEquals(cpu.eax, turn); // Nobody else's page.
          const pcid = yield* syscall(cpu, PCID);
          if (turn === 0) seen[n] = pcid;
          assert(pcid >= 1 && pcid <= 6, String(pcid));
          yield* schedYield(cpu);
        }
      });
      // The kernel's own address space had the first.
      assertEquals(seen, [2, 3, 4, 5, 6, 1, 2]);
      assertGreater(rig.vm.machine.staleness!.fresh, 0);
    });

    it("is none to a kernel thread, which borrows what is loaded", () => {
      const rig = new PagingRig({ vm: { backend } });
      const { kernel } = rig;
      const seen: unknown[] = [];
      const user = kernel.user(function* user(cpu) {
        yield cpu.work(1000);
        yield* schedYield(cpu);
        seen.push(["user", rig.vm.memory.word(tlbOf(0, "loadedMm")), rig.vm.memory.word(tlbOf(0, "isLazy"))]);
      });
      const thread = kernel.sched.kernelThread(function* thread(cpu) {
        yield cpu.work(1);
        seen.push([
          "thread",
          rig.vm.memory.word(tlbOf(0, "loadedMm")),
          rig.vm.memory.word(tlbOf(0, "isLazy")),
        ]);
      });
      let space = 0;
      rig.run(function* (cpu) {
        space = yield* kernel.mm.create(cpu);
        yield* kernel.sched.spawn(cpu, { entry: user, mm: space });
        yield* kernel.sched.spawn(cpu, { entry: thread });
        yield* kernel.sched.waitForAll(cpu);
      });
      assertEquals(seen, [["thread", space, 1], ["user", space, 0]]);
    });

    it("catches up with what has changed while something else was loaded, and was not interrupted for it", () => {
      const rig = new PagingRig({ cpus: 2, vm: { backend }, machine: { staleness: true } });
      const { kernel } = rig;
      const READY = 0;
      const GO = 4;
      let interrupts = -1;
      const irqs = (): number => rig.irqs(1, CALL_FUNCTION_VECTOR) + rig.irqs(1, CALL_FUNCTION_SINGLE_VECTOR);
      const seen: number[] = [];
      const sleeper = kernel.user(function* sleeper(cpu) {
        const shared = argumentOf(cpu);
        yield cpu.load32(shared + PAGE);
        seen.push(cpu.eax);
        yield cpu.store32(shared + READY, 1);
        yield* futexWait(cpu, shared + GO, 0);
        yield cpu.load32(shared + PAGE);
        seen.push(cpu.eax);
      });
      const stranger = kernel.user(function* stranger(cpu) {
        yield cpu.work(40_000_000);
      });
      const owner = kernel.user(function* owner(cpu) {
        const shared = argumentOf(cpu);
        yield cpu.load32(shared + READY);
        if (cpu.eax === 0) yield cpu.pauseWhile(shared + READY, 0);
        yield cpu.work(5_000_000); // By now the stranger runs there.
        assert(rig.vm.memory.word(tlbOf(1, "loadedMm")) !== rig.space);
        interrupts = irqs();
        yield* madviseDontneed(cpu, shared + PAGE, PAGE);
        yield cpu.store32(shared + PAGE, 8);
        interrupts = irqs() - interrupts;
        yield cpu.store32(shared + GO, 1);
        yield* futexWake(cpu, shared + GO, 1);
      });
      rig.run(function* (cpu) {
        const { mm, sched } = kernel;
        rig.space = yield* mm.create(cpu);
        const argument = yield* mm.map(cpu, rig.space, 3 * PAGE);
        const strange = yield* mm.create(cpu);
        yield* sched.spawn(cpu, { entry: sleeper, argument, cpu: 1, mm: rig.space });
        yield* sched.spawn(cpu, { entry: stranger, cpu: 1, mm: strange });
        yield* sched.spawn(cpu, { entry: owner, argument, cpu: 0, mm: rig.space });
        yield* mm.put(cpu, rig.space);
        yield* mm.put(cpu, strange);
        yield* sched.waitForAll(cpu);
      });
      assertEquals([seen, interrupts], [[0, 8], 0]);
    });
  });
}

/**
 * Two programs take turns on processor 1 while a thread of the first one, on processor 0, gives a page up again and again,
 * and has its frame used for something else: the switch and the shootdown meet in every order.
 */
function crossing(seed: number): PagingRig {
  const rig = new PagingRig({
    cpus: 2,
    sched: { timer: "off" },
    machine: { policy: { random: seed }, staleness: true, limits: { steps: 1e7 } },
  });
  const { kernel } = rig;
  const VALUE = 0x1000;
  const OVER = 8;
  const reader = kernel.user(function* reader(cpu) {
    const shared = argumentOf(cpu);
    do {
      yield cpu.load32(shared + PAGE);
      assert(cpu.eax === 0 || cpu.eax === VALUE, `the page holds ${cpu.eax}`);
      yield* schedYield(cpu);
      yield cpu.load32(shared + OVER);
    } while (cpu.eax === 0);
  });
  const stranger = kernel.user(function* stranger(cpu) {
    for (let turn = 0; turn < 60; turn++) yield* schedYield(cpu);
  });
  const owner = kernel.user(function* owner(cpu) {
    const shared = argumentOf(cpu);
    for (let round = 0; round < 6; round++) {
      yield cpu.store32(shared + PAGE, VALUE);
      yield* madviseDontneed(cpu, shared + PAGE, PAGE);
      yield cpu.store32(shared + 2 * PAGE, 0xbad); // Takes the frame.
      yield* madviseDontneed(cpu, shared + 2 * PAGE, PAGE);
    }
    yield cpu.store32(shared + OVER, 1);
  });
  rig.run(function* (cpu) {
    const { mm, sched } = kernel;
    const space = yield* mm.create(cpu);
    const argument = yield* mm.map(cpu, space, 4 * PAGE);
    const strange = yield* mm.create(cpu);
    yield* sched.spawn(cpu, { entry: reader, argument, cpu: 1, mm: space });
    yield* sched.spawn(cpu, { entry: stranger, cpu: 1, mm: strange });
    yield* sched.spawn(cpu, { entry: owner, argument, cpu: 0, mm: space });
    yield* mm.put(cpu, space);
    yield* mm.put(cpu, strange);
    yield* sched.waitForAll(cpu);
  });
  return rig.quiet();
}

/** Words of the kernel's that nobody else uses. */
const [GO, DONE] = [0x60_0000, 0x60_0004];

/**
 * On processor 1 a kernel thread comes back to an address space, from another one or from being lazy, and stands still
 * before one instruction of that, a later one in each round; meanwhile a page of it is given up on processor 0, and its
 * frame is used for something else. What the thread reads then is judged; how many instructions the switch has is the
 * answer.
 */
function standingStill(
  rounds: number,
  { from, ...paging }: MmOptions & { readonly from: "another" | "lazy" },
): number {
  const rig = new PagingRig({ cpus: 2, machine: { staleness: true }, paging });
  const { kernel } = rig;
  const { mm, sched } = kernel;
  const madvise = sched.syscalls.at(NR_madvise)!;
  let longest = 0;
  let [space, strange, memory] = [0, 0, 0];

  /** Runs instructions, and stands still before one of them. */
  function* slowly(cpu: X86Cpu, body: Guest, stop: number): Guest {
    let count = 0;
    for (let step = body.next(); step.done !== true; step = body.next()) {
      yield step.value;
      if (++count === stop) {
        const registers = cpu.regs.slice();
        yield cpu.store32(GO, 1);
        yield cpu.work(1_000_000); // Longer than a shootdown takes that need not wait for this processor.
        cpu.regs.set(registers);
      }
    }
    longest = Math.max(longest, count);
    if (count < stop) yield cpu.store32(GO, 1);
  }

  const reader = sched.kernelThread(function* reader(cpu) {
    for (let round = 1; round <= rounds; round++) {
      yield* mm.use(cpu, space);
      yield* putUser32(cpu, kernel, memory, round);
      if (from === "another") yield* mm.use(cpu, strange);
      else yield* mm.unuse(cpu);
      yield* slowly(cpu, mm.use(cpu, space), round);
      yield cpu.pauseWhile(DONE, 0);
      assertEquals(yield* getUser32(cpu, kernel, memory), 0, `round ${round}`);
      yield* mm.unuse(cpu);
      yield cpu.store32(DONE, 0);
    }
  }, "reader");
  const owner = sched.kernelThread(function* owner(cpu) {
    yield* mm.use(cpu, space);
    for (let round = 1; round <= rounds; round++) {
      yield cpu.pauseWhile(GO, 0);
      yield cpu.store32(GO, 0);
      yield* madvise(cpu, sched, [memory, PAGE, MADV_DONTNEED]);
      yield* putUser32(cpu, kernel, memory + PAGE, 0xbad); // Takes the frame.
      yield cpu.store32(DONE, 1);
      yield cpu.pauseWhile(DONE, 1);
      yield* madvise(cpu, sched, [memory + PAGE, PAGE, MADV_DONTNEED]);
    }
    yield* mm.unuse(cpu);
  }, "owner");
  rig.run(function* (cpu) {
    space = yield* mm.create(cpu);
    strange = yield* mm.create(cpu);
    memory = yield* mm.map(cpu, space, 3 * PAGE);
    yield* sched.spawn(cpu, { entry: owner, cpu: 0 });
    yield* sched.spawn(cpu, { entry: reader, cpu: 1 });
    yield* sched.waitForAll(cpu);
  });
  rig.quiet();
  return longest;
}

describe("switches and shootdowns", () => {
  const ROUNDS = 40;

  it("may meet at any instruction of the switch: it sees that it owes a flush, or is interrupted for it", () => {
    for (const from of ["another", "lazy"] as const) {
      const instructions = standingStill(ROUNDS, { from });
      assert(instructions > 20 && instructions < ROUNDS, String(instructions)); // Each one had its round.
    }
  });

  it("miss each other where the switch is marked late, as Linux's could be until v6.18: the oracle tells", () => {
    const failure = assertThrows(
      () => standingStill(ROUNDS, { from: "another", marksSwitchLate: true }),
      StaleTranslation,
    );
    assertEquals([failure.blame, failure.cpu], ["software", 1]);
  });

  it("may meet in any order: who comes back in the middle of a shootdown is interrupted, or sees that it owes a flush", () => {
    for (let seed = 0; seed < 4; seed++) crossing(seed);
  });
});
