import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  EXT_IRQ_CP_SERVICE,
  PFAULT_DONE,
  PFAULT_DONE_SUBCODE,
  PFAULT_INIT_SUBCODE,
  PFAULT_NOT_ACTIVE,
  type S390Cpu,
  type S390Function,
} from "../../../abi/mod.ts";
import {
  enableServiceSignals,
  pfaultFini,
  pfaultInit,
  pfaultStep,
  type PfaultWait,
  S390_LC_LPP,
  S390_SVC_PFAULT_FINI,
  S390_SVC_YIELD,
  S390_TASK,
  s390EnterUserMode,
  S390Kernel,
  S390Tasks,
  s390Wait,
} from "../../../guest/mod.ts";
import { Disk, type DiskOptions, Machine, type MachineOptions, type S390Vm } from "../../../host/mod.ts";

const TABLES = 0x8000;
const PAGES = 0x10_0000;

interface Story {
  readonly tasks: readonly S390Function[];
  readonly pfault?: boolean;
  readonly disk?: Partial<DiskOptions>;
  readonly machine?: MachineOptions;
  /** Pages that are not in the host's memory at first. */
  readonly absent: readonly number[];
  readonly prepare?: (vm: S390Vm) => void;
}

function run({ tasks, pfault = true, disk = {}, machine: options = {}, absent, prepare }: Story) {
  const machine = new Machine(options);
  const vm = machine.createS390Vm({ memory: 2 ** 21, trace: 4096 });
  const residency = vm.pageTo(new Disk(machine.engine, { pages: 512, latency: 1_000_000, ...disk }));
  for (const page of absent) residency.evict(page);
  const guest = new S390Tasks({ tasks, tables: TABLES, pfault });
  prepare?.(vm);
  vm.load(guest.kernel.text);
  vm.start(guest.kernel.entry);
  const { end } = machine.run(1e8);
  const waits = tasks.map((_, i) => {
    const at = guest.row(i + 1) + S390_TASK.fields.pfault_wait.offset;
    return Number(BigInt.asIntN(64, vm.words.read64(at)!));
  });
  return { vm, end, waits, guest };
}

/** A task that touches a page, and one that computes. */
function pair(log: string[]): readonly S390Function[] {
  return [
    function* touches(cpu: S390Cpu) {
      log.push("touches");
      yield cpu.load64(PAGES);
      log.push(`has ${cpu.value}`);
    },
    function* computes(cpu: S390Cpu) {
      log.push("computes");
      yield cpu.work(100_000);
      log.push("is done");
    },
  ];
}

