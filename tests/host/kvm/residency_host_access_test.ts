import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { KVM_MSR_ENABLED, MSR_KVM_PV_EOI_EN, X2APIC_EOI, X2APIC_SELF_IPI } from "../../../abi/mod.ts";
import { BACKENDS, straight, type Vm } from "../../../host/mod.ts";
import { enableX2apic } from "../../support/guests.ts";
import { pagingOn, PagingRig, tells } from "../../support/paging.ts";
import { DISK, trackedRig } from "../../support/tdp.ts";

const PAGE = 4096;
const FAR = 0x4_0000;
const LATENCY = 100_000;

for (const backend of BACKENDS) {
  describe(`the host's own accesses to a page that is away (${backend})`, () => {
    const FLAG = FAR + 8;

    /** An interrupt whose EOI is paravirtual, and whose flag's page is away when it comes. */
    function interrupted(fails: boolean): { vm: Vm; took: number; flags: number[] } {
      const rig = trackedRig(backend, { disk: { ...DISK, fails: () => fails } });
      const { vm } = rig;
      const flags: number[] = [];
      let took = 0;
      rig.on(0x51, function* handler(cpu) {
        flags.push(vm.memory.word(FLAG));
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | KVM_MSR_ENABLED);
        yield cpu.sti();
        yield cpu.out8(0x80, 1);
        straight(vm.evict(FAR, PAGE));
        const start = vm.bootstrap.clock;
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x51);
        yield cpu.work(1);
        took = vm.bootstrap.clock - start;
      });
      return { vm, took, flags };
    }

    it("wait for it, as put_user does: PV EOI is armed", () => {
      const { vm, took, flags } = interrupted(false);
      assertEquals(flags, [1]);
      assert(took >= LATENCY, `${took} cycles`);
      assertEquals([vm.residency!.state(FAR), vm.bootstrap.stats.pf_waits], ["present", 0]);
    });

    it("fail where it cannot be read, as put_user does: PV EOI is not armed, and nothing else happens", () => {
      const { vm, flags } = interrupted(true);
      assertEquals(flags, [0]);
      assertEquals([vm.residency!.state(FAR), vm.bootstrap.pvEoi.pending], ["absent", false]);
    });

    it("are the emulator's too, for an operand that is only in part MMIO", () => {
      const base = 2 ** 30;
      const rig = trackedRig(backend, { slots: [{ base, size: PAGE }] });
      const { vm } = rig;
      vm.userspaceMmioDevice = { access: () => 0xaabbn };
      straight(vm.evict(base, PAGE));
      vm.memory.setWord(base + PAGE - 4, 0x1122_3344);
      rig.finish(function* (cpu) {
        yield cpu.load32(base + PAGE - 2);
        assertEquals(cpu.eax.toString(16), "aabb1122");
      });
      assertEquals(vm.residency!.state(base), "present");
    });
  });

  describe(`a guest's own tables that are away when KVM walks them (${backend})`, () => {
    /** An MMIO access whose last table goes just before it is emulated. */
    function walked(fails: boolean): { rig: PagingRig; table: number; took: number } {
      const rig = new PagingRig({ vm: { backend, disk: { ...DISK, fails: () => fails } } });
      const { vm } = rig;
      const linear = -0x20_0000;
      rig.map(linear, 0xc000_0000);
      const table = rig.entry(linear);
      vm.userspaceMmioDevice = { access: () => 0x77n };
      const add = vm.mmioMarks.add.bind(vm.mmioMarks);
      vm.mmioMarks.add = (address) => {
        add(address);
        straight(vm.evict(table, 1));
      };
      let took = 0;
      rig.fixups();
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        const start = vm.bootstrap.clock;
        const told = yield* tells(() => cpu.load32(linear));
        took = vm.bootstrap.clock - start;
        assertEquals([told, cpu.eax], fails ? ["#PF(0)", cpu.eax] : ["ok", 0x77]);
      });
      return { rig, table, took };
    }

    it("are brought in, while it waits", () => {
      const { rig: { vm }, table, took } = walked(false);
      assertEquals([vm.residency!.state(table), vm.bootstrap.stats.pf_waits], ["present", 0]);
      assert(took >= LATENCY, `${took} cycles`);
    });

    it("make it a page fault of the guest's where they cannot be read", () => {
      const { rig, table } = walked(true);
      assertEquals([rig.vm.residency!.state(table), rig.lastFault?.cr2], ["absent", -0x20_0000]);
    });
  });
}
