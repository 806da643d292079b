import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { encodeMsi, type X86Cpu } from "../../abi/mod.ts";
import {
  data,
  type GuestSemantics,
  type GuestValue,
  idle,
  percpu,
  smpCallFunctionMany,
  smpCallFunctionSingle,
} from "../../guest/mod.ts";
import { GuestError, IoEventFd } from "../../host/mod.ts";
import { APICS, KernelRig, type KernelRigOptions, WIDTHS } from "../support/kernels.ts";

const YEARS: readonly GuestSemantics[] = ["v6.19", "2022", "2021", "2018", "2012"];
/** Memory of the tests' own, behind all that a small kernel uses. */
const SCRATCH = 0x300_0000;
const MASK = SCRATCH;
/** What processors wait for: it is 0 until somebody says go. */
const GO = SCRATCH + 0x100;
const SINGLE = 0xfb;
const MANY = 0xfc;

/** The number of the processor that runs this. */
function* self(cpu: X86Cpu): GuestValue<number> {
  yield cpu.load32(cpu.gsBase);
  return cpu.eax;
}

/** A kernel with a function that notes who called it with what, and whether interrupts were off. */
function noting(options: KernelRigOptions): { rig: KernelRig; func: number; notes: [number, number][] } {
  const rig = new KernelRig(options);
  const notes: [number, number][] = [];
  const func = rig.kernel.smpFunction(function* note(cpu, info) {
    yield cpu.pushf();
    assertEquals(cpu.interruptsEnabled, false);
    notes.push([yield* self(cpu), info]);
  });
  return { rig, func, notes };
}

describe("a call of one processor", () => {
  for (const apic of APICS) {
    it(`runs there, with its number, before the caller goes on: ${apic}`, () => {
      for (const bits of WIDTHS) {
        const { rig, func, notes } = noting({ cpus: 4, apic, bits });
        rig.run(function* (cpu, kernel) {
          rig.mark();
          assertEquals(yield* smpCallFunctionSingle(cpu, kernel, 2, { func, info: 7 }), true);
          assertEquals(notes, [[2, 7]]);
        });
        assertEquals(rig.offered(SINGLE), [2]);
        assertEquals([0, 1, 2, 3].map((n) => rig.irqs(n, SINGLE)), [0, 0, 1, 0]);
      }
    });
  }

  it("of its own is a call, without an interrupt", () => {
    const { rig, func, notes } = noting({ cpus: 2 });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      assertEquals(yield* smpCallFunctionSingle(cpu, kernel, 0, { func, info: 5 }), true);
      yield cpu.pushf();
      assertEquals(cpu.interruptsEnabled, true);
      assertEquals([rig.sends(), notes], [[], [[0, 5]]]);
    });
  });

  it("passes whole numbers up to 2^53", () => {
    const { rig, func, notes } = noting({ cpus: 2 });
    const numbers = [0, 2 ** 32 - 1, 2 ** 32, 0x1_2345_6789_abcd, Number.MAX_SAFE_INTEGER];
    rig.run(function* (cpu, kernel) {
      for (const info of numbers) yield* smpCallFunctionSingle(cpu, kernel, 1, { func, info });
    });
    assertEquals(notes.map(([, info]) => info), numbers);
  });

  it("that is not there, or off line, calls nothing and says so", () => {
    const { rig, func, notes } = noting({ cpus: 3 });
    rig.run(function* (cpu, kernel) {
      yield cpu.lockBtr(data("online"), 2);
      rig.mark();
      for (const target of [2, 3, 32, -1]) {
        assertEquals(yield* smpCallFunctionSingle(cpu, kernel, target, { func, info: 0 }), false);
      }
    });
    assertEquals([rig.sends(), notes], [[], []]);
  });

  it("of a function that nobody registered stops the guest", () => {
    const { rig } = noting({ cpus: 2 });
    assertThrows(
      () =>
        rig.go((cpu, kernel) => smpCallFunctionMany(cpu, kernel, data("online"), { func: 0x5000, info: 0 })),
      GuestError,
      "Cannot call 0x5000: no function was registered there",
    );
  });
});

