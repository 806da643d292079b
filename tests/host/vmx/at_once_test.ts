import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { FLAG_IF, HIGH, OP_WRMSR, RFLAGS } from "../../../abi/mod.ts";
import { straight, VcpuMode, type Vm } from "../../../host/mod.ts";
import { ipiAtOnce, ipiVirtualization } from "../../../host/vmx/ipi_virtualization.ts";
import {
  deliverPosted,
  processAtOnce,
  processPostedInterrupts,
} from "../../../host/vmx/posted_interrupts.ts";
import { setUp, still } from "../../support/apic.ts";
import { descriptor, put, STATES, vmx } from "../../support/posted.ts";
import { handled, remains } from "../../support/remains.ts";

// What hardware and KVM do a step an access, timed runs do in one piece. The steps are the reference.

/** A descriptor as it may be found, in vCPU 1's place; PIR's words follow one after another. */
interface Found {
  readonly pir: readonly number[];
  readonly control: number;
  readonly ndst: number;
}

const words = fc.array(fc.oneof(fc.constant(0), fc.nat(0xffff_ffff), fc.constant(2 ** 31)), {
  minLength: 8,
  maxLength: 8,
});
const found: fc.Arbitrary<Found> = fc.record({
  pir: fc.oneof(fc.constant(new Array<number>(8).fill(0)), words),
  // ON, SN, and the vector: the notification's, the wake-up's, or another.
  control: fc.tuple(fc.nat(3), fc.constantFrom(0xf2, 0xf1, 0x33)).map(([bits, nv]) => bits | nv << 16),
  ndst: fc.constantFrom(0, 1, 2, 3, 7, 200),
});
const vectors = fc.oneof(fc.nat(255), fc.constantFrom(0, 15, 16, 0x41));
const states = fc.constantFrom(...STATES);

function stage(state: (typeof STATES)[number], { pir, control, ndst }: Found): Vm {
  const vm = still({ vcpus: 2, acceleration: "ipiv", trace: 64 }, { pcpus: 4 });
  for (const vcpu of vm.vcpus) setUp(vcpu.lapic, "x2apic");
  put(vm.bootstrap, "runs in guest mode");
  put(vm.vcpus[1], state);
  descriptor(vm.vcpus[1]).words.set([...pir, control, ndst]);
  for (const { processor } of vm.vcpus) {
    processor.guestMode = true;
    processor.context.pending = OP_WRMSR;
  }
  return vm;
}

/** vCPU 1 has been sent something before, and its descriptor is found as it was all the same. */
function sendBefore({ bootstrap, vcpus }: Vm, { pir, control, ndst }: Found): void {
  ipiAtOnce(bootstrap.processor, 0x61, 1);
  descriptor(vcpus[1]).words.set([...pir, control, ndst]);
  bootstrap.processor.context.pending = OP_WRMSR;
}

/** Stages the same twice, does it in each way, and wants the same to be left behind: it says whether anything happened. */
function bothWays(make: () => Vm, steps: (vm: Vm) => void, atOnce: (vm: Vm) => void): void {
  const seen = [steps, atOnce].map((way) => {
    const vm = make();
    const before = left(vm);
    way(vm);
    const after = left(vm);
    assert(JSON.stringify(after) !== JSON.stringify(before));
    return after;
  });
  assertEquals(seen[1], seen[0]);
}

function left(vm: Vm): unknown {
  return remains(vm, (index) => {
    const { vmcs, virtualInterrupts } = vmx(vm.vcpus[index]).hardware;
    const { recognized } = virtualInterrupts;
    return [vmcs.rvi, vmcs.svi, recognized, ...descriptor(vm.vcpus[index]).words];
  });
}

