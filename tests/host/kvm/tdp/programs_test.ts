import { assert, assertEquals, AssertionError } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { Guest, X86Cpu } from "../../../../abi/mod.ts";
import { argumentOf, exit, madviseDontneed, mmap, munmap, schedYield } from "../../../../guest/mod.ts";
import { type BackendName, BACKENDS, SeededEntropy, type Vm } from "../../../../host/mod.ts";
import { PagingRig } from "../../../support/tasks.ts";
import { checkMapped, DISK, task } from "../../../support/tdp.ts";

const PAGE = 4096;
const SHARED = 4;

/** What a program does with memory of its own and memory that all share; it ends with 1 where it reads something else. */
function* program(cpu: X86Cpu): Guest {
  const shared = argumentOf(cpu);
  for (let round = 1; round <= 4; round++) {
    const own = yield* mmap(cpu, 3 * PAGE);
    for (let page = 0; page < 3; page++) yield cpu.store32(own + page * PAGE + 4 * page, round + page);
    yield cpu.xadd32(shared + (round % SHARED) * PAGE, 1);
    yield* schedYield(cpu);
    for (let page = 0; page < 3; page++) {
      yield cpu.load32(own + page * PAGE + 4 * page);
      if (cpu.eax !== round + page) yield* exit(cpu, 1);
    }
    yield* madviseDontneed(cpu, own, PAGE);
    yield cpu.load32(own);
    if (cpu.eax !== 0) yield* exit(cpu, 1);
    yield* munmap(cpu, own, 3 * PAGE);
  }
}

/** What a host does that runs such programs: evicts, and migrates the machine. What the migration has copied. */
function disturb(vm: Vm, seed: number): { readonly copy: Uint8Array; readonly rounds: () => number } {
  const slot = vm.memory.slots[0];
  const copy = new Uint8Array(slot.size);
  let rounds = 0;
  const entropy = new SeededEntropy(seed);
  const draw = (below: number): number => entropy.choose(below);
  task(
    vm,
    function* () {
      for (let n = 0; n < 40; n++) {
        const start = draw(slot.size / PAGE);
        yield* vm.evict(start * PAGE, Math.min(1 + draw(400), slot.size / PAGE - start) * PAGE);
        vm.engine.running!.charge(5000 + draw(60_000));
        yield;
      }
    }(),
  );
  task(
    vm,
    function* () {
      vm.engine.running!.charge(50_000);
      yield;
      yield* vm.logDirtyPages(slot, true);
      copy.set(slot.u8);
      for (let n = 0; n < 30; n++) {
        collect(vm, yield* vm.getDirtyLog(slot), copy);
        rounds++;
        vm.engine.running!.charge(10_000 + draw(60_000));
        yield;
      }
    }(),
  );
  return { copy, rounds: () => rounds };
}

function collect({ memory }: Vm, bitmap: Uint32Array, copy: Uint8Array): void {
  const { u8 } = memory.slots[0];
  for (let page = 0; page < 32 * bitmap.length; page++) {
    if (((bitmap[page >>> 5] >>> (page & 31)) & 1) === 0) continue;
    copy.set(u8.subarray(page * PAGE, (page + 1) * PAGE), page * PAGE);
  }
}

function run(backend: BackendName, seed: number): { rig: PagingRig; copy: Uint8Array; rounds: number } {
  const rig = new PagingRig({
    machine: { staleness: true, pcpus: 1 + seed % 3, timeSlice: 300_000 },
    vm: { backend, disk: { ...DISK, latency: 30_000 }, hostHugePages: seed % 2 === 1, memory: 2 ** 24 },
  });
  const { copy, rounds } = disturb(rig.vm, seed);
  const codes = rig.runProgram([{ program }, { program }, { program }], SHARED);
  assertEquals(codes, [0, 0, 0]);
  return { rig, copy, rounds: rounds() };
}

for (const backend of BACKENDS) {
  describe(`programs in address spaces of their own, whose host evicts, and migrates them (${backend})`, () => {
    it("find their memory as they left it, and the migration has all of it in the end", () => {
      let waits = 0;
      let rounds = 0;
      fc.assert(
        fc.property(fc.nat(1e6), (seed) => {
          const { rig, copy, rounds: own } = run(backend, seed);
          const { vm } = rig;
          checkMapped(vm);
          for (const { stats } of vm.vcpus) waits += stats.pf_waits;
          rounds += own;
          const [slot] = vm.memory.slots;
          if (!vm.dirtyLog.logs(slot)) return;
          collect(vm, vm.dirtyLog.get(slot), copy);
          const words = new Uint32Array(copy.buffer);
          for (let word = 0; word < words.length; word++) {
            if (words[word] === slot.u32[word]) continue;
            throw new AssertionError(`0x${(4 * word).toString(16)} was written, and is not in the log`);
          }
        }),
        { numRuns: 4 },
      );
      assert(waits > 10 && rounds > 10, `${waits} waits, ${rounds} rounds`);
    });
  });
}
