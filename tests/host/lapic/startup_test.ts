import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { CR0_PE, type Gva, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, GuestError, MpState } from "../../../host/mod.ts";
import {
  APIC_MODES,
  type Asking,
  bringUp,
  enter,
  read,
  tryingRig,
  until,
  write,
} from "../../support/apic.ts";
import { AP_START, DATA, ONLINE } from "../../support/guests.ts";

const INIT = 0x4500;
const STARTUP = 0x4600 | (AP_START >>> 12);
const NMI = 0x4400;
/** KVM_HC_KICK_CPU. */
const KICK_CPU = 5;

function* toVcpu1(cpu: X86Cpu, low: number): Asking<void> {
  yield* write(cpu, "x2apic", 0x300, low, 1);
}

/** A rig of two vCPUs whose second counts in {@linkcode DATA} how often it has started. */
function twoVcpus(backend: (typeof BACKENDS)[number] = "vmx") {
  const rig = tryingRig({ vm: { backend, vcpus: 2 } });
  rig.text.addAt(AP_START, function* start(cpu) {
    yield cpu.xadd32(DATA, 1);
    for (;;) yield cpu.hlt();
  });
  return rig;
}

for (const backend of BACKENDS) {
  describe(`an application processor (${backend})`, () => {
    it("runs nothing until INIT and a start-up IPI have come, in this order", () => {
      const rig = twoVcpus(backend);
      const [, ap] = rig.vm.vcpus;
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        assertEquals(ap.mpState, MpState.Uninitialized);
        yield* toVcpu1(cpu, STARTUP);
        yield cpu.work(100_000);
        assertEquals(ap.mpState, MpState.Uninitialized, "a start-up IPI that nobody waits for is dropped");
        yield* toVcpu1(cpu, INIT);
        yield cpu.work(100_000);
        assertEquals(ap.mpState, MpState.InitReceived);
        assertEquals(rig.word(DATA), 0);
        yield* toVcpu1(cpu, STARTUP);
        yield* until(cpu, DATA, 1);
        yield cpu.work(100_000);
        assertEquals(ap.mpState, MpState.Halted);
      });
    });

    it("starts in real mode at the vector's page, with everything else as INIT leaves it", () => {
      const rig = tryingRig({ vm: { backend, vcpus: 2 } });
      const [, ap] = rig.vm.vcpus;
      const seen: unknown[] = [];
      rig.text.addAt(0x9_f000 as Gva, function* start(cpu) {
        seen.push(ap.processor.rip, cpu.interruptsEnabled, ap.processor.realMode);
        yield cpu.movFromCr0();
        seen.push(cpu.eax & CR0_PE);
        yield cpu.store32(DATA, 1);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* toVcpu1(cpu, INIT);
        yield* toVcpu1(cpu, 0x4600 | 0x9f);
        yield* until(cpu, DATA, 1);
      });
      assertEquals(seen, [0x9_f000, false, true, 0]);
    });

    it("drops the second start-up IPI that the manual has software send", () => {
      const rig = twoVcpus(backend);
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* toVcpu1(cpu, INIT);
        yield cpu.work(25_000_000); // 10 ms
        yield* toVcpu1(cpu, STARTUP);
        yield cpu.work(500_000); // 200 us
        yield* toVcpu1(cpu, STARTUP);
        yield cpu.work(500_000);
      });
      assertEquals(rig.word(DATA), 1);
    });

    it("is stopped by INIT in the middle of its work, and starts anew", () => {
      const rig = tryingRig({ vm: { backend, vcpus: 2 } });
      const [, ap] = rig.vm.vcpus;
      rig.text.addAt(AP_START, function* start(cpu) {
        yield cpu.xadd32(DATA, 1);
        for (;;) yield cpu.xadd32(DATA + 4, 1);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* toVcpu1(cpu, INIT);
        yield* toVcpu1(cpu, STARTUP);
        yield* until(cpu, DATA, 1);
        yield cpu.work(10_000);
        yield* toVcpu1(cpu, INIT);
        yield cpu.work(10_000);
        assertEquals(ap.mpState, MpState.InitReceived);
        const stopped = rig.word(DATA + 4);
        yield cpu.work(100_000);
        assertEquals(rig.word(DATA + 4), stopped, "it runs on");
        yield* toVcpu1(cpu, STARTUP);
        yield* until(cpu, DATA, 2);
        yield cpu.work(10_000);
        assertEquals(rig.word(DATA + 4) > stopped, true);
        yield* toVcpu1(cpu, INIT); // It would run for ever.
      });
    });

    it("ignores INIT's de-assertion", () => {
      const rig = twoVcpus(backend);
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* toVcpu1(cpu, INIT);
        yield* toVcpu1(cpu, STARTUP);
        yield* until(cpu, DATA, 1);
        yield* toVcpu1(cpu, 0x8500); // Level-triggered, not asserted.
        yield cpu.work(100_000);
        assertEquals(rig.vm.vcpus[1].mpState, MpState.Halted);
      });
    });

    it("sleeps on when an NMI or a kick comes before it is started", () => {
      for (const what of ["nmi", "kick"]) {
        const rig = twoVcpus(backend);
        const [, ap] = rig.vm.vcpus;
        rig.finish(function* (cpu) {
          yield* enter(cpu, "x2apic");
          for (const expected of [MpState.Uninitialized, MpState.InitReceived]) {
            if (what === "nmi") yield* toVcpu1(cpu, NMI);
            else {
              cpu.loadHypercall(KICK_CPU, 0, 1);
              yield backend === "vmx" ? cpu.vmcall() : cpu.vmmcall();
            }
            yield cpu.work(100_000);
            assertEquals(ap.mpState, expected, what);
            yield* toVcpu1(cpu, INIT);
            yield cpu.work(100_000);
          }
          yield* toVcpu1(cpu, STARTUP);
          yield* until(cpu, DATA, 1);
        });
        assertEquals(ap.stats.nmi_injections, 0, "INIT forgets NMIs");
      }
    });
  });

  for (const mode of APIC_MODES) {
    it(`broadcasts start every application processor, in whichever mode the sender is (${backend}, ${mode})`, () => {
      const rig = tryingRig({ vm: { backend, vcpus: 5 } });
      const ids: number[] = [];
      rig.aps(function* (cpu) {
        ids.push((yield* read(cpu, "xapic", 0x020)) as number);
      }).finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* bringUp(cpu, mode, 4);
        yield cpu.work(100_000);
      });
      assertEquals(rig.word(ONLINE), 4);
      assertEquals(ids.sort(), [0x0100_0000, 0x0200_0000, 0x0300_0000, 0x0400_0000]);
    });
  }
}

