import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { X86Cpu } from "../../../abi/mod.ts";
import { LimitExceeded, type PolicySpec, type Vm } from "../../../host/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  bringUp,
  enter,
  send,
  tryingRig,
  until,
  vectors,
  write,
} from "../../support/apic.ts";
import { virtualApic } from "../../support/apicv.ts";
import { AP_START, DATA, type Rig } from "../../support/guests.ts";
import { type Level, LEVELS, nameOf } from "../../support/levels.ts";
import { anyStorm, rage } from "../../support/interrupt_storms.ts";
import { descriptor, pir } from "../../support/posted.ts";

/** Set by the application processor: it is in its first handler, and lets nobody interrupt it. */
const BUSY = DATA + 8;
/** Nothing more comes. */
const STOP = DATA + 12;

/** On one physical CPU: what is sent to the other vCPU is sent while that one is off its CPU. */
function initWhileRequested(level: Level, mode: ApicMode): { rig: Rig; handled: string[] } {
  const rig = tryingRig({ vm: { ...level, vcpus: 2 }, machine: { pcpus: 1, timeSlice: 200_000 } });
  const handled: string[] = [];
  const eoi = (cpu: X86Cpu) => write(cpu, mode, 0x0b0, 0);
  rig.on(0x41, function* busy(cpu) {
    handled.push("41");
    yield cpu.store32(BUSY, 1);
    for (;;) yield cpu.work(1000);
  });
  for (const vector of [0x31, 0x51]) {
    rig.on(vector, function* quick(cpu) {
      handled.push(vector.toString(16));
      yield* eoi(cpu);
    });
  }
  rig.aps(function* (cpu) {
    handled.push("starts");
    yield* enter(cpu, mode);
    yield cpu.xadd32(DATA, 1);
    yield cpu.sti();
    yield* until(cpu, STOP, 1);
    yield cpu.cli();
    yield cpu.hlt();
  });
  const high = mode === "xapic" ? 1 << 24 : 1;
  rig.finish(function* (cpu) {
    yield* enter(cpu, mode);
    yield* bringUp(cpu, mode, 1);
    yield* until(cpu, DATA, 1);
    yield* send(cpu, mode, { low: 0x4041, high });
    yield* until(cpu, BUSY, 1);
    for (const low of [0x4031, 0x4051, 0x4500]) yield* send(cpu, mode, { low, high });
    yield cpu.work(1_000_000);
    yield* send(cpu, mode, { low: 0x4600 | (AP_START >>> 12), high });
    yield* until(cpu, DATA, 2);
    yield cpu.work(1_000_000);
    yield cpu.store32(STOP, 1);
  });
  return { rig, handled };
}

describe("INIT takes back what was requested of a processor", () => {
  for (const level of LEVELS) {
    for (const mode of APIC_MODES) {
      it(`from within a handler, and what was posted to it unseen (${nameOf(level)}, ${mode})`, () => {
        const { rig, handled } = initWhileRequested(level, mode);
        assertEquals(handled, ["starts", "41", "starts"]);
        const [, ap] = rig.vm.vcpus;
        assertEquals([vectors(ap.lapic, 0x200), vectors(ap.lapic, 0x100)], [[], []]);
        if (level.backend === "vmx") assertEquals(pir(ap), []);
      });
    }
  }
});

describe("RESET in the middle of anything", () => {
  for (const level of LEVELS) {
    it(`leaves nothing requested, posted or in service (${nameOf(level)})`, () => {
      let busy = 0;
      fc.assert(
        fc.property(
          anyStorm,
          fc.integer({ min: 1, max: 3000 }),
          fc.option(fc.nat()),
          (storm, steps, random) => {
            let vm: Vm;
            const made = (it: Vm) => void (vm = it);
            const policy: PolicySpec = random === null ? "timed" : { random };
            try {
              rage(storm, { vm: level, machine: { pcpus: 2, limits: { steps }, policy }, made });
            } catch (error) {
              assert(error instanceof LimitExceeded, `${error}`);
            }
            const { engine, bootstrap, vcpus } = vm!;
            engine.running = bootstrap;
            if (vcpus.some(({ lapic }) => [0x100, 0x200].some((bank) => vectors(lapic, bank).length > 0))) {
              busy++;
            }
            for (const vcpu of vcpus) vcpu.reset(false);
            for (const vcpu of vcpus) {
              const { lapic } = vcpu;
              assertEquals([0x100, 0x180, 0x200].map((bank) => vectors(lapic, bank)), [[], [], []]);
              assertEquals([lapic.x2apicMode, lapic.hardwareEnabled, lapic.enabled], [false, true, false]);
              if (level.backend === "svm") continue;
              assertEquals([pir(vcpu), descriptor(vcpu).on], [[], false]);
              assertEquals(virtualApic(vm!, vcpu.index), { rvi: 0, svi: 0, irr: [], isr: [] });
            }
          },
        ),
        { numRuns: 20 },
      );
      console.error("BUSY", busy);
    });
  }
});
