import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { IA32_TSC, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, Machine, straight, type Vm } from "../../../host/mod.ts";
import type { Asking } from "../../support/apic.ts";
import { DATA, Rig, type RigOptions } from "../../support/guests.ts";

const CLOCK_PAIRING = 9;
const EFAULT = -14n;
const ENOSYS = -1000n;
const EOPNOTSUPP = -95n;
/** Bytes of guest memory, and one past its last byte. */
const MEMORY = 2 ** 21;
/** 2017-01-24, when the call was new. */
const REALTIME = 1_485_252_000;
/** A second of the default profile's TSC, which runs at 2.5 GHz. */
const SECOND = 2_500_000_000;

/** The fields that the host wrote at an address (Documentation/virt/kvm/x86/hypercalls.rst). */
function pairingAt({ memory }: Vm, address: number): Record<"sec" | "nsec" | "tsc" | "rest", bigint> {
  const [sec, nsec, tsc] = [0, 8, 16].map((offset) => memory.read(address + offset, 8)!);
  let rest = 0n; // Flags and padding.
  for (let at = 24; at < 64; at += 8) rest |= memory.read(address + at, 8)!;
  return { sec, nsec, tsc, rest };
}

/** Fills memory with ones, so that what was not written shows. */
function soil({ memory }: Vm, address: number, bytes: number): void {
  memory.load(address, new Uint8Array(bytes).fill(0xff));
}

for (const backend of BACKENDS) {
  const pair = function* (cpu: X86Cpu, gpa: number | bigint, clock: number | bigint = 0): Asking<bigint> {
    cpu.loadHypercall(CLOCK_PAIRING, gpa, clock);
    yield backend === "vmx" ? cpu.vmcall() : cpu.vmmcall();
    return BigInt.asIntN(64, cpu.rax);
  };
  const rigWith = ({ machine, vm, ...rest }: RigOptions = {}): Rig =>
    new Rig({
      machine: { realtime: REALTIME, ...machine },
      vm: { backend, memory: MEMORY, ...vm },
      ...rest,
    });

  describe(`KVM_HC_CLOCK_PAIRING (${backend})`, () => {
    it("pairs the host's time with the guest's TSC of the same moment", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield cpu.wrmsr(IA32_TSC, 1000, 7); // Its TSC is another than the host's: 7 * 2^32 + 1000 about now.
        const { tscOffset } = rig.vm.bootstrap.processor;
        for (const cycles of [0, SECOND / 2, 3 * SECOND]) {
          yield cpu.work(cycles);
          soil(rig.vm, DATA, 64);
          yield cpu.rdtsc();
          const before = u64(cpu);
          assertEquals(yield* pair(cpu, DATA), 0n);
          yield cpu.rdtsc();
          const { sec, nsec, tsc, rest } = pairingAt(rig.vm, DATA);
          assertEquals([before < tsc, tsc < u64(cpu), rest], [true, true, 0n]);
          // 2.5 cycles of the host's TSC are a nanosecond.
          const ns = (tsc - BigInt(tscOffset)) * 2n / 5n;
          assertEquals([sec, nsec], [BigInt(REALTIME) + ns / 1_000_000_000n, ns % 1_000_000_000n]);
        }
      }, 1e11);
    });

    it("writes 64 bytes wherever they are: aligned or not, over the end of a page", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        for (const address of [DATA, DATA + 1, DATA + 0x1000 - 33, MEMORY - 64]) {
          soil(rig.vm, address - 8, Math.min(80, MEMORY - address + 8));
          assertEquals(yield* pair(cpu, address), 0n);
          const { sec, rest } = pairingAt(rig.vm, address);
          assertEquals([sec, rest], [BigInt(REALTIME), 0n]);
          assertEquals(rig.vm.memory.read(address - 8, 8), 2n ** 64n - 1n, "not what stands before");
          if (address + 72 <= MEMORY) assertEquals(rig.vm.memory.read(address + 64, 8), 2n ** 64n - 1n);
        }
      });
    });

    it("knows the wall clock alone, and looks at all 64 bits of what is asked for", () => {
      const rig = rigWith();
      soil(rig.vm, DATA, 64);
      rig.finish(function* (cpu) {
        for (const clock of [1, 7, -1, 2n ** 32n]) assertEquals(yield* pair(cpu, DATA, clock), EOPNOTSUPP);
      });
      assertEquals(pairingAt(rig.vm, DATA).sec, 2n ** 64n - 1n, "nothing was written");
    });

    it("is a bad address where no memory is, or none that may be written; pages before that are written", () => {
      const ROM = 0x1000_0000;
      const rig = rigWith({ vm: { slots: [{ base: ROM, size: 4096, readonly: true }] } });
      soil(rig.vm, MEMORY - 32, 32);
      rig.finish(function* (cpu) {
        for (const address of [MEMORY, ROM, 2n ** 40n, 2n ** 63n, -64n, 2n ** 32n + BigInt(DATA)]) {
          assertEquals(yield* pair(cpu, address), EFAULT, String(address));
        }
        assertEquals(yield* pair(cpu, MEMORY - 32), EFAULT);
      });
      assertEquals(rig.vm.memory.read(MEMORY - 32, 8), BigInt(REALTIME));
      assertEquals(rig.vm.memory.read(ROM, 8), 0n);
      // An address, then a clock: KVM does not look at the first where it does not know the second.
      rigWith().finish(function* (cpu) {
        assertEquals(yield* pair(cpu, MEMORY, 1), EOPNOTSUPP);
      });
    });

    it("takes the low halves of a 32-bit guest's registers", () => {
      const rig = rigWith({ mode: "32-bit" });
      rig.finish(function* (cpu) {
        yield* pair(cpu, DATA);
        assertEquals(cpu.rax, 0n);
      });
      assertEquals(pairingAt(rig.vm, DATA).sec, BigInt(REALTIME));
    });

    it("came with v4.11", () => {
      for (const [hostSemantics, answer] of [["2012", ENOSYS], ["2018", 0n], ["v6.19", 0n]] as const) {
        rigWith({ vm: { hostSemantics } }).finish(function* (cpu) {
          assertEquals(yield* pair(cpu, DATA), answer);
        });
      }
    });

    it("dirties the pages that it writes, and no other", () => {
      const rig = rigWith();
      const { vm } = rig;
      const [slot] = vm.memory.slots;
      const first = DATA / 4096;
      straight(vm.logDirtyPages(slot, true));
      rig.finish(function* (cpu) {
        yield* pair(cpu, DATA + 0x1000 - 8);
      });
      const log = straight(vm.getDirtyLog(slot));
      const dirty = [first - 1, first, first + 1, first + 2].map((page) =>
        log[page >>> 5] >>> (page & 31) & 1
      );
      assertEquals(dirty, [0, 1, 1, 0]);
    });
  });
}

function u64({ eax, edx }: X86Cpu): bigint {
  return BigInt(edx) << 32n | BigInt(eax);
}

describe("the host's clock", () => {
  it("begins in a whole second since 1970", () => {
    for (const realtime of [-1, 0.5, NaN, Infinity, 2 ** 40]) {
      assertThrows(
        () => new Machine({ realtime }),
        RangeError,
        `second ${realtime}: allowed are 0 to 2^40 - 1`,
      );
    }
    assertEquals([new Machine().realtime, new Machine({ realtime: REALTIME }).realtime], [0, REALTIME]);
  });
});