describe("a task that touches a page which the host has to bring in", () => {
  it("makes room for another where the guest is told, and goes on when the page has come", () => {
    const log: string[] = [];
    const { vm, end, waits } = run({
      tasks: pair(log),
      absent: [PAGES],
      prepare: (vm) => void vm.words.write(PAGES, 8, 42),
    });
    assertEquals([end, log], ["finished", ["touches", "computes", "is done", "has 42"]]);
    assertEquals(vm.vcpus[0].stats.pfault_sync, 0);
    // One fault, which is told and not waited for; then the CPU waits until the page has come.
    assertEquals(vm.exits(), { HOST_FAULT: 1, ICPT_INST: 1, ICPT_WAIT: 1 });
    const { kvm_s390_inject_vcpu, kvm_s390_inject_vm, kvm_s390_deliver_interrupt } = vm.counters();
    assertEquals([kvm_s390_inject_vcpu, kvm_s390_inject_vm, kvm_s390_deliver_interrupt], [1, 1, 2]);
    assertEquals([vm.counters().kvm_s390_pfault_init, vm.counters().kvm_s390_pfault_done], [1, 1]);
    assertEquals(waits, [0, 0]);
  });

  it("holds everybody up where the guest has made no handshake", () => {
    const log: string[] = [];
    const { vm, end } = run({ tasks: pair(log), absent: [PAGES], pfault: false });
    assertEquals([end, log], ["finished", ["touches", "has 0", "computes", "is done"]]);
    assertEquals(vm.vcpus[0].stats.pfault_sync, 1);
    assertEquals(vm.counters().kvm_s390_deliver_interrupt, undefined);
    assertEquals(vm.exits(), { HOST_FAULT: 1 });
  });

  it("holds everybody up where the virtual machine may not tell", () => {
    const log: string[] = [];
    const { vm } = run({
      tasks: pair(log),
      absent: [PAGES],
      prepare: (vm) => {
        vm.pfaultEnabled = false;
      },
    });
    assertEquals([log[1], vm.vcpus[0].stats.pfault_sync], ["has 0", 1]);
  });

  it("is not told of pages that the kernel itself touches", () => {
    // The task's row, and the tables around it, are the kernel's own.
    const { vm, end } = run({ tasks: pair([]), absent: [TABLES] });
    assertEquals([end, vm.vcpus[0].stats.pfault_sync], ["finished", 1]);
  });

  it("sees a page for each of several tasks, in the order in which they come", () => {
    const order: number[] = [];
    const tasks = [0, 1, 2, 3].map((number) =>
      function* (cpu: S390Cpu) {
        yield cpu.load8(PAGES + 4096 * number);
        order.push(number);
      }
    );
    // The disk reads two at a time, and the first takes longest.
    const { end, vm, waits } = run({
      tasks,
      absent: tasks.map((_, number) => PAGES + 4096 * number),
      disk: { depth: 4, latency: (n) => 1_000_000 - 200_000 * n },
    });
    assertEquals([end, order, waits], ["finished", [3, 2, 1, 0], [0, 0, 0, 0]]);
    assertEquals(vm.exits().HOST_FAULT, 4);
  });

  it("brings a page in once for tasks that share it", () => {
    const tasks = [0, 1].map(() =>
      function* (cpu: S390Cpu) {
        yield cpu.load8(PAGES);
      }
    );
    const { end, vm, waits } = run({ tasks, absent: [PAGES] });
    assertEquals([end, waits, vm.exits().HOST_FAULT], ["finished", [0, 0], 2]);
    assertEquals(vm.counters().kvm_s390_inject_vm, 2, "each is told that it has come");
  });

  it("goes on among tasks that give way to each other", () => {
    const log: string[] = [];
    const { end } = run({
      absent: [PAGES],
      tasks: [
        function* first(cpu: S390Cpu) {
          yield cpu.svc(S390_SVC_YIELD);
          yield cpu.load64(PAGES);
          log.push("page");
        },
        function* second(cpu: S390Cpu) {
          for (let i = 0; i < 3; i++) {
            log.push(`turn ${i}`);
            yield cpu.svc(S390_SVC_YIELD);
          }
        },
      ],
    });
    assertEquals([end, log], ["finished", ["turn 0", "turn 1", "turn 2", "page"]]);
  });

  it("does not run twice while another one can run", () => {
    const order: number[] = [];
    const tasks = [1, 2, 3].map((number) =>
      function* (cpu: S390Cpu) {
        for (let i = 0; i < 3; i++) {
          order.push(number);
          yield cpu.svc(S390_SVC_YIELD);
        }
      }
    );
    assertEquals([run({ tasks, absent: [] }).end, order], ["finished", [1, 2, 3, 1, 2, 3, 1, 2, 3]]);
  });

  it("is told of up to 64 pages at a time; for one more the vCPU waits", () => {
    const tasks = Array.from({ length: 66 }, (_, number) =>
      function* (cpu: S390Cpu) {
        yield cpu.load8(PAGES + 4096 * number);
      });
    const { end, vm } = run({
      tasks,
      absent: tasks.map((_, number) => PAGES + 4096 * number),
      disk: { depth: 100 },
    });
    assertEquals(end, "finished");
    assert(vm.vcpus[0].stats.pfault_sync >= 1);
    assert(vm.counters().kvm_s390_inject_vm >= 64);
  });

  it("is told of any number of pages, one after the other", () => {
    const count = 100;
    const touches = function* (cpu: S390Cpu) {
      for (let i = 0; i < count; i++) yield cpu.load8(PAGES + 4096 * i);
    };
    const absent = Array.from({ length: count }, (_, i) => PAGES + 4096 * i);
    const { end, vm } = run({ tasks: [touches], absent, disk: { latency: 1000 } });
    assertEquals([end, vm.vcpus[0].stats.pfault_sync, vm.counters().kvm_s390_inject_vm], [
      "finished",
      0,
      count,
    ]);
  });

  it("ends the virtual machine where the page cannot be read and the vCPU waits for it", () => {
    const { end, vm } = run({ tasks: pair([]), absent: [PAGES], pfault: false, disk: { fails: () => true } });
    assertEquals([end, vm.ending], [
      "shutdown",
      "guest panicked: KVM_RUN failed with EFAULT: the host cannot read the page at 0x100000",
    ]);
  });

  it("is woken by another CPU, which may hear that the page has come before its own hears that it is missing", () => {
    let early = 0;
    for (let seed = 0; seed < 60; seed++) {
      const machine = new Machine({ policy: { random: seed }, limits: { steps: 1e5 } });
      const vm = machine.createS390Vm({ memory: 2 ** 21, vcpus: 2 });
      vm.pageTo(new Disk(machine.engine, { pages: 512, latency: 1, depth: 4 })).evictRange(PAGES, 3 * 4096);
      const log: number[] = [];
      const tasks = [0, 1, 2].map((number) =>
        function* (cpu: S390Cpu) {
          yield cpu.load8(PAGES + 4096 * number);
          log.push(number);
        }
      );
      const guest = new S390Tasks({ tasks, tables: TABLES, helper: 0x4000 });
      const waits = tasks.map((_, i) => guest.row(i + 1) + S390_TASK.fields.pfault_wait.offset);
      for (const address of waits) {
        const stored = () => void (vm.words.read64(address) === 2n ** 64n - 1n && early++);
        vm.memory.watch({ address, stored });
      }
      vm.load(guest.kernel.text);
      vm.start(guest.kernel.entry);
      vm.vcpus[1].start(guest.helperEntry!);
      const { end } = machine.run();
      assertEquals([end, log.toSorted()], ["finished", [0, 1, 2]], `seed ${seed}`);
      assertEquals(waits.map((address) => vm.words.read64(address)), [0n, 0n, 0n], `seed ${seed}`);
      assertEquals(vm.floating.length, 0);
    }
    assert(early > 0, "the completion was first at least once");
  });

  it("is the same under any order of steps", () => {
    for (let seed = 0; seed < 20; seed++) {
      const log: string[] = [];
      const { end, waits } = run({
        tasks: pair(log),
        absent: [PAGES],
        machine: { policy: { random: seed } },
      });
      assertEquals([end, waits, log.toSorted()], ["finished", [0, 0], [
        "computes",
        "has 0",
        "is done",
        "touches",
      ]]);
    }
  });
});

