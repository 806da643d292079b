import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { FLAG_AF, FLAG_CF, FLAG_OF, FLAG_PF, FLAG_SF, FLAG_ZF, u64, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, type Vm } from "../../../host/mod.ts";
import { DATA, finish, Rig } from "../../support/guests.ts";

// What each instruction does, by the SDM's own words (volume 2), on whole numbers of any size.

/** What an instruction leaves behind; what it does not name, it does not touch. */
interface Effect {
  /** RAX. */
  readonly rax?: bigint;
  /** The memory operand. */
  readonly memory?: bigint;
  /** Flags that it sets or clears; it must not touch those outside `defined`. */
  readonly flags?: number;
  /** Flags that it gives a value. */
  readonly defined?: number;
  /** Flags that it leaves undefined. */
  readonly undefined?: number;
}

const STATUS = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF;

/** An instruction with a memory operand. */
interface Instruction {
  /** Bytes of its operand. */
  readonly bytes: number;
  /** Builds it; `a` and `b` are what its register operands hold. */
  readonly build: (cpu: X86Cpu, address: number, a: number, b: number) => number;
  /** What it does to an operand that held `old`. */
  readonly effect: (old: bigint, a: bigint, b: bigint) => Effect;
}

const half = (value: number) => [value >>> 0, Math.floor(value / 2 ** 32)] as const;
const cut = (bytes: number, value: bigint) => BigInt.asUintN(8 * bytes, value);

/** The status flags of `result`, which `a` and `b` make by addition, or by subtraction of `b` from `a`. */
function arithmetic(bytes: number, a: bigint, b: bigint, result: bigint, subtract: boolean): number {
  const sign = (value: bigint) => ((value >> BigInt(8 * bytes - 1)) & 1n) !== 0n;
  const r = cut(bytes, result);
  const ones = Array.from({ length: 8 }, (_, n) => (r >> BigInt(n)) & 1n).filter((bit) => bit === 1n).length;
  const overflow = subtract
    ? sign(a) !== sign(b) && sign(r) !== sign(a)
    : sign(a) === sign(b) && sign(r) !== sign(a);
  return (result !== r ? FLAG_CF : 0) | (ones % 2 === 0 ? FLAG_PF : 0) |
    (((a ^ b ^ r) & 16n) !== 0n ? FLAG_AF : 0) | (r === 0n ? FLAG_ZF : 0) | (sign(r) ? FLAG_SF : 0) |
    (overflow ? FLAG_OF : 0);
}

function load(bytes: number, build: Instruction["build"]): Instruction {
  return { bytes, build, effect: (old) => ({ rax: old }) };
}

function store(bytes: number, build: Instruction["build"]): Instruction {
  return { bytes, build, effect: (_, a) => ({ memory: cut(bytes, a), rax: bytes === 8 ? a : cut(4, a) }) };
}

function exchange(bytes: number, build: Instruction["build"]): Instruction {
  return { bytes, build, effect: (old, a) => ({ memory: cut(bytes, a), rax: old }) };
}

function compareExchange(bytes: number, build: Instruction["build"]): Instruction {
  return {
    bytes,
    build,
    effect: (old, a, b) => {
      const expected = cut(bytes, a);
      const flags = arithmetic(bytes, expected, old, expected - old, true);
      return old === expected
        ? { memory: cut(bytes, b), rax: expected, flags, defined: STATUS }
        : { memory: old, rax: old, flags, defined: STATUS };
    },
  };
}

/** BTS and BTR address the 32-bit word that holds the bit, wherever the bit string begins. */
function bit(set: boolean, build: (cpu: X86Cpu, address: number, bit: number) => number): Instruction {
  return {
    bytes: 4,
    build: (cpu, address, a, b) => {
      const number = (b % 2000 - 1000) * 32 + a % 32;
      return build(cpu, address - 4 * Math.floor(number / 32), number);
    },
    effect: (old, a) => {
      const mask = 1n << (a % 32n);
      return {
        memory: set ? old | mask : old & ~mask,
        flags: (old & mask) !== 0n ? FLAG_CF : 0,
        defined: FLAG_CF,
        undefined: FLAG_OF | FLAG_SF | FLAG_AF | FLAG_PF,
      };
    },
  };
}

