import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { Text } from "../../../../abi/mod.ts";
import { type Invalidation, Machine, type MachineOptions, type Vcpu, type Vm } from "../../../../host/mod.ts";
import { REQ_TLB_FLUSH } from "../../../../host/kvm/requests.ts";
import type { SvmHardware } from "../../../../host/svm/hardware.ts";
import { enableX2apic, startAps } from "../../../support/guests.ts";
import { DISK, task, trackedRig } from "../../../support/tdp.ts";

const FAR = 0x4_0000;

function asid(vcpu: Vcpu): number {
  return (vcpu.backend.hardware as SvmHardware).vmcb.asid;
}

/** Every VMRUN that flushes: TLB_CONTROL and ASID, with its CPU. */
function flushes(vm: Vm): [pcpu: number, operation: string, vpid: number | undefined][] {
  const seen: [number, string, number | undefined][] = [];
  for (const pcpu of vm.machine.scheduler.pcpus) {
    const tlb = pcpu.tlb(vm.bootstrap);
    const invalidate = tlb.invalidate.bind(tlb);
    tlb.invalidate = (operation: Invalidation) => {
      if (operation.operation.startsWith("TLB_CONTROL")) {
        seen.push([pcpu.id, operation.operation, operation.vpid]);
      }
      return invalidate(operation);
    };
  }
  return seen;
}

/** Virtual machines that take turns on one physical CPU: the ASIDs that each ran with, and what flushed. */
function crowd(
  vms: number,
  options: MachineOptions,
): { machine: Machine; asids: number[][]; seen: ReturnType<typeof flushes> } {
  const machine = new Machine({ pcpus: 1, timeSlice: 20_000, staleness: true, ...options });
  const asids: number[][] = [];
  for (let n = 0; n < vms; n++) {
    const vm = machine.createVm({ backend: "svm", memory: 2 ** 21, disk: DISK });
    const own: number[] = [];
    const text = new Text();
    const entry = text.add(function* main(cpu) {
      for (let round = 0; round < 5; round++) {
        yield cpu.store32(FAR, round);
        if (own.at(-1) !== asid(vm.bootstrap)) own.push(asid(vm.bootstrap));
        yield cpu.work(20_000);
        yield cpu.load32(FAR);
        assertEquals(cpu.eax, round);
      }
    });
    vm.load(text);
    vm.start(entry);
    asids.push(own);
  }
  const seen = flushes(machine.vms[0]);
  assertEquals(machine.run(1e9).end, "finished");
  return { machine, asids, seen };
}

