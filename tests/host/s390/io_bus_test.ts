import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { encodeSubchannelId } from "../../../abi/mod.ts";
import {
  assignIoEventFd,
  BUS_DEVICE_LIMIT,
  CcwIoEventFd,
  compareRanges,
  IoBus,
  type IoBusDevice,
} from "../../../host/mod.ts";

/** A bus with `queues` doorbells for each of `devices` subchannels. */
function bus(devices: number, queues: number): IoBus {
  const made = new IoBus();
  for (let number = devices - 1; number >= 0; number--) {
    for (let queue = 0; queue < queues; queue++) {
      assignIoEventFd(made, new CcwIoEventFd({ subchannel: encodeSubchannelId({ number }), queue }));
    }
  }
  return made;
}

/** What a notification costs: ranges compared, and devices asked. */
function steps(
  of: IoBus,
  subchannel: number,
  queue: number,
  cookie: number | bigint,
): [number, number, unknown] {
  const before = { ...of.counters };
  const place = of.write(subchannel, 8, BigInt(queue), BigInt(cookie));
  return [of.counters.comparisons - before.comparisons, of.counters.offers - before.offers, place];
}

describe("the bus of notifications", () => {
  it("has its devices by address, and those of one address in the order in which they came", () => {
    const { devices } = bus(3, 2);
    assertEquals(
      devices.map((device) => [device.address & 0xffff, Number((device as CcwIoEventFd).datamatch)]),
      [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]],
    );
  });

  it("takes one comparison and one offer where the cookie is right", () => {
    const of = bus(64, 8);
    for (const place of [0, 77, 511]) {
      const { address, datamatch } = of.devices[place] as CcwIoEventFd;
      assertEquals(steps(of, address, Number(datamatch), place), [1, 1, place]);
    }
    assertEquals([of.counters.cookieHits, of.counters.searches], [3, 0]);
  });

  it("searches where it is wrong: by halves, back to the first of the range, and on to the one that takes it", () => {
    const of = bus(1, 4);
    // Four equal ranges: the search begins at 2, finds it, and looks at 1 and 0; then each is compared and asked.
    assertEquals(steps(of, encodeSubchannelId({ number: 0 }), 3, -1), [1 + 2 + 4, 4, 3]);
    // A cookie in the range whose device does not want the value costs its own comparison and offer before that.
    assertEquals(steps(of, encodeSubchannelId({ number: 0 }), 3, 0), [1 + 1 + 2 + 4, 1 + 4, 3]);
  });

  it("never believes a cookie", () => {
    const of = bus(4, 2);
    const subchannel = encodeSubchannelId({ number: 2 });
    const right = 5;
    for (const cookie of [-1, -22, 8, 9, 2n ** 63n - 1n, -(2n ** 63n), 0, 4, 6]) {
      assertEquals(steps(of, subchannel, 1, cookie)[2], right, `${cookie}`);
    }
    assertEquals((of.devices[right] as CcwIoEventFd).rung, 9);
    assertEquals(of.devices.filter((device) => (device as CcwIoEventFd).rung > 0).length, 1);
  });

  it("makes cookies wrong as devices come and go, and gives the new ones", () => {
    const of = bus(2, 1);
    const second = encodeSubchannelId({ number: 1 });
    assertEquals(steps(of, second, 0, 1), [1, 1, 1]);
    const early = new CcwIoEventFd({ subchannel: encodeSubchannelId({ number: 0 }), queue: 1 });
    assignIoEventFd(of, early);
    assertEquals(steps(of, second, 0, 1)[2], 2, "it has moved up");
    assertEquals(steps(of, second, 0, 2), [1, 1, 2]);
    of.unregister(early);
    assertEquals(steps(of, second, 0, 2)[2], 1, "and down, and 2 is beyond the end now");
    assertThrows(() => of.unregister(early), RangeError, "it is not on the bus");
  });

  it("gives what nobody takes to user space", () => {
    const of = bus(3, 2);
    assertEquals(of.write(encodeSubchannelId({ number: 1 }), 8, 2n, 2n), undefined, "no such queue");
    assertEquals(of.write(encodeSubchannelId({ number: 7 }), 8, 0n, 0n), undefined, "no such subchannel");
    assertEquals(of.write(encodeSubchannelId({ number: 1 }), 4, 0n, 2n), undefined, "another length");
    assertEquals(
      of.write(encodeSubchannelId({ number: 1 }), 8, 1n << 32n, 2n),
      undefined,
      "the upper half counts",
    );
    assertEquals(new IoBus().write(0, 8, 0n, 0n), undefined);
  });

  it("finds what a search one by one finds, and takes what fits first", () => {
    const doorbell = fc.record({ address: fc.nat(6), queue: fc.option(fc.nat(3)) });
    const write = fc.record({
      address: fc.nat(7),
      value: fc.nat(4),
      cookie: fc.integer({ min: -3, max: 20 }),
    });
    fc.assert(fc.property(fc.array(doorbell, { maxLength: 12 }), fc.array(write), (doorbells, writes) => {
      const of = new IoBus();
      for (const { address, queue } of doorbells) {
        const made = new CcwIoEventFd(
          queue === null ? { subchannel: address } : { subchannel: address, queue },
        );
        of.register(made);
      }
      for (const { address, value, cookie } of writes) {
        const fits = (device: IoBusDevice | undefined) =>
          device?.address === address &&
          [undefined, BigInt(value)].includes((device as CcwIoEventFd).datamatch);
        const first = of.devices.findIndex(fits);
        const expected = fits(of.devices[cookie]) ? cookie : first < 0 ? undefined : first;
        assertEquals(of.write(address, 8, BigInt(value), BigInt(cookie)), expected);
      }
    }));
  });

  it("costs no more with a right cookie than without, however many devices there are", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 8 }),
        fc.nat(),
        (devices, queues, n) => {
          const of = bus(devices, queues);
          const place = n % of.devices.length;
          const { address, datamatch } = of.devices[place] as CcwIoEventFd;
          const [right] = steps(of, address, Number(datamatch), place);
          const [without] = steps(of, address, Number(datamatch), -1);
          assertEquals(right, 1);
          assert(without >= 2, "a search compares what it found again");
        },
      ),
    );
  });

  it("has no place for two doorbells of one queue, nor for addresses and lengths that cannot be", () => {
    const of = bus(1, 1);
    const subchannel = encodeSubchannelId({ number: 0 });
    assertThrows(
      () => assignIoEventFd(of, new CcwIoEventFd({ subchannel, queue: 0 })),
      RangeError,
      "Cannot assign an ioeventfd to 0x10000, queue 0: it has one",
    );
    assertThrows(() => assignIoEventFd(of, new CcwIoEventFd({ subchannel })), RangeError, "queue any");
    assertThrows(
      () => assignIoEventFd(of, new CcwIoEventFd({ subchannel, length: 0 })),
      RangeError,
      "it has one",
    );
    const other = (address: number, length: number) => ({ address, length, write: () => false });
    assertThrows(() => of.register(other(2 ** 32, 8)), RangeError, "allowed are 0 to 0xffffffff");
    assertThrows(() => of.register(other(0, 3)), RangeError, "allowed are 0, 1, 2, 4, 8");
  });
});

