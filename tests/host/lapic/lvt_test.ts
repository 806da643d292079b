import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { emulatedWrite, type Lapic, localDeliver, PENDING_INIT } from "../../../host/lapic/mod.ts";
import { BACKENDS, type VmOptions } from "../../../host/mod.ts";
import {
  APIC_MODES,
  enter,
  read,
  request,
  setUp,
  still,
  tryingRig,
  vectors,
  write,
} from "../../support/apic.ts";

const LVT_TIMER = 0x320;
const LVT_COUNTERS = 0x340;
const LINT0 = 0x350;
const LVT = [LVT_TIMER, 0x330, LVT_COUNTERS, LINT0, 0x360, 0x370];
const MASKED = 0x1_0000;
const NMI = 0x400;

function enabled(options: VmOptions = {}): Lapic {
  const { lapic } = still(options).bootstrap;
  setUp(lapic, "xapic");
  return lapic;
}

describe("the local vector table", () => {
  for (const mode of APIC_MODES) {
    it(`is masked when software disables the APIC, and stays so until software unmasks it (${mode})`, () => {
      tryingRig().finish(function* (cpu) {
        yield* enter(cpu, mode);
        for (const offset of LVT) yield* write(cpu, mode, offset, 0x40);
        yield* write(cpu, mode, 0x0f0, 0x0ff);
        for (const offset of LVT) assertEquals(yield* read(cpu, mode, offset), MASKED | 0x40);
        yield* write(cpu, mode, 0x0f0, 0x1ff);
        for (const offset of LVT) assertEquals(yield* read(cpu, mode, offset), MASKED | 0x40);
        for (const offset of LVT) yield* write(cpu, mode, offset, 0x41);
        for (const offset of LVT) assertEquals(yield* read(cpu, mode, offset), 0x41);
      });
    });

    it(`cannot be unmasked while the APIC is disabled by software (${mode})`, () => {
      tryingRig().finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* write(cpu, mode, 0x0f0, 0x0ff);
        for (const offset of LVT) {
          yield* write(cpu, mode, offset, 0x42);
          assertEquals(yield* read(cpu, mode, offset), MASKED | 0x42);
        }
      });
    });
  }

  it("has the timer's TSC-deadline bit only where CPUID offers that mode", () => {
    for (const [tscDeadline, reads] of [[true, 0x7_0040], [false, 0x3_0040]] as const) {
      tryingRig({ vm: { tscDeadline } }).finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* write(cpu, "xapic", LVT_TIMER, 0x7_0040);
        assertEquals(yield* read(cpu, "xapic", LVT_TIMER), reads);
      });
    }
  });
});

