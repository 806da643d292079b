import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Lapic } from "../../../host/lapic/mod.ts";
import { BACKENDS, TP, type Vm, type VmOptions } from "../../../host/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  bringUp,
  enter,
  read,
  request,
  setUp,
  still,
  tryingRig,
  until,
  vectors,
  write,
} from "../../support/apic.ts";
import { DATA } from "../../support/guests.ts";
import { readIoapic, route, setEntry, writeIoapic } from "../../support/ioapic.ts";

const REMOTE_IRR = 0x4000;
const LEVEL = { level: true } as const;
const PIN = 5;
const VECTOR = 0x51;

/** A machine that stands still, all its APICs enabled. */
function machine(vcpus = 1, options: VmOptions & { mode?: ApicMode } = {}): Vm {
  const { mode = "xapic", ...rest } = options;
  const vm = still({ vcpus, ...rest });
  vm.vcpus.forEach(({ lapic }, i) => setUp(lapic, mode, mode === "xapic" ? { ldr: 1 << i } : {}));
  return vm;
}

/** Serves the highest request of an APIC. Answers with its vector. */
function serve(lapic: Lapic): number {
  const vector = lapic.injectable();
  lapic.acknowledge(vector);
  return vector;
}

const requested = (vm: Vm) => vm.vcpus.map(({ lapic }) => vectors(lapic, 0x200));
const remoteIrr = (vm: Vm, pin = PIN) => (vm.ioapic.low[pin] & REMOTE_IRR) !== 0;

describe("an edge-triggered pin", () => {
  it("sends when its line rises, and not while it stays up", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, PIN, { vector: VECTOR });
    assertEquals(vm.ioapic.setLine(PIN, true), 1);
    assertEquals(vm.ioapic.setLine(PIN, true), 0, "coalesced");
    assertEquals(serve(lapic), VECTOR);
    assertEquals(lapic.eoi(), VECTOR);
    assertEquals(requested(vm), [[]], "an EOI does not send again");
    assertEquals(vm.ioapic.setLine(PIN, false), 1);
    assertEquals(requested(vm), [[]], "nor does the line when it falls");
    assertEquals(vm.ioapic.setLine(PIN, true), 1);
    assertEquals(requested(vm), [[VECTOR]]);
    assertEquals(remoteIrr(vm), false);
  });

  it("has lost an edge that came while it was masked", () => {
    const vm = machine();
    setEntry(vm, PIN, { vector: VECTOR, masked: true });
    assertEquals(vm.ioapic.setLine(PIN, true), -1);
    setEntry(vm, PIN, { vector: VECTOR });
    assertEquals(requested(vm), [[]]);
    assertEquals(vm.ioapic.setLine(PIN, true), 0, "the line is up already");
    vm.ioapic.setLine(PIN, false);
    assertEquals(vm.ioapic.setLine(PIN, true), 1);
  });
});

