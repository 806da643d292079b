import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { BACKENDS } from "../../../host/mod.ts";
import { still, tryingRig } from "../../support/apic.ts";
import { IOAPIC, readIoapic, writeIoapic } from "../../support/ioapic.ts";

for (const backend of BACKENDS) {
  describe(`the registers of the I/O APIC (${backend})`, () => {
    it("are an 82093AA's with 24 pins, each masked after reset", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        assertEquals(yield* readIoapic(cpu, 0x00), 0, "ID");
        assertEquals(yield* readIoapic(cpu, 0x01), 0x0017_0011, "version 0x11, highest entry 23");
        assertEquals(yield* readIoapic(cpu, 0x02), 0, "arbitration ID");
        for (let pin = 0; pin < 24; pin++) {
          assertEquals(yield* readIoapic(cpu, 0x10 + 2 * pin), 0x1_0000);
          assertEquals(yield* readIoapic(cpu, 0x11 + 2 * pin), 0);
        }
      });
    });

    it("let software set the ID, which is the arbitration ID too, and nothing of the version", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield* writeIoapic(cpu, 0x00, 0xffff_ffff);
        assertEquals(yield* readIoapic(cpu, 0x00), 0x0f00_0000);
        assertEquals(yield* readIoapic(cpu, 0x02), 0x0f00_0000);
        yield* writeIoapic(cpu, 0x02, 0);
        yield* writeIoapic(cpu, 0x01, 0);
        assertEquals(yield* readIoapic(cpu, 0x02), 0x0f00_0000);
        assertEquals(yield* readIoapic(cpu, 0x01), 0x0017_0011);
      });
    });

    it("let software set a redirection entry but for its delivery status and remote IRR", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        for (const pin of [0, 8, 23]) {
          yield* writeIoapic(cpu, 0x10 + 2 * pin, 0xffff_ffff);
          yield* writeIoapic(cpu, 0x11 + 2 * pin, 0xffff_ffff);
          assertEquals(yield* readIoapic(cpu, 0x10 + 2 * pin), 0xffff_afff);
          assertEquals(yield* readIoapic(cpu, 0x11 + 2 * pin), 0xffff_ffff);
          yield* writeIoapic(cpu, 0x10 + 2 * pin, 0x1_0000);
          yield* writeIoapic(cpu, 0x11 + 2 * pin, 0);
          assertEquals(yield* readIoapic(cpu, 0x10 + 2 * pin), 0x1_0000);
          assertEquals(yield* readIoapic(cpu, 0x11 + 2 * pin), 0);
        }
      });
    });

    it("read ones where there is no entry, and ignore writes there", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        for (const register of [0x03, 0x0f, 0x40, 0x41, 0xff]) {
          assertEquals(yield* readIoapic(cpu, register), 0xffff_ffff, register.toString(16));
          yield* writeIoapic(cpu, register, 0x40);
          assertEquals(yield* readIoapic(cpu, register), 0xffff_ffff);
        }
        assertEquals(yield* readIoapic(cpu, 0x10), 0x1_0000);
      });
    });

    it("are selected by eight bits", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield cpu.store32(IOAPIC, 0xabcd_ef01);
        yield cpu.load32(IOAPIC);
        assertEquals(cpu.eax, 0x01);
        yield cpu.load32(IOAPIC + 0x10);
        assertEquals(cpu.eax, 0x0017_0011);
      });
    });

    it("are read and written by one, two, four or eight bytes, the upper half of eight without effect", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield cpu.store8(IOAPIC, 0x01);
        yield cpu.load8(IOAPIC + 0x10);
        assertEquals(cpu.rax, 0x11n);
        yield cpu.load16(IOAPIC + 0x10);
        assertEquals(cpu.rax, 0x0011n);
        yield cpu.load64(IOAPIC + 0x10);
        assertEquals(cpu.rax, 0x0017_0011n);
        yield cpu.store16(IOAPIC, 0x11);
        yield cpu.store64(IOAPIC + 0x10, 0x0500_0000, 0xffff_ffff);
        assertEquals(yield* readIoapic(cpu, 0x11), 0x0500_0000);
        yield cpu.store8(IOAPIC + 0x10, 0x77);
        assertEquals(yield* readIoapic(cpu, 0x11), 0x77, "a narrow write is a whole one");
      });
    });

    it("are two: the rest of the window reads zeros, and there is no EOI register (version 0x20's)", () => {
      const rig = tryingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        for (const offset of [0x04, 0x11, 0x14, 0x20, 0x40, 0xf0]) {
          yield cpu.load32(IOAPIC + offset);
          assertEquals(cpu.eax, 0, offset.toString(16));
        }
        yield cpu.store32(IOAPIC + 0x40, 0x41);
      });
      assertEquals(rig.vm.counters()["kvm_ack_irq"], undefined);
      assertEquals(rig.vm.counters()["kvm_userspace_exit"], undefined, "256 bytes are the kernel's");
    });

    it("are user space's beyond the 256 bytes, and altogether where it has the I/O APIC", () => {
      for (const [ioapicInKernel, at] of [[true, IOAPIC + 0x100], [false, IOAPIC + 0x10]] as const) {
        const rig = tryingRig({ vm: { backend, ioapicInKernel } });
        rig.finish(function* (cpu) {
          yield cpu.load32(at);
          assertEquals(cpu.eax, 0);
        });
        assertEquals(rig.vm.counters()["kvm_userspace_exit"], 1);
      }
    });
  });
}

describe("the window of the I/O APIC", () => {
  it("ignores widths that it does not know: the parts of an access that crosses into its page", () => {
    const { ioapic } = still();
    ioapic.write(IOAPIC, 4, 1n);
    for (const bytes of [3, 5, 6, 7]) {
      ioapic.write(IOAPIC, bytes, 0n);
      assertEquals(ioapic.read(IOAPIC, bytes), 0n);
      assertEquals(ioapic.read(IOAPIC, 4), 1n, `${bytes} bytes`);
    }
  });
});
