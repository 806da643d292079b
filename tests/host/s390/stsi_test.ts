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
import {
  emulatedBlocks,
  nameVirtualMachine,
  type S390VmOptions,
  storeSystemInformation,
  virtualMachines,
} from "../../../host/mod.ts";
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
  });

  it("has QEMU name the virtual machine at length, behind KVM", () => {
    // insert_stsi_3_2_2: ext_name_encoding is 2, UTF-8; the UUID stays zeros.
    for (const host of ["kvm", "kvm+qemu-7.2", "kvm+qemu-2.5"] as const) {
      const { block, vm } = stsi(SELECT_322, undefined, { host });
      assertEquals([...bytes(block, 72, 24)], [0, 0, 0, 2, ...new Array(20).fill(0)]);
      assertEquals(new TextDecoder().decode(bytes(block, 2048, 9)), "KVMguest\0");
      assertEquals(block.subarray(96, 2048).some((byte) => byte !== 0), false);
      assertEquals(block.subarray(2056).some((byte) => byte !== 0), false);
      assertEquals([...vm.userspaceExits], [["KVM_EXIT_S390_STSI", 1]]);
    }
    assertEquals([...stsi({ gpr0: 0, gpr1: 0 }).vm.userspaceExits], [], "KVM tells the level alone");
  });

  it("names an emulated machine so, under the same control program", () => {
    const { block } = stsi(SELECT_322, undefined, { host: "tcg-7.2" });
    assertEquals([fromEbcdic(bytes(block, 44, 8)), fromEbcdic(bytes(block, 56, 9))], [
      "TCGguest",
      "KVM/Linux",
    ]);
    assertEquals([block[75], new TextDecoder().decode(bytes(block, 2048, 9))], [2, "TCGguest\0"]);
  });

  it("tells of the machine and the partition too where it is emulated, and leaves gpr 0", () => {
    const ask = (level: number, selector1: number, selector2: number) => {
      const gpr0 = level * 0x1000_0000 + selector1;
      const found = stsi({ gpr0, gpr1: selector2 }, undefined, { host: "tcg-7.2", vcpus: 3 });
      assertEquals([found.pic, found.cc, found.gpr0], [0, 0, BigInt(gpr0)]);
      assertEquals([...found.vm.userspaceExits], []);
      const used: [number, number[]][] = [];
      for (const [at, byte] of found.block.entries()) {
        if (byte === 0) continue;
        const last = used.at(-1);
        if (last !== undefined && last[0] + last[1].length === at) last[1].push(byte);
        else used.push([at, [byte]]);
      }
      return used;
    };
    const qemu = (length: number) => [...toEbcdic("QEMU", length)];
    const repeated = [...toEbcdic("QEMUQEMUQEMUQEMU")];
    // Offsets: SysIB_111 and so on in QEMU's target/s390x/cpu.h.
    assertEquals(ask(1, 1, 1), [
      [32, [...qemu(16), ...toEbcdic("8561")]],
      [64, [...qemu(16), ...qemu(16), ...qemu(4)]],
    ]);
    assertEquals(ask(1, 2, 1), [[80, [...repeated, ...qemu(4)]]]);
    assertEquals(ask(1, 2, 2), [[32, [0x44, 0x3a, 0xfc, 0x29]], [37, [3]], [39, [3]]]);
    assertEquals(ask(2, 2, 1), [[80, [...repeated, ...qemu(4)]]]);
    assertEquals(ask(2, 2, 2), [
      [35, [0x80]],
      [37, [3]],
      [39, [3]],
      [44, qemu(8)],
      [54, [3, 0xe8]],
      [73, [3]],
    ]);
    for (const [gpr0, gpr1] of [[0x1000_0001, 2], [0x1000_0002, 3], [0x2000_0001, 1], [0x3000_0001, 1]]) {
      assertEquals(stsi({ gpr0, gpr1 }, undefined, { host: "tcg-7.2" }).cc, 3);
    }
  });

  it("tells an emulated CPU its own address", () => {
    const blocks = emulatedBlocks({ cpus: 9, name: "TCGguest" }, 7);
    for (const name of ["1.2.1", "2.2.1"]) assertEquals([...bytes(blocks(name)!, 102, 2)], [0, 7]);
    assertEquals(blocks("1.1.2"), undefined);
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

  it("names blocks by function code and selectors", () => {
    const blocks = (which: string) => which === "1.1.1" ? new Uint8Array(4096) : undefined;
    const ask = (gpr0: bigint, gpr1: bigint) =>
      storeSystemInformation({ gpr0, gpr1, address: 0n, problemState: false }, blocks);
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
    let block: Uint8Array = new Uint8Array(4096);
    for (let level = 1; level <= 12; level++) {
      block = virtualMachines({ cpus: level, name: `level${level}` }, block);
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
        const block = virtualMachines({ cpus: 1, name: "KVMguest" }, outer);
        assertEquals(block[31], (reserved << 4) | Math.min(count + 1, 8));
        assertEquals([...block.subarray(2048)], [...outer.subarray(2048)]);
      }),
      { numRuns: 20 },
    );
  });
});

describe("extended names", () => {
  const decode = (block: Uint8Array, level: number) =>
    new TextDecoder().decode(bytes(block, 2048 + 256 * level, 256)).replace(/\0+$/, "");

  it("move down with their levels, up to eight", () => {
    let block: Uint8Array<ArrayBufferLike> | undefined;
    for (let level = 1; level <= 12; level++) {
      block = virtualMachines({ cpus: 1, name: "KVMguest" }, block);
      nameVirtualMachine(block, `the name of level ${level}`);
      assertEquals(
        Array.from({ length: 8 }, (_, i) => decode(block!, i)),
        Array.from({ length: 8 }, (_, i) => i < level ? `the name of level ${level - i}` : ""),
      );
    }
  });

  it("end at the first level that has none, or does not say how it is written", () => {
    for (const forget of ["encoding", "name"] as const) {
      let block: Uint8Array = new Uint8Array(4096);
      for (let level = 0; level < 3; level++) {
        block = virtualMachines({ cpus: 1, name: "KVMguest" }, block) as Uint8Array<ArrayBuffer>;
        nameVirtualMachine(block, `level ${level}`);
      }
      // The middle one of three forgets.
      if (forget === "encoding") block[32 + 64 + 43] = 0;
      else block.fill(0, 2048 + 256, 2048 + 512);
      const next = virtualMachines({ cpus: 1, name: "KVMguest" }, block);
      nameVirtualMachine(next, "new");
      assertEquals([0, 1, 2, 3].map((level) => decode(next, level)), ["new", "level 2", "", ""]);
    }
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
    const outer = virtualMachines({ cpus: 1, name: "ZVM" });
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
