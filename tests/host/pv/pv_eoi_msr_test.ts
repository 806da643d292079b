import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { MSR_KVM_PV_EOI_EN, u64, X2APIC_EOI, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, HostFailure, type Quirk, type Slot } from "../../../host/mod.ts";
import { type Asking, completes, enter, tryingRig, vectors } from "../../support/apic.ts";
import { count, eventsOf, tracingRig } from "../../support/events.ts";
import type { Rig, RigOptions } from "../../support/guests.ts";
import { enable, endOfInterrupt, type Eoi, FLAG, MIDDLE, selfIpi } from "../../support/pv_eoi.ts";

const ISR = 0x100;

for (const backend of BACKENDS) {
  const rigWith = (options: RigOptions = {}) => tracingRig({ ...options, vm: { backend, ...options.vm } });

  describe(`MSR_KVM_PV_EOI_EN (${backend})`, () => {
    const MEMORY = 2 ** 21;
    const READONLY = 0x1_0000_0000;
    const slots = [{ base: READONLY, size: 0x1000, readonly: true }];

    it("takes a 4-byte aligned address that the host can write to, or any aligned one that is not enabled", () => {
      const value = fc.oneof(
        fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        fc.bigInt({ min: 0n, max: BigInt(MEMORY) + 64n }),
        fc.bigInt({ min: BigInt(MEMORY) - 8n, max: BigInt(MEMORY) + 8n }),
        fc.bigInt({ min: BigInt(READONLY) - 8n, max: BigInt(READONLY) + 8n }),
      );
      fc.assert(
        fc.property(fc.array(value, { maxLength: 8 }), (values) => {
          const rig = tryingRig({ vm: { backend, memory: MEMORY, slots } });
          rig.finish(function* (cpu) {
            let kept = 0n;
            for (const value of values) {
              const address = value & ~1n;
              const good = address % 4n === 0n && ((value & 1n) === 0n || address < BigInt(MEMORY));
              const [low, high] = [Number(value & 0xffff_ffffn), Number(value >> 32n)];
              assertEquals(
                yield* completes(cpu.wrmsr(MSR_KVM_PV_EOI_EN, low, high)),
                good,
                `0x${value.toString(16)}`,
              );
              if (good) kept = value;
              yield cpu.rdmsr(MSR_KVM_PV_EOI_EN);
              assertEquals(u64(cpu.eax, cpu.edx), kept, "reads what was written last, verbatim");
            }
          });
        }),
        {
          numRuns: 60,
          examples: [[[3n, 2n, 1n, 0n, BigInt(MEMORY) | 1n, BigInt(READONLY) | 1n, BigInt(READONLY)]]],
        },
      );
    });

    it("writes nothing to memory when it is enabled or disabled, and one byte when it is armed", () => {
      const rig = rigWith();
      const bytes = () => Array.from({ length: 12 }, (_, i) => rig.vm.memory.byte(FLAG - 4 + i));
      const ones = Array(12).fill(0xff);
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(bytes(), ones.with(4, 1));
        assertEquals(yield* endOfInterrupt(cpu), "flag");
      });
      rig.finish(function* (cpu) {
        for (let i = -4; i < 8; i += 4) yield cpu.store32(FLAG + i, 0xffff_ffff);
        yield* enable(cpu);
        assertEquals(bytes(), ones);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cli();
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0);
        assertEquals(bytes(), ones.with(4, 0));
      });
    });

    it("is each vCPU's own, and cleared by INIT", () => {
      const rig = rigWith({ vm: { vcpus: 2 } });
      rig.finish(function* (cpu) {
        yield* enable(cpu);
        assertEquals(rig.vm.vcpus.map(({ pvEoi }) => pvEoi.enabled), [true, false]);
      });
      const [vcpu] = rig.vm.vcpus;
      rig.vm.engine.running = vcpu;
      vcpu.reset(true);
      assertEquals([vcpu.pvEoi.msrLow, vcpu.pvEoi.enabled], [0, false]);
    });

    it("that fails to be enabled elsewhere keeps its value, and does nothing until the slots change", () => {
      const rig = rigWith();
      const ends: Eoi[] = [];
      rig.on(MIDDLE, function* (cpu) {
        ends.push(yield* endOfInterrupt(cpu));
      }).finish(function* (cpu) {
        yield* enable(cpu);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        assertEquals(yield* completes(cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0x8000_0001)), false);
        yield cpu.rdmsr(MSR_KVM_PV_EOI_EN);
        assertEquals(cpu.eax, FLAG | 1);
        yield selfIpi(cpu, MIDDLE);
        rig.vm.memory.addSlot({ base: 0x4000_0000, size: 0x1000 });
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cli();
      });
      assertEquals(ends, ["flag", "register", "flag"]);
    });
  });

  describe(`a PV EOI flag that disappears (${backend})`, () => {
    const AWAY = 0x4000_0000;

    /** A rig whose flag is in a slot of its own, and whose handler begins with it armed. */
    function rigAway(quirks: readonly Quirk[] = []): { rig: Rig; remove: () => void } {
      const rig = rigWith({ machine: { quirks } });
      const slot: Slot = rig.vm.memory.addSlot({ base: AWAY, size: 0x1000 });
      return { rig, remove: () => rig.vm.memory.removeSlot(slot) };
    }

    function* enableAway(cpu: X86Cpu): Asking<void> {
      yield* enter(cpu, "x2apic");
      yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, AWAY | 1);
      yield cpu.sti();
    }

    it("before it is armed is not armed", () => {
      const { rig, remove } = rigAway();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(rig.vm.bootstrap.pvEoi.pending, false);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enableAway(cpu);
        remove();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cli();
      });
      assertEquals([count(rig.vm, "kvm_eoi"), count(rig.vm, "kvm_pv_eoi")], [1, 0]);
    });

    it("while it is armed counts as cleared, at each exit anew", () => {
      const { rig, remove } = rigAway();
      rig.on(MIDDLE, function* (cpu) {
        assertEquals(rig.vm.bootstrap.pvEoi.pending, true);
        remove();
        yield cpu.cpuid(0);
        assertEquals(vectors(rig.vm.bootstrap.lapic, ISR), [], "the interrupt was ended for the guest");
        assertEquals(rig.vm.bootstrap.pvEoi.pending, true);
        yield cpu.cpuid(0);
      }).finish(function* (cpu) {
        yield* enableAway(cpu);
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cli();
        const ended = eventsOf(rig.vm, "kvm_pv_eoi").map(({ args }) => args[1] | 0);
        assertEquals(ended, [MIDDLE, -1]);
      });
    });

    /** CVE-2026-72284: the guest disables what KVM believes armed. */
    function disable(quirks: readonly Quirk[]): void {
      const { rig, remove } = rigAway(quirks);
      rig.on(MIDDLE, function* (cpu) {
        remove();
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0);
        yield cpu.cpuid(0);
        assertEquals(rig.vm.bootstrap.pvEoi.pending, false);
      }).finish(function* (cpu) {
        yield* enableAway(cpu);
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cli();
      });
      assertEquals(count(rig.vm, "kvm_eoi"), 1);
    }

    it("and is disabled then stopped the host (quirk pv-eoi-disable-while-pending)", () => {
      assertThrows(
        () => disable(["pv-eoi-disable-while-pending"]),
        HostFailure,
        "BUG_ON(!pv_eoi_enabled(vcpu))",
      );
    });

    it("and is disabled then does no harm today", () => disable([]));
  });
}
