import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  BlockLayout,
  type ByteOrder,
  MachineText,
  MIPS_BLOCK,
  MIPS_TEXT_BASE,
  mipsText,
  unitsToBytes,
} from "../../abi/mod.ts";
import { GuestMemory, OrderedMemory } from "../../host/mod.ts";

/** A layout of made-up instructions: one unit, then two. */
const LAYOUT = new BlockLayout({
  unitBytes: 2,
  size: 16,
  entry: [0x1122],
  forms: [
    { opcode: 1, text: "one", units: [0x3344] },
    { opcode: 2, text: "two", units: [0x5566, 0x7788] },
  ],
  returns: 1,
  pad: [0xdead],
});

function* code(): Generator<number, void, void> {}

describe("a block of text", () => {
  it("has a site for each instruction, in order, and fills up with what faults", () => {
    assertEquals([LAYOUT.site[1], LAYOUT.behind[1]], [2, 4]);
    assertEquals([LAYOUT.site[2], LAYOUT.behind[2]], [4, 8]);
    assertEquals(LAYOUT.pad, 8);
    const units = [0x1122, 0x3344, 0x5566, 0x7788, 0xdead, 0xdead, 0xdead, 0xdead];
    assertEquals(LAYOUT.bytes("big"), unitsToBytes(units, 2, "big"));
    assertEquals([...LAYOUT.bytes("big").subarray(0, 4)], [0x11, 0x22, 0x33, 0x44]);
    assertEquals([...LAYOUT.bytes("little").subarray(0, 4)], [0x22, 0x11, 0x44, 0x33]);
    assertEquals([LAYOUT.instructionText(2), LAYOUT.instructionText(3)], ["two", "opcode 3"]);
  });

  it("is refused where its instructions do not fit", () => {
    const options = { unitBytes: 4, size: 8, entry: [0], returns: 1, pad: [0] } as const;
    assertThrows(
      () => new BlockLayout({ ...options, forms: [{ opcode: 1, text: "x", units: [1] }] }),
      RangeError,
      "Cannot assemble a block of 8 bytes: it needs 12",
    );
  });

  it("of MIPS has each opcode once", () => {
    const opcodes = MIPS_BLOCK.forms.map(({ opcode }) => opcode);
    assertEquals(new Set(opcodes).size, opcodes.length);
    assertEquals(Math.min(...opcodes), 1, "0 is no instruction");
  });
});

describe("text", () => {
  it("places functions one behind the other, and finds each in its block and nowhere else", () => {
    const text = new MachineText<unknown>(LAYOUT, 0x100);
    const [a, b] = [text.add(code, "a"), text.add(code, "b")];
    assertEquals([a, b], [0x100, 0x110]);
    assertEquals([0xff, 0x100, 0x10f, 0x110, 0x120].map((at) => text.blockAt(at)?.name), [
      undefined,
      "a",
      "a",
      "b",
      undefined,
    ]);
  });

  it("refuses addresses that are taken, or no block begins at", () => {
    const text = new MachineText<unknown>(LAYOUT, 0x100);
    text.addAt(0x200, code, "there");
    assertThrows(
      () => text.addAt(0x200, code, "here"),
      RangeError,
      "Cannot place here at 0x200: there is there",
    );
    for (const address of [0x208, -16, 0.5, NaN]) {
      assertThrows(() => text.addAt(address, code), RangeError, "allowed are multiples of 16");
    }
  });

  it("names a function that has no name after its address", () => {
    const text = mipsText();
    const address = text.add(function* () {}, "");
    assertEquals(address, MIPS_TEXT_BASE);
    assertEquals(text.blockAt(address)?.name, "text_80100000");
  });

  it("is loaded with its words, in the byte order of the guest", () => {
    const loaded = (order: ByteOrder) => {
      const text = new MachineText<unknown>(LAYOUT, 0x100);
      text.add(code);
      text.addWords(0x40, [0xabcd]);
      const writes: [number, number[]][] = [];
      text.load(order, (address, bytes) => writes.push([address, [...bytes.subarray(0, 2)]]));
      return writes;
    };
    assertEquals(loaded("big"), [[0x100, [0x11, 0x22]], [0x40, [0xab, 0xcd]]]);
    assertEquals(loaded("little"), [[0x100, [0x22, 0x11]], [0x40, [0xcd, 0xab]]]);
  });
});

describe("memory in a byte order", () => {
  const fresh = (order: ByteOrder) => {
    const memory = new GuestMemory();
    memory.addSlot({ base: 0x1000, size: 0x1000 });
    return new OrderedMemory(memory, order);
  };

  it("gives back what was written, of any size, and the other order gives its bytes reversed", () => {
    const value = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
    const sizes = fc.constantFrom(1, 2, 4, 8);
    fc.assert(fc.property(value, sizes, fc.constantFrom("big", "little"), (value, size, order) => {
      const words = fresh(order);
      assertEquals(words.write(0x1100, size, value), true);
      const read = () => size === 8 ? words.read64(0x1100) : BigInt(words.read(0x1100, size)!);
      const kept = BigInt.asUintN(8 * size, value);
      assertEquals(read(), kept);
      words.order = order === "big" ? "little" : "big";
      const hex = kept.toString(16).padStart(2 * size, "0").match(/../g)!.reverse().join("");
      assertEquals(read(), BigInt(`0x${hex}`));
    }));
  });

  it("puts the most significant byte first where it is big-endian", () => {
    for (const [order, bytes] of [["big", [1, 2, 3, 4]], ["little", [4, 3, 2, 1]]] as const) {
      const words = fresh(order);
      words.write(0x1000, 4, 0x0102_0304);
      assertEquals([...words.bytes(0x1000, 4)!], [...bytes]);
    }
  });

  it("neither reads nor writes what no slot backs, not even in part", () => {
    const words = fresh("big");
    for (const address of [0xffe, 0x1ffe, 0x3000]) {
      assertEquals(words.read(address, 4), undefined);
      assertEquals(words.read64(address), undefined);
      assertEquals(words.bytes(address, 4), undefined);
      assertEquals(words.write(address, 4, 0xffff_ffff), false);
    }
    assertEquals([words.read(0x1ffe, 2), words.read(0x1000, 2)], [0, 0]);
  });
});
