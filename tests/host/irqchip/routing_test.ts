import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { decodeMsi, encodeMsi, type Msi, type MsiFormat, type MsiMessage } from "../../../abi/mod.ts";
import {
  NotModelled,
  ROUTE_LIMIT,
  swizzleExtendedDestination,
  type Vm,
  type VmOptions,
} from "../../../host/mod.ts";
import { type ApicMode, setUp, still, vectors } from "../../support/apic.ts";
import { setEntry } from "../../support/ioapic.ts";

const VECTOR = 0x51;

/** A machine that stands still, all its APICs enabled in one mode. */
function machine(mode: ApicMode, options: VmOptions = {}): Vm {
  const vm = still(options);
  vm.vcpus.forEach(({ lapic }, i) => setUp(lapic, mode, mode === "xapic" ? { ldr: 1 << (i & 7) } : {}));
  return vm;
}

const takers = (vm: Vm) =>
  vm.vcpus.filter(({ lapic }) => vectors(lapic, 0x200).includes(VECTOR)).map(({ vcpuId }) => vcpuId);
const msi = (fields: Partial<Msi>, format: MsiFormat = "xapic") =>
  encodeMsi({ vector: VECTOR, ...fields }, format);

describe("an interrupt line", () => {
  it("leads to the I/O APIC's pin of its number unless it is routed elsewhere", () => {
    const vm = machine("xapic");
    setEntry(vm, 9, { vector: VECTOR });
    assertEquals(vm.routing.setLevel(9, true), 1);
    assertEquals(takers(vm), [0]);
    assertEquals(vm.counters()["kvm_set_irq"], 1);
    assertEquals(vm.counters()["kvm_ioapic_set_irq"], 1);
  });

  it("may lead to another pin", () => {
    const vm = machine("xapic");
    vm.routing.set(0, { pin: 2 }); // As on every PC.
    setEntry(vm, 2, { vector: VECTOR });
    assertEquals(vm.routing.setLevel(0, true), 1);
    assertEquals(takers(vm), [0]);
  });

  it("may be a message: sent when it rises, and nothing when it falls", () => {
    const vm = machine("xapic", { vcpus: 2 });
    vm.routing.set(40, { msi: msi({ destination: 1 }) });
    assertEquals(vm.routing.setLevel(40, false), -1);
    assertEquals(vm.counters()["kvm_msi_set_irq"], undefined);
    assertEquals(vm.routing.setLevel(40, true), 1);
    assertEquals(vm.routing.setLevel(40, true), 1, "a message has no level to stay at");
    assertEquals(takers(vm), [1]);
    assertEquals(vm.counters()["kvm_msi_set_irq"], 2);
  });

  it(`is one of ${ROUTE_LIMIT}, and leads to one of 24 pins`, () => {
    const { routing } = still();
    for (const gsi of [-1, ROUTE_LIMIT, 0.5]) {
      assertThrows(() => routing.set(gsi, { pin: 0 }), RangeError, "allowed are 0 to 4095");
    }
    for (const pin of [-1, 24, 0.5]) {
      assertThrows(() => routing.set(0, { pin }), RangeError, "there are 24 pins");
    }
    routing.set(ROUTE_LIMIT - 1, { pin: 23 });
    assertThrows(() => routing.setLevel(24, true), RangeError, "Cannot set interrupt 24: it is not routed");
  });

  it("leads nowhere by itself where the I/O APIC is in user space, and never to a pin", () => {
    const { routing } = still({ ioapicInKernel: false });
    assertThrows(() => routing.setLevel(4, true), RangeError, "it is not routed");
    assertThrows(() => routing.set(4, { pin: 4 }), RangeError, "the I/O APIC is in user space");
    routing.set(4, { msi: msi({}) });
    // A level-triggered one there needs an exit at its EOI.
    assertThrows(() => routing.set(4, { msi: msi({ level: true }) }), NotModelled, "EOI");
    routing.set(24, { msi: msi({ level: true }) });
  });
});

