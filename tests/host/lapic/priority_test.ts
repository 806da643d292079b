import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { GuestFunction, X86Cpu } from "../../../abi/mod.ts";
import { REQ_EVENT } from "../../../host/kvm/requests.ts";
import { BACKENDS } from "../../../host/mod.ts";
import type { Rig } from "../../support/guests.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  enter,
  lookAtEvents,
  read,
  request,
  setUp,
  still,
  tryingRig,
  vectors,
  write,
} from "../../support/apic.ts";

const IRR = 0x200;
const ISR = 0x100;

const anyVector = fc.integer({ min: 0x10, max: 0xff });
const classOf = (value: number) => value >> 4;

describe("the priorities of a local APIC", () => {
  it("follow SDM 3A 11.8.3.1 for any task priority and any vectors in service", () => {
    const { lapic } = still().bootstrap;
    fc.assert(
      fc.property(fc.nat(255), fc.uniqueArray(anyVector, { maxLength: 4 }), (tpr, served) => {
        lapic.vcpu.reset(false);
        setUp(lapic, "xapic");
        for (const vector of served.sort((a, b) => a - b)) {
          request(lapic, vector);
          lapic.acknowledge(vector);
        }
        lapic.setTpr(tpr);
        const isrv = Math.max(0, ...served);
        const ppr = classOf(tpr) >= classOf(isrv) ? tpr : classOf(isrv) << 4;
        assertEquals(lapic.get(0x0a0), ppr);
        assertEquals(lapic.cr8, classOf(tpr));
      }),
      { seed: 3 },
    );
  });

  it("let the highest requested vector through if its class is above the processor's, and no other", () => {
    const { lapic } = still().bootstrap;
    fc.assert(
      fc.property(
        fc.nat(255),
        fc.option(anyVector),
        fc.uniqueArray(anyVector, { maxLength: 5 }),
        (tpr, inService, requested) => {
          lapic.vcpu.reset(false);
          setUp(lapic, "xapic");
          if (inService !== null) {
            request(lapic, inService);
            lapic.acknowledge(inService);
          }
          for (const vector of requested) request(lapic, vector);
          lapic.setTpr(tpr);
          const highest = Math.max(-1, ...requested);
          const above = Math.max(classOf(tpr), classOf(inService ?? 0));
          assertEquals(lapic.injectable(), highest !== -1 && classOf(highest) > above ? highest : -1);
        },
      ),
      { seed: 4, numRuns: 300 },
    );
  });

  it("are looked at again when they fall, and not when they rise", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    lapic.setTpr(0x60);
    request(lapic, 0x55);
    lapic.vcpu.requests = 0;
    for (const [tpr, looks] of [[0x70, false], [0x60, false], [0x50, false], [0x4f, true]] as const) {
      lapic.setTpr(tpr);
      assertEquals(lapic.vcpu.requests !== 0, looks, `TPR ${tpr.toString(16)}`);
    }
  });
});

describe("an end of interrupt", () => {
  it("takes the highest vector out of service, whichever the guest means, down to none", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    for (const vector of [0x31, 0x52, 0x90]) {
      request(lapic, vector);
      lapic.acknowledge(vector);
    }
    assertEquals(vectors(lapic, ISR), [0x31, 0x52, 0x90]);
    assertEquals(Array.from({ length: 5 }, () => lapic.eoi()), [0x90, 0x52, 0x31, -1, -1]);
    assertEquals(vectors(lapic, ISR), []);
    assertEquals(lapic.get(0x0a0), 0);
  });

  it("has the vCPU look for what comes next, whether anything waits or not", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    request(lapic, 0x40);
    lapic.acknowledge(0x40);
    lapic.vcpu.requests = 0;
    lapic.eoi();
    assertEquals(lapic.vcpu.requests, REQ_EVENT);
  });

  it("leaves it unknown which vector is the highest in service, until another one begins", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    const known: number[] = [];
    for (const vector of [0x31, 0x52]) {
      request(lapic, vector);
      lapic.acknowledge(vector);
      known.push(lapic.highestIsrCache);
    }
    lapic.eoi();
    known.push(lapic.highestIsrCache);
    request(lapic, 0x90);
    lapic.acknowledge(0x90);
    assertEquals([...known, lapic.highestIsrCache], [0x31, 0x52, -1, 0x90]);
  });

  it("is traced with vector -1 where nothing is in service, and changes nothing then", () => {
    const vm = still();
    const { lapic } = vm.bootstrap;
    setUp(lapic, "xapic");
    request(lapic, 0x40);
    vm.bootstrap.requests = 0;
    assertEquals(lapic.eoi(), -1);
    assertEquals(vm.counters()["kvm_eoi"], 1);
    assertEquals(vm.bootstrap.requests, 0);
    assertEquals(vectors(lapic, IRR), [0x40]);
  });
});

