/**
 * The x2APIC drivers: registers are MSRs. In physical mode an IPI has one destination, in cluster mode it reaches up to
 * 16 processors of one cluster (x2apic_phys.c, x2apic_cluster.c).
 *
 * @module
 */

import {
  APIC_DEST_LOGICAL,
  APIC_SELF_IPI,
  APICBASE_ENABLE,
  APICBASE_X2APIC_ENABLE,
  type Guest,
  IA32_APICBASE,
  X2APIC_ICR,
  X2APIC_MSR_BASE,
  x2apicLdr,
  type X86Cpu,
} from "../../abi/mod.ts";
import { takeFirst } from "../kernel/cpumask.ts";
import { percpu } from "../kernel/memory_map.ts";
import { ApicDriver, icrLow, withInterruptsOff } from "./driver.ts";

/** Drives x2APICs: what both modes share. */
export abstract class X2apicDriver extends ApicDriver {
  /** IDs have 32 bits, and all ones are everybody's. */
  readonly maxApicId = 0xffff_fffe;

  /** Switches to x2APIC mode; there is no way back but through disabling. */
  override *enable(cpu: X86Cpu): Guest {
    yield cpu.rdmsr(IA32_APICBASE);
    const low = cpu.eax;
    if ((low & APICBASE_X2APIC_ENABLE) !== 0) return;
    yield cpu.wrmsr(IA32_APICBASE, low | APICBASE_ENABLE | APICBASE_X2APIC_ENABLE, cpu.edx);
  }

  /** RDMSR. */
  override *read(cpu: X86Cpu, register: number): Guest {
    yield cpu.rdmsr(X2APIC_MSR_BASE + (register >>> 4));
  }

  /** WRMSR. */
  override *write(cpu: X86Cpu, register: number, value: number): Guest {
    yield cpu.wrmsr(X2APIC_MSR_BASE + (register >>> 4), value);
  }

  /** One write of all 64 bits. */
  override *writeIcr(cpu: X86Cpu, low: number, destination: number): Guest {
    yield cpu.wrmsr(X2APIC_ICR, low, destination);
  }

  /** x2APICs have a register of its own for that. */
  override sendIpiSelf(cpu: X86Cpu, vector: number): Guest {
    return this.write(cpu, APIC_SELF_IPI, vector);
  }
}

/** Drives x2APICs with physical destinations: what Linux does on KVM without interrupt remapping. */
export class X2apicPhysicalDriver extends X2apicDriver {
  /** The driver's name. */
  readonly name = "x2apic-physical";
}

/** Drives x2APICs with logical destinations. */
export class X2apicClusterDriver extends X2apicDriver {
  /** The driver's name. */
  readonly name = "x2apic-cluster";

  /** One IPI a cluster, in the order in which the mask's processors name them. */
  protected override sendMask(cpu: X86Cpu, mask: number, vector: number, butSelf: boolean): Guest {
    return withInterruptsOff(cpu, this.#clusters(cpu, mask, vector, butSelf));
  }

  *#clusters(cpu: X86Cpu, mask: number, vector: number, butSelf: boolean): Guest {
    const words = yield* this.targets(cpu, mask, butSelf);
    const destinations = new Map<number, number>();
    for (let target = takeFirst(words); target >= 0; target = takeFirst(words)) {
      yield cpu.load32(percpu(target, "apicId"));
      const logical = x2apicLdr(cpu.eax);
      const cluster = logical >>> 16;
      destinations.set(cluster, (destinations.get(cluster) ?? 0) | logical);
    }
    for (const destination of destinations.values()) {
      yield* this.writeIcr(cpu, APIC_DEST_LOGICAL | icrLow(vector), destination);
    }
  }

  /** Sends to one processor by its logical ID. */
  override *sendIpi(cpu: X86Cpu, target: number, vector: number): Guest {
    yield cpu.load32(this.apicIdAddress(target));
    yield* this.writeIcr(cpu, APIC_DEST_LOGICAL | icrLow(vector), x2apicLdr(cpu.eax));
  }
}
