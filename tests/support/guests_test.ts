import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { GP_VECTOR, X2APIC_EOI, X2APIC_ICR } from "../../abi/mod.ts";
import { BACKENDS } from "../../host/mod.ts";
import { DATA, enableX2apic, enableXapic, finish, ONLINE, Rig, startAps } from "./guests.ts";

describe("a rig", () => {
  it("runs one program to its end", () => {
    const vm = finish(function* (cpu) {
      yield cpu.store32(DATA, 7);
    });
    assertEquals(vm.memory.word(DATA), 7);
  });

  it("delivers what a program raises to the function that handles it, in 64-bit and 32-bit mode", () => {
    for (const mode of ["64-bit", "32-bit"] as const) {
      const seen: number[] = [];
      new Rig({ mode }).on(GP_VECTOR, function* (cpu) {
        seen.push(cpu.vector, cpu.errorCode);
        cpu.skip();
        yield cpu.iret();
      }).finish(function* (cpu) {
        yield cpu.rdmsr(0x1234);
      });
      assertEquals(seen, [GP_VECTOR, 0]);
    }
  });

  for (const backend of BACKENDS) {
    it(`starts application processors that take interrupts (${backend})`, () => {
      const rig = new Rig({ vm: { backend, vcpus: 3 } });
      const took: number[] = [];
      rig.on(0x40, function* (cpu) {
        took.push(cpu.vector);
        yield cpu.xadd32(DATA, 1);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).aps(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.xadd32(DATA + 4, 1);
        yield cpu.sti();
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 2);
        for (let ready = 0; ready < 2; ready = cpu.eax) yield cpu.load32(DATA + 4);
        yield cpu.wrmsr(X2APIC_ICR, 0xc_4040);
        for (let done = 0; done < 2; done = cpu.eax) yield cpu.load32(DATA);
      });
      assertEquals(rig.word(ONLINE), 2);
      assertEquals(took, [0x40, 0x40]);
    });
  }

  it("enables an xAPIC", () => {
    const vm = finish(function* (cpu) {
      yield* enableXapic(cpu);
    });
    assertEquals(vm.bootstrap.lapic.softwareEnabled, true);
  });
});
