import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi } from "../../abi/mod.ts";
import { DEVICE_VECTOR, deviceInterrupts, DOORBELL_PORT } from "../../guest/examples/pv_eoi.ts";
import { IPI_TESTS, ipiBenchmark, type IpiTest, type IpiTiming } from "../../guest/examples/pv_ipi.ts";
import { IoEventFd, Machine, MsiSource } from "../../host/mod.ts";

describe("the busy guest", () => {
  it("rings the doorbell by the clock, however many interrupts it takes meanwhile", () => {
    for (const interrupts of [0, 50]) {
      const vm = new Machine().createVm();
      const doorbell = new IoEventFd(DOORBELL_PORT, 2);
      vm.pioBus.add(doorbell);
      const kernel = deviceInterrupts({ doorbellInterval: 10_000, ready: () => vm.engine.stop() });
      vm.load(kernel.text);
      vm.start(kernel.entry);
      assertEquals(vm.machine.run().end, "stopped");
      const begin = vm.engine.now;
      new MsiSource(vm, {
        message: encodeMsi({ vector: DEVICE_VECTOR, destination: 0 }, "xapic"),
        count: interrupts,
        start: begin,
        interval: () => 15_000,
      });
      assertEquals(vm.machine.run(begin + 1_000_000).end, "deadline");
      assertEquals(doorbell.rung >= 99 && doorbell.rung <= 100, true);
      assertEquals(vm.memory.word(kernel.irqCounter(0, DEVICE_VECTOR)), interrupts);
    }
  });

  it("never rings it where it is told so", () => {
    const vm = new Machine().createVm();
    const doorbell = new IoEventFd(DOORBELL_PORT, 2);
    vm.pioBus.add(doorbell);
    const kernel = deviceInterrupts({ doorbellInterval: Infinity });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals(vm.machine.run(1e9).end, "deadline");
    assertEquals(doorbell.rung, 0);
  });

  it("refuses intervals that are none", () => {
    for (const doorbellInterval of [0, -1, NaN]) {
      assertThrows(
        () => deviceInterrupts({ doorbellInterval }),
        RangeError,
        `Cannot ring a doorbell every ${doorbellInterval} cycles: allowed are 1 and more`,
      );
    }
  });
});

describe("the IPI benchmark", () => {
  const times: Record<IpiTest, number> = {
    "dry-run": 5,
    "self-ipi": 5,
    "normal-ipi": 5,
    "broadcast-ipi": 3,
    "broadcast-lock": 3,
  };

  it("does its tests in order, and times what each of them delivers", () => {
    const vm = new Machine().createVm({ vcpus: 4 });
    const log: string[] = [];
    const timings: Partial<Record<IpiTest, IpiTiming>> = {};
    const kernel = ipiBenchmark({
      cpus: 4,
      times,
      begin: (test) => log.push(`begin ${test}`),
      end: (test, timing) => {
        log.push(`end ${test}`);
        timings[test] = timing;
      },
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals(vm.machine.run().end, "finished");
    assertEquals(log, IPI_TESTS.flatMap((test) => [`begin ${test}`, `end ${test}`]));
    for (const test of IPI_TESTS) {
      const { delivery, total } = timings[test]!;
      // Delivery is timed where one function is called; it is a part of the whole.
      assertEquals(delivery > 0, test === "self-ipi" || test === "normal-ipi");
      assertEquals(delivery <= total, true);
    }
    const [self, normal, all] = (["self-ipi", "normal-ipi", "broadcast-ipi"] as const).map((test) =>
      timings[test]!.total / times[test]
    );
    assertEquals(self < normal && normal < all, true);
  });

  it("calls every other processor in a broadcast, as often as it is told to", () => {
    for (const test of ["broadcast-ipi", "broadcast-lock"] as const) {
      const vm = new Machine().createVm({ vcpus: 5 });
      const none = Object.fromEntries(IPI_TESTS.map((name) => [name, 0])) as Record<IpiTest, number>;
      const kernel = ipiBenchmark({ cpus: 5, guestSemantics: "2018", times: { ...none, [test]: 4 } });
      vm.load(kernel.text);
      vm.start(kernel.entry);
      assertEquals(vm.machine.run().end, "finished");
      for (let n = 0; n < 5; n++) assertEquals(vm.memory.word(kernel.irqCounter(n, 0xfc)), n === 0 ? 0 : 4);
    }
  });

  it("needs somebody to send to", () => {
    assertThrows(
      () => ipiBenchmark({ cpus: 1, times }),
      RangeError,
      "Cannot run the IPI benchmark: it needs at least 2 processors",
    );
  });
});
