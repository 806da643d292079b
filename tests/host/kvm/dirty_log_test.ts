import { assert, assertEquals, AssertionError, assertNotEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type Guest,
  KVM_MSR_ENABLED,
  LEVEL_PT,
  MSR_KVM_PV_EOI_EN,
  X2APIC_EOI,
  X2APIC_SELF_IPI,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, Machine, StaleTranslation, straight, type Vm } from "../../../host/mod.ts";
import { SPTE_WRITABLE } from "../../../host/kvm/tdp/spte.ts";
import { BASE, loggingRig, PAGE, PAGES, pages, slotOf, userspace } from "../../support/dirty_log.ts";
import { enableX2apic, startAps } from "../../support/guests.ts";
import { mapped, SMALL, task } from "../../support/tdp.ts";

/** What the log protects no entry lets the guest write. */
function checkProtected({ dirtyLog, mmu }: Vm): void {
  for (const { gpa, low } of mmu.tables?.leaves(BASE, BASE + PAGES * PAGE) ?? []) {
    assert(
      (low & SPTE_WRITABLE) === 0 || !dirtyLog.protects(gpa),
      `0x${gpa.toString(16)} may be written, unseen`,
    );
  }
}

const at = (page: number): number => BASE + page * PAGE;

for (const backend of BACKENDS) {
  describe(`the dirty log of a running guest (${backend})`, () => {
    it("has the pages that the guest writes, from when it is asked for, and each once", () => {
      const rig = loggingRig(backend);
      const { vm } = rig;
      const seen: number[][] = [];
      const ask = (): void => void seen.push(pages(straight(vm.getDirtyLog(slotOf(vm)))));
      userspace(vm, () => straight(vm.logDirtyPages(slotOf(vm), true)), ask, ask, ask);
      rig.finish(function* (cpu) {
        yield cpu.store32(at(1), 1); // Nobody logs yet.
        yield cpu.out8(0x80, 1);
        yield cpu.store32(at(3), 1);
        yield cpu.store32(at(129) + 8, 1);
        yield cpu.xadd32(at(64), 1);
        yield cpu.out8(0x80, 1);
        yield cpu.out8(0x80, 1);
        yield cpu.store32(at(3), 2);
        yield cpu.out8(0x80, 1);
      });
      assertEquals(seen, [[3, 64, 129], [], [3]]);
    });

    it("makes KVM track the guest's pages while it is kept, and no longer", () => {
      const rig = loggingRig(backend);
      const { vm } = rig;
      const tracked: [boolean, boolean, number][] = [];
      const look = (): void =>
        void tracked.push([vm.tracksPages, vm.bootstrap.processor.translates, vm.bootstrap.stats.pf_taken]);
      userspace(
        vm,
        look,
        () => straight(vm.logDirtyPages(slotOf(vm), true)),
        look,
        () => straight(vm.logDirtyPages(slotOf(vm), false)),
        look,
      );
      rig.finish(function* (cpu) {
        for (let n = 0; n < 5; n++) {
          yield cpu.out8(0x80, 1);
          yield cpu.store32(at(0), n);
        }
        assertEquals(vm.bootstrap.processor.translates, false);
      });
      assertEquals(tracked.map(([tracks, translates]) => [tracks, translates]), [
        [false, false],
        [true, true],
        [false, false],
      ]);
      const taken = tracked.map(([, , faults]) => faults);
      assert(taken[0] === 0 && taken[1] > 0, "faults come with the log");
      assertEquals(vm.bootstrap.stats.pf_taken, taken[2], "and go with it");
    });

    it("takes W from what was logged, and one fault that needs no lock gives it back", () => {
      const rig = loggingRig(backend);
      const { vm } = rig;
      const states: unknown[] = [];
      userspace(
        vm,
        () => straight(vm.logDirtyPages(slotOf(vm), true)),
        () => {
          states.push(mapped(vm, at(2)));
          straight(vm.getDirtyLog(slotOf(vm)));
          states.push(mapped(vm, at(2)));
        },
      );
      rig.finish(function* (cpu) {
        yield cpu.out8(0x80, 1);
        yield cpu.store32(at(2), 1);
        yield cpu.out8(0x80, 1);
        yield cpu.load32(at(2));
        states.push([mapped(vm, at(2)), vm.bootstrap.stats.pf_fast]);
        yield cpu.store32(at(2), 2);
        states.push([mapped(vm, at(2)), vm.bootstrap.stats.pf_fast]);
      });
      const guarded = { level: LEVEL_PT, writable: false };
      assertEquals(states, [SMALL, guarded, [guarded, 0], [SMALL, 1]]);
    });

    it("has a page that the guest only reads, where that maps it: the entry may be written from then on", () => {
      const rig = loggingRig(backend);
      const { vm } = rig;
      const seen: number[][] = [];
      userspace(
        vm,
        () => straight(vm.logDirtyPages(slotOf(vm), true)),
        () => void seen.push(pages(straight(vm.getDirtyLog(slotOf(vm))))),
        () => void seen.push(pages(straight(vm.getDirtyLog(slotOf(vm))))),
      );
      rig.finish(function* (cpu) {
        yield cpu.out8(0x80, 1);
        yield cpu.load32(at(5));
        yield cpu.out8(0x80, 1);
        yield cpu.load32(at(5));
        yield cpu.out8(0x80, 1);
      });
      assertEquals(seen, [[5], []]);
    });

    it("has what KVM itself writes: a PV EOI flag, and what it emulates", () => {
      const flag = at(70) + 8;
      const rig = loggingRig(backend);
      const { vm } = rig;
      const seen: number[][] = [];
      const ask = (): void => void seen.push(pages(straight(vm.getDirtyLog(slotOf(vm)))));
      rig.on(0x51, function* handler(cpu) {
        yield cpu.out8(0x80, 1); // The flag is closed at this exit.
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      userspace(vm, () => straight(vm.logDirtyPages(slotOf(vm), true)), ask, ask);
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, flag | KVM_MSR_ENABLED);
        yield cpu.out8(0x80, 1);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x51);
        yield cpu.work(1);
        // Memory up to the slot's end, MMIO behind it.
        yield cpu.store32(at(PAGES) - 2, 7);
        yield cpu.out8(0x80, 1);
      });
      assertEquals(rig.word(flag), 0, "armed and closed: it is as it was, and was written");
      assertEquals(seen, [[70], [PAGES - 1]], "of the second the half that was memory");
    });

    it("logs a slot and no other", () => {
      const rig = loggingRig(backend);
      const { vm } = rig;
      userspace(
        vm,
        () => straight(vm.logDirtyPages(slotOf(vm), true)),
        () => void assertThrows(() => straight(vm.getDirtyLog(vm.memory.slots[0])), Error, "is not set"),
      );
      rig.finish(function* (cpu) {
        yield cpu.out8(0x80, 1);
        yield cpu.store32(0x4_0000, 1);
        yield cpu.out8(0x80, 1);
      });
      assertEquals(pages(straight(vm.getDirtyLog(slotOf(vm)))), []);
    });

    it("with manual protection keeps what it tells until that is cleared, a part at a time", () => {
      const rig = loggingRig(backend, { dirtyLog: { manualProtect: true } });
      const { vm } = rig;
      const seen: number[][] = [];
      const ask = (): void => void seen.push(pages(straight(vm.getDirtyLog(slotOf(vm)))));
      userspace(
        vm,
        () => straight(vm.logDirtyPages(slotOf(vm), true)),
        ask,
        () => {
          ask();
          const bitmap = Uint32Array.of(0xffff_ffff, 0xffff_ffff);
          straight(vm.clearDirtyLog(slotOf(vm), { firstPage: 0, pages: 64, bitmap }));
          ask();
        },
        ask,
      );
      rig.finish(function* (cpu) {
        yield cpu.out8(0x80, 1);
        yield cpu.store32(at(1), 1);
        yield cpu.store32(at(65), 1);
        yield cpu.out8(0x80, 1);
        yield cpu.out8(0x80, 1);
        yield cpu.store32(at(1), 1);
        yield cpu.store32(at(65), 1);
        yield cpu.out8(0x80, 1);
      });
      assertEquals(seen, [[1, 65], [1, 65], [65], [1, 65]]);
      assertEquals(vm.bootstrap.stats.pf_fast, 1, "page 65 was not protected again");
    });

    it("that is full at first protects nothing until it is cleared", () => {
      const rig = loggingRig(backend, { dirtyLog: { manualProtect: true, initiallySet: true } });
      const { vm } = rig;
      straight(vm.logDirtyPages(slotOf(vm), true));
      rig.finish(function* (cpu) {
        yield cpu.store32(at(1), 1);
      });
      assertEquals(pages(straight(vm.getDirtyLog(slotOf(vm)))).length, PAGES);
      assertEquals([vm.mmu.remoteTlbFlushRequests, mapped(vm, at(1))], [0, SMALL]);
    });
  });

  describe(`writes that race with whoever collects the dirty log (${backend})`, () => {
    /**
     * Two vCPUs that write counters into pages, and a migration that copies what the log names, again and again. Its last
     * round comes when both have ended, as the last round of a migration does. Whether it has all that was written.
     */
    function migrate(seed: number, spoil?: (vm: Vm) => void): void {
      const rig = loggingRig(backend, { vcpus: 2 }, { policy: { random: seed } });
      const { vm } = rig;
      spoil?.(vm);
      const slot = slotOf(vm);
      const copy = new Map<number, number>();
      const collect = function* () {
        for (const page of pages(yield* vm.getDirtyLog(slot))) copy.set(page, rig.word(at(page)));
      };
      function* writes(cpu: X86Cpu, mine: number): Guest {
        for (let n = 1; n <= 12; n++) yield cpu.store32(at((n + mine) % 3) + 4 * mine, n);
      }
      rig.aps((cpu) => writes(cpu, 0));
      straight(vm.logDirtyPages(slot, true));
      task(
        vm,
        function* () {
          for (let round = 0; round < 12; round++) {
            for (let step = 0; step < 4; step++) {
              checkProtected(vm);
              yield;
            }
            yield* collect();
          }
        }(),
      );
      rig.run(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        yield* writes(cpu, 0);
        yield cpu.store32(at(0), 99);
      });
      straight(collect());
      for (let page = 0; page < 3; page++) {
        assertEquals(copy.get(page) ?? 0, rig.word(at(page)), `page ${page}`);
      }
    }

    it("are all in it in the end, whatever the order", () => {
      fc.assert(fc.property(fc.nat(1e6), (seed) => migrate(seed)), { numRuns: 60 });
    });

    it("would be lost without the flush that ends a round", () => {
      const lost = (spoil?: (vm: Vm) => void): number[] =>
        [...Array(40).keys()].filter((seed) => {
          try {
            migrate(seed, spoil);
            return false;
          } catch (error) {
            if (error instanceof AssertionError || error instanceof StaleTranslation) return true;
            throw error;
          }
        });
      assertEquals(lost(), []);
      assertNotEquals(
        lost(({ vcpus }) => {
          for (const vcpu of vcpus) {
            const request = vcpu.request.bind(vcpu);
            vcpu.request = (what) => request(what & ~(1 << 9)); // No KVM_REQ_TLB_FLUSH.
          }
        }),
        [],
      );
    });
  });
}

describe("virtual machines without a dirty log", () => {
  it("are refused options that do not go together", () => {
    assertThrows(
      () => new Machine().createVm({ dirtyLog: { initiallySet: true } }),
      RangeError,
      "it is allowed with manualProtect only",
    );
  });
});
