import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  decodePpc,
  disassemblePpc,
  encodePpc,
  MSR_DR,
  MSR_IR,
  PPC_BLOCKS,
  PPC_TEXT_BASE,
  ppcAsm,
  type PpcCore,
} from "../../../abi/mod.ts";
import {
  assembleTemplate,
  type MagicPageResult,
  type TemplateName,
  useMagicPage,
} from "../../../guest/mod.ts";
import {
  CODE,
  loadWords,
  ppcGuest,
  routine,
  runPpc,
  SPACE,
  STUB,
  withHypercalls,
} from "../../support/ppc.ts";

const USES: readonly (readonly [core: PpcCore, name: TemplateName, word: (RS: number) => number])[] = [
  ["book3s-64", "mtmsrd", (RS) => encodePpc("mtmsrd", { RS, L15: 1 })],
  ["book3s-64", "mtmsr", (RS) => encodePpc("mtmsrd", { RS })],
  ["book3s-32", "mtmsr", (RS) => encodePpc("mtmsr", { RS })],
  ["book3s-32", "mtsrin", (RS) => encodePpc("mtsrin", { RS, RB: 4 })],
  ["booke", "wrtee", (RS) => encodePpc("wrtee", { RS })],
  ["booke", "wrteei 1", () => encodePpc("wrteei", { E: 1 })],
  ["booke", "wrteei 0", () => encodePpc("wrteei", { E: 0 })],
];

describe("a template's copy", () => {
  for (const [core, name, word] of USES) {
    it(`enters the critical section first and leaves it last, and goes back behind its instruction: ${name}, ${core}`, () => {
      for (const source of [0, 5, 30, 31]) {
        const original = word(source);
        const at = 0x4_0000;
        const words = assembleTemplate(name, { core, original, source, index: 4, at, back: 0x1234 });
        const text = words.map((word, i) => disassemblePpc(word, at + 4 * i));
        const critical = core === "book3s-64" ? "std r1,-4072(0)" : "stw r1,-4068(0)";
        assertEquals(text[0], critical);
        const leaves = critical.replace("r1", "r2");
        // Behind the last store there is the instruction itself, where it is needed, and the way back.
        for (const [index, line] of text.entries()) {
          if (line !== leaves) continue;
          const next = words[index + 1] === original ? index + 2 : index + 1;
          assertEquals(text[next], "b 0x1234");
        }
        assertEquals(text[text.length - 1], "b 0x1234");
        assertEquals(words.filter((word) => word === original).length, name === "wrteei 0" ? 0 : 1);
        for (const word of words) assertEquals(decodePpc(word) === undefined, false);
      }
    });
  }
});

