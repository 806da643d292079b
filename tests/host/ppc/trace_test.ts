import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodePpc, MachineFault, PPC_NOP, PPC_SC1, ppcAsm, SPRS } from "../../../abi/mod.ts";
import { PPC_TP, type PpcVmOptions } from "../../../host/mod.ts";
import { CODE, routine, runPpc } from "../../support/ppc.ts";

describe("KVM's emulation of privileged instructions", () => {
  it("is traced with the program counter as it is then: at the instruction, or where that has led", () => {
    const traced = (options: PpcVmOptions, word: number) => {
      const vm = runPpc({ ...options, trace: 64 }, function* (cpu) {
        yield cpu.mtspr("SRR0", CODE + 8);
        yield cpu.mfmsr();
        yield cpu.mtspr("SRR1", cpu.r3);
        try {
          yield cpu.call(CODE);
        } catch (error) {
          if (!(error instanceof MachineFault)) throw error;
        }
      }, { code: routine(word, PPC_NOP) });
      const records = [...vm.tracer.records()].filter(({ event, args }) =>
        event === PPC_TP.kvm_ppc_instr && args[0] === word
      );
      return records.map(({ args: [, pc, emulate] }) => [pc, emulate]);
    };
    const trap = encodePpc("tw", { TO: 31, RA: 0, RB: 0 });
    assertEquals(traced({}, ppcAsm.mfspr(3, SPRS.SPRG1)), [[CODE, 0]]);
    assertEquals(traced({}, ppcAsm.mfspr(3, 4)), [[0x700, 0]]); // the program interrupt has begun, and is no failure
    assertEquals(traced({}, encodePpc("rfid", {})), [[CODE + 8, 0]]);
    assertEquals(traced({}, trap), [[0x700, 0]]);
    assertEquals(traced({ host: "e500v2" }, trap), [[CODE, 0]]); // it is only queued
    assertEquals(traced({}, 0), [[CODE, 2]]);
    assertEquals(traced({ order: "little" }, 0x0200_0044), [[CODE + 4, 0]]);
  });
});

/** A word that stands for `sc 1` where that does not trap (book3s_emulate.c, OP_31_XOP_FAKE_SC1). */
const FAKE_SC1 = 0x7c00_0268;

describe("an exit to KVM-PR", () => {
  /** What is traced from the exit of a word on, up to the next exit. */
  const traced = (word: number) => {
    const vm = runPpc({ trace: 64 }, function* (cpu) {
      try {
        yield cpu.call(CODE);
      } catch (error) {
        if (!(error instanceof MachineFault)) throw error;
      }
      yield cpu.mfmsr();
    }, { code: routine(word) });
    const names = new Map(Object.entries(PPC_TP).map(([name, number]) => [number, name]));
    const records = [...vm.tracer.records()];
    const exits = records.flatMap(({ event }, at) => event === PPC_TP.kvm_exit ? [at] : []);
    const first = exits.find((at) => records[at].args[4] === word)!;
    const next = exits.find((at) => at > first)!;
    return records.slice(first + 1, next).map(({ event, args }) => [names.get(event), ...args.slice(0, 2)]);
  };

  it("ends with kvm_book3s_reenter: 0, or 1 where KVM has emulated an instruction (RESUME_GUEST_NV)", () => {
    assertEquals(traced(ppcAsm.mfspr(3, SPRS.PVR)).at(-1), ["kvm_book3s_reenter", 1, CODE + 4]);
    assertEquals(traced(ppcAsm.mfspr(3, 4)).at(-1), ["kvm_book3s_reenter", 1, 0x700]); // the emulation did not fail
    assertEquals(traced(0), [["kvm_ppc_instr", 0, CODE], ["kvm_book3s_reenter", 0, 0x700]]);
  });

  it("ends so for a call of PAPR's too, before user space hears of it: 2, 3 where the call was emulated", () => {
    // book3s_pr.c, kvmppc_handle_exit_pr: RESUME_HOST, and RESUME_HOST_NV.
    assertEquals(traced(PPC_SC1), [["kvm_book3s_reenter", 2, CODE + 4], ["kvm_userspace_exit", 19, 0]]);
    assertEquals(traced(FAKE_SC1), [
      ["kvm_ppc_instr", FAKE_SC1, CODE],
      ["kvm_book3s_reenter", 3, CODE + 4],
      ["kvm_userspace_exit", 19, 0],
    ]);
  });
});
