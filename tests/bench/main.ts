/**
 * The benchmark: prints each figure as a ratio to the yardstick of the same run, beside its limit, and exits with 1
 * where one is missed.
 *
 * @module
 */

import config from "../../deno.json" with { type: "json" };
import { BACKENDS } from "../../host/mod.ts";
import { FIGURES } from "./figures.ts";
import type { Round } from "./stopwatch.ts";

interface Row {
  readonly name: string;
  readonly measured: string;
  readonly value: number;
  readonly limit: number;
  readonly unit: string;
}

/** In how many processes a figure is measured: what V8 compiles, and where things lie in memory, differs among them. */
const PROCESSES = 3;
const MEGABYTE = 1e6;
const MEMORY_LIMIT = 120;
/** How much dearer an interrupt may be among 512 vCPUs than among 80. */
const GROWTH_LIMIT = 1.3;
/**
 * What translation may cost, in yields: each about a quarter more than most of several runs reached, and above all of
 * them, as a load beside its yardstick varies by that much.
 *
 *     flatLoad         a yield, and the load without translation: what guests without tables pay, whoever else has some
 *     tlbHit           a load, with the check that its instruction's page is the last one's, a look at one slot of the
 *                      TLB, and a window on the page
 *     tlbMiss          a hit, a search of 12 ways, the guest's 4 levels through guest-physical mappings that are known,
 *                      4 levels of EPT or nested tables for the page, and an entry in place of another in both arrays
 *     contextSwitch    MOV to CR3 that keeps what is cached, a search for the instruction's page, and a load
 *     demandFault      7 instructions, two walks, two invalidations, a gate, and a generator for the handler
 */
const TRANSLATION_LIMITS = { flatLoad: 5, tlbHit: 12, tlbMiss: 75, contextSwitch: 25, demandFault: 240 };
/** How much dearer an interrupt may be that hardware delivers than one that exits. */
const ACCELERATED_LIMIT = 1;

/** The compiler's options of the command line: what is measured is what its users get. */
const [COMPILER] = config.tasks.exitless.command.match(/--v8-flags=\S+/)!;

async function measure<T>(script: string, ...args: string[]): Promise<T> {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "--no-lock", COMPILER, new URL(script, import.meta.url).href, ...args],
    stderr: "inherit",
  });
  const { success, stdout } = await command.output();
  if (!success) throw new Error(`Cannot measure: ${script} failed`);
  return JSON.parse(new TextDecoder().decode(stdout));
}

function ratioOf({ operation, yardstick }: Round): number {
  return operation / yardstick;
}

/** Measures each figure of a vendor in several processes, some time apart: of their ratios, the one in the middle. */
async function figuresOf(backend: string): Promise<Map<string, Round>> {
  const rounds: [name: string, round: Round][] = [];
  for (let process = 0; process < PROCESSES; process++) {
    for (const name of Object.keys(FIGURES)) {
      rounds.push([name, await measure<Round>("figures.ts", backend, name)]);
    }
  }
  rounds.sort(([, a], [, b]) => ratioOf(a) - ratioOf(b));
  const byName = Map.groupBy(rounds, ([name]) => name);
  return new Map([...byName].map(([name, its]) => [name, its[PROCESSES >> 1][1]]));
}

async function rowsOf(backend: string): Promise<Row[]> {
  const figures = await figuresOf(backend);
  const ratio = (name: string): number => ratioOf(figures.get(name)!);
  const row = (name: string, title: string, limit: number): Row => {
    const { operation, yardstick } = figures.get(name)!;
    const measured = `${operation.toFixed(0)} ns / ${yardstick.toFixed(1)} ns`;
    return { name: `${backend}: ${title}`, measured, value: ratio(name), limit, unit: "x" };
  };
  const against = (title: string, [one, other]: [string, string], limit: number): Row => ({
    name: `${backend}: ${title}`,
    measured: `${ratio(one).toFixed(1)} x / ${ratio(other).toFixed(1)} x`,
    value: ratio(one) / ratio(other),
    limit,
    unit: "x",
  });
  return [
    row("vmcall", "vmcall round trip", 8),
    row("ipi", "x2APIC IPI, send to EOI", 25),
    row("broadcast80", "broadcast to 79, per IPI", 30),
    row("clusters80", "5 clusters of 16, per IPI", 30),
    against("accelerated IPI against one that exits", ["accelerated", "ipi"], ACCELERATED_LIMIT),
    against("broadcast to 511 against 79", ["broadcast512", "broadcast80"], GROWTH_LIMIT),
    row("flatLoad", "flat load", TRANSLATION_LIMITS.flatLoad),
    row("tlbHit", "TLB hit", TRANSLATION_LIMITS.tlbHit),
    row("tlbMiss", "TLB miss, two dimensions", TRANSLATION_LIMITS.tlbMiss),
    row("contextSwitch", "switch of address spaces and a load", TRANSLATION_LIMITS.contextSwitch),
    row("demandFault", "demand fault", TRANSLATION_LIMITS.demandFault),
  ];
}

function print({ name, measured, value, limit, unit }: Row): void {
  const verdict = value <= limit ? "ok" : "MISSED";
  const columns = [
    name.padEnd(44),
    measured.padStart(20),
    `${value.toFixed(unit === "x" ? 2 : 0)} ${unit}`.padStart(10),
    `at most ${limit} ${unit}`.padStart(16),
    verdict,
  ];
  console.log(columns.join("  "));
}

const rows: Row[] = [];
for (const backend of BACKENDS) rows.push(...await rowsOf(backend));
const resident = await measure<number>("memory.ts") / MEGABYTE;
rows.push({
  name: "80 vCPUs, 64 MiB untouched: resident",
  measured: "",
  value: resident,
  limit: MEMORY_LIMIT,
  unit: "MB",
});
for (const row of rows) print(row);
if (rows.some(({ value, limit }) => value > limit)) Deno.exit(1);
