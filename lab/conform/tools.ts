/**
 * The programs that conformance asks: a compiler, assemblers, Debian's package manager. None of them installs anything.
 *
 * @module
 */

/** That a program or a package is not here, with the Debian package that has it. */
export class Missing extends Error {
  /** The error's name. */
  override readonly name: string = "Missing";
  /** The Debian packages, any of which will do. */
  readonly packages: readonly string[];

  /** `what` is not here; one of `packages` has it. */
  constructor(what: string, packages: readonly string[]) {
    super(`${what}: ${packages.join(", or ")}`);
    this.packages = packages;
  }
}

/** What a program printed. */
export interface Printed {
  /** Its exit code. */
  readonly code: number;
  /** On standard output. */
  readonly out: string;
  /** On standard error. */
  readonly err: string;
}

/** Runs a program on a text. Throws {@linkcode Missing} where it is not installed. */
export async function runTool(
  program: string,
  args: readonly string[],
  options: { readonly stdin?: string; readonly packages?: readonly string[] } = {},
): Promise<Printed> {
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(program, {
      args: [...args],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) throw new Missing(program, options.packages ?? [program]);
    throw error;
  }
  const output = child.output();
  const writer = child.stdin.getWriter();
  // A program that has seen enough closes its end.
  await writer.write(new TextEncoder().encode(options.stdin ?? "")).catch(() => {});
  await writer.close().catch(() => {});
  const { code, stdout, stderr } = await output;
  const text = new TextDecoder();
  return { code, out: text.decode(stdout), err: text.decode(stderr) };
}

/** What a program prints that must not fail. Throws `Error` with what it said where it does. */
export async function outputOf(
  program: string,
  args: readonly string[],
  options: { readonly stdin?: string; readonly packages?: readonly string[] } = {},
): Promise<string> {
  const { code, out, err } = await runTool(program, args, options);
  if (code !== 0) {
    const said = err.split("\n").find((line) => line.includes("error")) ?? err;
    throw new Error(`Cannot run ${program}: ${said.trim()}`);
  }
  return out;
}
