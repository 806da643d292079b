import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  assembleInstruction,
  conditionCode,
  decodeCall,
  decodeS390,
  decodeSubchannelId,
  diagCode,
  DIAGNOSES,
  DISABLED_WAIT_PSW_MASK,
  disassembleInstruction,
  encodeCall,
  encodeNotification,
  encodePfaultCancel,
  encodePfaultToken,
  encodeSubchannelId,
  fromEbcdic,
  hypervisorOf,
  isValidPsw,
  KERNEL_PSW_MASK,
  LOWCORE,
  PFAULT_BLOCK,
  programInterruptionName,
  PSW_MASK_BA,
  PSW_MASK_EA,
  S390_BLOCK,
  S390_CONVENTION,
  S390_DIAG,
  S390_FORMS,
  S390_HYPERCALLS,
  type S390HypercallArgs,
  s390HypercallName,
  type S390Register,
  splitRing,
  SYSIB_322,
  SYSIB_322_ENTRY,
  SYSIB_322_EXT_NAMES,
  SYSIB_322_VM,
  toEbcdic,
  unitsToBytes,
  USER_PSW_MASK,
  WAIT_PSW_MASK,
} from "../../abi/mod.ts";

const hexOf = (bytes: Iterable<number>) =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const register = fc.nat(15);

describe("DIAGNOSE", () => {
  it("has the bytes that an assembler gives it", () => {
    const golden: readonly (readonly [r1: number, r3: number, code: number, bytes: string])[] = [
      [2, 4, 0x500, "83240500"],
      [0, 0, 0x44, "83000044"],
      [1, 2, 0x258, "83120258"],
      [3, 1, 0x308, "83310308"],
      [2, 4, 0x501, "83240501"],
    ];
    for (const [r1, r3, d2, bytes] of golden) {
      assertEquals(hexOf(assembleInstruction(S390_DIAG, "big", { r1, r3, b2: 0, d2 })), bytes);
    }
  });

  it("is the same after it has been assembled and found again, whatever its fields", () => {
    const fields = fc.record({ r1: register, r3: register, b2: register, d2: fc.nat(0xfff) }, {
      noNullPrototype: true,
    });
    fc.assert(fc.property(fields, (fields) => {
      const bytes = assembleInstruction(S390_DIAG, "big", fields);
      assertEquals(disassembleInstruction(S390_DIAG, "big", bytes), fields);
      assertEquals(decodeS390(bytes), { name: "DIAG", length: 4, fields });
    }));
  });

  it("has no room for what its fields cannot hold", () => {
    for (const wrong of [{ r1: 16 }, { r3: -1 }, { b2: 16 }, { d2: 0x1000 }, { d2: 0.5 }]) {
      assertThrows(
        () => assembleInstruction(S390_DIAG, "big", wrong),
        RangeError,
        "Cannot assemble DIAGNOSE",
      );
    }
  });

  it("has a code of 16 bits, base and displacement together", () => {
    assertEquals(diagCode({ b2: 0, d2: 0x500 }, () => 0x123n), 0x500, "register 0 is no base");
    assertEquals(diagCode({ b2: 5, d2: 0x100 }, (register) => register === 5 ? 0x400n : 0n), 0x500);
    assertEquals(diagCode({ b2: 1, d2: 0x500 }, () => 0xffff_ffff_ffff_0000n), 0x500, "the rest is cut off");
    fc.assert(fc.property(u64, fc.nat(0xfff), (base, d2) => {
      assertEquals(diagCode({ b2: 7, d2 }, () => base), Number((base + BigInt(d2)) % 0x1_0000n));
    }));
  });

  it("knows its functions by the codes of diagnose_codes", () => {
    // asm/sie.h: 10, 44, 9c, 204, 258, 288, 308, 500, 501; two of them nobody serves here.
    const codes = Object.values(DIAGNOSES).map(({ code }) => code);
    assertEquals(codes, [0x10, 0x44, 0x9c, 0x258, 0x308, 0x500, 0x501]);
  });
});

