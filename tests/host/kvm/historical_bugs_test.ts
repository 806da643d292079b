import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { X2APIC_ICR, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, checkQuirks, HostFailure, type Quirk, QUIRKS, type VmOptions } from "../../../host/mod.ts";
import { type Asking, enter, setUp, tryingRig } from "../../support/apic.ts";

const SEND_IPI = 10;
const EOPNOTSUPP = BigInt.asUintN(64, -95n);

/** Makes a hypercall; answers with RAX. */
function* sendIpi(
  cpu: X86Cpu,
  a0: number | bigint,
  a1: number | bigint,
  a2: number | bigint,
): Asking<bigint> {
  yield cpu.loadHypercall(SEND_IPI, a0, a1, a2, 0x41).vmcall();
  return cpu.rax;
}

/** A bug that a guest could make KVM fall over: a pair of runs, the one with the quirk dies. */
interface Bug {
  readonly quirk: Quirk;
  /** What the guest does. */
  readonly story: string;
  readonly vm?: VmOptions;
  /** Whether vCPU 1 has vCPU 0's xAPIC ID. */
  readonly aliased?: boolean;
  readonly guest: (cpu: X86Cpu) => Asking<void>;
  /** How KVM dies of it. */
  readonly dies: string;
}

const BUGS: readonly Bug[] = [
  {
    quirk: "send-ipi-unchecked-bounds",
    story: "a minimum beyond every APIC",
    *guest(cpu) {
      assertEquals(yield* sendIpi(cpu, 1, 0, 300), 0n);
    },
    dies: "reads slot 300 of an APIC map with 256 slots",
  },
  {
    quirk: "send-ipi-unchecked-bounds",
    story: "a minimum that looks negative, as the unit test that found it had",
    *guest(cpu) {
      assertEquals(yield* sendIpi(cpu, 1, 0, -256n), 0n);
    },
    dies: "reads slot 4294967040 of an APIC map",
  },
  {
    quirk: "send-ipi-unchecked-bounds",
    story: "a bitmap that reaches past the last slot, behind APICs that are there",
    vm: { vcpus: 2 },
    *guest(cpu) {
      yield* enter(cpu, "x2apic");
      assertEquals(yield* sendIpi(cpu, 1, 1n << 63n, 129), 0n);
    },
    dies: "reads slot 256 of an APIC map with 256 slots",
  },
  {
    quirk: "send-ipi-null-map",
    story: "the call while two APICs have the same ID, so that there is no map",
    vm: { vcpus: 2 },
    aliased: true,
    *guest(cpu) {
      assertEquals(yield* sendIpi(cpu, 1, 0, 0), EOPNOTSUPP);
    },
    dies: "NULL pointer dereference: kvm_pv_send_ipi reads the APIC map, and there is none",
  },
  {
    quirk: "x2apic-cluster-unchecked",
    story: "an IPI to an x2APIC cluster that is not there",
    *guest(cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.wrmsr(X2APIC_ICR, 0x841, 0x10_0001);
    },
    dies: "BUG_ON(cid >= ARRAY_SIZE(map->logical_map))",
  },
];

for (const backend of BACKENDS) {
  describe(`a guest that KVM fell for (${backend})`, () => {
    for (const { quirk, story, vm, aliased, guest, dies } of BUGS) {
      const play = (quirks: readonly Quirk[], options: VmOptions = {}) => {
        const rig = tryingRig({ machine: { quirks }, vm: { backend, ...vm, ...options } });
        if (aliased) {
          rig.vm.engine.running = rig.vm.bootstrap;
          setUp(rig.vm.vcpus[1].lapic, "xapic", { id: 0 });
        }
        rig.finish(guest);
        assertEquals(rig.vm.counters()["kvm_apic_accept_irq"], undefined, "nobody is interrupted");
      };

      it(`with ${story}: it stops the host (quirk ${quirk})`, () => {
        assertThrows(() => play([quirk]), HostFailure, dies);
      });

      it(`with ${story}: it gets an answer, or nothing, today`, () => {
        play([]);
        const others = Object.keys(QUIRKS).filter((name) => name !== quirk) as Quirk[];
        play(others);
      });

      if (quirk.startsWith("send-ipi")) {
        it(`with ${story}: it stopped the host of 2018, which had just got the call`, () => {
          assertThrows(() => play([], { hostSemantics: "2018" }), HostFailure);
        });
      }
    }

    it("makes the call before anything is set up, in every state of its APIC, and nothing happens", () => {
      const rig = tryingRig({ vm: { backend, vcpus: 2 } });
      rig.finish(function* (cpu) {
        const send = () => sendIpi(cpu, 0b11, 0, 0);
        assertEquals(yield* send(), 0n, "after reset: APICs that software has not enabled");
        yield cpu.wrmsr(0x1b, 0xfee0_0100);
        assertEquals(yield* send(), 0n, "its own APIC disabled");
        yield cpu.wrmsr(0x1b, 0xfee0_0900);
        assertEquals(yield* send(), 0n, "enabled again");
        yield cpu.wrmsr(0x1b, 0xfee0_0d00);
        assertEquals(yield* send(), 0n, "in x2APIC mode");
        yield* enter(cpu, "x2apic");
        assertEquals(yield* send(), 1n, "and at last one that takes it: its own");
      });
    });
  });
}

describe("the registry of quirks", () => {
  it("says what each does and where it is known from", () => {
    for (const [name, { effect, source }] of Object.entries(QUIRKS)) {
      assertMatch(name, /^[a-z0-9]+(-[a-z0-9]+)+$/);
      assert(effect.length > 20 && !effect.endsWith("."), name);
      assertMatch(source, /fixed (by [0-9a-f]{12}|in v|by the patch of )/, name);
    }
  });

  it("refuses names that it does not have, naming those that it has", () => {
    assertEquals([...checkQuirks(["send-ipi-null-map"])], ["send-ipi-null-map"]);
    const error = assertThrows(
      () => checkQuirks(["toString"]),
      RangeError,
      "Cannot enable quirk toString: allowed are",
    );
    for (const name of Object.keys(QUIRKS)) assert(error.message.includes(name), name);
  });
});
