import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import { REQ_EVENT } from "../../../host/kvm/requests.ts";
import { straight, type Vm } from "../../../host/mod.ts";
import { enter, setUp, still, tryingRig, vectors, write } from "../../support/apic.ts";
import { exits, mark } from "../../support/events.ts";
import { descriptor, put, vmx } from "../../support/posted.ts";

/** Posts as hardware does whose notification nobody hears. */
function post({ bootstrap }: Vm, vector: number): void {
  descriptor(bootstrap).testAndSetPir(vector);
  descriptor(bootstrap).requestNotification();
}

describe("what was posted to a vCPU that has given APICv up", () => {
  /** Synchronizes while `requested` waits in the IRR; whether that makes KVM look at events. */
  function looks(requested: number, posted: readonly number[]): boolean {
    const vm = still({ acceleration: "ipiv" });
    const { bootstrap } = vm;
    setUp(bootstrap.lapic, "x2apic");
    put(bootstrap, "runs in guest mode");
    setApicvInhibit(vm, "BLOCKIRQ", true);
    bootstrap.lapic.apicvActive = false;
    bootstrap.lapic.setIrr(requested);
    for (const vector of posted) post(vm, vector);
    bootstrap.requests = 0;
    const highest = straight(vmx(bootstrap).posted.synchronize());
    assertEquals(vectors(bootstrap.lapic, 0x200), [...new Set([requested, ...posted])].sort((a, b) => a - b));
    assertEquals(highest, Math.max(requested, ...posted));
    return (bootstrap.requests & REQ_EVENT) !== 0;
  }

  it("makes KVM look where the highest of all requests is new, and not for a lower one (kvm_apic_update_irr)", () => {
    assertEquals(looks(0x51, [0x61]), true);
    assertEquals(looks(0x51, [0x41, 0x61]), true);
    assertEquals(looks(0x51, [0x41]), false);
    assertEquals(looks(0x51, [0x51]), false, "it is requested already");
    assertEquals(looks(0x51, []), false);
  });

  it("is looked at before a fast path enters the guest again", () => {
    const rig = tryingRig({ vm: { acceleration: "ipiv", vcpus: 2, trace: 1 << 12 } });
    const { vm } = rig;
    let took = 0;
    rig.on(0x41, function* (cpu) {
      took++;
      yield* write(cpu, "x2apic", 0x0b0, 0);
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      setApicvInhibit(vm, "BLOCKIRQ", true);
      yield cpu.cpuid(0); // Once around the run loop.
      yield cpu.sti();
      post(vm, 0x41);
      const from = mark(vm);
      yield* write(cpu, "x2apic", 0x300, 0x51, 1); // To an APIC that takes nothing: it is disabled by software.
      yield cpu.work(1000);
      assertEquals(took, 1);
      assertEquals(exits(vm, from).map(([name]) => name), ["MSR_WRITE", "MSR_WRITE"]); // The second is its EOI.
      yield cpu.cli();
    });
  });
});
