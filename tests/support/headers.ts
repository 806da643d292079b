/**
 * What the kernel's headers and independent assemblers say, as `deno task conform:headers` recorded it in tests/data.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { Layout } from "../../abi/mod.ts";
import type { EncodingsRecord, HeadersRecord } from "../../lab/conform/main.ts";

function read<T>(name: string): T {
  return JSON.parse(Deno.readTextFileSync(new URL(`../data/${name}.json`, import.meta.url)));
}

/** The headers of two releases: v6.19, which the tables describe, stands between them. */
export const HEADERS: readonly HeadersRecord[] = ["6.1", "7.3"].map((release) => read(`headers_${release}`));

/** The assemblers. */
export const ENCODINGS: EncodingsRecord = read("encodings");

/** The sets of headers of an architecture, in every release. */
export function setsOf(release: HeadersRecord, arch: string): string[] {
  return Object.keys(release.sets).filter((name) => name === arch || name.startsWith(`${arch}-`));
}

/** Every value that headers of an architecture give a name, in whatever release; mostly one. */
export function valuesOf(arch: string, name: string): bigint[] {
  const found = HEADERS.flatMap((release) =>
    setsOf(release, arch).flatMap((set) =>
      Object.values(release.sets[set].constants).filter((header) => Object.hasOwn(header, name)).map((
        header,
      ) => BigInt(header[name]))
    )
  );
  return [...new Set(found)];
}

/** The names that a pattern matches in the headers of an architecture, with the releases that have them. */
export function namesLike(arch: string, pattern: RegExp): Map<string, string[]> {
  const names = new Map<string, string[]>();
  for (const release of HEADERS) {
    for (const set of setsOf(release, arch)) {
      for (const header of Object.values(release.sets[set].constants)) {
        for (const name of Object.keys(header)) {
          if (!pattern.test(name)) continue;
          const releases = names.get(name) ?? [];
          if (!releases.includes(release.linux)) releases.push(release.linux);
          names.set(name, releases);
        }
      }
    }
  }
  return names;
}

/** An architecture. */
export type Arch = "x86" | "s390" | "ppc" | "mips";

/** That headers give a name one value, and that it is this one. */
export function assertValue(arch: Arch, name: string, value: number | bigint): void {
  const shown = (values: bigint[]) => values.map((number) => `0x${number.toString(16)}`);
  assertEquals(shown(valuesOf(arch, name)), shown([BigInt.asUintN(64, BigInt(value))]), `${arch} ${name}`);
}

/** That a layout has the sizes and offsets that compilers of every release give the structure. */
export function assertLayout(
  sets: readonly string[],
  struct: string,
  layout: Layout,
  memberOf: (field: string) => string | undefined = (field) => field,
): void {
  for (const release of HEADERS) {
    for (const set of sets) {
      const found = release.sets[set].structs[struct];
      const where = `${struct} of ${set} ${release.linux}`;
      assertEquals(layout.size, found.size, where);
      for (const [field, { offset, size }] of Object.entries(layout.fields)) {
        const member = memberOf(field);
        if (member !== undefined) {
          assertEquals([offset, size], [...found.members[member]], `${where}: ${field}`);
        }
      }
    }
  }
}
