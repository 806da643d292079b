/**
 * An s390 guest notifies a virtio-ccw queue, one of many on the host's bus. Each notification is a DIAGNOSE 0x500, and the
 * host answers with the queue's place on its bus: a cookie that spares it the search the next time, if the guest passes it
 * along.
 *
 *     deno run guest/examples/s390_virtio_notify.ts
 *
 * prints what a notification takes with the cookie and without it, and where no doorbell is on the bus so that user space
 * has to serve it.
 *
 * @module
 */

import {
  CcwQueue,
  Machine,
  type S390Cpu,
  type S390Guest,
  S390Kernel,
  type S390Vm,
  SinkQueue,
} from "@exitless/exitless";

/** Where the ring is. */
const RING = 0x10_0000;
/** Entries of the ring. */
const RING_SIZE = 64;
/** Devices on the bus, unless told otherwise. */
const DEVICES = 16;
/** Queues of each. */
const QUEUES = 8;
/** Where the driver keeps its cookie. */
const COOKIE = 0x11_0000;
/** The buffer that it offers, again and again. */
const BUFFER = 0x12_0000;

/** How the driver notifies, and who is there to hear it. */
export type NotifyWay =
  /** It passes along what the host has answered the last time. */
  | "cookie"
  /** It passes 0. */
  | "no cookie"
  /** It passes the cookie, and tells how far the ring is filled: no doorbell's number is equal to that. */
  | "notification data"
  /** It passes the cookie, and there are no doorbells. */
  | "no doorbell";

/** Every way. */
export const NOTIFY_WAYS: readonly NotifyWay[] = ["cookie", "no cookie", "notification data", "no doorbell"];

/** What is on the bus, and what the guest does. */
export interface VirtioNotifyOptions {
  /** Devices. */
  readonly devices?: number;
  /** Queues of each. */
  readonly queues?: number;
  /** The device that the guest drives; the last by default. */
  readonly device?: number;
  /** Its queue that the guest fills; the last by default. */
  readonly queue?: number;
  /** Notifications, each after one buffer. */
  readonly notifications?: number;
}

/** What the notifications took. */
export interface VirtioNotifyResult {
  /** How it was notified. */
  readonly way: NotifyWay;
  /** Notifications. */
  readonly notifications: number;
  /** Buffers that the device took. */
  readonly taken: number;
  /** Exits, of all kinds. */
  readonly exits: number;
  /** How often KVM_RUN came back to user space. */
  readonly userspace: number;
  /** Ranges that KVM compared. */
  readonly comparisons: number;
  /** Doorbells that it asked. */
  readonly offers: number;
  /** Cycles of the guest's CPU from the first to the last. */
  readonly cycles: number;
  /** The cookie at the end. */
  readonly cookie: bigint;
  /** The virtual machine. */
  readonly vm: S390Vm;
}

/** Runs the guest. */
export function virtioNotify(way: NotifyWay, options: VirtioNotifyOptions = {}): VirtioNotifyResult {
  const { devices = DEVICES, queues = QUEUES, notifications = 1000 } = options;
  const { device = devices - 1, queue = queues - 1 } = options;
  const vm = new Machine().createS390Vm({ memory: 2 * 2 ** 20 });
  const sink = new SinkQueue(vm, "sink", { size: RING_SIZE, ring: RING });
  const subchannels = Array.from({ length: devices }, (_, number) =>
    vm.addCcwDevice({
      number,
      queues: Array.from({ length: queues }, () => RING_SIZE),
      notificationData: way === "notification data",
      notified: (notified) => {
        if (number === device && notified === queue) sink.notify();
      },
    }, { ioeventfd: way !== "no doorbell" }));
  const driver = new CcwQueue({
    subchannel: subchannels[device],
    index: queue,
    size: RING_SIZE,
    ring: RING,
    cookie: COOKIE,
    useCookie: way !== "no cookie",
    notificationData: way === "notification data",
  });
  let [begin, end] = [0, 0];
  const kernel = new S390Kernel({
    *main(cpu: S390Cpu): S390Guest {
      begin = vm.vcpus[0].clock;
      for (let i = 0; i < notifications; i++) {
        yield* driver.add(cpu, BUFFER, 256);
        if (!(yield* driver.notify(cpu))) throw new Error("the host refused a notification");
        // The ring is not to overflow: the device is given the time that it takes.
        yield cpu.work(2000);
      }
      end = vm.vcpus[0].clock;
    },
  });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  vm.machine.run();
  const { comparisons, offers } = vm.ccwBus.counters;
  return {
    way,
    notifications,
    taken: sink.taken,
    exits: Object.values(vm.exits()).reduce((sum, count) => sum + count, 0),
    userspace: [...vm.userspaceExits.values()].reduce((sum, count) => sum + count, 0),
    comparisons,
    offers,
    cycles: end - begin,
    cookie: BigInt.asIntN(64, vm.words.read64(COOKIE) ?? 0n),
    vm,
  };
}

if (import.meta.main) {
  console.log(
    `A ring of ${RING_SIZE} entries; ${DEVICES} devices with ${QUEUES} queues each on the bus`,
  );
  console.log("a notification        exits  user space  compared  asked   cycles  cookie");
  for (const way of NOTIFY_WAYS) {
    const { notifications, exits, userspace, comparisons, offers, cycles, cookie } = virtioNotify(way);
    const each = [exits, userspace, comparisons, offers].map((count) =>
      (count / notifications).toFixed(2).padStart(8)
    );
    console.log(
      `${way.padEnd(18)} ${each.join("  ")} ${(cycles / notifications).toFixed(0).padStart(8)}  ${cookie}`,
    );
  }
}