describe("a level-triggered pin", () => {
  it("sends when its line rises, and remembers it until the EOI", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    assertEquals(vm.ioapic.setLine(PIN, true), 1);
    assertEquals(remoteIrr(vm), true);
    assertEquals(vectors(lapic, 0x180), [VECTOR], "TMR");
    assertEquals(vm.ioapic.setLine(PIN, true), -1, "it is in service");
    serve(lapic);
    vm.ioapic.setLine(PIN, false);
    assertEquals(remoteIrr(vm), true, "the line does not end it");
    lapic.eoi();
    assertEquals(remoteIrr(vm), false);
    assertEquals(requested(vm), [[]]);
  });

  it("sends again at the EOI while its line is up", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    vm.ioapic.setLine(PIN, true);
    for (let i = 0; i < 3; i++) {
      assertEquals(serve(lapic), VECTOR);
      lapic.eoi();
      assertEquals([requested(vm), remoteIrr(vm)], [[[VECTOR]], true]);
    }
    vm.ioapic.setLine(PIN, false);
    serve(lapic);
    lapic.eoi();
    assertEquals([requested(vm), remoteIrr(vm)], [[[]], false]);
  });

  it("sends what came while it was masked, when it is unmasked and the line is still up", () => {
    for (const stillUp of [true, false]) {
      const vm = machine();
      setEntry(vm, PIN, { vector: VECTOR, masked: true, ...LEVEL });
      assertEquals(vm.ioapic.setLine(PIN, true), -1);
      if (!stillUp) vm.ioapic.setLine(PIN, false);
      setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
      assertEquals(requested(vm), [stillUp ? [VECTOR] : []]);
      assertEquals(remoteIrr(vm), stillUp);
    }
  });

  it("is not sent again at the EOI while it is masked", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    vm.ioapic.setLine(PIN, true);
    serve(lapic);
    setEntry(vm, PIN, { vector: VECTOR, masked: true, ...LEVEL });
    lapic.eoi();
    assertEquals([requested(vm), remoteIrr(vm)], [[[]], false]);
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    assertEquals(requested(vm), [[VECTOR]]);
  });

  it("forgets what is in service when it is made edge-triggered: how software ends an interrupt by force", () => {
    const vm = machine();
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    vm.ioapic.setLine(PIN, true);
    setEntry(vm, PIN, { vector: VECTOR, masked: true });
    assertEquals(remoteIrr(vm), false);
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    assertEquals(remoteIrr(vm), true, "the line is up: it is sent anew");
  });

  it("does not remember what everybody dropped; what nobody was meant by counts as accepted", () => {
    const vm = machine(2);
    setUp(vm.vcpus[1].lapic, "xapic", { software: false });
    setEntry(vm, PIN, { vector: VECTOR, destination: 1, ...LEVEL });
    assertEquals(vm.ioapic.setLine(PIN, true), 0);
    assertEquals(remoteIrr(vm), false);
    vm.ioapic.setLine(PIN, false);
    vm.apicMap = undefined; // The loop answers -1 for nobody, and KVM asks for zero.
    setEntry(vm, PIN, { vector: VECTOR, destination: 9, ...LEVEL });
    assertEquals(vm.ioapic.setLine(PIN, true), -1);
    assertEquals(remoteIrr(vm), true);
  });

  it("is ended together with others of its vector, and only they are", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, 3, { vector: VECTOR, ...LEVEL });
    setEntry(vm, 4, { vector: VECTOR, ...LEVEL });
    setEntry(vm, 6, { vector: VECTOR - 0x10, ...LEVEL });
    for (const pin of [3, 4, 6]) vm.ioapic.setLine(pin, true);
    assertEquals(requested(vm), [[VECTOR - 0x10, VECTOR]]);
    for (const pin of [3, 4, 6]) vm.ioapic.setLine(pin, false);
    assertEquals(serve(lapic), VECTOR);
    lapic.eoi();
    assertEquals([3, 4, 6].map((pin) => remoteIrr(vm, pin)), [false, false, true]);
    assertEquals(vm.counters()["kvm_ack_irq"], 2);
  });

  it("should not share its vector with edges: one makes the EOI an edge's, and the pin stays in service", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    vm.ioapic.setLine(PIN, true);
    request(lapic, VECTOR); // One bit of TMR for both; the last one sets it.
    vm.ioapic.setLine(PIN, false);
    serve(lapic);
    lapic.eoi();
    assertEquals(remoteIrr(vm), true);
    assertEquals(vm.counters()["kvm_ack_irq"], 1, "told, but not ended");
  });

  it("waits for software where the APIC suppresses EOI broadcasts", () => {
    const vm = machine();
    const { lapic } = vm.bootstrap;
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    vm.ioapic.setLine(PIN, true);
    serve(lapic);
    lapic.set(0x0f0, 0x11ff); // Offered only without this I/O APIC; KVM looks at the bit all the same.
    lapic.eoi();
    assertEquals(remoteIrr(vm), true);
    assertEquals(vm.counters()["kvm_ack_irq"], 1);
  });
});

