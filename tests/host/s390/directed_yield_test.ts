import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { S390Cpu, S390Guest } from "../../../abi/mod.ts";
import { S390Kernel, s390SpinLock, s390SpinUnlock } from "../../../guest/mod.ts";
import {
  directedYield,
  ForwardingBudget,
  Machine,
  type S390Vm,
  type S390VmOptions,
} from "../../../host/mod.ts";
import { diagnose, runS390 } from "../../support/s390.ts";

describe("the budget of forwarded yields", () => {
  it("is so many in a tick, and begins anew with the next", () => {
    const budget = new ForwardingBudget(300);
    const take = (tick: number, times: number) => Array.from({ length: times }, () => budget.take(tick));
    assertEquals(take(0, 5), [true, true, true, false, false]);
    assertEquals(take(0, 1), [false]);
    assertEquals(take(1, 4), [true, true, true, false]);
    assertEquals(take(50, 4), [true, true, true, false], "what was not used is not saved");
  });

  it("is nothing where the parameter is 0, or less than one a tick", () => {
    for (const hz of [0, 1, 99]) assertEquals(new ForwardingBudget(hz).take(5), false);
    assertEquals(new ForwardingBudget(100).take(5), true);
    assertThrows(() => new ForwardingBudget(-1), RangeError, "Cannot forward -1 directed yields");
  });

  it("never gives more in a tick, whatever comes", () => {
    fc.assert(fc.property(fc.nat(1000), fc.array(fc.nat(2)), (hz, waits) => {
      const budget = new ForwardingBudget(hz);
      const given = new Map<number, number>();
      let tick = 0;
      for (const wait of waits) {
        tick += wait;
        if (budget.take(tick)) given.set(tick, (given.get(tick) ?? 0) + 1);
      }
      for (const count of given.values()) assert(count <= Math.floor(hz / 100));
    }));
  });
});

describe("a directed yield", () => {
  const host = (taken: boolean[], calls: string[] = []) => ({
    self: 0,
    byId: (id: number) =>
      [undefined, { hostCpu: { preempted: false } }, { hostCpu: { preempted: true } }, {
        hostCpu: undefined,
      }][id],
    takeForward: () => taken.shift() ?? false,
    forward: () => void calls.push("forward"),
    yieldTo: () => calls.push("yield") === 1,
  });

  it("is ignored for itself, for nobody, and for one that runs", () => {
    assertEquals(directedYield(0n, host([])), { ignored: "self" });
    assertEquals(directedYield(4n, host([])), { ignored: "no such CPU" });
    assertEquals(directedYield(1n, host([])), { ignored: "no forwarding" });
    assertEquals(directedYield(1n, host([true])), { ignored: "its host CPU runs" });
  });

  it("is passed on where the host CPU is taken away, within the budget", () => {
    const calls: string[] = [];
    assertEquals(directedYield(2n, host([true], calls)), "forwarded");
    assertEquals(directedYield(2n, host([false], calls)), { ignored: "no forwarding" });
    assertEquals(calls, ["forward"]);
  });

  it("uses the budget up for one that runs, too", () => {
    const taken = [true];
    directedYield(1n, host(taken));
    assertEquals(taken, []);
  });

  it("gives the CPU to one that waits, if it does", () => {
    const calls: string[] = [];
    assertEquals(directedYield(3n, host([], calls)), "yielded");
    assertEquals(directedYield(3n, host([], calls)), { ignored: "it does not wait" });
  });

  it("reads 32 bits of the register, signed", () => {
    assertEquals(directedYield(0xdead_beef_0000_0000n, host([])), { ignored: "self" });
    assertEquals(directedYield(0xffff_ffffn, host([])), { ignored: "no such CPU" });
    assertEquals(directedYield(0x1_0000_0003n, host([])), "yielded");
  });

  it("always completes, and counts", () => {
    for (const target of [0, 1, 77, 0xffff_ffff]) {
      const { pic, vcpu, gprs, before } = diagnose({
        fields: { r1: 9, r3: 0, d2: 0x9c },
        gprs: { 9: target },
        vm: { vcpus: 2 },
      });
      assertEquals([pic, vcpu.stats.instruction_diagnose_9c, vcpu.stats.diag_9c_ignored], [0, 1, 1]);
      assertEquals(gprs.slice(2), before.slice(2));
    }
  });
});

const LOCK = 0x10_0000;
const RELEASED = 0x10_0008;

/** CPU 1 holds a lock for a time; CPU 0 waits for it. */
function contended(
  options: S390VmOptions & { yields: boolean; holds: number },
  machine: Machine = new Machine(),
): S390Vm {
  const { yields, holds, ...rest } = options;
  const vm = machine.createS390Vm({ memory: 2 ** 21, vcpus: 2, ...rest });
  const kernel = new S390Kernel({
    *main(cpu: S390Cpu): S390Guest {
      yield cpu.work(1000);
      for (;;) {
        yield cpu.load32(RELEASED);
        if (cpu.number !== 0) break;
        yield* s390SpinLock(cpu, LOCK, 0, { retries: 10, yields });
        yield* s390SpinUnlock(cpu, LOCK);
      }
    },
  });
  const holder = kernel.cpu(0x4000, function* holder(cpu: S390Cpu): S390Guest {
    yield cpu.work(holds);
    yield cpu.store32(RELEASED, 1);
    yield* s390SpinUnlock(cpu, LOCK);
  });
  // The holder has the lock when the story begins.
  vm.words.write(LOCK, 4, ~1);
  vm.load(kernel.text);
  vm.start(kernel.entry);
  vm.vcpus[1].start(holder);
  return vm;
}