describe("a guest that patches", () => {
  /** Patches the text at an address with templates in a space, and tells what came of it. */
  function patch(
    text: { from: number; to: number },
    space: { from: number; to: number },
    words: readonly number[],
  ) {
    let result: MagicPageResult | undefined;
    const vm = runPpc(
      { memory: 2 ** 27 },
      withHypercalls(function* (cpu) {
        result = yield* useMagicPage(cpu, { stub: STUB, text: [text], space });
      }),
      { prepare: (vm) => loadWords(vm, text.from, words) },
    );
    return { result: result!, after: words.map((_, i) => vm.words.read(text.from + 4 * i, 4)!) };
  }
  const mtmsrd = encodePpc("mtmsrd", { RS: 5, L15: 1 });
  const mfmsr = encodePpc("mfmsr", { RT: 5 });

  it("branches to its templates, before and behind the text, as far as a branch reaches", () => {
    for (const from of [0x4_0000, 0x1ff_0000]) {
      const { result, after } = patch({ from: CODE, to: CODE + 4 }, { from, to: from + 0x1000 }, [mtmsrd]);
      assertEquals([result.outcome, result.branches], ["worked", 1]);
      assertEquals(after, [0x4800_0000 | (from - CODE)]);
    }
    const back = patch({ from: 0x10_0000, to: 0x10_0004 }, { from: 0x4_0000, to: 0x4_1000 }, [mtmsrd]);
    assertEquals(back.after, [(0x4800_0000 | ((0x4_0000 - 0x10_0000) & 0x03ff_fffc)) >>> 0]);
  });

  it("leaves instructions that are too far away, or find no room, and says so; the others are patched all the same", () => {
    const far = patch({ from: CODE, to: CODE + 8 }, { from: 0x300_0000, to: 0x301_0000 }, [mtmsrd, mfmsr]);
    assertEquals(far.result, { outcome: "failed", words: 1, branches: 0 });
    assertEquals(far.after, [mtmsrd, 0xe8a0_f058]);
    const full = patch({ from: CODE, to: CODE + 12 }, { from: 0x4_0000, to: 0x4_00a0 }, [
      mtmsrd,
      mtmsrd,
      mfmsr,
    ]);
    assertEquals(full.result, { outcome: "failed", words: 1, branches: 1 });
    assertEquals([full.after[1], full.after[2]], [mtmsrd, 0xe8a0_f058]);
  });

  it("leaves the text of its templates alone", () => {
    const { result } = patch({ from: 0x4_0000, to: 0x4_1000 }, { from: 0x4_0000, to: 0x4_1000 }, [
      mfmsr,
      mtmsrd,
    ]);
    assertEquals(result, { outcome: "worked", words: 0, branches: 0 });
  });

  it("turns no instruction below the end of its vectors into a branch", () => {
    let result: MagicPageResult | undefined;
    const vm = runPpc(
      {},
      withHypercalls(function* (cpu) {
        result = yield* useMagicPage(cpu, {
          stub: STUB,
          text: [{ from: CODE, to: CODE + 12 }],
          space: SPACE,
          endOfVectors: CODE + 4,
        });
      }),
      { code: [mtmsrd, mtmsrd, mfmsr] },
    );
    assertEquals(result, { outcome: "worked", words: 1, branches: 1 });
    assertEquals(vm.words.read(CODE, 4), mtmsrd);
  });

  it("stops where the host says that it mapped a page and none is there", () => {
    let result: MagicPageResult | undefined;
    runPpc(
      {},
      withHypercalls(function* (cpu) {
        // Calls that answer, but do nothing.
        result = yield* useMagicPage(cpu, { stub: CODE, text: [{ from: CODE, to: CODE + 4 }], space: SPACE });
      }),
      { code: routine(ppcAsm.li(3, 0), ppcAsm.li(4, 2)) },
    );
    assertEquals(result, { outcome: "unmapped", words: 0, branches: 0 });
  });

  it("may patch the very function that patches, vectors included", () => {
    const vm = ppcGuest(
      {},
      withHypercalls(function* (cpu) {
        const size = PPC_BLOCKS["book3s-64"].size;
        const text = [{ from: 0, to: STUB }, { from: PPC_TEXT_BASE, to: PPC_TEXT_BASE + size }];
        const { outcome } = yield* useMagicPage(cpu, { stub: STUB, text, space: SPACE });
        assertEquals(outcome, "worked");
        yield cpu.mtspr("SPRG0", 0x77);
        yield cpu.mfspr("SPRG0");
        assertEquals(cpu.r3, 0x77n);
        let faulted = false;
        try {
          yield cpu.lwz(0x7fff_0000); // its handler is patched too
        } catch {
          faulted = true;
        }
        assertEquals(faulted, true);
      }),
    );
    assertEquals(vm.machine.run().end, "finished");
  });
});

describe("mtsrin of 32-bit Book3S", () => {
  for (const [source, index] of [[5, 6], [30, 6], [31, 30], [5, 31], [30, 31], [31, 31]] as const) {
    for (const real of [true, false]) {
      it(`from r${source}, r${index} ${real ? "stays in the guest in real mode" : "needs the host with translation on"}`, () => {
        let exits = 0;
        const vm = runPpc(
          { host: "book3s-32-pr" },
          withHypercalls(function* (cpu) {
            yield* useMagicPage(cpu, { stub: STUB, text: [{ from: CODE, to: CODE + 4 }], space: SPACE });
            yield cpu.mfmsr();
            const msr = cpu.r3;
            if (real) yield cpu.mtmsr(msr & ~BigInt(MSR_IR | MSR_DR));
            for (const r of [5, 6, 30, 31]) cpu.setRegister(r, 0x9000_0000 + r);
            exits = programExits();
            yield cpu.call(CODE);
            exits = programExits() - exits;
            for (const r of [5, 6, 30, 31]) assertEquals(cpu.register(r), BigInt(0x9000_0000 + r));
            yield cpu.mtmsr(msr);
          }),
          {
            code: routine(encodePpc("mtsrin", { RS: source, RB: index })),
            prepare: (vm) => {
              programExits = () => vm.exits().PROGRAM ?? 0;
            },
          },
        );
        assertEquals(vm.vcpus[0].processor.shared.get("sr", 9), BigInt(0x9000_0000 + source));
        assertEquals(exits, real ? 0 : 1);
      });
    }
  }
  let programExits = (): number => 0;
});
