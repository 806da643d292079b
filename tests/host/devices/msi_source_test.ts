import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi } from "../../../abi/mod.ts";
import { BACKENDS, MsiSource, type MsiSourceOptions } from "../../../host/mod.ts";
import { enter, tryingRig, write } from "../../support/apic.ts";

const VECTOR = 0x51;
const MESSAGE = encodeMsi({ vector: VECTOR }, "xapic");

/** Runs a guest for 10 million cycles beside a source; tells when it took an interrupt. */
function beside(backend: (typeof BACKENDS)[number], options: Partial<MsiSourceOptions>, interruptsOn = true) {
  const rig = tryingRig({ vm: { backend } });
  const source = new MsiSource(rig.vm, {
    message: MESSAGE,
    count: 5,
    start: 1e6,
    interval: () => 1e6,
    ...options,
  });
  const times: number[] = [];
  rig.on(VECTOR, function* (cpu) {
    yield cpu.rdtsc();
    times.push(cpu.eax);
    yield* write(cpu, "x2apic", 0x0b0, 0);
  }).finish(function* (cpu) {
    yield* enter(cpu, "x2apic");
    if (interruptsOn) yield cpu.sti();
    yield cpu.work(10_000_000);
    yield cpu.sti();
    yield cpu.work(10_000);
    yield cpu.cli();
  });
  return { source, times, vm: rig.vm };
}

for (const backend of BACKENDS) {
  describe(`a source of messages (${backend})`, () => {
    it("sends so many, at its times, and then none", () => {
      const { source, times, vm } = beside(backend, {});
      assertEquals([source.sent, source.accepted, times.length], [5, 5, 5]);
      times.forEach((time, i) => assertEquals(Math.floor(time / 1e6), i + 1));
      times.forEach((time, i) => assertEquals(time - (i + 1) * 1e6 < 10_000, true));
      assertEquals(vm.counters()["kvm_msi_set_irq"], 5);
    });

    it("waits as long between two as it is told", () => {
      const { times } = beside(backend, { interval: (n) => (n + 1) * 500_000 });
      assertEquals(times.map((time) => Math.floor(time / 500_000)), [2, 3, 5, 8, 12]);
    });

    it("is coalesced by a guest that does not look: one request bit, five messages", () => {
      const { source, times } = beside(backend, {}, false);
      assertEquals([source.sent, source.accepted, times.length], [5, 5, 1]);
    });

    it("tells apart what nobody accepted", () => {
      const message = encodeMsi({ vector: VECTOR, destination: 9 }, "xapic");
      const { source, times } = beside(backend, { message });
      assertEquals([source.sent, source.accepted, times.length], [5, 0, 0]);
    });

    it("sends nothing if it is to send none", () => {
      const { source, vm } = beside(backend, { count: 0 });
      assertEquals([source.sent, vm.counters()["kvm_msi_set_irq"]], [0, undefined]);
    });
  });
}
