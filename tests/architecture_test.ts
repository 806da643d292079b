import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";

const ROOT = new URL("../", import.meta.url);
const LONGEST_FILE = 600;

/** Who may import whom, besides itself. A part names only parts that stand above it: there are no cycles. */
const MAY_IMPORT = {
  "abi": [],
  "guest": ["abi"],
  "host": ["abi"],
  "mod.ts": ["abi", "guest", "host"],
  "guest/examples": ["mod.ts"],
  "lab": ["abi", "guest", "host", "mod.ts", "guest/examples"],
  "tests": ["abi", "guest", "host", "mod.ts", "guest/examples", "lab"],
} as const;

type Part = keyof typeof MAY_IMPORT;
/** From the most particular name to the least. */
const PARTS = (Object.keys(MAY_IMPORT) as Part[]).sort((a, b) => b.length - a.length);
/** Runs anywhere: no imports from outside, no globals of a runtime. */
const CORE: readonly Part[] = ["abi", "guest", "host", "mod.ts"];

/** The package's own names, which examples and documentation use. */
const OWN_NAME = "@exitless/exitless";

interface Source {
  /** From the project's folder. */
  readonly path: string;
  readonly part: Part;
  readonly lines: number;
  /** The text without its comments. */
  readonly code: string;
}

interface Import {
  readonly specifier: string;
  /** `import("...")` runs when it is reached, and orders no modules. */
  readonly dynamic: boolean;
}

