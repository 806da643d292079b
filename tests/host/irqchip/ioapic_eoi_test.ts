import { assert, assertEquals, assertGreaterOrEqual, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  type BackendName,
  BACKENDS,
  type MachineOptions,
  type Quirk,
  SUCCESSIVE_EOI_LIMIT,
  type Vcpu,
  type Vm,
} from "../../../host/mod.ts";
import type { RedirectionEntry } from "../../../abi/mod.ts";
import { REQ_SCAN_IOAPIC } from "../../../host/kvm/requests.ts";
import { bringUp, enter, request, setUp, still, tryingRig, until, write } from "../../support/apic.ts";
import { DATA } from "../../support/guests.ts";
import { readIoapic, route, setEntry, writeIoapic } from "../../support/ioapic.ts";

const VECTOR = 0x51;
const PIN = 5;
const RTC = 8;
const REMOTE_IRR = 0x4000;

function machine(vcpus = 1, machineOptions: MachineOptions = {}): Vm {
  const vm = still({ vcpus }, machineOptions);
  vm.vcpus.forEach(({ lapic }, i) => setUp(lapic, "xapic", { ldr: 1 << i }));
  return vm;
}

/** The vectors whose EOI the I/O APIC sees from a vCPU. */
function handled(vcpu: Vcpu): number[] {
  vcpu.vm.ioapic.scan(vcpu);
  return Array.from({ length: 256 }, (_, vector) => vector).filter((vector) => vcpu.ioapicHandles(vector));
}

/** A device whose line the guest sets through port 0x80. */
function lineOnPort(vm: Vm): void {
  vm.pioBus.add({
    base: 0x80,
    length: 1,
    read: () => undefined,
    write: (_port, _bytes, value) => void vm.ioapic.setLine(PIN, value !== 0n),
  });
}

function serve({ lapic }: Vcpu): void {
  lapic.acknowledge(lapic.injectable());
}

describe("the vectors whose EOI the I/O APIC must see", () => {
  it("are those of level-triggered pins, masked or not, on the vCPUs that they mean", () => {
    const vm = machine(2);
    setEntry(vm, 3, { vector: 0x51, level: true, destination: 1 });
    setEntry(vm, 4, { vector: 0x52, level: true, destination: 1, masked: true });
    setEntry(vm, 6, { vector: 0x53, destination: 1 });
    setEntry(vm, 7, { vector: 0x54, level: true, destination: 0xff });
    // The RTC's pin always counts: after reset its entry is vector 0 to APIC 0.
    assertEquals(vm.vcpus.map(handled), [[0, 0x54], [0x51, 0x52, 0x54]]);
  });

  it("are also those of pins with somebody who wants to be told, and the RTC's", () => {
    const vm = machine();
    const acknowledged: number[] = [];
    setEntry(vm, RTC, { vector: 0x38 });
    setEntry(vm, 6, { vector: 0x53 });
    assertEquals(handled(vm.bootstrap), [0x38]);
    vm.ioapic.onAck(6, (pin) => acknowledged.push(pin));
    assertEquals(handled(vm.bootstrap), [0x38, 0x53]);
    vm.ioapic.setLine(6, true);
    serve(vm.bootstrap);
    vm.bootstrap.lapic.eoi();
    assertEquals(acknowledged, [6]);
  });

  it("keep one that a vCPU has in service and that is routed elsewhere by now, until its EOI", () => {
    const vm = machine(2);
    const [first] = vm.vcpus;
    setEntry(vm, PIN, { vector: VECTOR, level: true, destination: 0 });
    vm.ioapic.setLine(PIN, true);
    serve(first);
    vm.ioapic.setLine(PIN, false);
    setEntry(vm, PIN, { vector: VECTOR, level: true, destination: 1 });
    assertEquals(handled(first), [0, VECTOR]);
    first.requests = 0;
    first.lapic.eoi();
    assertEquals(vm.ioapic.low[PIN] & REMOTE_IRR, 0, "the EOI arrived");
    assert((first.requests & REQ_SCAN_IOAPIC) !== 0, "and it looks again");
    assertEquals(handled(first), [0]);
  });

  it("are none of a disabled APIC's, and none at all where the I/O APIC is in user space", () => {
    const vm = still({ ioapicInKernel: false });
    assertEquals(handled(vm.bootstrap), []);
  });
});