describe("a request", () => {
  it("is one bit: an edge that comes while another waits is coalesced, one during service is not", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    request(lapic, 0x40);
    request(lapic, 0x40);
    lapic.acknowledge(0x40);
    assertEquals([vectors(lapic, IRR), vectors(lapic, ISR)], [[], [0x40]]);
    request(lapic, 0x40);
    assertEquals([vectors(lapic, IRR), vectors(lapic, ISR)], [[0x40], [0x40]]);
    assertEquals(lapic.injectable(), -1, "its own class blocks it");
    lapic.eoi();
    assertEquals(lapic.injectable(), 0x40);
  });

  it("leaves the hint that there are requests right, over any history of requests and acknowledgements", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    fc.assert(
      fc.property(fc.array(fc.option(anyVector), { maxLength: 40 }), (history) => {
        for (const vector of history) {
          if (vector !== null) request(lapic, vector);
          else if (lapic.injectable() !== -1) lapic.acknowledge(lapic.injectable());
          const requested = vectors(lapic, IRR);
          assertEquals(lapic.highestIrr(), requested.at(-1) ?? -1);
          assertEquals(lapic.highestIsr(), vectors(lapic, ISR).at(-1) ?? -1);
          assertEquals(lapic.isrCount, vectors(lapic, ISR).length);
        }
        for (let i = vectors(lapic, ISR).length; i > 0; i--) lapic.eoi();
        while (lapic.highestIrr() !== -1) {
          lapic.acknowledge(lapic.highestIrr());
          lapic.eoi();
        }
        assertEquals(lapic.irrPending, false);
      }),
      { seed: 5 },
    );
  });
});

/** A guest's log of its handlers: each says when it begins and when it has ended its interrupt. */
class Story {
  readonly log: string[] = [];

  constructor(readonly mode: ApicMode) {}

  /** A handler that does something between beginning and EOI. */
  handler(inside: (cpu: X86Cpu) => Asking<void> = function* () {}): GuestFunction {
    const { log, mode } = this;
    return function* handler(cpu) {
      log.push(`+${cpu.vector.toString(16)}`);
      yield* inside(cpu);
      log.push(`-${cpu.vector.toString(16)}`);
      yield cpu.cli();
      yield* write(cpu, mode, 0x0b0, 0);
      yield cpu.iret();
    };
  }

  /** Sends a vector to the sender itself. */
  *toSelf(cpu: X86Cpu, vector: number): Asking<void> {
    yield* write(cpu, this.mode, 0x300, 0x4_4000 | vector);
  }
}

