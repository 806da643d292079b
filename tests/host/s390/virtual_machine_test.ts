import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { splitRing } from "../../../abi/mod.ts";
import { s390DisabledWait, S390Kernel } from "../../../guest/mod.ts";
import { Disk, Machine, SinkQueue } from "../../../host/mod.ts";
import { MEMORY } from "../../support/s390.ts";

describe("an s390 virtual machine", () => {
  it("leaves its host CPUs to nobody once it has ended, also to those that waited for one", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY, vcpus: 2, hostCpus: 1 });
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.work(1000);
      },
    });
    let ran = false;
    const other = kernel.cpu(0x4000, function* other(cpu) {
      ran = true;
      yield cpu.nop();
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.vcpus[1].start(other);
    vm.vcpus[1].end();
    assertEquals(vm.machine.run(1e6).end, "finished");
    assertEquals([ran, vm.hostCpus.contended, vm.hostCpus.cpus[0].current], [false, false, undefined]);
  });

  it("does not go on where a page comes after its end", () => {
    const machine = new Machine();
    const vm = machine.createS390Vm({ memory: MEMORY, vcpus: 2 });
    vm.pageTo(new Disk(machine.engine, { pages: 512, latency: 1_000_000 })).evict(0x10_0000);
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.load64(0x10_0000);
      },
    });
    const other = kernel.cpu(0x4000, function* other(cpu) {
      yield cpu.work(10_000);
      yield* s390DisabledWait(cpu);
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.vcpus[1].start(other);
    assertEquals([machine.run(1e8).end, vm.vcpus[0].phase], ["shutdown", "ended"]);
    machine.run(1e8);
    assertEquals([vm.residency!.state(0x10_0000), vm.vcpus[0].phase], ["present", "ended"]);
  });

  it("counts nothing of KVM's where an emulator is the host: faults, STSI, and the wait that ends it", () => {
    const counted = (["kvm", "tcg-7.2"] as const).map((host) => {
      const vm = new Machine().createS390Vm({ memory: MEMORY, host });
      vm.pageTo(new Disk(vm.engine, { pages: 512, latency: 1000 })).evict(0x10_0000);
      const kernel = new S390Kernel({
        *main(cpu) {
          yield cpu.load64(0x10_0000);
          yield cpu.stsi(3, [2, 2], 0x10_1000);
          yield* s390DisabledWait(cpu);
        },
      });
      vm.load(kernel.text);
      vm.start(kernel.entry);
      assertEquals(vm.machine.run(1e8).end, "shutdown");
      const { pfault_sync, instruction_stsi } = vm.vcpus[0].stats;
      return [pfault_sync, instruction_stsi, vm.userspaceExits.size, Object.keys(vm.counters()).length > 0];
    });
    assertEquals(counted, [[1, 1, 2, true], [0, 0, 0, false]]);
  });

  it("has its devices at subchannels of their own", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const device = (number: number, queues: number[]) => ({ number, queues, notified: () => {} });
    assertEquals(vm.addCcwDevice(device(3, [4])), 0x1_0003);
    assertThrows(() => vm.addCcwDevice(device(3, [4])), RangeError, "subchannel 0x10003: it is taken");
    assertThrows(
      () => vm.addCcwDevice(device(4, Array.from({ length: 1025 }, () => 4))),
      RangeError,
      "allowed are up to 1024",
    );
  });

  it("cannot be built of what there is not", () => {
    const machine = new Machine();
    assertThrows(() => machine.createS390Vm({ hostCpus: 0 }), RangeError, "an s390 host of 0 CPUs");
    assertThrows(() => machine.createS390Vm({ vcpus: 0 }), RangeError, "a virtual machine of 0 vCPUs");
    assertThrows(() => new Machine({ diag9cForwardingHz: 0.5 }), RangeError, "Cannot forward 0.5");
  });
});

describe("a device that takes buffers", () => {
  it("counts modulo 2^16, as the ring does", () => {
    const machine = new Machine();
    const vm = machine.createS390Vm({ memory: MEMORY });
    const ring = splitRing(0x10_0000, 8);
    const sink = new SinkQueue(vm, "sink", { size: 8, ring: 0x10_0000, cyclesPerBuffer: 1 });
    const offer = (index: number) => {
      vm.memory.write(ring.availIdx, 2, BigInt(index));
      sink.notify();
      machine.run(machine.engine.now + 1e6);
    };
    offer(0xffff);
    assertEquals([sink.taken, vm.memory.read(ring.usedIdx, 2)], [0xffff, 0xffffn]);
    offer(1);
    assertEquals([sink.taken, vm.memory.read(ring.usedIdx, 2)], [0x1_0001, 1n]);
  });

  it("takes nothing where nothing is offered", () => {
    const machine = new Machine();
    const vm = machine.createS390Vm({ memory: MEMORY });
    const sink = new SinkQueue(vm, "sink", { size: 8, ring: 0x10_0000 });
    sink.notify();
    machine.run(1e6);
    assertEquals([sink.notified, sink.taken], [1, 0]);
  });
});