const INSTRUCTIONS: Readonly<Record<string, Instruction>> = {
  load8: load(1, (cpu, at) => cpu.load8(at)),
  load16: load(2, (cpu, at) => cpu.load16(at)),
  load32: load(4, (cpu, at) => cpu.load32(at)),
  load64: load(8, (cpu, at) => cpu.load64(at)),
  store8: store(1, (cpu, at, a) => cpu.store8(at, a)),
  store16: store(2, (cpu, at, a) => cpu.store16(at, a)),
  store32: store(4, (cpu, at, a) => cpu.store32(at, a)),
  store64: store(8, (cpu, at, a) => cpu.store64(at, ...half(a))),
  xchg32: exchange(4, (cpu, at, a) => cpu.xchg32(at, a)),
  xchg64: exchange(8, (cpu, at, a) => cpu.xchg64(at, ...half(a))),
  cmpxchg32: compareExchange(4, (cpu, at, a, b) => cpu.cmpxchg32(at, a, b)),
  cmpxchg64: compareExchange(8, (cpu, at, a, b) => cpu.cmpxchg64(at, a, b)),
  xadd32: {
    bytes: 4,
    build: (cpu, at, a) => cpu.xadd32(at, a),
    effect: (old, a) => {
      const sum = old + cut(4, a);
      return {
        memory: cut(4, sum),
        rax: old,
        flags: arithmetic(4, old, cut(4, a), sum, false),
        defined: STATUS,
      };
    },
  },
  btr: bit(false, (cpu, at, bit) => cpu.btr(at, bit)),
  bts: bit(true, (cpu, at, bit) => cpu.bts(at, bit)),
  lockBtr: bit(false, (cpu, at, bit) => cpu.lockBtr(at, bit)),
  lockBts: bit(true, (cpu, at, bit) => cpu.lockBts(at, bit)),
};

// Where an operand can be.

const TOUCHING = 2 ** 21;
const END = TOUCHING + 4096;
const READ_ONLY = 0x40_0000;
const ABOVE_4G = 2 ** 40;
const MMIO = 0xd000_0000;

/** The address of an operand's first byte, for an offset from 0 to 7. */
const PLACES: Readonly<Record<string, (offset: number, bytes: number) => number>> = {
  "in the slot at 0": (offset) => DATA + 8 + offset,
  "across pages": (offset, bytes) => DATA + 4096 - Math.min(offset, bytes),
  "across slots that touch": (offset, bytes) => TOUCHING - Math.min(offset, bytes),
  "in a slot above 4 GiB": (offset) => ABOVE_4G + 0x100 + offset,
  "in a read-only slot": (offset) => READ_ONLY + 0x100 + offset,
  "outside memory": (offset) => MMIO + 0x100 + offset,
  "across pages outside memory": (offset, bytes) => MMIO + 4096 - Math.min(offset, bytes),
  "across the end of memory": (offset, bytes) => END - Math.min(offset, bytes),
};

const SLOTS = [
  { base: TOUCHING, size: 4096 },
  { base: ABOVE_4G, size: 8192 },
  { base: READ_ONLY, size: 8192, readonly: true },
];

/** A device in user space that is nothing but bytes. */
class Bytes {
  readonly #bytes = new Map<number, number>();

  read(address: number, bytes: number): bigint {
    let value = 0n;
    for (let i = bytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes.get(address + i) ?? 0);
    return value;
  }

  write(address: number, bytes: number, value: bigint): void {
    for (let i = 0; i < bytes; i++) this.#bytes.set(address + i, Number((value >> BigInt(8 * i)) & 0xffn));
  }

