import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  acceptInterrupt,
  deliver,
  NOBODY_MATCHED,
  PENDING_INIT,
  PENDING_SIPI,
} from "../../../host/lapic/mod.ts";
import { APICBASE_BSP } from "../../../abi/mod.ts";
import { acceptApicEvents } from "../../../host/kvm/events.ts";
import { MpState, type Vm, type VmOptions } from "../../../host/mod.ts";
import { message, setUp, still, vectors } from "../../support/apic.ts";

const FIXED = 0x000;
const LOWEST = 0x100;
const SMI = 0x200;
const REMOTE_READ = 0x300;
const NMI = 0x400;
const INIT = 0x500;
const STARTUP = 0x600;
const EXTINT = 0x700;

/** A machine of xAPICs with the flat logical IDs 1, 2, 4 ... */
function flat(vcpus: number, options: VmOptions = {}): Vm {
  const vm = still({ vcpus, ...options });
  vm.vcpus.forEach(({ lapic }, i) => setUp(lapic, "xapic", { ldr: 1 << i }));
  return vm;
}

function x2apics(vcpus: number, options: VmOptions = {}): Vm {
  const vm = still({ vcpus, ...options });
  for (const { lapic } of vm.vcpus) setUp(lapic, "x2apic");
  return vm;
}

/** Who took a vector; the requests are withdrawn. */
function takers(vm: Vm, vector: number): number[] {
  const ids = vm.vcpus.filter(({ lapic }) => vectors(lapic, 0x200).includes(vector)).map(({ vcpuId }) =>
    vcpuId
  );
  for (const { lapic } of vm.vcpus) lapic.page.fill(0, 0x200 / 4, 0x280 / 4);
  return ids;
}

describe("a lowest-priority interrupt", () => {
  it("goes to one of those who are meant, chosen by its vector", () => {
    const vm = flat(4);
    for (let vector = 0x40; vector < 0x50; vector++) {
      const to = message({ vector, deliveryMode: LOWEST, destination: 0x0b, logical: true });
      assertEquals(deliver(vm, undefined, to), 1);
      assertEquals(takers(vm, vector), [[0, 1, 3][vector % 3]], "the (vector mod 3)-th of 0, 1 and 3");
    }
  });

  it("is chosen so in an x2APIC cluster too", () => {
    const vm = x2apics(20);
    const to = message({ vector: 0x47, deliveryMode: LOWEST, destination: 0x0001_000e, logical: true });
    assertEquals(deliver(vm, undefined, to), 1);
    assertEquals(takers(vm, 0x47), [[17, 18, 19][0x47 % 3]]);
  });

  it("is lost where the vector chooses somebody who is not there", () => {
    const vm = flat(2);
    const vectorsLost: number[] = [];
    for (let vector = 0x40; vector < 0x44; vector++) {
      const to = message({ vector, deliveryMode: LOWEST, destination: 0x07, logical: true });
      if (deliver(vm, undefined, to) === 0) vectorsLost.push(vector);
    }
    assertEquals(vectorsLost, [0x41], "0x41 mod 3 is 2: bit 2 of the destination, which nobody has");
  });

  it("is lost where the map chooses an APIC that software has disabled, and chosen past it by the loop", () => {
    const vm = x2apics(2);
    setUp(vm.vcpus[1].lapic, "x2apic", { software: false });
    const to = () => message({ vector: 0x41, deliveryMode: LOWEST, destination: 0x3, logical: true });
    assertEquals(deliver(vm, undefined, to()), 0);
    vm.apicMap = undefined;
    assertEquals(deliver(vm, undefined, to()), 1);
    assertEquals(takers(vm, 0x41), [0]);
  });

  it("goes round without vector hashing: to whoever took the fewest, the first of several", () => {
    for (const withMap of [true, false]) {
      const vm = flat(3, { vectorHashing: false });
      if (!withMap) vm.apicMap = undefined;
      const order: number[] = [];
      for (let i = 0; i < 6; i++) {
        const to = message({ vector: 0x44, deliveryMode: LOWEST, destination: 0x07, logical: true });
        assertEquals(deliver(vm, undefined, to), 1);
        order.push(...takers(vm, 0x44));
      }
      assertEquals(order, [0, 1, 2, 0, 1, 2]);
      assertEquals(vm.vcpus.map(({ lapic }) => lapic.arbitrationPriority), [2, 2, 2]);
    }
  });

  it("counts only lowest-priority interrupts when it goes round", () => {
    const vm = flat(2, { vectorHashing: false });
    for (let i = 0; i < 5; i++) deliver(vm, undefined, message({ vector: 0x50, destination: 0 }));
    deliver(vm, undefined, message({ vector: 0x44, deliveryMode: LOWEST, destination: 0x03, logical: true }));
    assertEquals(vm.vcpus.map(({ lapic }) => vectors(lapic, 0x200)), [[0x44, 0x50], []]);
  });

  it("becomes a fixed one to everybody where it is a physical broadcast", () => {
    const vm = flat(3);
    assertEquals(
      deliver(vm, undefined, message({ vector: 0x41, deliveryMode: LOWEST, destination: 0xff })),
      3,
    );
    assertEquals(takers(vm, 0x41), [0, 1, 2]);
  });

  it("is what an MSI with a redirection hint is, whatever its mode", () => {
    const vm = flat(3);
    const to = (destination: number, logical: boolean) =>
      message({ vector: 0x43, destination, logical, redirectionHint: true });
    assertEquals(deliver(vm, undefined, to(0x07, true)), 1);
    assertEquals(takers(vm, 0x43), [0x43 % 3]);
    // The mode of a broadcast is fixed then, and the hint is still there: one of all.
    assertEquals(deliver(vm, undefined, to(0xff, false)), 1);
    assertEquals(takers(vm, 0x43), [0x43 % 3]);
  });
});

