import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { emulatedWrite } from "../../../host/lapic/mod.ts";
import { type Acceleration, Machine, type VmOptions, VmrunFailed } from "../../../host/mod.ts";
import { AVIC_RULES } from "../../../host/mod.ts";
import { logicalIndex } from "../../../host/svm/mod.ts";
import { bringUp, enter, rebuildMap, setUp, still, tryingRig, until, write } from "../../support/apic.ts";
import { hostWords, logicalEntries, physicalEntry, svm } from "../../support/avic.ts";
import { eventsOf, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";

const AVIC: VmOptions = { backend: "svm", acceleration: "avic" };
const X2AVIC: VmOptions = { backend: "svm", acceleration: "x2avic" };

describe("the physical APIC ID table", () => {
  it("has a valid entry for each vCPU, at its number, with its own page: the registers themselves", () => {
    const vm = still({ ...AVIC, vcpuIds: [0, 3, 254] });
    for (const vcpu of vm.vcpus) {
      const { valid, page } = physicalEntry(vm, vcpu.vcpuId);
      assert(valid);
      assertEquals(page % 4096, 0);
      assertEquals(page, svm(vcpu).vmcb.avicBackingPage);
      assert(hostWords(vm, page) === vcpu.lapic.page);
    }
    for (const id of [1, 2, 4, 253]) assertEquals(physicalEntry(vm, id).valid, false);
  });

  it("is as long as the most that the processor can use, or as there may be vCPUs", () => {
    const words = (options: VmOptions) => {
      const vm = still(options);
      return hostWords(vm, svm(vm.bootstrap).vmcb.avicPhysicalTable).length;
    };
    // In pages: 255 entries of 8 bytes are less than one, 512 are one.
    assertEquals(words(AVIC), 1024);
    assertEquals(words(X2AVIC), 1024);
  });

  for (
    const [acceleration, mode, index] of [
      ["avic", "xapic", 0xfe],
      ["avic", "x2apic", 0xfe], // Hybrid: hardware believes in an xAPIC.
      ["x2avic", "xapic", 0xfe],
      ["x2avic", "x2apic", 0x1ff],
    ] as const
  ) {
    it(`is used up to ${index} by ${acceleration} for a guest in ${mode} mode, and no farther than vCPU numbers go`, () => {
      const vm = still({ backend: "svm", acceleration });
      setUp(vm.bootstrap.lapic, mode);
      assertEquals(svm(vm.bootstrap).vmcb.avicMaxIndex, index);
      assertEquals(svm(vm.bootstrap).vmcb.x2avic, acceleration === "x2avic" && mode === "x2apic");
      const few = still({ backend: "svm", acceleration, maxVcpuIds: 8 });
      setUp(few.bootstrap.lapic, mode);
      assertEquals(few.bootstrap.lapic.apicvActive, true);
      assertEquals(svm(few.bootstrap).vmcb.avicMaxIndex, 7);
    });
  }

  for (const [acceleration, last] of [["avic", 0xfe], ["x2avic", 0x1ff]] as const) {
    it(`ends ${acceleration} for a virtual machine that has a vCPU above ${last}`, () => {
      const fits = still({ backend: "svm", acceleration, vcpuIds: [0, last] });
      assertEquals(fits.apicvInhibits, 0);
      const tooBig = still({ backend: "svm", acceleration, vcpuIds: [0, last + 1] });
      assert((tooBig.apicvInhibits & 1 << 12) !== 0); // PHYSICAL_ID_TOO_BIG
      assertEquals(tooBig.vcpus.map(({ lapic }) => lapic.apicvActive), [false, false]);
      assertEquals(svm(tooBig.bootstrap).vmcb.avic, false);
    });
  }

  for (const ipiv of [true, false]) {
    it(`says where a vCPU runs ${ipiv ? "while it does, and not while it sleeps" : "never, without enable_ipiv"}`, () => {
      const rig = tryingRig({
        vm: { ...AVIC, vcpus: 2, ipiv, haltPollNs: 0 },
        machine: { pcpus: 4 },
      });
      const { vm } = rig;
      const look = () => vm.vcpus.map(({ vcpuId }) => physicalEntry(vm, vcpuId).running);
      const seen: Record<string, boolean[]> = {};
      rig.on(0x41, function* (cpu) {
        seen.handler = look();
        assertEquals(physicalEntry(vm, 1).hostId, vm.vcpus[1].pcpu!.id);
        yield* write(cpu, "xapic", 0x0b0, 0);
      });
      assertEquals(look(), [false, false]); // Nobody runs yet.
      rig.aps(function* (cpu) {
        yield* enter(cpu, "xapic");
        seen.started = look();
        yield cpu.xadd32(DATA, 1);
        yield cpu.sti();
        yield cpu.hlt();
        yield cpu.cli();
        yield cpu.xadd32(DATA, 1);
        yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield cpu.cpuid(0);
        seen.alone = look();
        yield* bringUp(cpu, "xapic", 1);
        yield* until(cpu, DATA, 1);
        yield cpu.work(200_000);
        seen.halted = look();
        yield* write(cpu, "xapic", 0x310, 1 << 24);
        yield* write(cpu, "xapic", 0x300, 0x4041);
        yield* until(cpu, DATA, 2);
        yield cpu.work(200_000);
        seen.forever = look();
      });
      const on = ipiv;
      assertEquals(seen, {
        alone: [on, false],
        started: [on, on],
        halted: [on, false],
        handler: [on, on],
        forever: [on, false],
      });
    });
  }

  it("follows a vCPU to another CPU, and says at no time that a preempted one is running", () => {
    // Two vCPUs share one of two CPUs.
    const rig = tryingRig({
      vm: { ...AVIC, vcpus: 3, haltPollNs: 0 },
      machine: { pcpus: 2, timeSlice: 50_000 },
    });
    const { vm } = rig;
    const hosts = new Set<number>();
    const check = () => {
      for (const vcpu of vm.vcpus) {
        const { running, hostId } = physicalEntry(vm, vcpu.vcpuId);
        if (vcpu.processor.guestMode) assert(running, `vCPU ${vcpu.vcpuId} is in guest mode`);
        if (vcpu.pcpu === undefined) assert(!running, `vCPU ${vcpu.vcpuId} has no CPU`);
        if (running) assertEquals(hostId, vcpu.pcpu!.id);
        if (running && vcpu.vcpuId === 2) hosts.add(hostId);
      }
    };
    rig.aps(function* (cpu) {
      for (let i = 0; i < 40; i++) {
        yield cpu.work(11_000 + 1000 * i);
        check();
      }
      yield cpu.xadd32(DATA, 1);
    }).finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* bringUp(cpu, "xapic", 2);
      for (let i = 0; i < 60; i++) {
        yield cpu.work(7000);
        check();
      }
      yield* until(cpu, DATA, 2);
    });
    assertEquals(hosts, new Set([0, 1]));
  });
});

