/**
 * Paravirtual end of interrupt (KVM_FEATURE_PV_EOI): the host sets a bit in this processor's memory when it is enough
 * to clear that bit. Clearing takes one instruction, so that an exit in between, and with it another interrupt, is seen.
 *
 * @module
 */

import {
  type Guest,
  KVM_MSR_ENABLED,
  KVM_PV_EOI_BIT,
  MSR_KVM_PV_EOI_EN,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { storeLong } from "../kernel/long.ts";
import { PERCPU_AREA } from "../kernel/memory_map.ts";
import { kvmParaHasFeature } from "../kvm_para.ts";
import type { PvDriver } from "./driver.ts";

const FLAG = PERCPU_AREA.fields.kvmApicEoi.offset;

/** The driver. */
export const pvEoi: PvDriver = {
  name: "pv-eoi",

  *probe(cpu: X86Cpu, kernel: Kernel): GuestValue<boolean> {
    if (!(yield* kvmParaHasFeature(cpu, "PV_EOI"))) return false;
    if (kernel.behaviour.eoiHook === "eoi") replaceEoi(kernel);
    else replaceEoiWrite(kernel);
    return true;
  },

  online,
  offline: disable,
  reboot: disable,

  *suspend(cpu: X86Cpu, kernel: Kernel): Guest {
    if (kernel.behaviour.teardownOnSuspendAndCrash) yield* disable(cpu);
  },

  *resume(cpu: X86Cpu, kernel: Kernel): Guest {
    if (kernel.behaviour.teardownOnSuspendAndCrash) yield* online(cpu, kernel);
  },

  *crash(cpu: X86Cpu, kernel: Kernel): Guest {
    if (kernel.behaviour.teardownOnSuspendAndCrash) yield* disable(cpu);
  },
};

/** The host may set the bit from here on; it must not find an old one set. */
function* online(cpu: X86Cpu, { bits }: Kernel): Guest {
  const flag = cpu.gsBase + FLAG;
  yield storeLong(cpu, bits, flag, 0);
  yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, flag | KVM_MSR_ENABLED);
}

/** A bit that the host leaves set would make whoever owns this memory next skip an EOI. */
function* disable(cpu: X86Cpu): Guest {
  yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, 0);
}

/** Since v6.6: one static call for the driver in use. */
function replaceEoi(kernel: Kernel): void {
  for (const apic of kernel.apicDrivers) {
    apic.eoi = function* pvEoiEnd(cpu: X86Cpu): Guest {
      yield cpu.btr(cpu.gsBase + FLAG, KVM_PV_EOI_BIT);
      if (cpu.cf) return; // The host does the rest at the next exit.
      yield* apic.nativeEoi(cpu);
    };
  }
}

/** 2012 and after: eoi_write of every driver that is compiled in, whichever is in use. */
function replaceEoiWrite(kernel: Kernel): void {
  for (const apic of kernel.apicDrivers) {
    const native = apic.eoiWrite;
    apic.eoiWrite = function* pvEoiWrite(cpu: X86Cpu, register: number, value: number): Guest {
      yield cpu.btr(cpu.gsBase + FLAG, KVM_PV_EOI_BIT);
      if (cpu.cf) return;
      if (kernel.behaviour.eoiFallback === "write") yield* apic.write(cpu, register, value);
      else yield* native(cpu, register, value);
    };
  }
}
