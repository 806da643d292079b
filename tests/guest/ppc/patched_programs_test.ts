import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  disassemblePpc,
  encodePpc,
  MSR_EE,
  MSR_RI,
  ppcAsm,
  type PpcCore,
  type SprName,
  SPRS,
} from "../../../abi/mod.ts";
import { useMagicPage } from "../../../guest/mod.ts";
import { PPC_HOSTS, type PpcVmOptions } from "../../../host/mod.ts";
import {
  CODE,
  loadWords,
  nameOf,
  PR_HOSTS,
  routine,
  runPpc,
  SPACE,
  STUB,
  withHypercalls,
} from "../../support/ppc.ts";

/** A register that programs use: all but r1, the stack, and r2, the current task. */
const register = fc.constantFrom(0, ...Array.from({ length: 29 }, (_, i) => i + 3));

/**
 * The registers that mean the same before and after, by core. On Book3S KVM knows neither SPRG4 to 7 nor the page's
 * PIR.
 */
const WRITTEN: Readonly<Record<PpcCore, readonly SprName[]>> = {
  "book3s-64": ["SPRG0", "SPRG1", "SPRG2", "SPRG3", "SRR0", "SRR1", "DAR", "DSISR"],
  "book3s-32": ["SPRG0", "SPRG1", "SPRG2", "SPRG3", "SRR0", "SRR1", "DAR", "DSISR"],
  booke: [
    "SPRG0",
    "SPRG3",
    "SRR0",
    "SRR1",
    "DEAR",
    "ESR",
    "MAS0",
    "MAS1",
    "MAS2",
    "MAS3",
    "MAS4",
    "MAS6",
    "MAS7",
  ],
};

/** One instruction, or a few, of a random program. */
function piece(core: PpcCore): fc.Arbitrary<number[]> {
  const bit = fc.constantFrom(0, MSR_EE, MSR_RI, MSR_EE | MSR_RI);
  const spr = fc.constantFrom(...WRITTEN[core]).map((name) => SPRS[name]);
  const computation = fc.oneof(
    fc.tuple(register, fc.integer({ min: -0x8000, max: 0x7fff })).map(([r, value]) => [ppcAsm.li(r, value)]),
    fc.tuple(register, register, fc.nat(0xffff)).map((
      [a, s, value],
    ) => [encodePpc("xoris", { RA: a, RS: s, UI: value })]),
    fc.tuple(register, register, register, fc.nat(1)).map(([t, a, b, rc]) => [
      encodePpc("add", { RT: t, RA: a, RB: b, RC: rc }),
    ]),
    fc.tuple(register, register).map(([a, s]) => [encodePpc("andi.", { RA: a, RS: s, UI: 0xff })]),
    register.map((r) => [encodePpc("mfcr", { RT: r })]),
  );
  const changed = (write: (RS: number) => number) =>
    fc.tuple(register, register, bit).map(([r, s, bits]) => [
      // Only EE and RI change, in a register of any number.
      encodePpc("mfmsr", { RT: r }),
      encodePpc("xori", { RA: r, RS: r, UI: bits }),
      ppcAsm.mr(s, r),
      write(s),
    ]);
  const privileged: fc.Arbitrary<number[]>[] = [
    fc.tuple(register, spr).map(([r, n]) => [ppcAsm.mfspr(r, n)]),
    fc.tuple(register, spr).map(([r, n]) => [ppcAsm.mtspr(n, r)]),
    register.map((r) => [encodePpc("mfmsr", { RT: r })]),
    fc.constant([encodePpc("tlbsync", {})]),
    changed((RS) => encodePpc("mtmsr", { RS })),
  ];
  if (core === "book3s-64") {
    privileged.push(
      changed((RS) => encodePpc("mtmsrd", { RS })),
      // L = 1 writes those two bits alone, whatever else the register holds.
      register.map((RS) => [encodePpc("mtmsrd", { RS, L15: 1 })]),
    );
  }
  if (core === "book3s-32") {
    privileged.push(
      fc.tuple(register, register).map(([RS, RB]) => [encodePpc("mtsrin", { RS, RB })]),
      fc.tuple(register, register).map(([RT, RB]) => [encodePpc("mfsrin", { RT, RB })]),
    );
  }
  if (core === "booke") {
    privileged.push(
      register.map((RS) => [encodePpc("wrtee", { RS })]),
      fc.nat(1).map((E) => [encodePpc("wrteei", { E })]),
    );
  }
  return fc.oneof(computation, ...privileged);
}

