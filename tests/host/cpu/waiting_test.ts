import { assertEquals, assertGreaterOrEqual, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { HIGH, IA32_TSC_DEADLINE, X2APIC_EOI, X2APIC_MSR_BASE, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, Timer } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig } from "../../support/guests.ts";

const TERA = 1e12;
const VECTOR = 0x60;

/** EDX:EAX after RDTSC. */
const tsc = (cpu: X86Cpu) => cpu.edx * HIGH + cpu.eax;

/** Calls back at a point in time, like a device. */
function at(rig: Rig, clock: number, what: () => void): void {
  new Timer(rig.vm.engine, `at ${clock}`, what).arm(clock);
}

/** Sends the bootstrap processor an interrupt at a point in time. */
function interruptAt(rig: Rig, clock: number): void {
  at(rig, clock, () => rig.vm.signalMsi({ addressHigh: 0, addressLow: 0xfee0_0000, data: VECTOR }));
}

/** How long `cycles` of work take while interrupts come at some points in time. */
function worked(cycles: number, interrupts: readonly number[], deadlines: readonly number[] = []) {
  const rig = new Rig();
  const handled: number[] = [];
  let began = 0;
  let ended = 0;
  rig.on(VECTOR, function* (cpu) {
    yield cpu.rdtsc();
    handled.push(tsc(cpu));
    yield cpu.wrmsr(X2APIC_EOI, 0);
  });
  for (const clock of interrupts) interruptAt(rig, clock);
  const { machine } = rig.start(function* (cpu) {
    yield* enableX2apic(cpu);
    yield cpu.sti();
    yield cpu.rdtsc();
    began = tsc(cpu);
    yield cpu.work(cycles);
    yield cpu.rdtsc();
    ended = tsc(cpu);
  });
  for (const deadline of deadlines) assertEquals(machine.run(deadline).end, "deadline");
  assertEquals(machine.run(1e14).end, "finished");
  return { rig, elapsed: ended - began - rig.vm.cost.rdtsc, handled };
}

describe("a computation", () => {
  it("takes as long as it says, be it 1 cycle or 10^12", () => {
    for (const cycles of [0, 1, 2 ** 28, 2 ** 28 + 1, 2 ** 32, TERA]) {
      assertEquals(worked(cycles, []).elapsed, cycles);
    }
  });

  it("is a handful of steps, however long it takes between interrupts", () => {
    const { rig } = worked(TERA, []);
    assertLess(rig.vm.engine.steps, 20 + 2 * TERA / 2 ** 28);
  });

  it("is done in full behind the interrupts that come in its middle, each of which costs the same", () => {
    const one = worked(1e6, [500_000]);
    const overhead = one.elapsed - 1e6;
    assertEquals(one.handled.length, 1);
    assertGreaterOrEqual(overhead, 1000);
    const times = fc.uniqueArray(fc.integer({ min: 1, max: 99 }), { maxLength: 20 });
    fc.assert(
      fc.property(times, (tenths) => {
        const interrupts = tenths.map((n) => n * TERA / 100).sort((a, b) => a - b);
        const { elapsed, handled } = worked(TERA, interrupts);
        assertEquals(elapsed, TERA + tenths.length * overhead);
        assertEquals(handled.length, tenths.length);
        for (const [n, clock] of handled.entries()) {
          assertGreaterOrEqual(clock, interrupts[n]);
          assertLess(clock, interrupts[n] + 10_000);
        }
      }),
      { numRuns: 20 },
    );
  });

  it("is the same when the run is cut into pieces by deadlines", () => {
    const interrupts = [3e11, 7e11];
    const whole = worked(TERA, interrupts);
    const pieces = worked(TERA, interrupts, [1e10, 3e11, 3e11 + 500, 5e11, 9.99e11]);
    assertEquals(pieces.elapsed, whole.elapsed);
    assertEquals(pieces.handled, whole.handled);
    assertEquals(pieces.rig.vm.counters(), whole.rig.vm.counters());
  });

  it("right behind STI lets an interrupt in after its first cycle", () => {
    const rig = new Rig();
    let handled = 0;
    let enabled = 0;
    rig.on(VECTOR, function* (cpu) {
      yield cpu.rdtsc();
      handled = tsc(cpu);
      yield cpu.wrmsr(X2APIC_EOI, 0);
    }).finish(function* (cpu) {
      yield* enableX2apic(cpu);
      yield cpu.wrmsr(X2APIC_MSR_BASE + 0x3f, VECTOR); // To itself: it waits for STI.
      yield cpu.rdtsc();
      enabled = tsc(cpu);
      yield cpu.sti();
      yield cpu.work(1e8);
    });
    assertGreaterOrEqual(handled, enabled);
    assertLess(handled, enabled + 10_000);
  });
});

