import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_DEFAULT_BASE,
  CR0_WP,
  CR4_PCIDE,
  CR4_PGE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_NX,
  type Guest,
  IA32_EFER,
  PageFault,
  PFERR_PRESENT,
  PFERR_WRITE,
  type X86Cpu,
} from "../../../abi/mod.ts";
import {
  type ApicName,
  argumentOf,
  data,
  exit,
  getUser32,
  Kernel,
  mprotect,
  PAGE_OFFSET,
  PERCPU,
  PROT_READ,
  putUser32,
  syscall,
  TRAMPOLINE,
  USER_TEXT,
} from "../../../guest/mod.ts";
import { setGate } from "../../../guest/kernel/idt.ts";
import { BACKENDS, GuestError } from "../../../host/mod.ts";
import type { KernelRigOptions } from "../../support/kernels.ts";
import { PagingRig } from "../../support/tasks.ts";

/** A system call that flushes everything everywhere. */
const FLUSH_ALL = 600;

/** The error code of the fault that an access of the kernel's raises; -1 for none. */
function* faultOf(build: () => number): Generator<number, number, void> {
  try {
    yield build();
    return -1;
  } catch (fault) {
    if (fault instanceof PageFault) return fault.errorCode;
    throw fault;
  }
}

/** Bits of CPUID. */
interface Bits {
  readonly leaf: number;
  readonly register: number;
  readonly mask: number;
}

/** A machine whose CPUID lacks some bits: what one of another year offers. */
function without(bits: readonly Bits[], options: KernelRigOptions): KernelRigOptions {
  const { cpuid } = new PagingRig(options).vm.bootstrap;
  const entries = new Map<number, [number, number, number, number]>();
  for (const { leaf, register, mask } of bits) {
    const registers = entries.get(leaf) ?? [...cpuid.find(leaf, 0)!] as [number, number, number, number];
    registers[register] &= ~mask;
    entries.set(leaf, registers);
  }
  const replaced = [...entries].map(([leaf, registers]) => ({
    leaf,
    ...leaf === 7 ? { subleaf: 0 } : {},
    registers,
  }));
  return { ...options, vm: { ...options.vm, cpuid: replaced } };
}

