import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { ROUND_ACCESSES, runMagicPage, WAYS } from "../../../guest/examples/ppc_magic_page.ts";
import { nameOf } from "../../support/ppc.ts";

const ROUNDS = 200;

describe("a kernel that rewrites itself to use the magic page", () => {
  for (const options of WAYS.filter(({ host }) => host !== "e500mc")) {
    it(`leaves guest mode for each privileged instruction before, and for what no page can do after: ${nameOf(options)}`, () => {
      const { patching, before, after } = runMagicPage(options, ROUNDS);
      assertEquals(patching.outcome, "worked");
      // A tick: four registers, TSR on BookE, and the return.
      const tick = options.host === "e500v2" ? 6 : 5;
      assertEquals(before.exits, { PROGRAM: ROUND_ACCESSES * ROUNDS + tick * before.ticks });
      // Still there: DEC, TSR and the return in a tick, and the instruction that enables interrupts where one is due.
      const { PROGRAM = 0, DECREMENTER = 0, ...others } = after.exits;
      assertEquals(others, {});
      assertEquals(PROGRAM >= (tick - 3) * after.ticks && PROGRAM <= (tick - 2) * after.ticks, true);
      assertEquals(DECREMENTER, after.ticks);
      assertEquals(after.cycles * 20 < before.cycles, true);
    });
  }

  it("has nothing to rewrite where hardware has a state for its kernel, and needs the host for its timer alone", () => {
    const { patching, before, after } = runMagicPage({ host: "e500mc" }, ROUNDS);
    assertEquals(patching, { outcome: "absent", words: 0, branches: 0 });
    for (const { exits, ticks } of [before, after]) {
      assertEquals(exits.PROGRAM, undefined);
      assertEquals(exits.HV_PRIV ?? 0, 2 * ticks); // DEC and TSR
    }
  });

  it("runs the same again", () => {
    assertEquals(runMagicPage({}, 50), runMagicPage({}, 50));
  });
});
