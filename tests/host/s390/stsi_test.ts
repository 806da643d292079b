import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  fromEbcdic,
  MachineFault,
  PGM_ADDRESSING,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  S390_OP_STSI,
  type S390Cpu,
  type S390Guest,
  toEbcdic,
} from "../../../abi/mod.ts";
import { detectMachineType, s390EnterUserMode, type S390MachineType } from "../../../guest/mod.ts";
import { type S390VmOptions, storeSystemInformation, virtualMachines } from "../../../host/mod.ts";
import { MEMORY, runS390 } from "../../support/s390.ts";

const PAGE = 0x10_0000;

interface Stsi {
  readonly gpr0: number | bigint;
  readonly gpr1: number | bigint;
  readonly address?: number;
}

/** One STSI: its program interruption, condition code and gpr 0. */
function stsi(
  { gpr0, gpr1, address = PAGE }: Stsi,
  before?: (cpu: S390Cpu) => S390Guest,
  options: S390VmOptions = {},
) {
  const found = { pic: 0, cc: -1, gpr0: 0n };
  const vm = runS390(function* main(cpu) {
    if (before !== undefined) yield* before(cpu);
    const op = cpu.stsi(0, [0, 0], address);
    cpu.setRegister(0, gpr0);
    cpu.setRegister(1, gpr1);
    try {
      yield op;
    } catch (error) {
      if (!(error instanceof MachineFault)) throw error;
      found.pic = error.code;
    }
    found.cc = cpu.cc;
    found.gpr0 = cpu.register(0);
  }, options);
  return { ...found, vm, block: vm.words.bytes(PAGE, 4096)! };
}

const bytes = (block: Uint8Array, at: number, length: number) => block.subarray(at, at + length);
const SELECT_322 = { gpr0: 0x3000_0002, gpr1: 2 };

describe("STSI", () => {
  it("tells the level: a virtual machine", () => {
    const { pic, cc, gpr0, vm } = stsi({ gpr0: 0, gpr1: 0 });
    assertEquals([pic, cc, gpr0], [0, 0, 0x3000_0000n]);
    assertEquals(vm.vcpus[0].stats.instruction_stsi, 1);
  });

  it("tells 3.2.2 as KVM fills it", () => {
    const { pic, cc, gpr0, block } = stsi(SELECT_322, undefined, { vcpus: 3 });
    assertEquals([pic, cc, gpr0], [0, 0, 0n]);
    assertEquals(block[31], 1, "one level");
    assertEquals(
      [...bytes(block, 36, 8)],
      [0, 3, 0, 3, 0, 0, 0, 0],
      "CPUs: total, configured, standby, reserved",
    );
    assertEquals(fromEbcdic(bytes(block, 44, 8)), "KVMguest");
    assertEquals([...bytes(block, 52, 4)], [0, 0, 3, 0xe8], "1000: the whole machine's capability");
    assertEquals(
      Array.from(bytes(block, 56, 16), (byte) => byte.toString(16)).join(" "),
      "d2 e5 d4 61 d3 89 95 a4 a7 40 40 40 40 40 40 40",
    );
    assertEquals(block.subarray(72).some((byte) => byte !== 0), false);
  });

  it("names an emulated machine so, under the same control program", () => {
    const { block } = stsi(SELECT_322, undefined, { host: "tcg-7.2" });
    assertEquals([fromEbcdic(bytes(block, 44, 8)), fromEbcdic(bytes(block, 56, 9))], [
      "TCGguest",
      "KVM/Linux",
    ]);
  });

  it("refuses what is reserved, not on a page, not in memory, or not for users", () => {
    for (const bit of [8n, 15n, 27n]) {
      assertEquals(stsi({ gpr0: 0x3000_0002n | (1n << bit), gpr1: 2 }).pic, PGM_SPECIFICATION);
    }
    assertEquals(stsi({ gpr0: 0x3000_0002, gpr1: 0x1_0002 }).pic, PGM_SPECIFICATION);
    assertEquals(stsi({ ...SELECT_322, address: PAGE + 8 }).pic, PGM_SPECIFICATION);
    assertEquals(stsi({ ...SELECT_322, address: MEMORY }).pic, PGM_ADDRESSING);
    assertEquals(stsi(SELECT_322, s390EnterUserMode).pic, PGM_PRIVILEGED_OP);
    assertEquals(stsi({ gpr0: 0, gpr1: 0, address: PAGE + 8 }).pic, 0, "the level is stored nowhere");
    assertEquals(stsi({ gpr0: 0x1n << 32n, gpr1: 0x1n << 32n }).cc, 0, "only 32 bits of each count");
  });

  it("has condition code 3 for what there is not", () => {
    for (
      const [gpr0, gpr1] of [
        [0x4000_0000, 0],
        [0xe000_0000, 0],
        [0xf000_0001, 2],
        [0x3000_0001, 2],
        [0x3000_0002, 1],
        [0x1000_0001, 1], // hardware's own, which is not modelled
      ]
    ) {
      const { pic, cc, block } = stsi({ gpr0, gpr1 });
      assertEquals([pic, cc], [0, 3], gpr0.toString(16));
      assertEquals(block.some((byte) => byte !== 0), false);
    }
    // An unknown function is refused before its reserved bits are looked at.
    assertEquals(stsi({ gpr0: 0x4000_0100, gpr1: 0 }).cc, 3);
  });

  it("hands blocks of the hardware through where there are some", () => {
    const host = {
      cpus: 1,
      name: "KVMguest",
      hardware: (which: string) => which === "1.1.1" ? new Uint8Array(4096) : undefined,
    };
    const ask = (gpr0: bigint, gpr1: bigint) =>
      storeSystemInformation({ gpr0, gpr1, address: 0n, problemState: false }, host);
    assertEquals(typeof ask(0x1000_0001n, 1n), "object");
    assertEquals(ask(0x1000_0001n, 2n), "no-data");
  });
});

