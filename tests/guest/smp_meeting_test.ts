import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { encodeMsi } from "../../abi/mod.ts";
import { data, idle, smpCallFunctionMany, smpCallFunctionSingle } from "../../guest/mod.ts";
import { IoEventFd } from "../../host/mod.ts";
import { KernelRig } from "../support/kernels.ts";
import { GO, noting, self, SINGLE, whileWaiting, YEARS } from "../support/smp_calls.ts";

describe("calls that meet", () => {
  it("in one queue run oldest first, and one interrupt brings them all", () => {
    const { rig, func, notes } = noting({
      cpus: 6,
      *secondary(cpu, kernel) {
        const n = yield* self(cpu);
        if (n === 1) {
          yield cpu.cli();
          yield cpu.pauseWhile(GO, 0);
          yield cpu.work(1_000_000);
          yield cpu.sti();
        } else {
          yield cpu.pauseWhile(GO, 0);
          // Each a while after the one before, in an order that is not theirs.
          yield cpu.work(50_000 * [0, 0, 3, 1, 4, 2][n]);
          yield* smpCallFunctionSingle(cpu, kernel, 1, { func, info: n });
        }
        yield* idle(cpu);
      },
    });
    rig.run(function* (cpu) {
      rig.mark();
      yield cpu.store32(GO, 1);
    });
    assertEquals(notes, [[1, 3], [1, 5], [1, 2], [1, 4]]);
    assertEquals(rig.offered(SINGLE), [1]); // Only the first found the queue empty.
  });

  for (const guestSemantics of YEARS) {
    it(`from two processors to all at once end on both: ${guestSemantics}`, () => {
      const times = 20;
      const { rig, func, notes } = noting({
        cpus: 5,
        guestSemantics,
        *secondary(cpu, kernel) {
          yield cpu.pauseWhile(GO, 0);
          if ((yield* self(cpu)) === 1) {
            for (let n = 0; n < times; n++) {
              yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 100 });
            }
          }
          yield* idle(cpu);
        },
      });
      rig.run(function* (cpu, kernel) {
        yield cpu.store32(GO, 1);
        for (let n = 0; n < times; n++) {
          yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 200 });
        }
        yield* whileWaiting(cpu, () => notes.length < 8 * times);
      });
      for (const [caller, info] of [[1, 100], [0, 200]]) {
        const ran = notes.filter(([, i]) => i === info).map(([n]) => n);
        for (let n = 0; n < 5; n++) assertEquals(ran.filter((m) => m === n).length, n === caller ? 0 : times);
      }
    });
  }

  it("under any schedule lose nothing and run nothing twice", () => {
    fc.assert(
      fc.property(fc.nat(), fc.constantFrom(...YEARS), fc.boolean(), (seed, guestSemantics, pv) => {
        const { rig, func, notes } = noting({
          cpus: 3,
          guestSemantics,
          disable: pv ? [] : ["pv-ipi"],
          machine: { policy: { random: seed }, limits: { steps: 1e6 } },
          *secondary(cpu, kernel) {
            yield cpu.pauseWhile(GO, 0);
            const n = yield* self(cpu);
            yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: n });
            yield* smpCallFunctionSingle(cpu, kernel, 0, { func, info: 10 + n });
            yield* idle(cpu);
          },
        });
        rig.run(function* (cpu, kernel) {
          yield cpu.store32(GO, 1);
          yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
          yield* whileWaiting(cpu, () => notes.length < 8);
        });
        assertEquals(notes.map(([n, info]) => `${info} on ${n}`).sort(), [
          ...["0 on 1", "0 on 2"],
          ...["1 on 0", "1 on 2"],
          ...["11 on 0", "12 on 0"],
          ...["2 on 0", "2 on 1"],
        ]);
      }),
      { numRuns: 40 },
    );
  });

  it("nest: a called function calls a third processor, and the caller who waits for it", () => {
    const rig = new KernelRig({ cpus: 3 });
    const order: string[] = [];
    const note = rig.kernel.smpFunction(function* note(cpu, info) {
      order.push(`${info} on ${yield* self(cpu)}`);
    });
    const relay = rig.kernel.smpFunction(function* relay(cpu) {
      order.push(`relay on ${yield* self(cpu)}`);
      yield* smpCallFunctionSingle(cpu, rig.kernel, 2, { func: note, info: 1 });
      yield* smpCallFunctionSingle(cpu, rig.kernel, 0, { func: note, info: 2 });
      order.push("relay done");
    });
    rig.run(function* (cpu, kernel) {
      yield* smpCallFunctionSingle(cpu, kernel, 1, { func: relay, info: 0 });
      order.push("all done");
    });
    assertEquals(order, ["relay on 1", "1 on 2", "2 on 0", "relay done", "all done"]);
  });

  it("on one processor, from its program and from a device's interrupt that comes in between, keep apart", () => {
    // The device answers each ring a little later than the ring before, so that its interrupt comes at every point of
    // the program's own call.
    const { rig, func, notes } = noting({ cpus: 3 });
    const { kernel, vm } = rig;
    const times = 120;
    vm.pioBus.add(
      new IoEventFd(0xc010, 2, () => {
        vm.signalMsi(encodeMsi({ vector: 0x41, destination: 2 }, "xapic"));
      }),
    );
    // Processor 2 passes it on to 0 after a while.
    let delay = 0;
    kernel.irq(0x41, function* passOn(cpu) {
      yield cpu.work(delay += 37);
      yield* kernel.apic.sendIpi(cpu, 0, 0x42);
    });
    kernel.irq(0x42, function* device(cpu) {
      yield* smpCallFunctionSingle(cpu, kernel, 2, { func, info: 2 });
    });
    rig.run(function* (cpu) {
      for (let n = 0; n < times; n++) {
        yield cpu.out16(0xc010, 0);
        for (let m = 0; m < 4; m++) yield* smpCallFunctionSingle(cpu, kernel, 1, { func, info: 1 });
        yield cpu.work(20_000);
      }
    });
    assertEquals(notes.filter(([n, info]) => n === 1 && info === 1).length, 4 * times);
    assertEquals(notes.filter(([n, info]) => n === 2 && info === 2).length, rig.irqs(0, 0x42));
    assertEquals(rig.irqs(0, 0x42), times);
    assertEquals(notes.length, 5 * times);
  });

  it("of several from an interrupt handler can deadlock: the kernel says so", () => {
    const { rig, func } = noting({ cpus: 3 });
    rig.kernel.irq(0x41, (cpu) => smpCallFunctionMany(cpu, rig.kernel, data("online"), { func, info: 0 }));
    rig.run(function* (cpu, kernel) {
      yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
      assertEquals(kernel.log, []);
      for (let n = 0; n < 3; n++) yield* kernel.apic.sendIpiSelf(cpu, 0x41);
      yield cpu.pause();
    });
    assertEquals(rig.kernel.log, ["smp_call_function_many from an interrupt handler can deadlock"]);
  });
});
