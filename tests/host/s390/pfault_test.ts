import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  encodePfaultCancel,
  encodePfaultToken,
  KVM_S390_PFAULT_TOKEN_INVALID,
  PFAULT_ALREADY_ACTIVE,
  PFAULT_BLOCK,
  PFAULT_DONE,
  PFAULT_NOT_ACTIVE,
  PGM_ADDRESSING,
  PGM_SPECIFICATION,
  PSW_MASK_EXT,
  PSW_MASK_PSTATE,
  type S390Cpu,
} from "../../../abi/mod.ts";
import { s390StoreBytes } from "../../../guest/mod.ts";
import { Pfault, type PfaultMemory } from "../../../host/mod.ts";
import { diagnose, type DiagResult, MEMORY } from "../../support/s390.ts";

const BLOCK = 0x10_0000;
const TOKEN = encodePfaultToken({
  tokenAddress: 0x2b0n,
  selectMask: PSW_MASK_PSTATE,
  compareMask: PSW_MASK_PSTATE,
});
const CANCEL = encodePfaultCancel();

type FieldName = keyof typeof PFAULT_BLOCK.fields;

/** A block with another value in a field. */
function changed(bytes: Uint8Array, name: FieldName, value: number | bigint): Uint8Array {
  const copy = bytes.slice();
  const { offset, size } = PFAULT_BLOCK.fields[name];
  const view = new DataView(copy.buffer);
  if (size === 2) view.setUint16(offset, Number(value));
  else view.setBigUint64(offset, BigInt(value));
  return copy;
}

/** DIAGNOSE 0x258 with a block in gpr 8 and the result in gpr 11, after others of the same. */
function handshake(
  block: Uint8Array,
  { after = [], at = BLOCK }: { after?: Uint8Array[]; at?: number } = {},
): DiagResult {
  return diagnose({
    fields: { r1: 8, r3: 11, d2: 0x258 },
    gprs: { 8: at, 11: 0x77 },
    *before(cpu: S390Cpu) {
      for (const earlier of after) {
        yield* s390StoreBytes(cpu, BLOCK, earlier);
        yield cpu.diag258(BLOCK);
      }
      if (at + block.length <= MEMORY && (at & 7) === 0) yield* s390StoreBytes(cpu, at, block);
    },
  });
}

const result = ({ gprs }: DiagResult) => Number(gprs[11]);

