/**
 * Asks a C compiler what headers say: the values of constants, the sizes and offsets of structures, the rows of tables
 * that are macros. The compiler makes assembly text alone, so any target will do and nothing is run; the answers are
 * lines in that text, as in the kernel's own asm-offsets.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import { outputOf, runTool } from "./tools.ts";

/** A C compiler, and what every probe of a set of headers begins with. */
export interface Compiler {
  /** Its arguments: target, include folders, macros. */
  readonly args: readonly string[];
  /** The first lines of every probe: its `#include`s. */
  readonly prologue: string;
}

/** What a structure is asked: its members. */
export type Members = readonly string[];

/** What a compiler says of a structure. */
export interface StructRecord {
  /** `sizeof`. */
  readonly size: number;
  /** `_Alignof`. */
  readonly align: number;
  /** `offsetof` and `sizeof` of the members. */
  readonly members: Readonly<Record<string, readonly [offset: number, size: number]>>;
}

/** The packages that have the compiler. */
export const COMPILER_PACKAGES: readonly string[] = ["clang"];

const PROBE = "probe.c";

async function compile(compiler: Compiler, body: readonly string[]): Promise<{ out: string; bad: number[] }> {
  const source = [
    compiler.prologue,
    `#define ANSWER(key, value) asm volatile("\\n.ascii \\"->" key " %c0 %c1\\"" :: \\`,
    `  "i"((unsigned)((unsigned long long)(value) >> 32)), "i"((unsigned)(unsigned long long)(value)))`,
    "void probe(void) {",
    `#line 1 "${PROBE}"`,
    ...body,
    "}",
  ].join("\n");
  const args = [...compiler.args, "-w", "-O1", "-ferror-limit=0", "-S", "-x", "c", "-", "-o", "-"];
  const { code, out, err } = await runTool("clang", args, { stdin: source, packages: COMPILER_PACKAGES });
  const errors = err.split("\n").filter((line) => / error: /.test(line));
  const bad = errors.map((line) => new RegExp(`${PROBE}:(\\d+):`).exec(line)).map((found) =>
    Number(found?.[1])
  );
  if (code !== 0 && (bad.length === 0 || bad.some(Number.isNaN))) {
    throw new Error(`Cannot compile a probe: ${errors[0] ?? err.trim()}`);
  }
  return { out, bad };
}

/** The 64-bit values of C expressions, by key; those that are no integer constants are left out. */
export async function valuesOf(
  compiler: Compiler,
  expressions: ReadonlyMap<string, string>,
): Promise<Map<string, bigint>> {
  const asked = [...expressions];
  const lines = asked.map(([key, expression]) => `ANSWER("${key}", (${expression}));`);
  let answer = await compile(compiler, lines);
  // Each pass of the compiler names the lines that it alone objects to.
  for (let pass = 0; answer.bad.length > 0; pass++) {
    if (pass > 4) throw new Error("Cannot compile a probe: its lines are bad in ever new ways");
    for (const line of answer.bad) lines[line - 1] = "";
    answer = await compile(compiler, lines);
  }
  const values = new Map<string, bigint>();
  for (const [, key, high, low] of answer.out.matchAll(/->(\S+) (-?\d+) (-?\d+)/g)) {
    values.set(key, BigInt.asUintN(32, BigInt(high)) << 32n | BigInt.asUintN(32, BigInt(low)));
  }
  return values;
}

/** What a compiler says of structures. Throws `Error` for one, or for a member, that the headers lack. */
export async function structsOf(
  compiler: Compiler,
  structs: Readonly<Record<string, Members>>,
): Promise<Record<string, StructRecord>> {
  const expressions = new Map<string, string>();
  for (const [name, members] of Object.entries(structs)) {
    expressions.set(`${name}!size`, `sizeof(struct ${name})`);
    expressions.set(`${name}!align`, `_Alignof(struct ${name})`);
    for (const member of members) {
      expressions.set(`${name}.${member}!offset`, `__builtin_offsetof(struct ${name}, ${member})`);
      expressions.set(`${name}.${member}!size`, `sizeof(((struct ${name} *)0)->${member})`);
    }
  }
  const values = await valuesOf(compiler, expressions);
  const value = (key: string): number => {
    const found = values.get(key);
    if (found === undefined) throw new Error(`Cannot find ${key.split("!")[0]} in the headers`);
    return Number(found);
  };
  return Object.fromEntries(
    Object.entries(structs).map(([name, members]) => [name, {
      size: value(`${name}!size`),
      align: value(`${name}!align`),
      members: Object.fromEntries(
        members.map((member) =>
          [member, [value(`${name}.${member}!offset`), value(`${name}.${member}!size`)] as const] as const
        ),
      ),
    }]),
  );
}

/** What a probe includes, preprocessed, but with the definitions of macros. */
export async function preprocessed(compiler: Compiler): Promise<string> {
  const args = [...compiler.args, "-w", "-E", "-dD", "-x", "c", "-", "-o", "-"];
  return await outputOf("clang", args, { stdin: compiler.prologue, packages: COMPILER_PACKAGES });
}

/**
 * The part of a preprocessed text that comes from one header, without what that includes. Throws `Error` where none of
 * it does.
 */
export function textOf(text: string, header: string): string {
  let inside = false;
  let seen = false;
  const lines: string[] = [];
  for (const line of text.split("\n")) {
    const marker = /^# \d+ "([^"]*)"/.exec(line);
    if (marker !== null) seen = (inside = `/${marker[1]}`.endsWith(`/${header}`)) || seen;
    else if (inside) lines.push(line);
  }
  if (!seen) throw new Error(`Cannot find ${header} among the included headers`);
  return lines.join("\n");
}

/** The rows of a macro that is a list of `{ number, "name" }`: names by number. */
export async function rowsOf(compiler: Compiler, macro: string): Promise<Record<string, string>> {
  const args = [...compiler.args, "-w", "-E", "-P", "-x", "c", "-", "-o", "-"];
  const stdin = `${compiler.prologue}\nROWS_BEGIN ${macro} ROWS_END\n`;
  const text = await outputOf("clang", args, { stdin, packages: COMPILER_PACKAGES });
  const list = /ROWS_BEGIN([^]*)ROWS_END/.exec(text)![1];
  const rows = [...list.matchAll(/\{\s*([^,{}"]+?)\s*,\s*"([^"]*)"\s*\}/g)];
  if (rows.length === 0) throw new Error(`Cannot find the list ${macro} in the headers`);
  const values = await valuesOf(compiler, new Map(rows.map(([, number], row) => [String(row), number])));
  return Object.fromEntries(rows.map(([, , name], row) => [hex(values.get(String(row))!), name]));
}