describe("a vCPU whose number does not fit into an xAPIC ID", () => {
  it("is started by its number while it is in xAPIC mode: KVM's hotplug hack", () => {
    for (const x2apicApi32BitIds of [false, true]) {
      const rig = tryingRig({ vm: { vcpuIds: [0, 0x100, 0x321], x2apicApi32BitIds } });
      const started: number[] = [];
      rig.aps(function* (cpu) {
        yield* enter(cpu, "x2apic");
        started.push((yield* read(cpu, "x2apic", 0x020)) as number);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        for (const [i, id] of [0x321, 0x100].entries()) {
          yield* write(cpu, "x2apic", 0x300, INIT, id);
          yield* write(cpu, "x2apic", 0x300, STARTUP, id);
          yield* until(cpu, ONLINE, i + 1);
          yield cpu.work(100_000);
          assertEquals(started.length, i + 1);
        }
      });
      assertEquals(started, [0x321, 0x100]);
    }
  });
});

describe("a start-up", () => {
  it("at a page without text is an error that names the page, not a silent nothing", () => {
    const rig = tryingRig({ vm: { vcpus: 2 } });
    assertThrows(
      () =>
        rig.run(function* (cpu) {
          yield* enter(cpu, "x2apic");
          yield* toVcpu1(cpu, INIT);
          yield* toVcpu1(cpu, 0x4642);
          yield cpu.work(1_000_000);
        }),
      GuestError,
      "0x42000 is not the entry of a guest function",
    );
  });
});

describe("INIT to the bootstrap processor", () => {
  it("resets it and leaves it runnable: it does not wait for a start-up IPI", () => {
    const rig = tryingRig({ vm: { vcpus: 2 } });
    const { bootstrap } = rig.vm;
    rig.aps(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield* write(cpu, "x2apic", 0x300, INIT, 0);
    });
    // It goes on at the reset vector, where firmware would be: there is none here.
    assertThrows(
      () =>
        rig.run(function* (cpu) {
          yield* enter(cpu, "x2apic");
          yield* bringUp(cpu, "x2apic", 1);
          for (;;) yield cpu.work(1_000_000);
        }),
      GuestError,
      "is not the entry of a guest function",
    );
    assertEquals(bootstrap.mpState, MpState.Runnable);
    assertEquals(bootstrap.lapic.softwareEnabled, false);
  });
});
