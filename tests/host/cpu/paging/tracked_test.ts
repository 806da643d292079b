import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  CR0_WP,
  CR4_PCIDE,
  CR4_PGE,
  GP_VECTOR,
  type Guest,
  PF_VECTOR,
  PTE_G,
  type X86Cpu,
  X86Fault,
} from "../../../../abi/mod.ts";
import {
  BACKENDS,
  GuestError,
  NotModelled,
  type UserspaceDevice,
  type VmOptions,
} from "../../../../host/mod.ts";
import { DATA, Rig } from "../../../support/guests.ts";
import { KERNEL_PAGE, pagingOn, PagingRig, readCr2, setCr4 } from "../../../support/paging.ts";

const READ_ONLY = 0x40_0000;
const LOCKED = 0x50_0000;
const NEXT = 0x20_0000; // Behind the first slot: an access may lie in both.
const MMIO = 0xd000_0000;
const HIGH_SLOT = 2 ** 46;

const SLOTS: VmOptions["slots"] = [
  { base: NEXT, size: 8192 },
  { base: READ_ONLY, size: 8192, readonly: true },
  { base: LOCKED, size: 8192, guestReadonly: true },
  { base: HIGH_SLOT - 8192, size: 8192 },
];

type Access = (cpu: X86Cpu, at: number, a: number, b: number) => number;
const ACCESSES: Readonly<Record<string, Access>> = {
  load8: (cpu, at) => cpu.load8(at),
  load16: (cpu, at) => cpu.load16(at),
  load32: (cpu, at) => cpu.load32(at),
  load64: (cpu, at) => cpu.load64(at),
  store8: (cpu, at, a) => cpu.store8(at, a),
  store16: (cpu, at, a) => cpu.store16(at, a),
  store32: (cpu, at, a) => cpu.store32(at, a),
  store64: (cpu, at, a, b) => cpu.store64(at, a, b),
  bts: (cpu, at, a) => cpu.bts(at, a),
  lockBtr: (cpu, at, a) => cpu.lockBtr(at, a),
  xchg32: (cpu, at, a) => cpu.xchg32(at, a),
  xchg64: (cpu, at, a, b) => cpu.xchg64(at, a, b),
  cmpxchg32: (cpu, at, a, b) => cpu.cmpxchg32(at, a, b),
  cmpxchg64: (cpu, at, a, b) => cpu.cmpxchg64(at, a, b),
  xadd32: (cpu, at, a) => cpu.xadd32(at, a),
  lidt: (cpu, at) => cpu.lidt(at),
};
const edge = fc.constantFrom(
  ...[
    DATA,
    DATA + 0x1000,
    NEXT,
    NEXT + 8192,
    READ_ONLY,
    READ_ONLY + 8192,
    LOCKED,
    LOCKED + 4096,
    LOCKED + 8192,
  ],
  ...[MMIO, 0xfec0_0000, 0xfee0_0000, 0xfee0_1000, HIGH_SLOT - 8192, HIGH_SLOT, 2 ** 47, 2 ** 53],
);
const at = fc.tuple(edge, fc.integer({ min: -9, max: 9 })).map(([edge, by]) =>
  Math.min(edge + by, Number.MAX_SAFE_INTEGER)
);
const word = fc.oneof(fc.constantFrom(0, 1, 31, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff), fc.nat(0xffff_ffff));
const act = fc.record({ name: fc.constantFrom(...Object.keys(ACCESSES)), at, a: word, b: word });

/** Notes what reaches user space. */
class Recorder implements UserspaceDevice {
  readonly log: string[] = [];
  access(address: number, bytes: number, value: bigint | undefined): bigint | undefined {
    this.log.push(`${value === undefined ? "read" : value.toString(16)} ${bytes} at ${address.toString(16)}`);
    return value === undefined ? 0x8877_6655_4433_2211n & ((1n << BigInt(8 * bytes)) - 1n) : undefined;
  }
}

