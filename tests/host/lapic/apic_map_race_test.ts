import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { MapState, recalculateApicMap } from "../../../host/lapic/mod.ts";
import { HostFailure, Machine, type MachineOptions, type Vm } from "../../../host/mod.ts";
import { rebuildMap, setUp } from "../../support/apic.ts";

/** A machine in whose thread the test stands: vCPU 0x200's APIC is disabled, and something has changed since. */
function machine(options: MachineOptions = {}): Vm {
  const vm = new Machine({ pcpus: 1, ...options }).createVm({ memory: 0, vcpuIds: [0, 1, 0x200] });
  vm.engine.running = vm.bootstrap;
  for (const { lapic } of vm.vcpus) setUp(lapic, "x2apic");
  setUp(vm.vcpus[2].lapic, "disabled");
  vm.apicMapDirty(vm.bootstrap);
  return vm;
}

/** A vCPU enables its APIC, and is about to rebuild the map. */
function enable(vm: Vm): void {
  vm.vcpus[2].lapic.base = 0xfee0_0c00;
  vm.apicMapDirty(vm.vcpus[2]);
}

/** How many steps a rebuild takes that nobody disturbs. */
function stepsOfRebuild(): number {
  const rebuild = recalculateApicMap(machine());
  for (let steps = 0;; steps++) if (rebuild.next().done) return steps;
}

describe("a rebuild of the optimized map", () => {
  it("is not done where nothing has changed", () => {
    const vm = machine();
    rebuildMap(vm);
    const { apicMap } = vm;
    rebuildMap(vm);
    assert(vm.apicMap === apicMap);
  });

  it("asks every vCPU to look anew which vectors the I/O APIC handles", () => {
    const vm = machine();
    for (const vcpu of vm.vcpus) vcpu.requests = 0;
    rebuildMap(vm);
    assert(vm.vcpus.every(({ requests }) => requests !== 0));
  });

  it("loses no change that comes in the middle, whenever it comes", () => {
    const steps = stepsOfRebuild();
    assert(steps >= 3, "there are points at which others can come between");
    for (let at = 0; at <= steps; at++) {
      const vm = machine();
      const rebuild = recalculateApicMap(vm);
      let step = 0;
      do {
        if (step++ === at) enable(vm);
      } while (!rebuild.next().done);
      if (at >= step) enable(vm);
      // Whoever changed something rebuilds after it; that is where the change must be in.
      if (vm.apicMapState === MapState.Clean) {
        assertEquals(vm.apicMap?.maxApicId, 0x200, `change at step ${at}`);
      }
      rebuildMap(vm);
      assertEquals(vm.apicMapState, MapState.Clean);
      assert(vm.apicMap?.phys[0x200] === vm.vcpus[2].lapic, `change at step ${at}`);
    }
  });

  it("wrote behind the map's end before v6.4 (quirk apic-map-stale-size), at some of these points alone", () => {
    const steps = stepsOfRebuild();
    let failed = 0;
    for (let at = 0; at <= steps; at++) {
      const vm = machine({ quirks: ["apic-map-stale-size"] });
      const rebuild = recalculateApicMap(vm);
      for (let step = 0; step < at; step++) rebuild.next();
      enable(vm);
      const finish = () => {
        while (!rebuild.next().done) { /* Nobody else comes. */ }
      };
      // It is the point between measuring and filling.
      if (at === 2) {
        assertThrows(finish, HostFailure, "KVM writes slot 512");
        failed++;
      } else {
        finish();
      }
    }
    assertEquals(failed, 1);
  });

  it("is one vCPU's at a time: a second one finds the map current, or rebuilds it again", () => {
    const vm = machine();
    const [first, second] = [recalculateApicMap(vm), recalculateApicMap(vm)];
    first.next();
    vm.engine.running = vm.vcpus[1];
    assertEquals(second.next().done, false, "the lock is taken");
    vm.engine.running = vm.bootstrap;
    while (!first.next().done) { /* To its end. */ }
    const { apicMap } = vm;
    vm.engine.running = vm.vcpus[1];
    assertEquals(second.next().done, true);
    assert(vm.apicMap === apicMap);
  });
});
