/**
 * A PowerPC kernel that reads and writes privileged registers, before and after it has rewritten its own text to use
 * the magic page. Under a host that runs it in problem state, each such instruction leaves guest mode at first;
 * afterwards almost none does, while the same functions run.
 *
 *     deno run guest/examples/ppc_magic_page.ts
 *
 * It takes its hypercall from the device tree, has its magic page mapped, and patches. Meanwhile its decrementer
 * ticks. What still leaves guest mode is what no page can stand for: the return from an interrupt, the decrementer
 * itself, and enabling interrupts where one is due.
 *
 * @module
 */

import {
  epaprInit,
  Machine,
  type MachineGuest,
  type MachineText,
  type MagicPageResult,
  MSR_EE,
  MSR_RI,
  placePpcHandlers,
  PPC_BLOCKS,
  PPC_TEXT_BASE,
  type PpcCore,
  type PpcCpu,
  ppcText,
  type PpcVm,
  type PpcVmOptions,
  setPpcVectors,
  TCR_DIE,
  TEMPLATE_SPACE,
  TSR_DIS,
  useMagicPage,
} from "@exitless/exitless";

/** Where the guest has its hypercall stub. */
const STUB = 0x8000;
/** Where copies of templates go. */
const TEMPLATES = { from: 0x4_0000, to: 0x4_0000 + TEMPLATE_SPACE };
/** Where it counts its ticks. */
const TICKS = 0x9000;
/** Cycles from one tick to the next. */
const TICK = 100_000;

/** How the guest is run. */
export interface MagicPageGuestOptions {
  /** Rounds of its work, before and again after. */
  readonly rounds: number;
  /** Called before and after each part. */
  readonly mark: (what: "begin" | "end", part: "before" | "after") => void;
  /** Called with what the patching came to. */
  readonly patched: (result: MagicPageResult) => void;
}

/** The guest: its text, and where it begins. */
export interface PpcGuestImage {
  /** Its text. */
  readonly text: MachineText<PpcCpu>;
  /** Where it begins. */
  readonly entry: number;
}

/** Privileged instructions of one round. */
export const ROUND_ACCESSES = 10;

/** A round: a critical region with interrupts off, and the registers that a kernel keeps its own things in. */
function* round(cpu: PpcCpu): MachineGuest {
  yield cpu.mfspr("SPRG3"); // where a kernel's per-CPU area is
  yield cpu.mtspr("SPRG1", cpu.r3);
  yield* interrupts(cpu, false);
  yield cpu.mfspr("SRR0");
  yield cpu.mtspr("SRR0", cpu.r3);
  yield cpu.mfspr("SRR1");
  yield cpu.work(200);
  yield* interrupts(cpu, true);
  yield cpu.mfspr("SPRG1");
  yield cpu.work(200);
}

/** Disables or enables interrupts as the core's kernels do: two instructions. */
function* interrupts(cpu: PpcCpu, on: boolean): MachineGuest {
  yield cpu.mfmsr();
  switch (cpu.core) {
    case "book3s-64":
      yield cpu.mtmsrd1(MSR_RI | (on ? MSR_EE : 0));
      break;
    case "book3s-32":
      yield cpu.mtmsr(on ? cpu.r3 | BigInt(MSR_EE) : cpu.r3 & ~BigInt(MSR_EE));
      break;
    case "booke":
      yield cpu.wrteei(on ? 1 : 0);
  }
}

/** A tick. */
function* decrementer(cpu: PpcCpu): MachineGuest {
  yield cpu.mtspr("SPRG2", 0);
  yield cpu.mfspr("SRR0");
  yield cpu.mfspr("SRR1");
  yield cpu.lwz(TICKS);
  yield cpu.stw(TICKS, cpu.r3 + 1n);
  yield cpu.mtspr("DEC", TICK);
  if (cpu.core === "booke") yield cpu.mtspr("TSR", TSR_DIS);
}

