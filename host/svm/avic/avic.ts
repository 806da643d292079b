/**
 * KVM's part of AVIC for one vCPU (arch/x86/kvm/svm/avic.c): when hardware uses it, with which pointers and in which mode,
 * and what its table entry says of where the vCPU is.
 *
 *     guest's APIC     processor has AVIC                 x2AVIC
 *     xAPIC mode       AVIC                               AVIC
 *     x2APIC mode      hybrid: MSRs exit, and KVM         x2AVIC
 *                      rings doorbells
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";
import type { Steps } from "../../core/mod.ts";
import { setApicvInhibit } from "../../kvm/apicv.ts";
import { REQ_TLB_FLUSH_CURRENT } from "../../kvm/requests.ts";
import type { Vcpu } from "../../kvm/vcpu.ts";
import type { SvmHardware } from "../hardware.ts";
import { NO_X2APIC_MSRS, X2AVIC_PERMISSIONS } from "../msr_permissions.ts";
import type { Vmcb } from "../vmcb.ts";
import { LogicalIds } from "./logical_ids.ts";
import { type AvicTables, avicTables, writePhysical } from "./tables.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_DEFAULT_BASE, APIC_PAGE_SIZE, AVIC_MAX_PHYSICAL_ID, X2AVIC_MAX_PHYSICAL_ID } = abi;

/** Where a vCPU is, before it has been anywhere. */
const NOWHERE = 0;

/** AVIC of one vCPU, as KVM keeps it. */
export class Avic {
  /** The vCPU. */
  declare readonly vcpu: Vcpu;
  /** Its entry of the logical table. */
  declare readonly logicalIds: LogicalIds;
  readonly #vmcb: Vmcb;
  readonly #tables: AvicTables;
  readonly #page: number;
  /** The host's CPU, and whether it has the vCPU: what the table would say if hardware might see it. */
  #hostId = NOWHERE;
  #running = false;
  #created = false;

  /** The AVIC of a vCPU that is being created (avic_init_vcpu): its page is reachable from now on. */
  constructor(vcpu: Vcpu, vmcb: Vmcb) {
    const { vm, lapic, machine } = vcpu;
    this.vcpu = vcpu;
    this.#vmcb = vmcb;
    this.#tables = avicTables(vm);
    this.#page = machine.hostMemory.adopt(lapic.page, APIC_PAGE_SIZE).address;
    this.logicalIds = new LogicalIds(lapic, this.#tables.logical.words);
    if (vcpu.vcpuId > this.#tables.lastId) setApicvInhibit(vm, "PHYSICAL_ID_TOO_BIG", true);
    else this.#writeEntry();
    // Before v6.0 KVM did not know what to do with an APIC in x2APIC mode: it must not be offered.
    if (vm.behaviour.avic !== "x2avic" && vcpu.cpuid.x2apic) setApicvInhibit(vm, "X2APIC", true);
  }

  // Whether hardware uses it.

  /** RESET and INIT (avic_init_vmcb). */
  reset(): void {
    const vmcb = this.#vmcb;
    vmcb.avicBackingPage = this.#page;
    vmcb.avicPhysicalTable = this.#tables.physical.address;
    vmcb.avicLogicalTable = this.#tables.logical.address;
    vmcb.avicApicBar = APIC_DEFAULT_BASE; // Elsewhere it is inhibited.
    // A new APIC is taken for one that uses AVIC, until the first KVM_RUN looks.
    if (!this.#created) vmcb.interceptCr8Write = false;
    this.#created = true;
    if (!this.vcpu.lapic.apicvActive) return;
    this.logicalIds.restore();
    this.#activate();
  }

  /** AVIC is in use from now on, or not any more (avic_refresh_apicv_exec_ctrl). */
  refresh(): void {
    const { apicvActive } = this.vcpu.lapic;
    this.modeChanged();
    if (this.vcpu.pcpu === undefined) return; // Nobody runs it yet.
    if (!apicvActive) this.#leave();
    else if (!this.vcpu.blocked) this.#arrive();
  }

  /** The APIC is in another mode, or AVIC is to be used, or not (avic_refresh_virtual_apic_mode). */
  modeChanged(): void {
    if (this.vcpu.lapic.x2apicMode && !this.vcpu.vm.x2avicEnabled) this.#deletePage();
    if (this.vcpu.lapic.apicvActive) {
      this.logicalIds.restore();
      this.#activate();
    } else {
      this.#deactivate();
    }
  }

  /**
   * To hardware that does not know x2APIC mode this vCPU would still have an xAPIC's page. All of them share the page
   * tables: none has it from now on (kvm_inhibit_apic_access_page).
   */
  #deletePage(): void {
    for (const { backend } of this.vcpu.vm.vcpus) (backend.hardware as SvmHardware).avic.pageDeleted = true;
  }

  #activate(): void {
    const vmcb = this.#vmcb;
    const { vm, lapic } = this.vcpu;
    const x2avic = this.vcpu.vm.x2avicEnabled && lapic.x2apicMode;
    vmcb.avic = true;
    vmcb.x2avic = x2avic;
    // What the guest had at the APIC's address while AVIC was not in use goes.
    if (!x2avic) this.vcpu.request(REQ_TLB_FLUSH_CURRENT);
    vmcb.avicMaxIndex = Math.min(vm.maxVcpuIds - 1, x2avic ? X2AVIC_MAX_PHYSICAL_ID : AVIC_MAX_PHYSICAL_ID);
    vmcb.x2apicPermissions = x2avic ? X2AVIC_PERMISSIONS : NO_X2APIC_MSRS;
    vmcb.avicDirty = true;
    // Hardware keeps V_TPR and the page together: no write of CR8 has to exit.
    if (!vm.quirk("avic-cr8-out-of-sync")) vmcb.interceptCr8Write = false;
  }

  #deactivate(): void {
    const vmcb = this.#vmcb;
    vmcb.avic = false;
    vmcb.x2avic = false;
    vmcb.avicMaxIndex = 0;
    vmcb.x2apicPermissions = NO_X2APIC_MSRS;
    vmcb.avicDirty = true;
    if (!this.vcpu.vm.quirk("avic-cr8-out-of-sync")) vmcb.interceptCr8Write = true;
  }

  // Where the vCPU is: each an access to the table.

  /** The thread is on a CPU (avic_vcpu_load). One that is about to sleep is not to be found. */
  *load(): Steps {
    yield;
    if (!this.vcpu.blocked) this.#arrive();
  }

  /** The thread leaves its CPU (avic_vcpu_put), or says that it will (avic_vcpu_blocking): it looks for requests after. */
  *put(): Steps {
    yield;
    this.#leave();
  }

  #arrive(): void {
    this.#hostId = this.vcpu.pcpu!.id;
    this.#running = true;
    this.#writeEntry();
  }

  #leave(): void {
    if (!this.#running) return;
    this.#running = false;
    // Without IPI virtualization the table has never said otherwise.
    if (this.vcpu.vm.enableIpiv) this.#writeEntry();
  }

  #writeEntry(): void {
    const { vcpuId, vm } = this.vcpu;
    writePhysical(this.#tables.physical.words, vcpuId, {
      page: this.#page,
      hostId: this.#hostId,
      running: this.#running && vm.enableIpiv,
    });
  }
}
