import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import {
  type Acceleration,
  type MachineOptions,
  type PolicySpec,
  type Quirk,
  type RunResult,
  straight,
  type Vm,
} from "../../../host/mod.ts";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import { highestVector } from "../../../host/lapic/vectors.ts";
import {
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  read,
  request,
  send,
  setUp,
  still,
  until,
  write,
} from "../../support/apic.ts";
import { DATA, Rig } from "../../support/guests.ts";
import { put, shown, vmx, watchDescriptors } from "../../support/posted.ts";
import { Script } from "../../support/threads.ts";

const COUNT = DATA;
const READY = DATA + 0x100;
const STOP = DATA + 0x104;
/** Vector 0x40 + n is for vCPU n; its handler counts. */
const FIRST = 0x40;
const ROUNDS = 4;

/** How a ring of vCPUs is run. */
interface RingOptions {
  readonly acceleration: Acceleration;
  readonly mode: ApicMode;
  readonly machine: MachineOptions;
  /** How many vCPUs. */
  readonly vcpus: number;
  /** Whether something switches APICv off and on meanwhile. */
  readonly toggled?: boolean;
}

/**
 * Each vCPU waits asleep for its turn, and then interrupts the next one: there is one interrupt at a time, and whoever
 * misses it stops all of them.
 */
function ring({ acceleration, mode, machine, vcpus, toggled }: RingOptions) {
  const rig = new Rig({
    machine: { limits: { steps: 50_000 }, ...machine },
    vm: { acceleration, vcpus },
  });
  const seen = acceleration === "none" ? undefined : watchDescriptors(rig.vm);
  for (let n = 0; n < vcpus; n++) {
    rig.on(FIRST + n, function* (cpu) {
      yield cpu.xadd32(COUNT + 4 * n, 1);
      yield* write(cpu, mode, 0x0b0, 0);
    });
  }
  function* play(cpu: X86Cpu): Asking<void> {
    const id = yield* read(cpu, mode, 0x020) as Asking<number>;
    const me = mode === "xapic" ? id >>> 24 : id;
    const next = (me + 1) % vcpus;
    yield cpu.xadd32(READY, 1);
    if (me === 0) yield* until(cpu, READY, vcpus);
    if (me === 0) yield* send(cpu, mode, to(mode, next));
    for (let round = 0; round < ROUNDS; round++) {
      for (;;) {
        yield cpu.cli();
        yield cpu.load32(COUNT + 4 * me);
        if (cpu.eax > round) break;
        yield cpu.sti();
        yield cpu.hlt();
      }
      yield cpu.sti();
      if (me !== 0 || round < ROUNDS - 1) yield* send(cpu, mode, to(mode, next));
    }
  }
  rig.aps(function* (cpu) {
    yield* enter(cpu, mode);
    yield* play(cpu);
    yield cpu.cli();
    for (;;) yield cpu.hlt();
  });
  const vm = rig.start(function* (cpu) {
    yield* enter(cpu, mode);
    yield* bringUp(cpu, mode, vcpus - 1);
    yield* play(cpu);
    yield cpu.store32(STOP, 1);
  });
  if (toggled) toggle(vm, rig);
  const { end } = vm.machine.run();
  return { end, vm, seen, counts: Array.from({ length: vcpus }, (_, n) => rig.word(COUNT + 4 * n)) };
}

function to(mode: ApicMode, n: number) {
  return { low: FIRST + n, high: mode === "xapic" ? n << 24 : n };
}

/** Something, of user space's, inhibits APICv every now and then. */
function toggle(vm: Vm, rig: Rig): void {
  new Script(vm.engine, "debugger", function* () {
    for (let on = true; rig.word(STOP) === 0; on = !on) {
      for (let step = 0; step < 40; step++) yield 0;
      if (rig.word(READY) > 0) setApicvInhibit(vm, "BLOCKIRQ", on);
    }
  });
}