/** Links the guest for a core and a byte order. */
export function magicPageGuest(
  core: PpcCore,
  order: PpcVm["order"],
  { rounds, mark, patched }: MagicPageGuestOptions,
): PpcGuestImage {
  const text = ppcText(core);
  placePpcHandlers(text, core, { DECREMENTER: decrementer });
  const entry = text.add(function* main(cpu: PpcCpu) {
    const fdt = Number(cpu.r3);
    yield* setPpcVectors(cpu);
    yield* epaprInit(cpu, { fdt, stub: STUB, order });
    cpu.setRegister(2, 0x2000); // the current task: never the stack
    if (core === "booke") yield cpu.mtspr("TCR", TCR_DIE);
    yield cpu.mtspr("DEC", TICK);
    yield* part(cpu, "before");
    // The vectors, and this function.
    const text = [{ from: 0, to: STUB }, { from: PPC_TEXT_BASE, to: PPC_TEXT_BASE + PPC_BLOCKS[core].size }];
    patched(yield* useMagicPage(cpu, { stub: STUB, text, space: TEMPLATES }));
    yield* part(cpu, "after");
  });

  function* part(cpu: PpcCpu, name: "before" | "after"): MachineGuest {
    yield* interrupts(cpu, true);
    mark("begin", name);
    for (let i = 0; i < rounds; i++) yield* round(cpu);
    mark("end", name);
    yield* interrupts(cpu, false);
  }

  return { text, entry };
}

/** What a part of a run took. */
export interface PartCounts {
  /** Exits, by name. */
  readonly exits: Readonly<Record<string, number>>;
  /** Cycles. */
  readonly cycles: number;
  /** Ticks. */
  readonly ticks: number;
}

/** What a run showed. */
export interface MagicPageRun {
  /** The patching. */
  readonly patching: MagicPageResult;
  /** Before it. */
  readonly before: PartCounts;
  /** After it. */
  readonly after: PartCounts;
}

/** Runs it under a host. */
export function runMagicPage(options: PpcVmOptions = {}, rounds: number = 1000): MagicPageRun {
  const vm = new Machine().createPpcVm(options);
  const [vcpu] = vm.vcpus;
  const parts = new Map<string, PartCounts>();
  let patching: MagicPageResult | undefined;
  let begun: PartCounts | undefined;
  const now = (): PartCounts => ({
    exits: vm.exits(),
    cycles: vcpu.clock,
    ticks: vm.words.read(TICKS, 4)!,
  });
  const { text, entry } = magicPageGuest(vm.host.core, vm.order, {
    rounds,
    mark(what, part) {
      if (what === "begin") begun = now();
      else parts.set(part, difference(now(), begun!));
    },
    patched: (result) => patching = result,
  });
  vm.load(text);
  vm.start(entry);
  vm.machine.run();
  return { patching: patching!, before: parts.get("before")!, after: parts.get("after")! };
}

function difference(later: PartCounts, earlier: PartCounts): PartCounts {
  const exits: Record<string, number> = {};
  for (const [name, count] of Object.entries(later.exits)) {
    const more = count - (earlier.exits[name] ?? 0);
    if (more > 0) exits[name] = more;
  }
  return { exits, cycles: later.cycles - earlier.cycles, ticks: later.ticks - earlier.ticks };
}

/** The ways to run it that the program shows. */
export const WAYS: readonly PpcVmOptions[] = [
  { host: "book3s-64-pr", order: "big" },
  { host: "book3s-64-pr", order: "little" },
  { host: "book3s-32-pr", order: "big" },
  { host: "e500v2", order: "big" },
  { host: "e500mc", order: "big" },
];

if (import.meta.main) {
  const rounds = 1000;
  console.log(
    `${rounds} rounds of ${ROUND_ACCESSES} privileged register accesses, and a tick each ${TICK} cycles`,
  );
  for (const options of WAYS) {
    const { patching, before, after } = runMagicPage(options, rounds);
    const { outcome, words, branches } = patching;
    console.log(`\n${options.host}, ${options.order}-endian`);
    console.log(`  patching: ${outcome}, ${words} instructions became others, ${branches} became branches`);
    for (const [name, { exits, cycles, ticks }] of Object.entries({ before, after })) {
      const list = Object.entries(exits).map(([exit, count]) => `${exit} ${count}`).join("  ");
      console.log(
        `  ${name.padEnd(7)} ${Math.round(cycles / rounds).toString().padStart(6)} cycles a round  ` +
          `${ticks.toString().padStart(4)} ticks  exits: ${list || "none"}`,
      );
    }
  }
}