describe("the pfault handshake", () => {
  it("begins, and is remembered", () => {
    const done = handshake(TOKEN);
    assertEquals([done.pic, result(done)], [0, PFAULT_DONE]);
    const { token, select, compare, active } = done.vcpu.pfault;
    assertEquals([token, select, compare, active], [0x2b0n, PSW_MASK_PSTATE, PSW_MASK_PSTATE, true]);
    assertEquals(done.vcpu.stats.instruction_diagnose_258, 1);
    assertEquals(done.gprs[8], BigInt(BLOCK), "only the register that R3 names has changed");
  });

  it("answers 8 where it has begun before, before it looks at what the block says", () => {
    for (const block of [TOKEN, changed(TOKEN, "zarch", 0), changed(TOKEN, "token_addr", 3)]) {
      const again = handshake(block, { after: [TOKEN] });
      assertEquals([again.pic, result(again)], [0, PFAULT_ALREADY_ACTIVE]);
      assertEquals(again.vcpu.pfault.token, 0x2b0n);
    }
  });

  it("ends, and answers 4 where there is nothing to end", () => {
    const end = handshake(CANCEL, { after: [TOKEN] });
    assertEquals([end.pic, result(end), end.vcpu.pfault.token], [
      0,
      PFAULT_DONE,
      KVM_S390_PFAULT_TOKEN_INVALID,
    ]);
    for (const after of [[], [TOKEN, CANCEL]]) {
      const nothing = handshake(CANCEL, { after });
      assertEquals([nothing.pic, result(nothing)], [0, PFAULT_NOT_ACTIVE]);
    }
    assertEquals(result(handshake(TOKEN, { after: [TOKEN, CANCEL] })), PFAULT_DONE, "it can begin again");
  });

  it("is refused for a wrong block, which changes nothing", () => {
    const wrong: readonly (readonly [block: Uint8Array, pic: number])[] = [
      [changed(TOKEN, "code", 0x259), PGM_SPECIFICATION],
      [changed(TOKEN, "parm_len", 4), PGM_SPECIFICATION],
      [changed(TOKEN, "parm_version", 1), PGM_SPECIFICATION],
      [changed(TOKEN, "parm_version", 3), PGM_SPECIFICATION],
      [changed(TOKEN, "token_addr", 0x2b4), PGM_SPECIFICATION],
      [changed(TOKEN, "compare_mask", PSW_MASK_PSTATE | 1n), PGM_SPECIFICATION],
      [changed(TOKEN, "zarch", 0), PGM_SPECIFICATION],
      [changed(TOKEN, "zarch", 0x8000_0000_0000_0001n), PGM_SPECIFICATION],
      [changed(TOKEN, "token_addr", MEMORY), PGM_ADDRESSING],
      [changed(TOKEN, "token_addr", 0xffff_ffff_ffff_fff8n), PGM_ADDRESSING],
      // QEMU knows no other subcode either.
      [changed(TOKEN, "subcode", 2), PGM_SPECIFICATION],
    ];
    for (const [block, pic] of wrong) {
      const refused = handshake(block);
      assertEquals([refused.pic, result(refused), refused.ilc], [pic, 0x77, 4]);
      assert(!refused.vcpu.pfault.active);
    }
    for (const name of ["token_addr", "select_mask", "compare_mask", "zarch"] as const) {
      const refused = handshake(changed(CANCEL, name, 8), { after: [TOKEN] });
      assertEquals(refused.pic, PGM_SPECIFICATION, name);
      assert(refused.vcpu.pfault.active);
    }
  });

  it("takes a longer block, and one whose compare mask is part of its select mask", () => {
    assertEquals(result(handshake(changed(TOKEN, "parm_len", 6))), PFAULT_DONE);
    assertEquals(result(handshake(changed(TOKEN, "compare_mask", 0))), PFAULT_DONE);
    assertEquals(result(handshake(changed(TOKEN, "select_mask", 2n ** 64n - 1n))), PFAULT_DONE);
  });

  it("needs its block on a doubleword, and in memory", () => {
    assertEquals(handshake(TOKEN, { at: BLOCK + 4 }).pic, PGM_SPECIFICATION);
    assertEquals(handshake(TOKEN, { at: MEMORY }).pic, PGM_ADDRESSING);
    assertEquals(handshake(TOKEN, { at: MEMORY - 8 }).pic, PGM_ADDRESSING, "its end is missing");
    assertEquals(
      handshake(TOKEN, { at: MEMORY + 4 }).pic,
      PGM_SPECIFICATION,
      "the alignment is looked at first",
    );
  });

  it("leaves other subcodes to user space", () => {
    const other = handshake(changed(TOKEN, "subcode", 2));
    assertEquals(other.vm.userspaceExits.get("KVM_EXIT_S390_SIEIC"), 1);
    assertEquals(handshake(changed(TOKEN, "zarch", 0)).vm.userspaceExits.size, 0);
  });
});

describe("whether a fault is told", () => {
  const memory: PfaultMemory = {
    backed: () => true,
    readReal: (address, bytes) =>
      address === 0x2b0n ? Uint8Array.from({ length: bytes }, (_, i) => i) : undefined,
  };
  const good = {
    pswMask: PSW_MASK_PSTATE | PSW_MASK_EXT,
    cr0: 0x2e0n,
    interruptPending: false,
    enabled: true,
  };
  const begun = (token: bigint = 0x2b0n) => {
    const pfault = new Pfault();
    Object.assign(pfault, { token, select: PSW_MASK_PSTATE, compare: PSW_MASK_PSTATE });
    return pfault;
  };

  it("depends on every one of its conditions", () => {
    assertEquals(begun().tokenFor(good, memory), 0x0001_0203_0405_0607n);
    assertEquals(new Pfault().tokenFor(good, memory), undefined, "no handshake");
    for (
      const wrong of [
        { pswMask: PSW_MASK_EXT }, // not in the problem state
        { pswMask: PSW_MASK_PSTATE }, // external interruptions are not taken
        { cr0: 0xe0n },
        { interruptPending: true },
        { enabled: false },
      ]
    ) assertEquals(begun().tokenFor({ ...good, ...wrong }, memory), undefined);
    assertEquals(begun(0x2b8n).tokenFor(good, memory), undefined, "the token cannot be read");
  });

  it("goes by the bits that were selected, and no others", () => {
    const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    fc.assert(fc.property(u64, u64, u64, (mask, select, bits) => {
      const pfault = new Pfault();
      Object.assign(pfault, { token: 0x2b0n, select, compare: select & bits });
      const told = pfault.tokenFor({ ...good, pswMask: mask | PSW_MASK_EXT }, memory) !== undefined;
      let expected = true;
      for (let bit = 0n; bit < 64n; bit++) {
        if (((select >> bit) & 1n) === 0n) continue;
        if ((((mask | PSW_MASK_EXT) ^ bits) >> bit & 1n) !== 0n) expected = false;
      }
      assertEquals(told, expected);
    }));
  });
});
