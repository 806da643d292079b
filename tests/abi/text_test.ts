import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  BEHIND,
  BLOCK,
  BLOCK_BYTES,
  FIXUP_PAD,
  type Gva,
  INSTRUCTIONS,
  instructionText,
  LENGTH,
  OP_HLT,
  OPCODES,
  SITE,
  Text,
  TEXT_BASE,
  TEXT_LIMIT,
  type X86Cpu,
} from "../../abi/mod.ts";
import { DATA, Rig } from "../support/guests.ts";

function* idle(cpu: X86Cpu): Generator<number, void, void> {
  for (;;) yield cpu.hlt();
}

describe("a block of text", () => {
  it("begins with ENDBR64, where calls and gates lead, and has UD2 at its fixup pad", () => {
    assertEquals([...BLOCK_BYTES.subarray(0, 4)], [0xf3, 0x0f, 0x1e, 0xfa]);
    assertEquals([...BLOCK_BYTES.subarray(FIXUP_PAD, FIXUP_PAD + 2)], [0x0f, 0x0b]);
    assertEquals(BLOCK_BYTES.length, BLOCK);
  });

  it("has one site for each instruction, with its bytes, and INT3 wherever nothing is", () => {
    const used = new Set([0, 1, 2, 3, FIXUP_PAD, FIXUP_PAD + 1]);
    for (const { opcode, bytes, text } of INSTRUCTIONS) {
      assertEquals([...BLOCK_BYTES.subarray(SITE[opcode], SITE[opcode] + LENGTH[opcode])], bytes, text);
      assertEquals(BEHIND[opcode], SITE[opcode] + bytes.length, text);
      for (let at = SITE[opcode]; at < BEHIND[opcode]; at++) {
        assertEquals(used.has(at), false, `${text} stands where something is`);
        used.add(at);
      }
    }
    for (let at = 0; at < BLOCK; at++) {
      if (!used.has(at)) assertEquals(BLOCK_BYTES[at], 0xcc, `at ${at}`);
    }
  });

  it("numbers its instructions from 1 without gaps, each once", () => {
    const opcodes = INSTRUCTIONS.map(({ opcode }) => opcode).sort((a, b) => a - b);
    assertEquals(opcodes, Array.from({ length: OPCODES - 1 }, (_, n) => n + 1));
    assertEquals(new Set(INSTRUCTIONS.map(({ text }) => text)).size, INSTRUCTIONS.length);
  });

  it("holds the encodings of the manuals", () => {
    // SDM volume 2, APM volume 3: RDI is the base, EAX, ECX and EDX are the operands.
    const encodings: Readonly<Record<string, string>> = {
      cpuid: "0fa2",
      rdmsr: "0f32",
      wrmsr: "0f30",
      rdtsc: "0f31",
      vmcall: "0f01c1",
      vmmcall: "0f01d9",
      hlt: "f4",
      pause: "f390",
      cli: "fa",
      sti: "fb",
      "in eax, dx": "ed",
      "out dx, al": "ee",
      "mov eax, dword ptr [rdi]": "8b07",
      "mov qword ptr [rdi], rax": "488907",
      "lock btr dword ptr [rdi], ecx": "f00fb30f",
      "xchg dword ptr [rdi], eax": "8707",
      "lock cmpxchg qword ptr [rdi], rcx": "f0480fb10f",
      "lock xadd dword ptr [rdi], eax": "f00fc107",
      "mov cr8, rax": "440f22c0",
      "mov rax, cr3": "0f20d8",
      "lidt [rdi]": "0f011f",
      iretq: "48cf",
      syscall: "0f05",
      sysretq: "480f07",
      ud2: "0f0b",
      invd: "0f08",
      wbinvd: "0f09",
    };
    for (const [text, encoding] of Object.entries(encodings)) {
      const spec = INSTRUCTIONS.find((spec) => spec.text === text);
      assertEquals(spec?.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(""), encoding, text);
    }
  });

  it("tells an instruction's text by its number, and says so where there is none", () => {
    assertEquals(instructionText(OP_HLT), "hlt");
    assertEquals([instructionText(0), instructionText(OPCODES)], ["opcode 0", `opcode ${OPCODES}`]);
  });
});

