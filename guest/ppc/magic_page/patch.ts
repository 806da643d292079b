/**
 * A guest maps the magic page and rewrites its own text (arch/powerpc/kernel/kvm.c, kvm_use_magic_page).
 *
 * @module
 */

import {
  BRANCH_REACH,
  KVM_FEATURE_MAGIC_PAGE,
  KVM_MAGIC_PAGE,
  MachineFault,
  MAGIC_PAGE_FLAG_NOT_MAPPED_NX,
  MSR_EE,
  ppcAsm,
  type PpcCpu,
} from "../../../abi/mod.ts";
import type { GuestValue } from "../../kernel/cpumask.ts";
import { patchInstruction } from "../epapr.ts";
import { ppcHypercall } from "../hypercall.ts";
import { patchFor } from "./patch_table.ts";
import { assembleTemplate } from "./templates.ts";

/** Bytes that Linux sets aside for copies of templates (arch/powerpc/kernel/kvm_emul.S, kvm_tmp). */
export const TEMPLATE_SPACE = 0x1_0000;

/** A range of text: its first address, and one past its last. */
export interface TextRange {
  /** The first address. */
  readonly from: number;
  /** One past the last. */
  readonly to: number;
}

/** What a guest patches, and with what. */
export interface MagicPageOptions {
  /** The patched hypercall stub. */
  readonly stub: number;
  /** The text that is searched. */
  readonly text: readonly TextRange[];
  /** Where copies of templates go. It is not searched. */
  readonly space: TextRange;
  /**
   * Below this address nothing becomes a branch: vectors of a relocatable kernel run elsewhere than they are linked.
   */
  readonly endOfVectors?: number;
}

/** What came of it. */
export interface MagicPageResult {
  /**
   * "absent": the host has no magic page. "unmapped": it said that it mapped one, and none is there. "failed": some
   * instruction found no room, or was too far away, and stays as it was. "worked": all are rewritten.
   */
  readonly outcome: "absent" | "unmapped" | "failed" | "worked";
  /** Instructions that became other ones. */
  readonly words: number;
  /** Instructions that became branches. */
  readonly branches: number;
}

/** Has the host map the magic page for this CPU; each CPU of a guest does. Gives the page's features. */
export function* mapMagicPage(cpu: PpcCpu, stub: number): GuestValue<number> {
  const { results } = yield* ppcHypercall(cpu, stub, "KVM_HC_PPC_MAP_MAGIC_PAGE", {
    realAddress: KVM_MAGIC_PAGE,
    effectiveAddress: KVM_MAGIC_PAGE | MAGIC_PAGE_FLAG_NOT_MAPPED_NX,
  });
  return Number(results.features);
}

/** Maps the page, tests it, and rewrites the text. */
export function* useMagicPage(cpu: PpcCpu, options: MagicPageOptions): GuestValue<MagicPageResult> {
  const { stub, text, space } = options;
  const offered = yield* ppcHypercall(cpu, stub, "KVM_HC_FEATURES", {});
  if (offered.status !== 0 || (Number(offered.results.features) & (1 << KVM_FEATURE_MAGIC_PAGE)) === 0) {
    return { outcome: "absent", words: 0, branches: 0 };
  }
  const features = yield* mapMagicPage(cpu, stub);
  try {
    yield cpu.lwz(KVM_MAGIC_PAGE);
  } catch (error) {
    if (!(error instanceof MachineFault)) throw error;
    return { outcome: "unmapped", words: 0, branches: 0 };
  }
  // Registers that can be read without the host are in the page and in the processor: nobody may come between.
  yield cpu.mfmsr();
  const msr = cpu.r3;
  yield cpu.mtmsr(msr & ~BigInt(MSR_EE));
  const patcher = new Patcher(cpu, features, options);
  for (const { from, to } of text) {
    for (let at = from; at < to; at += 4) {
      if (at < space.from || at >= space.to) yield* patcher.check(at);
    }
  }
  yield cpu.mtmsr(msr);
  return patcher.result;
}

class Patcher {
  readonly #cpu: PpcCpu;
  readonly #features: number;
  readonly #space: TextRange;
  readonly #endOfVectors: number;
  #next: number;
  #failed = false;
  #words = 0;
  #branches = 0;

  constructor(cpu: PpcCpu, features: number, { space, endOfVectors }: MagicPageOptions) {
    this.#cpu = cpu;
    this.#features = features;
    this.#space = space;
    this.#next = space.from;
    this.#endOfVectors = endOfVectors ?? 0;
  }

  get result(): MagicPageResult {
    return { outcome: this.#failed ? "failed" : "worked", words: this.#words, branches: this.#branches };
  }

  /** Rewrites the word at an address, if it is one that is rewritten. */
  *check(at: number): GuestValue<void> {
    const { core } = this.#cpu;
    yield this.#cpu.lwz(at);
    const original = Number(this.#cpu.r3);
    const patch = patchFor(original, { core, features: this.#features });
    if (patch === undefined) return;
    if (patch.kind === "word") {
      yield* patchInstruction(this.#cpu, at, patch.word);
      this.#words++;
      return;
    }
    const copy = this.#next;
    const far = Math.max(Math.abs(copy - at), Math.abs(copy + TEMPLATE_BYTES - at)) >= BRANCH_REACH;
    const words = far
      ? []
      : assembleTemplate(patch.template, { ...patch, core, original, at: copy, back: at + 4 });
    if (far || copy + 4 * words.length > this.#space.to) {
      this.#failed = true;
      return;
    }
    this.#next += 4 * words.length;
    if (at < this.#endOfVectors) return;
    for (const [index, word] of words.entries()) yield* patchInstruction(this.#cpu, copy + 4 * index, word);
    yield* patchInstruction(this.#cpu, at, ppcAsm.b(at, copy));
    this.#branches++;
  }
}

/** More than any template has. */
const TEMPLATE_BYTES = 0x100;
