/** Until KVM has tables: guest memory where its slots are. */
import { PAGE_SHIFT_4K } from "../../abi/mod.ts";
import type { GuestMemory } from "../memory/mod.ts";
import type { HostFault, HostPage, PhysicalAccess, SecondDimension } from "./translation.ts";

/** Guest memory where its slots are. */
export class SlotsSecond implements SecondDimension {
  readonly tableAccessWrites = false;
  readonly #memory: GuestMemory;
  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }
  translate(physical: number, { write, fetch }: PhysicalAccess): HostPage | HostFault {
    const page = physical - physical % 4096;
    const slot = this.#memory.find(page, 4096);
    if (slot === undefined) {
      return { kind: "ept violation", qualification: write ? 2 : fetch ? 4 : 1, physical, accesses: 4 };
    }
    return {
      kind: "page",
      guest: page,
      physical: slot.host + page - slot.base,
      shift: PAGE_SHIFT_4K,
      readable: true,
      writable: true,
      executable: true,
      dirty: true,
      accesses: 4,
    };
  }
}
