import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { LimitExceeded, type Quirk } from "../../../host/mod.ts";
import { VmEntryFailed } from "../../../host/vmx/mod.ts";
import { APIC_MODES, type ApicMode, enter, send, tryingRig, write } from "../../support/apic.ts";
import type { Rig } from "../../support/guests.ts";

/**
 * A handler of class 9 holds a vector of class 3 back, with its own class and with the task priority; then it lowers the
 * task priority, and goes on as it likes. KVM has written a threshold of 3, when it looked.
 */
function lowered(mode: ApicMode, quirks: readonly Quirk[] = []): { rig: Rig; run: () => string[] } {
  const rig = tryingRig({ machine: { quirks, limits: { steps: 10_000 } } });
  const order: string[] = [];
  rig.on(0x90, function* (cpu) {
    yield* write(cpu, mode, 0x080, 0x90);
    yield* send(cpu, mode, { low: 0x4031, high: 0 });
    yield* write(cpu, mode, 0x080, 0);
    order.push("lowered");
    yield cpu.work(1000);
    order.push("ends");
    yield* write(cpu, mode, 0x0b0, 0);
  });
  rig.on(0x31, function* (cpu) {
    order.push("31");
    yield* write(cpu, mode, 0x0b0, 0);
  });
  const run = () => {
    rig.finish(function* (cpu) {
      yield* enter(cpu, mode);
      yield cpu.sti();
      yield* send(cpu, mode, { low: 0x4090, high: 0 });
    });
    return order;
  };
  return { rig, run };
}

describe("a task priority that falls below the TPR threshold", () => {
  for (const mode of APIC_MODES) {
    it(`exits once, whether KVM or the guest wrote it, and KVM writes another threshold (${mode})`, () => {
      const { rig, run } = lowered(mode);
      assertEquals(run(), ["lowered", "ends", "31"]);
      assertEquals(rig.vm.exits().TPR_BELOW_THRESHOLD, 1);
    });
  }

  it("exits right behind every entry while KVM leaves the threshold: the guest does not get on (quirk)", () => {
    // SDM 3C 27.7.7; handle_tpr_below_threshold up to v6.19.
    const { rig, run } = lowered("xapic", ["tpr-threshold-stale"]);
    assertThrows(run, LimitExceeded, "10000 steps");
    assertEquals(rig.vm.exits().TPR_BELOW_THRESHOLD > 1000, true);
  });

  it("is no legal entry in x2APIC mode, where KVM leaves the threshold (quirk)", () => {
    // SDM 3C 27.2.1.1: without virtualized APIC accesses.
    const { rig, run } = lowered("x2apic", ["tpr-threshold-stale"]);
    const error = assertThrows(run, VmEntryFailed);
    assertEquals(error.failed.map(({ name }) => name), ["tpr-threshold-vtpr"]);
    assertEquals(rig.vm.exits().TPR_BELOW_THRESHOLD, 1);
  });
});