describe("the logical APIC ID table", () => {
  it("has an entry for one bit of eight, flat", () => {
    for (let bit = 0; bit < 8; bit++) assertEquals(logicalIndex(1 << bit, true), bit);
    for (const none of [0, 3, 0x81, 0xff]) assertEquals(logicalIndex(none, true), -1);
  });

  it("has an entry for one bit of four in each of fifteen clusters", () => {
    for (let id = 0; id < 256; id++) {
      const place = [1, 2, 4, 8].indexOf(id & 0xf);
      const expected = place < 0 || id >= 0xf0 ? -1 : 4 * Math.floor(id / 16) + place;
      assertEquals(logicalIndex(id, false), expected, `logical ID ${id}`);
    }
  });

  it("follows the logical IDs that the guest writes, and forgets the old ones", () => {
    const rig = tryingRig({ vm: AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      assertEquals(logicalEntries(vm), []);
      yield* write(cpu, "xapic", 0x0d0, 0x0400_0000);
      assertEquals(logicalEntries(vm), [[2, 0]]);
      yield* write(cpu, "xapic", 0x0d0, 0x4000_0000);
      assertEquals(logicalEntries(vm), [[6, 0]]);
      yield* write(cpu, "xapic", 0x0d0, 0x0600_0000); // Two bits.
      assertEquals(logicalEntries(vm), []);
    });
  });

  it("drops the entry with the destination format, and gets the new one with the next logical ID", () => {
    const rig = tryingRig({ vm: AVIC });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      yield* write(cpu, "xapic", 0x0d0, 0x2000_0000);
      assertEquals(logicalEntries(vm), [[5, 0]]);
      yield* write(cpu, "xapic", 0x0e0, 0x0fff_ffff);
      assertEquals(logicalEntries(vm), []);
      yield* write(cpu, "xapic", 0x0d0, 0x3200_0000);
      assertEquals(logicalEntries(vm), [[4 * 3 + 1, 0]]);
      yield* write(cpu, "xapic", 0x0d0, 0xf200_0000); // Cluster 15 is nobody's.
      assertEquals(logicalEntries(vm), []);
    });
  });

  it("is brought up to date when AVIC is taken up again", () => {
    const vm = still({ ...AVIC, vcpus: 2 });
    const [, { lapic }] = vm.vcpus;
    setUp(lapic, "xapic", { id: 7 }); // Not its own: AVIC is inhibited.
    vm.vcpus.forEach((vcpu) => svm(vcpu).refreshApicv());
    assert(vm.apicvInhibits !== 0);
    emulatedWrite(lapic, 0x0d0, 0x0200_0000);
    assertEquals(logicalEntries(vm), []);
    emulatedWrite(lapic, 0x020, 1 << 24);
    rebuildMap(vm);
    assertEquals(vm.apicvInhibits, 0);
    lapic.apicvActive = true;
    svm(vm.vcpus[1]).refreshApicv();
    assertEquals(logicalEntries(vm), [[1, 1]]);
  });

  it("has no entries for APICs in x2APIC mode", () => {
    const vm = still({ ...X2AVIC, vcpus: 2 });
    for (const { lapic } of vm.vcpus) setUp(lapic, "x2apic");
    assertEquals(logicalEntries(vm), []);
  });
});

