import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  CR4_PGE,
  CR4_SMEP,
  IA32_APICBASE,
  KERNEL32_CS,
  SECONDARY_EXEC_ENABLE_VPID,
} from "../../../../abi/mod.ts";
import {
  type BackendName,
  type Invalidation,
  Machine,
  StaleTranslation,
  straight,
  type Vcpu,
  type Vm,
  type Vmcs,
  type VmOptions,
} from "../../../../host/mod.ts";
import { VMX_NR_VPIDS, VpidBitmap, vpidsOf } from "../../../../host/vmx/vpid.ts";
import type { VmxHardware } from "../../../../host/vmx/hardware.ts";
import { enableX2apic, startAps } from "../../../support/guests.ts";
import type { Rig } from "../../../support/guests.ts";
import { pagingOn, PagingRig } from "../../../support/paging.ts";
import { task, trackedRig } from "../../../support/tdp.ts";

const FAR = 0x4_0000;

function vmcs(vcpu: Vcpu): Vmcs {
  return (vcpu.backend.hardware as VmxHardware).vmcs;
}

function vpids(vm: Vm): number[] {
  return vm.vcpus.map((vcpu) => vmcs(vcpu).vpid);
}

/** What is executed on a CPU's TLB from now on. */
function watch(vm: Vm, pcpu = 0): Invalidation[] {
  const seen: Invalidation[] = [];
  const tlb = vm.machine.scheduler.pcpus[pcpu].tlbInUse!;
  const invalidate = tlb.invalidate.bind(tlb);
  tlb.invalidate = (operation) => {
    seen.push(operation);
    return invalidate(operation);
  };
  return seen;
}

describe("VPIDs", () => {
  it("come from one bitmap for all virtual machines, the lowest that is free; 0 is the host's", () => {
    const machine = new Machine();
    const options: VmOptions = { memory: 2 ** 21, vcpus: 2 };
    assertEquals(vpids(machine.createVm(options)), [1, 2]);
    assertEquals(vpids(machine.createVm(options)), [3, 4]);
    assertEquals(vpids(new Machine().createVm(options)), [1, 2], "another machine's");
    vpidsOf(machine).free(2);
    assertEquals(vpids(machine.createVm(options)), [2, 5]);
  });

  it("are 65535, and who comes then has none", () => {
    const bitmap = new VpidBitmap();
    let allocated = 0;
    while (bitmap.allocate() === allocated + 1) allocated++;
    assertEquals(allocated, 65535);
    assertEquals(VMX_NR_VPIDS, 65536);
    assertEquals(bitmap.allocate(), 0);
    bitmap.free(0);
    assertEquals(bitmap.allocate(), 0, "nobody can free the host's");
    bitmap.free(65535);
    bitmap.free(31);
    assertEquals([bitmap.allocate(), bitmap.allocate(), bitmap.allocate()], [31, 65535, 0]);
  });

  it("of a vCPU whose creation fails are free again", () => {
    const machine = new Machine();
    const vm = machine.createVm({ memory: 2 ** 21 });
    assert(vm.createVcpu(7) < 0);
    assertEquals(vpids(machine.createVm({ memory: 2 ** 21 })), [2]);
  });

  it("are none with kvm_intel's parameter off: no control enables them", () => {
    const vm = new Machine().createVm({ memory: 2 ** 21, vpid: false });
    assertEquals(vpids(vm), [0]);
    assertEquals(vmcs(vm.bootstrap).secondary & SECONDARY_EXEC_ENABLE_VPID, 0);
    const tagged = new Machine().createVm({ memory: 2 ** 21 });
    assertEquals(vmcs(tagged.bootstrap).secondary & SECONDARY_EXEC_ENABLE_VPID, SECONDARY_EXEC_ENABLE_VPID);
    assertEquals(vpidsOf(vm.machine).allocate(), 1, "and none is taken");
  });
});

describe("a guest without a VPID", () => {
  it("walks anew behind each exit: entries and exits flush what is linear, and INVVPID is not needed", () => {
    const walks = (vpid: boolean): number => {
      const rig = new PagingRig({ machine: { staleness: true }, vm: { vpid } });
      let cycles = 0;
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(FAR, 1);
        yield cpu.cpuid(0);
        yield cpu.work(1);
        const start = rig.vm.bootstrap.clock;
        yield cpu.load32(FAR);
        cycles = rig.vm.bootstrap.clock - start;
      });
      return cycles;
    };
    const { cost } = trackedRig("vmx").vm;
    assertEquals(walks(true), cost.load);
    // Of two dimensions, the second is remembered: four entries of the guest's.
    assertEquals(walks(false), cost.load + 4 * cost.pageWalk);
  });

  it("keeps guest-physical mappings: those have the root for a tag", () => {
    const rig = trackedRig("vmx", { vpid: false });
    const kinds = new Set<number>();
    rig.vm.userspacePioDevice = {
      access() {
        for (const { kind } of rig.vm.machine.scheduler.pcpus[0].tlbInUse!.tlb.entries()) kinds.add(kind);
        return undefined;
      },
    };
    rig.finish(function* (cpu) {
      yield cpu.store32(FAR, 1);
      yield cpu.out8(0x80, 1);
    });
    assertEquals([...kinds], [2], "GUEST_PHYSICAL alone");
  });
});

