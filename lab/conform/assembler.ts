/**
 * Asks assemblers for the bytes of instructions: LLVM's and GNU's, which know nothing of each other.
 *
 * @module
 */

import { runTool } from "./tools.ts";

/** An architecture, or one of its byte orders, as the assemblers name it. */
export interface AssemblyTarget {
  /** LLVM's arguments. */
  readonly llvm: readonly string[];
  /** GNU's assembler. */
  readonly gnu: string;
  /** The Debian package of that. */
  readonly gnuPackage: string;
  /** Its arguments. */
  readonly gnuArgs: readonly string[];
  /** How LLVM's wants a line spelled, where it is particular. */
  readonly spelling?: (line: string) => string;
  /** What every text begins with. */
  readonly directives?: readonly string[];
}

/** The package of LLVM's assembler. */
export const LLVM_PACKAGES: readonly string[] = ["llvm"];

/** LLVM knows PowerPC's registers by number. */
function numbered(line: string): string {
  return line.replaceAll(/\br(?=\d)/g, "");
}

/** The targets. */
export const ASSEMBLY_TARGETS: Readonly<Record<string, AssemblyTarget>> = {
  x86: {
    llvm: ["--triple=x86_64"],
    gnu: "x86_64-linux-gnu-as",
    gnuPackage: "binutils",
    gnuArgs: ["--64", "--listing-lhs-width=2"],
    directives: [".intel_syntax noprefix"],
  },
  s390: {
    llvm: ["--triple=systemz", "--mcpu=z14"],
    gnu: "s390x-linux-gnu-as",
    gnuPackage: "binutils-s390x-linux-gnu",
    gnuArgs: ["-march=z14", "--listing-lhs-width=2"], // 6 bytes in a row of the listing
  },
  ppc: {
    llvm: ["--triple=powerpc64", "--mattr=+booke"],
    spelling: numbered,
    gnu: "powerpc-linux-gnu-as",
    gnuPackage: "binutils-powerpc-linux-gnu",
    gnuArgs: ["-mregnames", "-many", "-a64"],
  },
  ppcle: {
    llvm: ["--triple=powerpc64le", "--mattr=+booke"],
    spelling: numbered,
    gnu: "powerpc64le-linux-gnu-as",
    gnuPackage: "binutils-powerpc64le-linux-gnu",
    gnuArgs: ["-mregnames", "-many"],
  },
  // Registers have o32's names: in n64, t0 would be another one.
  mips: {
    llvm: ["--triple=mips", "--mattr=+virt,+mips64r5"],
    gnu: "mips-linux-gnu-as",
    gnuPackage: "binutils-mips-linux-gnu",
    gnuArgs: ["-mips64r5", "-mabi=o64", "-mvirt"],
    directives: [".set noreorder"],
  },
  mipsel: {
    llvm: ["--triple=mipsel", "--mattr=+virt,+mips64r5"],
    gnu: "mipsel-linux-gnu-as",
    gnuPackage: "binutils-mipsel-linux-gnu",
    gnuArgs: ["-mips64r5", "-mabi=o64", "-mvirt"],
    directives: [".set noreorder"],
  },
};

/** What an assembler makes of lines: bytes in hexadecimal by line; a line that it does not take has none. */
type Assembler = (target: AssemblyTarget, lines: readonly string[]) => Promise<Map<string, string>>;

/** Assembles what an assembler takes, leaving out the lines that it complains of: bytes by a line's index. */
async function assembled(
  lines: readonly string[],
  directives: readonly string[],
  run: (text: string) => Promise<{ readonly out: string; readonly err: string }>,
  parse: (out: string) => Iterable<readonly [index: number, bytes: string]>,
): Promise<Map<number, string>> {
  const left = [...lines];
  for (let pass = 0; pass < 5; pass++) {
    // Whoever fills the section up to its alignment shall not do it in the last line.
    const { out, err } = await run([...directives, ...left, ".balign 16", ""].join("\n"));
    const bad = [...err.matchAll(/(?:<stdin>|\{standard input\}):(\d+):.*?error/gi)].map(([, line]) =>
      Number(line)
    );
    if (bad.length === 0) return new Map(parse(out));
    for (const line of bad) left[line - 1 - directives.length] = "";
  }
  throw new Error(`Cannot assemble ${lines.length} lines: they are bad in ever new ways`);
}

/** LLVM's assembler. What has to be relocated has no bytes yet. */
const llvm: Assembler = async (target, lines) => {
  // It prints instructions without their lines, so each gets a label.
  const labelled = lines.map((line, index) => `at_${index}: ${target.spelling?.(line) ?? line}`);
  const found = await assembled(
    labelled,
    target.directives ?? [],
    (stdin) => runTool("llvm-mc", [...target.llvm, "-show-encoding"], { stdin, packages: LLVM_PACKAGES }),
    function* (out) {
      for (const [, label, rest] of out.matchAll(/^at_(\d+):([^]*?)(?=^at_|(?![^]))/gm)) {
        const bytes = [...rest.matchAll(/encoding: \[([^\]]*)\]/g)].map(([, list]) => list.split(",")).flat();
        if (bytes.length > 0 && bytes.every((byte) => /^0x[0-9a-f]{2}$/.test(byte))) {
          yield [Number(label), bytes.map((byte) => byte.slice(2)).join("")];
        }
      }
    },
  );
  return new Map([...found].map(([index, bytes]) => [lines[index], bytes]));
};

/** GNU's assembler, which prints a listing. */
const gnu: Assembler = async (target, lines) => {
  const directives = target.directives ?? [];
  const found = await assembled(
    lines,
    directives,
    (stdin) =>
      runTool(target.gnu, [...target.gnuArgs, "-aln", "-o", "/dev/null", "-"], {
        stdin,
        packages: [target.gnuPackage],
      }),
    function* (out) {
      for (const [, line, bytes] of out.matchAll(/^ *(\d+) [0-9a-f]{4} ([0-9A-F]+(?: [0-9A-F]+)*)/gm)) {
        yield [Number(line) - 1 - directives.length, bytes.replaceAll(" ", "").toLowerCase()];
      }
    },
  );
  return new Map([...found].map(([index, bytes]) => [lines[index], bytes]));
};

/** What assemblers say of a target's lines. */
export interface EncodingRecord {
  /** Bytes in hexadecimal by line. */
  readonly bytes: Readonly<Record<string, string>>;
  /** Lines that GNU's assembler alone takes. */
  readonly gnuAlone: readonly string[];
  /** Lines that LLVM's alone takes. */
  readonly llvmAlone: readonly string[];
}

/** Asks both assemblers. Throws `Error` where they disagree, or where neither takes a line. */
export async function recordEncodings(
  target: AssemblyTarget,
  lines: readonly string[],
): Promise<EncodingRecord> {
  const [byGnu, byLlvm] = [await gnu(target, lines), await llvm(target, lines)];
  const bytes: Record<string, string> = {};
  for (const line of lines) {
    const [one, other] = [byGnu.get(line), byLlvm.get(line)];
    if (one === undefined && other === undefined) {
      throw new Error(`Cannot assemble "${line}" for ${target.gnu}`);
    }
    if (one !== undefined && other !== undefined && one !== other) {
      throw new Error(`Cannot record "${line}": GNU says ${one}, LLVM ${other}`);
    }
    bytes[line] = (one ?? other)!;
  }
  return {
    bytes,
    gnuAlone: lines.filter((line) => !byLlvm.has(line)),
    llvmAlone: lines.filter((line) => !byGnu.has(line)),
  };
}
