import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { straight, type Vm } from "../../../host/mod.ts";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import { enter, request, setUp, still, tryingRig, vectors, write } from "../../support/apic.ts";
import { eventsOf, type Exit, exits, mark } from "../../support/events.ts";
import { descriptor, pir, put, shown, vmx } from "../../support/posted.ts";
import { Script } from "../../support/threads.ts";

const VECTOR = 0x41;

/** A guest that computes with interrupts enabled, and to which somebody does something after a while. */
function meet(act: (vm: Vm) => void, begin: (vm: Vm) => void = () => {}) {
  const rig = tryingRig({ vm: { acceleration: "ipiv", trace: 1 << 12 } });
  const { vm } = rig;
  const took: number[] = [];
  let seen: readonly Exit[] = [];
  let injected = 0;
  let after = "";
  rig.on(VECTOR, function* (cpu) {
    took.push(vm.bootstrap.time);
    yield* write(cpu, "x2apic", 0x0b0, 0);
  });
  new Script(vm.engine, "somebody", function* () {
    yield 100_000;
    act(vm);
  });
  rig.finish(function* (cpu) {
    yield* enter(cpu, "x2apic");
    begin(vm);
    yield cpu.cpuid(0); // Once around the run loop, for whatever was asked.
    yield cpu.sti();
    const from = mark(vm);
    yield cpu.work(200_000);
    yield cpu.cli();
    seen = exits(vm, from);
    injected = eventsOf(vm, "kvm_inj_virq", from).length;
    after = shown(vm.bootstrap);
  });
  return { vm, took, exits: seen, injected, descriptor: after };
}

/** Posts as hardware does, and notifies at `arrival`. */
function post({ bootstrap }: Vm): void {
  descriptor(bootstrap).testAndSetPir(VECTOR);
  descriptor(bootstrap).requestNotification();
}

describe("a notification that arrives in guest mode", () => {
  it("makes hardware take what was posted: no exit, and no event of KVM's", () => {
    const met = meet((vm) => {
      post(vm);
      vm.bootstrap.pcpu!.notify(100_000);
    });
    assertEquals([met.took.length, met.exits, met.injected], [1, [], 0]);
    const { postedProcessing, virtualInterrupt, eventDelivery } = met.vm.cost;
    assertEquals(met.took[0], 100_000 + postedProcessing + virtualInterrupt + eventDelivery);
    assertEquals(met.descriptor, "nv=f2 ndst=0");
  });

  it("makes it take what was posted even where ON is not set", () => {
    const met = meet((vm) => {
      descriptor(vm.bootstrap).testAndSetPir(VECTOR);
      vm.bootstrap.pcpu!.notify(100_000);
    });
    assertEquals([met.took.length, met.exits], [1, []]);
  });

  it("changes nothing where nothing was posted, and costs the guest a moment", () => {
    const met = meet((vm) => vm.bootstrap.pcpu!.notify(100_000));
    assertEquals([met.took, met.exits, vectors(met.vm.bootstrap.lapic, 0x200)], [[], [], []]);
    const undisturbed = meet(() => {});
    assertEquals(met.vm.bootstrap.time - undisturbed.vm.bootstrap.time, met.vm.cost.postedProcessing);
  });

  it("waits for the host where another interrupt arrives at the same time: that exits, and entry synchronizes", () => {
    const met = meet((vm) => {
      post(vm);
      vm.bootstrap.pcpu!.notify(100_000);
      vm.bootstrap.pcpu!.interrupt(100_000);
    });
    assertEquals(met.exits.map(([name]) => name), ["EXTERNAL_INTERRUPT"]);
    assertEquals([met.took.length, met.injected], [1, 0], "delivered by hardware behind the entry");
    assertGreater(met.vm.bootstrap.lastPcpu!.notifiedAt, 1e9, "and the notification has been taken");
  });

  it("is an ordinary exit where APICv is inhibited: KVM finds what was posted, and injects it", () => {
    const met = meet((vm) => {
      assertEquals(vm.bootstrap.lapic.apicvActive, false);
      post(vm);
      vm.bootstrap.pcpu!.notify(100_000);
    }, (vm) => setApicvInhibit(vm, "BLOCKIRQ", true));
    assertEquals(met.exits.map(([name]) => name), ["EXTERNAL_INTERRUPT", "MSR_WRITE"]); // The second is its EOI.
    assertEquals([met.took.length, met.injected], [1, 1]);
    assertEquals(pir(met.vm.bootstrap), []);
  });

  it("means nothing to a vCPU whose APIC is disabled but an exit", () => {
    const rig = tryingRig({ vm: { acceleration: "ipiv", trace: 1 << 12 } });
    const { vm } = rig;
    new Script(vm.engine, "somebody", function* () {
      yield 100_000;
      post(vm);
      vm.bootstrap.pcpu!.notify(100_000);
    });
    rig.finish(function* (cpu) {
      yield cpu.wrmsr(0x1b, 0xfee0_0100);
      yield cpu.cpuid(0);
      yield cpu.sti();
      const from = mark(vm);
      yield cpu.work(200_000);
      assertEquals(exits(vm, from).map(([name]) => name), ["EXTERNAL_INTERRUPT"]);
      assertEquals(shown(vm.bootstrap), "41 ON nv=f2 ndst=0", "it stays where it is");
      assertEquals(vectors(vm.bootstrap.lapic, 0x200), []);
      yield cpu.cli();
    });
  });
});