for (const backend of BACKENDS) {
  describe(`a guest without tables that KVM tracks (${backend})`, () => {
    it("reads, writes and faults as one that nobody tracks, wherever its operands lie", () => {
      fc.assert(
        fc.property(fc.array(act, { minLength: 1, maxLength: 12 }), fc.boolean(), (acts, wp) => {
          const run = (tracked: boolean) => {
            const disk = tracked ? { disk: { pages: 64, latency: 10 } } : {};
            const rig = new Rig({ vm: { backend, slots: SLOTS, ...disk } });
            assertEquals(rig.vm.tracksPages, tracked);
            const device = new Recorder();
            rig.vm.userspaceMmioDevice = device;
            const log: unknown[] = [];
            for (const vector of [PF_VECTOR, GP_VECTOR]) {
              rig.on(vector, function* (cpu): Guest {
                log.push(vector, cpu.errorCode, vector === PF_VECTOR ? yield* readCr2(cpu) : 0);
                cpu.fixup();
              });
            }
            let end: string;
            try {
              ({ end } = rig.run(function* (cpu) {
                yield cpu.movFromCr0();
                if (wp) yield cpu.movToCr0(cpu.eax | CR0_WP);
                for (const { name, at, a, b } of acts) {
                  try {
                    yield ACCESSES[name](cpu, at, a, b);
                    log.push(name, cpu.rax, cpu.cf, cpu.zf);
                  } catch (error) {
                    if (!(error instanceof X86Fault)) throw error;
                  }
                  if (name === "lidt") return; // Who knows what it has loaded.
                }
              }));
            } catch (error) {
              // LIDT from a device: nobody simulates it, but not everybody finds it out.
              if (!(error instanceof GuestError) && !(error instanceof NotModelled)) throw error;
              end = "error";
            }
            return {
              end,
              log,
              userspace: device.log,
              memory: rig.vm.memory.slots.map(({ base, u8 }) => [base, hash(u8)]),
            };
          };
          assertEquals(run(true), run(false));
        }),
        { numRuns: 80 },
      );
    });
  });
}

for (const backend of BACKENDS) {
  describe(`a guest that leaves its tables again (${backend})`, () => {
    it("finds memory where it is, whatever its tables' translations were, tracked or not", () => {
      for (const tracked of [false, true]) {
        const rig = new PagingRig({ vm: { backend, ...(tracked && { disk: { pages: 64, latency: 10 } }) } });
        const alias = 0x5000_0000;
        rig.map(alias, DATA, { flags: KERNEL_PAGE | PTE_G }).map(LOCKED, DATA);
        const seen: number[] = [];
        rig.finish(function* (cpu) {
          yield cpu.store32(DATA, 5);
          yield* setCr4(cpu, CR4_PGE | CR4_PCIDE);
          yield cpu.load32(LOCKED);
          seen.push(cpu.eax);
          yield* pagingOn(cpu, rig.tables, 0, true);
          for (const page of [alias, LOCKED]) {
            yield cpu.load32(page);
            seen.push(cpu.eax);
          }
          yield cpu.movToCr3(0, 0x8000_0000);
          for (const page of [alias, LOCKED]) {
            yield cpu.load32(page);
            seen.push(cpu.eax);
          }
          yield* pagingOn(cpu, rig.tables, 0, true);
          yield cpu.load32(LOCKED);
          seen.push(cpu.eax);
        });
        // Without tables nothing is at these addresses: devices that nobody has, which read as 0.
        assertEquals(seen, [0, 5, 5, 0, 0, 5], `tracked: ${tracked}`);
      }
    });
  });
}

function hash(bytes: Uint8Array): number {
  let value = 0;
  for (let i = 0; i < bytes.length; i++) if (bytes[i] !== 0) value = (value * 31 + i * 7 + bytes[i]) >>> 0;
  return value;
}
