import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { HostFailure, Machine, type Vm, type VmOptions } from "../../../host/mod.ts";
import { pidPointerTable } from "../../../host/vmx/mod.ts";
import { type Asking, enter, send, still, tryingRig } from "../../support/apic.ts";
import { type Exit, exits, mark } from "../../support/events.ts";
import { pir, put, shown, vmx } from "../../support/posted.ts";
import type { Rig } from "../../support/guests.ts";

const VECTOR = 0x41;
const EXITS: readonly Exit[] = [["APIC_WRITE", 0x300n]];

/** The table's words, as hardware finds them. */
function tableOf(vm: Vm): Uint32Array {
  return vm.machine.hostMemory.at(vmx(vm.bootstrap).vmcs.pidPointerTable);
}

function ipiv(options: VmOptions = {}): Rig {
  return tryingRig({
    machine: { pcpus: 8 },
    vm: { vcpus: 2, acceleration: "ipiv", trace: 1 << 12, ...options },
  });
}

/** Runs a guest that sends one IPI after the other; answers with the exits of each. */
function sends(rig: Rig, destinations: readonly number[]): (readonly Exit[])[] {
  const seen: Exit[][] = [];
  rig.finish(function* (cpu): Asking<void> {
    yield* enter(cpu, "x2apic");
    for (const high of destinations) {
      const from = mark(rig.vm);
      yield* send(cpu, "x2apic", { low: VECTOR, high });
      seen.push(exits(rig.vm, from));
    }
  });
  return seen;
}

describe("the PID-pointer table", () => {
  it("has an entry for each vCPU, and none for other numbers, up to KVM's limit", () => {
    const vm = still({ vcpuIds: [0, 3, 9], acceleration: "ipiv" });
    const words = tableOf(vm);
    assertEquals(words.byteLength, 4096 * 8);
    for (let id = 0; id < 4096; id++) {
      const vcpu = vm.vcpus.find(({ vcpuId }) => vcpuId === id);
      const entry = words[2 * id] + words[2 * id + 1] * 2 ** 32;
      const wanted = vcpu === undefined ? 0 : vmx(vcpu).vmcs.postedIntrDesc + 1;
      assertEquals(entry, wanted, `entry ${id}`);
    }
    for (const vcpu of vm.vcpus) {
      const { vmcs, posted } = vmx(vcpu);
      assertEquals(vm.machine.hostMemory.at(vmcs.postedIntrDesc), posted.descriptor.words);
      assertEquals(vmcs.postedIntrDesc % 64, 0);
      assertEquals([vmcs.postedIntrNv, vmcs.lastPidPointerIndex], [0xf2, 4095]);
      assertEquals(vmcs.pidPointerTable, pidPointerTable(vm).address);
    }
  });

  for (const [limit, pages] of [[1, 1], [512, 1], [513, 2], [1024, 2], [1025, 4], [2049, 8]]) {
    it(`has ${pages} pages where there may be ${limit} vCPUs (KVM_CAP_MAX_VCPU_ID)`, () => {
      const vm = still({ maxVcpuIds: limit, acceleration: "ipiv" });
      assertEquals(tableOf(vm).byteLength, 4096 * pages);
      assertEquals(vmx(vm.bootstrap).vmcs.lastPidPointerIndex, limit - 1);
    });
  }

  it("refuses limits that cannot be, and vCPUs beyond one", () => {
    for (const maxVcpuIds of [0, 1.5, 4097]) {
      assertThrows(
        () => still({ maxVcpuIds }),
        RangeError,
        `Cannot limit vCPU IDs to ${maxVcpuIds}: allowed are`,
      );
    }
    assertThrows(() => still({ maxVcpuIds: 2, vcpuIds: [0, 2] }), RangeError, "Cannot create vCPU 2");
  });

  it("is not there without IPI virtualization, nor is the descriptor without APICv", () => {
    for (const acceleration of ["none", "apicv"] as const) {
      const { vmcs } = vmx(still({ acceleration }).bootstrap);
      assertEquals([vmcs.pidPointerTable, vmcs.lastPidPointerIndex], [0, 0]);
      assertEquals(vmcs.postedIntrDesc !== 0, acceleration === "apicv");
    }
  });

  it("lets hardware send where an entry is valid; elsewhere, and beyond its last index, the ICR write exits", () => {
    const seen = sends(ipiv({ maxVcpuIds: 4 }), [1, 2, 3, 4, 5, 512, 0xff, 0xffff_ffff, 1]);
    assertEquals(seen, [[], ...Array(7).fill(EXITS), []]);
  });

  it("has its last entry at the limit", () => {
    assertEquals(sends(ipiv({ maxVcpuIds: 2 }), [1, 2]), [[], EXITS]);
  });

  it("is looked up with all 32 bits of an x2APIC ID", () => {
    assertEquals(sends(ipiv(), [0x1_0001, 0x8000_0001, 1]), [EXITS, EXITS, []]);
  });

  for (
    const [what, low, high] of [
      ["is not marked valid", 0, 0x10],
      ["has another bit below its address set", 3, 0x10],
      ["has bit 5 set", 0x21, 0x10],
      ["names an address beyond the processor's 46 bits", 1, 0x4000],
      ["names an address that only bit 63 is beyond", 1, 0x8000_0010],
    ] as const
  ) {
    it(`sends nothing through an entry that ${what}`, () => {
      const rig = ipiv();
      tableOf(rig.vm).set([low, high], 2);
      assertEquals(sends(rig, [1]), [EXITS]);
      assertEquals(pir(rig.vm.vcpus[1]), []);
    });
  }
});

