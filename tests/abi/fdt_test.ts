import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  buildFdt,
  FDT_HEADER,
  fdtCells,
  fdtCellsOf,
  FdtError,
  type FdtNode,
  fdtStrings,
  fdtStringsOf,
  parseFdt,
} from "../../abi/mod.ts";

const name = fc.stringMatching(/^[a-z][a-z0-9,._+-]{0,11}$/);
const { node } = fc.letrec<{ node: FdtNode }>((tie) => ({
  node: fc.record({
    properties: fc.dictionary(name, fc.uint8Array({ maxLength: 20 }), { maxKeys: 4, noNullPrototype: true }),
    children: fc.oneof(
      { depthSize: "small" },
      fc.constant({}),
      fc.dictionary(name, tie("node"), { maxKeys: 3, noNullPrototype: true }),
    ),
  }),
}));

/** A tree without prototypes, which differ between what was written and what was read. */
function plain(of: FdtNode): unknown {
  return {
    properties: Object.entries(of.properties).map(([key, value]) => [key, [...value]]),
    children: Object.entries(of.children).map(([key, value]) => [key, plain(value)]),
  };
}

describe("a flattened device tree", () => {
  it("is read as it was written: nodes, properties, reservations, the boot CPU, and their order", () => {
    const u64 = fc.bigInt({ min: 1n, max: 2n ** 64n - 1n }); // a pair of zeros ends the list
    const reserved = fc.array(fc.tuple(u64, u64).map(([address, size]) => ({ address, size })), {
      maxLength: 3,
    });
    fc.assert(fc.property(node, reserved, fc.nat(0xffff_ffff), (root, reserved, bootCpu) => {
      const read = parseFdt(buildFdt({ root, reserved, bootCpu }));
      assertEquals(plain(read.root), plain(root));
      assertEquals([read.reserved, read.bootCpu], [reserved, bootCpu]);
    }));
  });

  it("has the bytes that the specification gives", () => {
    const root = {
      properties: {},
      children: { hypervisor: { properties: { x: fdtCells(0x4400_0022) }, children: {} } },
    };
    const blob = buildFdt({ root });
    const view = new DataView(blob.buffer);
    const cells = Array.from({ length: 10 }, (_, i) => view.getUint32(4 * i));
    // 40 bytes of header, 16 of reservations, 52 of structure, 2 of strings.
    assertEquals(cells, [0xd00d_feed, 110, 56, 108, 40, 17, 16, 0, 2, 52]);
    assertEquals(FDT_HEADER.size, 40);
    assertEquals([...blob.subarray(56, 64)], [0, 0, 0, 1, 0, 0, 0, 0]); // the root and its empty name
    assertEquals(new TextDecoder().decode(blob.subarray(68, 78)), "hypervisor");
    assertEquals([...blob.subarray(80, 96)], [0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0x44, 0, 0, 0x22]);
    assertEquals([...blob.subarray(96, 110)], [0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 9, 0x78, 0]);
  });

  it("keeps a property's name once, however many nodes have it", () => {
    const child = { properties: { status: fdtStrings("okay") }, children: {} };
    const blob = buildFdt({ root: { properties: {}, children: { a: child, b: child } } });
    assertEquals(new DataView(blob.buffer).getUint32(32), "status\0".length);
  });

  it("holds strings and cells", () => {
    assertEquals(fdtStringsOf(fdtStrings("epapr", "linux,kvm")), ["epapr", "linux,kvm"]);
    assertEquals(fdtStringsOf(fdtStrings()), []);
    assertEquals(fdtCellsOf(fdtCells(0, 0xffff_ffff)), [0, 0xffff_ffff]);
    assertThrows(() => fdtCellsOf(new Uint8Array(6)), RangeError, "multiples of 4");
  });

  it("of damaged bytes is read or refused, and nothing else happens", () => {
    const blob = buildFdt({
      root: { properties: { a: fdtStrings("b") }, children: { c: { properties: {}, children: {} } } },
      reserved: [{ address: 4096n, size: 4096n }],
    });
    const damage = fc.array(fc.tuple(fc.nat(blob.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    fc.assert(fc.property(damage, fc.nat(blob.length), (bytes, length) => {
      const damaged = blob.slice(0, length);
      for (const [at, value] of bytes) if (at < length) damaged[at] = value;
      try {
        parseFdt(damaged);
      } catch (error) {
        if (!(error instanceof FdtError)) throw error;
      }
    }));
  });

  it("is refused when its magic, version or length is wrong", () => {
    const good = buildFdt({ root: { properties: {}, children: {} } });
    const with32 = (offset: number, value: number) => {
      const blob = good.slice();
      new DataView(blob.buffer).setUint32(offset, value);
      return blob;
    };
    assertThrows(() => parseFdt(with32(0, 0xedfe_0dd0)), FdtError, "its magic is 0xedfe0dd0");
    assertThrows(() => parseFdt(with32(20, 15)), FdtError, "version 15");
    assertThrows(() => parseFdt(with32(24, 18)), FdtError, "version 17");
    assertThrows(() => parseFdt(good.slice(0, good.length - 1)), FdtError, "there are");
    assertThrows(() => parseFdt(good.slice(0, 8)), FdtError, "outside");
    assertThrows(() => buildFdt({ root: { properties: { "a b": fdtCells(1) }, children: {} } }), RangeError);
  });
});
