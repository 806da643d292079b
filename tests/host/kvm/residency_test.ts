import { assert, assertEquals, AssertionError, assertNotEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { Text, X2APIC_EOI, X2APIC_ICR } from "../../../abi/mod.ts";
import { BACKENDS, Machine, StaleTranslation, straight, type Vm } from "../../../host/mod.ts";
import { enableX2apic, startAps } from "../../support/guests.ts";
import { checkMapped, DISK, mapped, SMALL, task, trackedRig } from "../../support/tdp.ts";

const PAGE = 4096;
const FAR = 0x4_0000;
const LATENCY = 100_000;

for (const backend of BACKENDS) {
  describe(`a page that is away (${backend})`, () => {
    it("is one of the guest's: behind its memory there is none, and odd numbers are refused", () => {
      const { vm } = trackedRig(backend);
      for (
        const [address, bytes] of [[NaN, PAGE], [0, -1], [0, 0], [0.5, PAGE], [PAGE, Infinity], [0, 2 ** 53]]
      ) {
        assertThrows(() => straight(vm.evict(address, bytes)), RangeError, `Cannot evict ${bytes} bytes`);
      }
      for (const address of [0, 2 ** 40]) {
        assertThrows(() => straight(vm.evict(address, 1e15)), RangeError, "no memory slot backs it");
      }
    });

    it("is read when the guest uses it, which waits as long as that takes and finds what it wrote", () => {
      const rig = trackedRig(backend);
      const { vm } = rig;
      vm.userspacePioDevice = { access: () => void straight(vm.evict(FAR, 1)) };
      rig.finish(function* (cpu) {
        yield cpu.store32(FAR, 7);
        yield cpu.store32(FAR + PAGE, 8);
        yield cpu.out8(0x80, 1);
        assertEquals([mapped(vm, FAR), mapped(vm, FAR + PAGE)], [undefined, SMALL]);
        const start = vm.bootstrap.clock;
        yield cpu.load32(FAR);
        assertEquals(cpu.eax, 7);
        // The walk is made twice. Going to sleep takes part of the time that the read takes.
        const { vmexit, tdpFault, wake, vmentry, pageWalk, load } = vm.cost;
        const both = vmexit + tdpFault + LATENCY + wake + vmentry + 8 * pageWalk + load;
        assertEquals(vm.bootstrap.clock - start, both);
      });
      assertEquals([vm.bootstrap.stats.pf_waits, vm.residency!.away], [1, 0]);
      checkMapped(vm);
    });

    it("costs those nothing who use other pages", () => {
      const rig = trackedRig(backend);
      straight(rig.vm.evict(FAR, PAGE));
      rig.finish(function* (cpu) {
        yield cpu.store32(FAR + PAGE, 8);
      });
      assertEquals([rig.vm.bootstrap.stats.pf_waits, rig.vm.residency!.state(FAR)], [0, "absent"]);
    });

    it("leaves its CPU to others meanwhile", () => {
      const machine = new Machine({ pcpus: 1 });
      const [sleeper, worker] = [0, 1].map(() => machine.createVm({ backend, memory: 2 ** 21, disk: DISK }));
      const times: number[] = [];
      const run = (vm: Vm, text: Text, entry: number): void => {
        vm.load(text);
        vm.start(entry);
      };
      const a = new Text();
      run(
        sleeper,
        a,
        a.add(function* sleeps(cpu) {
          yield cpu.load32(FAR);
          times.push(sleeper.bootstrap.clock);
        }),
      );
      const b = new Text();
      run(
        worker,
        b,
        b.add(function* works(cpu) {
          yield cpu.work(50_000);
          times.push(worker.bootstrap.clock);
        }),
      );
      straight(sleeper.evict(FAR, PAGE));
      assertEquals(machine.run(1e9).end, "finished");
      assert(times[0] < LATENCY, "the one that works ended within the read");
      assert(times[1] > LATENCY);
    });

    it("is read once for all who wait for it, and each goes on", () => {
      const rig = trackedRig(backend, { vcpus: 2 });
      const { vm } = rig;
      const got: number[] = [];
      vm.userspacePioDevice = { access: () => void straight(vm.evict(FAR, PAGE)) };
      rig.aps(function* second(cpu) {
        yield cpu.load32(FAR);
        got.push(cpu.eax);
      });
      rig.finish(function* (cpu) {
        yield cpu.store32(FAR, 5);
        yield* enableX2apic(cpu);
        yield cpu.out8(0x80, 1);
        yield* startAps(cpu, 1);
        yield cpu.load32(FAR);
        got.push(cpu.eax);
        yield cpu.work(LATENCY);
      });
      assertEquals(got, [5, 5]);
      assertEquals(vm.vcpus.map(({ stats }) => stats.pf_waits), [1, 1]);
    });

    it("does not wake a vCPU by interrupts: those wait, and are delivered behind the access", () => {
      const rig = trackedRig(backend, { vcpus: 2 });
      const { vm } = rig;
      const order: string[] = [];
      rig.on(0x61, function* interrupt(cpu) {
        order.push("interrupt");
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.aps(function* sender(cpu) {
        yield* enableX2apic(cpu);
        yield cpu.work(30_000);
        yield cpu.wrmsr(X2APIC_ICR, 0x4061, 0);
        order.push("sent");
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        straight(vm.evict(FAR, PAGE));
        yield cpu.sti();
        yield cpu.load32(FAR);
        order.push("loaded");
        yield cpu.work(10_000);
      });
      assertEquals([order[0], new Set(order)], ["sent", new Set(["sent", "interrupt", "loaded"])]);
      assertEquals(vm.bootstrap.stats.pf_waits, 1);
    });

    it("that goes again before its vCPU has a CPU is waited for again", () => {
      const rig = trackedRig(backend);
      const { vm } = rig;
      straight(vm.evict(FAR, PAGE));
      // It comes after the latency; its vCPU is up a wake-up later.
      task(vm, vm.evict(FAR, PAGE), LATENCY + vm.cost.block + vm.cost.wake);
      rig.finish(function* (cpu) {
        yield cpu.load32(FAR);
      });
      assertEquals([vm.bootstrap.stats.pf_waits, vm.residency!.state(FAR)], [2, "present"]);
    });

    it("whose slot goes meanwhile is MMIO when the access is made again", () => {
      const base = 2 ** 30;
      const rig = trackedRig(backend, { slots: [{ base, size: PAGE }] });
      const { vm } = rig;
      const slot = vm.memory.find(base, 1)!;
      straight(vm.evict(base, PAGE));
      task(vm, vm.removeMemoryRegion(slot), 50_000);
      vm.userspaceMmioDevice = { access: () => 0x55n };
      rig.finish(function* (cpu) {
        yield cpu.load32(base);
        assertEquals(cpu.eax, 0x55);
      });
      assertEquals(vm.bootstrap.stats.pf_waits, 1);
    });
  });

  describe(`evicting pages that a running guest uses (${backend})`, () => {
    /** One vCPU that uses a page again and again, and a host that evicts it. */
    function used(spoil: (vm: Vm) => void = () => {}): Vm {
      const rig = trackedRig(backend);
      const { vm } = rig;
      task(vm, vm.evict(FAR, PAGE), 50_000);
      spoil(vm);
      rig.finish(function* (cpu) {
        for (let n = 0; n < 50; n++) {
          yield cpu.xadd32(FAR, 1);
          yield cpu.work(5000);
        }
      });
      assertEquals(rig.word(FAR), 50);
      return vm;
    }

    it("gets them out of guest mode, flushes, and makes the next access fault", () => {
      const vm = used();
      assertEquals(vm.bootstrap.stats.pf_waits, 1);
      assertEquals([vm.mmu.remoteTlbFlushRequests, vm.mmu.remoteTlbFlush], [1, 1]);
      checkMapped(vm);
    });

    it("is found out by the oracle where a vCPU goes on with what its CPU remembers", () => {
      const error = assertThrows(
        () =>
          used(({ bootstrap }) => {
            const request = bootstrap.request.bind(bootstrap);
            bootstrap.request = (what) => request(what & ~(1 << 9)); // No KVM_REQ_TLB_FLUSH.
          }),
        StaleTranslation,
        "page taken away",
      );
      assertEquals(error.blame, "software");
    });

    it("waits until each of them has left guest mode", () => {
      const rig = trackedRig(backend, { vcpus: 2 });
      const { vm } = rig;
      let began = 0;
      const evicting = task(
        vm,
        function* () {
          began = vm.engine.now;
          yield* vm.evict(FAR, PAGE);
          return vm.engine.now - began;
        }(),
        200_000,
      );
      rig.aps(function* ap(cpu) {
        for (;;) yield cpu.work(1000);
      });
      rig.run(function* (cpu) {
        yield cpu.load32(FAR);
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        for (;;) yield cpu.work(1000);
      }, 1e6);
      const { kick, ipiLatency } = vm.cost;
      assert(evicting.result! >= 2 * kick + ipiLatency, `two IPIs and their way, not ${evicting.result}`);
      assertEquals(vm.residency!.state(FAR), "absent");
    });

    it("does not disturb those that sleep, nor those that are in the host", () => {
      const rig = trackedRig(backend);
      const { vm } = rig;
      rig.run(function* (cpu) {
        yield cpu.load32(FAR);
        yield cpu.hlt();
      });
      const { halt_wakeup } = vm.bootstrap.stats;
      assertEquals(straight(vm.evict(FAR, PAGE)), 1);
      assertEquals([vm.mmu.remoteTlbFlushRequests, vm.mmu.remoteTlbFlush], [1, 0]);
      assertEquals(vm.bootstrap.stats.halt_wakeup, halt_wakeup);
    });

    it("is no business of a caller's whose turn never ends", () => {
      const rig = trackedRig(backend);
      const { vm } = rig;
      rig.run(function* (cpu) {
        yield cpu.load32(FAR);
        for (;;) yield cpu.work(1000);
      }, 100_000);
      assertThrows(
        () => straight(vm.evict(FAR, PAGE)),
        Error,
        "Cannot wait for vCPU 0 to leave guest mode: nothing else runs; allowed is that in a HostTask",
      );
    });

    it("needs a disk for them to go to", () => {
      const vm = new Machine().createVm({ backend, memory: 2 ** 21 });
      assertThrows(
        () => straight(vm.evict(FAR, PAGE)),
        TypeError,
        "Cannot evict pages: the virtual machine was made without the option disk",
      );
    });

    it("is over where no slot backs them, too: nobody waits for it for ever", () => {
      const { vm } = trackedRig(backend);
      assertThrows(() => straight(vm.evict(2 ** 40, PAGE)), RangeError, "no memory slot backs it");
      assertEquals(vm.mmu.invalidating.size, 0);
    });
  });

  describe(`faults and evictions at the same time (${backend})`, () => {
    const steps = fc.array(fc.tuple(fc.constantFrom("store", "evict"), fc.integer({ min: 0, max: 3 })), {
      minLength: 4,
      maxLength: 16,
    });

    /** Two vCPUs that write to four pages, and a host that evicts them, in any order. */
    function race(
      seed: number,
      script: readonly (readonly ["store" | "evict", number])[],
      spoil?: (vm: Vm) => void,
    ): Vm {
      const rig = trackedRig(backend, {
        vcpus: 2,
        policy: { random: seed },
        disk: { ...DISK, latency: 20 },
        hostHugePages: seed % 2 === 1,
        memory: 2 ** 22,
      });
      const { vm } = rig;
      spoil?.(vm);
      const stores = script.filter(([what]) => what === "store");
      const program = (cpu: Parameters<Parameters<typeof rig.finish>[0]>[0]) =>
        (function* () {
          for (const [, page] of stores) yield cpu.lockBts(FAR + page * PAGE, page);
        })();
      rig.aps(function* second(cpu) {
        yield* program(cpu);
      });
      const evicted = script.filter(([what]) => what === "evict");
      task(
        vm,
        function* () {
          for (let round = 0; round < 10; round++) {
            for (const [, page] of evicted) {
              for (let step = 0; step < 5; step++) {
                checkMapped(vm);
                yield;
              }
              yield* vm.evict(FAR + page * PAGE, PAGE);
            }
          }
        }(),
      );
      rig.run(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        yield* program(cpu);
        yield* program(cpu);
      });
      for (const [, page] of stores) assertEquals(rig.word(FAR + page * PAGE), 1 << page);
      return vm;
    }

    it("map nothing that is away, and lose nothing that was written", () => {
      fc.assert(fc.property(fc.nat(1e6), steps, (seed, script) => checkMapped(race(seed, script as []))), {
        numRuns: 40,
      });
    });

    it("would map a page that was just taken away, without mmu_invalidate_seq", () => {
      const script = [["store", 0], ["evict", 0], ["store", 1], ["evict", 1], ["evict", 0]] as const;
      const found = (spoil?: (vm: Vm) => void): number[] =>
        [...Array(40).keys()].filter((seed) => {
          try {
            checkMapped(race(seed, script, spoil));
            return false;
          } catch (error) {
            if (error instanceof AssertionError || error instanceof StaleTranslation) return true;
            throw error;
          }
        });
      assertEquals(found(), []);
      assertNotEquals(found(({ mmu }) => mmu.retries = () => false), []);
    });
  });
}
