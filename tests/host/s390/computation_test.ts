import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { EXT_IRQ_CP_SERVICE, type S390Cpu, type S390Guest } from "../../../abi/mod.ts";
import { enableServiceSignals, S390_LC_SCRATCH, S390Kernel } from "../../../guest/mod.ts";
import { Disk, HostTask, Machine, type S390VmOptions } from "../../../host/mod.ts";
import { MEMORY } from "../../support/s390.ts";

const PAGE = 0x10_0000;
const LOWCORES = [0x4000, 0x8000];

/** What a CPU does, and for how long, or to whom. */
type Verb = "compute" | "yield" | "yield to" | "touch";

interface Plan {
  readonly cpus: readonly (readonly (readonly [verb: Verb, value: number])[])[];
  readonly vm?: S390VmOptions;
  /** When a page is taken away. */
  readonly evictions?: readonly (readonly [at: number, page: number])[];
  /** When pages come that the guest was told of. */
  readonly completions?: readonly number[];
  /** In how many cycles somebody looks on, who makes each of them a step. */
  readonly watched?: number;
}

/** Runs it; everything that can be seen of that, and in how many steps. */
function run(
  { cpus, vm: options, evictions = [], completions = [], watched = 0 }: Plan,
) {
  const machine = new Machine();
  const vm = machine.createS390Vm({ memory: MEMORY, vcpus: cpus.length, trace: 1000, ...options });
  const residency = vm.pageTo(new Disk(vm.engine, { pages: 512, latency: 700 }));
  const log: string[] = [];
  const kernel = new S390Kernel({ main: (cpu) => program(cpu, 0) });
  kernel.onExternal(EXT_IRQ_CP_SERVICE, function* token(cpu, { parameter }) {
    yield cpu.work(400); // With interruptions disabled: another CPU may take the next one.
    log.push(`token ${parameter} at ${machine.engine.now}`);
  });
  function* program(cpu: S390Cpu, number: number): S390Guest {
    yield* enableServiceSignals(cpu);
    yield cpu.stosm(S390_LC_SCRATCH);
    for (const [verb, value] of cpus[number]) {
      if (verb === "compute") yield cpu.work(value);
      else if (verb === "yield") yield cpu.diag44();
      else if (verb === "yield to") yield cpu.diag9c(value % cpus.length);
      else yield cpu.load64(PAGE);
      log.push(`CPU ${number} after ${verb} at ${machine.engine.now}`);
    }
  }
  const others = cpus.slice(1).map((_, i) => kernel.cpu(LOWCORES[i], (cpu) => program(cpu, i + 1)));
  vm.load(kernel.text);
  vm.start(kernel.entry);
  others.forEach((entry, i) => vm.vcpus[i + 1].start(entry));
  function* once(task: () => void) {
    task();
    yield;
  }
  function* look() {
    for (let cycle = 0; cycle < watched; cycle++) {
      vm.engine.running!.charge(1);
      yield;
    }
  }
  for (const [at, page] of evictions) {
    new HostTask(vm.engine, "kswapd", once(() => residency.evict(page)), at);
  }
  completions.forEach((at, token) =>
    new HostTask(vm.engine, "page", once(() => vm.injectPfaultDone(BigInt(token))), at)
  );
  if (watched > 0) new HostTask(vm.engine, "watcher", look());
  const { end, steps } = machine.run(1e7);
  const clocks = vm.vcpus.map(({ clock }) => clock);
  const instructions = vm.vcpus.map(({ instructions }) => instructions);
  return { seen: { end, log, clocks, exits: vm.exits(), trace: vm.tracer.bytes() }, steps, instructions };
}

describe("CPUs that compute", () => {
  it("take a few steps, however many there are and however long it takes", () => {
    const { seen, steps } = run({ cpus: [[["compute", 1e6]], [["compute", 1e6]], [["compute", 5e5]]] });
    assertEquals(seen.end, "finished");
    assert(steps < 500, `${steps} steps`);
  });

  it("give up their host CPU at the end of their turn", () => {
    const cpus = [[["compute", 1e6]], [["compute", 1e6]]] as const;
    const { seen, steps } = run({ cpus, vm: { hostCpus: 1, turn: 100_000 } });
    // A little more than ten turns each: the first ends the run in its eleventh. One sets its prefix.
    assertEquals([seen.end, seen.exits], ["finished", { ICPT_EXTINT: 20, ICPT_INST: 1 }]);
    assert(steps < 1000, `${steps} steps`);
  });

  const act = fc.oneof(
    fc.tuple(fc.constant<Verb>("compute"), fc.integer({ min: 1, max: 3000 })),
    fc.tuple(fc.constantFrom<Verb>("yield", "yield to", "touch"), fc.nat(2)),
  );
  const plan = fc.record({
    cpus: fc.array(fc.array(act, { maxLength: 6 }), { minLength: 1, maxLength: 3 }),
    vm: fc.record({ hostCpus: fc.integer({ min: 1, max: 3 }), turn: fc.integer({ min: 300, max: 3000 }) }),
    evictions: fc.array(fc.tuple(fc.integer({ min: 500, max: 20_000 }), fc.constantFrom(PAGE, 0x1_0000)), {
      maxLength: 3,
    }),
    completions: fc.array(fc.integer({ min: 500, max: 20_000 }), { maxLength: 4 }),
  });

  it("do what they do where somebody looks on in each cycle, to the cycle", () => {
    fc.assert(fc.property(plan, (plan) => {
      assertEquals(run(plan).seen, run({ ...plan, watched: 60_000 }).seen);
    }));
  });
});
