/**
 * Runs a subcommand of `deno` with the genuine `@std` where it can be had, and with the stand-ins of tests/std where
 * JSR is out of reach: `with_std.ts SUBCOMMAND [ARGUMENTS]`. STD=jsr or STD=local forces either. The exit code is
 * the subcommand's.
 *
 * @module
 */

const PROBE = "tests/std/probe.ts";
const STAND_INS = "tests/std/import_map.json";
const PATIENCE_MS = 15_000;

/** Runs `deno`; its output is ours, or nobody's. */
async function deno(
  args: readonly string[],
  options: { quiet?: boolean; signal?: AbortSignal },
): Promise<number> {
  const output = options.quiet ? "null" : "inherit";
  const command = new Deno.Command(Deno.execPath(), {
    args: [...args],
    stdin: "null",
    stdout: output,
    stderr: output,
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  return (await command.spawn().status).code;
}

/** Whether every `@std` module that the tests import is here, or can be fetched. */
async function stdIsHere(): Promise<boolean> {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  return await deno(["cache", "--quiet", "--no-lock", PROBE], { quiet: true, signal }) === 0;
}

async function useStandIns(): Promise<boolean> {
  const forced = Deno.env.get("STD") ?? "";
  switch (forced) {
    case "jsr":
      return false;
    case "local":
      return true;
    case "":
      break;
    default:
      console.error(`Cannot use STD=${forced}: allowed are jsr, local`);
      Deno.exit(2);
  }
  if (await stdIsHere()) return false;
  console.error(`JSR is out of reach: tests/std stands in for @std`);
  return true;
}

const [subcommand, ...rest] = Deno.args;
if (subcommand === undefined) {
  console.error("Cannot run nothing: give a subcommand of deno");
  Deno.exit(2);
}
const importMap = await useStandIns() ? [`--import-map=${STAND_INS}`] : [];
Deno.exit(await deno([subcommand, ...importMap, ...rest], {}));
