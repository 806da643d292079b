import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { MachineOptions, PpcVm, PpcVmOptions } from "../../../host/mod.ts";
import { useMagicPage } from "../../../guest/mod.ts";
import {
  CODE,
  DATA,
  nameOf,
  ppcGuest,
  PR_HOSTS,
  routine,
  SPACE,
  STUB,
  withHypercalls,
} from "../../support/ppc.ts";
import { encodePpc, ppcAsm, SPRS } from "../../../abi/mod.ts";

/** Two vCPUs that each write a word and read the other's. Gives what they read, as vCPU 0's bit and vCPU 1's. */
function race(policy: NonNullable<MachineOptions["policy"]>): { vm: PpcVm; seen: string } {
  const read: bigint[] = [];
  const vm = ppcGuest({ vcpus: 2, trace: 100 }, function* first(cpu) {
    yield cpu.stw(DATA, 1);
    yield cpu.lwz(DATA + 4);
    read[0] = cpu.r3;
  }, {
    machine: { policy },
    functions: [function* second(cpu) {
      yield cpu.stw(DATA + 4, 1);
      yield cpu.lwz(DATA);
      read[1] = cpu.r3;
    }],
    prepare: (vm) => vm.vcpus[1].start(0x1_0100),
  });
  vm.machine.run();
  return { vm, seen: read.join("") };
}

describe("PowerPC vCPUs in explored runs", () => {
  it("interleave at each instruction, and memory is in order: one of them sees the other's word", () => {
    const outcomes = new Set<string>();
    for (let seed = 0; seed < 100; seed++) outcomes.add(race({ random: seed }).seen);
    assertEquals([...outcomes].sort(), ["01", "10", "11"]);
  });

  it("run the same again from their schedule", () => {
    for (let seed = 0; seed < 10; seed++) {
      const { vm, seen } = race({ random: seed });
      const again = race({ replay: [...vm.machine.schedule], seed });
      assertEquals([again.seen, again.vm.traceText()], [seen, vm.traceText()]);
    }
  });

  for (const options of PR_HOSTS) {
    it(`lose no interrupt to a template, whenever the host's timer is chosen: ${nameOf(options)}`, () => {
      for (let seed = 0; seed < 12; seed++) assertEquals(ticks(options, seed) >= 1, true);
    });
  }

  /**
   * A kernel that enables interrupts by patched code while its decrementer expires; how often that was taken, once or
   * more.
   */
  function ticks(options: PpcVmOptions, seed: number): number {
    const booke = options.host === "e500v2";
    const vm = ppcGuest(
      options,
      withHypercalls(function* (cpu) {
        yield* useMagicPage(cpu, { stub: STUB, text: [{ from: CODE, to: CODE + 20 }], space: SPACE });
        if (booke) yield cpu.mtspr("TCR", 0x400_0000);
        cpu.setRegister(6, 10);
        for (const r of [29, 30, 31]) cpu.setRegister(r, r);
        yield cpu.call(CODE);
        for (const r of [29, 30, 31]) assertEquals(cpu.register(r), BigInt(r));
        do {
          yield cpu.mfspr("PVR"); // an exit, behind which what is due begins
          yield cpu.lwz(DATA);
        } while (cpu.r3 === 0n);
      }, options.order),
      {
        machine: { policy: { random: seed }, limits: { steps: 100_000 } },
        code: routine(
          ppcAsm.mtspr(SPRS.DEC, 6),
          encodePpc("mfmsr", { RT: 5 }),
          encodePpc("ori", { RA: 5, RS: 5, UI: 0x8000 }),
          encodePpc("mtmsr", { RS: 5 }),
        ),
        handlers: {
          *DECREMENTER(cpu) {
            yield cpu.mtspr("DEC", 0x7fff_ffff);
            if (booke) yield cpu.mtspr("TSR", 0x800_0000);
            yield cpu.lwz(DATA);
            yield cpu.stw(DATA, cpu.r3 + 1n);
          },
        },
      },
    );
    // The run ends where nothing is left to do; a lost interrupt would have the guest wait for it to the limit of
    // steps.
    assertEquals(vm.machine.run().end, "finished");
    return vm.words.read(DATA, 4)!;
  }
});
