/**
 * The root that a vCPU has loaded (struct kvm_mmu, root.hpa), and when it loads one anew.
 *
 * @module
 */

import {
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  CR4_PCIDE,
  CR4_PGE,
  CR4_PKE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_LME,
  EFER_NX,
} from "../../../abi/mod.ts";
import * as requests from "../requests.ts";
import type { Vcpu } from "../vcpu.ts";

const { REQ_MMU_RELOAD, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST } = requests;

/** CR4.PSE: pages of 4 MiB. */
const CR4_PSE = 1 << 4;
/** Registers' bits that a guest's page tables are read with (KVM_MMU_CR0_ROLE_BITS and its like). */
const CR0_ROLE = CR0_PG | CR0_WP;
const CR4_ROLE = CR4_PSE | CR4_PAE | CR4_SMEP | CR4_SMAP | CR4_PKE;
const EFER_ROLE = EFER_LME | EFER_NX;

/**
 * kvm_mmu_load: the valid root, and a flush of whatever this CPU remembers of a root at that address: it may be a page that
 * was another root before.
 */
export function loadRoot(vcpu: Vcpu): void {
  const tables = vcpu.vm.mmu.allocateRoot();
  vcpu.requests &= ~REQ_MMU_RELOAD;
  vcpu.root = tables;
  tables.users++;
  vcpu.backend.loadMmuPgd(tables.root.address);
  vcpu.backend.flushTlbCurrent();
}

/** kvm_mmu_unload: the next entry loads a root. */
function unloadRoot(vcpu: Vcpu): void {
  const tables = vcpu.root;
  if (tables === undefined) return;
  vcpu.root = undefined;
  vcpu.request(REQ_MMU_RELOAD);
  tables.put();
}

/** kvm_mmu_free_obsolete_roots. */
export function unloadObsoleteRoot(vcpu: Vcpu): void {
  if (vcpu.root?.invalid === true) unloadRoot(vcpu);
}

/** kvm_post_set_cr0: clearing PG flushes what the guest has cached. */
export function postSetCr0(vcpu: Vcpu, before: number, after: number): void {
  const changed = before ^ after;
  if ((changed & CR0_PG) !== 0 && (after & CR0_PG) === 0) vcpu.request(REQ_TLB_FLUSH_GUEST);
  // A change of WP alone leaves the second dimension's root as it is.
  if (changed !== CR0_WP && (changed & CR0_ROLE) !== 0) unloadRoot(vcpu);
}

/** kvm_post_set_cr4: all PCIDs go with PGE and PCIDE, the current one's at least with PAE and SMEP. */
export function postSetCr4(vcpu: Vcpu, before: number, after: number): void {
  const changed = before ^ after;
  if ((changed & CR4_ROLE) !== 0) unloadRoot(vcpu);
  if ((changed & CR4_PGE) !== 0 || (before & ~after & CR4_PCIDE) !== 0) {
    vcpu.request(REQ_TLB_FLUSH_GUEST);
  } else if ((changed & CR4_PAE) !== 0 || (~before & after & CR4_SMEP) !== 0) {
    vcpu.request(REQ_TLB_FLUSH_CURRENT);
  }
}

/** What set_efer does behind a change. */
export function postSetEfer(vcpu: Vcpu, before: number, after: number): void {
  if (((before ^ after) & EFER_ROLE) !== 0) unloadRoot(vcpu);
}

/** What kvm_vcpu_reset does: INIT flushes, whoever the vendor is. `cr0` is what it was before. */
export function mmuReset(vcpu: Vcpu, cr0: number, init: boolean): void {
  if ((cr0 & CR0_PG) !== 0) unloadRoot(vcpu);
  if (init) vcpu.request(REQ_TLB_FLUSH_GUEST);
}
