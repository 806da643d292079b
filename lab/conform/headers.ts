/**
 * Records what headers say.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import type { HeaderSet } from "./manifest.ts";
import type { Package, Packages } from "./packages.ts";
import {
  type Compiler,
  preprocessed,
  rowsOf,
  type StructRecord,
  structsOf,
  textOf,
  valuesOf,
} from "./probe.ts";
import { Missing } from "./tools.ts";

/** What a set of headers says. */
export interface SetRecord {
  /** The packages, with their versions. */
  readonly packages: Readonly<Record<string, string>>;
  /** What it was compiled for. */
  readonly target: string;
  /** Integer constants by header and name, as 64-bit hexadecimal numbers. */
  readonly constants: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** Macros whose names are like those of constants, but that are none: text, or something with braces. */
  readonly otherMacros: Readonly<Record<string, readonly string[]>>;
  /** Structures by name. */
  readonly structs: Readonly<Record<string, StructRecord>>;
  /** Lists of numbers and names, by the name of their macro. */
  readonly lists: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** All macros of some headers, by name. */
  readonly whole: Readonly<Record<string, readonly string[]>>;
}

interface Found {
  readonly packages: readonly Package[];
  readonly folders: readonly string[];
}

/** What kernel packages keep in a folder named after themselves. */
function folderOf(found: Package, folder: string): string {
  return folder.startsWith("usr/") ? found.root + folder : `${found.root}usr/src/${found.name}/${folder}`;
}

async function exists(folder: string): Promise<boolean> {
  return await Deno.stat(folder).then(() => true, () => false);
}

/** The first origin that is there. Throws {@linkcode Missing} naming every origin's packages where none is. */
async function foundIn(set: HeaderSet, all: Packages): Promise<Found> {
  for (const origin of set.origins) {
    const found = await Promise.all(origin.packages.map((pattern) => all.find(pattern)));
    const packages = found.filter((one) => one !== undefined);
    if (packages.length < found.length) continue;
    const folders = origin.include.map(([number, folder]) => folderOf(packages[number], folder));
    if (await exists(folders[0])) return { packages, folders };
  }
  throw new Missing(
    `the headers of ${set.name}`,
    set.origins.map(({ packages, note }) => packages.join(" and ") + (note ?? "")),
  );
}

/** Arguments that have the compiler find asm-generic's headers where an architecture has none of its own. */
async function genericArgs(set: HeaderSet, found: Package): Promise<string[]> {
  const args: string[] = [];
  for (const [own, generic] of set.generic ?? []) {
    for await (const { name, isFile } of Deno.readDir(folderOf(found, generic))) {
      if (!isFile) continue;
      const from = `${folderOf(found, own)}/${name}`;
      if (await exists(from)) continue;
      args.push("-Xclang", "-remap-file", "-Xclang", `${from};${folderOf(found, generic)}/${name}`);
    }
  }
  return args;
}

/** The macros that a text defines, but for those with arguments. */
function macrosOf(text: string): string[] {
  return [...text.matchAll(/^#define (\w+)(?!\w|\()/gm)].map(([, name]) => name);
}

/** Asks a set of headers. Throws {@linkcode Missing} where they, or the compiler, are not here. */
export async function recordSet(set: HeaderSet, all: Packages): Promise<SetRecord> {
  const { packages, folders } = await foundIn(set, all);
  const compiler: Compiler = {
    args: [
      `--target=${set.target}`,
      ...folders.map((folder) => `-I${folder}`),
      ...set.args ?? [],
      ...await genericArgs(set, packages[0]),
    ],
    prologue: [
      ...set.prologue ?? [],
      ...[...Object.keys(set.headers), ...set.besides ?? [], ...set.whole ?? []].map((header) =>
        `#include <${header}>`
      ),
    ].join("\n"),
  };
  const text = await preprocessed(compiler);
  const asked = Object.entries(set.headers).map(([header, names]) => {
    const identifiers = new Set(textOf(text, header).match(/\b[A-Za-z_]\w*\b/g));
    return [header, [...identifiers].filter((name) => names.test(name))] as const;
  });
  const values = await valuesOf(
    compiler,
    new Map(asked.flatMap(([, names]) => names.map((name) => [name, name] as const))),
  );
  const constants = Object.fromEntries(asked.map(([header, names]) => {
    const found = names.filter((name) => values.has(name)).map((name) =>
      [name, hex(values.get(name)!)] as const
    );
    if (found.length === 0) throw new Error(`Cannot find constants like ${set.headers[header]} in ${header}`);
    return [header, Object.fromEntries(found)] as const;
  }));
  const otherMacros = asked.map(([header, names]) => {
    const defined = new Set(macrosOf(textOf(text, header)));
    return [header, names.filter((name) => defined.has(name) && !values.has(name))] as const;
  });
  const lists: Record<string, Record<string, string>> = {};
  for (const macro of set.lists ?? []) lists[macro] = await rowsOf(compiler, macro);
  const whole = (set.whole ?? []).map((header) => [header, macrosOf(textOf(text, header))] as const);
  return {
    packages: Object.fromEntries(packages.map(({ name, version }) => [name, version])),
    target: set.target,
    constants,
    otherMacros: Object.fromEntries(otherMacros.filter(([, names]) => names.length > 0)),
    structs: await structsOf(compiler, set.structs ?? {}),
    lists,
    whole: Object.fromEntries(whole),
  };
}
