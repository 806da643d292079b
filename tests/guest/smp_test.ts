import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  data,
  type GuestSemantics,
  idle,
  percpu,
  smpCallFunctionMany,
  smpCallFunctionSingle,
} from "../../guest/mod.ts";
import { GuestError } from "../../host/mod.ts";
import { APICS, type KernelRig, WIDTHS } from "../support/kernels.ts";
import { GO, noting, SCRATCH, self, SINGLE, YEARS } from "../support/smp_calls.ts";

const MASK = SCRATCH;
const MANY = 0xfc;

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
