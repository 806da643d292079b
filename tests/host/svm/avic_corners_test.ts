import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import { straight, type VmOptions } from "../../../host/mod.ts";
import { kickTargets } from "../../../host/svm/avic/kick.ts";
import { physicalDoorbell, writePhysical } from "../../../host/svm/avic/tables.ts";
import { enter, read, setUp, still, tryingRig, write } from "../../support/apic.ts";
import { logicalEntries, physicalEntry, svm } from "../../support/avic.ts";
import { exits, exitsOf, mark, tracingRig } from "../../support/events.ts";
import { put } from "../../support/posted.ts";

const AVIC: VmOptions = { backend: "svm", acceleration: "avic" };

describe("IsRunning", () => {
  it("stays clear when a vCPU that blocks is on a CPU again: it looks for requests, and may sleep on", () => {
    const vm = still({ ...AVIC, vcpus: 2 }, { pcpus: 2 });
    const [, target] = vm.vcpus;
    const running = () => physicalEntry(vm, 1).running;
    put(target, "runs in the host");
    assertEquals(running(), true);
    target.blocked = true;
    straight(svm(target).blocking()!);
    assertEquals(running(), false);
    straight(svm(target).put()!);
    straight(svm(target).load()!); // Woken, for nothing.
    assertEquals(running(), false, "an IPI now must exit, or it would not wake who sleeps again");
    target.blocked = false;
    straight(svm(target).unblocking()!);
    assertEquals(running(), true);
  });

  it("comes with a host's APIC ID of 12 bits", () => {
    const table = new Uint32Array(2);
    writePhysical(table, 0, { page: 0x12_3456_7000, hostId: 0xabc, running: true });
    assertEquals(physicalDoorbell(table, 0), 0xabc);
    assertEquals([...table], [0x3456_7abc, 0xc000_0012]);
  });
});

describe("a write of the destination format register", () => {
  it("only drops the logical ID's entry: that of the new format comes with the next logical ID", () => {
    const rig = tryingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      yield* write(cpu, "xapic", 0x0d0, 0x0100_0000);
      assertEquals(logicalEntries(rig.vm), [[0, 0]]);
      yield* write(cpu, "xapic", 0x0e0, 0x0fff_ffff);
      assertEquals(logicalEntries(rig.vm), [], "though it would have one in cluster 0");
    });
  });

  it("is looked at as it was written, before KVM sets the register's low bits (avic_handle_dfr_update)", () => {
    const rig = tryingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      yield* write(cpu, "xapic", 0x0d0, 0x0100_0000);
      yield* write(cpu, "xapic", 0x0e0, 0xf000_0000);
      assertEquals(yield* read(cpu, "xapic", 0x0e0), 0xffff_ffff, "flat, as before");
      assertEquals(logicalEntries(rig.vm), []);
    });
  });
});

describe("the fast way to kick a target", () => {
  it("asks everybody where the exit's index is not the physical destination: KVM warns of that", () => {
    const kicked = (index: number) => {
      const vm = still({ ...AVIC, vcpus: 3, trace: 64 }, { pcpus: 3 });
      for (const { lapic } of vm.vcpus) setUp(lapic, "xapic");
      straight(kickTargets({ source: vm.bootstrap, low: 0x4041, high: 1 << 24, index }));
      const { kvm_apicv_accept_irq: accepted, kvm_avic_kick_vcpu_slowpath: slow } = vm.counters();
      return [accepted, slow ?? 0];
    };
    assertEquals(kicked(1), [1, 0]);
    assertEquals(kicked(2), [1, 1]);
  });
});