for (const backend of BACKENDS) {
  describe(`a kernel with paging (${backend})`, () => {
    it("has every processor translate by the same tables, with all that CPUID offers", () => {
      const rig = new PagingRig({ cpus: 3, vm: { backend } });
      const seen: unknown[] = [];
      rig.runTasks([0, 1, 2].map((n) => ({
        cpu: n,
        kernelThread: true,
        *program(cpu: X86Cpu): Guest {
          yield cpu.movFromCr0();
          const wp = (cpu.eax & CR0_WP) !== 0;
          yield cpu.movFromCr3();
          const cr3 = cpu.eax;
          yield cpu.movFromCr4();
          const cr4 = cpu.eax & (CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP);
          yield cpu.rdmsr(IA32_EFER);
          seen.push([wp, cr3, cr4, (cpu.eax & EFER_NX) !== 0]);
        },
      })));
      // The kernel's own address space has the first identifier: PCID 1.
      const wanted = [true, rig.kernel.mm.kernelRoot + 1, CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP, true];
      assertEquals(seen, [wanted, wanted, wanted]);
      assertEquals(rig.mask("online"), [0, 1, 2]);
    });

    it("reaches its data at their physical addresses and through the map of all memory", () => {
      const rig = new PagingRig({ vm: { backend } });
      rig.run(function* (cpu) {
        yield cpu.load32(data("apicIds"));
        yield cpu.store32(data("dead"), 0x55);
        yield cpu.load32(PAGE_OFFSET + data("dead"));
        assertEquals(cpu.eax, 0x55);
        yield cpu.store32(PAGE_OFFSET + data("dead"), 0);
        yield cpu.load32(data("dead"));
        assertEquals(cpu.eax, 0);
      });
    });

    it("cannot write its text, by neither address, nor reach what it has not mapped", () => {
      const rig = new PagingRig({ vm: { backend } });
      const codes: number[] = [];
      const { kernel } = rig;
      rig.run(function* (cpu) {
        for (
          const address of [
            kernel.entry,
            TRAMPOLINE,
            PAGE_OFFSET + kernel.entry,
            PAGE_OFFSET + 2 ** 36,
            -4096,
            USER_TEXT,
            0x1_2345_6000,
          ]
        ) codes.push(yield* faultOf(() => cpu.store32(address, 0)));
        codes.push(yield* faultOf(() => cpu.load32(kernel.entry)));
      });
      const readOnly = PFERR_PRESENT | PFERR_WRITE;
      assertEquals(codes, [
        readOnly,
        readOnly,
        readOnly,
        PFERR_WRITE,
        PFERR_WRITE,
        PFERR_WRITE,
        PFERR_WRITE,
        -1,
      ]);
    });

    it("drives its APIC through the page that it mapped, and starts processors through real mode", () => {
      for (const apic of ["xapic", "x2apic-cluster"] satisfies ApicName[]) {
        const rig = new PagingRig({ cpus: 4, apic, vm: { backend } });
        rig.run(function* (cpu) {
          if (apic !== "xapic") return;
          yield cpu.load32(APIC_DEFAULT_BASE + 0x30);
          assertGreater(cpu.eax, 0);
        });
        assertEquals(rig.mask("online"), [0, 1, 2, 3]);
      }
    });

    it("makes do with less: without PCIDs, global pages, SMEP, SMAP, NX or INVPCID", () => {
      const masks = [
        { leaf: 1, register: 2, mask: 1 << 17 },
        { leaf: 1, register: 3, mask: 1 << 13 },
        { leaf: 7, register: 1, mask: (1 << 7) | (1 << 20) | (1 << 10) },
        { leaf: 0x8000_0001, register: 3, mask: 1 << 20 },
      ];
      for (const some of [...masks.map((mask) => [mask]), masks]) {
        const rig = new PagingRig(without(some, { cpus: 2, vm: { backend } }));
        rig.kernel.sched.syscalls.add(FLUSH_ALL, function* (cpu) {
          yield* rig.kernel.mm.flushAll(cpu);
          return 0;
        });
        const codes = rig.runProgram([0, 1].map((cpu) => ({
          cpu,
          *program(cpu: X86Cpu): Guest {
            yield cpu.xadd32(argumentOf(cpu), 1);
            yield* syscall(cpu, FLUSH_ALL);
          },
        })));
        assertEquals(codes, [0, 0]);
        rig.quiet();
        const { mm } = rig.kernel;
        const off = some.length === masks.length;
        assertEquals(
          mm.pcid,
          some[0].leaf !== 1,
          "nor are there PCIDs where only global pages are missing (setup_pcid)",
        );
        if (off) {
          assertEquals([mm.pcid, mm.pge, mm.smep, mm.smap, mm.invpcid, mm.nx], Array(6).fill(false));
        }
      }
    });

    it("sets no entry's NX where the processors lack it, whatever mprotect takes away", () => {
      const rig = new PagingRig(
        without([{ leaf: 0x8000_0001, register: 3, mask: 1 << 20 }], { vm: { backend } }),
      );
      const codes = rig.runProgram([{
        *program(cpu: X86Cpu): Guest {
          const memory = argumentOf(cpu);
          yield cpu.store32(memory, 7);
          assertEquals(yield* mprotect(cpu, memory, 4096, PROT_READ), 0);
          yield cpu.load32(memory); // Bit 63 would be a reserved bit, and this a fault that ends the program.
          yield* exit(cpu, cpu.eax);
        },
      }]);
      assertEquals([codes, rig.kernel.log], [[7 << 8], []]);
    });

    it("cannot touch user memory but between STAC and CLAC, and says so where it does", () => {
      const rig = new PagingRig({ vm: { backend } });
      const { kernel } = rig;
      let code = -1;
      rig.run(function* (cpu) {
        const space = yield* kernel.mm.create(cpu);
        const page = yield* kernel.mm.map(cpu, space, 4096);
        yield* kernel.mm.use(cpu, space);
        yield* putUser32(cpu, kernel, page, 77);
        assertEquals(yield* getUser32(cpu, kernel, page), 77);
        code = yield* faultOf(() => cpu.load32(page));
        yield* kernel.mm.unuse(cpu);
        yield* kernel.mm.put(cpu, space);
      });
      assertEquals(code, PFERR_PRESENT);
      assertEquals(kernel.log.length, 1);
      assert(/^BUG: .* the kernel touched user memory without STAC$/.test(kernel.log[0]), kernel.log[0]);
    });

    it("never executes user memory, whatever sends it there: it stops, and says why", () => {
      const rig = new PagingRig({ vm: { backend } });
      const { kernel } = rig;
      let ran = false;
      const program = kernel.user(function* program(cpu) {
        yield cpu.pause();
        ran = true;
      });
      const failure = assertThrows(() =>
        rig.run(function* (cpu) {
          const space = yield* kernel.mm.create(cpu);
          yield* kernel.mm.use(cpu, space);
          yield* getUser32(cpu, kernel, program); // The page is there.
          yield* setGate(cpu, 0x60, program, 64);
          yield* kernel.apic.sendIpiSelf(cpu, 0x60);
          yield cpu.work(1000);
        }), GuestError);
      assertEquals(ran, false);
      assertEquals(
        (failure.cause as Error).message,
        "BUG: unable to handle page fault for address 0x4000000 ip 0x4000000 error 0x11: the kernel executed user memory",
      );
    });

    it("gets no user memory that is not mapped, or not a user's: the access is refused, and nothing is logged", () => {
      const rig = new PagingRig({ vm: { backend } });
      const { kernel } = rig;
      const refused: number[] = [];
      rig.run(function* (cpu) {
        const space = yield* kernel.mm.create(cpu);
        const page = yield* kernel.mm.map(cpu, space, 4096, 1);
        yield* kernel.mm.use(cpu, space);
        for (
          const [address, write] of [[page + 4096, false], [PERCPU, false], [page, true], [
            -4096,
            false,
          ]] as const
        ) {
          try {
            if (write) yield* putUser32(cpu, kernel, address, 1);
            else yield* getUser32(cpu, kernel, address);
          } catch (fault) {
            assert(fault instanceof PageFault);
            refused.push(address);
          }
          yield cpu.pushf();
          assertEquals(cpu.eax & (1 << 18), 0); // AC does not stay set.
        }
        assertEquals(refused, [page + 4096, PERCPU, page, -4096]);
        yield* kernel.mm.unuse(cpu);
        yield* kernel.mm.put(cpu, space);
      });
      rig.quiet();
    });
  });
}