/** All that a guest can see afterwards: registers, CR, and what the privileged registers say. */
function observe(
  options: PpcVmOptions,
  words: readonly number[],
  seed: readonly number[],
  patched: boolean,
): string[] {
  const seen: string[] = [];
  const { core } = PPC_HOSTS[options.host!];
  const vm = runPpc(
    options,
    withHypercalls(function* (cpu) {
      if (patched) {
        const text = [{ from: CODE, to: CODE + 4 * words.length }];
        const { outcome } = yield* useMagicPage(cpu, { stub: STUB, text, space: SPACE });
        assertEquals(outcome, "worked");
      }
      for (let r = 0; r < 32; r++) if (r !== 1 && r !== 2) cpu.setRegister(r, seed[r]);
      yield cpu.call(CODE);
      const bits = cpu.bits;
      for (let r = 0; r < 36; r++) {
        if (r === 1) continue; // where the stack is
        seen.push(`${r}: ${BigInt.asUintN(bits, cpu.register(r)).toString(16)}`);
      }
      for (const name of WRITTEN[core]) {
        yield cpu.mfspr(name);
        seen.push(`${name}: ${cpu.r3.toString(16)}`);
      }
      yield cpu.mfmsr();
      seen.push(`MSR: ${cpu.r3.toString(16)}`);
    }, options.order),
    { prepare: (vm) => loadWords(vm, CODE, words) },
  );
  seen.push(`SR: ${Array.from({ length: 16 }, (_, i) => vm.vcpus[0].processor.shared.get("sr", i))}`);
  return seen;
}

describe("a random program of privileged and other instructions", () => {
  for (const options of PR_HOSTS) {
    const { core } = PPC_HOSTS[options.host!];
    it(`sees the same before and after patching: ${nameOf(options)}`, () => {
      const program = fc.array(piece(core), { minLength: 1, maxLength: 25 }).map((pieces) =>
        routine(...pieces.flat())
      );
      const seed = fc.array(fc.nat(0xffff_ffff), { minLength: 32, maxLength: 32 });
      fc.assert(
        fc.property(program, seed, (words, seed) => {
          const text = words.map((word) => disassemblePpc(word)).join("; ");
          assertEquals(observe(options, words, seed, true), observe(options, words, seed, false), text);
        }),
        { numRuns: 40 },
      );
    });
  }

  it("leaves guest mode as often as it has privileged instructions, and never once it is patched", () => {
    for (const options of PR_HOSTS) {
      const words = routine(
        ppcAsm.mtspr(SPRS.SPRG0, 3),
        ppcAsm.mfspr(4, SPRS.SPRG0),
        encodePpc("mfmsr", { RT: 5 }),
        encodePpc("mtmsr", { RS: 5 }),
        encodePpc("tlbsync", {}),
      );
      const exits = (patched: boolean) => {
        let before = 0;
        const vm = runPpc(
          options,
          withHypercalls(function* (cpu) {
            if (patched) {
              yield* useMagicPage(cpu, { stub: STUB, text: [{ from: CODE, to: CODE + 20 }], space: SPACE });
            }
            before = vmExits();
            yield cpu.call(CODE);
          }, options.order),
          {
            code: words,
            prepare: (vm) => {
              vmExits = () => vm.exits().PROGRAM ?? 0;
            },
          },
        );
        return (vm.exits().PROGRAM ?? 0) - before;
      };
      let vmExits = (): number => 0;
      assertEquals([exits(false), exits(true)], [5, 0], nameOf(options));
    }
  });
});
