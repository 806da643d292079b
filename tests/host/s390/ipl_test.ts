import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { KVM_S390_RESETS, PGM_ADDRESSING, PGM_SPECIFICATION, type S390Cpu } from "../../../abi/mod.ts";
import { pfaultInit } from "../../../guest/mod.ts";
import { kernelResetFlags, type S390Vm } from "../../../host/mod.ts";
import { diagnose, type DiagResult, MEMORY } from "../../support/s390.ts";

const BLOCK = 0x10_0000;

/** DIAGNOSE 0x308 with the block's address in an even register, and the subcode in gpr 4. */
function ipl(subcode: number | bigint, address: number = BLOCK, prepare?: (vm: S390Vm) => void): DiagResult {
  return diagnose({
    fields: { r1: 2, r3: 4, d2: 0x308 },
    gprs: { 2: address, 3: 0x77, 4: subcode },
    ...(prepare === undefined ? {} : { prepare }),
  });
}

describe("DIAGNOSE 0x308 in the kernel", () => {
  it("asks user space for a reset, with or without clearing", () => {
    const { KVM_S390_RESET_CLEAR, KVM_S390_RESET_SUBSYSTEM, KVM_S390_RESET_CPU_INIT, KVM_S390_RESET_IPL } =
      KVM_S390_RESETS;
    const flags = KVM_S390_RESET_SUBSYSTEM | KVM_S390_RESET_CPU_INIT | KVM_S390_RESET_IPL;
    for (
      const [subcode, expected, ending] of [
        [3, flags | KVM_S390_RESET_CLEAR, "reset: load clear"],
        [4, flags, "reset: load normal, dump"],
      ] as const
    ) {
      const { vm, vcpu } = ipl(subcode);
      assertEquals([vcpu.resetFlags, vm.ending], [expected, ending]);
      assertEquals([...vm.userspaceExits], [["KVM_EXIT_S390_RESET", 1]]);
      assertEquals(vcpu.stats.instruction_diagnose_308, 1);
      assertEquals(vm.counters().kvm_s390_request_resets, 1);
    }
  });

  it("ends the handshake about page faults, and takes the prefix back", () => {
    const { vcpu } = diagnose({
      fields: { r1: 2, r3: 4, d2: 0x308 },
      gprs: { 4: 3 },
      *before(cpu: S390Cpu) {
        assert(yield* pfaultInit(cpu, BLOCK));
        yield cpu.store32(BLOCK, 0x8000);
        yield cpu.spx(BLOCK);
      },
    });
    assertEquals([vcpu.pfault.active, vcpu.pfault.select, vcpu.storage.prefix], [false, 0n, 0]);
  });

  it("looks at 16 bits of the subcode", () => {
    assertEquals(kernelResetFlags(0x1_0003n), kernelResetFlags(3n));
    fc.assert(fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (subcode) => {
      assertEquals(kernelResetFlags(subcode) === undefined, ![3n, 4n].includes(subcode & 0xffffn));
    }));
    assertEquals(ipl(0x1_0003).vm.ending, "reset: load clear");
  });
});