describe("a kernel with paging", () => {
  it("refuses numbers that it cannot be built with, and says when memory is missing", () => {
    const build = (paging: object): Kernel => new Kernel({ paging, *main(): Guest {} });
    assertThrows(() => build({ frames: 4 }), RangeError, "Cannot have 4 page frames: allowed are 16 to");
    assertThrows(() => build({ spaces: 0 }), RangeError, "Cannot have 0 address spaces");
    assertThrows(() => build({ mappings: 1.5 }), RangeError, "Cannot have 1.5 mappings");
    const rig = new PagingRig({ paging: { frames: 16_384 } }); // 64 MiB: more than the virtual machine has.
    const failure = assertThrows(() => rig.run(), GuestError);
    assert(/^Cannot boot: it takes \d+ bytes of memory$/.test((failure.cause as Error).message));
  });

  it("has no more address spaces than it was told, and the frames of those that are gone again", () => {
    const rig = new PagingRig({ paging: { spaces: 2, frames: 64 } });
    const { kernel } = rig;
    rig.run(function* (cpu) {
      yield cpu.load32(kernel.mm.dataAt("used"));
      const before = cpu.eax;
      for (let round = 0; round < 5; round++) {
        const spaces = [yield* kernel.mm.create(cpu), yield* kernel.mm.create(cpu)];
        let refused = "";
        try {
          yield* kernel.mm.create(cpu);
        } catch (error) {
          refused = (error as Error).message;
        }
        assertEquals(refused, "Cannot make an address space: there are 2 already, the most allowed");
        for (const space of spaces) yield* kernel.mm.put(cpu, space);
      }
      yield cpu.load32(kernel.mm.dataAt("used"));
      assertEquals(cpu.eax, before);
    });
  });
});