describe("in one piece and step by step the same comes of", () => {
  it("IPI virtualization, whatever the table, the descriptor and its vCPU's state are", () => {
    const entries = fc.constantFrom(
      "as KVM wrote it",
      "invalid",
      "with a reserved bit",
      "beyond the processor's addresses",
    );
    fc.assert(
      fc.property(
        states,
        found,
        vectors,
        fc.constantFrom(0, 1, 2, 5000),
        entries,
        fc.boolean(),
        (state, its, vector, id, entry, known) => {
          const make = () => {
            const vm = stage(state, its);
            const table = vm.machine.hostMemory.at(vmx(vm.bootstrap).vmcs.pidPointerTable);
            if (known) sendBefore(vm, its);
            if (entry === "invalid") table[2] &= ~1;
            if (entry === "with a reserved bit") table[2] |= 4;
            if (entry === "beyond the processor's addresses") table[3] = 2 ** 46 / HIGH;
            return vm;
          };
          bothWays(
            make,
            ({ bootstrap }) => straight(ipiVirtualization(bootstrap.processor, vector, id)),
            ({ bootstrap }) => ipiAtOnce(bootstrap.processor, vector, id),
          );
        },
      ),
    );
  });

  it("posted-interrupt processing, whatever was posted, requested, and in service", () => {
    const inService = fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255));
    fc.assert(fc.property(found, words, inService, (its, irr, [rvi, svi, ppr]) => {
      const make = () => {
        const vm = stage("runs in guest mode", its);
        const { lapic } = vm.vcpus[1];
        irr.forEach((bits, register) => lapic.requestAll(register, bits));
        lapic.set(0x0a0, ppr);
        Object.assign(vmx(vm.vcpus[1]).vmcs, { rvi, svi });
        return vm;
      };
      const parts = ({ vcpus }: Vm) => [vcpus[1].processor, vmx(vcpus[1]).hardware] as const;
      bothWays(
        make,
        (vm) => straight(processPostedInterrupts(...parts(vm))),
        (vm) => processAtOnce(...parts(vm)),
      );
    }));
  });

  it("the delivery of what was posted, and posted-interrupt processing with the step that follows it", () => {
    const some = fc.constantFrom(15, 0x31, 0x41, 0x5f, 0xff);
    const posted = fc.oneof(fc.tuple(some), fc.tuple(some), fc.array(some, { maxLength: 3 }));
    const requested = fc.constantFrom(0, 0, 0, 0x31, 0x61);
    const rarely = fc.constantFrom(false, false, false, false, true);
    const conditions = fc.record({
      high: fc.boolean(), // The processor priority.
      disabled: rarely,
      shadow: rarely,
      window: rarely,
      // Somebody else comes as soon as the processing ends, or another interrupt does.
      other: rarely,
      interrupt: rarely,
    });
    let delivered = 0;
    fc.assert(
      fc.property(posted, requested, conditions, (vectors, rvi, odd) => {
        const make = () => {
          const vm = stage("runs in guest mode", { pir: new Array(8).fill(0), control: 1, ndst: 0 });
          const { lapic, processor } = vm.vcpus[1];
          const { vmcs, virtualInterrupts } = vmx(vm.vcpus[1]).hardware;
          const end = processor.thread.time + processor.cost.postedProcessing;
          for (const vector of vectors) descriptor(vm.vcpus[1]).testAndSetPir(vector);
          if (rvi > 0) lapic.setIrr(rvi);
          virtualInterrupts.setRvi(rvi);
          lapic.set(0x0a0, odd.high ? 0x40 : 0);
          processor.shadow = odd.shadow;
          if (odd.disabled) processor.regs[RFLAGS] &= ~FLAG_IF;
          if (odd.window) vmcs.primary |= 1 << 2;
          virtualInterrupts.evaluate();
          vm.engine.horizon = odd.other ? end : end + 1;
          processor.setAsync(odd.interrupt ? end : end + 1);
          return vm;
        };
        const next = (vm: Vm) => {
          const { processor } = vm.vcpus[1];
          const { hardware } = vmx(vm.vcpus[1]);
          processAtOnce(processor, hardware);
          if (vm.engine.horizon > processor.thread.time && !processor.asyncDue) {
            handled(() => hardware.window(processor));
          }
        };
        bothWays(make, next, (vm) => {
          const { processor } = vm.vcpus[1];
          if (handled(() => deliverPosted(processor, vmx(vm.vcpus[1]).hardware))) delivered++;
          else next(vm);
        });
      }),
      { numRuns: 1_000 },
    );
    assertGreater(delivered, 50);
  });

  it("a post by KVM, whatever state the target is in, to another vCPU and to itself", () => {
    fc.assert(
      fc.property(
        states,
        found,
        vectors,
        fc.boolean(),
        fc.boolean(),
        (state, its, vector, exiting, itself) => {
          const make = () => {
            const vm = stage(state, its);
            if (exiting) vm.vcpus[1].mode = VcpuMode.Exiting;
            if (itself) vm.engine.running = vm.vcpus[1];
            return vm;
          };
          const level = vector % 2 === 0;
          bothWays(
            make,
            ({ vcpus }) => straight(vmx(vcpus[1]).posted.post(0, vector, level)),
            ({ vcpus }) => vmx(vcpus[1]).posted.postAtOnce(0, vector, level),
          );
        },
      ),
    );
  });
});
