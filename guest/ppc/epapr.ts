/**
 * How a PowerPC guest gets its hypercalls: it finds the words in the device tree and patches them into its stub
 * (arch/powerpc/kernel/epapr_paravirt.c).
 *
 * @module
 */

import {
  type ByteOrder,
  HAS_IDLE,
  HCALL_INSTRUCTIONS,
  HCALL_STUB,
  HCALL_WORDS_MAX,
  HYPERVISOR_NODE,
  KVM_COMPATIBLE,
  type MachineGuest,
  type PpcCpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { type FlatNode, FlatTree } from "./flat_tree.ts";
import { idleRoutine } from "./idle.ts";

/** What a guest found. */
export interface EpaprParavirt {
  /** Whether hypercalls have words: nothing calls a host otherwise. */
  readonly enabled: boolean;
  /** Whether CPUs may wait in EV_IDLE: the host says so, and the guest has 32 bits. */
  readonly hasIdle: boolean;
  /** Whether the host is KVM. */
  readonly kvm: boolean;
}

/** What a guest looks at. */
export interface EpaprOptions {
  /** Where the device tree is: what r3 holds at the start. */
  readonly fdt: number;
  /** Where the stub is to be: five words. */
  readonly stub: number;
  /** Where the routine that waits is to be, if anywhere. A 64-bit guest's calls nobody. */
  readonly idle?: number;
  /** The byte order that the guest runs in. */
  readonly order: ByteOrder;
}

/** Writes a word of code and has processors fetch it. */
export function* patchInstruction(cpu: PpcCpu, address: number, word: number): MachineGuest {
  yield cpu.stw(address, word);
  yield cpu.dcbst(address);
  yield cpu.sync();
  yield cpu.icbi(address);
  yield cpu.isync();
}

/** Writes words of code. */
export function* patchInstructions(cpu: PpcCpu, address: number, words: readonly number[]): MachineGuest {
  for (const [index, word] of words.entries()) yield* patchInstruction(cpu, address + 4 * index, word);
}

/** Writes the stub and the routine, and patches the device tree's words into them where it has some. */
export function* epaprInit(cpu: PpcCpu, options: EpaprOptions): GuestValue<EpaprParavirt> {
  const { fdt, stub, idle, order } = options;
  yield* patchInstructions(cpu, stub, HCALL_STUB);
  // Linux has the routine, and looks for has-idle, where it has 32 bits (or is a 64-bit one of BookE).
  const knowsIdle = cpu.bits === 32;
  const patched = [stub];
  if (idle !== undefined) {
    const { words, hypercall } = idleRoutine(cpu.core);
    yield* patchInstructions(cpu, idle, words);
    if (knowsIdle) patched.push(idle + 4 * hypercall);
  }
  const tree = new FlatTree(cpu, fdt, order);
  if (!(yield* tree.open())) return { enabled: false, hasIdle: false, kvm: false };
  let enabled = false;
  let hasIdle = false;
  yield* tree.find(function* (node) {
    const words = yield* tree.property(node, HCALL_INSTRUCTIONS);
    if (words === undefined) return false;
    if (words.length % 4 === 0 && words.length <= 4 * HCALL_WORDS_MAX) {
      for (let at = 0; at < words.length; at += 4) {
        const word = yield* tree.cell(words.address + at);
        for (const address of patched) yield* patchInstruction(cpu, address + at, word);
      }
      hasIdle = knowsIdle && (yield* tree.property(node, HAS_IDLE)) !== undefined;
      enabled = true;
    }
    return true; // The first node that has the property decides, whatever it holds.
  });
  return { enabled, hasIdle, kvm: yield* isKvm(tree) };
}

/** Whether /hypervisor is compatible with KVM (arch/powerpc/kernel/firmware.c, check_kvm_guest). */
function* isKvm(tree: FlatTree): GuestValue<boolean> {
  const node: FlatNode | undefined = yield* tree.find(function* (node) {
    yield* [];
    return node.depth === 1 && node.name === HYPERVISOR_NODE;
  });
  if (node === undefined) return false;
  const compatible = yield* tree.property(node, "compatible");
  if (compatible === undefined) return false;
  for (let at = 0; at < compatible.length;) {
    const text = yield* tree.text(compatible.address + at);
    if (text.toLowerCase() === KVM_COMPATIBLE) return true; // of_compat_cmp is strcasecmp
    at += text.length + 1;
  }
  return false;
}