describe("a CPU that ends its handshake", () => {
  it("hears of a page that it was promised, and of no other: the host waits for those", () => {
    const machine = new Machine();
    const vm = machine.createS390Vm({ memory: 2 ** 21 });
    const residency = vm.pageTo(new Disk(machine.engine, { pages: 512, latency: 1_000_000 }));
    residency.evictRange(PAGES, 2 * 4096);
    const log: string[] = [];
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.store64(S390_LC_LPP, 42);
        yield* enableServiceSignals(cpu);
        yield* pfaultInit(cpu, TABLES);
        yield* s390EnterUserMode(cpu);
        for (const page of [PAGES, PAGES + 4096]) {
          yield cpu.load8(page);
          log.push(`has 0x${page.toString(16)}`);
        }
      },
    });
    kernel.onExternal(EXT_IRQ_CP_SERVICE, function* pfault(cpu, { subcode, parameter }) {
      log.push(`0x${subcode.toString(16)} of ${parameter}`);
      if (subcode !== PFAULT_INIT_SUBCODE) return;
      for (let i = 0; i < 2; i++) {
        yield* pfaultFini(cpu, TABLES);
        log.push(`fini: ${cpu.register(3)}`);
      }
      yield* s390Wait(cpu);
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals(machine.run(1e8).end, "finished");
    assertEquals(log, [
      "0x600 of 42",
      `fini: ${PFAULT_DONE}`,
      `fini: ${PFAULT_NOT_ACTIVE}`,
      "0x680 of 42",
      "has 0x100000",
      "has 0x101000",
    ]);
    const [{ stats, pfault }] = vm.vcpus;
    assertEquals([stats.pfault_sync, vm.counters().kvm_s390_inject_vm, pfault.active], [1, 1, false]);
  });

  it("wakes who waits, who then waits in the host; the completion that still comes is taken for one that was first", () => {
    const log: string[] = [];
    const { vm, end, waits } = run({
      absent: [PAGES],
      tasks: [
        function* touches(cpu: S390Cpu) {
          log.push("touches");
          yield cpu.load8(PAGES);
          log.push("has it");
        },
        function* goesOffline(cpu: S390Cpu) {
          yield cpu.svc(S390_SVC_PFAULT_FINI);
          log.push("fini");
        },
      ],
    });
    assertEquals([end, log], ["finished", ["touches", "fini", "has it"]]);
    assertEquals(vm.vcpus[0].stats.pfault_sync, 1);
    assertEquals([vm.counters().kvm_s390_inject_vm, vm.floating], [1, []]);
    // pfault_interrupt: the task runs, so its completion seems to have overtaken an initial that is to come.
    assertEquals(waits, [-1, 0]);
  });

  it("leaves a task alone that waits for no page", () => {
    const log: string[] = [];
    const { end, waits } = run({
      absent: [],
      tasks: [
        function* ends(cpu: S390Cpu) {
          log.push("ends");
          yield cpu.nop();
        },
        function* goesOffline(cpu: S390Cpu) {
          yield cpu.svc(S390_SVC_PFAULT_FINI);
          log.push("fini");
        },
      ],
    });
    assertEquals([end, log, waits], ["finished", ["ends", "fini"], [0, 0]]);
  });
});

