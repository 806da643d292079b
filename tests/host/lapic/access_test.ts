import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, HostFailure } from "../../../host/mod.ts";
import { APIC_MODES, enter, read, tryingRig, write } from "../../support/apic.ts";

const PAGE = 0xfee0_0000;
/** The version register: it reads 0x00050014. */
const VERSION = PAGE + 0x030;
/** The LVT error register: software may write it, and nothing else happens. */
const LVT_ERROR = PAGE + 0x370;

/** What a guest of KVM without its MMIO-hole quirk finds at the APIC's page: user space, which answers zeros. */
const WITHOUT_HOLE = { disabledKvmQuirks: ["LAPIC_MMIO_HOLE"] } as const;

for (const backend of BACKENDS) {
  describe(`the page of an xAPIC (${backend})`, () => {
    it("is read by bytes, words and double words within the first four of a register's sixteen bytes", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        const reads: [op: () => number, value: number][] = [
          [() => cpu.load8(VERSION), 0x14],
          [() => cpu.load8(VERSION + 1), 0],
          [() => cpu.load8(VERSION + 2), 5],
          [() => cpu.load8(VERSION + 3), 0],
          [() => cpu.load16(VERSION), 0x14],
          [() => cpu.load16(VERSION + 1), 0x500],
          [() => cpu.load16(VERSION + 2), 5],
          [() => cpu.load32(VERSION), 0x5_0014],
        ];
        for (const [i, [op, value]] of reads.entries()) {
          yield op();
          assertEquals(cpu.rax, BigInt(value), `read ${i}`);
        }
      });
    });

    it("answers nothing to a read that leaves these four bytes", () => {
      const rig = tryingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        const reads = [
          () => cpu.load8(VERSION + 4),
          () => cpu.load8(VERSION + 15),
          () => cpu.load16(VERSION + 3),
          () => cpu.load32(VERSION + 1),
          () => cpu.load32(VERSION + 2),
          () => cpu.load32(VERSION + 12),
          () => cpu.load64(VERSION),
        ];
        for (const [i, op] of reads.entries()) {
          yield op();
          assertEquals(cpu.rax, 0n, `read ${i}`);
        }
      });
      assertEquals(rig.vm.counters()["kvm_apic"], undefined, "a register was read");
      assertEquals(rig.vm.counters()["kvm_userspace_exit"], undefined, "the access left the kernel");
    });

    it("is written by aligned double words; everything else is ignored", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield cpu.store32(LVT_ERROR, 0x1_00aa);
        const ignored = [
          () => cpu.store8(LVT_ERROR, 0x55),
          () => cpu.store16(LVT_ERROR, 0x55),
          () => cpu.store64(LVT_ERROR, 0x55),
          () => cpu.store32(LVT_ERROR + 1, 0x55),
          () => cpu.store32(LVT_ERROR + 4, 0x55),
          () => cpu.store32(LVT_ERROR - 2, 0x0055_0000),
        ];
        for (const [i, op] of ignored.entries()) {
          yield op();
          assertEquals(yield* read(cpu, "xapic", 0x370), 0x1_00aa, `write ${i}`);
        }
      });
    });

    it("is reached by read-modify-write instructions, one read and one write each", () => {
      const rig = tryingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        const before = rig.vm.counters()["kvm_apic"];
        yield cpu.xchg32(LVT_ERROR, 0x1_0042);
        assertEquals(cpu.eax, 0x1_0000);
        assertEquals(rig.vm.counters()["kvm_apic"], before + 2);
        assertEquals(yield* read(cpu, "xapic", 0x370), 0x1_0042);
      });
    });

    it("is split where an access crosses into it: what lies before is memory", () => {
      const rig = tryingRig({ vm: { backend } });
      const end = 0x20_0000; // of the rig's memory
      rig.vm.memory.write(end - 2, 2, 0xbeefn);
      rig.finish(function* (cpu) {
        yield cpu.wrmsr(0x1b, end + 0x900);
        yield cpu.load32(end - 2);
        assertEquals(cpu.eax, 0xbeef, "offset 0 is reserved: it reads zero");
        yield cpu.store32(end - 2, 0x5555_1234);
      });
      assertEquals(rig.vm.memory.read(end - 2, 2), 0x1234n);
    });
  });

  describe(`the page of an APIC that is not in xAPIC mode (${backend})`, () => {
    for (const [state, base] of [["x2APIC mode", 0xfee0_0d00], ["disabled", 0xfee0_0100]] as const) {
      it(`reads ones and ignores writes, which is KVM's quirk (${state})`, () => {
        const rig = tryingRig({ vm: { backend } });
        rig.finish(function* (cpu) {
          yield cpu.wrmsr(0x1b, base);
          yield cpu.load8(VERSION + 9);
          assertEquals(cpu.rax, 0xffn);
          yield cpu.load32(VERSION);
          assertEquals(cpu.rax, 0xffff_ffffn);
          yield cpu.load64(VERSION);
          assertEquals(cpu.rax, 0xffff_ffff_ffff_ffffn);
          yield cpu.store32(LVT_ERROR, 0x1_0042);
          yield cpu.wrmsr(0x1b, 0xfee0_0100);
          yield cpu.wrmsr(0x1b, 0xfee0_0900);
          assertEquals(yield* read(cpu, "xapic", 0x370), 0x1_0000);
        });
        assertEquals(rig.vm.counters()["kvm_userspace_exit"], undefined);
      });

      it(`is user space's without the quirk (${state})`, () => {
        const rig = tryingRig({ vm: { backend, ...WITHOUT_HOLE } });
        const seen: (bigint | undefined)[] = [];
        rig.vm.userspaceMmioDevice = {
          access(address, _bytes, value) {
            assertEquals(address, VERSION);
            seen.push(value);
            return 0x1234n;
          },
        };
        rig.finish(function* (cpu) {
          yield cpu.wrmsr(0x1b, base);
          yield cpu.load32(VERSION);
          assertEquals(cpu.eax, 0x1234);
          yield cpu.store32(VERSION, 7);
        });
        assertEquals(seen, [undefined, 7n]);
      });
    }
  });
}

