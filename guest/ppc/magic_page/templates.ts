/**
 * What privileged instructions become that a single load or store cannot stand for. Each runs in a critical section,
 * in which the host holds interrupts back: `critical` equals r1. Two registers and the condition register are kept in
 * the page meanwhile, so that none of the guest's changes.
 *
 * Where an interrupt is pending that the guest has just allowed, the original instruction is executed after all: it
 * leaves guest mode, and the host delivers.
 *
 * @module
 */

import {
  BI_CR0_EQ,
  BO_FALSE,
  BO_TRUE,
  encodePpc,
  KVM_MAGIC_PAGE,
  magicDisplacement,
  type MagicField,
  magicOffset,
  MSR_DR,
  MSR_EE,
  MSR_IR,
  MSR_RI,
  ppcAsm,
  type PpcCore,
} from "../../../abi/mod.ts";

/** The templates: the instruction that each stands for. */
export type TemplateName = "mtmsrd" | "mtmsr" | "wrtee" | "wrteei 1" | "wrteei 0" | "mtsrin";

/** Which instruction a copy is for. */
export interface TemplateUse {
  /** The core. */
  readonly core: PpcCore;
  /** The instruction itself. */
  readonly original: number;
  /** The register that it reads. */
  readonly source: number;
  /** Its second one, of mtsrin. */
  readonly index: number;
  /** Where the copy will be. */
  readonly at: number;
  /** Where it goes on: behind the instruction. */
  readonly back: number;
}

type Piece = number | { readonly label: string } | {
  readonly jump: "b" | "beq" | "bne";
  readonly to: string;
};

/** The words of a template's copy. Throws `RangeError` where `back` is out of a branch's reach. */
export function assembleTemplate(name: TemplateName, use: TemplateUse): number[] {
  return assemble(BODIES[name](new Template(use)), use);
}

const BODIES: Readonly<Record<TemplateName, (t: Template) => Piece[]>> = {
  /** EE and RI are set in the page. */
  mtmsrd: (t) => [
    ...t.save(),
    t.load(31, "msr"),
    ...t.withoutEeRi(30),
    encodePpc("and", { RA: 31, RS: 31, RB: 30 }),
    t.source(30),
    encodePpc("andi.", { RA: 30, RS: 30, UI: MSR_EE | MSR_RI }),
    encodePpc("or", { RA: 31, RS: 31, RB: 30 }),
    t.store(31, "msr"),
    t.loadWord(31, "int_pending"),
    t.isZero(31),
    { jump: "beq", to: "done" },
    encodePpc("andi.", { RA: 30, RS: 30, UI: MSR_EE }),
    { jump: "beq", to: "done" },
    ...t.really(),
    ...t.done(),
  ],
  /** Where only EE and RI change, they are set in the page; every other change needs the host. */
  mtmsr: (t) => [
    ...t.save(),
    t.load(31, "msr"),
    t.source(30),
    encodePpc("xor", { RA: 31, RS: 30, RB: 31 }),
    ...t.withoutEeRi(30),
    encodePpc("and", { RA: 31, RS: 31, RB: 30, RC: 1 }),
    { jump: "bne", to: "really" },
    t.source(30),
    t.store(30, "msr"),
    t.loadWord(31, "int_pending"),
    t.isZero(31),
    { jump: "beq", to: "done" },
    encodePpc("andi.", { RA: 31, RS: 30, UI: MSR_EE }),
    { jump: "beq", to: "done" },
    ...t.really(),
    ...t.done(),
  ],
  /** EE is set in the page to that of a register. */
  wrtee: (t) => t.setEe(t.source(30)),
  /** EE is set in the page. */
  "wrteei 1": (t) => t.setEe(ppcAsm.li(30, -MSR_EE)),
  /** EE is cleared in the page: nothing can be due. */
  "wrteei 0": (t) => [
    ...t.save(),
    t.load(31, "msr"),
    encodePpc("rlwinm", { RA: 31, RS: 31, SH: 0, MB: 17, ME: 15 }),
    t.store(31, "msr"),
    ...t.done(),
  ],
  /**
   * In real mode nobody uses segments, and the page's are enough; with translation on the host must hear of it. Linux'
   * own template does not provide for r30 and r31 as operands; this one does.
   */
  mtsrin: (t) => [
    ...t.save(),
    t.load(31, "msr"),
    encodePpc("andi.", { RA: 31, RS: 31, UI: MSR_IR | MSR_DR }),
    { jump: "bne", to: "really" },
    t.index(30),
    encodePpc("rlwinm", { RA: 30, RS: 30, SH: 6, MB: 26, ME: 29 }), // 4 * (address >> 28)
    t.source(31),
    encodePpc("stw", { RS: 31, D: magicDisplacement("sr", 32), RA: 30 }),
    ...t.done(),
    ...t.really(),
  ],
};

/** The parts of templates, for one use. */
class Template {
  readonly #use: TemplateUse;
  readonly #bits: 32 | 64;