describe("the calls of DIAGNOSE 0x500", () => {
  it("are a namespace of their own", () => {
    assertEquals(Object.values(S390_HYPERCALLS).map(({ nr }) => nr), [0, 1, 2, 3, 4]);
    // KVM_HC_VAPIC_POLL_IRQ is 1 on x86; here that is a reset.
    assertEquals(s390HypercallName(1n), "KVM_S390_VIRTIO_RESET");
    assertEquals(s390HypercallName(11n), undefined, "KVM_HC_SCHED_YIELD");
    assertEquals(s390HypercallName(1n << 32n), undefined, "all 64 bits count");
  });

  it("take and give whole registers, unlike any other architecture's", () => {
    fc.assert(
      fc.property(
        u64,
        fc.array(u64, { maxLength: 6 }),
        fc.constantFrom("wide", "narrow"),
        (number, args, mode) => {
          const registers = encodeCall(S390_CONVENTION, { number, arguments: args }, mode as "wide");
          const read = (name: S390Register) => registers[name] ?? 0n;
          const back = decodeCall(S390_CONVENTION, read, mode as "wide");
          assertEquals(back.number, number);
          assertEquals(back.arguments.slice(0, args.length), args);
          assertEquals(back.arguments.length, 6);
        },
      ),
    );
    assertThrows(
      () => encodeCall(S390_CONVENTION, { number: 0n, arguments: [1n, 2n, 3n, 4n, 5n, 6n, 7n] }, "wide"),
      RangeError,
      "Cannot pass 7 arguments on s390: allowed are up to 6",
    );
  });

  it("have arguments that the compiler checks", () => {
    const right: S390HypercallArgs<"KVM_S390_VIRTIO_CCW_NOTIFY"> = { subchannel: 1, queue: 2n, cookie: 0 };
    // @ts-expect-error: an argument is missing
    const few: S390HypercallArgs<"KVM_S390_VIRTIO_CCW_NOTIFY"> = { subchannel: 1, queue: 2n };
    // @ts-expect-error: an argument has another name
    const wrong: S390HypercallArgs<"KVM_S390_VIRTIO_RESET"> = { device: 1 };
    // @ts-expect-error: x86's calls are not here
    const foreign: S390HypercallArgs<"KVM_HC_SEND_IPI"> = { icr: 1 };
    assert([right, few, wrong, foreign].every((args) => Object.keys(args).length > 0));
  });
});

describe("the PSW", () => {
  it("may be what the architecture allows", () => {
    for (const mask of [KERNEL_PSW_MASK, USER_PSW_MASK, WAIT_PSW_MASK, DISABLED_WAIT_PSW_MASK]) {
      assert(isValidPsw({ mask, address: 0xffff_ffff_ffff_fffen }));
      assert(!isValidPsw({ mask, address: 1n }), "instructions are at even addresses");
    }
    assert(isValidPsw({ mask: 0n, address: 0xff_fffen }));
    assert(!isValidPsw({ mask: 0n, address: 0x100_0000n }), "24-bit addresses");
    assert(isValidPsw({ mask: PSW_MASK_BA, address: 0x7fff_fffen }));
    assert(!isValidPsw({ mask: PSW_MASK_BA, address: 0x8000_0000n }), "31-bit addresses");
    assert(!isValidPsw({ mask: PSW_MASK_EA, address: 0n }), "extended without basic addressing");
    for (const bit of [63n, 61n, 60n, 59n, 51n, 39n, 33n, 30n, 0n]) {
      assert(!isValidPsw({ mask: KERNEL_PSW_MASK | (1n << bit), address: 0n }), `bit ${63n - bit}`);
    }
  });

  it("has its condition code in bits 18 and 19", () => {
    for (let cc = 0; cc < 4; cc++) assertEquals(conditionCode(BigInt(cc) << 44n), cc);
  });
});

