import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { diagCode, type DiagField, encodePfaultToken, encodeSubchannelId } from "../../../abi/mod.ts";
import { S390_HOSTS, type S390Host, type S390Vm } from "../../../host/mod.ts";
import { diagnose, MEMORY } from "../../support/s390.ts";

const BLOCK = 0x10_0000;

/** Values that mean something to some call, and any others. */
const value = fc.oneof(
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  fc.constantFrom(
    0n,
    1n,
    2n,
    3n,
    4n,
    5n,
    6n,
    BigInt(encodeSubchannelId({ number: 0 })),
    BigInt(encodeSubchannelId({ number: 1 })),
    BigInt(BLOCK),
    BigInt(BLOCK) + 4096n,
    BigInt(MEMORY),
    BigInt(MEMORY) - 4096n,
    2n ** 64n - 1n,
    2n ** 64n - 4096n,
  ),
);
const code = fc.constantFrom(0x10, 0x44, 0x9c, 0x258, 0x308, 0x500, 0x501, 0x204, 0xfff);
const fields = fc.record({
  r1: fc.nat(15),
  r3: fc.nat(15),
  b2: fc.oneof({ weight: 5, arbitrary: fc.constant(0) }, fc.nat(15)),
  d2: code,
}, { noNullPrototype: true }) as fc.Arbitrary<Record<DiagField, number>>;
const gprs = fc.array(value, { minLength: 16, maxLength: 16 });
const host = fc.constantFrom(...Object.keys(S390_HOSTS) as S390Host[]);

function prepare(vm: S390Vm): void {
  vm.words.write(4, 4, 1); // Where a reset would go on: at an odd address, which no host takes.
  vm.addCcwDevice({ number: 0, queues: [4, 4], notified: () => {} });
  vm.memory.load(BLOCK, encodePfaultToken({ tokenAddress: 0x2b0n, selectMask: 1n, compareMask: 1n }));
}

describe("any DIAGNOSE with any registers, on any host", () => {
  it("completes, interrupts the program and changes nothing, or ends the virtual machine", () => {
    fc.assert(
      fc.property(host, fields, gprs, (host, fields, gprs) => {
        const result = diagnose({ fields, gprs: { ...gprs }, vm: { host, vcpus: 2 }, prepare });
        const { pic, vm, before, outcome } = result;
        if (vm.dead) {
          assert(vm.ending!.startsWith("reset: "));
          return;
        }
        if (pic !== 0 && result.ilc === 0) {
          // A reset, after which the PSW at absolute 0 is none.
          assertEquals([pic, fields.d2, before[fields.r3] <= 1n], [6, 0x308, true]);
          return;
        }
        assertEquals(result.advance, 4);
        assertEquals(result.cc[0], result.cc[1]);
        if (pic !== 0) {
          assert([1, 5, 6].includes(pic), `code ${pic}`);
          assertEquals([result.ilc, result.gprs], [4, before]);
          assertEquals([outcome?.kind, vm.discardedPages], ["exception", 0]);
          return;
        }
        assertEquals(outcome?.kind, "registers");
        const changed = before.flatMap((value, number) => value === result.gprs[number] ? [] : [number]);
        assert(changed.length <= 1);
        // The register that has changed is the one that the function's description names.
        const at = S390_HOSTS[host].kvm
          ? diagCode(fields, (number) => before[number])
          : (fields.b2 << 12) | fields.d2;
        const allowed: Record<number, number> = { 0x500: 2, 0x258: fields.r3, 0x308: fields.r1 + 1 };
        for (const number of changed) assertEquals(number, allowed[at]);
      }),
      { numRuns: 1000 },
    );
  });

  it("is the same on every host whose user space is the same, where KVM leaves it to that", () => {
    // Only the storage limit came between these two.
    fc.assert(
      fc.property(fields, gprs, (fields, gprs) => {
        const [new_, old] = (["kvm", "kvm+qemu-7.2"] as const).map((host) =>
          diagnose({ fields, gprs: { ...gprs }, vm: { host }, prepare })
        );
        const limit = diagCode(fields, (number) => gprs[number]) === 0x500 && gprs[1] === 4n;
        if (limit) assertEquals([new_.pic, old.pic], [0, 6]);
        else assertEquals([new_.pic, new_.gprs, new_.vm.ending], [old.pic, old.gprs, old.vm.ending]);
      }),
      { numRuns: 200 },
    );
  });
});