describe("an entry of the local vector table that fires", () => {
  it("delivers its vector, with the trigger mode of its pin", () => {
    const lapic = enabled();
    emulatedWrite(lapic, LINT0, 0x8061);
    emulatedWrite(lapic, 0x360, 0x62);
    assertEquals(localDeliver(lapic, LINT0), 1);
    assertEquals(localDeliver(lapic, 0x360), 1);
    assertEquals(vectors(lapic, 0x200), [0x61, 0x62]);
    assertEquals(vectors(lapic, 0x180), [0x61], "LINT0 is level-triggered here");
  });

  it("delivers in its delivery mode: NMI and INIT too, while external interrupts and SMIs come to nothing", () => {
    const lapic = enabled();
    for (const [mode, accepted] of [[0x000, 1], [0x200, 0], [NMI, 1], [0x500, 1], [0x700, 0]] as const) {
      emulatedWrite(lapic, LINT0, mode | 0x40);
      assertEquals(localDeliver(lapic, LINT0), accepted, `mode ${mode.toString(16)}`);
    }
    assertEquals(lapic.vcpu.nmiQueued, 1);
    assertEquals(lapic.pendingEvents, PENDING_INIT);
  });

  it("has no delivery mode where the manual has none: a timer cannot raise an NMI", () => {
    const lapic = enabled();
    emulatedWrite(lapic, LVT_TIMER, NMI | 0x40);
    assertEquals(localDeliver(lapic, LVT_TIMER), 1);
    assertEquals([lapic.vcpu.nmiQueued, vectors(lapic, 0x200)], [0, [0x40]]);
  });

  it("delivers nothing while it is masked, or the APIC is disabled", () => {
    const lapic = enabled();
    emulatedWrite(lapic, LINT0, MASKED | NMI);
    assertEquals(localDeliver(lapic, LINT0), 0);
    emulatedWrite(lapic, LINT0, NMI);
    setUp(lapic, "disabled");
    assertEquals(localDeliver(lapic, LINT0), 0);
    assertEquals(lapic.vcpu.nmiQueued, 0);
  });

  it("is masked by it, if it is the counters' on a CPU of Intel", () => {
    for (const [backend, after] of [["vmx", MASKED | NMI], ["svm", NMI]] as const) {
      const lapic = enabled({ backend });
      emulatedWrite(lapic, LVT_COUNTERS, NMI);
      assertEquals(localDeliver(lapic, LVT_COUNTERS), 1);
      assertEquals(lapic.get(LVT_COUNTERS), after, backend);
      emulatedWrite(lapic, LINT0, NMI);
      localDeliver(lapic, LINT0);
      assertEquals(lapic.get(LINT0), NMI, "no other entry is");
    }
  });
});

describe("an APIC that software disables", () => {
  it("takes no new interrupts, and still delivers those that it has (SDM 3A 11.4.7.2)", () => {
    for (const backend of BACKENDS) {
      const took: number[] = [];
      const rig = tryingRig({ vm: { backend } });
      for (const vector of [0x50, 0x60]) {
        rig.on(vector, function* (cpu) {
          took.push(cpu.vector);
          yield* write(cpu, "xapic", 0x0b0, 0);
        });
      }
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* write(cpu, "xapic", 0x300, 0x4_4050);
        yield* write(cpu, "xapic", 0x0f0, 0x0ff);
        yield* write(cpu, "xapic", 0x300, 0x4_4060);
        yield cpu.sti();
        yield cpu.work(100_000);
        yield cpu.cli();
      });
      assertEquals(took, [0x50], backend);
    }
  });

  it("never delivers its spurious vector: KVM looks before it injects", () => {
    const took: number[] = [];
    const rig = tryingRig();
    rig.on(0xff, function* (cpu) {
      took.push(cpu.vector);
      yield cpu.iret();
    }).finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x300, 0x4_4050);
      yield* write(cpu, "xapic", 0x080, 0xf0); // Now it may not come any more.
      yield cpu.sti();
      yield cpu.work(100_000);
      yield cpu.cli();
    });
    assertEquals(took, []);
  });
});

describe("the error status register", () => {
  it("reads zero whatever happened: KVM detects no errors", () => {
    tryingRig().finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x370, 0xfe);
      yield* write(cpu, "xapic", 0x300, 0x4_4003); // An illegal vector.
      yield* write(cpu, "xapic", 0x0c0, 1); // A register that is not there.
      for (const value of [0, 0xffff_ffff]) {
        yield* write(cpu, "xapic", 0x280, value);
        assertEquals(yield* read(cpu, "xapic", 0x280), 0);
      }
      assertEquals(yield* read(cpu, "xapic", 0x270), 0, "vector 0xfe is not requested");
    });
  });
});

describe("a request", () => {
  it("can be withdrawn by nobody: masking the pin that brought it leaves it", () => {
    const lapic = enabled();
    emulatedWrite(lapic, LINT0, 0x61);
    localDeliver(lapic, LINT0);
    emulatedWrite(lapic, LINT0, MASKED | 0x61);
    assertEquals(vectors(lapic, 0x200), [0x61]);
    assertEquals(request(lapic, 0x61), true);
  });
});