describe("structures that guest and host share", () => {
  it("have their fields where the kernel's headers have them", () => {
    const lowcore = Object.fromEntries(
      Object.entries(LOWCORE.fields).filter(([name]) => !name.startsWith("pad")).map(([name, { offset }]) => [
        name,
        offset,
      ]),
    );
    assertEquals(lowcore, {
      ext_params: 0x80,
      ext_cpu_addr: 0x84,
      ext_int_code: 0x86,
      svc_ilc: 0x88,
      svc_code: 0x8a,
      pgm_ilc: 0x8c,
      pgm_code: 0x8e,
      restart_old_psw: 0x120,
      external_old_psw: 0x130,
      svc_old_psw: 0x140,
      program_old_psw: 0x150,
      mcck_old_psw: 0x160,
      io_old_psw: 0x170,
      restart_psw: 0x1a0,
      external_new_psw: 0x1b0,
      svc_new_psw: 0x1c0,
      program_new_psw: 0x1d0,
      mcck_new_psw: 0x1e0,
      io_new_psw: 0x1f0,
      ext_params2: 0x11b8,
    });
    assertEquals(PFAULT_BLOCK.size, 40);
    assertEquals(Object.values(PFAULT_BLOCK.fields).map(({ offset }) => offset), [0, 2, 4, 6, 8, 16, 24, 32]);
    assertEquals([SYSIB_322.fields.count.offset, SYSIB_322.fields.vm.offset], [31, SYSIB_322_VM]);
    assertEquals([SYSIB_322.fields.ext_names.offset, SYSIB_322.size], [SYSIB_322_EXT_NAMES, 4096]);
    const { cpus_total, name, caf, cpi, evmne, uuid } = SYSIB_322_ENTRY.fields;
    assertEquals([cpus_total, name, caf, cpi, evmne, uuid].map(({ offset }) => offset), [
      4,
      12,
      20,
      24,
      43,
      48,
    ]);
    assertEquals(SYSIB_322_ENTRY.size, 64);
  });

  it("hold a pfault handshake as bytes", () => {
    const token = encodePfaultToken({ tokenAddress: 0x2b0n, selectMask: 1n << 48n, compareMask: 1n << 48n });
    assertEquals(
      hexOf(token),
      "0258000000050002" + "00000000000002b0" + "0001000000000000" + "0001000000000000" + "8000000000000000",
    );
    assertEquals(hexOf(encodePfaultCancel()), "0258000100050002" + "0".repeat(64));
  });
});

describe("a subchannel's word", () => {
  it("has its fields where asm/schid.h has them", () => {
    assertEquals(encodeSubchannelId({ number: 0 }), 0x0001_0000);
    assertEquals(encodeSubchannelId({ number: 0x1234, ssid: 3 }), 0x0007_1234);
    assertEquals(encodeSubchannelId({ cssid: 0xfe, m: true, number: 0xffff }), 0xfe09_ffff);
  });

  it("is the same after it has been encoded and decoded, unless it names no subchannel", () => {
    const id = fc.record({ cssid: fc.nat(0xff), m: fc.boolean(), ssid: fc.nat(3), number: fc.nat(0xffff) }, {
      noNullPrototype: true,
    });
    fc.assert(fc.property(id, fc.nat(15), (id, zeros) => {
      const word = encodeSubchannelId(id);
      const named = id.m || id.cssid === 0;
      assertEquals(decodeSubchannelId(word), named ? id : undefined);
      assertEquals(decodeSubchannelId(word & ~0x1_0000), undefined, "bit 16 must be 1");
      assertEquals(
        decodeSubchannelId((word | (zeros << 20)) >>> 0),
        named ? id : undefined,
        "nobody looks at 23:20",
      );
    }));
  });

  it("has no room for more", () => {
    for (
      const wrong of [{ number: 0x1_0000 }, { number: 0, ssid: 4 }, { number: 0, cssid: 256 }, {
        number: 0.5,
      }]
    ) {
      assertThrows(() => encodeSubchannelId(wrong), RangeError, "Cannot encode a subchannel");
    }
  });

  it("is notified with a queue in bits 15:0, and what comes next above", () => {
    assertEquals([encodeNotification(5), encodeNotification(5, 0x1_8001)], [5n, 0x8001_0005n]);
  });
});

