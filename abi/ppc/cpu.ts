/**
 * The handle through which PowerPC guest code reaches its processor: it builds instructions and reads registers.
 *
 *     yield cpu.mfspr("SPRG0");              // mfspr r3,SPRG0, at its site: whatever words stand there are executed
 *     const value = cpu.r3;
 *     yield cpu.call(stub);                  // CTR is loaded; bctrl runs the words at `stub` up to their blr
 *
 * @module
 */

import { type Call, encodeCall, type WidthMode } from "../convention.ts";
import { MachineContext } from "../machine_context.ts";
import { PPC_PR_CONVENTION } from "./convention.ts";
import type { PpcCore } from "./instructions.ts";
import { PPC_BLOCKS, ppcOpcode } from "./text.ts";
import type { SprName } from "./registers.ts";

/** Numbers of registers in a context: general registers are 0 to 31. */
export const PPC_LR = 32;
/** The count register. */
export const PPC_CTR = 33;
/** Carry and overflow. */
export const PPC_XER = 34;
/** The condition register: eight fields of four bits, the first in the most significant ones. */
export const PPC_CR = 35;
/** Registers in a context. */
export const PPC_REGISTERS = 36;

/**
 * An execution context of a PowerPC processor, and the instructions that it can be given. See the module's
 * description.
 */
export class PpcCpu extends MachineContext<PpcCpu> {
  /** The core that its text is for. */
  readonly core: PpcCore;

  /** A context without activations. */
  constructor(core: PpcCore) {
    super({ layout: PPC_BLOCKS[core], registers: PPC_REGISTERS, systemRegisters: 0 });
    this.core = core;
  }

  /** Bits of a general register: 64 or 32. */
  get bits(): 32 | 64 {
    return this.core === "book3s-64" ? 64 : 32;
  }

  /** r3: what loads and moves from registers give. */
  get r3(): bigint {
    return this.register(3);
  }
  /** r4. */
  get r4(): bigint {
    return this.register(4);
  }

  /**
   * Loads a hypercall's registers. `mode` is narrow where the MSR says 32-bit mode. Those of arguments that are left
   * out keep what they hold.
   */
  loadHypercall(call: Call, mode: WidthMode = this.bits === 64 ? "wide" : "narrow"): this {
    for (const [name, value] of Object.entries(encodeCall(PPC_PR_CONVENTION, call, mode))) {
      this.setRegister(Number(name.slice(1)), value);
    }
    return this;
  }

  /** Loads a byte into r3, as all loads zero-extended. */
  lbz(address: number | bigint): number {
    return this.#memory("lbz", address);
  }
  /** Loads 16 bits into r3. */
  lhz(address: number | bigint): number {
    return this.#memory("lhz", address);
  }
  /** Loads 32 bits into r3. */
  lwz(address: number | bigint): number {
    return this.#memory("lwz", address);
  }
  /** Loads 64 bits into r3; 64-bit cores have it. */
  ld(address: number | bigint): number {
    return this.#memory("ld", address);
  }
  /** Loads 32 bits of the other byte order into r3. */
  lwbrx(address: number | bigint): number {
    return this.#memory("lwbrx", address);
  }
  /** Stores a byte. */
  stb(address: number | bigint, value: number | bigint): number {
    return this.#store("stb", address, value);
  }
  /** Stores 16 bits. */
  sth(address: number | bigint, value: number | bigint): number {
    return this.#store("sth", address, value);
  }
  /** Stores 32 bits. */
  stw(address: number | bigint, value: number | bigint): number {
    return this.#store("stw", address, value);
  }
  /** Stores 64 bits; 64-bit cores have it. */
  std(address: number | bigint, value: number | bigint): number {
    return this.#store("std", address, value);
  }
  /** Stores 32 bits in the other byte order. */
  stwbrx(address: number | bigint, value: number | bigint): number {
    return this.#store("stwbrx", address, value);
  }
  /** Writes a cache line of data back to memory. */
  dcbst(address: number | bigint): number {
    return this.#memory("dcbst", address);
  }
  /** Drops a cache line of instructions. */
  icbi(address: number | bigint): number {
    return this.#memory("icbi", address);
  }
  /** Waits until all accesses are done. */
  sync(): number {
    return this.#plain("sync");
  }
  /** Drops instructions that were fetched ahead. */
  isync(): number {
    return this.#plain("isync");
  }

  /** Calls words that end with blr. They get the registers as they are. */
  call(address: number | bigint): number {
    return this.build(this.#opcode("bctrl"), [PPC_CTR, address]);
  }
  /** Computes for `cycles` cycles, 1 or more; interrupts are taken in the middle, and the rest is done after them. */
  work(cycles: number): number {
    if (!Number.isSafeInteger(cycles) || cycles < 1 || (this.bits === 32 && cycles > 0xffff_ffff)) {
      throw new RangeError(
        `Cannot compute for ${cycles} cycles: allowed are whole numbers from 1 that CTR holds`,
      );
    }
    return this.build(this.#opcode("work"), [PPC_CTR, cycles]);
  }
  /** A system call, with the registers as they are. */
  sc(): number {
    return this.#plain("sc");
  }
  /** The low 32 bits of the time base (64-bit cores: all of it) to r3. */
  mftb(): number {
    return this.#plain("mftb");
  }

  /** The MSR to r3. */
  mfmsr(): number {
    return this.#plain("mfmsr");
  }
  /** Sets the MSR. */
  mtmsr(value: number | bigint): number {
    return this.#value("mtmsr", value);
  }
  /** Sets the MSR, all 64 bits; 64-bit cores have it. */
  mtmsrd(value: number | bigint): number {
    return this.#value("mtmsrd", value);
  }
  /** Sets the MSR's EE and RI alone; 64-bit cores have it. */
  mtmsrd1(value: number | bigint): number {
    return this.#value("mtmsrd 1", value);
  }
  /** Sets the MSR's EE to that of a value; BookE has it. */
  wrtee(value: number | bigint): number {
    return this.#value("wrtee", value);
  }
  /** Sets the MSR's EE; BookE has it. */
  wrteei(ee: 0 | 1): number {
    return this.#plain(`wrteei ${ee}`);
  }
  /** Waits until other processors have dropped translations. */
  tlbsync(): number {
    return this.#plain("tlbsync");
  }
  /** Sets the segment register that bits 31:28 of an address choose; 32-bit Book3S has it. */
  mtsrin(address: number, value: number): number {
    return this.build(this.#opcode("mtsrin"), [4, address], [3, value]);
  }
  /** That segment register to r3. */
  mfsrin(address: number): number {
    return this.build(this.#opcode("mfsrin"), [4, address]);
  }

  /** A special-purpose register to r3. */
  mfspr(name: SprName): number {
    return this.#plain(`mf ${name}`);
  }
  /** Sets a special-purpose register. */
  mtspr(name: SprName, value: number | bigint): number {
    return this.#value(`mt ${name}`, value);
  }

  #opcode(name: string): number {
    const opcode = ppcOpcode(name);
    if (!this.layout.forms.some((form) => form.opcode === opcode)) {
      throw new RangeError(`Cannot build ${name}: a core of ${this.core} does not have it`);
    }
    return opcode;
  }

  #plain(name: string): number {
    return this.build(this.#opcode(name));
  }

  #value(name: string, value: number | bigint): number {
    return this.build(this.#opcode(name), [3, value]);
  }

  #memory(name: string, address: number | bigint): number {
    return this.build(this.#opcode(name), [4, address]);
  }

  #store(name: string, address: number | bigint, value: number | bigint): number {
    return this.build(this.#opcode(name), [4, address], [3, value]);
  }
}