/** What a run of the ring must come to. */
function assertPassed({ end, counts }: { end: RunResult["end"]; counts: number[] }, what: string): void {
  assertEquals([end, counts], ["finished", counts.map(() => ROUNDS)], what);
}

const SEEDS = 25;

describe("vCPUs that interrupt one another awake", () => {
  for (const acceleration of ["none", "apicv", "ipiv"] as const) {
    for (const mode of ["xapic", "x2apic"] as const) {
      for (const pcpus of [3, 2, 1]) {
        it(`miss no interrupt under any schedule (${acceleration}, ${mode}, ${pcpus} CPUs)`, () => {
          let looked = 0;
          let sleepers = 0;
          for (let random = 0; random < SEEDS; random++) {
            const run = ring({ acceleration, mode, vcpus: 3, machine: { pcpus, policy: { random } } });
            assertPassed(run, `seed ${random}`);
            looked += run.seen?.looked ?? 1;
            sleepers += run.vm.vcpus.reduce((sum, { stats }) => sum + stats.halt_wakeup, 0);
          }
          assertGreater(looked, 0);
          assertGreater(sleepers, 2 * SEEDS, "nobody slept");
        });
      }
    }
  }

  for (const acceleration of ["apicv", "ipiv"] as const) {
    it(`miss none either while APICv comes and goes (${acceleration})`, () => {
      for (let random = 0; random < 2 * SEEDS; random++) {
        const machine: MachineOptions = { pcpus: 1 + random % 3, policy: { random } };
        assertPassed(
          ring({ acceleration, mode: "x2apic", vcpus: 3, machine, toggled: true }),
          `seed ${random}`,
        );
      }
    });
  }
});

// Two senders and one target.

const DONE = DATA + 0x108;
const POSTS = 6;

/** What a target saw of a crowd. */
interface Crowd {
  readonly vm: Vm;
  readonly end: RunResult["end"];
  /** Entries at which RVI was not the highest requested vector. */
  readonly wrong: number;
  /** All entries with a vector requested. */
  readonly requested: number;
}

/** vCPUs 1 and 2 interrupt vCPU 0, each as soon as it has been heard; that one sleeps, or spins without ever exiting. */
function crowd(schedule: number | PolicySpec, target: "sleeps" | "spins", quirks: readonly Quirk[]): Crowd {
  const policy = typeof schedule === "number" ? { random: schedule } : schedule;
  const rig = new Rig({
    machine: { pcpus: 3, policy, limits: { steps: 20_000 }, quirks },
    vm: { acceleration: "apicv", vcpus: 3 },
  });
  for (const n of [1, 2]) {
    rig.on(FIRST + 0x10 * n, function* (cpu) {
      yield cpu.xadd32(COUNT + 4 * n, 1);
      yield cpu.xadd32(COUNT, 1);
      yield* write(cpu, "x2apic", 0x0b0, 0);
    });
  }
  rig.aps(function* (cpu) {
    yield* enter(cpu, "x2apic");
    const me = yield* read(cpu, "x2apic", 0x020) as Asking<number>;
    yield cpu.xadd32(READY, 1);
    yield* until(cpu, READY, 2);
    for (let post = 1; post <= POSTS; post++) {
      yield* send(cpu, "x2apic", { low: FIRST + 0x10 * me, high: 0 });
      yield* until(cpu, COUNT + 4 * me, post);
    }
    for (;;) yield cpu.hlt();
  });
  const vm = rig.start(function* (cpu) {
    yield* enter(cpu, "x2apic");
    yield* bringUp(cpu, "x2apic", 2);
    for (;;) {
      yield cpu.cli();
      yield cpu.load32(COUNT);
      const count = cpu.eax;
      if (count === 2 * POSTS) break;
      if (target === "spins") {
        yield cpu.cpuid(0);
        yield cpu.cpuid(0);
      }
      yield cpu.sti();
      yield target === "sleeps" ? cpu.hlt() : cpu.pauseWhile(COUNT, count);
    }
    yield cpu.store32(DONE, 1);
  });
  let wrong = 0;
  let requested = 0;
  const { backend, lapic } = vm.bootstrap;
  const prepareEntry = backend.prepareEntry.bind(backend);
  backend.prepareEntry = () => {
    prepareEntry();
    if (!lapic.apicvActive) return;
    const highest = Math.max(0, highestVector(lapic.page, 0x200));
    if (highest > 0) requested++;
    if (vmx(vm.bootstrap).vmcs.rvi !== highest) wrong++;
  };
  return { vm, end: vm.machine.run().end, wrong, requested };
}