  constructor(use: TemplateUse) {
    this.#use = use;
    this.#bits = use.core === "book3s-64" ? 64 : 32;
  }

  /** A field of 64 bits, or its low word, to a register. */
  load(register: number, field: MagicField): number {
    return this.#loadAt(register, magicDisplacement(field, this.#bits));
  }
  /** A register to a field. */
  store(register: number, field: MagicField): number {
    return this.#storeAt(register, magicDisplacement(field, this.#bits));
  }
  /** A field of 32 bits to a register. */
  loadWord(register: number, field: MagicField): number {
    return encodePpc("lwz", { RT: register, D: KVM_MAGIC_PAGE + magicOffset(field), RA: 0 });
  }

  /** Enters the critical section; r30, r31 and CR are kept. The scratch fields are used from their first byte on. */
  save(): Piece[] {
    return [
      this.store(1, "critical"),
      this.#storeAt(31, KVM_MAGIC_PAGE + magicOffset("scratch1")),
      this.#storeAt(30, KVM_MAGIC_PAGE + magicOffset("scratch2")),
      encodePpc("mfcr", { RT: 31 }),
      encodePpc("stw", { RS: 31, D: KVM_MAGIC_PAGE + magicOffset("scratch3"), RA: 0 }),
    ];
  }

  /** Brings them back, and leaves the critical section: r2 is never r1. */
  restore(): Piece[] {
    return [
      this.#scratch(31),
      this.loadWord(30, "scratch3"),
      ppcAsm.mtcr(30),
      this.#scratch(30),
      this.store(2, "critical"),
    ];
  }

  /** The instruction itself is executed. */
  really(): Piece[] {
    return [{ label: "really" }, ...this.restore(), this.#use.original, { jump: "b", to: "back" }];
  }

  /** It is not needed. */
  done(): Piece[] {
    return [{ label: "done" }, ...this.restore(), { jump: "b", to: "back" }];
  }

  /** The register that the instruction reads, to another one: those that the template uses are in the page by now. */
  source(register: number): number {
    return this.#original(register, this.#use.source);
  }
  /** The same for its second register. */
  index(register: number): number {
    return this.#original(register, this.#use.index);
  }

  /** All bits but EE and RI. */
  withoutEeRi(register: number): Piece[] {
    return [
      ppcAsm.lis(register, 0xffff),
      encodePpc("ori", { RA: register, RS: register, UI: 0xffff & ~(MSR_EE | MSR_RI) }),
    ];
  }

  /** Compares with 0, as 32 bits. */
  isZero(register: number): number {
    return encodePpc("cmpi", { BF: 0, RA: register, SI: 0 });
  }

  /** wrtee and wrteei 1, which differ in where EE comes from. */
  setEe(source: number): Piece[] {
    return [
      ...this.save(),
      this.load(31, "msr"),
      source,
      encodePpc("rlwimi", { RA: 31, RS: 30, SH: 0, MB: 16, ME: 16 }),
      encodePpc("andi.", { RA: 30, RS: 30, UI: MSR_EE }),
      this.store(31, "msr"),
      { jump: "beq", to: "done" },
      this.loadWord(30, "int_pending"),
      this.isZero(30),
      { jump: "bne", to: "really" },
      ...this.done(),
      ...this.really(),
    ];
  }

  #original(register: number, of: number): number {
    return of === 30 || of === 31 ? this.#scratchTo(register, of) : ppcAsm.mr(register, of);
  }
  #scratch(register: 30 | 31): number {
    return this.#scratchTo(register, register);
  }
  #scratchTo(register: number, of: 30 | 31): number {
    return this.#loadAt(register, KVM_MAGIC_PAGE + magicOffset(of === 31 ? "scratch1" : "scratch2"));
  }
  #loadAt(RT: number, D: number): number {
    return this.#bits === 64 ? encodePpc("ld", { RT, DS: D, RA: 0 }) : encodePpc("lwz", { RT, D, RA: 0 });
  }
  #storeAt(RS: number, D: number): number {
    return this.#bits === 64 ? encodePpc("std", { RS, DS: D, RA: 0 }) : encodePpc("stw", { RS, D, RA: 0 });
  }
}

function assemble(pieces: readonly Piece[], { at, back }: TemplateUse): number[] {
  const labels = new Map([["back", back]]);
  let address = at;
  for (const piece of pieces) {
    if (typeof piece === "object" && "label" in piece) labels.set(piece.label, address);
    else address += 4;
  }
  const words: number[] = [];
  for (const piece of pieces) {
    const here = at + 4 * words.length;
    if (typeof piece === "number") words.push(piece);
    else if ("jump" in piece) words.push(jump(piece.jump, here, labels.get(piece.to)!));
  }
  return words;
}

function jump(kind: "b" | "beq" | "bne", from: number, to: number): number {
  if (kind === "b") return ppcAsm.b(from, to);
  return encodePpc("bc", { BO: kind === "beq" ? BO_TRUE : BO_FALSE, BI: BI_CR0_EQ, BD: to - from });
}