describe("a call of several processors", () => {
  for (const guestSemantics of YEARS) {
    for (const apic of APICS) {
      it(`runs once on each, before the caller goes on: ${guestSemantics}, ${apic}`, () => {
        const { rig, func, notes } = noting({ cpus: 20, apic, guestSemantics });
        rig.run(function* (cpu, kernel) {
          yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 9 });
          const others = Array.from({ length: 19 }, (_, n): [number, number] => [n + 1, 9]);
          assertEquals(notes.toSorted(([a], [b]) => a - b), others);
        });
        assertEquals(rig.irqs(0, MANY), 0);
        assertEquals(rig.irqs(19, MANY), 1);
      });
    }
  }

  it("goes to those of the mask that are on line, and not to the caller", () => {
    const { rig, func, notes } = noting({ cpus: 6 });
    rig.run(function* (cpu, kernel) {
      yield cpu.store32(MASK, 0xff ^ 0b1000); // All but 3, and two that do not exist.
      yield cpu.lockBtr(data("online"), 4);
      yield* smpCallFunctionMany(cpu, kernel, MASK, { func, info: 0 });
    });
    assertEquals(notes.map(([n]) => n).sort(), [1, 2, 5]);
  });

  it("for nobody sends nothing", () => {
    for (const guestSemantics of YEARS) {
      const { rig, func, notes } = noting({ cpus: 3, guestSemantics });
      rig.run(function* (cpu, kernel) {
        rig.mark();
        for (const mask of [0, 1, 0b1000]) {
          yield cpu.store32(MASK, mask);
          yield* smpCallFunctionMany(cpu, kernel, MASK, { func, info: 0 });
        }
      });
      assertEquals([rig.sends(), rig.hypercalls(), notes], [[], [], []]);
    }
  });

  for (const guestSemantics of YEARS) {
    it(`with one target is a call of that one: ${guestSemantics}`, () => {
      const { rig, func, notes } = noting({ cpus: 4, guestSemantics });
      rig.run(function* (cpu, kernel) {
        yield cpu.store32(MASK, 0b0101);
        rig.mark();
        yield* smpCallFunctionMany(cpu, kernel, MASK, { func, info: 3 });
      });
      assertEquals([rig.offered(SINGLE), rig.offered(MANY)], [[2], []]);
      assertEquals([notes, rig.hypercalls()], [[[2, 3]], []]);
    });
  }

  it("uses no shorthand until every processor that is there has booted once: it would reach them", () => {
    const early: unknown[] = [];
    const { rig, func } = noting({
      cpus: 4,
      disable: ["pv-ipi"],
      *secondary(cpu, kernel) {
        if ((yield* self(cpu)) === 2) {
          early.push(rig.mask("online"));
          rig.mark();
          yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
        }
        yield* idle(cpu);
      },
    });
    rig.run(function* (cpu, kernel) {
      early.push(rig.sends().filter(([low]) => (low & 0xff) === MANY));
      rig.mark();
      yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
    });
    assertEquals(early, [[0, 1, 2], [[MANY, 0], [MANY, 1]]]);
    assertEquals(rig.sends(), [[0xc0000 | MANY, 0]]);
  });

  /** Two processors are called while one of them still has a call in its queue. What interrupts they are offered. */
  function queuedAlready(guestSemantics: GuestSemantics): { rig: KernelRig; notes: [number, number][] } {
    const { rig, func, notes } = noting({
      cpus: 4,
      guestSemantics,
      *secondary(cpu, kernel) {
        const n = yield* self(cpu);
        if (n === 2) {
          // It takes no interrupts until everybody has called.
          yield cpu.cli();
          yield cpu.xadd32(GO, 1);
          yield cpu.work(300_000);
          yield cpu.sti();
        }
        if (n === 3) {
          yield cpu.pauseWhile(GO, 0);
          yield* smpCallFunctionSingle(cpu, kernel, 2, { func, info: 3 });
        }
        yield* idle(cpu);
      },
    });
    rig.run(function* (cpu, kernel) {
      yield cpu.pauseWhile(GO, 0);
      yield cpu.work(100_000); // Processor 3 has called by now.
      yield cpu.store32(MASK, 0b0110);
      rig.mark();
      yield* smpCallFunctionMany(cpu, kernel, MASK, { func, info: 0 });
    });
    return { rig, notes };
  }

  it("of which only one needs an interrupt is sent to that one alone since v5.13", () => {
    const { rig, notes } = queuedAlready("v6.19");
    assertEquals([rig.offered(SINGLE), rig.offered(MANY)], [[1], []]);
    assertEquals(notes, [[1, 0], [2, 3], [2, 0]]); // On processor 2, the older call first.
  });

  it("leaves out who has calls waiting, but keeps to its vector, in 2018", () => {
    const { rig, notes } = queuedAlready("2018");
    assertEquals([rig.offered(SINGLE), rig.offered(MANY)], [[], [1]]);
    assertEquals(notes, [[1, 0], [2, 3], [2, 0]]);
  });

  it("interrupts everybody in 2012", () => {
    const { rig } = queuedAlready("2012");
    assertEquals([rig.offered(SINGLE), rig.offered(MANY)], [[], [1, 2]]);
  });
});

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

describe("a queue of calls", () => {
  it("is empty once all have run", () => {
    const { rig, func } = noting({ cpus: 4 });
    rig.run((cpu, kernel) => smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 }));
    for (let n = 0; n < 4; n++) assertEquals(rig.vm.memory.word(percpu(n, "callQueue")), 0);
  });

  it("may be found empty by an interrupt: nothing is run", () => {
    const { rig, notes } = noting({ cpus: 2 });
    rig.run(function* (cpu, kernel) {
      yield* kernel.apic.sendIpi(cpu, 1, SINGLE);
      yield* kernel.apic.sendIpi(cpu, 1, MANY);
      yield cpu.work(100_000);
    });
    assertEquals([rig.irqs(1, SINGLE) + rig.irqs(1, MANY), notes], [2, []]);
  });
});

/** Computes in stretches while something has not happened yet: others go on. */
function* whileWaiting(cpu: X86Cpu, waiting: () => boolean): Generator<number, void, void> {
  while (waiting()) yield cpu.work(1000);
}
