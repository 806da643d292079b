import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { type Guest, X2APIC_EOI, X2APIC_ICR, type X86Cpu } from "../../../abi/mod.ts";
import { type BackendName, BACKENDS, type Vm } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig, startAps } from "../../support/guests.ts";

const LOW = 0x5b;
const HIGH = 0x9c;
const ASSERT = 0x4000;
const ALL_BUT_SELF = 3 << 18;
/** The processor priority. */
const X2APIC_PPR = 0x80a;

/** What the target saw, and what the host counted. */
interface Seen {
  /** Handlers as they began (+) and ended (-). */
  readonly order: readonly string[];
  /** The processor priority at the end of each. */
  readonly priorities: readonly number[];
  /** Events by name. */
  readonly counters: Readonly<Record<string, number>>;
  /** The vCPUs' statistics. */
  readonly stats: readonly unknown[];
  /** The vCPUs' clocks. */
  readonly clocks: readonly number[];
  /** Their local APICs' registers. */
  readonly pages: readonly Uint32Array[];
}

/** Who sends, to how many, and what else. */
interface Scene {
  /** The sender. */
  readonly send: (cpu: X86Cpu) => Guest;
  /** Targets; 1 by default. */
  readonly targets?: number;
  /** What is looked at in every handler, behind its EOI. */
  readonly look?: (vm: Vm) => void;
}

/** Targets that compute in their handlers, with interrupts on, and a sender. */
function seen(backend: BackendName, trace: number, { send, targets = 1, look }: Scene): Seen {
  const rig = new Rig({ vm: { backend, vcpus: 1 + targets, trace } });
  const order: string[] = [];
  const priorities: number[] = [];
  for (const vector of [LOW, HIGH]) {
    rig.on(vector, function* handler(cpu) {
      order.push(`+${vector.toString(16)}`);
      yield cpu.sti();
      yield cpu.work(50_000);
      order.push(`-${vector.toString(16)}`);
      yield cpu.rdmsr(X2APIC_PPR);
      priorities.push(cpu.eax);
      yield cpu.wrmsr(X2APIC_EOI, 0);
      look?.(rig.vm);
    });
  }
  rig.aps(function* ap(cpu) {
    yield* enableX2apic(cpu);
    yield cpu.sti();
    yield cpu.xadd32(DATA, 1);
    for (;;) yield cpu.work(2 ** 30);
  });
  rig.start(function* bsp(cpu) {
    yield* enableX2apic(cpu);
    yield* startAps(cpu, targets);
    for (let ready = 0; ready < targets; ready++) yield cpu.pauseWhile(DATA, ready);
    yield* send(cpu);
    yield cpu.work(400_000);
  });
  const { vm } = rig;
  while (!vm.bootstrap.processor.finished) vm.machine.run(vm.machine.engine.now + 1e6);
  return {
    order,
    priorities,
    counters: vm.counters(),
    stats: vm.vcpus.map(({ stats }) => ({ ...stats })),
    clocks: vm.vcpus.map(({ clock }) => clock),
    pages: vm.vcpus.map(({ lapic }) => lapic.page),
  };
}

for (const backend of BACKENDS) {
  describe(`${backend}: an exit that takes the straight way where nothing is recorded`, () => {
    const same = (scene: Scene): Seen => {
      const straight = seen(backend, 0, scene);
      assertEquals(straight, seen(backend, 4096, scene));
      return straight;
    };
    const both = (send: (cpu: X86Cpu) => Guest): Seen => same({ send });

    it("injects an interrupt that the host was kicked for, and ends it", () => {
      const { order, priorities, counters } = both(function* (cpu) {
        yield cpu.wrmsr(X2APIC_ICR, ASSERT | LOW, 1);
      });
      assertEquals(order, ["+5b", "-5b"]);
      assertEquals(priorities, [0x50], "the vector's class");
      assertEquals([counters.kvm_inj_virq, counters.kvm_eoi], [1, 1]);
    });

    it("lets a vector wait for the end of one whose class is higher", () => {
      const { order } = both(function* (cpu) {
        yield cpu.wrmsr(X2APIC_ICR, ASSERT | HIGH, 1);
        yield cpu.work(20_000);
        yield cpu.wrmsr(X2APIC_ICR, ASSERT | LOW, 1);
      });
      assertEquals(order, ["+9c", "-9c", "+5b", "-5b"]);
    });

    it("lets a vector of a higher class interrupt the other's handler", () => {
      const { order } = both(function* (cpu) {
        yield cpu.wrmsr(X2APIC_ICR, ASSERT | LOW, 1);
        yield cpu.work(20_000);
        yield cpu.wrmsr(X2APIC_ICR, ASSERT | HIGH, 1);
      });
      assertEquals(order, ["+5b", "+9c", "-9c", "-5b"]);
    });

    it("comes to the same whenever a second interrupt arrives, also during the first one's exits", () => {
      const orders = new Set<string>();
      for (let pause = 0; pause < 60_000; pause += 331) {
        const { order, counters } = both(function* (cpu) {
          yield cpu.wrmsr(X2APIC_ICR, ASSERT | HIGH, 1);
          yield cpu.work(pause);
          yield cpu.wrmsr(X2APIC_ICR, ASSERT | LOW, 1);
        });
        assertEquals(counters.kvm_eoi, 2);
        orders.add(order.join());
      }
      assert(!orders.has("+9c,+5b,-5b,-9c"), "a lower class never interrupts a higher one");
    });

    it("comes to the same among many, whose exits overlap, and for whoever looks at the counters meanwhile", () => {
      for (let pause = 0; pause < 60_000; pause += 2_111) {
        const scene: Scene = {
          targets: 3,
          *send(cpu) {
            yield cpu.wrmsr(X2APIC_ICR, ALL_BUT_SELF | ASSERT | HIGH);
            yield cpu.work(pause);
            yield cpu.wrmsr(X2APIC_ICR, ALL_BUT_SELF | ASSERT | LOW);
          },
        };
        const { counters } = same(scene);
        assertEquals(counters.kvm_eoi, 6);
        let looks = 0;
        const watched = seen(backend, 0, {
          ...scene,
          look(vm) {
            looks += vm.counters().kvm_exit > 0 && vm.vcpus[1].stats.req_event > 0 ? 1 : 0;
          },
        });
        assertEquals(looks, 6);
        assertEquals(watched.counters, counters);
      }
    });
  });
}
