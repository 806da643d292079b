import { assert } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { mipsKseg0 } from "../../../abi/mod.ts";
import { ArchGuestError, LimitExceeded, NotModelled } from "../../../host/mod.ts";
import { MIPS_KVMS, MipsRig, ORDERS } from "../../support/mips.ts";

const STUB = mipsKseg0(0x6000);

/** Words that mean something more often than random ones do. */
const WORD = fc.oneof(
  fc.integer({ min: 0, max: 0xffff_ffff }),
  fc.constantFrom(
    0,
    0x4200_0028,
    0x4200_2828,
    0x4200_0018,
    0x0000_000c,
    0x03e0_0008,
    0x1000_0001,
    0x4500_0001,
  ),
  // Branches, loads and stores of any register, nearby.
  fc.tuple(
    fc.constantFrom(1, 4, 5, 6, 7, 0x14, 0x20, 0x23, 0x28, 0x2b, 0x37, 0x3f),
    fc.nat(0x3ff),
    fc.integer({ min: -4, max: 4 }),
  ).map(([opcode, registers, offset]) => ((opcode << 26) | (registers << 16) | (offset & 0xffff)) >>> 0),
);

describe("a MIPS guest of random words", () => {
  it("ends, goes on or is told off in guest terms: nothing else comes out of the machine", () => {
    const ends = new Map<string, number>();
    const count = (end: string) => ends.set(end, (ends.get(end) ?? 0) + 1);
    const registers = fc.array(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), {
      minLength: 31,
      maxLength: 31,
    });
    fc.assert(
      fc.property(
        fc.array(WORD, { minLength: 1, maxLength: 12 }),
        registers,
        fc.constantFrom(...MIPS_KVMS, "none" as const),
        fc.constantFrom(...ORDERS),
        (words, values, host, order) => {
          const rig = new MipsRig({ host, order, machine: { limits: { steps: 300 } } });
          rig.text.addWords(STUB, words);
          try {
            rig.run(function* (cpu) {
              for (const [i, value] of values.entries()) cpu.setRegister(i + 1, value);
              try {
                yield cpu.call(STUB);
              } catch { /* Its fixup. */ }
            });
            count(rig.vm.ending === undefined ? "finished" : "ended");
          } catch (error) {
            const known = [ArchGuestError, NotModelled, LimitExceeded].find((type) => error instanceof type);
            if (known === undefined) throw error;
            assert((error as Error).message.startsWith("Cannot "), String(error));
            assert(!(error instanceof ArchGuestError && error.cause instanceof Error), String(error));
            count(known.name);
          }
          const exits = Object.values(rig.vm.exits()).reduce((sum, n) => sum + n, 0);
          assert(rig.vm.machine.exits === exits);
        },
      ),
      { numRuns: 400 },
    );
    // The property is about something: all these ends happen.
    for (const end of ["finished", "ended", "ArchGuestError"]) {
      assert(ends.has(end), `none ${end}: ${[...ends]}`);
    }
  });
});