describe("a doorbell without a length", () => {
  it("rings at any write to its address, shares that with no other, and has no queue of its own", () => {
    const of = new IoBus();
    const doorbell = new CcwIoEventFd({ subchannel: 0x1_0000, length: 0 });
    assignIoEventFd(of, doorbell);
    for (const [value, length] of [[0n, 8], [77n, 8], [1n, 2]] as const) {
      assertEquals(of.write(0x1_0000, length, value, -1n), 0);
    }
    assertEquals(of.write(0x1_0001, 1, 0n, -1n), undefined);
    assertEquals(doorbell.rung, 3);
    const second = new CcwIoEventFd({ subchannel: 0x1_0000, queue: 3 });
    assertThrows(() => assignIoEventFd(of, second), RangeError, "queue 3: it has one");
    assertThrows(
      () => assignIoEventFd(of, new CcwIoEventFd({ subchannel: 0x1_0002, queue: 3, length: 0 })),
      RangeError,
      "without a length it takes any queue",
    );
  });
});

describe("a bus that is full", () => {
  it("holds 1000 devices and any number of doorbells, and with so many devices no doorbell more", () => {
    const of = new IoBus();
    const device = (address: number): IoBusDevice => ({ address, length: 8, write: () => false });
    const doorbell = (queue: number) => new CcwIoEventFd({ subchannel: 0x1_0000, queue });
    for (let queue = 0; queue < 1100; queue++) assignIoEventFd(of, doorbell(queue));
    for (let i = 0; i < 1000; i++) of.register(device(8 * i));
    assertEquals([of.devices.length, BUS_DEVICE_LIMIT], [2100, 1000]);
    const full = "Cannot register a device at 0x10000: the bus holds 1000";
    assertThrows(() => of.register(device(0x1_0000)), RangeError, full);
    assertThrows(() => assignIoEventFd(of, doorbell(1100)), RangeError, full);
    assertEquals(of.devices.length, 2100);
    of.unregister(of.devices[0]);
    assignIoEventFd(of, doorbell(1100));
  });
});

describe("comparing a write's range with a device's", () => {
  it("takes a write that lies within the device's range, and with length 0 its address alone", () => {
    // kvm_io_bus_cmp: only the device's own length decides whether lengths count.
    const device = { address: 0x100, length: 8 };
    assertEquals(compareRanges({ address: 0x100, length: 8 }, device), 0);
    assertEquals(compareRanges({ address: 0x104, length: 4 }, device), 0);
    assertEquals(compareRanges({ address: 0x104, length: 8 }, device), 1);
    assertEquals(compareRanges({ address: 0xff, length: 8 }, device), -1);
    assertEquals(compareRanges({ address: 0x100, length: 4 }, { address: 0x100, length: 0 }), 0);
    assertEquals(compareRanges({ address: 0x101, length: 4 }, { address: 0x100, length: 0 }), 1);
  });
});