const COMMENT_OR_STRING =
  /\/\*[^]*?\*\/|\/\/[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[^]|[^`\\])*`/g;

function withoutComments(text: string): string {
  return text.replace(COMMENT_OR_STRING, (token) => token.startsWith("/") ? " " : token);
}

function withoutStrings(code: string): string {
  return code.replace(COMMENT_OR_STRING, '""');
}

/** Every import and re-export of a module, types included. */
function importsOf(code: string): Import[] {
  const found = code.matchAll(
    /(?:^|[;\s])(?:(?:import|export)\b[^;"'`()=]*?\bfrom\s*|import\s*(\(\s*)?)(["'`])([^"'`]+)\2/g,
  );
  return [...found].map(([, parenthesis, , specifier]) => ({
    specifier,
    dynamic: parenthesis !== undefined,
  }));
}

function partOf(path: string): Part | undefined {
  return PARTS.find((part) => path === part || path.startsWith(`${part}/`));
}

/** The part that an import leads to; undefined where it leads out of the project. */
function target(from: Source, specifier: string): Part | undefined {
  if (specifier.startsWith(".")) {
    const { pathname } = new URL(specifier, new URL(from.path, ROOT));
    return partOf(pathname.slice(ROOT.pathname.length));
  }
  if (specifier === OWN_NAME) return "mod.ts";
  if (specifier === `${OWN_NAME}/cli`) return "lab";
  return specifier.startsWith(`${OWN_NAME}/`) ? partOf(specifier.slice(OWN_NAME.length + 1)) : undefined;
}

async function* sourcesIn(folder: string): AsyncGenerator<Source> {
  for await (const { name, isDirectory } of Deno.readDir(new URL(folder, ROOT))) {
    const path = `${folder}${name}`;
    if (isDirectory) {
      yield* sourcesIn(`${path}/`);
    } else if (name.endsWith(".ts")) {
      yield source(path, await Deno.readTextFile(new URL(path, ROOT)));
    }
  }
}

function source(path: string, text: string): Source {
  return { path, part: partOf(path)!, lines: text.split("\n").length - 1, code: withoutComments(text) };
}

const sources: Source[] = [source("mod.ts", await Deno.readTextFile(new URL("mod.ts", ROOT)))];
for (const folder of ["abi/", "guest/", "host/", "lab/", "tests/"]) {
  for await (const found of sourcesIn(folder)) sources.push(found);
}

/** The imports that a rule forbids, as "file: specifier". */
function offences(rule: (from: Source, found: Import) => boolean): string[] {
  return sources.flatMap((from) =>
    importsOf(from.code).filter((found) => rule(from, found)).map(({ specifier }) =>
      `${from.path}: ${specifier}`
    )
  );
}

describe("the reader of imports", () => {
  const text = `
    /* import "./comment.ts"; */ // export * from "./comment.ts";
    import "./effect.ts"; import one from './default.ts';
    import * as all from "./all.ts";
    export { type Some, more as other } from "./some.ts"; export * from "./every.ts";
    import type {
      Lines,
    } from "./lines.ts";
    const later = () => import("./later.ts"), a = "import './string.ts'";
    const text = "https://x"; // a comment's marks in a string
    export function notFrom() { return ["from", "./no.ts"]; }
  `;

  it("finds each form, and none in comments", () => {
    const found = importsOf(withoutComments(text));
    assertEquals(found.filter(({ dynamic }) => dynamic).map(({ specifier }) => specifier), ["./later.ts"]);
    assertEquals(found.map(({ specifier }) => specifier).filter((name) => name !== "./string.ts"), [
      "./effect.ts",
      "./default.ts",
      "./all.ts",
      "./some.ts",
      "./every.ts",
      "./lines.ts",
      "./later.ts",
    ]);
  });

  it("finds every part of the project", () => {
    assertEquals(new Set(sources.map(({ part }) => part)), new Set(PARTS));
    const abi = sources.find(({ path }) => path === "abi/mod.ts")!;
    assert(importsOf(abi.code).some(({ specifier }) => specifier === "./x86/mod.ts"));
  });

  it("tells where an import leads", () => {
    const from = source("guest/kernel/boot.ts", "");
    assertEquals(target(from, "../../abi/mod.ts"), "abi");
    assertEquals(target(from, "../examples/pv_eoi.ts"), "guest/examples");
    assertEquals(target(from, "@exitless/exitless"), "mod.ts");
    assertEquals(target(from, "@exitless/exitless/host"), "host");
    assertEquals(target(from, "npm:fast-check"), undefined);
  });
});

describe("the project's parts", () => {
  it("import only what stands above them", () => {
    const above: Part[] = [];
    for (const [part, allowed] of Object.entries(MAY_IMPORT)) {
      for (const other of allowed) assert(above.includes(other), `${part} may import ${other}`);
      above.push(part as Part);
    }
    assertEquals(
      offences((from, { specifier, dynamic }) => {
        const to = target(from, specifier);
        if (to === undefined || to === from.part) return false;
        if (from.part === "guest/examples" && dynamic) return to !== "lab"; // a program starts the command line
        return !(MAY_IMPORT[from.part] as readonly Part[]).includes(to);
      }),
      [],
    );
  });

  it("need nothing from outside, but for lab and tests", () => {
    assertEquals(
      offences((from, { specifier }) =>
        from.part !== "lab" && from.part !== "tests" && target(from, specifier) === undefined
      ),
      [],
    );
  });

  it("use the package's names only in examples, as a user would, and in tests", () => {
    assertEquals(
      offences((from, { specifier }) =>
        from.part === "guest/examples"
          ? !specifier.startsWith(OWN_NAME)
          : from.part !== "tests" && specifier.startsWith(OWN_NAME)
      ),
      [],
    );
  });

  it("run anywhere, the core's: no global of a runtime, and no output", () => {
    const core = sources.filter(({ part }) => CORE.includes(part));
    const global = /(?<![.\w#])(Deno|Bun|process|console|require|Buffer|globalThis)\b(?!\s*:)/;
    assertEquals(
      core.flatMap(({ path, code }) => {
        const found = global.exec(withoutStrings(code));
        return found === null ? [] : [`${path}: ${found[1]}`];
      }),
      [],
    );
  });

  it(`keep their files to ${LONGEST_FILE} lines`, () => {
    const long = sources.filter(({ lines }) => lines > LONGEST_FILE);
    assertEquals(long.map(({ path, lines }) => `${path}: ${lines}`), []);
  });
});