describe("a redirection entry", () => {
  it("names one APIC by its ID, or all", () => {
    for (const mode of APIC_MODES) {
      const vm = machine(3, { mode });
      setEntry(vm, PIN, { vector: VECTOR, destination: 2 });
      vm.ioapic.setLine(PIN, true);
      assertEquals(requested(vm), [[], [], [VECTOR]]);
      setEntry(vm, 6, { vector: 0x61, destination: 0xff });
      assertEquals(vm.ioapic.setLine(6, true), 3, mode);
    }
  });

  it("names logical IDs: flat ones of xAPICs, cluster 0 of x2APICs", () => {
    for (const mode of APIC_MODES) {
      const vm = machine(3, { mode });
      setEntry(vm, PIN, { vector: VECTOR, destination: 0x05, logical: true });
      assertEquals(vm.ioapic.setLine(PIN, true), 2);
      assertEquals(requested(vm), [[VECTOR], [], [VECTOR]], mode);
    }
  });

  it("chooses one of them in lowest-priority mode", () => {
    const vm = machine(3);
    setEntry(vm, PIN, { vector: VECTOR, destination: 0x07, logical: true, deliveryMode: 0x100 });
    assertEquals(vm.ioapic.setLine(PIN, true), 1);
    assertEquals(requested(vm).findIndex((r) => r.length > 0), VECTOR % 3);
  });

  it("sends NMIs, and INITs, and nothing an APIC takes as SMI or ExtINT", () => {
    const vm = machine(2);
    for (const [deliveryMode, accepted] of [[0x400, 1], [0x500, 1], [0x200, 0], [0x700, 0]] as const) {
      setEntry(vm, PIN, { deliveryMode, destination: 1 });
      assertEquals(vm.ioapic.setLine(PIN, true), accepted, deliveryMode.toString(16));
      vm.ioapic.setLine(PIN, false);
    }
    assertEquals([vm.vcpus[1].nmiQueued, vm.vcpus[1].lapic.pendingEvents], [1, 1]);
  });

  it("is traced as it was when its line was set", () => {
    const vm = still({ trace: 32 });
    setUp(vm.bootstrap.lapic, "xapic");
    setEntry(vm, PIN, { vector: VECTOR, ...LEVEL });
    for (const up of [true, true, false]) vm.ioapic.setLine(PIN, up);
    const records = [...vm.tracer.records()].filter(({ event }) => event === TP.kvm_ioapic_set_irq);
    assertEquals(records.map(({ args }) => args.slice(0, 4)), [
      [PIN, 0x8000 | VECTOR, 0, 0],
      [PIN, 0xc000 | VECTOR, 0, 0], // Remote IRR; -1 is not 0, and so not "coalesced".
      [PIN, 0xc000 | VECTOR, 0, 0],
    ]);
  });

  it("is one of 24", () => {
    const { ioapic } = still();
    for (const pin of [-1, 24, 1.5]) {
      assertThrows(() => ioapic.setLine(pin, true), RangeError, "allowed are 0 to 23");
      assertThrows(() => ioapic.onAck(pin, () => {}), RangeError, "allowed are 0 to 23");
    }
  });
});

for (const backend of BACKENDS) {
  for (const mode of APIC_MODES) {
    describe(`a device behind the I/O APIC (${backend}, ${mode})`, () => {
      it("is served until it has nothing more to tell, once for each thing, on the vCPU that is meant", () => {
        const rig = tryingRig({ vm: { backend, vcpus: 2 } });
        const { vm } = rig;
        let things = 0;
        const served: number[] = [];
        /** The device holds its line up while it has something; port 0x80 takes one away. */
        const changed = () => vm.ioapic.setLine(PIN, things > 0);
        vm.pioBus.add({
          base: 0x80,
          length: 2,
          read: () => BigInt(things),
          write(port) {
            things += port === 0x80 ? -1 : 3;
            changed();
          },
        });
        rig.on(VECTOR, function* (cpu) {
          const id = (yield* read(cpu, mode, 0x020)) as number;
          served.push(mode === "xapic" ? id >>> 24 : id);
          yield cpu.out8(0x80, 0);
          yield* write(cpu, mode, 0x0b0, 0);
        }).aps(function* (cpu) {
          yield* enter(cpu, mode);
          yield cpu.xadd32(DATA, 1);
          yield cpu.sti();
          for (;;) yield cpu.hlt();
        }).finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* bringUp(cpu, mode, 1);
          yield* until(cpu, DATA, 1);
          yield* route(cpu, PIN, { vector: VECTOR, destination: 1, level: true });
          yield cpu.out8(0x81, 0);
          yield cpu.work(1_000_000);
          assertEquals(served, [1, 1, 1]);
          yield* writeIoapic(cpu, 0x10 + 2 * PIN, 0x1_8000 | VECTOR); // Masked now.
          yield cpu.out8(0x81, 0);
          yield cpu.work(1_000_000);
          assertEquals(served.length, 3);
          yield* writeIoapic(cpu, 0x10 + 2 * PIN, 0x8000 | VECTOR);
          yield cpu.work(1_000_000);
          assertEquals(yield* readIoapic(cpu, 0x10 + 2 * PIN), 0x8000 | VECTOR, "nothing is in service");
        });
        assertEquals(served, [1, 1, 1, 1, 1, 1]);
        assertEquals(things, 0);
        assertEquals(vm.counters()["kvm_ack_irq"], 6);
      });
    });
  }
}
