import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, GuestError, type UserspaceDevice, type VmOptions } from "../../../host/mod.ts";
import { DATA, Rig } from "../../support/guests.ts";

const MMIO = 0xd000_0000;
const READ_ONLY = 0x40_0000;

/** Notes what reaches user space, and answers reads with 0x11, 0x22 ... */
class Recorder implements UserspaceDevice {
  readonly log: string[] = [];

  access(address: number, bytes: number, value: bigint | undefined): bigint | undefined {
    const what = value === undefined ? "read" : `write 0x${value.toString(16)}`;
    this.log.push(`${what}, ${bytes} at 0x${address.toString(16)}`);
    if (value !== undefined) return undefined;
    return BigInt("0x8877665544332211") & ((1n << BigInt(8 * bytes)) - 1n);
  }
}

/** Runs a program, and tells what reached user space. */
function userspace(program: (cpu: X86Cpu) => Generator<number, void, void>, vm: VmOptions = {}) {
  const rig = new Rig({ machine: { pcpus: 1 }, vm });
  const device = new Recorder();
  rig.vm.userspaceMmioDevice = device;
  rig.finish(program);
  return { log: device.log, vm: rig.vm };
}

for (const backend of BACKENDS) {
  describe(`an access outside memory slots (${backend})`, () => {
    it("is MMIO: user space gets address, size and value, and its answer is zero-extended", () => {
      const { log } = userspace(function* (cpu) {
        yield cpu.store8(MMIO + 1, 0x1ff);
        yield cpu.store64(MMIO + 8, 0x0506_0708, 0x0102_0304);
        yield cpu.store64(DATA, -1, -1); // RAX is all ones.
        yield cpu.load16(MMIO + 3);
        assertEquals(cpu.rax, 0x2211n);
        yield cpu.load64(MMIO);
        assertEquals(cpu.rax, 0x8877_6655_4433_2211n);
      }, { backend });
      assertEquals(log, [
        "write 0xff, 1 at 0xd0000001",
        "write 0x102030405060708, 8 at 0xd0000008",
        "read, 2 at 0xd0000003",
        "read, 8 at 0xd0000000",
      ]);
    });

    it("reads as 0 and is ignored where user space has no device", () => {
      const rig = new Rig({ vm: { backend } });
      rig.finish(function* (cpu) {
        yield cpu.store32(MMIO, 5);
        yield cpu.load32(MMIO);
        assertEquals(cpu.rax, 0n);
      });
      const { kvm_mmio, kvm_userspace_exit } = rig.vm.counters();
      // A write is one event; a read is one when it leaves unsatisfied and one when it is answered.
      assertEquals([kvm_mmio, kvm_userspace_exit], [3, 2]);
    });

    it("reads and then writes for a read-modify-write", () => {
      const { log } = userspace(function* (cpu) {
        yield cpu.xadd32(MMIO, 1);
        assertEquals(cpu.eax, 0x4433_2211);
        yield cpu.lockBts(MMIO, -1);
      }, { backend });
      assertEquals(log, [
        "read, 4 at 0xd0000000",
        "write 0x44332212, 4 at 0xd0000000",
        "read, 4 at 0xcffffffc",
        "write 0xc4332211, 4 at 0xcffffffc",
      ]);
    });

    it("that crosses a page is two: each part is MMIO or memory by itself", () => {
      const end = 2 ** 21;
      const { log, vm } = userspace(function* (cpu) {
        yield cpu.store32(end - 1, 0x0403_0201);
        yield cpu.load32(end - 1);
        assertEquals(cpu.eax, 0x3322_1101);
        yield cpu.store64(MMIO + 0xffd, 0x4433_2211, 0x8877_6655);
      }, { backend });
      assertEquals(log, [
        "write 0x40302, 3 at 0x200000",
        "read, 3 at 0x200000",
        "write 0x332211, 3 at 0xd0000ffd",
        "write 0x8877665544, 5 at 0xd0001000",
      ]);
      assertEquals(vm.memory.byte(end - 1), 1);
    });

    it("costs a page fault in KVM, and does so again on another page", () => {
      const exits = (program: (cpu: X86Cpu) => Generator<number, void, void>) =>
        userspace(program, { backend }).vm.exits();
      const [fault, marked] = backend === "vmx" ? ["EPT_VIOLATION", "EPT_MISCONFIG"] : ["npf", "npf"];
      const two = exits(function* (cpu) {
        yield cpu.load32(MMIO);
        yield cpu.load32(MMIO + 0x800);
        yield cpu.load32(MMIO + 0x1000);
      });
      // VMX tells pages that KVM has marked as MMIO from others.
      if (backend === "vmx") assertEquals([two[fault], two[marked]], [2, 1]);
      else assertEquals(two[fault], 3);
    });
  });

  describe(`a read-only slot (${backend})`, () => {
    const slots = [{ base: READ_ONLY, size: 8192, readonly: true }];

    it("is read like memory, and writes go to user space", () => {
      const { log, vm } = userspace(function* (cpu) {
        yield cpu.load32(READ_ONLY);
        assertEquals(cpu.eax, 0);
        yield cpu.store32(READ_ONLY, 5);
        yield cpu.load32(READ_ONLY);
        assertEquals(cpu.eax, 0);
        yield cpu.xchg32(READ_ONLY, 6);
        assertEquals(cpu.eax, 0);
      }, { backend, slots });
      assertEquals(log, ["write 0x5, 4 at 0x400000", "write 0x6, 4 at 0x400000"]);
      assertEquals(vm.memory.word(READ_ONLY), 0);
    });
  });
}

describe("memory that comes and goes", () => {
  it("is memory from the next access on, and MMIO again when it has gone", () => {
    const rig = new Rig();
    const device = new Recorder();
    rig.vm.userspaceMmioDevice = device;
    const { memory } = rig.vm;
    rig.finish(function* (cpu) {
      yield cpu.store32(READ_ONLY, 1);
      const slot = memory.addSlot({ base: READ_ONLY, size: 4096 });
      yield cpu.store32(READ_ONLY, 2);
      yield cpu.load32(READ_ONLY);
      assertEquals(cpu.eax, 2);
      memory.removeSlot(slot);
      yield cpu.store32(READ_ONLY, 3);
    });
    assertEquals(device.log, ["write 0x1, 4 at 0x400000", "write 0x3, 4 at 0x400000"]);
  });
});

describe("what only plain memory can hold", () => {
  it("is a word that a PAUSE loop spins on, and LIDT's operand", () => {
    const programs: [(cpu: X86Cpu) => number, string][] = [
      [(cpu) => cpu.pauseWhile(MMIO, 0), "a PAUSE loop can only spin on plain memory"],
      [(cpu) => cpu.lidt(MMIO), "the operand of lidt [rdi], or its code, is not in plain memory"],
    ];
    for (const [op, message] of programs) {
      const rig = new Rig();
      rig.start(function* program(cpu) {
        yield op(cpu);
      });
      const error = assertThrows(() => rig.vm.machine.run(), GuestError);
      assertStringIncludes(error.message, "program on vcpu 0");
      assertStringIncludes(error.message, message);
    }
  });
});
