import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Guest, X86Cpu } from "../../../abi/mod.ts";
import {
  argumentOf,
  EAGAIN,
  EINVAL,
  ENOSYS,
  futexWait,
  futexWake,
  mutexLock,
  mutexUnlock,
  nanosleep,
  NR_futex,
  RESCHEDULE_VECTOR,
  rqOffset,
  syscall,
  waitIf,
  wake,
} from "../../../guest/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { TaskRig } from "../../support/tasks.ts";

/** Memory that nobody else uses. */
const WORDS = 0x60_0000;
const TICK = 10_000_000;

for (const backend of BACKENDS) {
  describe(`a futex (${backend})`, () => {
    it("does not let its waiter sleep if the word has changed already", () => {
      const rig = new TaskRig({ vm: { backend } });
      const results: number[] = [];
      rig.runTasks([{
        *program(cpu: X86Cpu): Guest {
          yield cpu.store32(WORDS, 5);
          results.push(yield* futexWait(cpu, WORDS, 4), yield* futexWake(cpu, WORDS, 1));
          results.push(yield* futexWait(cpu, WORDS + 1, 5), yield* syscall(cpu, NR_futex, WORDS, 9, 5));
        },
      }]);
      assertEquals(results, [-EAGAIN, 0, -EINVAL, -ENOSYS]);
    });

    it("wakes as many as it is told, who waits longest first, and nobody who waits for another word", () => {
      const rig = new TaskRig({ vm: { backend } });
      const woken: number[] = [];
      const counts: number[] = [];
      const waiter = (n: number, word: number) => ({
        argument: n,
        *program(cpu: X86Cpu): Guest {
          const me = argumentOf(cpu);
          assertEquals(yield* futexWait(cpu, word, 0), 0);
          woken.push(me);
        },
      });
      // 64 buckets of 4 bytes: the two words share one, and are told apart all the same.
      rig.runTasks([
        waiter(0, WORDS),
        waiter(9, WORDS + 256),
        waiter(1, WORDS),
        waiter(2, WORDS),
        {
          *program(cpu: X86Cpu): Guest {
            counts.push(yield* futexWake(cpu, WORDS, 2));
            yield* nanosleep(cpu, 1000);
            assertEquals(woken, [0, 1]);
            counts.push(yield* futexWake(cpu, WORDS, 2), yield* futexWake(cpu, WORDS, 1));
            yield* nanosleep(cpu, 1000);
            assertEquals(woken, [0, 1, 2]);
            counts.push(yield* futexWake(cpu, WORDS + 256, 2 ** 31 - 1));
          },
        },
      ]);
      assertEquals([woken, counts], [[0, 1, 2, 9], [2, 1, 0, 1]]);
    });

    it("wakes across processors by one reschedule IPI, to a processor that idles", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      let ipis = 0;
      rig.runTasks([
        {
          cpu: 1,
          *program(cpu: X86Cpu): Guest {
            assertEquals(yield* futexWait(cpu, WORDS, 0), 0);
            ipis = rig.irqs(1, RESCHEDULE_VECTOR) - ipis;
          },
        },
        {
          cpu: 0,
          *program(cpu: X86Cpu): Guest {
            yield cpu.work(TICK); // By now the other sleeps.
            ipis = rig.irqs(1, RESCHEDULE_VECTOR);
            assertEquals(yield* futexWake(cpu, WORDS, 1), 1);
          },
        },
      ]);
      assertEquals(ipis, 1);
    });

    it("interrupts nobody where the processor is busy: the woken task takes its turn", () => {
      const rig = new TaskRig({ cpus: 2, vm: { backend } });
      let before = -1;
      let after = -1;
      rig.runTasks([
        {
          cpu: 1,
          *program(cpu: X86Cpu): Guest {
            yield* futexWait(cpu, WORDS, 0);
            after = rig.irqs(1, RESCHEDULE_VECTOR);
          },
        },
        {
          cpu: 1,
          *program(cpu: X86Cpu): Guest {
            yield cpu.work(4 * TICK);
          },
        },
        {
          cpu: 0,
          *program(cpu: X86Cpu): Guest {
            yield cpu.work(TICK + TICK / 2);
            before = rig.irqs(1, RESCHEDULE_VECTOR);
            assertEquals(yield* futexWake(cpu, WORDS, 1), 1);
          },
        },
      ]);
      assert(before > 0);
      assertEquals(after, before);
    });
  });
}

/** An interrupt that has its processor schedule, as a tick does at the end of a slice. */
const PROD_VECTOR = 0x51;