describe("what VMX executes for a request", () => {
  /** Runs a guest that uses the TLB, then asks from outside its vCPU's thread, and lets it go on. */
  function asked(
    ask: (vcpu: Vcpu) => void,
    options: VmOptions = {},
  ): [name: string, operand: number | undefined][] {
    const rig = trackedRig("vmx", options);
    const { vm } = rig;
    let seen: Invalidation[] = [];
    task(
      vm,
      function* () {
        yield;
      }(),
    );
    task(
      vm,
      function* () {
        seen = watch(vm);
        ask(vm.bootstrap);
        vm.bootstrap.kickOut();
        yield;
      }(),
      50_000,
    );
    rig.finish(function* (cpu) {
      yield cpu.store32(FAR, 1);
      yield cpu.work(100_000);
      yield cpu.load32(FAR);
    });
    return seen.map(({ operation, vpid, root }) => [operation, vpid ?? root]);
  }
  const root = (vm: Vm = trackedRig("vmx").vm): number => vm.mmu.allocateRoot().root.address;

  it("is INVEPT of all roots for a full flush, with VPIDs as without", async () => {
    const { REQ_TLB_FLUSH } = await import("../../../../host/kvm/requests.ts");
    assertEquals(asked((vcpu) => vcpu.request(REQ_TLB_FLUSH)), [["INVEPT type 2", undefined]]);
  });

  it("is INVEPT of the root for the current one, and INVVPID for the guest's", async () => {
    const requests = await import("../../../../host/kvm/requests.ts");
    let own = 0;
    const current = asked((vcpu) => {
      own = vcpu.root!.root.address;
      vcpu.request(requests.REQ_TLB_FLUSH_CURRENT);
    });
    assertEquals(current, [["INVEPT type 1", own]]);
    assert(own >= root() - 2 ** 32);
    assertEquals(asked((vcpu) => vcpu.request(requests.REQ_TLB_FLUSH_GUEST)), [["INVVPID type 1", 1]]);
  });

  it("is the full flush alone where the current one is asked for too, and the guest's behind it", async () => {
    const { REQ_TLB_FLUSH, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST } = await import(
      "../../../../host/kvm/requests.ts"
    );
    const all = asked((vcpu) => vcpu.request(REQ_TLB_FLUSH_GUEST | REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH));
    assertEquals(all, [["INVEPT type 2", undefined], ["INVVPID type 1", 1]]);
  });

  it("is nothing for the guest's translations where it has no VPID: the entry flushes them", async () => {
    const { REQ_TLB_FLUSH_GUEST } = await import("../../../../host/kvm/requests.ts");
    const seen = asked((vcpu) => vcpu.request(REQ_TLB_FLUSH_GUEST), { vpid: false });
    assertEquals(
      new Set(seen.map(([name]) => name)),
      new Set(["VM exit without VPID", "VM entry without VPID"]),
    );
  });
});

describe("a flush of one address", () => {
  it("is INVVPID of that address on VMX, and nothing without a VPID; on SVM INVLPGA, at once", () => {
    const flushed = (
      backend: BackendName,
      vpid = true,
    ): [name: string, vpid?: number, address?: number][] => {
      const rig = trackedRig(backend, { vpid });
      const { vm } = rig;
      let seen: Invalidation[] = [];
      vm.userspacePioDevice = {
        access() {
          seen = watch(vm);
          vm.bootstrap.backend.flushTlbGva(FAR);
        },
      };
      rig.finish(function* (cpu) {
        yield cpu.store32(FAR, 1);
        yield cpu.out8(0x80, 1);
      });
      return seen.filter(({ address }) => address !== undefined).map(({ operation, vpid, address }) => [
        operation,
        vpid!,
        address!,
      ]);
    };
    assertEquals(flushed("vmx"), [["INVVPID type 0", 1, FAR]]);
    assertEquals(flushed("vmx", false), []);
    assertEquals(flushed("svm"), [["INVLPGA", 1, FAR]]);
  });
});

describe("INIT", () => {
  it("flushes the guest's translations, and the root's that is loaded anew, as paging was on", () => {
    const rig = trackedRig("vmx", { vcpus: 2, pcpus: 2 });
    const { vm } = rig;
    let seen: Invalidation[] = [];
    rig.aps(function* ap(cpu) {
      yield cpu.load32(FAR);
      yield cpu.cli();
      for (;;) yield cpu.hlt();
    });
    rig.run(function* (cpu) {
      yield* enableX2apic(cpu);
      yield* startAps(cpu, 1);
      yield cpu.work(100_000);
      seen = watch(vm, vm.vcpus[1].lastPcpu!.id);
      yield* startAps(cpu, 2);
    });
    const root = vm.mmu.tables!.root.address;
    const load = { operation: "INVEPT type 1", root } as const;
    // Twice, as KVM does it: vmx_vcpu_reset at once, and kvm_vcpu_reset with a request.
    // Behind INIT, its way to long mode loads the root anew three times: for CR4.PAE, EFER.LME and CR0.PG.
    assertEquals(seen.filter(({ operation }) => operation.startsWith("INV")), [
      { operation: "INVVPID type 1", vpid: 2 },
      { operation: "INVVPID type 1", vpid: 2 },
      load,
      ...[load, load, load],
    ]);
  });
});

