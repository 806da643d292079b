import { assertEquals, assertNotEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_LDR,
  APIC_SPIV,
  APIC_TASKPRI,
  type Gva,
  IDT_GATE32,
  IDT_GATE64,
  x2apicLdr,
} from "../../abi/mod.ts";
import {
  CALL_FUNCTION_VECTOR,
  data,
  IDT,
  Kernel,
  PERCPU,
  percpu,
  PERCPU_SIZE,
  RESCHEDULE_VECTOR,
  SPURIOUS_APIC_VECTOR,
  TRAMPOLINE,
} from "../../guest/mod.ts";
import { BACKENDS, Machine, type VmOptions } from "../../host/mod.ts";
import { APICS, KernelRig, WIDTHS } from "../support/kernels.ts";

function upTo(count: number): number[] {
  return Array.from({ length: count }, (_, n) => n);
}

describe("a kernel boots", () => {
  for (const backend of BACKENDS) {
    for (const bits of WIDTHS) {
      for (const apic of APICS) {
        const counts = apic === "xapic" ? [1, 2, 80, 255] : [1, 2, 80, 300];
        it(`${counts.join(", ")} processors: ${bits}-bit, ${apic}, ${backend}`, () => {
          for (const cpus of counts) {
            const rig = new KernelRig({ cpus, bits, apic, vm: { backend } }).run();
            for (const mask of ["present", "online", "bootedOnce"] as const) {
              assertEquals(rig.mask(mask), upTo(cpus));
            }
            assertEquals(rig.mask("dead"), []);
            assertEquals(rig.kernel.log, []);
            for (const { lapic } of rig.vm.vcpus) {
              assertEquals([lapic.x2apicMode, lapic.softwareEnabled], [apic !== "xapic", true]);
            }
          }
        });
      }
    }
  }

  it("with INIT, its end, and two start-up IPIs for each processor but the first", () => {
    const rig = new KernelRig({ cpus: 3 }).run();
    const page = TRAMPOLINE >>> 12;
    assertEquals(
      rig.sends(),
      [1, 2].flatMap((id): [number, number][] => [
        [0xc500, id], // INIT, level-triggered, asserted.
        [0x8500, id], // Its end.
        [0x0600 | page, id],
        [0x0600 | page, id],
      ]),
    );
  });

  it("on one processor without sending anything", () => {
    assertEquals(new KernelRig({ cpus: 1 }).run().sends(), []);
  });

  it("with interrupts off until a processor is up, and on afterwards", () => {
    const enabled: boolean[] = [];
    const rig = new KernelRig({
      cpus: 2,
      drivers: [{
        name: "onlooker",
        *probe(cpu) {
          yield cpu.cpuid(0);
          return true;
        },
        *online(cpu) {
          yield cpu.pushf();
          enabled.push(cpu.interruptsEnabled);
        },
      }],
      *secondary(cpu) {
        yield cpu.pushf();
        enabled.push(cpu.interruptsEnabled);
      },
    });
    rig.run(function* (cpu) {
      yield cpu.pushf();
      enabled.push(cpu.interruptsEnabled);
    });
    assertEquals(enabled, [false, false, true, true]);
  });

  it("with its APICs' task priority as each year has it: v5.4 shut out vectors below 0x20", () => {
    for (
      const [guestSemantics, priority] of [
        ["v6.19", 0x10],
        ["2022", 0x10],
        ["2021", 0x10],
        ["2018", 0],
        ["2012", 0],
      ] as const
    ) {
      for (const apic of APICS) {
        const { vm } = new KernelRig({ cpus: 2, apic, guestSemantics }).run();
        for (const { lapic } of vm.vcpus) assertEquals(lapic.get(APIC_TASKPRI), priority);
      }
    }
  });

  it("with the spurious vector in the register that enables the APIC", () => {
    const { vm } = new KernelRig({ cpus: 2, apic: "xapic" }).run();
    for (const { lapic } of vm.vcpus) assertEquals(lapic.get(APIC_SPIV), 0x100 | SPURIOUS_APIC_VECTOR);
  });

  it("the same way twice, to the last event", () => {
    const trace = (): Uint8Array => new KernelRig({ cpus: 8 }).run().vm.tracer.bytes();
    assertEquals(trace(), trace());
  });

  it("in exactly the memory that it says it needs", () => {
    for (const cpus of [1, 80]) {
      const { memory } = new Kernel({ cpus, *main() {} });
      const rig = new KernelRig({ cpus, vm: { memory } }).run();
      assertEquals(rig.mask("online"), upTo(cpus));
      assertEquals(rig.seen("kvm_mmio"), []); // Nothing was looked for outside it.
    }
  });

  it("under random schedules too, each time with every processor", () => {
    for (let seed = 0; seed < 10; seed++) {
      const rig = new KernelRig({ cpus: 4, machine: { policy: { random: seed } } }).run();
      assertEquals(rig.mask("online"), [0, 1, 2, 3]);
    }
  });
});