describe("a descriptor that was harvested between a sender's two updates (CVE-2026-46295)", () => {
  const QUIRK = "posted-sync-forgets-irr";
  /** Schedules within which the bug shows, and those that its fix survives. */
  const BUGGY = 100;
  const FIXED = 200;

  /** The fix's own example: B posts, A and C synchronize. What the two come to, and the one after them. */
  function example(quirks: readonly Quirk[]): [highest: number, rvi: number][] {
    const vm = still({ acceleration: "apicv" }, { quirks });
    const { bootstrap } = vm;
    setUp(bootstrap.lapic, "x2apic");
    put(bootstrap, "runs in the host");
    const { posted, vmcs } = vmx(bootstrap);
    const results: [number, number][] = [];
    const synchronize = () => results.push([straight(posted.synchronize()), vmcs.rvi]);
    request(bootstrap.lapic, 0x31); // ON is set from before.
    const b = posted.post(0, 0x41, false);
    b.next();
    assertEquals(shown(bootstrap), "31 41 ON nv=f2 ndst=0");
    synchronize();
    assertEquals(shown(bootstrap), "nv=f2 ndst=0");
    straight(b);
    assertEquals(shown(bootstrap), "ON nv=f2 ndst=0");
    synchronize();
    assertEquals(shown(bootstrap), "nv=f2 ndst=0");
    synchronize();
    return results;
  }

  it("is found empty the next time, and KVM says that nothing is requested, once (quirk)", () => {
    assertEquals(example([QUIRK]), [[0x41, 0x41], [-1, 0], [0x41, 0x41]]);
  });

  it("is found empty, and what is requested is looked up in the IRR", () => {
    assertEquals(example([]), [[0x41, 0x41], [0x41, 0x41], [0x41, 0x41]]);
  });

  for (const target of ["sleeps", "spins"] as const) {
    it(`random schedules find it, with a target that ${target} (quirk)`, () => {
      let seed = 0;
      while (seed < BUGGY && crowd(seed, target, [QUIRK]).wrong === 0) seed++;
      assert(seed < BUGGY, `none of ${BUGGY} schedules finds it`);
      const { machine } = crowd(seed, target, [QUIRK]).vm;
      const again = crowd({ replay: machine.schedule, seed }, target, [QUIRK]);
      assertGreater(again.wrong, 0, "a replay finds it again");
    });

    it(`no schedule finds it in the fix, with a target that ${target}`, () => {
      let requested = 0;
      for (let seed = 0; seed < FIXED; seed++) {
        const seen = crowd(seed, target, []);
        assertEquals([seen.wrong, seen.end], [0, "finished"], `seed ${seed}`);
        requested += seen.requested;
      }
      assertGreater(requested, FIXED, "the entries that could go wrong");
    });
  }

  it("leaves a guest that spins without an interrupt for good, where a sleeper only looks again (quirk)", () => {
    const ends = (target: "sleeps" | "spins") =>
      new Set(Array.from({ length: BUGGY }, (_, seed) => crowd(seed, target, [QUIRK]).end));
    assertEquals(ends("spins"), new Set<RunResult["end"]>(["finished", "halted"]));
    assertEquals(ends("sleeps"), new Set<RunResult["end"]>(["finished"]));
  });
});
