import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_ET,
  CR0_PE,
  GP_VECTOR,
  KERNEL32_CS,
  KERNEL_CS,
  SYS_CR0,
  SYS_EFER,
  Text,
} from "../../../abi/mod.ts";
import { BACKENDS, Machine, MpState, type VmOptions } from "../../../host/mod.ts";
import { eventsOf, tracingRig } from "../../support/events.ts";
import { DATA, enableX2apic, startAps } from "../../support/guests.ts";

describe("a virtual machine", () => {
  const build = (options: VmOptions) => new Machine().createVm({ memory: 0, ...options });

  it("has by default one vCPU, on VMX, under today's KVM", () => {
    const vm = new Machine().createVm();
    assertEquals([vm.backend, vm.semantics, vm.vcpus.length], ["vmx", "v6.19", 1]);
    assertEquals(vm.memory.flat, 64 * 2 ** 20);
    assertEquals([vm.bootstrap.vcpuId, vm.bootstrap.mpState], [0, MpState.Runnable]);
  });

  it("has its vCPUs where user space numbers them; the one with number 0 boots", () => {
    const vm = build({ vcpuIds: [7, 0, 4095] });
    assertEquals(vm.vcpus.map(({ vcpuId }) => vcpuId), [7, 0, 4095]);
    assertEquals(vm.vcpus.map(({ bootstrap }) => bootstrap), [false, true, false]);
    assertEquals(vm.bootstrap, vm.vcpus[1]);
    assertEquals(vm.vcpus.map(({ mpState }) => mpState === MpState.Runnable), [false, true, false]);
  });

  const REFUSED: readonly (readonly [VmOptions, string])[] = [
    [{ backend: "xen" as "vmx" }, "Cannot use backend xen: allowed are vmx, svm"],
    [
      { hostSemantics: "2013" as "2012" },
      "Cannot simulate a host of 2013: allowed are 2012, 2018, 2021, 2022, v6.19",
    ],
    [{ hostSemantics: "toString" as "2012" }, "Cannot simulate a host of toString"],
    [{ vcpus: 0 }, "allowed are 1 to 1024"],
    [{ vcpus: 1025 }, "allowed are 1 to 1024"],
    [{ vcpus: 1.5 }, "allowed are 1 to 1024"],
    [{ vcpus: 3, vcpuIds: [0, 1] }, "2 vCPU IDs are given"],
    [{ vcpuIds: [0, 1, 1] }, "vCPU IDs repeat"],
    [{ vcpuIds: [1, 2] }, "Cannot boot without vCPU 0"],
    [{ vcpuIds: [0, 4096] }, "Cannot create vCPU 4096: allowed are 0 to 4095"],
    [{ vcpuIds: [0, -1] }, "Cannot create vCPU -1"],
    [{ haltPollNs: -1 }, "Cannot poll for -1 ns"],
    [{ haltPollNs: 0.5 }, "Cannot poll for 0.5 ns"],
    [
      { disabledKvmQuirks: ["CD_NW" as "LINT0_REENABLED"] },
      "Cannot disable KVM quirk CD_NW: allowed are LINT0",
    ],
    [{ memory: 2 ** 32 }, "the I/O APIC is at 0xfec00000"],
  ];

  it("refuses what cannot be, naming what can", () => {
    for (const [options, message] of REFUSED) assertThrows(() => build(options), RangeError, message);
  });

  it("can only be loaded where it has memory", () => {
    const text = new Text();
    text.add(function* main() {});
    assertThrows(
      () => build({ memory: 4096 }).load(text),
      RangeError,
      "Cannot load text at 0x100000: no memory there",
    );
  });

  for (const backend of BACKENDS) {
    it(`starts as a boot loader leaves it: 64-bit, or 32-bit without paging (${backend})`, () => {
      for (const mode of ["64-bit", "32-bit"] as const) {
        tracingRig({ mode, vm: { backend } }).finish(function* (cpu) {
          assertEquals(cpu.interruptsEnabled, false);
          yield cpu.movFromCr0();
          const paging = (cpu.eax & 0x8000_0000) !== 0;
          assertEquals([paging, (cpu.eax & (CR0_PE | CR0_ET)) === (CR0_PE | CR0_ET)], [
            mode === "64-bit",
            true,
          ]);
          assertEquals((cpu.sys[SYS_EFER] & 0x400) !== 0, mode === "64-bit");
          assertEquals(cpu.sys[SYS_CR0] >>> 0, cpu.eax);
          yield cpu.loadCs(mode === "64-bit" ? KERNEL_CS : KERNEL32_CS); // The segment that it is in already.
        });
      }
    });

    it(`is dead as a whole when one vCPU shuts down: the others stop where they are (${backend})`, () => {
      const rig = tracingRig({ vm: { backend, vcpus: 3 } });
      rig.gate(GP_VECTOR, 0, { type: 0 });
      const { end } = rig.aps(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.rdmsr(0x802);
        if (cpu.eax === 2) {
          yield cpu.work(100_000);
          yield cpu.ud2(); // Nobody handles it, nor what follows.
        }
        for (;;) yield cpu.xadd32(DATA, 1);
      }).run(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 2);
        for (;;) yield cpu.pause();
      });
      assertEquals(end, "shutdown");
      assertEquals(eventsOf(rig.vm, "kvm_userspace_exit").map(({ vcpu, args }) => [vcpu, args[0]]), [[2, 8]]);
      const before = rig.word(DATA);
      assertEquals(rig.vm.machine.run(2e9).end, "shutdown", "it does not run again");
      assertEquals(rig.word(DATA), before);
    });
  }

  it("shares a machine with others, each with its own vendor and year, and none sees another's interrupts", () => {
    const rig = tracingRig({ vm: { vcpus: 2 } });
    const other = rig.vm.machine.createVm({
      backend: "svm",
      hostSemantics: "2018",
      vcpus: 2,
      memory: 2 ** 21,
    });
    rig.start(function* (cpu) {
      yield* enableX2apic(cpu);
      yield cpu.loadHypercall(10, 0b11, 0, 0, 0x41).vmcall();
    });
    other.load(rig.text);
    other.start(rig.text.blocks.at(-1)!.address);
    assertEquals(rig.vm.machine.run().end, "finished");
    for (const vm of [rig.vm, other]) {
      assertEquals(vm.counters()["kvm_apic_accept_irq"], 2);
      assertEquals(vm.bootstrap.lapic.highestIrr(), 0x41);
    }
    assertEquals(other.exits()["UD excp"], 1);
  });
});
