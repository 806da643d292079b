import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { MSR_KVM_PV_EOI_EN, X2APIC_EOI } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { enter } from "../../support/apic.ts";
import { tracingRig } from "../../support/events.ts";
import type { RigOptions } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";
import { endOfInterrupt, FLAG, HIGH, MIDDLE, selfIpi } from "../../support/pv_eoi.ts";

for (const backend of BACKENDS) {
  const rigWith = (options: RigOptions = {}) => tracingRig({ ...options, vm: { backend, ...options.vm } });

  describe(`why PV EOI is not armed (${backend})`, () => {
    it("is told, in the order in which KVM looks", () => {
      const rig = rigWith();
      const { pvEoi } = rig.vm.bootstrap;
      const told = [pvEoi.explain()];
      rig.on(MIDDLE, function* (cpu) {
        told.push(pvEoi.explain());
        yield* endOfInterrupt(cpu);
      }).on(HIGH, function* (cpu) {
        told.push(pvEoi.explain());
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        told.push(pvEoi.explain());
        yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | 1);
        yield cpu.sti();
        yield selfIpi(cpu, MIDDLE);
        yield cpu.cpuid(0);
        told.push(pvEoi.explain());
        yield cpu.cli();
        yield* route(cpu, 10, { vector: HIGH, level: true });
        yield cpu.sti();
        rig.vm.ioapic.setLine(10, true);
        rig.vm.ioapic.setLine(10, false);
        yield cpu.cpuid(0);
        yield cpu.cli();
      });
      assertEquals(told, [
        "the local APIC is disabled",
        "the guest has not enabled it",
        "armed",
        "no in-service vector is known",
        "the I/O APIC must see this EOI",
      ]);
    });
  });
}
