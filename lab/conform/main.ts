/**
 * `deno task conform:headers [PACKAGES]`: asks the official kernel headers for the constants and structures of the ABI,
 * and assemblers for the bytes of its instructions, and records what they say in tests/data. Tests compare the tables
 * to the record alone.
 *
 * The headers are those that are installed, or those of the `.deb` files in the folder PACKAGES. Nothing is installed:
 * where a program or headers are missing, it names the Debian packages that have them, and ends with code 2.
 *
 * @module
 */

import { ASSEMBLY_TARGETS, type EncodingRecord, LLVM_PACKAGES, recordEncodings } from "./assembler.ts";
import { recordSet, type SetRecord } from "./headers.ts";
import { HEADER_SETS } from "./manifest.ts";
import { downloaded, INSTALLED, type Packages } from "./packages.ts";
import { COMPILER_PACKAGES } from "./probe.ts";
import { SAMPLES } from "./samples.ts";
import { Missing, outputOf } from "./tools.ts";

/** What the headers of one release of Linux say. */
export interface HeadersRecord {
  /** The release: `6.1`. */
  readonly linux: string;
  /** The compiler, as it names itself. */
  readonly compiler: string;
  /** What each set of headers says. */
  readonly sets: Readonly<Record<string, SetRecord>>;
}

/** The release that all packages are of: 6.1 for 6.1.192-2. Throws `Error` where they disagree. */
function releaseOf(sets: readonly SetRecord[]): string {
  const releases = new Set(
    sets.flatMap(({ packages }) => Object.values(packages)).map((version) => /^\d+\.\d+/.exec(version)?.[0]),
  );
  if (releases.size !== 1) {
    throw new Error(`Cannot record headers of several releases: ${[...releases].join(", ")}`);
  }
  return [...releases][0]!;
}

async function collect<T>(missing: Missing[], asked: () => Promise<T>): Promise<T | undefined> {
  try {
    return await asked();
  } catch (error) {
    if (!(error instanceof Missing)) throw error;
    missing.push(error);
  }
}

async function recordHeaders(packages: Packages, missing: Missing[]): Promise<HeadersRecord | undefined> {
  const compiler = await collect(missing, () => versionOf("clang", COMPILER_PACKAGES));
  const sets: Record<string, SetRecord> = {};
  for (const set of HEADER_SETS) {
    const found = await collect(set.optional ? [] : missing, () => recordSet(set, packages));
    if (found !== undefined) sets[set.name] = found;
  }
  if (missing.length > 0) return undefined;
  return { linux: releaseOf(Object.values(sets)), compiler: compiler!, sets };
}

/** What the assemblers say of the tables' instructions. */
export interface EncodingsRecord {
  /** The assemblers, as they name themselves. */
  readonly assemblers: readonly string[];
  /** What they say, by target. */
  readonly targets: Readonly<Record<string, EncodingRecord>>;
}

async function versionOf(program: string, packages: readonly string[]): Promise<string> {
  const said = await outputOf(program, ["--version"], { packages });
  return said.split("\n").find((line) => /\d/.test(line))!.trim();
}

async function recordAssemblers(missing: Missing[]): Promise<EncodingsRecord | undefined> {
  const before = missing.length;
  const assemblers = new Set<string | undefined>();
  const targets: Record<string, EncodingRecord> = {};
  for (const [name, samples] of Object.entries(SAMPLES)) {
    const target = ASSEMBLY_TARGETS[name];
    assemblers.add(await collect(missing, () => versionOf("llvm-mc", LLVM_PACKAGES)));
    assemblers.add(await collect(missing, () => versionOf(target.gnu, [target.gnuPackage])));
    const lines = [...new Set(samples.map(({ line }) => line))];
    const found = await collect(missing, () => recordEncodings(target, lines));
    if (found !== undefined) targets[name] = found;
  }
  if (missing.length > before) return undefined;
  return { assemblers: [...assemblers] as string[], targets };
}

async function write(name: string, record: unknown): Promise<void> {
  const path = `tests/data/${name}.json`;
  await Deno.mkdir("tests/data", { recursive: true });
  await Deno.writeTextFile(path, JSON.stringify(record, null, 2) + "\n");
  console.log(`wrote ${path}`);
}

/** Runs the command; the exit code. */
export async function conformHeaders(args: readonly string[]): Promise<number> {
  if (args.length > 1 || args[0]?.startsWith("-")) {
    console.error(
      "Cannot record headers: allowed is one folder of .deb files, or nothing for what is installed",
    );
    return 2;
  }
  const missing: Missing[] = [];
  const headers = await recordHeaders(args.length === 0 ? INSTALLED : await downloaded(args[0]), missing);
  const encodings = await recordAssemblers(missing);
  if (headers === undefined || encodings === undefined) {
    const named = new Set(missing.map(({ message }) => message));
    const lines = [...named].map((what) => `  ${what}`);
    console.error(
      ["Cannot record headers: these are not here, but Debian has them in packages", ...lines].join("\n"),
    );
    return 2;
  }
  await write(`headers_${headers.linux}`, headers);
  await write("encodings", encodings);
  return 0;
}

/** The same; what whoever typed it did wrong is one line, and 2. */
async function main(args: readonly string[]): Promise<number> {
  try {
    return await conformHeaders(args);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    console.error(error.message);
    return 2;
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