/** How often the handler ran, of three interrupts, and what the entry holds at last. */
function threeInterrupts(backend: BackendName, quirks: readonly Quirk[] = []) {
  const rig = tryingRig({ vm: { backend }, machine: { quirks } });
  const { vm } = rig;
  let served = 0;
  let entry = 0;
  lineOnPort(vm);
  rig.on(VECTOR, function* (cpu) {
    served++;
    yield* writeIoapic(cpu, 0x10 + 2 * PIN, 0x1_8000 | VECTOR);
    yield* write(cpu, "x2apic", 0x0b0, 0);
  }).finish(function* (cpu) {
    yield* enter(cpu, "x2apic");
    yield* route(cpu, PIN, { vector: VECTOR, level: true });
    yield cpu.sti();
    for (let i = 0; i < 3; i++) {
      yield cpu.out8(0x80, 1);
      yield cpu.work(100_000);
      yield cpu.out8(0x80, 0); // The threaded part of the handler.
      yield* writeIoapic(cpu, 0x10 + 2 * PIN, 0x8000 | VECTOR);
      yield cpu.work(100_000);
    }
    yield cpu.cli();
    entry = yield* readIoapic(cpu, 0x10 + 2 * PIN);
  });
  return { served, entry };
}

describe("a guest that masks its level-triggered pin in the handler and unmasks it later", () => {
  for (const backend of BACKENDS) {
    it(`is served each time (${backend})`, () => {
      assertEquals(threeInterrupts(backend), { served: 3, entry: 0x8000 | VECTOR });
    });

    it(`was served once when masked pins were left out (quirk ioapic-scan-skips-masked, ${backend})`, () => {
      const { served, entry } = threeInterrupts(backend, ["ioapic-scan-skips-masked"]);
      assertEquals({ served, entry }, { served: 1, entry: 0xc000 | VECTOR }, "its EOI never arrived");
    });
  }
});

describe("a write of a redirection entry", () => {
  const ELSEWHERE = 1;

  /** External-interrupt exits of vCPU 1 while vCPU 0, which has set the entry `old`, writes one half of it. */
  function exitsOfOther(old: Partial<RedirectionEntry>, half: "low" | "high", value: number): number {
    const rig = tryingRig({ vm: { vcpus: 2 } });
    const other = rig.vm.vcpus[ELSEWHERE];
    let exits = 0;
    rig.aps(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.store32(DATA, 1);
      yield cpu.work(10_000_000);
    }).finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield* bringUp(cpu, "x2apic", 1);
      yield* until(cpu, DATA, 1);
      yield* route(cpu, PIN, { vector: VECTOR, ...old });
      yield cpu.work(10_000);
      const before = other.stats.irq_exits;
      yield* writeIoapic(cpu, (half === "low" ? 0x10 : 0x11) + 2 * PIN, value);
      yield cpu.work(10_000);
      exits = other.stats.irq_exits - before;
    });
    return exits;
  }

  it("gets out of guest mode only who is meant by a fixed interrupt, now or until then", () => {
    assertEquals(exitsOfOther({ destination: 0 }, "low", 0x1_0000 | VECTOR), 0);
    assertEquals(exitsOfOther({ destination: ELSEWHERE }, "low", 0x1_0000 | VECTOR), 1);
    assertEquals(exitsOfOther({ destination: 0 }, "high", ELSEWHERE << 24), 1, "now");
    assertEquals(exitsOfOther({ destination: ELSEWHERE }, "high", 0), 1, "until then");
  });

  it("gets out everybody in other delivery modes", () => {
    assertEquals(exitsOfOther({ destination: 0 }, "low", 0x1_0100 | VECTOR), 1);
  });
});

