/**
 * Guests with tables, for tests: a rig whose memory holds a hierarchy, and what its programs do with it.
 *
 *     0x02_0000  DATA: the test's own
 *     0x08_0000  tables, one page after another, up to the text
 *     0x10_0000  text
 *
 * The first 2 MiB are mapped to themselves by pages of 4 KiB, for the supervisor, so that a program can go on when it
 * loads CR3, and can write its own tables.
 *
 * @module
 */

import {
  CR0_WP,
  CR4_PAE,
  DF_VECTOR,
  EFER_NX,
  EFER_SCE,
  entryOf,
  GP_VECTOR,
  type Guest,
  type GuestFunction,
  type Gva,
  HIGH,
  IA32_EFER,
  LEVEL_PT,
  mapPage,
  type PageMapping,
  type PageShift,
  type PageTables,
  PF_VECTOR,
  PTE_A,
  PTE_D,
  PTE_NX_HIGH,
  PTE_P,
  PTE_RW,
  PTE_US,
  UD_VECTOR,
  type X86Cpu,
  X86Fault,
} from "../../abi/mod.ts";
import { type BackendName, BACKENDS } from "../../host/mod.ts";
import { Rig, type RigOptions } from "./guests.ts";

/** Where tables begin. */
export const TABLES = 0x8_0000;
/** Where they end: the text begins. */
export const TABLES_END = 0x10_0000;
/** The page of text that is a user's. */
export const USER_TEXT = 0x11_0000;
/** The pages that are mapped to themselves. */
export const IDENTITY = 0x20_0000;

/** A supervisor's page that may be written. */
export const KERNEL_PAGE: number = PTE_P | PTE_RW;
/** A user's page that may be written. */
export const USER_PAGE: number = PTE_P | PTE_RW | PTE_US;

/** How a page is mapped: `physical` and what differs from a supervisor's page of 4 KiB that may be written. */
export interface MapOptions {
  /** `PTE_*`, bits 11:0. */
  readonly flags?: number;
  /** Log2 of its size. */
  readonly shift?: PageShift;
  /** XD. */
  readonly noExecute?: boolean;
}

/** What the handler of a fault saw. */
export interface SeenFault {
  /** The vector. */
  readonly vector: number;
  /** Its error code. */
  readonly errorCode: number;
  /** For #PF, what CR2 held, as a signed number. */
  readonly cr2: number | undefined;
  /** RIP of what it interrupted. */
  readonly rip: number;
  /** CPL of what it interrupted. */
  readonly cpl: number;
}

/** Whether the host has mapped the guest's memory yet: what it has not, is for the reference's walks to find out. */
export type HostState = "cold" | "warm";

/** Every backend, with the host's tables empty and full. */
export const HOSTS: readonly { readonly backend: BackendName; readonly host: HostState }[] = BACKENDS.flatMap(
  (backend) => [{ backend, host: "cold" }, { backend, host: "warm" }] as const,
);

/** A hierarchy of a guest's. */
export interface GuestTables extends PageTables {
  /** Whether {@linkcode pagingOn} is to look at each page that is mapped to itself, and at nothing else. */
  warm?: boolean;
}

/** A rig with tables. */
export class PagingRig extends Rig {
  /** The hierarchy that {@linkcode pagingOn} loads. */
  readonly tables: GuestTables;
  /** What the handlers of {@linkcode fixups} saw. */
  readonly faults: SeenFault[] = [];
  readonly #host: HostState;
  #free = TABLES;

  /** A rig whose hierarchy maps the first 2 MiB to themselves. */
  constructor(options: RigOptions = {}, host: HostState = "cold") {
    super(options);
    this.#host = host;
    this.tables = this.hierarchy();
  }