describe("a PAUSE loop that is charged in bulk", () => {
  it("ends at the end of the turn in which the store happens, epochs later", () => {
    for (const store of [200_000, 3 * 2 ** 30, TERA, TERA + 1, TERA + 145]) {
      const rig = new Rig();
      let began = 0;
      let ended = 0;
      at(rig, store, () => rig.vm.memory.setWord(DATA, 1));
      rig.start(function* (cpu) {
        yield cpu.rdtsc();
        began = tsc(cpu);
        yield cpu.pauseWhile(DATA, 0);
        yield cpu.rdtsc();
        ended = tsc(cpu);
      });
      assertEquals(rig.vm.machine.run().end, "finished");
      const { cost } = rig.vm;
      const start = began + cost.rdtsc;
      const turns = Math.ceil((store - start) / cost.pauseLoop);
      assertEquals(ended, start + turns * cost.pauseLoop + cost.load);
    }
  });

  it("ends when the word's value changes, not when the same value is stored again", () => {
    const rig = new Rig();
    at(rig, 1e6, () => rig.vm.memory.setWord(DATA, 0));
    at(rig, 2e6, () => rig.vm.memory.setWord(DATA + 4, 1));
    at(rig, 3e6, () => void rig.vm.memory.write(DATA + 3, 1, 1n));
    rig.finish(function* (cpu) {
      yield cpu.pauseWhile(DATA, 0);
      assertEquals(cpu.eax, 0);
    });
    assertGreaterOrEqual(rig.vm.bootstrap.clock, 3e6);
    assertLess(rig.vm.bootstrap.clock, 3e6 + 10_000);
  });

  it("leaves the flags of its last comparison", () => {
    for (const [stored, carry] of [[3, true], [7, false]] as const) {
      const rig = new Rig();
      at(rig, 1e6, () => rig.vm.memory.setWord(DATA, stored));
      rig.finish(function* (cpu) {
        yield cpu.store32(DATA, 5);
        yield cpu.cmpxchg32(DATA, 5, 5); // Sets ZF, clears CF.
        yield cpu.pauseWhile(DATA, 5);
        assertEquals([cpu.zf, cpu.cf], [false, carry]);
      });
    }
  });

  it("that nobody ends leaves a machine that halts", () => {
    const rig = new Rig();
    assertEquals(
      rig.run(function* (cpu) {
        yield cpu.pauseWhile(DATA, 0);
      }).end,
      "halted",
    );
  });
});

describe("an APIC timer that is armed for far away", () => {
  for (const backend of BACKENDS) {
    for (const waits of ["halts", "works"] as const) {
      it(`fires on time on a vCPU that ${waits} (${backend})`, () => {
        const rig = new Rig({ vm: { backend } });
        const fired: number[] = [];
        rig.on(VECTOR, function* (cpu) {
          yield cpu.rdtsc();
          fired.push(tsc(cpu));
          yield cpu.wrmsr(X2APIC_EOI, 0);
        });
        rig.start(function* (cpu) {
          yield* enableX2apic(cpu);
          yield cpu.wrmsr(X2APIC_MSR_BASE + 0x32, 0x4_0000 | VECTOR); // TSC-deadline mode.
          for (const deadline of [TERA, 3 * TERA]) {
            yield cpu.wrmsr(IA32_TSC_DEADLINE, deadline, deadline / HIGH);
            yield cpu.sti();
            if (waits === "halts") yield cpu.hlt();
            else while ((fired.at(-1) ?? 0) < deadline) yield cpu.work(TERA / 3);
          }
        });
        assertEquals(rig.vm.machine.run(1e13).end, "finished");
        assertEquals(fired.length, 2);
        for (const [n, deadline] of [TERA, 3 * TERA].entries()) {
          assertGreaterOrEqual(fired[n], deadline);
          assertLess(fired[n], deadline + 20_000);
        }
      });
    }
  }
});