describe("the real-time clock's pin", () => {
  const tick = (vm: Vm) => {
    vm.routing.setLevel(RTC, false);
    return vm.routing.setLevel(RTC, true);
  };

  it("is coalesced, for user space to see, until everybody who took it has ended it", () => {
    const vm = machine(2);
    setEntry(vm, RTC, { vector: 0x38, destination: 0x03, logical: true });
    assertEquals(tick(vm), 2);
    for (const vcpu of vm.vcpus) {
      vm.ioapic.scan(vcpu);
      serve(vcpu);
    }
    assertEquals(tick(vm), 0);
    vm.vcpus[0].lapic.eoi();
    assertEquals(tick(vm), 0, "the other one has not");
    vm.vcpus[1].lapic.eoi();
    assertEquals(tick(vm), 2);
  });

  it("waits for the one that lowest priority chose, not for all that were meant", () => {
    const vm = machine(3);
    setEntry(vm, RTC, { vector: 0x38, destination: 0x07, logical: true, deliveryMode: 0x100 });
    const chosen = vm.vcpus[0x38 % 3];
    for (let i = 0; i < 3; i++) {
      assertEquals(tick(vm), 1);
      vm.ioapic.scan(chosen);
      serve(chosen);
      assertEquals(tick(vm), 0);
      chosen.lapic.eoi();
    }
  });

  for (const [backend, acceleration] of [["svm", "none"], ["svm", "avic"], ["vmx", "apicv"]] as const) {
    it(`is not coalesced for an EOI that hardware kept to itself (${backend}, ${acceleration})`, () => {
      const rig = tryingRig({ vm: { backend, acceleration } });
      const { vm } = rig;
      const answers: number[] = [];
      let served = 0;
      rig.on(0x38, function* (cpu) {
        served++;
        yield* write(cpu, "xapic", 0x0b0, 0);
      });
      vm.pioBus.add({
        base: 0x80,
        length: 1,
        read: () => undefined,
        write: () => answers.push(tick(vm)) > 0,
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* writeIoapic(cpu, 0x10 + 2 * RTC, 0x38);
        yield cpu.sti();
        for (let i = 0; i < 5; i++) {
          yield cpu.out8(0x80, 1);
          yield cpu.work(100_000);
        }
        yield cpu.cli();
        yield cpu.out8(0x80, 1);
        yield cpu.out8(0x80, 1);
      });
      assertEquals([served, answers], [5, [1, 1, 1, 1, 1, 1, 0]], "the last one was still requested");
    });
  }

  it("waits for nobody where all dropped it", () => {
    const vm = machine();
    setUp(vm.bootstrap.lapic, "xapic", { software: false });
    setEntry(vm, RTC, { vector: 0x38 });
    assertEquals(tick(vm), 0);
    setUp(vm.bootstrap.lapic, "xapic");
    assertEquals(tick(vm), 1);
  });

  it("waits for ever for the EOI of an NMI, which KVM counts and which does not come", () => {
    const vm = machine();
    const { bootstrap } = vm;
    setEntry(vm, RTC, { vector: 0x38, deliveryMode: 0x400 });
    assertEquals(tick(vm), 1);
    assertEquals(tick(vm), 0);
    vm.ioapic.scan(bootstrap);
    request(bootstrap.lapic, 0x38); // Somebody else's interrupt of that vector does not help.
    serve(bootstrap);
    bootstrap.lapic.eoi();
    assertEquals(tick(vm), 0);
  });

  it("is like any other where the kernel sets it: only user space is told of coalescing", () => {
    const vm = machine();
    setEntry(vm, RTC, { vector: 0x38 });
    for (let i = 0; i < 3; i++) {
      vm.ioapic.setLine(RTC, false);
      assertEquals(vm.ioapic.setLine(RTC, true), 1);
    }
  });
});

describe("a guest that never quiets its level-triggered device", () => {
  it(`is given 10 milliseconds of peace after each ${SUCCESSIVE_EOI_LIMIT} interrupts in a row`, () => {
    const rig = tryingRig();
    const { vm } = rig;
    let served = 0;
    let before = 0;
    let longest = 0;
    lineOnPort(vm);
    rig.on(VECTOR, function* (cpu) {
      served++;
      yield cpu.rdtsc();
      longest = Math.max(longest, cpu.eax - before);
      before = cpu.eax;
      yield* write(cpu, "x2apic", 0x0b0, 0);
    }).finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield* route(cpu, PIN, { vector: VECTOR, level: true });
      yield cpu.out8(0x80, 1);
      yield cpu.rdtsc();
      before = cpu.eax;
      yield cpu.sti();
      yield cpu.work(1000);
      assertEquals(served, SUCCESSIVE_EOI_LIMIT, "the first thousand cycles that it had");
      while (served === SUCCESSIVE_EOI_LIMIT) yield cpu.work(1000);
      assertEquals(served, 2 * SUCCESSIVE_EOI_LIMIT);
      yield cpu.out8(0x80, 0);
      yield cpu.work(50_000_000);
      yield cpu.cli();
    });
    assertEquals(vm.counters()["kvm_ioapic_delayed_eoi_inj"], 2);
    assertEquals(served, 2 * SUCCESSIVE_EOI_LIMIT, "the line is down when the second pause ends");
    const tenMilliseconds = 25_000_000;
    assertGreaterOrEqual(longest, tenMilliseconds);
    assertLess(longest, tenMilliseconds + 100_000);
  });

  it("is not taken for one whose device is quiet from time to time", () => {
    const vm = machine();
    const { bootstrap } = vm;
    setEntry(vm, PIN, { vector: VECTOR, level: true });
    for (let i = 0; i < 3 * SUCCESSIVE_EOI_LIMIT; i++) {
      vm.ioapic.setLine(PIN, true);
      if (bootstrap.lapic.injectable() === -1) break;
      serve(bootstrap);
      if (i % 1000 === 999) vm.ioapic.setLine(PIN, false);
      bootstrap.lapic.eoi();
    }
    assertEquals(vm.counters()["kvm_ioapic_delayed_eoi_inj"], undefined);
    assertEquals(vm.counters()["kvm_ack_irq"], 3 * SUCCESSIVE_EOI_LIMIT);
  });
});