describe("EBCDIC", () => {
  it("spells KVM as STSI does", () => {
    assertEquals(hexOf(toEbcdic("KVM/Linux", 16)), "d2e5d461d38995a4a7" + "40".repeat(7));
    assertEquals(hexOf(toEbcdic("z/VM")), "a961e5d4");
    assertEquals(fromEbcdic(toEbcdic("KVMguest")), "KVMguest");
  });

  it("is the same after there and back, for all that it writes", () => {
    const written = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .-/,_:";
    assertEquals(fromEbcdic(toEbcdic(written)), written);
    assertEquals(new Set(toEbcdic(written)).size, written.length);
    assertThrows(() => toEbcdic("ü"), RangeError, 'Cannot write "ü" in EBCDIC');
    assertThrows(() => toEbcdic("too long", 4), RangeError, "allowed are 4 characters");
  });

  it("tells the hypervisors apart that Linux knows", () => {
    assertEquals(hypervisorOf(toEbcdic("KVM/Linux", 16)), "KVM");
    assertEquals(hypervisorOf(toEbcdic("z/VM    7.3.0", 16)), "z/VM");
    assertEquals(hypervisorOf(toEbcdic("PR/SM", 16)), undefined);
  });
});

describe("a block of text", () => {
  it("has every instruction at its site, where a CPU finds it again", () => {
    const bytes = S390_BLOCK.bytes("big");
    assertEquals(bytes.length, 0x100);
    for (const { opcode, units, text } of S390_FORMS) {
      const [site, behind] = [S390_BLOCK.site[opcode], S390_BLOCK.behind[opcode]];
      assertEquals(hexOf(bytes.subarray(site, behind)), hexOf(unitsToBytes(units, 2, "big")), text);
      const found = decodeS390(bytes.subarray(site, behind));
      assertEquals(found?.length, behind - site, text);
      assertEquals(found!.name.toLowerCase(), text.split(" ")[0].replace("nopr", "bcr"), text);
    }
    assertEquals(decodeS390(bytes.subarray(S390_BLOCK.pad)), undefined, "the pad is no instruction");
  });

  it("is decoded with whatever registers and displacements stand there", () => {
    // lg %r7, -8(%r3,%r12), by the Principles of Operation: RXY-a, the displacement in two parts.
    const bytes = Uint8Array.from([0xe3, 0x73, 0xcf, 0xf8, 0xff, 0x04]);
    assertEquals(decodeS390(bytes), {
      name: "LG",
      length: 6,
      fields: { r1: 7, x2: 3, b2: 12, d2: 0xff8, dh2: 0xff },
    });
  });
});

describe("program interruptions", () => {
  it("have the names of the Principles of Operation", () => {
    assertEquals([1, 2, 5, 6].map(programInterruptionName), [
      "operation exception",
      "privileged-operation exception",
      "addressing exception",
      "specification exception",
    ]);
    assertEquals(programInterruptionName(0x2a), "program interruption 0x2a");
  });
});

describe("a split ring", () => {
  it("has its parts where virtio has them", () => {
    // virtio 1.2, 2.7: 16 bytes a descriptor; 6 bytes and 2 an entry; 6 bytes and 8 an entry.
    const ring = splitRing(0x1000, 8);
    assertEquals([ring.descriptor(0), ring.descriptor(7)], [0x1000, 0x1070]);
    assertEquals([ring.availIdx, ring.availRing(0), ring.availRing(7)], [0x1082, 0x1084, 0x1092]);
    assertEquals([ring.usedIdx, ring.usedRing(0), ring.usedRing(7), ring.end], [
      0x109a,
      0x109c,
      0x10d4,
      0x10de,
    ]);
    for (const size of [0, 3, 65536]) assertThrows(() => splitRing(0, size), RangeError, "powers of two");
    assertThrows(() => splitRing(8, 4), RangeError, "multiples of 16");
  });
});
