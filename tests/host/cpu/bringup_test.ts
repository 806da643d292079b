import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, MpState } from "../../../host/mod.ts";
import { enableX2apic, ONLINE, Rig, type RigOptions, startAps } from "../../support/guests.ts";

/** Starts `vcpus - 1` application processors that switch to x2APIC mode all at once, and then halt. */
function bringUp(vcpus: number, options: RigOptions = {}): Rig {
  const rig = new Rig({ ...options, vm: { vcpus, ...options.vm } });
  rig.aps(function* ap(cpu: X86Cpu) {
    yield* enableX2apic(cpu);
    for (;;) yield cpu.hlt();
  }).finish(function* (cpu) {
    yield* enableX2apic(cpu);
    yield* startAps(cpu, vcpus - 1);
  });
  return rig;
}

describe("bringing application processors up", () => {
  for (const backend of BACKENDS) {
    it(`starts 79 of them with one broadcast INIT and one broadcast SIPI (${backend})`, () => {
      const rig = bringUp(80, { vm: { backend } });
      assertEquals(rig.word(ONLINE), 79);
      assertEquals(rig.vm.vcpus.map((vcpu) => vcpu.lapic.x2apicMode), Array(80).fill(true));
      assertEquals(rig.vm.apicMap?.phys.filter((apic) => apic !== undefined).length, 80);
    });
  }

  it("works under any schedule, although everybody rebuilds the APIC map at the same time", () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 2, max: 6 }), (random, vcpus) => {
        const rig = bringUp(vcpus, { machine: { policy: { random } } });
        assertEquals(rig.word(ONLINE), vcpus - 1);
        assertEquals(rig.vm.vcpus.every((vcpu) => vcpu.mpState === MpState.Halted), true);
      }),
      { numRuns: 30 },
    );
  });

  it("leaves application processors alone that nobody starts", () => {
    const rig = new Rig({ vm: { vcpus: 2 } });
    rig.finish(function* (cpu) {
      yield cpu.pause();
    });
    assertEquals(rig.vm.vcpus[1].mpState, MpState.Uninitialized);
    assertEquals(rig.vm.vcpus[1].processor.instructions, 0);
  });
});