describe("text", () => {
  it("places functions one behind the other from its base, and others where they are told", () => {
    const text = new Text();
    assertEquals(text.add(idle), TEXT_BASE);
    assertEquals(text.addAt(0x8000 as Gva, idle, "trampoline"), 0x8000);
    assertEquals(text.add(idle, "second"), TEXT_BASE + BLOCK);
    assertEquals(new Text(0x20_0000 as Gva).add(idle), 0x20_0000);
    assertEquals(text.blocks.map(({ name }) => name), ["idle", "trampoline", "second"]);
  });

  it("finds the function whose block an address lies in, and none elsewhere", () => {
    const at = fc.uniqueArray(fc.nat(TEXT_LIMIT / BLOCK - 1), { minLength: 1, maxLength: 10 });
    fc.assert(
      fc.property(at, fc.nat(BLOCK - 1), (numbers, offset) => {
        const text = new Text();
        for (const number of numbers) text.addAt((number * BLOCK) as Gva, idle, `block ${number}`);
        for (const number of numbers) {
          assertEquals(text.blockAt(number * BLOCK + offset)?.name, `block ${number}`);
          for (const beside of [number - 1, number + 1]) {
            const found = text.blockAt(beside * BLOCK + offset)?.name;
            assertEquals(found, numbers.includes(beside) ? `block ${beside}` : undefined);
          }
        }
        for (const nowhere of [-1, TEXT_LIMIT, 2 ** 32, 2 ** 40]) {
          assertEquals(text.blockAt(nowhere), undefined);
        }
      }),
      { numRuns: 30 },
    );
  });

  it("loads what paging maps at another address than the one at which it runs, where it is found", () => {
    const text = new Text();
    const place = { address: 0x400_0000 as Gva, load: 0x70_0000 };
    assertEquals([text.add(idle), text.addMapped(place, idle, "program")], [TEXT_BASE, place.address]);
    assertEquals(text.blockAt(place.address)?.name, "program");
    assertEquals(text.blockAt(place.load), undefined);
    const written: number[] = [];
    text.load((address, bytes) => {
      assertEquals(bytes.length, BLOCK);
      written.push(address);
    });
    assertEquals(written, [TEXT_BASE, place.load]);
    assertThrows(() => text.addMapped(place, idle), RangeError, "program is there");
  });

  it("refuses addresses that are not aligned, out of reach, or taken, naming who is there", () => {
    const text = new Text();
    for (const address of [1, 0x80, -BLOCK, 32768.5, NaN, TEXT_LIMIT]) {
      assertThrows(() => text.addAt(address as Gva, idle), RangeError, `Cannot place text at ${address}`);
      assertThrows(() => new Text(address as Gva), RangeError, `Cannot place text at ${address}`);
    }
    text.addAt(0x8000 as Gva, idle);
    assertThrows(
      () => text.addAt(0x8000 as Gva, idle, "other"),
      RangeError,
      "Cannot place other at 0x8000: idle is there",
    );
    text.addAt((TEXT_BASE + BLOCK) as Gva, idle, "in the way");
    text.add(idle);
    assertThrows(() => text.add(idle), RangeError, "in the way is there");
    const last = new Text((TEXT_LIMIT - BLOCK) as Gva);
    assertEquals(last.add(idle), TEXT_LIMIT - BLOCK);
    assertThrows(() => last.add(idle), RangeError, `Cannot place text at ${TEXT_LIMIT}`);
  });

  it("names a function without a name by its address", () => {
    const text = new Text();
    text.add((() => function* () {})(), "");
    assertEquals(text.blocks[0].name, "text_100000");
  });

  it("is bytes in guest memory once it is loaded, which needs memory there", () => {
    const rig = new Rig();
    rig.text.addAt(0x8000 as Gva, idle);
    rig.finish(function* (cpu) {
      yield cpu.load32(0x8000);
      assertEquals(cpu.eax, 0xfa1e_0ff3); // ENDBR64.
      yield cpu.load8(0x8000 + SITE[OP_HLT]);
      assertEquals(cpu.eax, 0xf4);
      yield cpu.load8(DATA);
      assertEquals(cpu.eax, 0);
    });
    const far = new Rig();
    far.text.addAt(0x1000_0000 as Gva, idle);
    assertThrows(() => far.start(idle), RangeError, "Cannot load text at 0x10000000: no memory there");
  });
});
