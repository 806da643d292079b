import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { PGM_SPECIFICATION } from "../../../abi/mod.ts";
import {
  Disk,
  GuestMemory,
  OrderedMemory,
  RealStorage,
  releasedRanges,
  type S390Vm,
} from "../../../host/mod.ts";
import { diagnose, type DiagResult, runS390 } from "../../support/s390.ts";

const PAGE = 4096n;

/** DIAGNOSE 0x10 for the pages from `first` to `last`, in a virtual machine whose memory is all ones from 128 KiB on. */
function release(first: number | bigint, last: number | bigint, prefix: number = 0): DiagResult {
  return diagnose({
    fields: { r1: 6, r3: 9, d2: 0x10 },
    gprs: { 6: first, 9: last },
    prepare: (vm) => vm.memory.slots[0].u8.fill(0xff, 0x2_0000),
    *before(cpu) {
      yield cpu.store32(0x280, prefix);
      if (prefix === 0) return;
      // What stands in the lowcore, and interruptions need, moves along.
      for (let at = 0x1b0; at < 0x1e0; at += 8) {
        yield cpu.load64(at);
        yield cpu.store64(prefix + at, cpu.value);
      }
      yield cpu.spx(0x280);
    },
  });
}

function zeroPages(vm: S390Vm, from: number, to: number): number[] {
  const pages = [];
  for (let at = from; at < to; at += 4096) {
    if (vm.memory.slots[0].u8.subarray(at, at + 4096).every((byte) => byte === 0)) pages.push(at);
  }
  return pages;
}

describe("releasing pages", () => {
  it("takes the last page's address, and leaves zeros", () => {
    const { pic, vm, vcpu } = release(0x10_0000, 0x10_2000);
    assertEquals(pic, 0);
    assertEquals(zeroPages(vm, 0x2_0000, 0x20_0000), [0x10_0000, 0x10_1000, 0x10_2000]);
    assertEquals([vm.discardedPages, vcpu.stats.instruction_diagnose_10], [3, 1]);
  });

  it("is a store to those who watch a word there", () => {
    let stores = 0;
    const { pic } = diagnose({
      fields: { r1: 6, r3: 9, d2: 0x10 },
      gprs: { 6: 0x10_0000, 9: 0x10_1000 },
      prepare: (vm) => vm.memory.watch({ address: 0x10_1ffc, stored: () => void stores++ }),
    });
    assertEquals([pic, stores], [0, 1]);
  });

  it("is refused for what kvm-unit-tests tries: no order, no page, the first 8 KiB", () => {
    const wrong: readonly (readonly [first: number | bigint, last: number | bigint])[] = [
      [0, 0],
      [0x1000, 0x1000],
      [0, 0x1000],
      [0x1000, 0x2000],
      [0x10_0000, 0xf_0000],
      [0x10_0000, 0xf_f000], // start equal to end
      [0x10_0008, 0x10_1000],
      [0x10_0000, 0x10_1008],
      [0x10_0000, 0xffff_ffff_ffff_f000n], // the end wraps round to 0
    ];
    for (const [first, last] of wrong) {
      const { pic, ilc, vm, gprs, before } = release(first, last);
      assertEquals([pic, ilc], [PGM_SPECIFICATION, 4], `${first} ${last}`);
      assertEquals(vm.discardedPages, 0);
      assertEquals(gprs.slice(2), before.slice(2));
    }
  });

  it("releases what is there of a range that goes beyond memory", () => {
    const { pic, vm } = release(0x1f_f000, 0xffff_ffff_ffff_e000n);
    assertEquals(pic, 0);
    assertEquals([zeroPages(vm, 0x2_0000, 0x20_0000), vm.discardedPages], [[0x1f_f000], 1]);
  });

  it("spares the host the reading of a page that it had taken out", () => {
    const read: number[] = [];
    const vm = runS390(
      function* main(cpu) {
        yield cpu.diag10(0x10_0000, 0x10_0000);
        yield cpu.load64(0x10_0000);
        assertEquals(cpu.value, 0n);
        yield cpu.load64(0x10_1000);
        assertEquals(cpu.value, 2n);
      },
      {},
      (vm) => {
        vm.words.write(0x10_0000, 8, 1);
        vm.words.write(0x10_1000, 8, 2);
        const latency = (_n: number, page: number) => (read.push(page), 1000);
        vm.pageTo(new Disk(vm.engine, { pages: 512, latency })).evictRange(0x10_0000, 0x2000);
      },
    );
    assertEquals([read, vm.residency!.away], [[0x101], 0]);
  });

  it("spares the absolute pages at the prefix, and releases those that the guest sees there: absolute 0 and 1", () => {
    const { pic, vm } = release(0x10_0000, 0x10_5000, 0x10_2000);
    assertEquals(pic, 0);
    assertEquals(zeroPages(vm, 0x2_0000, 0x20_0000), [0x10_0000, 0x10_1000, 0x10_4000, 0x10_5000]);
    assertEquals(zeroPages(vm, 0, 0x2000), [0, 0x1000]);
  });

  it("splits a range that touches the prefix area in every way", () => {
    const P = 0x10n * PAGE;
    const ranges = (first: bigint, last: bigint) =>
      releasedRanges(first * PAGE, last * PAGE, P)?.map(({ start, end }) => [start / PAGE, end / PAGE]);
    assertEquals(ranges(4n, 15n), [[4n, 16n]], "up to it");
    assertEquals(ranges(18n, 20n), [[18n, 21n]], "from behind it");
    assertEquals(ranges(4n, 16n), [[4n, 16n], [0n, 1n]], "its first page");
    assertEquals(ranges(4n, 17n), [[4n, 16n], [0n, 1n], [1n, 2n]], "both pages");
    assertEquals(ranges(16n, 16n), [[0n, 1n]]);
    assertEquals(ranges(17n, 17n), [[1n, 2n]], "its second page alone");
    assertEquals(ranges(17n, 20n), [[1n, 2n], [18n, 21n]]);
    assertEquals(ranges(16n, 20n), [[0n, 1n], [1n, 2n], [18n, 21n]]);
  });

  it("releases exactly the absolute pages that the real ones are", () => {
    const storage = new RealStorage(new OrderedMemory(new GuestMemory(), "big"));
    const prefixes = fc.nat(20).map((pair) => BigInt(pair) * 2n * PAGE);
    fc.assert(fc.property(prefixes, fc.nat(40), fc.nat(40), (prefix, a, b) => {
      const ranges = releasedRanges(BigInt(a) * PAGE, BigInt(b) * PAGE, prefix);
      assertEquals(ranges === undefined, a > b || a < 2);
      if (ranges === undefined) return;
      const absolute = new Set<bigint>();
      for (const { start, end } of ranges) {
        for (let at = start; at < end; at += PAGE) {
          assert(!absolute.has(at), "no page twice");
          absolute.add(at);
        }
      }
      const expected = new Set<bigint>();
      storage.prefix = Number(prefix);
      for (let page = a; page <= b; page++) expected.add(BigInt(storage.absolute(page * Number(PAGE))));
      assertEquals([...absolute].sort(), [...expected].sort());
    }));
  });
});
