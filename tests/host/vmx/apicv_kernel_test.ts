import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi } from "../../../abi/mod.ts";
import { data, smpCallFunctionMany, smpCallFunctionSingle } from "../../../guest/mod.ts";
import { IoEventFd } from "../../../host/mod.ts";
import { APICS, KernelRig } from "../../support/kernels.ts";

const DEVICE = 0x41;
const CALL_FUNCTION = 0xfc;
const CALL_FUNCTION_SINGLE = 0xfb;
const DOORBELL = 0xc010;
const CPUS = 4;
const ROUNDS = 5;

/** A kernel whose processors call one another's functions, and which has a device answer with interrupts. */
function work(options: ConstructorParameters<typeof KernelRig>[0]): KernelRig {
  const rig = new KernelRig({ cpus: CPUS, ...options });
  const { vm, kernel } = rig;
  vm.pioBus.add(
    new IoEventFd(DOORBELL, 2, () => {
      vm.signalMsi(encodeMsi({ vector: DEVICE, destination: 0 }, "xapic"));
    }),
  );
  kernel.irq(DEVICE, function* device(cpu) {
    yield cpu.work(100);
  });
  const func = kernel.smpFunction(function* called(cpu) {
    yield cpu.work(100);
  });
  return rig.run(function* (cpu, kernel) {
    yield cpu.work(1_000_000); // The others are idle.
    rig.mark();
    for (let n = 0; n < ROUNDS; n++) {
      yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: n });
      for (let target = 1; target < CPUS; target++) {
        yield* smpCallFunctionSingle(cpu, kernel, target, { func, info: n });
      }
      yield cpu.out16(DOORBELL, 0);
      yield cpu.work(5000);
    }
  });
}

/** Every vector's interrupts, on each processor. */
function irqs(rig: KernelRig): number[][] {
  return [DEVICE, CALL_FUNCTION, CALL_FUNCTION_SINGLE].map((vector) =>
    Array.from({ length: CPUS }, (_, cpu) => rig.irqs(cpu, vector))
  );
}

describe("a kernel on hardware with APICv", () => {
  for (const apic of APICS) {
    it(`takes the same interrupts as without, and KVM injects and ends none of them: ${apic}`, () => {
      const plain = work({ apic });
      const each = Array.from({ length: CPUS }, (_, cpu) => (cpu === 0 ? 0 : ROUNDS));
      assertEquals(irqs(plain)[2], each);
      assertEquals(irqs(plain)[0], [ROUNDS, 0, 0, 0]);
      assertEquals(plain.seen("kvm_inj_virq").length > 0, true);
      for (const acceleration of ["apicv", "ipiv"] as const) {
        const rig = work({ apic, vm: { acceleration } });
        assertEquals(irqs(rig), irqs(plain), acceleration);
        for (const event of ["kvm_inj_virq", "kvm_eoi", "kvm_pv_eoi"] as const) {
          assertEquals(rig.seen(event), [], `${event} (${acceleration})`);
        }
        // The kernel has enabled PV EOI all the same; nobody sets its flag.
        assertEquals(rig.eoiFlag(0), 0);
        const exits = rig.vm.exits();
        assertEquals([exits.EOI_INDUCED, exits.INTERRUPT_WINDOW], [undefined, undefined], acceleration);
      }
    });
  }

  it("that idles in HLT is woken by each call, from the host's hands alone", () => {
    const rig = work({ apic: "x2apic-physical", vm: { acceleration: "ipiv", haltPollNs: 0 } });
    // A posted interrupt wakes a sleeper: it was accepted by hardware, and nobody traced it.
    assertEquals(rig.offered(CALL_FUNCTION_SINGLE), []);
    assertEquals(rig.seen("kvm_vcpu_wakeup").length >= ROUNDS * (CPUS - 1), true);
  });
});