  access(address: number, bytes: number, value: bigint | undefined): bigint | undefined {
    if (value === undefined) return this.read(address, bytes);
    this.write(address, bytes, value);
    return undefined;
  }
}

/** Sets bytes wherever they are: in memory, or in the device. */
function set(vm: Vm, device: Bytes, address: number, bytes: number, value: bigint): void {
  for (let i = 0; i < bytes; i++) {
    const byte = (value >> BigInt(8 * i)) & 0xffn;
    if (!vm.memory.load(address + i, Uint8Array.of(Number(byte)))) device.write(address + i, 1, byte);
  }
}

/** What a guest would see at an address, with what it tried to write to read-only memory instead of that. */
function get(vm: Vm, device: Bytes, address: number, bytes: number): bigint {
  let value = 0n;
  for (let i = bytes - 1; i >= 0; i--) {
    const plain = vm.memory.writable(address + i, 1);
    value = (value << 8n) | (plain ? vm.memory.read(address + i, 1)! : device.read(address + i, 1));
  }
  return value;
}

const word = fc.oneof(
  fc.constantFrom(0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 2 ** 32, 2 ** 53 - 1),
  fc.nat(0xffff_ffff),
  fc.maxSafeNat(),
);

const cases = fc.record({
  name: fc.constantFrom(...Object.keys(INSTRUCTIONS)),
  place: fc.constantFrom(...Object.keys(PLACES)),
  offset: fc.nat(7),
  old: fc.oneof(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), word.map(BigInt)),
  a: word,
  b: word,
  /** Whether a comparison shall succeed. */
  same: fc.boolean(),
  backend: fc.constantFrom(...BACKENDS),
});

describe("an instruction with a memory operand", () => {
  it("does what the manual says to registers, flags and memory, wherever the operand is", () => {
    fc.assert(
      fc.property(cases, ({ name, place, offset, old, a, b, same, backend }) => {
        const { bytes, build, effect } = INSTRUCTIONS[name];
        const address = PLACES[place](offset, bytes);
        const before = same && name.startsWith("cmpxchg") ? cut(bytes, BigInt(a)) : cut(bytes, old);
        const device = new Bytes();
        const rig = new Rig({ machine: { pcpus: 1 }, vm: { backend, slots: SLOTS } });
        rig.vm.userspaceMmioDevice = device;
        const guard = 0x5a5a_5a5a_5a5a_5a5an;
        set(rig.vm, device, address - 8, 8, guard);
        set(rig.vm, device, address, bytes, before);
        set(rig.vm, device, address + bytes, 8, guard);

        let rax = 0n;
        let raxBefore = 0n;
        const flags: number[] = [];
        const vm = rig.finish(function* (cpu) {
          yield cpu.cmpxchg32(DATA, b >>> 0, 0); // Sets the flags to something.
          yield cpu.pushf();
          flags.push(cpu.eax);
          const op = build(cpu, address, a, b);
          raxBefore = cpu.rax;
          yield op;
          rax = cpu.rax;
          yield cpu.pushf();
          flags.push(cpu.eax);
        });

        const expected = effect(before, BigInt(a), BigInt(b));
        assertEquals(rax, expected.rax ?? raxBefore, "RAX");
        const touched = (expected.defined ?? 0) | (expected.undefined ?? 0);
        assertEquals(flags[1] & ~touched, flags[0] & ~touched, "flags that it must not touch");
        assertEquals(flags[1] & (expected.defined ?? 0), expected.flags ?? 0, "flags that it sets");
        const readonly = place === "in a read-only slot";
        if (readonly) {
          assertEquals(vm.memory.read(address, bytes), before, "read-only memory stays as it is");
          assertEquals(device.read(address, bytes), expected.memory ?? 0n, "the write goes to user space");
        } else {
          assertEquals(get(vm, device, address, bytes), expected.memory ?? before, "memory");
        }
        assertEquals(vm.memory.read(address - 8, 8) ?? device.read(address - 8, 8), guard, "below");
        if (!readonly) assertEquals(get(vm, device, address + bytes, 8), guard, "above");
      }),
      { numRuns: 400 },
    );
  });

  it("leaves plain memory without an exit, and everything else with one or more", () => {
    for (const [place, at] of Object.entries(PLACES)) {
      const plain = !/outside|end|read-only/.test(place);
      for (const [name, { bytes, build }] of Object.entries(INSTRUCTIONS)) {
        const rig = new Rig({ machine: { pcpus: 1 }, vm: { slots: SLOTS } });
        rig.vm.userspaceMmioDevice = new Bytes();
        let exits = 0;
        rig.finish(function* (cpu) {
          exits = rig.vm.machine.exits;
          yield build(cpu, at(bytes >> 1, bytes), 5, 7);
          exits = rig.vm.machine.exits - exits;
        });
        const writes = !name.startsWith("load");
        const expected = !plain && (writes || place !== "in a read-only slot");
        assertEquals(exits > 0, expected, `${name} ${place}`);
      }
    }
  });
});