for (const backend of BACKENDS) {
  for (const mode of APIC_MODES) {
    describe(`interrupts of a guest (${backend}, ${mode})`, () => {
      const rig = (): Rig => tryingRig({ vm: { backend } });

      it("come in the order of their vectors, each after the EOI of the one before", () => {
        const story = new Story(mode);
        const r = rig();
        for (const vector of [0x31, 0x3f, 0x52, 0xe0]) r.on(vector, story.handler());
        r.finish(function* (cpu) {
          yield* enter(cpu, mode);
          for (const vector of [0x3f, 0xe0, 0x31, 0x52]) yield* story.toSelf(cpu, vector);
          yield cpu.sti();
          yield cpu.work(1_000_000);
          yield cpu.cli();
        });
        assertEquals(story.log, ["+e0", "-e0", "+52", "-52", "+3f", "-3f", "+31", "-31"]);
      });

      it("interrupt a handler that lets them, if their class is above its own", () => {
        const story = new Story(mode);
        /** The first time a handler runs it raises these and lets interrupts in. */
        const raise = (...own: number[]) =>
          function* (cpu: X86Cpu): Asking<void> {
            for (const vector of own.splice(0)) yield* story.toSelf(cpu, vector);
            yield cpu.sti();
            yield cpu.work(100_000);
          };
        rig()
          .on(0x31, story.handler())
          .on(0x48, story.handler(raise(0x31, 0x4f, 0x52)))
          .on(0x4f, story.handler())
          .on(0x52, story.handler(raise(0x48, 0xe0)))
          .on(0xe0, story.handler())
          .finish(function* (cpu) {
            yield* enter(cpu, mode);
            yield* story.toSelf(cpu, 0x48);
            yield cpu.sti();
            yield cpu.work(1_000_000);
            yield cpu.cli();
            assertEquals(yield* read(cpu, mode, 0x0a0), 0, "PPR");
          });
        assertEquals(story.log.slice(0, 6), ["+48", "+52", "+e0", "-e0", "-52", "-48"]);
        assertEquals(story.log.slice(6), ["+4f", "-4f", "+48", "-48", "+31", "-31"]);
      });

      it("wait while the task priority is not below their class, and come when it falls", () => {
        const story = new Story(mode);
        rig().on(0x45, story.handler()).on(0x51, story.handler()).finish(function* (cpu) {
          yield* enter(cpu, mode);
          const tpr = (value: number) => write(cpu, mode, 0x080, value);
          yield* tpr(0x50);
          yield* story.toSelf(cpu, 0x45);
          yield* story.toSelf(cpu, 0x51);
          yield cpu.sti();
          yield cpu.work(10_000);
          assertEquals(story.log, [], "class 5 waits at task priority 5");
          assertEquals(yield* read(cpu, mode, 0x0a0), 0x50, "PPR is the task priority");
          yield* tpr(0x40);
          yield cpu.work(10_000);
          assertEquals(story.log, ["+51", "-51"]);
          yield* tpr(0);
          yield cpu.work(10_000);
          yield cpu.cli();
        });
        assertEquals(story.log, ["+51", "-51", "+45", "-45"]);
      });

      it("wait for CR8 as for the task priority register: they are one", () => {
        const story = new Story(mode);
        const r = rig();
        r.on(0x71, story.handler()).finish(function* (cpu) {
          yield* enter(cpu, mode);
          yield* lookAtEvents(cpu); // Until KVM has, SVM intercepts every write of CR8.
          yield cpu.movToCr8(7);
          assertEquals(yield* read(cpu, mode, 0x080), 0x70);
          yield* story.toSelf(cpu, 0x71);
          yield cpu.sti();
          yield cpu.work(10_000);
          assertEquals(story.log, []);
          yield cpu.movToCr8(6);
          yield cpu.work(10_000);
          yield cpu.cli();
          assertEquals(story.log, ["+71", "-71"]);
          yield* write(cpu, mode, 0x080, 0x90);
          yield cpu.movFromCr8();
          assertEquals(cpu.eax, 9);
        });
        const lowered = backend === "vmx" ? "TPR_BELOW_THRESHOLD" : "write_cr8";
        assertEquals(
          r.vm.exits()[lowered],
          1,
          "lowering it below what waits is an exit, and nothing else is",
        );
      });

      it("count an edge during service once more, and edges before it once", () => {
        const story = new Story(mode);
        let more = 3;
        rig()
          .on(
            0x60,
            story.handler(function* (cpu) {
              if (more-- > 0) {
                for (let i = 0; i < 3; i++) yield* story.toSelf(cpu, 0x60);
              }
            }),
          )
          .finish(function* (cpu) {
            yield* enter(cpu, mode);
            yield* story.toSelf(cpu, 0x60);
            yield* story.toSelf(cpu, 0x60);
            yield cpu.sti();
            yield cpu.work(1_000_000);
            yield cpu.cli();
          });
        assertEquals(story.log.filter((entry) => entry === "+60").length, 4);
      });

      it("never come with a vector below 16", () => {
        const story = new Story(mode);
        const r = rig();
        for (let vector = 0; vector < 16; vector++) if (vector !== 13) r.on(vector, story.handler());
        r.finish(function* (cpu) {
          yield* enter(cpu, mode);
          for (let vector = 0; vector < 16; vector++) yield* story.toSelf(cpu, vector);
          yield cpu.sti();
          yield cpu.work(10_000);
          yield cpu.cli();
          assertEquals(yield* read(cpu, mode, 0x200), 0xffff, "IRR keeps them");
          assertEquals(yield* read(cpu, mode, 0x280), 0, "and ESR is silent");
        });
        assertEquals(story.log, []);
      });
    });
  }
}
