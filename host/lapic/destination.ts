/**
 * Which local APICs a message means, asked of one APIC at a time (SDM 3A 11.6.2): the slow and obvious way, and what
 * the optimized map must agree with.
 *
 * @module
 */

import {
  APIC_BROADCAST,
  APIC_DEST_ALLBUT,
  APIC_DEST_ALLINC,
  APIC_DEST_SELF,
  APIC_DFR,
  APIC_DFR_CLUSTER,
  APIC_DFR_FLAT,
  APIC_LDR,
  X2APIC_BROADCAST,
} from "../../abi/mod.ts";
import type { Lapic } from "./lapic.ts";

/**
 * Whether `target` takes a message from `source` (undefined for devices). Software-disabled APICs match as well: the
 * accepting side drops what they cannot take.
 */
export function matchDestination(
  target: Lapic,
  source: Lapic | undefined,
  shorthand: number,
  destination: number,
  logical: boolean,
): boolean {
  switch (shorthand) {
    case 0: {
      const mda = messageDestination(target, source, destination);
      return logical ? matchLogical(target, mda) : matchPhysical(target, mda);
    }
    case APIC_DEST_SELF:
      return target === source;
    case APIC_DEST_ALLINC:
      return true;
    case APIC_DEST_ALLBUT:
      return target !== source;
    default:
      return false;
  }
}

/**
 * KVM's broadcast quirk: a device's 0xff means everybody for an x2APIC as well, unless user space switched that off
 * (KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).
 */
function messageDestination(target: Lapic, source: Lapic | undefined, destination: number): number {
  const quirk = !target.vcpu.vm.x2apicBroadcastQuirkDisabled;
  return quirk && source === undefined && destination === APIC_BROADCAST && target.x2apicMode
    ? X2APIC_BROADCAST
    : destination;
}

function broadcast(target: Lapic, mda: number): boolean {
  return mda === (target.x2apicMode ? X2APIC_BROADCAST : APIC_BROADCAST);
}

function matchPhysical(target: Lapic, mda: number): boolean {
  if (broadcast(target, mda)) return true;
  // KVM's hotplug hack: IDs that xAPIC cannot encode reach vCPUs in xAPIC mode too.
  if (target.x2apicMode || mda > 0xff) return mda === target.x2apicId;
  return mda === target.xapicId;
}

function matchLogical(target: Lapic, mda: number): boolean {
  if (broadcast(target, mda)) return true;
  const ldr = target.get(APIC_LDR);
  if (target.x2apicMode) return ldr >>> 16 === mda >>> 16 && (ldr & mda & 0xffff) !== 0;
  const id = ldr >>> 24;
  switch (target.get(APIC_DFR)) {
    case APIC_DFR_FLAT:
      return (id & mda) !== 0;
    case APIC_DFR_CLUSTER:
      return id >>> 4 === mda >>> 4 && (id & mda & 0xf) !== 0;
    default:
      return false;
  }
}