describe("an entry of the PID-pointer table, when a vCPU's creation fails", () => {
  const EEXIST = -17;
  const EINVAL = -22;
  const EMFILE = -24;
  const stale = (id: number) => `IPI virtualization follows PID-pointer table entry ${id} to 0x`;

  /** User space creates a vCPU more, in vain; and then the guest interrupts that number. */
  function play(id: number, quirk: boolean): { error: number; seen: (readonly Exit[])[] } {
    const rig = tryingRig({
      machine: { quirks: quirk ? ["pid-table-keeps-freed"] : [] },
      vm: { vcpus: 2, acceleration: "ipiv", trace: 1 << 12 },
    });
    const error = rig.vm.createVcpu(id);
    return { error, seen: sends(rig, [id]) };
  }

  it("is taken back: the number has no vCPU, and KVM finds none either", () => {
    assertEquals(play(7, false), { error: EMFILE, seen: [EXITS] });
  });

  it("stays, and hardware follows it to memory that is free (quirk pid-table-keeps-freed)", () => {
    assertThrows(() => play(7, true), HostFailure, stale(7));
  });

  it("is not touched where the number is taken: that is looked at first", () => {
    assertEquals(play(1, false), { error: EEXIST, seen: [[]] });
  });

  it("is overwritten where the number is taken, and a vCPU that lives is sent into free memory (quirk)", () => {
    assertThrows(() => play(1, true), HostFailure, stale(1));
  });

  it("is not there for a number beyond the limit", () => {
    const vm = still({ acceleration: "ipiv", maxVcpuIds: 4 }, { quirks: ["pid-table-keeps-freed"] });
    const before = tableOf(vm).slice();
    assertEquals([vm.createVcpu(4), tableOf(vm)], [EINVAL, before]);
  });

  it("matters to nobody without IPI virtualization", () => {
    for (
      const options of [{ acceleration: "apicv" }, { acceleration: "none" }, { backend: "svm" }] as const
    ) {
      const vm = still({ vcpus: 2, ...options }, { quirks: ["pid-table-keeps-freed"] });
      assertEquals([vm.createVcpu(1), vm.createVcpu(5)], [EEXIST, EMFILE]);
    }
  });
});

describe("the CPU that a descriptor names", () => {
  for (const x2apicHost of [true, false]) {
    it(`is the whole ID of a host in x2APIC mode, and bits 15:8 in xAPIC mode (${x2apicHost ? "x2" : "x"}APIC)`, () => {
      const vm = still({ vcpus: 201, acceleration: "ipiv" }, { pcpus: 202, x2apicHost });
      const last = vm.vcpus[200];
      for (const vcpu of vm.vcpus) put(vcpu, "runs in the host");
      assertEquals(last.pcpu!.id, 200);
      assertEquals(shown(last), `nv=f2 ndst=${x2apicHost ? 200 : 200 << 8}`);
    });

    it(`is the one that is notified (${x2apicHost ? "x2" : "x"}APIC)`, () => {
      const rig = tryingRig({
        machine: { pcpus: 6, x2apicHost },
        vm: { vcpus: 6, acceleration: "ipiv", trace: 1 << 12 },
      });
      const { vm } = rig;
      const notified: number[] = [];
      for (const pcpu of vm.machine.scheduler.pcpus) {
        const notify = pcpu.notify.bind(pcpu);
        pcpu.notify = (time) => {
          notified.push(pcpu.id);
          notify(time);
        };
      }
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        // They wait for their start-up with interrupts disabled: as if they did not.
        for (const vcpu of vm.vcpus) vmx(vcpu).posted.descriptor.testAndClearSn();
        for (let high = 0; high < 6; high++) yield* send(cpu, "x2apic", { low: VECTOR, high });
      });
      assertEquals(notified, vm.vcpus.map(({ lastPcpu, pcpu }) => (pcpu ?? lastPcpu)!.id));
      assertEquals(new Set(notified).size, 6);
    });
  }

  it("has an ID of 8 bits in xAPIC mode: there are no more than 255 of them", () => {
    assertThrows(
      () => new Machine({ pcpus: 256, x2apicHost: false }),
      RangeError,
      "Cannot build a machine of 256 physical CPUs in xAPIC mode: allowed are 1 to 255",
    );
    assertEquals(new Machine({ x2apicHost: false }).scheduler.pcpus.length, 255);
    assertEquals(new Machine({ pcpus: 256 }).scheduler.pcpus.length, 256);
  });
});