describe("a vCPU that goes to sleep", () => {
  it("is woken at once for what was posted before it changed the vector: it interrupts its own CPU", () => {
    const vm = still({ vcpus: 2, acceleration: "ipiv" }, { pcpus: 4 });
    const [, sleeper] = vm.vcpus;
    setUp(sleeper.lapic, "x2apic");
    const pcpu = put(sleeper, "polls");
    // What hardware posts meanwhile notifies a CPU that is in the host: nobody hears it.
    descriptor(sleeper).testAndSetPir(VECTOR);
    descriptor(sleeper).requestNotification();
    sleeper.polling = false;
    vm.engine.running = sleeper;
    const spent = sleeper.time;
    straight(sleeper.backend.put()!);
    assertEquals(sleeper.time - spent, vm.cost.kick);
    assertEquals(shown(sleeper), "41 ON nv=f1 ndst=0");
    vm.scheduler.release(sleeper);
    sleeper.asleep = true;
    assertEquals(pcpu.sleepers.size, 1);
    vm.machine.run(sleeper.clock + vm.cost.ipiLatency);
    assert(!sleeper.asleep && sleeper.ready === false && sleeper.pcpu === pcpu, "on its CPU again");
  });

  it("sleeps on when its CPU is told to wake others: it asks its own descriptor (pi_wakeup_handler)", () => {
    const vm = still({ vcpus: 3, acceleration: "ipiv" }, { pcpus: 1 });
    const [, posted, other] = vm.vcpus;
    for (const vcpu of [posted, other]) put(vcpu, "sleeps with IF=1");
    const [pcpu] = vm.scheduler.pcpus;
    assertEquals(pcpu.sleepers.size, 2);
    descriptor(posted).testAndSetPir(VECTOR);
    descriptor(posted).requestNotification();
    for (const sleeper of pcpu.sleepers) sleeper.wakeIfPosted();
    assertEquals([posted.woken, other.woken], [true, false]);
  });

  it("leaves the list of sleepers when it is on a CPU again, whichever that is", () => {
    const vm = still({ vcpus: 2, acceleration: "ipiv" }, { pcpus: 2 });
    const [, sleeper] = vm.vcpus;
    const [first, second] = vm.scheduler.pcpus;
    put(sleeper, "sleeps with IF=1");
    assertEquals([first.sleepers.size, shown(sleeper)], [1, "nv=f1 ndst=0"]);
    put(vm.bootstrap, "runs in the host"); // On the first CPU: the sleeper must go elsewhere.
    put(sleeper, "runs in the host");
    assertEquals(sleeper.pcpu, second);
    assertEquals([first.sleepers.size, shown(sleeper)], [0, "nv=f2 ndst=1"]);
  });

  it("changes nothing on its descriptor without IPI virtualization: whoever posts wakes it", () => {
    const vm = still({ vcpus: 2, acceleration: "apicv" }, { pcpus: 2 });
    const [, sleeper] = vm.vcpus;
    setUp(sleeper.lapic, "x2apic");
    const pcpu = put(sleeper, "sleeps with IF=1");
    assertEquals([pcpu.sleepers.size, shown(sleeper)], [0, "nv=f2 ndst=0"]);
    request(sleeper.lapic, VECTOR);
    assert(sleeper.woken);
  });

  it("on the CPU that it was on before clears SN alone, and looks at PIR only if SN was set", () => {
    const vm = still({ acceleration: "ipiv" }, { pcpus: 1 });
    const { bootstrap } = vm;
    put(bootstrap, "is preempted");
    descriptor(bootstrap).testAndSetPir(VECTOR);
    assertEquals(shown(bootstrap), "41 SN nv=f2 ndst=0");
    put(bootstrap, "runs in the host");
    assertEquals(shown(bootstrap), "41 ON nv=f2 ndst=0");
    descriptor(bootstrap).clearOn();
    straight(vmx(bootstrap).load()!);
    assertEquals(shown(bootstrap), "41 nv=f2 ndst=0", "it was not preempted: nothing to make up for");
  });
});
