import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import {
  type Acceleration,
  type PolicySpec,
  type Quirk,
  VcpuMode,
  type VmOptions,
} from "../../../host/mod.ts";
import {
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  send,
  tryingRig,
  until,
  vectors,
  write,
} from "../../support/apic.ts";
import { physicalEntry } from "../../support/avic.ts";
import { DATA } from "../../support/guests.ts";
import { Script } from "../../support/threads.ts";

const ALIVE = DATA;
const TAKEN = DATA + 4;
const STOP = DATA + 8;
const ROUNDS = 6;

/** A run under a schedule. */
interface Play {
  readonly acceleration: Acceleration;
  readonly mode: ApicMode;
  readonly policy: PolicySpec;
  readonly quirks?: readonly Quirk[];
  readonly options?: VmOptions;
}

/** How it ended: "finished", or "halted" where everybody waits for an interrupt that was lost. */
type End = string;

const dest = (mode: ApicMode, id: number) => mode === "xapic" ? id << 24 : id;

/**
 * Sends IPIs, each once the one before has been taken, to a vCPU that halts each time. Who waits for ever has lost one.
 */
function sendToSleeper({ acceleration, mode, policy, quirks = [], options }: Play): End {
  const rig = tryingRig({
    vm: { backend: "svm", acceleration, vcpus: 2, haltPollNs: 0, ...options },
    machine: { policy, pcpus: 2, quirks, limits: { steps: 50_000 } },
  });
  const { vm } = rig;
  rig.on(0x41, function* (cpu) {
    yield cpu.xadd32(TAKEN, 1);
    yield* write(cpu, mode, 0x0b0, 0);
  });
  rig.aps(function* (cpu) {
    yield* enter(cpu, mode);
    yield cpu.xadd32(ALIVE, 1);
    for (;;) {
      yield cpu.sti();
      yield cpu.hlt();
      yield cpu.cli();
    }
  });
  const { end } = rig.run(function* (cpu) {
    yield* enter(cpu, mode);
    yield* bringUp(cpu, mode, 1);
    yield* until(cpu, ALIVE, 1);
    for (let round = 1; round <= ROUNDS; round++) {
      yield* send(cpu, mode, { low: 0x4041, high: dest(mode, 1) });
      yield* until(cpu, TAKEN, round);
    }
  }, Infinity);
  if (end === "finished") {
    assertEquals(rig.word(TAKEN), ROUNDS); // Each once, none twice.
    assertEquals(vectors(vm.vcpus[1].lapic, 0x200), []);
  } else {
    // Lost: it is requested, and its target sleeps.
    assertEquals(end, "halted");
    assertEquals(vectors(vm.vcpus[1].lapic, 0x200), [0x41]);
    assertEquals([vm.vcpus[1].asleep, physicalEntry(vm, 1).running], [true, false]);
  }
  return end;
}

const MODES: readonly [Acceleration, ApicMode][] = [["avic", "xapic"], ["x2avic", "x2apic"], [
  "avic",
  "x2apic",
]];
const SCHEDULES = 150;

