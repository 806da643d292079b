import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  assembleInstruction,
  BOOK3S_INTERRUPTS,
  decodeCall,
  decodePpc,
  EV_BYTE_CHANNEL_MAX_BYTES,
  EV_STATUS,
  EV_VENDORS,
  evStatusName,
  HCALL_STUB,
  HCALL_WORDS_BOOKE_HV,
  HCALL_WORDS_FAIL,
  HCALL_WORDS_PR,
  isPrivilegedPpc,
  KVM_SC_MAGIC_R0,
  PPC_BLOCKS,
  PPC_BOOKE_HV_CONVENTION,
  PPC_BOOKE_PR_CONVENTION,
  PPC_HYPERCALLS,
  PPC_PR_CONVENTION,
  type PpcCallRegister,
  PpcCpu,
  type PpcHypercallName,
  ppcHypercallName,
  ppcHypercallToken,
  ppcOpcode,
  ppcText,
  raises,
  sprIsPrivileged,
  sprName,
} from "../../../abi/mod.ts";
import { ppcHypercall } from "../../../guest/mod.ts";

describe("the table of PowerPC hypercalls", () => {
  it("has ePAPR's numbers, with a hole at 8, and KVM's", () => {
    const names = Object.keys(PPC_HYPERCALLS) as PpcHypercallName[];
    const epapr = names.filter((name) => PPC_HYPERCALLS[name].vendor === "EV_EPAPR_VENDOR_ID");
    assertEquals(epapr.map((name) => PPC_HYPERCALLS[name].nr), [
      1,
      2,
      3,
      4,
      5,
      6,
      7,
      9,
      10,
      11,
      12,
      13,
      14,
      15,
      16,
    ]);
    for (const name of names) assertEquals(ppcHypercallName(ppcHypercallToken(name)), name);
    assertEquals(ppcHypercallName(0x1_0008), undefined);
    assertEquals(ppcHypercallName(3), undefined); // KVM's number without its vendor
  });

  it("has the vendors and the status codes of the header", () => {
    assertEquals(Object.values(EV_VENDORS), [0, 1, 2, 3, 4, 5, 6, 7, 42]);
    assertEquals(Object.values(EV_STATUS), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    assertEquals([EV_STATUS.EV_EINVAL, EV_STATUS.EV_UNIMPLEMENTED], [8, 12]);
    assertEquals([evStatusName(12n), evStatusName(-1), evStatusName(14)], [
      "EV_UNIMPLEMENTED",
      undefined,
      undefined,
    ]);
    assertEquals(EV_BYTE_CHANNEL_MAX_BYTES, 16);
  });

  it("fits the registers: eight arguments, and eight results behind the status", () => {
    for (const { args, results } of Object.values(PPC_HYPERCALLS)) {
      assertEquals(args.length <= 8 && results.length <= 8, true);
    }
  });

  it("types calls: a wrong name of an argument or of a call does not compile", () => {
    const cpu = new PpcCpu("book3s-64");
    // Nothing runs: the calls are only built.
    ppcHypercall(cpu, 0, "EV_IDLE", {});
    ppcHypercall(cpu, 0, "KVM_HC_PPC_MAP_MAGIC_PAGE", { realAddress: 0, effectiveAddress: 0n });
    // @ts-expect-error an argument's name is wrong
    ppcHypercall(cpu, 0, "KVM_HC_PPC_MAP_MAGIC_PAGE", { realAddress: 0, virtualAddress: 0 });
    // @ts-expect-error an argument is missing
    ppcHypercall(cpu, 0, "EV_INT_SET_MASK", { interrupt: 1 });
    // @ts-expect-error the call has no arguments
    ppcHypercall(cpu, 0, "KVM_HC_FEATURES", { features: 1 });
    // @ts-expect-error x86's call
    assertThrows(() => ppcHypercall(cpu, 0, "KVM_HC_SEND_IPI", {}).next());
  });
});

describe("the conventions of PowerPC", () => {
  it("have the words that KVM_PPC_GET_PVINFO gives, in the guest's byte order", () => {
    assertEquals(HCALL_WORDS_PR, [0x3c00_4b56, 0x6000_4d21, 0x4400_0002, 0x6000_0000]);
    assertEquals(HCALL_WORDS_BOOKE_HV, [0x4400_0022, 0x6000_0000, 0x6000_0000, 0x6000_0000]);
    assertEquals(HCALL_WORDS_FAIL, [0x0800_0048, 0x3860_ffff, 0x4800_0008, 0xffff_6038]);
    assertEquals(HCALL_STUB, [0x3860_ffff, 0x6000_0000, 0x6000_0000, 0x6000_0000, 0x4e80_0020]);
    assertEquals(KVM_SC_MAGIC_R0, 0x4b56_4d21);
    assertEquals(
      new TextDecoder().decode(assembleInstruction(PPC_PR_CONVENTION.instructions[0], "big").slice(2, 4)),
      "KV",
    );
    const [hv] = PPC_BOOKE_HV_CONVENTION.instructions;
    assertEquals([...assembleInstruction(hv, "little").slice(0, 4)], [0x22, 0, 0, 0x44]);
  });

  it("raise the interrupt that each family has, by its own number, where a user program calls", () => {
    // asm/kvm_asm.h: BOOK3S_INTERRUPT_SYSCALL, BOOKE_INTERRUPT_SYSCALL, BOOKE_INTERRUPT_PROGRAM.
    assertEquals(PPC_PR_CONVENTION.errors.fromUserMode, raises("SYSCALL", 0xc00));
    assertEquals(PPC_BOOKE_PR_CONVENTION.errors.fromUserMode, raises("SYSCALL", 8));
    assertEquals(PPC_BOOKE_HV_CONVENTION.errors.fromUserMode, raises("PROGRAM", 6));
  });

  it("pass any call through registers: what is cut is cut as the mode says", () => {
    const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    const call = fc.record({ number: u64, arguments: fc.array(u64, { maxLength: 8 }) });
    fc.assert(fc.property(call, fc.constantFrom("wide" as const, "narrow" as const), (call, mode) => {
      const cpu = new PpcCpu("book3s-64").loadHypercall(call, mode);
      const read = (register: PpcCallRegister) => cpu.register(Number(register.slice(1)));
      const seen = decodeCall(PPC_PR_CONVENTION, read, mode);
      const width = mode === "wide" ? 64 : 32;
      assertEquals(seen.number, BigInt.asUintN(32, call.number));
      assertEquals(
        seen.arguments.slice(0, call.arguments.length),
        call.arguments.map((value) => BigInt.asUintN(width, value)),
      );
    }));
  });
});

describe("PowerPC text", () => {
  it("has one site for an instruction, and the word of that instruction there", () => {
    for (const [core, layout] of Object.entries(PPC_BLOCKS)) {
      const view = new DataView(layout.bytes("big").buffer);
      for (const { opcode, units } of layout.forms) {
        assertEquals(view.getUint32(layout.site[opcode]), units[0], core);
        assertEquals(layout.behind[opcode] - layout.site[opcode], 4);
        assertEquals(decodePpc(units[0]) === undefined, false);
      }
    }
  });

  it("fits between the vectors of Book3S", () => {
    assertEquals([PPC_BLOCKS["book3s-64"].size, PPC_BLOCKS["book3s-32"].size], [0x100, 0x100]);
    const text = ppcText("book3s-64");
    for (const vector of Object.values(BOOK3S_INTERRUPTS).filter((at) => at % 0x100 === 0)) {
      text.addAt(vector, function* handler(cpu) {
        yield cpu.isync();
      });
    }
  });

  it("lacks what a core lacks, and says so", () => {
    assertThrows(() => new PpcCpu("booke").ld(0), RangeError, "a core of booke does not have it");
    assertThrows(() => new PpcCpu("book3s-64").wrteei(1), RangeError, "does not have it");
    assertThrows(() => new PpcCpu("book3s-64").mtspr("TCR", 1), RangeError, "does not have it");
    assertThrows(
      () => new PpcCpu("book3s-64").mtspr("PVR", 1),
      RangeError,
      "guest functions have no site for it",
    );
    assertThrows(() => ppcOpcode("nop"), RangeError);
    assertThrows(() => new PpcCpu("booke").work(2 ** 32), RangeError, "CTR");
    const cpu = new PpcCpu("book3s-64");
    cpu.mfmsr();
    assertThrows(() => cpu.tlbsync(), Error, "mfmsr r3 was built before it and not yielded");
  });
});

describe("names", () => {
  it("are those that people and traces use", () => {
    assertEquals([sprName(0x110), sprName(26), sprName(999)], ["SPRG0", "SRR0", "spr 999"]);
    assertEquals([sprIsPrivileged(0x110), sprIsPrivileged(0x104)], [true, false]);
    assertEquals(isPrivilegedPpc(decodePpc(0x7c60_00a6)!), true);
  });
});