describe("the page of an xAPIC that was moved", () => {
  it("answers at its new place, and not at the old one", () => {
    const rig = tryingRig();
    rig.finish(function* (cpu) {
      yield cpu.wrmsr(0x1b, 0xfee1_0900);
      yield cpu.load32(VERSION + 0x1_0000);
      assertEquals(cpu.eax, 0x5_0014);
      yield cpu.store32(LVT_ERROR, 0x1_0042);
      yield cpu.load32(LVT_ERROR + 0x1_0000);
      assertEquals(cpu.eax, 0x1_0000, "a write at the old place");
      yield cpu.rdmsr(0x1b);
      assertEquals(cpu.eax, 0xfee1_0900);
    });
    assertEquals(rig.vm.counters()["kvm_userspace_exit"], 1, "nobody is at the old place");
  });
});

describe("a read of an APIC register beyond its first four bytes", () => {
  const straddling = function* (cpu: X86Cpu) {
    yield cpu.load32(VERSION + 1);
  };

  it("leaked the host's stack before 2021 (quirk lapic-read-straddles, CVE-2021-47255)", () => {
    const rig = tryingRig({ machine: { quirks: ["lapic-read-straddles"] } });
    assertThrows(() => rig.run(straddling), HostFailure, "leaks its own stack");
  });

  it("does not any more, and did not where the read stays inside", () => {
    tryingRig().finish(straddling);
    tryingRig({ machine: { quirks: ["lapic-read-straddles"] } }).finish(function* (cpu) {
      yield cpu.load16(VERSION + 2);
    });
  });
});

describe("a local APIC", () => {
  for (const mode of APIC_MODES) {
    it(`is traced as kvm_apic at each access that KVM emulates, but for reads of the x2APIC ICR (${mode})`, () => {
      const rig = tryingRig();
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        const before = rig.vm.counters()["kvm_apic"];
        yield* write(cpu, mode, 0x370, 0x1_0000);
        yield* read(cpu, mode, 0x370);
        assertEquals(rig.vm.counters()["kvm_apic"], before + 2);
        yield* read(cpu, mode, 0x300);
        assertEquals(rig.vm.counters()["kvm_apic"], before + (mode === "xapic" ? 3 : 2));
      });
    });
  }
});
