import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Invalidation, Vcpu, Vmcs } from "../../../host/mod.ts";
import { setupVmx } from "../../../host/mod.ts";
import {
  type Flushed,
  flushTlbAll,
  flushTlbCurrent,
  flushTlbGuest,
  flushTlbGva,
} from "../../../host/vmx/tlb.ts";

const ROOT = 0x10_0000_5000;
const LINEAR = -0x7000;

/** What each flush executes, on a vCPU with and without EPT, a VPID and a root. */
function executes(
  flush: (vmx: Flushed) => void,
  { ept = true, vpid = 7, root = true }: { ept?: boolean; vpid?: number; root?: boolean },
): Invalidation[] {
  const seen: Invalidation[] = [];
  const vcpu = {
    pcpu: { tlbInUse: { invalidate: (operation: Invalidation) => seen.push(operation) } },
    cost: { invalidateTlb: 300 },
    charge() {},
    root: root ? { root: { address: ROOT } } : undefined,
  } as unknown as Vcpu;
  const setup = setupVmx("apicv", { parameters: { ept, vpid: vpid !== 0 } });
  flush({ vcpu, vmcs: { vpid } as unknown as Vmcs, setup });
  return seen;
}

const gva = (vmx: Flushed): void => flushTlbGva(vmx, LINEAR);

// arch/x86/kvm/vmx/vmx.c, vmx_flush_tlb_all, _current, _guest, _gva.
describe("a flush on VMX", () => {
  it("of everything is INVEPT of all roots with EPT, with a VPID as without, and INVVPID of all otherwise", () => {
    assertEquals(executes(flushTlbAll, {}), [{ operation: "INVEPT type 2" }]);
    assertEquals(executes(flushTlbAll, { vpid: 0 }), [{ operation: "INVEPT type 2" }]);
    assertEquals(executes(flushTlbAll, { root: false }), [{ operation: "INVEPT type 2" }]);
    assertEquals(executes(flushTlbAll, { ept: false }), [{ operation: "INVVPID type 2" }]);
    assertEquals(executes(flushTlbAll, { ept: false, vpid: 0 }), []);
  });

  it("of the current root is INVEPT of that root with EPT, INVVPID otherwise, and nothing without a root", () => {
    assertEquals(executes(flushTlbCurrent, {}), [{ operation: "INVEPT type 1", root: ROOT }]);
    assertEquals(executes(flushTlbCurrent, { vpid: 0 }), [{ operation: "INVEPT type 1", root: ROOT }]);
    assertEquals(executes(flushTlbCurrent, { ept: false }), [{ operation: "INVVPID type 1", vpid: 7 }]);
    assertEquals(executes(flushTlbCurrent, { root: false }), []);
    assertEquals(executes(flushTlbCurrent, { ept: false, root: false }), []);
  });

  it("of the guest's translations, or of one, is INVVPID, and nothing without a VPID", () => {
    assertEquals(executes(flushTlbGuest, {}), [{ operation: "INVVPID type 1", vpid: 7 }]);
    assertEquals(executes(gva, {}), [{ operation: "INVVPID type 0", vpid: 7, address: LINEAR }]);
    for (const flush of [flushTlbGuest, gva]) assertEquals(executes(flush, { vpid: 0 }), []);
  });
});
