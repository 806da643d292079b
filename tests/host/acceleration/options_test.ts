import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type Acceleration,
  AVIC_KICKS,
  BACKENDS,
  type HostSemantics,
  LimitExceeded,
  Machine,
  type Vm,
  type VmOptions,
} from "../../../host/mod.ts";
import { HOST_SEMANTICS } from "../../../host/semantics.ts";
import { APIC_MODES, enter, send, tryingRig, write } from "../../support/apic.ts";
import { anyCast, anySteps, foretell } from "../../support/interrupt_scripts.ts";
import { perform } from "../../support/interrupt_stage.ts";
import { type Level, LEVELS, nameOf } from "../../support/levels.ts";

const HOSTS = Object.keys(HOST_SEMANTICS) as HostSemantics[];
const ACCELERATIONS = [...new Set(LEVELS.map(({ acceleration }) => acceleration))];

/** Options that are some of them impossible, or do not go together. */
const anyOptions = fc.record({
  backend: fc.constantFrom(...BACKENDS),
  acceleration: fc.constantFrom<Acceleration | undefined>(
    undefined,
    ...ACCELERATIONS,
    "APICv" as Acceleration,
  ),
  apicv: fc.constantFrom(undefined, true, false),
  ipiv: fc.constantFrom(undefined, true, false),
  hostSemantics: fc.constantFrom(...HOSTS),
  avicKick: fc.constantFrom(undefined, ...AVIC_KICKS),
  maxVcpuIds: fc.constantFrom(undefined, 1, 2, 300, 4096, 0, 4097),
  vcpuIds: fc.constantFrom(undefined, [0], [0, 1], [1, 0], [0, 254, 255], [0, 511, 512], [0, 4095], [1]),
  memory: fc.constantFrom(0, 2 ** 21),
  x2apic: fc.boolean(),
  ioapicInKernel: fc.boolean(),
  x2apicApi32BitIds: fc.boolean(),
}, { requiredKeys: ["backend", "hostSemantics", "memory"] }) as fc.Arbitrary<VmOptions>;

/** Whether the level is among those of the vendor. */
function possible({ backend, acceleration = "none" }: VmOptions): boolean {
  return LEVELS.some((level) => level.backend === backend && level.acceleration === acceleration);
}

describe("whatever the options", () => {
  it("a virtual machine is made and explains itself, or is refused with words about what is allowed", () => {
    let [made, refused] = [0, 0];
    fc.assert(
      fc.property(anyOptions, (options) => {
        let vm;
        try {
          vm = new Machine({ pcpus: 4 }).createVm(options);
        } catch (error) {
          refused++;
          assert(error instanceof RangeError, `${error}`);
          assert(/^Cannot .*: .*/.test(error.message), error.message);
          return;
        }
        made++;
        assert(possible(options));
        assertEquals(vm.enableIpiv && !vm.enableApicv, false);
        assertEquals(vm.enableApicv && options.apicv === false, false);
        const explained = vm.explain();
        assert(explained.every(({ why }) => why.length > 0));
        assertEquals(vm.explain(), explained);
      }),
      { numRuns: 400 },
    );
    assert(made > 50 && refused > 50, `${made} made, ${refused} refused`);
  });

  it("the vendors' levels are not mixed up", () => {
    const refuse = (options: VmOptions) =>
      assertThrows(() => new Machine().createVm(options), RangeError, "allowed are none, ").message;
    assertEquals(
      refuse({ acceleration: "x2avic" }),
      "Cannot build a vmx processor with x2avic: allowed are none, apicv, ipiv",
    );
    assertEquals(
      refuse({ backend: "svm", acceleration: "ipiv" }),
      "Cannot build a svm processor with ipiv: allowed are none, avic, x2avic",
    );
  });
});

/** A guest sends itself an interrupt, and one to its other vCPU if there is one; both are handled. */
function sends(options: VmOptions, mode: "xapic" | "x2apic", to: number): void {
  const rig = tryingRig({ vm: options, machine: { pcpus: 8 } });
  const handled: number[] = [];
  rig.on(0x41, function* (cpu) {
    handled.push(rig.vm.vcpus.findIndex(({ processor }) => processor.context === cpu));
    yield* write(cpu, mode, 0x0b0, 0);
  });
  rig.aps(function* (cpu) {
    yield* enter(cpu, mode);
    yield cpu.sti();
    yield cpu.hlt();
    yield cpu.cli();
    yield cpu.hlt();
  });
  rig.finish(function* (cpu) {
    const high = mode === "xapic" ? to << 24 : to;
    yield* enter(cpu, mode);
    yield cpu.sti();
    yield* send(cpu, mode, { low: 0x4_4041, high: 0 });
    yield* send(cpu, mode, { low: 0x4500, high });
    yield* send(cpu, mode, { low: 0x4608, high });
    yield cpu.work(1_000_000);
    yield* send(cpu, mode, { low: 0x4041, high });
    yield cpu.work(1_000_000);
  });
  assertEquals(handled, [0, rig.vm.vcpus.findIndex(({ vcpuId }) => vcpuId === to)]);
}