describe("STSI's condition code", () => {
  it("is 0 again after one that was 3", () => {
    runS390(function* main(cpu) {
      yield cpu.stsi(4, [0, 0], PAGE);
      assertEquals(cpu.cc, 3);
      yield cpu.stsi(3, [2, 2], PAGE);
      assertEquals(cpu.cc, 0);
    });
  });
});

describe("nested levels", () => {
  it("move down, up to eight", () => {
    let block = new Uint8Array(4096);
    for (let level = 1; level <= 12; level++) {
      block = Uint8Array.from(
        virtualMachines({ cpus: level, name: `level${level}`, outer: block, hardware: () => undefined }),
      );
      assertEquals(block[31], Math.min(level, 8));
      const behind = block.subarray(32 + 64 * block[31], 2048);
      assertEquals(behind.some((byte) => byte !== 0), false, "nothing behind the last level");
      const names = Array.from(
        { length: block[31] },
        (_, i) => fromEbcdic(bytes(block, 32 + 64 * i + 12, 8)).trim(),
      );
      assertEquals(names, Array.from({ length: Math.min(level, 8) }, (_, i) => `level${level - i}`));
    }
  });

  it("leave the reserved half of the count's byte, and the extended names, as they were", () => {
    fc.assert(
      fc.property(fc.nat(15), fc.nat(8), (reserved, count) => {
        const outer = new Uint8Array(4096).fill(0x5a, 2048);
        outer[31] = (reserved << 4) | count;
        const block = virtualMachines({ cpus: 1, name: "KVMguest", outer, hardware: () => undefined });
        assertEquals(block[31], (reserved << 4) | Math.min(count + 1, 8));
        assertEquals([...block.subarray(2048)], [...outer.subarray(2048)]);
      }),
      { numRuns: 20 },
    );
  });
});

describe("a guest that asks who its host is", () => {
  const detect = (options: S390VmOptions): S390MachineType | undefined => {
    let found: S390MachineType | undefined;
    runS390(function* main(cpu) {
      found = yield* detectMachineType(cpu, PAGE);
    }, options);
    return found;
  };

  it("finds KVM on top of z/VM", () => {
    const outer = virtualMachines({ cpus: 1, name: "ZVM", hardware: () => undefined });
    outer.set(toEbcdic("z/VM    7.3.0", 16), 32 + 24);
    assertEquals(detect({ outerSystem: outer }), "KVM");
  });

  it("takes a machine for a partition whose level is none of a virtual machine", () => {
    let found: S390MachineType | undefined;
    runS390(function* main(cpu) {
      // STSI is patched away: its answer stays what was asked, level 0.
      yield cpu.store32(cpu.top!.block.address + cpu.layout.site[S390_OP_STSI], 0x0700_0700);
      found = yield* detectMachineType(cpu, PAGE);
    });
    assertEquals(found, "LPAR");
  });

  it("finds KVM, which an emulator says too", () => {
    for (const host of ["kvm", "kvm+qemu-2.5", "tcg-7.2"] as const) assertEquals(detect({ host }), "KVM");
  });
});
