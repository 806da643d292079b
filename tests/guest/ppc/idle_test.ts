import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { MSR_EE, type PpcCpu, ppcFamily } from "../../../abi/mod.ts";
import { endNap, epaprInit, evIdle, idleRoutine, type Nap, useMagicPage } from "../../../guest/mod.ts";
import { PPC_HOSTS, type PpcVmOptions } from "../../../host/mod.ts";
import { CODE, DATA, nameOf, PR_HOSTS, runPpc, SPACE, STUB } from "../../support/ppc.ts";

const NAP: Nap = { routine: CODE, flag: DATA };
/** Where Linux has the routine: its guests have 32 bits. */
const HOSTS: readonly PpcVmOptions[] = [...PR_HOSTS, { host: "e500mc" } as const]
  .filter(({ host }) => PPC_HOSTS[host!].core !== "book3s-64");

function* tick(cpu: PpcCpu) {
  yield cpu.mtspr("DEC", 0x7fff_ffff);
  if (ppcFamily(cpu.core) === "booke") yield cpu.mtspr("TSR", 0x800_0000);
  yield* endNap(cpu, NAP);
}

/** Naps with a tick due after some cycles, and tells the cycles that the nap took. */
function nap(
  options: PpcVmOptions,
  cycles: number,
  patched: boolean,
): { took: number; exits: Record<string, number> } {
  let took = 0;
  let now = (): number => 0;
  const vm = runPpc(options, function* (cpu) {
    yield* epaprInit(cpu, {
      fdt: Number(cpu.r3),
      stub: STUB,
      idle: NAP.routine,
      order: options.order ?? "big",
    });
    if (patched) {
      const text = [{ from: CODE, to: CODE + 4 * idleRoutine(cpu.core).words.length }];
      assertEquals((yield* useMagicPage(cpu, { stub: STUB, text, space: SPACE })).outcome, "worked");
    }
    if (cpu.core === "booke") yield cpu.mtspr("TCR", 0x400_0000);
    yield cpu.mtspr("DEC", cycles);
    const begun = now();
    yield* evIdle(cpu, NAP);
    took = now() - begun;
    yield cpu.mfmsr();
    assertEquals(cpu.r3 & BigInt(MSR_EE), BigInt(MSR_EE));
    yield cpu.lwz(NAP.flag);
    assertEquals(cpu.r3, 0n);
  }, {
    handlers: { DECREMENTER: tick },
    prepare: (vm) => {
      now = () => vm.vcpus[0].clock;
    },
  });
  return { took, exits: vm.exits() };
}

describe("a CPU that waits in EV_IDLE", () => {
  for (const options of HOSTS) {
    it(`sleeps until its tick, and goes on behind the routine with interrupts enabled: ${nameOf(options)}`, () => {
      const { took } = nap(options, 1_000_000, false);
      assertEquals(took >= 900_000 && took < 1_050_000, true);
    });

    it(`loses no tick, wherever in the routine it comes: ${nameOf(options)}`, () => {
      for (const patched of PPC_HOSTS[options.host!].problemState ? [false, true] : [false]) {
        for (let cycles = 1; cycles < 12_000; cycles += 997) {
          const { took } = nap(options, cycles, patched);
          assertEquals(took < 40_000, true);
        }
      }
    });
  }

  for (const host of ["book3s-64-hv", "book3s-64-pr"] as const) {
    it(`never sleeps where it has 64 bits: each round fails, and the tick ends it: ${host}`, () => {
      const { exits, took } = nap({ host }, 50_000, false);
      assertEquals(took >= 45_000 && took < 60_000, true);
      assertEquals(exits.SYSCALL, undefined);
    });
  }
});
