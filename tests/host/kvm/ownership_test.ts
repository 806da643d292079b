import { assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  KVM_MSR_ENABLED,
  MSR_KVM_PV_EOI_EN,
  X2APIC_EOI,
  X2APIC_ICR,
  X2APIC_SELF_IPI,
} from "../../../abi/mod.ts";
import { crash, type GuestSemantics, percpu, suspend } from "../../../guest/mod.ts";
import { BACKENDS, type OwnershipFailure, type Vm } from "../../../host/mod.ts";
import { AP_START, enableX2apic, Rig } from "../../support/guests.ts";
import { KernelRig } from "../../support/kernels.ts";

const FLAG = 0x4_0008;
const VECTOR = 0x51;

/** A rig whose handler ends interrupts by the register. */
function watchedRig(backend: Vm["backend"], ownership = true, vcpus = 1): Rig {
  const rig = new Rig({ vm: { backend, ownership, vcpus } });
  return rig.on(VECTOR, function* handler(cpu) {
    yield cpu.wrmsr(X2APIC_EOI, 0);
  });
}

function failures({ ownership }: Vm): readonly OwnershipFailure[] {
  return ownership!.failures;
}

for (const backend of BACKENDS) {
  describe(`what a guest lends the host by MSR_KVM_PV_EOI_EN (${backend})`, () => {
    it("is lent from an accepted write on, and the host's writes there are no failures", () => {
      const rig = watchedRig(backend);
      const { vm } = rig;
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        assertEquals(vm.ownership!.grants(), []);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | KVM_MSR_ENABLED);
        const [grant] = vm.ownership!.grants();
        assertEquals([grant.purpose, grant.vcpuId, grant.address, grant.bytes], ["PV EOI", 0, FLAG, 4]);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, VECTOR);
        yield cpu.work(1);
      });
      assertEquals(failures(vm), []);
    });

    it("is not lent by a write that raises #GP", () => {
      const rig = watchedRig(backend).on(13, function* gp(cpu) {
        yield cpu.pause();
        cpu.fixup();
      });
      const { vm } = rig;
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        try {
          yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | 2 | KVM_MSR_ENABLED);
        } catch { /* #GP */ }
        assertEquals(vm.ownership!.grants(), []);
      });
    });

    it("is the guest's again behind a write of 0: no interrupt makes the host write", () => {
      const rig = watchedRig(backend);
      const { vm } = rig;
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | KVM_MSR_ENABLED);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, VECTOR);
        yield cpu.work(1);
      });
      assertEquals([vm.ownership!.grants(), failures(vm)], [[], []]);
    });

    it("would be written by a host that forgets the guest's write of 0: the oracle says where, and who lent it", () => {
      const rig = watchedRig(backend);
      const { vm } = rig;
      const { pvEoi } = vm.bootstrap;
      const write = pvEoi.write.bind(pvEoi);
      pvEoi.write = (low, high) => (low & KVM_MSR_ENABLED) === 0 || write(low, high);
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | KVM_MSR_ENABLED);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, VECTOR);
        yield cpu.work(1);
      });
      const [first] = failures(vm);
      assertEquals([first.address, first.bytes, first.purpose, first.vcpuId], [FLAG, 1, "PV EOI", 0]);
      assertMatch(
        first.message,
        /0x40008 for PV EOI of vCPU 0: vCPU 0 lent .* until MSR 0x4b564d04 was switched off/,
      );
    });

    it("is the guest's again behind INIT", () => {
      const rig = watchedRig(backend, true, 2);
      const { vm } = rig;
      let lent = 0;
      rig.aps(function* ap(cpu) {
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | KVM_MSR_ENABLED);
        lent = vm.ownership!.grants().length;
        for (;;) yield cpu.hlt();
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.wrmsr(X2APIC_ICR, 0x4600 | (AP_START >>> 12), 1);
        yield cpu.work(100_000);
        yield cpu.wrmsr(X2APIC_ICR, 0x4500, 1);
        yield cpu.work(100_000);
      });
      assertEquals([lent, vm.ownership!.grants()], [1, []]);
    });

    it("is nobody's business where nobody watches, and the host writes by its short way", () => {
      const rig = watchedRig(backend, false);
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | KVM_MSR_ENABLED);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, VECTOR);
        yield cpu.work(1);
      });
      assertEquals(rig.vm.ownership, undefined);
    });

    it("does not forbid what the emulator writes for the guest", () => {
      const base = 2 ** 30;
      const rig = new Rig({ vm: { backend, ownership: true, slots: [{ base, size: 4096 }] } });
      rig.finish(function* (cpu) {
        yield cpu.store32(base + 4094, 0x1234_5678); // The other half is MMIO.
      });
      assertEquals([rig.word(base + 4092), failures(rig.vm)], [0x5678_0000, []]);
    });
  });

  // CVE-2021-47112: kernels before v5.13 left paravirtual features on when they were suspended or crashed (8b79feffeca2,
  // 3d6b84132d2a), and the host went on writing into what had become another kernel's memory.
  describe(`a kernel that another one takes the place of (${backend})`, () => {
    /** The kernel goes, and what comes next takes an interrupt in the same memory. */
    function replaced(guestSemantics: GuestSemantics, way: typeof crash | typeof suspend): Vm {
      const rig = new KernelRig({ cpus: 1, guestSemantics, vm: { backend, ownership: true } });
      rig.kernel.irq(0x40, function* (cpu) {
        yield cpu.pause();
      });
      rig.run(function* (cpu, kernel) {
        yield* kernel.apic.sendIpiSelf(cpu, 0x40);
        yield cpu.work(1000);
        assertEquals(failures(rig.vm), [], "while it is its own");
        yield* way(cpu, kernel);
        rig.vm.ownership!.handedOver("another kernel was started");
        yield cpu.sti();
        yield* kernel.apic.sendIpiSelf(cpu, 0x40);
        yield cpu.work(1000);
      });
      return rig.vm;
    }

    for (const [name, way] of [["crashes", crash], ["is suspended", suspend]] as const) {
      it(`finds its flag written where the kernel of 2018 ${name}`, () => {
        const vm = replaced("2018", way);
        const [first] = failures(vm);
        assertEquals(first?.address, percpu(0, "kvmApicEoi"));
        assertMatch(first.message, /until another kernel was started at \d+; allowed is nothing$/);
      });

      it(`finds nothing written where today's ${name}`, () => {
        assertEquals(failures(replaced("v6.19", way)), []);
      });
    }
  });
}