describe("an IPI to a vCPU that is about to sleep", () => {
  for (const [acceleration, mode] of MODES) {
    for (const ipiv of [true, false]) {
      const how = `${acceleration}, ${mode}${ipiv ? "" : ", without IPI virtualization"}`;
      it(`is never lost: IsRunning is cleared before the last look (${how})`, () => {
        for (let random = 0; random < SCHEDULES; random++) {
          const end = sendToSleeper({ acceleration, mode, policy: { random }, options: { ipiv } });
          assertEquals(end, "finished", `schedule ${random}`);
        }
      });
    }
  }

  for (const [acceleration, mode] of MODES.slice(0, 2)) {
    it(`is lost by a processor that reads IsRunning before it writes the IRR (erratum 1235; ${acceleration})`, () => {
      const ends = Array.from(
        { length: SCHEDULES },
        (_, random) =>
          sendToSleeper({ acceleration, mode, policy: { random }, quirks: ["avic-stale-is-running"] }),
      );
      const lost = ends.filter((end) => end === "halted").length;
      assertGreater(lost, 0, "no schedule loses one");
    });

    it(`is not lost by that processor where KVM never shows it IsRunning (${acceleration})`, () => {
      for (let random = 0; random < SCHEDULES; random++) {
        const quirks: Quirk[] = ["avic-stale-is-running"];
        const end = sendToSleeper({
          acceleration,
          mode,
          policy: { random },
          quirks,
          options: { ipiv: false },
        });
        assertEquals(end, "finished", `schedule ${random}`);
      }
    });
  }

  it("is found by a vCPU that polls before it sleeps, with IsRunning set and without an exit", () => {
    const rig = tryingRig({
      vm: { backend: "svm", acceleration: "avic", vcpus: 2, trace: 4096 },
      machine: { pcpus: 2 },
    });
    const { vm } = rig;
    const [, target] = vm.vcpus;
    rig.on(0x41, function* (cpu) {
      yield cpu.xadd32(TAKEN, 1);
      yield* write(cpu, "xapic", 0x0b0, 0);
    });
    rig.aps(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield cpu.xadd32(ALIVE, 1);
      yield cpu.sti();
      for (;;) yield cpu.hlt();
    });
    let polled = 0;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* bringUp(cpu, "xapic", 1);
      yield* until(cpu, ALIVE, 1);
      for (let round = 1; round <= 8; round++) {
        yield cpu.work(20_000);
        if (target.polling) {
          polled++;
          assertEquals(physicalEntry(vm, 1).running, true);
        }
        yield* send(cpu, "xapic", { low: 0x4041, high: dest("xapic", 1) });
        yield* until(cpu, TAKEN, round);
      }
    });
    assertGreater(polled, 2);
    assertGreater(target.stats.halt_successful_poll, 2);
    assertEquals(vm.exits().avic_incomplete_ipi - 2, 8 - polled); // Two of them are INIT and the start-up.
  });
});

describe("IPIs round a ring of vCPUs that share CPUs", () => {
  /** Each vCPU waits for the one before it, and halts meanwhile; there are fewer CPUs than vCPUs. */
  function ring({ acceleration, mode, policy, options }: Play, pcpus: number): End {
    const vcpus = 4;
    const rig = tryingRig({
      vm: { backend: "svm", acceleration, vcpus, haltPollNs: 0, ...options },
      machine: { policy, pcpus, timeSlice: 20_000, limits: { steps: 100_000 } },
    });
    const { vm } = rig;
    const index = (cpu: X86Cpu) => vm.vcpus.findIndex(({ processor }) => processor.context === cpu);
    const taken = (id: number) => DATA + 0x100 + 4 * id;
    rig.on(0x41, function* (cpu) {
      yield cpu.xadd32(taken(index(cpu)), 1);
      yield* write(cpu, mode, 0x0b0, 0);
    });
    function* turns(cpu: X86Cpu): Asking<void> {
      const me = index(cpu);
      for (let round = 1; round <= ROUNDS; round++) {
        for (;;) {
          yield cpu.cli();
          yield cpu.load32(taken(me));
          if (cpu.eax === round) break;
          yield cpu.sti();
          yield cpu.hlt();
        }
        if (me === 0 && round === ROUNDS) break;
        yield* send(cpu, mode, { low: 0x4041, high: dest(mode, (me + 1) % vcpus) });
      }
    }
    rig.aps(function* (cpu) {
      yield* enter(cpu, mode);
      yield cpu.xadd32(ALIVE, 1);
      yield* turns(cpu);
    });
    return rig.run(function* (cpu) {
      yield* enter(cpu, mode);
      yield* bringUp(cpu, mode, vcpus - 1);
      yield* until(cpu, ALIVE, vcpus - 1);
      yield* send(cpu, mode, { low: 0x4_4041, high: 0 });
      yield* turns(cpu);
    }, Infinity).end;
  }

  for (const [acceleration, mode] of MODES) {
    for (const pcpus of [1, 2]) {
      it(`are never lost, whoever is preempted (${acceleration}, ${mode}, ${pcpus} CPUs)`, () => {
        for (let random = 0; random < 40; random++) {
          for (const ipiv of [true, false]) {
            const play: Play = { acceleration, mode, policy: { random }, options: { ipiv } };
            assertEquals(ring(play, pcpus), "finished", `schedule ${random}`);
          }
        }
        assertEquals(ring({ acceleration, mode, policy: "timed" }, pcpus), "finished");
      });
    }
  }
});