describe("the registers", () => {
  it("that an instruction's operands go to are those that its encoding names", () => {
    finish(function* (cpu) {
      yield cpu.store64(DATA, 0x89ab_cdef, 0x0123_4567);
      assertEquals([cpu.register("rdi"), cpu.rax], [BigInt(DATA), 0x0123_4567_89ab_cdefn]);
      yield cpu.btr(DATA, -1);
      assertEquals(cpu.ecx, 0xffff_ffff);
      yield cpu.cmpxchg64(DATA + 8, 0, 2 ** 40 + 3);
      assertEquals([cpu.rax, cpu.register("rcx")], [0n, 2n ** 40n + 3n]);
      yield cpu.load64(DATA + 8);
      assertEquals(cpu.rax, 2n ** 40n + 3n);
      assertEquals(cpu.raxHigh, 2 ** 8);
      yield cpu.load32(DATA + 8);
      assertEquals(cpu.rax, 3n, "a 32-bit load clears the upper half");
    });
  });

  it("of other names are refused", () => {
    finish(function* (cpu) {
      yield cpu.pause();
      let message = "";
      try {
        cpu.register("eax");
      } catch (error) {
        message = (error as RangeError).message;
      }
      assertEquals(message.startsWith("Cannot read register eax: allowed are rax, rcx"), true);
    });
  });

  it("take a hypercall's number and arguments modulo 2^64, and keep those that are left out", () => {
    finish(function* (cpu) {
      yield cpu.store32(DATA, 1); // RAX, RDI.
      cpu.loadHypercall(10, -1n, 2 ** 53 - 1, 2n ** 64n + 5n, -2);
      const names = ["rax", "rbx", "rcx", "rdx", "rsi"];
      assertEquals(names.map((name) => cpu.register(name)), [
        10n,
        2n ** 64n - 1n,
        2n ** 53n - 1n,
        5n,
        2n ** 64n - 2n,
      ]);
      cpu.loadHypercall(11, 7);
      assertEquals(names.map((name) => cpu.register(name)), [11n, 7n, 2n ** 53n - 1n, 5n, 2n ** 64n - 2n]);
      for (const bad of [0.5, 2 ** 53, NaN]) {
        let thrown: unknown;
        try {
          cpu.loadHypercall(1, bad);
        } catch (error) {
          thrown = error;
        }
        assertEquals(thrown instanceof RangeError, true, `${bad}`);
      }
    });
  });
});

describe("RDTSC", () => {
  it("reads the processor's own clock, which never stands still", () => {
    new Rig().finish(function* (cpu) {
      let last = -1n;
      for (let i = 0; i < 5; i++) {
        yield cpu.rdtsc();
        const now = u64(cpu.eax, cpu.edx);
        assertEquals(now > last, true);
        last = now;
        yield cpu.work(2 ** 33);
      }
      assertEquals(last > 2n ** 34n, true, "EDX is not left at 0");
    }, 1e12);
  });
});