describe("a lock whose holder has no host CPU", () => {
  it("is had sooner by those who give their time to the holder", () => {
    const run = (yields: boolean) => {
      const vm = contended({ yields, holds: 10_000, hostCpus: 1, turn: 200_000 });
      assertEquals(vm.machine.run(1e9).end, "finished");
      return vm;
    };
    const [without, with_] = [run(false), run(true)];
    assert(without.vcpus[0].clock > 200_000, "it spins its turn away");
    assert(with_.vcpus[0].clock < 100_000);
    assertEquals(without.exits().ICPT_EXTINT, 1);
    assertEquals(with_.exits().ICPT_EXTINT, undefined);
    const { instruction_diagnose_9c, diag_9c_ignored } = with_.vcpus[0].stats;
    assertEquals([instruction_diagnose_9c >= 1, diag_9c_ignored], [true, instruction_diagnose_9c - 1]);
  });

  it("is had once the hypervisor below gives the holder's CPU back, if it is asked", () => {
    const run = (diag9cForwardingHz: number) => {
      const vm = contended({ yields: true, holds: 10_000 }, new Machine({ diag9cForwardingHz }));
      vm.hostCpus.cpus[1].takeAway();
      return { vm, end: vm.machine.run(1e6).end };
    };
    const asked = run(100);
    assertEquals(asked.end, "finished");
    assertEquals(asked.vm.vcpus[0].stats.diag_9c_forward, 1);
    const alone = run(0);
    assertEquals(alone.end, "deadline");
    const { diag_9c_forward, diag_9c_ignored, instruction_diagnose_9c } = alone.vm.vcpus[0].stats;
    assertEquals([diag_9c_forward, diag_9c_ignored], [0, instruction_diagnose_9c]);
  });

  it("is had only by as many as the host's budget is for, whichever virtual machine they are of", () => {
    const run = (diag9cForwardingHz: number) => {
      const machine = new Machine({ diag9cForwardingHz });
      const vms = [1, 2].map(() => contended({ yields: true, holds: 10_000 }, machine));
      for (const { hostCpus: { cpus: [, second] } } of vms) second.takeAway();
      // 1 ms: the first tick has 10.
      const { end } = machine.run(vms[0].clockKhz);
      return [end, vms.reduce((sum, { vcpus: [{ stats }] }) => sum + stats.diag_9c_forward, 0)];
    };
    assertEquals(run(100), ["deadline", 1]);
    assertEquals(run(200), ["finished", 2]);
  });
});

describe("who runs next where several wait", () => {
  /** Four CPUs on one; the first yields as it is told, and each says when it runs. */
  function order(step: (cpu: S390Cpu) => number): number[] {
    const vm = new Machine().createS390Vm({ memory: 2 ** 21, vcpus: 4, hostCpus: 1, turn: 1e6 });
    const ran: number[] = [];
    const kernel = new S390Kernel({
      *main(cpu: S390Cpu): S390Guest {
        yield step(cpu);
        ran.push(0);
        yield cpu.nop();
      },
    });
    const entries = [1, 2, 3].map((number) =>
      kernel.cpu(0x2000 * (number + 1), function* other(cpu: S390Cpu): S390Guest {
        ran.push(number);
        yield cpu.nop();
      })
    );
    vm.load(kernel.text);
    vm.start(kernel.entry);
    for (const [i, entry] of entries.entries()) vm.vcpus[i + 1].start(entry);
    assertEquals(vm.machine.run(1e8).end, "finished");
    return ran;
  }

  it("is whom a directed yield names, and then those that have waited longest", () => {
    assertEquals(order((cpu) => cpu.diag9c(3)), [3, 1, 2, 0]);
    assertEquals(order((cpu) => cpu.diag9c(1)), [1, 2, 3, 0]);
    assertEquals(order((cpu) => cpu.diag44()), [1, 2, 3, 0]);
    assertEquals(order((cpu) => cpu.diag9c(0)), [0, 1, 2, 3]);
  });
});

describe("an undirected yield", () => {
  it("lets others run where some wait, and is nothing where none does", () => {
    const alone = runS390(function* main(cpu) {
      yield cpu.diag44();
    });
    assertEquals(alone.vcpus[0].stats.instruction_diagnose_44, 1);
    const vm = new Machine().createS390Vm({ memory: 2 ** 21, vcpus: 2, hostCpus: 1, turn: 1e6 });
    const order: string[] = [];
    const kernel = new S390Kernel({
      *main(cpu: S390Cpu): S390Guest {
        order.push("first");
        yield cpu.diag44();
        order.push("first again");
      },
    });
    const other = kernel.cpu(0x4000, function* other(cpu: S390Cpu): S390Guest {
      order.push("other");
      yield cpu.work(1000);
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.vcpus[1].start(other);
    assertEquals(vm.machine.run(1e8).end, "finished");
    assertEquals(order, ["first", "other", "first again"]);
  });
});
