import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { LEVEL_PD, LEVEL_PT } from "../../../abi/mod.ts";
import { BACKENDS, straight } from "../../../host/mod.ts";
import { BASE, loggingRig, pages, slotOf, userspace } from "../../support/dirty_log.ts";
import { mapped } from "../../support/tdp.ts";

for (const backend of BACKENDS) {
  describe(`pages of 2 MiB under the dirty log (${backend})`, () => {
    const slots = [{ base: BASE, size: 2 ** 22 }];

    // kvm_mmu_slot_apply_flags has nothing to do for KVM_MEM_READONLY; kvm_mmu_hugepage_adjust looks at the log alone.
    it("stay as they are in a read-only slot, which cannot be dirtied; new ones are mapped small", () => {
      const rig = loggingRig(backend, {
        slots: [{ ...slots[0], readonly: true }],
        hostHugePages: true,
        disk: { pages: 2 ** 20, latency: 1000 },
      });
      const { vm } = rig;
      const states: unknown[] = [];
      const look = (): void => void states.push([mapped(vm, BASE), mapped(vm, BASE + 2 ** 21)]);
      const written: number[] = [];
      vm.userspaceMmioDevice = { access: (address) => void written.push(address) };
      userspace(
        vm,
        () => {
          straight(vm.logDirtyPages(slotOf(vm), true));
          look();
        },
        () => {
          assertEquals(pages(straight(vm.getDirtyLog(slotOf(vm)))), []);
          straight(vm.logDirtyPages(slotOf(vm), false));
          look();
        },
      );
      rig.finish(function* (cpu) {
        yield cpu.load32(BASE);
        yield cpu.out8(0x80, 1);
        yield cpu.load32(BASE + 2 ** 21);
        yield cpu.store32(BASE, 1);
        yield cpu.out8(0x80, 1);
      });
      const huge = { level: LEVEL_PD, writable: false };
      const small = { level: LEVEL_PT, writable: false };
      assertEquals(states, [[huge, undefined], [huge, small]]);
      assertEquals([vm.mmu.remoteTlbFlushRequests, written], [0, [BASE]]);
    });

    it("are split when it begins, mapped small while it goes on, and huge again when it ends", () => {
      const rig = loggingRig(backend, {
        slots,
        hostHugePages: true,
        disk: { pages: 2 ** 20, latency: 1000 },
      });
      const { vm } = rig;
      const states: unknown[] = [];
      const look = (): void => void states.push([mapped(vm, BASE), mapped(vm, BASE + 2 ** 21)]);
      userspace(
        vm,
        look,
        () => {
          straight(vm.logDirtyPages(slotOf(vm), true));
          look();
        },
        () => {
          assertEquals(pages(straight(vm.getDirtyLog(slotOf(vm)))), [0, 512]);
          straight(vm.logDirtyPages(slotOf(vm), false));
          look();
        },
        look,
      );
      rig.finish(function* (cpu) {
        yield cpu.store32(BASE, 1);
        yield cpu.out8(0x80, 1);
        yield cpu.out8(0x80, 1);
        yield cpu.store32(BASE, 1);
        yield cpu.store32(BASE + 2 ** 21, 1);
        yield cpu.out8(0x80, 1);
        yield cpu.store32(BASE, 1);
        yield cpu.out8(0x80, 1);
      });
      const huge = { level: LEVEL_PD, writable: true };
      const collected = { level: LEVEL_PD, writable: false }; // In the small pages' place, with the rights of the first.
      assertEquals(states, [
        [huge, undefined],
        [{ level: LEVEL_PT, writable: false }, undefined],
        [collected, collected],
        [huge, collected],
      ]);
      assertEquals(
        vm.bootstrap.stats.pf_fast,
        2,
        "W alone was missing: once in a small page, once in the huge one",
      );
    });
  });
}
