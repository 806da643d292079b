import { assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import deno from "../deno.json" with { type: "json" };

const CONSUMER = new URL("./consumer/", import.meta.url);

describe("a project that depends on the package", () => {
  it("imports it by every name that it exports", async () => {
    const main = await Deno.readTextFile(new URL("main.ts", CONSUMER));
    for (const name of Object.keys(deno.exports)) {
      assertStringIncludes(main, `from "${deno.name}${name.slice(1)}"`);
    }
  });

  it("type-checks against it and runs a guest on it, without permissions or a network", async () => {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--quiet",
        "--check",
        "--cached-only",
        "--no-prompt",
        "main.ts",
      ],
      cwd: CONSUMER,
      env: { NO_COLOR: "1" },
    }).output();
    const text = new TextDecoder();
    assertEquals([code, text.decode(stderr)], [0, ""]);
    assertEquals(JSON.parse(text.decode(stdout)), {
      end: "finished",
      outcomes: [0],
      hypercalls: 2,
      pvEoi: 6, // Documentation/virt/kvm/x86/cpuid.rst
      kernel: 1,
      experiments: ["pv-eoi", "pv-ipi", "ipiv", "avic-kick", "demand-paging", "tlb-shootdown", "hypercalls"],
      code: 0,
    });
  });
});