describe("VMRUN", () => {
  const spoil: Record<string, (vmcb: ReturnType<typeof svm>["vmcb"]) => void> = {
    "x2AVIC is enabled with AVIC alone": (vmcb) => {
      vmcb.avic = false;
      vmcb.x2avic = true;
    },
    "AVIC_PHYSICAL_MAX_INDEX is at most 255 in xAPIC mode": (vmcb) => void (vmcb.avicMaxIndex = 256),
    "AVIC_PHYSICAL_MAX_INDEX is at most 511 in x2APIC mode": (vmcb) => {
      vmcb.x2avic = true;
      vmcb.avicMaxIndex = 512;
    },
    "APIC_BACKING_PAGE is the address of a page": (vmcb) => void (vmcb.avicBackingPage += 64),
    "PHYSICAL_TABLE is the address of a page": (vmcb) => void (vmcb.avicPhysicalTable = 0x1000),
    "LOGICAL_TABLE is the address of a page": (vmcb) => void (vmcb.avicLogicalTable += 8),
  };

  it("checks what the tests below spoil", () => {
    assertEquals(AVIC_RULES.map(({ rule }) => rule), Object.keys(spoil));
  });

  for (const [rule, breaks] of Object.entries(spoil)) {
    it(`refuses a VMCB where it does not hold that ${rule}`, () => {
      const rig = tracingRig({ vm: X2AVIC });
      rig.start(function* (cpu) {
        yield cpu.cpuid(0);
        breaks(svm(rig.vm.bootstrap).vmcb);
        svm(rig.vm.bootstrap).vmcb.avicDirty = true;
        yield cpu.cpuid(0);
        throw new Error("the guest goes on");
      });
      const error = assertThrows(() => rig.vm.machine.run(), VmrunFailed, rule) as VmrunFailed;
      assertEquals(error.broken.map((broken) => broken.rule), [rule]);
      assertEquals(eventsOf(rig.vm, "kvm_userspace_exit").at(-1)!.args[0], 9); // KVM_EXIT_FAIL_ENTRY
    });
  }

  it("accepts the limits themselves", () => {
    const rig = tryingRig({ vm: X2AVIC });
    rig.finish(function* (cpu) {
      const { vmcb } = svm(rig.vm.bootstrap);
      vmcb.avicMaxIndex = 255;
      vmcb.avicDirty = true;
      yield cpu.cpuid(0);
      yield* enter(cpu, "x2apic");
      vmcb.avicMaxIndex = 511;
      vmcb.avicDirty = true;
      vmcb.avicLogicalTable = 1; // Not used in x2APIC mode.
      yield cpu.cpuid(0);
    });
  });
});

describe("whether AVIC is there", () => {
  const cases: readonly [options: VmOptions, uses: boolean][] = [
    [{ acceleration: "avic" }, true],
    [{ acceleration: "x2avic" }, true],
    [{ acceleration: "none" }, false],
    [{ acceleration: "avic", apicv: false }, false],
    [{ acceleration: "avic", hostSemantics: "2012" }, false], // AVIC came to KVM in 2016.
    [{ acceleration: "avic", hostSemantics: "2018", x2apic: false }, true],
    [{ acceleration: "x2avic", hostSemantics: "2021" }, false], // The guest may use x2APIC mode.
    [{ acceleration: "x2avic", hostSemantics: "2022" }, true],
  ];
  for (const [options, uses] of cases) {
    it(`is ${uses}, with ${JSON.stringify(options)}`, () => {
      const vm = new Machine().createVm({ backend: "svm", ...options });
      assertEquals(vm.bootstrap.lapic.apicvActive, uses);
      assertEquals(svm(vm.bootstrap).vmcb.avic, uses);
    });
  }

  it("and IPIs without exits, enable_ipiv says", () => {
    const ipiv = (acceleration: Acceleration, options: VmOptions = {}) =>
      new Machine().createVm({ backend: "svm", acceleration, ...options }).enableIpiv;
    assertEquals(ipiv("avic"), true);
    assertEquals(ipiv("x2avic"), true);
    assertEquals(ipiv("avic", { ipiv: false }), false);
    assertEquals(ipiv("avic", { apicv: false }), false);
    assertEquals(ipiv("none"), false);
  });
});
