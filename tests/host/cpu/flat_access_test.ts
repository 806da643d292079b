import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { X86Cpu } from "../../../abi/mod.ts";
import { DATA, Rig } from "../../support/guests.ts";

/** A slot of its own: accesses there take the general way, byte by byte. */
const SLOT = 0x4000_0000;
const BYTES = 32;

/** One access at `address`: builds the instruction, to be yielded. */
type Access = (cpu: X86Cpu, address: number, a: number, b: number) => number;

const ACCESSES: Readonly<Record<string, Access>> = {
  load8: (cpu, address) => cpu.load8(address),
  load16: (cpu, address) => cpu.load16(address),
  load32: (cpu, address) => cpu.load32(address),
  load64: (cpu, address) => cpu.load64(address),
  store8: (cpu, address, a) => cpu.store8(address, a),
  store16: (cpu, address, a) => cpu.store16(address, a),
  store32: (cpu, address, a) => cpu.store32(address, a),
  store64: (cpu, address, a, b) => cpu.store64(address, a, b),
  btr: (cpu, address, a) => cpu.btr(address, a & 63),
  bts: (cpu, address, a) => cpu.bts(address, a & 63),
  lockBtr: (cpu, address, a) => cpu.lockBtr(address, a & 63),
  lockBts: (cpu, address, a) => cpu.lockBts(address, a & 63),
  xchg32: (cpu, address, a) => cpu.xchg32(address, a),
  xchg64: (cpu, address, a, b) => cpu.xchg64(address, a, b),
  cmpxchg32: (cpu, address, a, b) => cpu.cmpxchg32(address, a, b),
  cmpxchg64: (cpu, address, a, b) => cpu.cmpxchg64(address, a, b),
  xadd32: (cpu, address, a) => cpu.xadd32(address, a),
};

// Few values, so that comparisons succeed as well, and the ends of the signed and the unsigned range.
const word = fc.constantFrom(0, 1, 0x1234_5678, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff);
const step = fc.record({
  name: fc.constantFrom(...Object.keys(ACCESSES)),
  offset: fc.nat(BYTES - 17),
  a: word,
  b: word,
});

describe("an access to flat memory", () => {
  it("leaves registers, flags, memory and the clock as the same access to a slot elsewhere does", () => {
    fc.assert(fc.property(fc.array(step, { minLength: 1, maxLength: 30 }), (steps) => {
      const seen = [DATA, SLOT].map((base) => {
        const rig = new Rig({ vm: { slots: [{ base: SLOT, size: 4096 }] } });
        const log: unknown[] = [];
        const vm = rig.finish(function* (cpu) {
          for (const { name, offset, a, b } of steps) {
            yield ACCESSES[name](cpu, base + offset, a, b);
            log.push([cpu.rax, cpu.cf, cpu.zf]);
          }
        });
        log.push(vm.memory.read(base, 8), vm.memory.read(base + 8, 8), vm.memory.read(base + 16, 8));
        log.push(vm.bootstrap.clock);
        return log;
      });
      assertEquals(seen[0], seen[1]);
    }));
  });
});