  /** Another hierarchy, with the first 2 MiB mapped to themselves. */
  hierarchy(): GuestTables {
    const tables = { ...this.emptyHierarchy(), warm: this.#host === "warm" };
    for (let page = 0; page < IDENTITY; page += 4096) {
      mapPage(tables, page, { physical: page, flags: KERNEL_PAGE });
    }
    return tables;
  }

  /** One that maps nothing. */
  emptyHierarchy(): GuestTables {
    const allocate = () => this.page();
    return { memory: this.vm.memory, root: allocate(), allocate, warm: false };
  }

  /** A page for a table. Its content is zero. */
  page(): number {
    if (this.#free >= TABLES_END) {
      throw new RangeError("Cannot make a table: the pages for tables are used up");
    }
    return (this.#free += 4096) - 4096;
  }

  /** The host maps a page into a hierarchy before the guest runs. */
  map(linear: number, physical: number, options: MapOptions = {}, tables: PageTables = this.tables): this {
    const { flags = KERNEL_PAGE, shift, noExecute } = options;
    const page: PageMapping = {
      physical,
      flags,
      ...(shift !== undefined && { shift }),
      ...(noExecute !== undefined && { noExecute }),
    };
    mapPage(tables, linear, page);
    return this;
  }

  /** The guest-physical address of an address's entry, which the guest finds at the same linear one. */
  entry(linear: number, level: number = LEVEL_PT, tables: PageTables = this.tables): number {
    const at = entryOf(tables, linear, level);
    if (at === undefined) throw new RangeError(`Cannot find the entry of ${linear}: no table is there`);
    return at;
  }

  /** Handlers of #PF, #GP, #UD and #DF that note what they see and throw it into the function that faulted. */
  fixups(vectors: readonly number[] = [PF_VECTOR, GP_VECTOR, UD_VECTOR, DF_VECTOR]): this {
    const { faults } = this;
    for (const vector of vectors) {
      this.on(vector, function* fixup(cpu) {
        const { errorCode, interruptedRip: rip, interruptedCpl: cpl } = cpu;
        let cr2: number | undefined = undefined;
        if (vector === PF_VECTOR) cr2 = yield* readCr2(cpu);
        faults.push({ vector, errorCode, cr2, rip, cpl });
        cpu.fixup();
      });
    }
    return this;
  }

  /** The last fault that a fixup saw. */
  get lastFault(): SeenFault | undefined {
    return this.faults[this.faults.length - 1];
  }
}

/** CR2 as a signed number. */
export function* readCr2(cpu: X86Cpu): Generator<number, number, void> {
  yield cpu.movFromCr2();
  return (cpu.raxHigh | 0) * HIGH + cpu.eax;
}

/** Loads CR3: from here on addresses are translated. Its bit 63 is `keep`. */
export function* pagingOn(cpu: X86Cpu, tables: GuestTables, pcid = 0, keep = false): Guest {
  yield cpu.movToCr3(tables.root | pcid, keep ? 0x8000_0000 : 0);
  if (tables.warm !== true) return;
  tables.warm = false;
  const { memory } = tables;
  for (let page = 0; page < IDENTITY; page += 4096) {
    const at = entryOf(tables, page, LEVEL_PT);
    const own = at !== undefined && ((memory.word(at) ^ (page | KERNEL_PAGE)) & ~(PTE_A | PTE_D)) === 0;
    if (own && memory.word(at + 4) === 0) yield cpu.load8(page);
  }
}

/** Sets bits of IA32_EFER: NXE and SCE by default. */
export function* setEfer(cpu: X86Cpu, bits: number = EFER_NX | EFER_SCE): Guest {
  yield cpu.rdmsr(IA32_EFER);
  yield cpu.wrmsr(IA32_EFER, cpu.eax | bits);
}

/** Sets CR4 to PAE and other bits. */
export function* setCr4(cpu: X86Cpu, bits: number): Guest {
  yield cpu.movToCr4(CR4_PAE | bits);
}

/** Sets CR0.WP. */
export function* writeProtect(cpu: X86Cpu): Guest {
  yield cpu.movFromCr0();
  yield cpu.movToCr0(cpu.eax | CR0_WP);
}

/** An entry's halves, as the guest stores them. */
export function* storeEntry(
  cpu: X86Cpu,
  at: number,
  physical: number,
  { flags = KERNEL_PAGE, noExecute = false }: MapOptions = {},
): Guest {
  const high = Math.floor(physical / HIGH) | (noExecute ? PTE_NX_HIGH : 0);
  yield cpu.store64(at, (physical | flags) >>> 0, high >>> 0);
}

/** Executes an instruction. The fault that its fixup threw; undefined where it completed. */
export function* attempt(op: () => number): Generator<number, X86Fault | undefined, void> {
  try {
    yield op();
    return undefined;
  } catch (error) {
    if (error instanceof X86Fault) return error;
    throw error;
  }
}

/** Executes an instruction: `#PF(code)`, `#GP(code)`, or `ok`. */
export function* tells(op: () => number): Generator<number, string, void> {
  const fault = yield* attempt(op);
  if (fault === undefined) return "ok";
  return `${
    fault.vector === PF_VECTOR ? "#PF" : fault.vector === GP_VECTOR ? "#GP" : fault.vector
  }(${fault.errorCode})`;
}

/** Adds a function that a user runs, at an address of its own, 64 KiB into the text: its page is a user's alone. */
export function addUser(rig: PagingRig, code: GuestFunction, tables: PageTables = rig.tables): number {
  const page = USER_TEXT;
  rig.map(page, page, { flags: USER_PAGE }, tables);
  rig.text.addAt(page as Gva, code, code.name || "user");
  return page;
}