/** Producers count up under a lock of futexes, and a consumer waits until they have; a thread takes processors away. */
function story(policy: { readonly random: number }, cpus: number): void {
  const rig = new TaskRig({ cpus, sched: { timer: "off" }, machine: { policy } });
  const { kernel } = rig;
  kernel.irq(PROD_VECTOR, function* prod(cpu) {
    yield cpu.store32(cpu.gsBase + rqOffset("needResched"), 1);
  });
  const prodder = {
    kernelThread: true,
    *program(cpu: X86Cpu): Guest {
      for (let turn = 0; turn < 12; turn++) {
        yield* kernel.apic.sendIpi(cpu, turn % cpus, PROD_VECTOR);
        yield* kernel.sched.yield(cpu);
      }
    },
  };
  const [LOCK, COUNT, INSIDE] = [WORDS, WORDS + 4, WORDS + 8];
  const TURNS = 3;
  let most = 0;
  const producer = {
    *program(cpu: X86Cpu): Guest {
      for (let turn = 0; turn < TURNS; turn++) {
        // The three-state lock of "Futexes are tricky": 0 free, 1 taken, 2 taken and waited for.
        yield cpu.cmpxchg32(LOCK, 0, 1);
        if (!cpu.zf) {
          for (yield cpu.xchg32(LOCK, 2); cpu.eax !== 0; yield cpu.xchg32(LOCK, 2)) {
            yield* futexWait(cpu, LOCK, 2);
          }
        }
        yield cpu.xadd32(INSIDE, 1);
        most = Math.max(most, cpu.eax + 1);
        yield cpu.load32(COUNT);
        yield cpu.store32(COUNT, cpu.eax + 1); // Only the lock makes this right.
        yield cpu.xadd32(INSIDE, -1);
        yield cpu.xchg32(LOCK, 0);
        if (cpu.eax === 2) yield* futexWake(cpu, LOCK, 1);
        yield* futexWake(cpu, COUNT, 1);
      }
    },
  };
  const consumer = {
    *program(cpu: X86Cpu): Guest {
      for (;;) {
        yield cpu.load32(COUNT);
        const seen = cpu.eax;
        if (seen === 3 * TURNS) return;
        yield* futexWait(cpu, COUNT, seen);
      }
    },
  };
  const codes = rig.runTasks([producer, prodder, producer, consumer, producer]);
  assertEquals(codes, [0, 0, 0, 0, 0]);
  assertEquals([rig.vm.memory.word(COUNT), most], [3 * TURNS, 1]);
  for (let cpu = 0; cpu < cpus; cpu++) {
    assertEquals([rig.rq(cpu, "waiting"), rig.rq(cpu, "head"), rig.rq(cpu, "lock")], [0, 0, 0]);
    assertEquals(rig.rq(cpu, "current"), rig.kernel.sched.idleTask(cpu));
  }
}

describe("waiting and waking", () => {
  it("loses no wake-up and keeps everybody out of each other's way, whoever is first", () => {
    for (let seed = 0; seed < 40; seed++) {
      for (const cpus of [1, 2, 4]) story({ random: seed }, cpus);
    }
  });

  it("lets a waker wait until the waiter is in the queue, once that has looked at the word", () => {
    const rig = new TaskRig({ cpus: 2 });
    const { sched } = rig.kernel;
    const story: string[] = [];
    rig.runTasks([
      {
        cpu: 1,
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          const slept = yield* waitIf(cpu, sched, { address: WORDS, mm: 0 }, function* () {
            yield cpu.load32(WORDS);
            const waits = cpu.eax === 0;
            yield cpu.store32(WORDS + 4, 1);
            yield cpu.work(1_000_000); // The other one changes the word now, and wants to wake who waits.
            return waits;
          });
          story.push(`slept ${slept}`);
        },
      },
      {
        cpu: 0,
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          yield cpu.pauseWhile(WORDS + 4, 0);
          yield cpu.store32(WORDS, 1);
          story.push(`woke ${yield* wake(cpu, sched, { address: WORDS, mm: 0 }, 1)}`);
        },
      },
    ]);
    assertEquals(story.sort(), ["slept true", "woke 1"]);
  });

  it("excludes kernel threads by a mutex, and idle tasks spin for it", () => {
    for (let seed = 0; seed < 40; seed++) {
      const rig = new TaskRig({ cpus: 2, sched: { timer: "off" }, machine: { policy: { random: seed } } });
      const { kernel } = rig;
      let inside = 0;
      let turns = 0;
      const critical = function* (cpu: X86Cpu): Guest {
        yield* mutexLock(cpu, kernel.sched, WORDS);
        assertEquals(++inside, 1);
        yield cpu.pause();
        yield cpu.pause();
        inside--;
        turns++;
        yield* mutexUnlock(cpu, kernel.sched, WORDS);
      };
      const thread = kernel.sched.kernelThread(critical, "critical");
      rig.run(function* (cpu) {
        for (let n = 0; n < 3; n++) yield* kernel.sched.spawn(cpu, { entry: thread });
        yield* critical(cpu); // The boot processor's program is its idle task.
        yield* kernel.sched.waitForAll(cpu);
      });
      assertEquals([turns, rig.vm.memory.word(WORDS)], [4, 0]);
    }
  });
});
