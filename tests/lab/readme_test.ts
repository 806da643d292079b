import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import config from "../../deno.json" with { type: "json" };
import { INSTRUCTIONS } from "../../abi/mod.ts";
import { command } from "../../lab/cli.ts";

const ROOT = new URL("../..", import.meta.url);

/** What the command lines print whose output the README shows. */
const COMMANDS = [
  "run pv-eoi",
  "run pv-ipi",
  "run ipiv",
  "run avic-kick",
  "run demand-paging",
  "run tlb-shootdown",
  "run tlb-shootdown --quirk skip-one-cpu",
  "explain --acceleration apicv",
  "run hypercalls --arch ppc",
];
const EXAMPLES = ["ppc_magic_page", "s390_virtio_notify"];

const words = (text: string): string => text.replaceAll(/\s+/g, " ").trim();

/** What the README shows of programs: their text, without the command, and in pieces where something is left out. */
function shown(readme: string): string[] {
  return [...readme.matchAll(/^```text\n(.*?)^```$/gms)]
    .flatMap(([, block]) => block.replace(/^\$ .*\n/, "").split(/^\.\.\.$/m))
    .map(words);
}

async function printedByExample(name: string): Promise<string> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", `guest/examples/${name}.ts`],
    cwd: ROOT,
  }).output();
  return new TextDecoder().decode(stdout);
}

describe("the README's advice for long runs", () => {
  it("is what the command line's task does", async () => {
    const readme = await Deno.readTextFile(new URL("README.md", ROOT));
    const [options] = config.tasks.exitless.command.match(/--v8-flags=\S+/)!;
    assertStringIncludes(readme, `deno run ${options} `);
  });
});

describe("the README's table of what is modelled", () => {
  it("has as many instructions as the processor", async () => {
    const readme = await Deno.readTextFile(new URL("README.md", ROOT));
    assertStringIncludes(readme, ` ${INSTRUCTIONS.length} instructions,`);
  });
});

const { state } = await Deno.permissions.query({ name: "run" });

if (state === "granted") {
  describe("the README", () => {
    it("shows what programs print, to the last figure, and each program is shown", async () => {
      const pieces = shown(await Deno.readTextFile(new URL("README.md", ROOT)));
      const printed = [
        ...COMMANDS.map((line) => {
          const { out, err } = command(line.split(" "), 200);
          return out + err;
        }),
        ...await Promise.all(EXAMPLES.map(printedByExample)),
      ].map(words);
      for (const piece of pieces) assert(printed.some((text) => text.includes(piece)), piece);
      const unseen = [...COMMANDS, ...EXAMPLES].filter((_, i) =>
        !pieces.some((piece) => printed[i].includes(piece))
      );
      assertEquals(unseen, []);
    });
  });
}