describe("an APIC whose page is taken up", () => {
  it("has the current root's translations flushed: the guest may have used that address otherwise", () => {
    const rig = trackedRig("vmx");
    const { vm } = rig;
    let seen: Invalidation[] = [];
    vm.userspacePioDevice = { access: () => void (seen = watch(vm)) };
    rig.finish(function* (cpu) {
      yield cpu.load32(FAR);
      yield cpu.rdmsr(IA32_APICBASE);
      const base = cpu.eax;
      yield cpu.wrmsr(IA32_APICBASE, base & ~0x800, 0);
      yield cpu.out8(0x80, 1);
      yield cpu.wrmsr(IA32_APICBASE, base, 0);
      yield cpu.cpuid(0);
    });
    const root = vm.mmu.tables!.root.address;
    assertEquals(seen.filter(({ operation }) => operation.startsWith("INV")), [{
      operation: "INVEPT type 1",
      root,
    }]);
  });
});

describe("a vCPU that comes to another physical CPU", () => {
  /** A vCPU that is moved from CPU 0 to CPU 1 and back; its page is taken away while it is on CPU 1. */
  function moved(spoil: (vm: Vm) => void = () => {}): Vm {
    const rig = trackedRig("vmx", { pcpus: 2 });
    const { vm } = rig;
    const { pcpus } = vm.machine.scheduler;
    spoil(vm);
    let to = 1;
    const move = function* () {
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
    };
    vm.userspacePioDevice = {
      access(_port, _bytes, value) {
        if (value === 1n) vm.bootstrap.defer(move());
        else straight(vm.evict(FAR, 4096));
      },
    };
    rig.finish(function* (cpu) {
      yield cpu.load32(FAR);
      yield cpu.out8(0x80, 1);
      assertEquals(vm.bootstrap.pcpu!.id, 1);
      yield cpu.load32(FAR);
      yield cpu.out8(0x80, 2);
      to = 0;
      yield cpu.out8(0x80, 1);
      assertEquals(vm.bootstrap.pcpu!.id, 0);
      yield cpu.load32(FAR);
    });
    return vm;
  }

  it("flushes everything there, as that CPU may remember what was taken away meanwhile", () => {
    // The first load, two moves, and the eviction.
    assertEquals(moved().bootstrap.stats.tlb_flush, 4);
  });

  it("would use what it left there otherwise: the oracle finds it", () => {
    const error = assertThrows(
      () =>
        moved(({ bootstrap }) => {
          bootstrap.backend.loadedOn = () => {}; // vmx_vcpu_load_vmcs without its request.
        }),
      StaleTranslation,
      "page taken away",
    );
    assertEquals(error.cpu, 0);
  });
});

describe("what KVM owes a guest whose MOV to a control register exits", () => {
  /** The operations on the TLB between two points of a guest. */
  function owed(program: Parameters<Rig["finish"]>[0]): string[] {
    const rig = trackedRig("vmx");
    let seen: Invalidation[] = [];
    rig.vm.userspacePioDevice = { access: () => void (seen = watch(rig.vm)) };
    rig.finish(function* (cpu) {
      yield cpu.store32(FAR, 1);
      yield cpu.out8(0x80, 1);
      yield* program(cpu);
    });
    return seen.map(({ operation }) => operation).filter((name) => name.startsWith("INV"));
  }

  it("is a flush of its translations where it sets PGE, but for those whose write does not exit", () => {
    // PGE is the guest's own on VMX: the processor itself flushes.
    assertEquals(
      owed(function* (cpu) {
        yield cpu.movToCr4(CR4_PAE | CR4_PGE);
      }),
      [],
    );
  });

  it("is the current root's where it sets SMEP: that of the load, as there is none when the request is served", () => {
    assertEquals(
      owed(function* (cpu) {
        yield cpu.movToCr4(CR4_PAE | CR4_SMEP);
      }),
      ["INVEPT type 1"],
    );
  });

  it("is nothing where no bit changes that matters", () => {
    assertEquals(
      owed(function* (cpu) {
        yield cpu.movToCr4(CR4_PAE | (1 << 2)); // TSD
      }),
      [],
    );
  });

  it("is the guest's own where it switches paging off, and a root loaded anew", () => {
    assertEquals(
      owed(function* (cpu) {
        yield cpu.loadCs(KERNEL32_CS);
        yield cpu.movToCr0(CR0_PE);
        yield cpu.movToCr0(CR0_PE | CR0_PG);
      }).slice(0, 2),
      ["INVVPID type 1", "INVEPT type 1"],
    );
  });
});
