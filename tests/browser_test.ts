import { assertEquals, assertNotMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { story } from "./browser/main.ts";

/** The core and a guest as one script for a page. */
async function bundle(): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["bundle", "--quiet", "--no-lock", "--platform", "browser", "main.ts"],
    cwd: new URL("./browser/", import.meta.url),
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  assertEquals([code, text.decode(stderr)], [0, ""]);
  return text.decode(stdout);
}

/** Runs a script in a worker without the globals of a server-side runtime; resolves to what it posts. */
async function runWithoutDeno(script: string): Promise<unknown> {
  const globals = ["Deno", "process", "Buffer", "global", "require"];
  const text = `for (const name of ${JSON.stringify(globals)}) delete globalThis[name];\n${script}`;
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  const worker = new Worker(url, { type: "module" });
  try {
    return await new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = (event) => {
        event.preventDefault();
        reject(new Error(event.message));
      };
    });
  } finally {
    worker.terminate();
    URL.revokeObjectURL(url);
  }
}

describe("the core, bundled for a browser", () => {
  it("is one script that imports nothing", async () => {
    assertNotMatch(await bundle(), /^\s*import\b|\bimport\s*\(|\brequire\(/m);
  });

  it("runs a guest where there is no Deno, as it runs here", async () => {
    const script = `${await bundle()}\npostMessage([typeof Deno, typeof process, story()]);`;
    const here = story();
    assertEquals([here.end, here.handled], ["finished", 1]);
    assertEquals(await runWithoutDeno(script), ["undefined", "undefined", here]);
  });
});