describe("every year's host takes what the processor has, as far as it knows it", () => {
  for (const hostSemantics of HOSTS) {
    it(`and its guests get their interrupts (${hostSemantics})`, () => {
      for (const level of LEVELS) {
        for (const mode of APIC_MODES) {
          for (const x2apic of mode === "xapic" ? [true, false] : [true]) {
            sends({ ...level, hostSemantics, vcpus: 2, x2apic }, mode, 1);
          }
        }
      }
    });
  }
});

describe("at the tables' ends", () => {
  /** By level: numbers of vCPUs at and beyond the last one that its tables hold. */
  const ENDS: readonly [level: Level, id: number][] = [
    [{ backend: "vmx", acceleration: "ipiv" }, 4095],
    [{ backend: "vmx", acceleration: "apicv" }, 4095],
    [{ backend: "svm", acceleration: "avic" }, 254],
    [{ backend: "svm", acceleration: "avic" }, 255],
    [{ backend: "svm", acceleration: "x2avic" }, 511],
    [{ backend: "svm", acceleration: "x2avic" }, 512],
    [{ backend: "svm", acceleration: "x2avic" }, 4095],
  ];
  for (const [level, id] of ENDS) {
    it(`vCPU ${id} gets its interrupts (${nameOf(level)})`, () => {
      // As user space does that has such IDs (KVM_X2APIC_API_USE_32BIT_IDS): before x2APIC mode they have no other.
      sends({ ...level, vcpuIds: [0, id], x2apicApi32BitIds: true }, "x2apic", id);
    });
  }

  for (const level of LEVELS) {
    it(`1024 vCPUs get a broadcast (${nameOf(level)})`, () => {
      const vcpus = 1024;
      const rig = tryingRig({ vm: { ...level, vcpus }, machine: { pcpus: 64 } });
      let handled = 0;
      rig.on(0x41, function* (cpu) {
        handled++;
        yield* write(cpu, "x2apic", 0x0b0, 0);
      });
      rig.aps(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        yield cpu.hlt();
        yield cpu.cli();
        yield cpu.hlt();
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* send(cpu, "x2apic", { low: 0xc_4500, high: 0 });
        yield* send(cpu, "x2apic", { low: 0xc_4608, high: 0 });
        yield cpu.work(100_000_000);
        yield* send(cpu, "x2apic", { low: 0xc_4041, high: 0 });
        yield cpu.work(100_000_000);
      }, 1e10);
      assertEquals(handled, vcpus - 1);
      assert(rig.vm.explain().length > 0);
    });
  }
});

describe("a run that its limits end in the middle of anything", () => {
  it("names the limit, and can still be counted and explained", () => {
    let ended = 0;
    fc.assert(
      fc.property(
        anyCast,
        anySteps,
        fc.constantFrom(...LEVELS),
        fc.integer({ min: 1, max: 1500 }),
        fc.option(fc.nat()),
        (cast, steps, level, limit, random) => {
          const machine = {
            policy: random === null ? "timed" as const : { random },
            limits: { steps: limit },
            pcpus: 2,
          };
          let vm: Vm;
          const made = (it: Vm) => void (vm = it);
          try {
            perform(cast, foretell(cast, steps), { vm: { ...level }, machine, made });
          } catch (error) {
            assert(error instanceof LimitExceeded, `${error}`);
            assert(error.message.includes("raise limits.steps"), error.message);
            ended++;
          }
          assert(vm!.explain().length > 0);
          assertEquals(
            vm!.vcpus.flatMap(({ exitCounts }) => [...exitCounts.values()]).reduce((a, b) => a + b, 0),
            Object.values(vm!.exits()).reduce((a, b) => a + b, 0),
          );
        },
      ),
      { numRuns: 150 },
    );
    assert(ended > 50, `${ended} ended early`);
  });
});
