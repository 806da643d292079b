import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { BACKENDS, BUS_DEVICE_LIMIT, DeviceBus, IoEventFd, type MmioDevice } from "../../../host/mod.ts";
import { tryingRig } from "../../support/apic.ts";

/** A device that answers with its address and remembers what was written. */
function device(base: number, length: number): MmioDevice & { written: [number, number, bigint][] } {
  const written: [number, number, bigint][] = [];
  return {
    base,
    length,
    written,
    read: (address) => BigInt(address),
    write: (address, bytes, value) => void written.push([address, bytes, value]),
  };
}

describe("a bus of devices", () => {
  it("gives an access to the device whose range holds all of it", () => {
    const bus = new DeviceBus("test");
    const [first, second] = [device(0x100, 0x10), device(0x110, 4)];
    bus.add(first);
    bus.add(second);
    assertEquals([0x100, 0x10c, 0x110].map((at) => bus.read(at, 4)), [0x100n, 0x10cn, 0x110n]);
    assertEquals(bus.read(0x10e, 4), undefined, "across two devices");
    assertEquals(bus.read(0x112, 4), undefined, "over the end");
    assertEquals(bus.read(0xff, 1), undefined);
    assertEquals(bus.write(0x110, 2, 7n), true);
    assertEquals(bus.write(0x114, 1, 7n), false);
    assertEquals([first.written, second.written], [[], [[0x110, 2, 7n]]]);
  });

  it("leaves to user space what a device does not want", () => {
    const bus = new DeviceBus("test");
    bus.add({ base: 0, length: 4, read: () => undefined, write: () => false });
    assertEquals([bus.read(0, 4), bus.write(0, 4, 1n)], [undefined, false]);
  });

  it("refuses a device where another one is, and one too many", () => {
    const bus = new DeviceBus("test");
    bus.add(device(0x100, 0x10));
    for (const [base, length] of [[0x100, 1], [0xf8, 9], [0x10f, 1], [0, 0x1000]]) {
      assertThrows(() => bus.add(device(base, length)), RangeError, "one at 0x100 is in the way");
    }
    for (let i = 1; i <= BUS_DEVICE_LIMIT; i++) bus.add(new IoEventFd(0x1000 * i + 8, 4));
    for (let i = 1; i < BUS_DEVICE_LIMIT; i++) bus.add(device(0x1000 * i, 4));
    assertThrows(() => bus.add(device(0, 4)), RangeError, `it holds ${BUS_DEVICE_LIMIT}`);
    assertThrows(() => bus.add(new IoEventFd(0, 4)), RangeError, `it holds ${BUS_DEVICE_LIMIT}`);
  });

  it("has ioeventfds of several widths at one address, and where a device is, but no two of one width", () => {
    // ioeventfd_check_collision, and ioeventfd_in_range: each is rung by writes of its own width.
    const bus = new DeviceBus("test");
    const behind = device(0x100, 8);
    const bells = [4, 2, 1].map((length) => new IoEventFd(0x100, length));
    bus.add(behind);
    for (const bell of bells) bus.add(bell);
    assertThrows(() => bus.add(new IoEventFd(0x100, 2)), RangeError, "one at 0x100 is in the way");
    bus.add(new IoEventFd(0x102, 2));
    assertThrows(() => bus.add(device(0x104, 4)), RangeError, "one at 0x100 is in the way");
    for (const bytes of [4, 2, 2, 8]) assertEquals(bus.write(0x100, bytes, 7n), true);
    assertEquals([bells.map(({ rung }) => rung), behind.written], [[1, 2, 0], [[0x100, 8, 7n]]]);
    // What a bell refuses the device gets, and all that is read.
    assertEquals([bus.write(0x101, 1, 9n), behind.written.at(-1)], [true, [0x101, 1, 9n]]);
    assertEquals(bus.read(0x100, 4), 0x100n);
  });

  it("asks an ioeventfd in a device's range before the device only where it was there first", () => {
    // kvm_io_bus_cmp takes a range within another for equal to it, and kvm_io_bus_register_dev puts equals behind.
    const bus = new DeviceBus("test");
    const around = device(0x100, 8);
    const [first, second] = [new IoEventFd(0x102, 2), new IoEventFd(0x104, 2)];
    for (const added of [first, around, second]) bus.add(added);
    for (const { base } of [first, second]) assertEquals(bus.write(base, 2, 7n), true);
    assertEquals([first.rung, second.rung, around.written], [1, 0, [[0x104, 2, 7n]]]);
  });
});

const MMIO = 0xc000_0000;

for (const backend of BACKENDS) {
  describe(`a device of the kernel's (${backend})`, () => {
    it("serves ports and memory without an exit to user space", () => {
      const rig = tryingRig({ vm: { backend } });
      const { pioBus, mmioBus } = rig.vm;
      const [port, memory] = [device(0x80, 8), device(MMIO, 0x100)];
      pioBus.add(port);
      mmioBus.add(memory);
      rig.finish(function* (cpu) {
        yield cpu.in8(0x82);
        assertEquals(cpu.eax & 0xff, 0x82);
        yield cpu.out16(0x84, 0x1234);
        yield cpu.load32(MMIO + 8);
        assertEquals(cpu.eax, MMIO + 8);
        yield cpu.store64(MMIO, 1, 2);
      });
      assertEquals(port.written, [[0x84, 2, 0x1234n]]);
      assertEquals(memory.written, [[MMIO, 8, 0x2_0000_0001n]]);
      assertEquals(rig.vm.counters()["kvm_userspace_exit"], undefined);
      assertEquals(rig.vm.counters()["kvm_pio"], 2);
    });

    it("leaves the rest to user space: its devices, or a bus that floats", () => {
      const rig = tryingRig({ vm: { backend } });
      const { vm } = rig;
      vm.userspacePioDevice = { access: (port, _bytes, value) => port === 0x60 ? value ?? 0x5an : undefined };
      rig.finish(function* (cpu) {
        yield cpu.in8(0x60);
        assertEquals(cpu.eax & 0xff, 0x5a);
        yield cpu.in32(0x64);
        assertEquals(cpu.eax, 0xffff_ffff);
        yield cpu.load32(MMIO);
        assertEquals(cpu.eax, 0);
      });
      assertEquals(vm.counters()["kvm_userspace_exit"], 3);
    });
  });

  describe(`an ioeventfd (${backend})`, () => {
    it("rings without leaving the kernel, for writes of its width to its address alone", () => {
      const rig = tryingRig({ vm: { backend } });
      const { vm } = rig;
      const rung: bigint[] = [];
      const bell = new IoEventFd(MMIO, 4, (value) => rung.push(value));
      const port = new IoEventFd(0x80, 2);
      vm.mmioBus.add(bell);
      vm.pioBus.add(port);
      rig.finish(function* (cpu) {
        yield cpu.store32(MMIO, 7);
        yield cpu.store32(MMIO, 8);
        yield cpu.out16(0x80, 1);
        assertEquals(vm.counters()["kvm_userspace_exit"], undefined);
        yield cpu.store16(MMIO, 9);
        yield cpu.store8(MMIO + 3, 9);
        yield cpu.out8(0x80, 1);
        yield cpu.load32(MMIO);
        yield cpu.in16(0x80);
      });
      assertEquals([rung, bell.rung, port.rung], [[7n, 8n], 2, 1]);
      assertEquals(vm.counters()["kvm_userspace_exit"], 5);
    });
  });
}
