import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  KVM_MAGIC_PAGE,
  type MachineFunction,
  ppcAsm,
  type PpcCpu,
  type SprName,
  SPRS,
} from "../../../abi/mod.ts";
import { mapMagicPage } from "../../../guest/mod.ts";
import type { PpcVm } from "../../../host/mod.ts";
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

  it("are none on 32-bit Book3S, where kernels read 0 from their numbers", () => {
    const read = ppcAsm.mfspr(3, SPRS.USPRG3);
    assertEquals(ppcOutcome({ host: "book3s-32-pr" }, [read], true).fault, "PROGRAM");
    const { r3, fault } = ppcOutcome({ host: "book3s-32-pr" }, [ppcAsm.mtspr(SPRS.SPRG3, 5), read]);
    assertEquals([r3, fault], [0n, undefined]);
  });
});