describe("the state of a task", () => {
  const INIT = PFAULT_INIT_SUBCODE;
  const DONE = PFAULT_DONE_SUBCODE;

  it("takes the two interruptions in either order", () => {
    assertEquals(pfaultStep(0, INIT, true), { wait: 1, task: "blocks" });
    assertEquals(pfaultStep(1, DONE, false), { wait: 0, task: "is woken" });
    assertEquals(pfaultStep(0, DONE, true), { wait: -1, task: "goes on" }, "the page was faster");
    assertEquals(pfaultStep(-1, INIT, true), { wait: 0, task: "goes on" });
  });

  it("keeps on waiting where the same fault is told again", () => {
    assertEquals(pfaultStep(1, INIT, true), { wait: 1, task: "blocks" });
  });

  it("ignores what is left over of a handshake that was cancelled", () => {
    assertEquals(pfaultStep(0, DONE, false), { wait: 0, task: "goes on" });
    assertEquals(pfaultStep(-1, DONE, false), { wait: -1, task: "goes on" });
  });

  it("never leaves a task asleep whose pages have all come, nor wakes one that waits for some", () => {
    // Pairs of interruptions, each pair for one fault, the next one after both; either may come first.
    fc.assert(fc.property(fc.array(fc.boolean()), (firsts) => {
      let wait: PfaultWait = 0;
      for (const completionFirst of firsts) {
        let asleep = false;
        for (const subcode of completionFirst ? [DONE, INIT] : [INIT, DONE]) {
          const step = pfaultStep(wait, subcode, !asleep);
          wait = step.wait;
          if (step.task === "blocks") asleep = true;
          if (step.task === "is woken") asleep = false;
          if (!completionFirst && subcode === INIT) assert(asleep);
        }
        assertEquals([wait, asleep], [0, false]);
      }
    }));
  });
});