describe("the task priority while AVIC is in use", () => {
  it("reaches V_TPR from KVM's hands: hybrid AVIC's writes of the MSR are emulated (d02e48830e3f)", () => {
    const rig = tryingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield* write(cpu, "x2apic", 0x080, 0x50);
      assertEquals(svm(rig.vm.bootstrap).vmcb.intCtl & 0xf, 5);
      yield cpu.cpuid(0);
      assertEquals(yield* read(cpu, "x2apic", 0x080), 0x50, "nor does an old V_TPR come back");
    });
  });

  it("loses its low four bits at an exit: KVM takes it from V_TPR (sync_cr8_to_lapic)", () => {
    const rig = tryingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x080, 0x5a);
      assertEquals(yield* read(cpu, "xapic", 0x080), 0x5a);
      yield cpu.cpuid(0);
      assertEquals(yield* read(cpu, "xapic", 0x080), 0x50);
    });
  });
});

describe("the xAPIC's page of hybrid AVIC, once a guest is in x2APIC mode", () => {
  it("is marked as MMIO like any address without a memory slot", () => {
    const rig = tracingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(0xfee0_0030)), [["npf", 0x1_0000_0004n]]);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(0xfee0_0030)), [["npf", 0x1_0000_000dn]]);
      assertEquals(cpu.eax, 0xffff_ffff);
    });
  });
});

describe("the xAPIC's page, while nothing inhibits AVIC", () => {
  it("is memory to a guest in x2APIC mode: x2AVIC decodes no address", () => {
    const rig = tracingRig({ vm: { ...AVIC, acceleration: "x2avic" } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      const from = mark(rig.vm);
      yield cpu.store32(0xfee0_0080, 0xabcd);
      yield cpu.load32(0xfee0_0080);
      assertEquals([cpu.eax, exits(rig.vm, from)], [0xabcd, []]);
      assertEquals(yield* read(cpu, "x2apic", 0x080), 0, "the task priority is another thing");
      setApicvInhibit(rig.vm, "BLOCKIRQ", true);
      yield cpu.cpuid(0);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(0xfee0_0080)), [["npf", 0x1_0000_0004n]]);
      assertEquals(cpu.eax, 0xffff_ffff, "KVM's quirk: a hole");
    });
  });

  it("is memory to a vCPU whose APIC is disabled: it alone is without AVIC", () => {
    const rig = tracingRig({ vm: AVIC });
    rig.finish(function* (cpu) {
      yield cpu.wrmsr(0x1b, 0xfee0_0100);
      assertEquals(yield* exitsOf(rig.vm, cpu.store32(0xfee0_0080, 0x50)), []);
      assertEquals(rig.vm.bootstrap.lapic.get(0x080), 0);
    });
  });
});

describe("AVIC that is given up", () => {
  it("has writes of CR8 intercepted at once, not when KVM next looks at events (87d0f901a9bd)", () => {
    const { bootstrap } = still(AVIC);
    const { vmcb } = svm(bootstrap);
    assertEquals(vmcb.interceptCr8Write, false);
    bootstrap.lapic.apicvActive = false;
    svm(bootstrap).refreshApicv();
    assertEquals(vmcb.interceptCr8Write, true);
  });
});

describe("a handler that takes interrupts", () => {
  it("is not interrupted by a lower class that was requested with its own", () => {
    const rig = tryingRig({ vm: AVIC });
    const log: string[] = [];
    rig.on(0x61, function* (cpu) {
      log.push("61");
      yield cpu.sti();
      yield cpu.work(1000);
      assertEquals(yield* read(cpu, "xapic", 0x0a0), 0x60, "the processor priority");
      yield cpu.cli();
      log.push("61 ends");
      yield* write(cpu, "xapic", 0x0b0, 0);
    }).on(0x51, function* (cpu) {
      log.push("51");
      yield* write(cpu, "xapic", 0x0b0, 0);
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      for (const vector of [0x51, 0x61]) yield* write(cpu, "xapic", 0x300, 0x4_0000 | vector);
      yield cpu.sti();
      yield cpu.work(1000);
      yield cpu.cli();
    });
    assertEquals(log, ["61", "61 ends", "51"]);
  });
});