/**
 * A guest whose IPIs software delivers (hybrid) to a vCPU that spins, while somebody has AVIC inhibited, once, at any
 * time. Whoever gives AVIC up looks for what was requested before; after that nothing but an event lets it look.
 */
function inhibitWhileSending(random: number, quirks: readonly Quirk[]): End {
  const rig = tryingRig({
    vm: { backend: "svm", acceleration: "avic", vcpus: 2, haltPollNs: 0 },
    machine: { policy: { random }, pcpus: 2, quirks, limits: { steps: 50_000 } },
  });
  const { vm } = rig;
  rig.on(0x41, function* (cpu) {
    yield cpu.xadd32(TAKEN, 1);
    yield* write(cpu, "x2apic", 0x0b0, 0);
  });
  rig.aps(function* (cpu) {
    yield* enter(cpu, "x2apic");
    yield cpu.sti();
    yield cpu.xadd32(ALIVE, 1);
    yield cpu.pauseWhile(STOP, 0);
    yield cpu.cli();
  });
  let sending = false;
  rig.start(function* (cpu) {
    yield* enter(cpu, "x2apic");
    yield* bringUp(cpu, "x2apic", 1);
    yield* until(cpu, ALIVE, 1);
    sending = true;
    for (let round = 1; round <= ROUNDS; round++) {
      yield* send(cpu, "x2apic", { low: 0x4041, high: 1 });
      yield* until(cpu, TAKEN, round);
    }
    yield cpu.store32(STOP, 1);
  });
  new Script(vm.engine, "debugger", function* () {
    while (!sending) yield 1;
    for (let i = 0; i < random % 50; i++) yield 1;
    setApicvInhibit(vm, "BLOCKIRQ", true);
  });
  const { end } = vm.machine.run();
  if (end === "halted") assertEquals(vectors(vm.vcpus[1].lapic, 0x200), [0x41]);
  return end;
}

describe("an interrupt to a vCPU that is giving AVIC up", () => {
  it("is never lost: where the vCPU is was read before whether it uses AVIC", () => {
    for (let random = 0; random < 400; random++) {
      assertEquals(inhibitWhileSending(random, []), "finished", `schedule ${random}`);
    }
  });

  it("is lost where whether it uses AVIC was read first (fixed by 66fa226c131f)", () => {
    const ends = Array.from(
      { length: 400 },
      (_, random) => inhibitWhileSending(random, ["avic-inhibit-race"]),
    );
    assertGreater(ends.filter((end) => end === "halted").length, 0, "no schedule loses one");
  });
});

describe("doorbells", () => {
  it("that ring in the host mean nothing: VMRUN has looked", () => {
    const rig = tryingRig({ vm: { backend: "svm", acceleration: "x2avic" } });
    const { vm } = rig;
    const { bootstrap: vcpu } = vm;
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.sti();
      yield cpu.work(1000);
      const before = vcpu.clock;
      vcpu.pcpu!.notify(vcpu.time);
      yield cpu.cpuid(0);
      assertEquals(vcpu.mode, VcpuMode.InGuest);
      assert(vcpu.clock > before);
      assertEquals(vm.exits().interrupt, undefined);
    });
  });

  it("of another virtual machine's vCPU make the one that runs now look at its own page: nothing is there", () => {
    const rig = tryingRig({ vm: { backend: "svm", acceleration: "none", trace: 64 } });
    const { vm } = rig;
    rig.finish(function* (cpu) {
      vm.bootstrap.pcpu!.notify(vm.bootstrap.time);
      yield cpu.pushf();
      yield cpu.pushf();
      assertEquals(vm.exits(), {});
    });
  });
});