describe("a message", () => {
  it("goes to a physical ID, to all, or to nobody", () => {
    const vm = machine("xapic", { vcpus: 3 });
    assertEquals(vm.routing.signal(msi({ destination: 2 })), 1);
    assertEquals(takers(vm), [2]);
    assertEquals(vm.routing.signal(msi({ destination: 7 })), 0);
    assertEquals(vm.routing.signal(msi({ destination: 0xff })), 3);
  });

  it("goes to logical IDs: an x2APIC's only in its first cluster, for eight bits say no more", () => {
    for (const mode of ["xapic", "x2apic"] as const) {
      const vm = machine(mode, { vcpus: 4 });
      assertEquals(vm.routing.signal(msi({ destination: 0x0a, logical: true })), 2);
      assertEquals(takers(vm), [1, 3]);
    }
  });

  it("goes to one of them by its mode, or by its redirection hint", () => {
    for (const one of [{ deliveryMode: 0x100 }, { redirectionHint: true }]) {
      const vm = machine("xapic", { vcpus: 4 });
      assertEquals(vm.routing.signal(msi({ destination: 0x0f, logical: true, ...one })), 1);
      assertEquals(takers(vm), [VECTOR % 4]);
    }
  });

  it("can be an NMI", () => {
    const vm = machine("xapic", { vcpus: 2 });
    assertEquals(vm.routing.signal(msi({ destination: 1, deliveryMode: 0x400 })), 1);
    assertEquals(vm.vcpus.map(({ nmiQueued }) => nmiQueued), [0, 1]);
  });

  it("is level-triggered by bit 15 alone: KVM takes it for asserted whatever bit 14 says", () => {
    const vm = machine("xapic");
    const level = msi({ level: true });
    assertEquals(vm.routing.signal({ ...level, data: level.data & ~0x4000 }), 1);
    assertEquals(vectors(vm.bootstrap.lapic, 0x180), [VECTOR]);
  });

  it("reaches 32-bit IDs with KVM_X2APIC_API_USE_32BIT_IDS, whose bits 31:8 stand in the upper address", () => {
    const ids = [0, 1, 0x101, 0x321];
    const vm = machine("x2apic", {
      vcpuIds: ids,
      x2apicApi32BitIds: true,
      x2apicApiDisableBroadcastQuirk: true,
    });
    for (const destination of ids.slice(1)) {
      const m = msi({ destination }, "x2apic-api");
      assertEquals(vm.routing.signal(m), 1);
    }
    assertEquals(takers(vm), ids.slice(1));
    assertEquals(vm.routing.signal(msi({ destination: 0xffff_ffff }, "x2apic-api")), 4, "all");
    assertEquals(vm.routing.signal(msi({ destination: 0x0032_0002, logical: true }, "x2apic-api")), 1);
  });

  it("may not set address bits 39:32 then; without it the upper address does not matter", () => {
    const bad: MsiMessage = { ...msi({ destination: 1 }), addressHigh: 0x101 };
    const vm = machine("x2apic", { vcpus: 2, x2apicApi32BitIds: true });
    assertThrows(() => vm.routing.signal(bad), RangeError, "address bits 39:32");
    assertThrows(() => vm.routing.set(30, { msi: bad }), RangeError, "address bits 39:32");
    assertEquals(machine("x2apic", { vcpus: 2 }).routing.signal(bad), 1);
  });

  it("is traced with the address that KVM looks at", () => {
    for (const [x2apicApi32BitIds, high] of [[true, 0x100], [false, 0]] as const) {
      const vm = machine("x2apic", { vcpuIds: [0, 0x101], x2apicApi32BitIds, trace: 64 });
      vm.routing.signal(msi({ destination: 0x101 }, "x2apic-api"));
      const [record] = [...vm.tracer.records()].filter(({ args }) => args[2] === VECTOR);
      assertEquals(record.args.slice(0, 3), [0xfee0_1000, high, VECTOR]);
    }
  });
});

describe("an extended destination ID (MSI_EXT_DEST_ID)", () => {
  const extended = { features: ["MSI_EXT_DEST_ID"], x2apicApi32BitIds: true } as const;

  it("reaches vCPUs beyond 255 without interrupt remapping: user space unpacks bits 11:5 of the address", () => {
    const vm = machine("x2apic", { vcpuIds: [0, 1, 0x101, 0xfff], ...extended });
    for (const destination of [1, 0x101, 0xfff]) {
      assertEquals(vm.signalMsi(msi({ destination }, "ext-dest-id")), 1);
    }
    assertEquals(takers(vm), [1, 0x101, 0xfff]);
  });

  it("is nothing to the kernel: bits 11:5 are ignored where nobody unpacks them", () => {
    const vm = machine("x2apic", { vcpuIds: [0, 1, 0x101], x2apicApi32BitIds: true });
    assertEquals(vm.signalMsi(msi({ destination: 0x101 }, "ext-dest-id")), 1);
    assertEquals(takers(vm), [1], "the low eight bits");
  });

  it("moves from the lower to the upper address, with everything else as it was", () => {
    fc.assert(
      fc.property(
        fc.record({
          vector: fc.nat(255),
          deliveryMode: fc.nat(7).map((mode) => mode << 8),
          level: fc.boolean(),
          logical: fc.boolean(),
          redirectionHint: fc.boolean(),
          destination: fc.nat(0x7fff),
        }),
        (fields) => {
          const swizzled = swizzleExtendedDestination(encodeMsi(fields, "ext-dest-id"));
          assertEquals(decodeMsi(swizzled, "x2apic-api"), { ...fields });
          assertEquals(swizzled.addressLow & 0xff0, 0);
        },
      ),
      { seed: 6 },
    );
  });

  it("is left alone where an IOMMU's format bit is set, or the upper address is in use", () => {
    const message = msi({ destination: 0x101 }, "ext-dest-id");
    for (
      const other of [
        { ...message, addressLow: message.addressLow | 0x10 },
        { ...message, addressHigh: 0x200 },
        msi({ destination: 0xfe }, "ext-dest-id"),
      ]
    ) {
      assertEquals(swizzleExtendedDestination(other), other);
    }
  });
});