describe("APIC IDs need not be 0, 1, 2 ...", () => {
  /** Two clusters of 16, holes, an order that is not ascending. */
  const SPARSE = [0, 7, 3, 200, 16, 33, 254];
  /** What only an x2APIC can have. */
  const WIDE = [0, 4095, 256, 255, 1023];

  for (const bits of WIDTHS) {
    for (const apic of APICS) {
      it(`${apic}, ${bits}-bit: a processor knows its number by firmware's table`, () => {
        for (const apicIds of apic === "xapic" ? [SPARSE] : [SPARSE, WIDE]) {
          const ids: [number, number][] = [];
          const rig = new KernelRig({
            apicIds,
            apic,
            bits,
            *secondary(cpu) {
              yield cpu.cpuid(0xb);
              const id = cpu.edx;
              yield cpu.load32(cpu.gsBase);
              ids.push([cpu.eax, id]);
            },
          }).run();
          assertEquals(rig.mask("online"), upTo(apicIds.length));
          assertEquals(
            ids.sort(([a], [b]) => a - b),
            apicIds.map((id, n): [number, number] => [n, id]).slice(1),
          );
        }
      });
    }
  }

  it("the vCPUs may come in another order than the kernel's processors", () => {
    const rig = new KernelRig({ apicIds: [0, 5, 2, 9], vm: { vcpuIds: [9, 2, 0, 5] } }).run();
    assertEquals(rig.mask("online"), [0, 1, 2, 3]);
    for (const [n, id] of [0, 5, 2, 9].entries()) {
      const vcpu = rig.vm.vcpus.find((candidate) => candidate.vcpuId === id)!;
      assertEquals(vcpu.processor.context.gsBase, percpu(n, "cpu"));
    }
  });

  it("x2APICs derive their logical ID from the physical one", () => {
    const { vm } = new KernelRig({ apicIds: WIDE }).run();
    for (const { lapic, vcpuId } of vm.vcpus) assertEquals(lapic.get(APIC_LDR), x2apicLdr(vcpuId));
  });

  it("an ID in the table that no processor has is waited for, and the run tells that it halted", () => {
    const rig = new KernelRig({ apicIds: [0, 1, 2], vm: { vcpuIds: [0, 1] } });
    assertEquals(rig.go(), "halted");
    assertEquals(rig.mask("online"), [0, 1]);
  });

  it("ID 255 is everybody's to xAPICs, unless user space has told KVM of IDs with 32 bits", () => {
    // KVM_X2APIC_API_USE_32BIT_IDS and KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK (Documentation/virt/kvm/api.rst, 7.7).
    const starts = (knows: boolean): number => {
      let count = 0;
      new KernelRig({
        apicIds: [0, 255, 256],
        vm: { x2apicApi32BitIds: knows, x2apicApiDisableBroadcastQuirk: knows },
        *secondary(cpu) {
          count++;
          yield cpu.pause();
        },
      }).run();
      return count;
    };
    assertEquals(starts(true), 2);
    assertEquals(starts(false), 3); // Processor 2 was still in xAPIC mode when 255 was started.
  });

  it("a processor that the table does not list stays where INIT left it", () => {
    const rig = new KernelRig({ apicIds: [0, 1], vm: { vcpuIds: [0, 1, 2] } }).run();
    assertEquals(rig.mask("online"), [0, 1]);
    assertEquals(rig.vm.vcpus[2].processor.context.depth, 0);
  });
});

