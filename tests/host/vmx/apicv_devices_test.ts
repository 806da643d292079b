import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { enter, logging } from "../../support/apic.ts";
import { exits, mark, tracingRig } from "../../support/events.ts";
import { route } from "../../support/ioapic.ts";
import { Script } from "../../support/threads.ts";

const MIDDLE = 0x52;

describe("a device's interrupt to a vCPU with APICv", () => {
  it("is posted: the guest is not interrupted by its host", () => {
    const rig = tracingRig({ vm: { acceleration: "apicv" } });
    const log = logging(rig, "x2apic", MIDDLE);
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield* route(cpu, 5, { vector: MIDDLE });
      new Script(vm.engine, "device", function* () {
        for (let i = 0; i < 3; i++) {
          vm.routing.setLevel(5, true);
          vm.routing.setLevel(5, false);
          yield 10_000;
        }
      }, vm.engine.now + 10_000);
      yield cpu.sti();
      const from = mark(vm);
      yield cpu.work(100_000);
      assertEquals(log, [MIDDLE, MIDDLE, MIDDLE]);
      assertEquals(exits(vm, from), []);
      yield cpu.cli();
    });
  });
});