describe("DIAGNOSE 0x308 in user space", () => {
  it("refuses what kvm-unit-tests tries", () => {
    for (const subcode of [0x101, 0xffff, 0x1_0001, -1, 2, 7]) {
      const { pic, ilc, vm, gprs } = ipl(subcode);
      assertEquals([pic, ilc, gprs[3]], [PGM_SPECIFICATION, 4, 0x77n], `${subcode}`);
      assertEquals(vm.userspaceExits.get("KVM_EXIT_S390_SIEIC"), 1);
    }
    for (const subcode of [5, 6]) {
      assertEquals(ipl(subcode, BLOCK + 8).pic, PGM_SPECIFICATION, "not at a page");
      const odd = diagnose({ fields: { r1: 3, r3: 4, d2: 0x308 }, gprs: { 3: BLOCK, 4: subcode } });
      assertEquals(odd.pic, PGM_SPECIFICATION, "an odd register");
      assertEquals(ipl(subcode, MEMORY).pic, PGM_ADDRESSING);
    }
  });

  it("has no parameters at first, and stores those that were set", () => {
    const nothing = ipl(6);
    assertEquals([nothing.pic, nothing.gprs[3]], [0, 0x102n]);
    const stored = diagnose({
      fields: { r1: 2, r3: 4, d2: 0x308 },
      gprs: { 2: BLOCK + 0x1000, 3: 0, 4: 6 },
      *before(cpu: S390Cpu) {
        yield cpu.store32(BLOCK, 200);
        yield cpu.store8(BLOCK + 12, 2);
        yield cpu.store64(BLOCK + 192, 0x1234_5678_9abc_def0n);
        yield cpu.store64(BLOCK + 200, 0x5555n);
        yield cpu.diag308(5, BLOCK);
      },
    });
    assertEquals([stored.pic, stored.gprs[3]], [0, 1n]);
    assertEquals(stored.vm.words.read64(BLOCK + 0x1000 + 192), 0x1234_5678_9abc_def0n);
    assertEquals(stored.vm.words.read64(BLOCK + 0x1000 + 200), 0n, "what is behind the block is not of it");
  });

  it("takes the parameters of a device by FCP or by CCW, as long as QEMU wants each, and no others", () => {
    // hw/s390x/ipl.h: S390_IPLB_MIN_FCP_LEN, S390_IPLB_MIN_CCW_LEN; 5 is protected virtualization's, for subcode 8.
    const [ok, invalid] = [1n, 0x402n];
    for (
      const [type, length, expected] of [
        [0, 384, ok],
        [0, 383, invalid],
        [2, 200, ok],
        [2, 199, invalid],
        [2, 4096, ok],
        [2, 4097, invalid],
        [0, 0xffff_ffff, invalid],
        [0, 0, invalid],
        [1, 4096, invalid],
        [5, 4096, invalid],
      ] as const
    ) {
      const { pic, gprs, vm } = ipl(5, BLOCK, (vm) => {
        vm.words.write(BLOCK, 4, length);
        vm.words.write(BLOCK + 12, 1, type);
      });
      assertEquals([pic, gprs[3]], [0, expected], `type ${type}, length ${length}`);
      assertEquals(vm.ipl.parameters?.length, expected === ok ? length : undefined);
    }
  });

  it("takes any 200 bytes with QEMU 2.5, and gives back as many", () => {
    // sizeof(IplParameterBlock) in its hw/s390x/ipl.h.
    const { vm, pic, gprs } = diagnose({
      fields: { r1: 2, r3: 4, d2: 0x308 },
      gprs: { 2: BLOCK + 0x1000, 3: 0, 4: 6 },
      vm: { host: "kvm+qemu-2.5" },
      *before(cpu: S390Cpu) {
        yield cpu.store64(BLOCK, -1n);
        yield cpu.store64(BLOCK + 192, 0x1234n);
        yield cpu.store64(BLOCK + 200, 0x5555n);
        yield cpu.diag308(5, BLOCK);
        assertEquals(cpu.register(3), 1n);
      },
    });
    assertEquals([pic, gprs[3]], [0, 1n]);
    const stored = [0, 192, 200].map((offset) => vm.words.read64(BLOCK + 0x1000 + offset));
    assertEquals(stored, [2n ** 64n - 1n, 0x1234n, 0n]);
  });

  it("has no load normal of its own: only KVM asks for that reset", () => {
    const { pic, vm } = diagnose({
      fields: { r1: 2, r3: 4, d2: 0x308 },
      gprs: { 2: BLOCK, 4: 4 },
      vm: { host: "tcg-7.2" },
    });
    assertEquals([pic, vm.ending], [PGM_SPECIFICATION, undefined]);
  });

  it("resets for kexec and kdump, and goes on at the PSW that nobody planted here", () => {
    for (const subcode of [0, 1]) {
      const { pic, ilc, vm } = ipl(subcode);
      assertEquals([pic, ilc, vm.ending], [PGM_SPECIFICATION, 0, undefined]);
      assertEquals([...vm.userspaceExits], [["KVM_EXIT_S390_SIEIC", 1]]);
    }
  });
});
