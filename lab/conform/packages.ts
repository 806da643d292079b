/**
 * Where headers come from: Debian packages that are installed, or that lie in a folder as they were downloaded
 * (`apt-get download`). The latter are unpacked beside themselves; nothing is installed.
 *
 * @module
 */

import { outputOf, runTool } from "./tools.ts";

/** A package whose files can be read. */
export interface Package {
  /** Its name. */
  readonly name: string;
  /** Its version. */
  readonly version: string;
  /** What stands before the paths of its files: `/`, or a folder. */
  readonly root: string;
}

/** The packages that there are. */
export interface Packages {
  /** The last package, by name, whose name a pattern with `*` matches; undefined where there is none. */
  find(pattern: string): Promise<Package | undefined>;
}

function matches(pattern: string, name: string): boolean {
  const parts = pattern.split("*").map((part) => part.replaceAll(/[.+]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`).test(name);
}

/** The packages that are installed. */
export const INSTALLED: Packages = {
  async find(pattern) {
    const format = "${db:Status-Abbrev}\t${Package}\t${Version}\n";
    const { out } = await runTool("dpkg-query", ["-W", "-f", format, pattern], { packages: ["dpkg"] });
    const found = out.split("\n").filter((line) => line.startsWith("ii")).map((line) => line.split("\t"));
    const last = found.at(-1); // dpkg sorts by name
    return last === undefined ? undefined : { name: last[1], version: last[2], root: "/" };
  },
};

/** The names of a folder's files. Throws `RangeError` for one that cannot be read. */
async function filesOf(folder: string): Promise<string[]> {
  try {
    return (await Array.fromAsync(Deno.readDir(folder))).map(({ name }) => name);
  } catch (error) {
    throw new RangeError(`Cannot read folder ${folder}: ${(error as Error).message}`);
  }
}

/** The packages that lie in a folder as `.deb` files. */
export async function downloaded(folder: string): Promise<Packages> {
  const files: { file: string; name: string; version: string }[] = [];
  for (const file of await filesOf(folder)) {
    if (!file.endsWith(".deb")) continue;
    const fields = ["-W", "--showformat=${Package}\t${Version}", `${folder}/${file}`];
    const [name, version] = (await outputOf("dpkg-deb", fields, { packages: ["dpkg"] })).split("\t");
    files.push({ file, name, version });
  }
  files.sort((a, b) => a.name < b.name ? -1 : 1);
  const unpacked = new Map<string, Promise<string>>();
  return {
    async find(pattern) {
      const found = files.findLast(({ name }) => matches(pattern, name));
      if (found === undefined) return undefined;
      const { file, name, version } = found;
      const root = `${folder}/${name}.unpacked/`;
      if (!unpacked.has(file)) {
        unpacked.set(file, outputOf("dpkg-deb", ["-x", `${folder}/${file}`, root], { packages: ["dpkg"] }));
      }
      await unpacked.get(file);
      return { name, version, root };
    },
  };
}