describe("a local APIC that is given an interrupt", () => {
  it("takes fixed and lowest-priority ones only while hardware and software have enabled it", () => {
    const { lapic } = still().bootstrap;
    for (const deliveryMode of [FIXED, LOWEST]) {
      setUp(lapic, "xapic");
      assertEquals(acceptInterrupt(lapic, deliveryMode, 0x40, true, false), 1);
      setUp(lapic, "xapic", { software: false });
      assertEquals(acceptInterrupt(lapic, deliveryMode, 0x41, true, false), 0);
    }
    assertEquals(vectors(lapic, 0x200), [0x40]);
  });

  it("takes NMI, INIT and start-up while software has disabled it", () => {
    const { lapic } = still().bootstrap;
    for (const mode of [NMI, INIT, STARTUP]) assertEquals(acceptInterrupt(lapic, mode, 9, true, false), 1);
    assertEquals(lapic.vcpu.nmiQueued, 1);
    assertEquals(lapic.pendingEvents, PENDING_INIT | PENDING_SIPI);
    assertEquals(lapic.sipiVector, 9);
  });

  it("remembers the trigger mode of the last one in TMR", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    acceptInterrupt(lapic, FIXED, 0x60, true, true);
    acceptInterrupt(lapic, FIXED, 0x61, true, false);
    assertEquals(vectors(lapic, 0x180), [0x60]);
    acceptInterrupt(lapic, FIXED, 0x60, true, false);
    assertEquals(vectors(lapic, 0x180), []);
  });

  it("ignores the de-assertion of a level: a fixed one, and the INIT that old kernels send", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    assertEquals(acceptInterrupt(lapic, FIXED, 0x40, false, true), 0);
    assertEquals(acceptInterrupt(lapic, INIT, 0, false, true), 0);
    assertEquals(lapic.pendingEvents, 0);
    assertEquals(acceptInterrupt(lapic, FIXED, 0x40, false, false), 1, "an edge has no level to look at");
    assertEquals(acceptInterrupt(lapic, INIT, 0, false, false), 1);
  });

  it("has who is bootstrap processor by its own word run on behind INIT, and others wait for a start-up", () => {
    const vm = still({ vcpus: 2 });
    const [first, second] = vm.vcpus;
    first.lapic.base &= ~APICBASE_BSP;
    second.lapic.base |= APICBASE_BSP;
    for (const vcpu of [first, second]) {
      vcpu.lapic.pendingEvents = PENDING_INIT;
      acceptApicEvents(vcpu);
    }
    assertEquals([first.mpState, second.mpState], [MpState.InitReceived, MpState.Runnable]);
  });

  it("forgets a start-up that waits when INIT comes, and keeps one that comes behind", () => {
    const { lapic } = still({ vcpus: 2 }).vcpus[1];
    acceptInterrupt(lapic, STARTUP, 8, true, false);
    acceptInterrupt(lapic, INIT, 0, true, false);
    assertEquals(lapic.pendingEvents, PENDING_INIT);
    acceptInterrupt(lapic, STARTUP, 8, true, false);
    acceptInterrupt(lapic, STARTUP, 9, true, false);
    assertEquals(lapic.pendingEvents, PENDING_INIT | PENDING_SIPI);
    assertEquals(lapic.sipiVector, 9, "the last one's vector");
  });

  it("drops system-management and external-controller interrupts", () => {
    const vm = still();
    const { lapic } = vm.bootstrap;
    setUp(lapic, "xapic");
    for (const mode of [SMI, EXTINT]) assertEquals(acceptInterrupt(lapic, mode, 0x40, true, false), 0);
    assertEquals(vectors(lapic, 0x200), []);
    assertEquals(vm.counters()["kvm_apic_accept_irq"], 2, "each attempt is traced, also one that is dropped");
  });

  it("takes a remote read for a kick that ends a halt", () => {
    const { lapic } = still({ vcpus: 2 }).vcpus[1];
    assertEquals(acceptInterrupt(lapic, REMOTE_READ, 0, true, false), 1);
    assertEquals(lapic.vcpu.pvUnhalted, true);
  });

  it("takes vectors below 16 like any others: no error, and a request that is never served", () => {
    const { lapic } = still().bootstrap;
    setUp(lapic, "xapic");
    assertEquals(acceptInterrupt(lapic, FIXED, 0xf, true, false), 1);
    assertEquals(lapic.get(0x280), 0, "ESR");
    assertEquals(vectors(lapic, 0x200), [0xf]);
    assertEquals(lapic.injectable(), -1, "its class is that of an idle processor");
  });
});

describe("a message that nobody is meant by", () => {
  it("is answered with -1 by the loop, with 0 by the map, and 0 where those who are meant drop it", () => {
    const vm = x2apics(2);
    assertEquals(deliver(vm, undefined, message({ vector: 0x40, destination: 9 })), 0);
    vm.apicMap = undefined;
    assertEquals(deliver(vm, undefined, message({ vector: 0x40, destination: 9 })), NOBODY_MATCHED);
    setUp(vm.vcpus[1].lapic, "x2apic", { software: false });
    vm.apicMap = undefined;
    assertEquals(deliver(vm, undefined, message({ vector: 0x40, destination: 1 })), 0);
    const lowest = { vector: 0x40, destination: 1, deliveryMode: LOWEST } as const;
    assertEquals(deliver(vm, undefined, message(lowest)), NOBODY_MATCHED, "no candidate is enabled");
  });
});