// arch/x86/kvm/svm/svm.c: new_asid, pre_svm_run, svm_flush_tlb_asid.
describe("ASIDs", () => {
  it("are given by each CPU, from 1 on, and the first vCPU that runs there flushes all of them", () => {
    const { asids, seen } = crowd(3, {});
    assertEquals(asids, [[1], [2], [3]]);
    // The others' is that of kvm_mmu_load: they have never run before.
    assertEquals(seen, [[0, "TLB_CONTROL 1", 1], [0, "TLB_CONTROL 3", 2], [0, "TLB_CONTROL 3", 3]]);
  });

  it("that have all been given are given anew in the next generation, which flushes, and nobody keeps an old one", () => {
    // Two of them: three vCPUs take them from each other, in turn.
    const { asids, seen } = crowd(3, { asids: 3 });
    for (const [n, own] of asids.entries()) {
      assertEquals(own.every((one) => one === 1 || one === 2), true, `vm ${n}`);
    }
    assertEquals(asids.every((own) => own.length > 1), true, "each got another");
    const all = seen.filter(([, operation]) => operation === "TLB_CONTROL 1");
    assertEquals(all.every(([, , vpid]) => vpid === 1), true, "by the first of a generation");
    assertEquals(all.length > 3, true);
  });

  it("that were given anew are no longer those of who had them: nobody is taken for another", () => {
    const { machine } = crowd(3, { asids: 3 });
    const tags = machine.vms.map((vm) => vm.bootstrap.backend.asidTag()).filter((tag) => tag !== undefined);
    const known = tags.map(({ cpu, vpid }) => `${cpu}: ${vpid}`);
    assertEquals(new Set(known).size, known.length);
    assertEquals(known.length === 1 || known.length === 2, true);
  });

  it("are kept by a vCPU that alone uses its CPU, however often it sleeps", () => {
    const rig = trackedRig("svm", { pcpus: 1 });
    const seen = flushes(rig.vm);
    const own: number[] = [];
    rig.finish(function* (cpu) {
      for (let n = 0; n < 3; n++) {
        yield cpu.cpuid(0);
        own.push(asid(rig.vm.bootstrap));
      }
    });
    assertEquals([own, seen.length], [[1, 1, 1], 1]);
  });

  it("are another CPU's after a move, and on the way back not the old one, which may be in the TLB yet", () => {
    const rig = trackedRig("svm", { pcpus: 2 });
    const { vm } = rig;
    const { pcpus } = vm.machine.scheduler;
    const seen = flushes(vm);
    const where: [pcpu: number, asid: number][] = [];
    /** Gives up the CPU, and gets that one next. */
    const move = (to: number): void => {
      vm.bootstrap.defer(function* () {
        vm.scheduler.release(vm.bootstrap);
        vm.bootstrap.lastPcpu = pcpus[to];
        task(
          vm,
          function* () {
            yield;
            vm.scheduler.ready(vm.bootstrap, vm.engine.running!.time);
          }(),
          vm.bootstrap.clock,
        );
        yield;
      }());
    };
    let to = 0;
    vm.userspacePioDevice = { access: () => void move(to) };
    rig.finish(function* (cpu) {
      for (to of [0, 1, 0, 0]) {
        yield cpu.out8(0x80, 1);
        yield cpu.load32(FAR);
        where.push([vm.bootstrap.pcpu!.id, asid(vm.bootstrap)]);
      }
    });
    assertEquals(where, [[0, 1], [1, 1], [0, 2], [0, 2]]);
    assertEquals(seen.map(([pcpu, operation]) => [pcpu, operation]), [[0, "TLB_CONTROL 1"], [
      1,
      "TLB_CONTROL 1",
    ]]);
  });

  it("are flushed by VMRUN where KVM asks for a flush, once", () => {
    const rig = trackedRig("svm", { pcpus: 1 });
    const seen = flushes(rig.vm);
    rig.vm.userspacePioDevice = { access: () => void rig.vm.bootstrap.request(REQ_TLB_FLUSH) };
    rig.finish(function* (cpu) {
      yield cpu.load32(FAR);
      yield cpu.out8(0x80, 1);
      yield cpu.cpuid(0);
      yield cpu.cpuid(0);
    });
    assertEquals(seen, [[0, "TLB_CONTROL 1", 1], [0, "TLB_CONTROL 3", 1]]);
    assertEquals(rig.vm.bootstrap.stats.tlb_flush, 1);
  });

  it("are given anew for a flush where VMRUN cannot flush one (no FlushByAsid)", () => {
    const rig = trackedRig("svm", { pcpus: 1, flushByAsid: false });
    const seen = flushes(rig.vm);
    rig.vm.userspacePioDevice = { access: () => void rig.vm.bootstrap.request(REQ_TLB_FLUSH) };
    rig.finish(function* (cpu) {
      yield cpu.load32(FAR);
      assertEquals(asid(rig.vm.bootstrap), 1);
      yield cpu.out8(0x80, 1);
      yield cpu.cpuid(0);
      assertEquals(asid(rig.vm.bootstrap), 2);
    });
    assertEquals(seen, [[0, "TLB_CONTROL 1", 1]]);
  });

  it("are another's behind INIT, as for a new VMCB", () => {
    const rig = trackedRig("svm", { vcpus: 2, pcpus: 2 });
    const own: number[] = [];
    rig.aps(function* ap(cpu) {
      own.push(asid(rig.vm.vcpus[1]));
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    });
    rig.run(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      yield* startAps(cpu, 2);
    });
    assertEquals(own, [1, 2], "none was used between");
  });

  it("are two at least, as 0 is the host's", () => {
    assertThrows(
      () => new Machine({ asids: 1 }),
      RangeError,
      "Cannot build a machine with 1 ASIDs: allowed are 2 to 2^31",
    );
  });
});
