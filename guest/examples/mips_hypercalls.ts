/**
 * A paravirtual MIPS guest: it asks its host how fast its clock is, prints that, and ends its virtual machine. Three
 * hypercalls, under each host and in both byte orders.
 *
 *     deno run guest/examples/mips_hypercalls.ts
 *
 * Mainline's KVM knows none of the calls, and the guest looks at no result: it takes -1000 for its clock's frequency, its
 * text is lost, and it never ends.
 *
 * @module
 */

import {
  type ByteOrder,
  Machine,
  type MachineText,
  type MipsCpu,
  mipsFixup,
  type MipsHost,
  mipsKseg0,
  mipsMachineHalt,
  mipsPlatTimeInit,
  mipsPutChars,
  mipsRegisterAddress,
  mipsText,
  mipsVectors,
  type MipsVm,
} from "@exitless/exitless";

/** Where the guest puts its text. */
const BUFFER: number = mipsKseg0(0x9000);
/** Where it keeps its clock's frequency: physical. */
const FREQUENCY = 0xa000;

/** The guest: its text, and where it begins. */
export interface MipsGuestImage {
  /** Its text. */
  readonly text: MachineText<MipsCpu>;
  /** Where it begins. */
  readonly entry: number;
}

/** Links the guest. */
export function mipsHypercallsGuest(): MipsGuestImage {
  const text = mipsText();
  mipsVectors(text, mipsFixup);
  const entry = text.add(function* main(cpu: MipsCpu) {
    const { hptFrequency, presetLpj } = yield* mipsPlatTimeInit(cpu);
    yield cpu.sw(mipsKseg0(FREQUENCY), hptFrequency);
    const line = new TextEncoder().encode(`clock ${hptFrequency} Hz, ${presetLpj} loops a tick\n`);
    for (const [i, byte] of line.entries()) yield cpu.sb(BUFFER + i, byte);
    yield* mipsPutChars(cpu, 0, { address: mipsRegisterAddress(BUFFER), count: line.length });
    yield* mipsMachineHalt(cpu);
  });
  return { text, entry };
}

/** Runs it under a host. */
export function runMipsHypercalls(host: MipsHost, order: ByteOrder = "big"): MipsVm {
  const { text, entry } = mipsHypercallsGuest();
  const vm = new Machine().createMipsVm({ host, order });
  vm.load(text);
  vm.start(entry);
  vm.machine.run();
  return vm;
}

if (import.meta.main) {
  for (const host of ["mainline", "imgtec", "cavium"] as const) {
    for (const order of ["big", "little"] as const) {
      const vm = runMipsHypercalls(host, order);
      const frequency = vm.words.read(FREQUENCY, 4);
      const said = JSON.stringify(vm.userspace.text());
      console.log(
        `${host.padEnd(8)} ${
          order.padEnd(6)
        } HC exits ${vm.exits().HC}  the clock it believes in: ${frequency} Hz  ` +
          `console ${said}  end: ${vm.ending ?? "none, it goes on"}`,
      );
    }
  }
}
