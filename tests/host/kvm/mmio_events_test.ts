import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_DEFAULT_BASE } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { enter, tryingRig } from "../../support/apic.ts";

const ROM = 0x4000_0000;
const NOTHING = 0x5000_0000;

for (const backend of BACKENDS) {
  describe(`an access to no memory (${backend})`, () => {
    function play(address: number) {
      const rig = tryingRig({ vm: { backend, slots: [{ base: ROM, size: 4096, readonly: true }] } });
      rig.vm.userspaceMmioDevice = { access: () => 0n };
      let [before, after] = [{}, {}] as Record<string, number>[];
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        before = rig.vm.counters();
        const { mmio_exits } = rig.vm.bootstrap.stats;
        for (let i = 0; i < 3; i++) yield cpu.store32(address, 0);
        after = { ...rig.vm.counters(), mmio_exits: rig.vm.bootstrap.stats.mmio_exits - mmio_exits };
      });
      const more = (name: string) => (after[name] ?? 0) - (before[name] ?? 0);
      return [more("kvm_mmio"), more("vcpu_match_mmio"), after.mmio_exits, more("kvm_userspace_exit")];
    }

    it("is known by its fault's address, and goes to user space where nobody in the kernel takes it", () => {
      assertEquals(play(NOTHING), [3, 3, 3, 3]);
    });

    it("is no exit to user space where the local APIC takes it, which is known without a fault", () => {
      assertEquals(play(APIC_DEFAULT_BASE + 0xb0), [3, 0, 0, 0]);
    });

    it("that writes to a read-only slot goes to user space, and KVM does not remember its address", () => {
      assertEquals(play(ROM), [3, 0, 3, 3]);
    });
  });
}
