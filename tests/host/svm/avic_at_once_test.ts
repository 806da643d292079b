import { assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { FLAG_IF, OP_WRMSR, RFLAGS } from "../../../abi/mod.ts";
import { type Processor, type Quirk, straight, VcpuMode, type Vm } from "../../../host/mod.ts";
import { deliverAtOnce, deliverInterrupt } from "../../../host/svm/avic/deliver.ts";
import type { AvicHardware } from "../../../host/svm/avic/hardware.ts";
import { sendDirected, sendIpi } from "../../../host/svm/avic/ipi.ts";
import { APIC_MODES, type ApicMode, setUp, still } from "../../support/apic.ts";
import { hostWords, svm } from "../../support/avic.ts";
import { put, type State, STATES } from "../../support/posted.ts";
import { handled, remains } from "../../support/remains.ts";

// What hardware and KVM do a step an access, timed runs do in one piece. The steps are the reference.

const vectors = fc.oneof(fc.nat(255), fc.constantFrom(0, 15, 16, 0x41));
const states = fc.constantFrom(...STATES);
const modes = fc.constantFrom(...APIC_MODES);

function stage(mode: ApicMode, state: State, quirks: readonly Quirk[] = []): Vm {
  const vm = still({ backend: "svm", vcpus: 2, acceleration: "x2avic", trace: 64 }, { pcpus: 4, quirks });
  for (const vcpu of vm.vcpus) setUp(vcpu.lapic, mode);
  put(vm.bootstrap, "runs in guest mode");
  put(vm.vcpus[1], state);
  for (const vcpu of vm.vcpus) {
    const { processor } = vcpu;
    processor.guestMode = true;
    processor.context.pending = OP_WRMSR;
    svm(vcpu).hardware.enter(processor);
  }
  return vm;
}

function left(vm: Vm): unknown {
  return remains(vm, (index) => {
    const { vmcb, hardware } = svm(vm.vcpus[index]);
    return [
      hardware.avic.pending,
      vmcb.incompleteIcrHigh,
      ...hostWords(vm, vmcb.avicPhysicalTable).subarray(0, 8),
    ];
  });
}

describe("in one piece and step by step the same comes of", () => {
  const icrs = fc.tuple(
    vectors,
    // Mostly a fixed edge to a physical destination; and each other kind.
    fc.oneof(
      fc.constant(0),
      fc.constant(0),
      fc.constantFrom(0x400, 0x800, 0x8000, 0x4_0000, 0x8_0000, 0xc_0000),
    ),
  ).map(([vector, kind]) => vector | kind | 0x4000);
  const destinations = fc.constantFrom(0, 1, 2, 300, 5000, 0xffff_ffff);
  const entries = fc.constantFrom("as KVM wrote it", "invalid", "with no page", "of a CPU that is not there");

  /** Sends both ways, where one piece is enough: that one says whether it is. */
  function sendBoth(make: () => Vm, low: number, high: number): boolean {
    const [reference, quick] = [make(), make()];
    const send = ({ bootstrap }: Vm) =>
      straight(sendIpi(svm(bootstrap).hardware.avic, bootstrap.processor, low, high));
    send(reference);
    const sent = sendDirected(svm(quick.bootstrap).hardware.avic, quick.bootstrap.processor, low, high);
    if (!sent) send(quick); // It has done nothing yet.
    assertEquals(left(quick), left(reference));
    return sent;
  }

  it("an IPI, whatever the ICR, the table and the target's state are", () => {
    fc.assert(fc.property(modes, states, icrs, destinations, entries, (mode, state, low, id, entry) => {
      const make = () => {
        const vm = stage(mode, state, id === 2 ? ["avic-stale-is-running"] : []);
        const table = hostWords(vm, svm(vm.bootstrap).vmcb.avicPhysicalTable);
        if (entry === "invalid") table[3] &= 0x7fff_ffff;
        if (entry === "with no page") table[2] ^= 0x4000_0000;
        if (entry === "of a CPU that is not there") table[2] |= 0xff;
        return vm;
      };
      sendBoth(make, low, mode === "xapic" ? id << 24 >>> 0 : id);
    }));
  });

  for (const mode of APIC_MODES) {
    it(`an IPI to one vCPU, which one piece is enough for, and to all, which it is not (${mode})`, () => {
      const to = mode === "xapic" ? 1 << 24 : 1;
      for (const state of STATES) assertEquals(sendBoth(() => stage(mode, state), 0x4041, to), true);
      assertEquals(sendBoth(() => stage(mode, "runs in guest mode"), 0xc_4041, 0), false);
    });
  }

  it("a doorbell, and the evaluation and the delivery that follows it", () => {
    const requested = fc.array(fc.constantFrom(15, 0x31, 0x41, 0x5f, 0xff), { maxLength: 2 });
    const rarely = fc.constantFrom(false, false, false, true);
    const conditions = fc.record({
      serving: fc.boolean(), // Vector 0x42.
      late: fc.boolean(), // Something was pending before the doorbell rang.
      disabled: rarely,
      shadow: rarely,
      vintr: rarely,
    });
    let delivered = 0;
    fc.assert(
      fc.property(modes, requested, conditions, (mode, vectors, odd) => {
        const make = () => {
          const vm = stage(mode, "runs in guest mode");
          const { lapic, processor } = vm.vcpus[1];
          const { hardware, vmcb } = svm(vm.vcpus[1]);
          if (odd.serving) lapic.page[(0x100 + 16 * 2) >>> 2] |= 1 << 2;
          processor.shadow = odd.shadow;
          if (odd.disabled) processor.regs[RFLAGS] &= ~FLAG_IF;
          if (odd.vintr) vmcb.interceptVintr = true;
          if (!odd.late) hardware.avic.evaluate(processor);
          for (const vector of vectors) lapic.setIrr(vector);
          if (odd.late) hardware.avic.evaluate(processor);
          return vm;
        };
        const [reference, quick] = [make(), make()];
        const parts = ({ vcpus }: Vm) => [svm(vcpus[1]).hardware.avic, vcpus[1].processor] as const;
        const take = (avic: AvicHardware, processor: Processor) =>
          handled(() => processor.windowRequested && avic.deliver(processor));
        const [avic, processor] = parts(reference);
        avic.evaluate(processor);
        take(avic, processor);
        const [other, otherProcessor] = parts(quick);
        if (handled(() => other.doorbell(otherProcessor))) delivered++;
        else take(other, otherProcessor);
        assertEquals(left(quick), left(reference));
      }),
      { numRuns: 1_000 },
    );
    assertGreater(delivered, 50);
  });

  it("a delivery by KVM, whatever state the target is in, to another vCPU and to itself", () => {
    fc.assert(
      fc.property(
        modes,
        states,
        vectors,
        fc.record({
          exiting: fc.boolean(),
          itself: fc.boolean(),
          inactive: fc.boolean(),
          race: fc.boolean(),
        }),
        (mode, state, vector, { exiting, itself, inactive, race }) => {
          const make = () => {
            const vm = stage(mode, state, race ? ["avic-inhibit-race"] : []);
            if (exiting) vm.vcpus[1].mode = VcpuMode.Exiting;
            if (itself) vm.engine.running = vm.vcpus[1];
            if (inactive) vm.vcpus[1].lapic.apicvActive = false;
            return vm;
          };
          const levelTriggered = vector % 2 === 0;
          const [reference, quick] = [make(), make()];
          const empty = left(quick);
          straight(deliverInterrupt(reference.vcpus[1].lapic, { deliveryMode: 0, vector, levelTriggered }));
          deliverAtOnce(quick.vcpus[1].lapic, 0, vector, levelTriggered);
          assertEquals(left(quick), left(reference));
          assertEquals(JSON.stringify(left(quick)) === JSON.stringify(empty), false);
        },
      ),
    );
  });
});
