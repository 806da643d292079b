import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import deno from "../deno.json" with { type: "json" };
import * as standIns from "./std/assert.ts";
import importMap from "./std/import_map.json" with { type: "json" };

const ROOT = new URL("../", import.meta.url);

/** The `@std` modules that the tests import, and the names that they take from each. */
async function stdImports(folder: URL): Promise<Map<string, Set<string>>> {
  const found = new Map<string, Set<string>>();
  for await (const entry of Deno.readDir(folder)) {
    const url = new URL(entry.name, folder);
    if (entry.name === "std") continue;
    if (entry.isDirectory) {
      for (const [module, names] of await stdImports(new URL(`${url}/`))) {
        found.set(module, names.union(found.get(module) ?? new Set()));
      }
    } else if (entry.name.endsWith(".ts")) {
      const text = await Deno.readTextFile(url);
      for (const [, names, module] of text.matchAll(/^import \{([^}]*)\} from "(@std\/[^"]+)";/gm)) {
        const list = names.split(",").map((name) => name.trim().replace(/^type /, "")).filter(Boolean);
        found.set(module, new Set(list).union(found.get(module) ?? new Set()));
      }
    }
  }
  return found;
}

describe("the import map of the stand-ins", () => {
  it("restates every import of deno.json", () => {
    const resolve = (path: string, base: URL): string =>
      path.startsWith(".") ? new URL(path, base).href : path;
    const stated: Record<string, string> = importMap.imports;
    for (const [name, path] of Object.entries(deno.imports)) {
      if (name.startsWith("@std/")) continue;
      assertEquals(resolve(stated[name], new URL("tests/std/", ROOT)), resolve(path, ROOT), name);
    }
  });

  it("and the probe name each @std module that a test imports", async () => {
    const modules = [...(await stdImports(new URL("tests/", ROOT))).keys()].sort();
    assertEquals(Object.keys(importMap.imports).filter((name) => name.startsWith("@std/")).sort(), modules);
    const probe = await Deno.readTextFile(new URL("tests/std/probe.ts", ROOT));
    assertEquals([...probe.matchAll(/^import "([^"]+)";/gm)].map(([, name]) => name).sort(), modules);
  });
});

describe("the stand-in for @std/assert", () => {
  /** For each assertion: a call that holds, and one that does not. */
  const CASES: Readonly<Record<string, readonly [holds: () => unknown, fails: () => unknown]>> = {
    assert: [() => standIns.assert(1), () => standIns.assert(0)],
    assertFalse: [() => standIns.assertFalse(""), () => standIns.assertFalse("no")],
    assertEquals: [
      () => standIns.assertEquals([{ a: 1n, b: new Set([1]) }, -0], [{ a: 1n, b: new Set([1]) }, -0]),
      () => standIns.assertEquals([1, 2], [1, 3]),
    ],
    assertNotEquals: [() => standIns.assertNotEquals([1], [2]), () => standIns.assertNotEquals([1], [1])],
    assertStrictEquals: [
      () => standIns.assertStrictEquals(NaN, NaN),
      () => standIns.assertStrictEquals<unknown>([1], [1]),
    ],
    assertNotStrictEquals: [
      () => standIns.assertNotStrictEquals([1], [1]),
      () => standIns.assertNotStrictEquals(1, 1),
    ],
    assertAlmostEquals: [
      () => standIns.assertAlmostEquals(0.1 + 0.2, 0.3),
      () => standIns.assertAlmostEquals(1, 1.2, 0.1),
    ],
    assertExists: [() => standIns.assertExists(0), () => standIns.assertExists(null)],
    assertInstanceOf: [
      () => standIns.assertInstanceOf(new RangeError(), Error),
      () => standIns.assertInstanceOf(new Error(), RangeError),
    ],
    assertGreater: [() => standIns.assertGreater(2, 1), () => standIns.assertGreater(1, 1)],
    assertGreaterOrEqual: [
      () => standIns.assertGreaterOrEqual(1, 1),
      () => standIns.assertGreaterOrEqual(0, 1),
    ],
    assertLess: [() => standIns.assertLess(1n, 2n), () => standIns.assertLess(2n, 2n)],
    assertLessOrEqual: [() => standIns.assertLessOrEqual(2, 2), () => standIns.assertLessOrEqual(3, 2)],
    assertArrayIncludes: [
      () => standIns.assertArrayIncludes([[1], [2]], [[2]]),
      () => standIns.assertArrayIncludes([1, 2], [2, 3]),
    ],
    assertStringIncludes: [
      () => standIns.assertStringIncludes("exitless", "less"),
      () => standIns.assertStringIncludes("exitless", "more"),
    ],
    assertMatch: [() => standIns.assertMatch("exit", /^e/), () => standIns.assertMatch("exit", /^x/)],
    assertNotMatch: [
      () => standIns.assertNotMatch("exit", /^x/),
      () => standIns.assertNotMatch("exit", /^e/),
    ],
    assertIsError: [
      () => standIns.assertIsError(new RangeError("too far"), RangeError, "far"),
      () => standIns.assertIsError(new RangeError("too far"), RangeError, "near"),
    ],
    assertThrows: [
      () => standIns.assertThrows(() => BigInt("x"), SyntaxError, "Cannot convert"),
      () => standIns.assertThrows(() => BigInt("1")),
    ],
    fail: [() => {}, () => standIns.fail()],
    unreachable: [() => {}, () => standIns.unreachable()],
  };

  for (const [name, [holds, fails]] of Object.entries(CASES)) {
    it(`has ${name}, and it can fail`, () => {
      holds();
      assertThrows(fails, standIns.AssertionError);
    });
  }

  it("has assertRejects, and it can fail", async () => {
    const error = await standIns.assertRejects(() => Promise.reject(new RangeError("too far")), RangeError);
    assertEquals(error.message, "too far");
    const failed = await standIns.assertRejects(() => Promise.resolve()).catch((error) => error);
    assertEquals(failed instanceof standIns.AssertionError, true);
  });

  it("has each name that a test takes from @std/assert", async () => {
    const taken = (await stdImports(new URL("tests/", ROOT))).get("@std/assert")!;
    assertEquals([...taken.difference(new Set(Object.keys(standIns)))], []);
  });
});