describe("a kernel's memory", () => {
  it("has an area for each processor, one page apart, whose GS base points to it", () => {
    const rig = new KernelRig({ apicIds: [0, 3, 1] }).run();
    for (const [n, id] of [0, 3, 1].entries()) {
      const base = percpu(n, "cpu");
      assertEquals(base, PERCPU + n * PERCPU_SIZE);
      assertEquals([rig.vm.memory.word(base), rig.vm.memory.word(percpu(n, "apicId"))], [n, id]);
      const vcpu = rig.vm.vcpus.find((candidate) => candidate.vcpuId === id)!;
      assertEquals(vcpu.processor.context.gsBase, base);
    }
  });

  it("aligns what the host writes to as the ABI asks", () => {
    for (const n of [0, 1, 1023]) assertEquals(percpu(n, "kvmApicEoi") % 4, 0);
  });

  it("has a 64-bit gate for every vector that is handled", () => {
    const rig = new KernelRig();
    const { kernel, vm } = rig;
    kernel.irq(0x40, function* device() {}, "device");
    rig.run();
    const word = (vector: number, at: number): number => vm.memory.word(IDT + IDT_GATE64.size * vector + at);
    for (const vector of [2, 6, 13, 14, 0x40, CALL_FUNCTION_VECTOR, RESCHEDULE_VECTOR, 0xff]) {
      const address = (word(vector, 0) & 0xffff) | (word(vector, 4) & 0xffff_0000);
      assertEquals(address, kernel.handlerOf(vector));
      assertEquals(word(vector, 0) >>> 16, 0x10); // The kernel's code segment.
      assertEquals(word(vector, 4) & 0xffff, 0x8e00); // Present, DPL 0, interrupt gate.
      assertEquals([word(vector, 8), word(vector, 12)], [0, 0]);
    }
    assertEquals(kernel.text.blockAt(kernel.handlerOf(0x40)!)?.name, "device");
    for (const vector of [0, 3, 8, 31]) {
      assertEquals(kernel.handlerOf(vector), undefined);
      assertEquals(word(vector, 4), 0); // Not present.
    }
  });

  it("has 8-byte gates in a 32-bit kernel", () => {
    const rig = new KernelRig({ bits: 32 });
    rig.run();
    for (const vector of [13, 0x20, 0xfb]) {
      const low = rig.vm.memory.word(IDT + IDT_GATE32.size * vector);
      const high = rig.vm.memory.word(IDT + IDT_GATE32.size * vector + 4);
      assertEquals((low & 0xffff) | (high & 0xffff_0000), rig.kernel.handlerOf(vector));
      assertEquals(high & 0xffff, 0x8e00);
      assertNotEquals(low >>> 16, 0x10); // Not the 64-bit segment.
    }
  });

  it("is where interrupts come through: a gate that is rewritten there is the one that is taken", () => {
    const rig = new KernelRig();
    let taken = 0;
    rig.kernel.irq(0x40, function* () {});
    const other: Gva = rig.kernel.text.add(function* other(cpu) {
      taken++;
      yield* rig.kernel.ackApicIrq(cpu);
    });
    rig.run(function* (cpu, kernel) {
      yield cpu.store16(IDT + IDT_GATE64.size * 0x40, other & 0xffff);
      yield cpu.store16(IDT + IDT_GATE64.size * 0x40 + 6, other >>> 16);
      yield* kernel.apic.sendIpiSelf(cpu, 0x40);
      yield cpu.work(10_000);
    });
    assertEquals([taken, rig.irqs(0, 0x40)], [1, 0]);
  });
});

describe("a kernel that is loaded again", () => {
  it("begins as it was linked: nothing is left of what an earlier boot has found and patched", () => {
    for (const guestSemantics of ["v6.19", "2021", "2018", "2012"] as const) {
      const kernel = new Kernel({
        cpus: 4,
        guestSemantics,
        *main(cpu, kernel) {
          yield* kernel.apic.sendIpiMask(cpu, data("online"), RESCHEDULE_VECTOR);
          kernel.warn("once");
        },
      });
      const booted = (
        options: VmOptions,
      ): [hypercalls: number, drivers: number, log: number, pvEois: number] => {
        const vm = new Machine().createVm({ vcpus: 4, ...options });
        vm.load(kernel.text);
        vm.start(kernel.entry);
        assertEquals(vm.machine.run().end, "finished");
        const { kvm_hypercall = 0, kvm_pv_eoi = 0 } = vm.counters();
        return [kvm_hypercall, kernel.drivers.length, kernel.log.length, kvm_pv_eoi];
      };
      const first = booted({});
      assertEquals(first[3] > 0, true);
      assertEquals(booted({ features: [] }), [0, 0, 1, 0]);
      assertEquals(booted({}), first);
      assertEquals(booted({ backend: "svm" }).slice(0, 3), first.slice(0, 3));
    }
  });

  it("may have a sibling beside it, in a virtual machine of its own on the same machine", () => {
    const machine = new Machine();
    const vms = BACKENDS.map((backend) => {
      const kernel = new Kernel({ cpus: 4, *main() {} });
      const vm = machine.createVm({ vcpus: 4, backend });
      vm.load(kernel.text);
      vm.start(kernel.entry);
      return vm;
    });
    assertEquals(machine.run().end, "finished");
    for (const vm of vms) assertEquals(vm.memory.word(data("online")), 0b1111);
  });
});
