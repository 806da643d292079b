import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  BOOK3S_INTERRUPTS,
  KVM_MAGIC_PAGE,
  type MachineFunction,
  ppcAsm,
  type PpcCpu,
  type SprName,
  SPRS,
} from "../../../abi/mod.ts";
import { mapMagicPage } from "../../../guest/mod.ts";
import type { PpcHostName, PpcVm } from "../../../host/mod.ts";
import { CODE, loadWords, ppcOutcome, routine, runPpc, STUB, withHypercalls } from "../../support/ppc.ts";

describe("registers that user programs read", () => {
  /** Writes the page, then reads by the number that does not trap, before and after an exit. */
  const story = (name: SprName, field: number): MachineFunction<PpcCpu> =>
    withHypercalls(function* (cpu) {
      yield* mapMagicPage(cpu, STUB);
      yield cpu.mtspr("SPRG3", 0x33);
      yield cpu.lwz(KVM_MAGIC_PAGE); // the page's first access is an exit
      const low = KVM_MAGIC_PAGE + field + 4;
      yield cpu.stw(low, 0x1234);
      yield cpu.call(CODE);
      assertEquals(cpu.r3 === 0x1234n, false, name);
      yield cpu.mfspr("PVR"); // an exit, and an entry
      yield cpu.call(CODE);
      assertEquals(cpu.r3, 0x1234n, name);
    });

  it("follow the page at the next entry alone, so a kernel that writes the page must read the page", () => {
    const vms: PpcVm[] = [];
    for (
      const [host, name, field] of [
        ["book3s-64-pr", "USPRG3", 0x38],
        ["e500v2", "SPRG4R", 0xd0],
        ["e500v2", "SPRG7R", 0xe8],
      ] as const
    ) {
      vms.push(runPpc({ host }, story(name, field), {
        prepare: (vm) => loadWords(vm, CODE, routine(ppcAsm.mfspr(3, SPRS[name]))),
      }));
    }
    assertEquals(vms.length, 3);
  });

  it("are read by user programs too, and written by none", () => {
    const { r3, fault } = ppcOutcome({}, [ppcAsm.mfspr(3, SPRS.USPRG3)], true);
    assertEquals([r3, fault], [0n, undefined]);
    assertEquals(ppcOutcome({}, [ppcAsm.mtspr(SPRS.USPRG3, 5)], true).fault, "PROGRAM");
  });

  it("are the processor's own where kernels have a state of theirs: what is written is read at once", () => {
    const reads = (host: PpcHostName, written: number, read: number) =>
      ppcOutcome({ host }, [ppcAsm.mtspr(written, 5), ppcAsm.mfspr(3, read)]).r3;
    assertEquals(reads("book3s-64-hv", SPRS.SPRG3, SPRS.USPRG3), 5n);
    assertEquals(reads("none", SPRS.SPRG3, SPRS.USPRG3), 5n);
    assertEquals(reads("e500mc", SPRS.SPRG4, SPRS.SPRG4R), 5n);
    assertEquals(reads("e500mc", SPRS.SPRG7, SPRS.SPRG7), 5n);
  });

  it("are none on 32-bit Book3S, where kernels read 0 from their numbers", () => {
    const read = ppcAsm.mfspr(3, SPRS.USPRG3);
    assertEquals(ppcOutcome({ host: "book3s-32-pr" }, [read], true).fault, "PROGRAM");
    const { r3, fault } = ppcOutcome({ host: "book3s-32-pr" }, [ppcAsm.mtspr(SPRS.SPRG3, 5), read]);
    assertEquals([r3, fault], [0n, undefined]);
  });
});

describe("special-purpose registers", () => {
  it("that POWER8 lacks do nothing to its kernels, but for some numbers; KVM-PR reads 0 for its guest's", () => {
    // QEMU, target/ppc/translate.c, gen_op_mfspr and gen_mtspr: 0 to write, and 0, 4, 5 and 6 to read are illegal.
    const absent = [SPRS.SPRG4, SPRS.MAS0, SPRS.HIOR, SPRS.SPRG4R, 7];
    const result = (host: PpcHostName, word: number, user = false) => {
      const { r3, fault, vm } = ppcOutcome({ host }, [word], user);
      return [r3, fault, vm.exits().H_EMUL_ASSIST];
    };
    for (const host of ["book3s-64-hv", "none"] as const) {
      for (const spr of absent) {
        assertEquals(result(host, ppcAsm.mfspr(3, spr)), [3n, undefined, undefined]);
        assertEquals(result(host, ppcAsm.mtspr(spr, 5)), [3n, undefined, undefined]);
        assertEquals(result(host, ppcAsm.mfspr(3, spr), true)[1], "PROGRAM");
      }
      const asked = host === "none" ? undefined : 1;
      for (const spr of [0, 4, 5, 6]) {
        assertEquals(result(host, ppcAsm.mfspr(3, spr)), [3n, "PROGRAM", asked]);
        assertEquals(result(host, ppcAsm.mtspr(spr, 5))[1], spr === 0 ? "PROGRAM" : undefined);
      }
    }
    for (const spr of absent) assertEquals(result("book3s-64-pr", ppcAsm.mfspr(3, spr))[0], 0n);
  });

  it("say where vectors are: HIOR on KVM-PR, where it moves them all", () => {
    for (const host of ["book3s-64-pr", "book3s-32-pr"] as const) {
      let moved = 0;
      runPpc({ host }, function* (cpu) {
        const hior = BigInt(cpu.layout.size + 0x1_0000 - BOOK3S_INTERRUPTS.SYSCALL);
        cpu.setRegister(5, hior);
        yield cpu.call(CODE);
        assertEquals(cpu.r3, hior);
        yield cpu.sc();
        assertEquals(moved, 1);
      }, {
        code: routine(ppcAsm.mtspr(SPRS.HIOR, 5), ppcAsm.mfspr(3, SPRS.HIOR)),
        functions: [function* handler() {
          yield* [];
          moved++;
        }],
      });
    }
  });

  it("say where vectors are: IVOR0 to IVOR15 on BookE, whether the processor has the interrupt or not", () => {
    for (const host of ["e500v2", "e500mc"] as const) {
      for (let spr = SPRS.IVOR0; spr <= SPRS.IVOR15; spr++) {
        const { r3, fault } = ppcOutcome({ host }, [ppcAsm.mtspr(spr, 5), ppcAsm.mfspr(3, spr)]);
        assertEquals([r3, fault], [5n, undefined], `IVOR${spr - SPRS.IVOR0}`);
      }
    }
  });
});
