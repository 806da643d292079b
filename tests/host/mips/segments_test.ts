import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  type MachineFault,
  MIPS_CP0,
  MIPS_SEGCTL2_RESET,
  MIPS_STATUS_CU0,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  MIPS_STATUS_UM,
  MipsCpu,
  mipsKseg0,
} from "../../../abi/mod.ts";
import { mipsEnterUserMode, mipsUnmapUseg } from "../../../guest/mod.ts";
import { mipsPhysical } from "../../../host/mod.ts";
import { MIPS_KVMS, MipsRig, type MipsRigOptions } from "../../support/mips.ts";

/** Where programs are that go to user mode. */
const USER_TEXT = 0x10_0000;
const DATA = 0x4000;

/** A context in some mode. */
function contextOf(status: number, segctl2: number = MIPS_SEGCTL2_RESET): MipsCpu {
  const context = new MipsCpu("wide");
  context.setSystem(MIPS_CP0.status, status);
  context.setSystem(MIPS_CP0.segCtl2, segctl2 >>> 0);
  return context;
}

describe("useg, as SegCtl2 says", () => {
  it("is mapped after reset, and unmapped while Status.ERL is set: then it leads to memory itself", () => {
    for (const address of [0n, 0x3fff_ffffn, 0x4000_0000n, 0x7fff_ffffn]) {
      for (const status of [0, MIPS_STATUS_EXL, MIPS_STATUS_UM]) {
        assertEquals(mipsPhysical(contextOf(status), address), "TLB");
      }
      assertEquals(mipsPhysical(contextOf(MIPS_STATUS_ERL), address), Number(address));
      assertEquals(mipsPhysical(contextOf(MIPS_STATUS_ERL | MIPS_STATUS_UM), address), Number(address));
    }
  });

  // MIPS64 Architecture, volume III, "Segmentation Control": what each access mode is to the kernel and to user mode.
  const MODES = {
    UK: [0, "unmapped", "address error"],
    MK: [1, "TLB", "address error"],
    MSK: [2, "TLB", "address error"],
    MUSK: [3, "TLB", "TLB"],
    MUSUK: [4, "unmapped", "TLB"],
    USK: [5, "unmapped", "address error"],
    UUSK: [7, "unmapped", "unmapped"],
  } as const;
  for (const [name, [am, kernel, user]] of Object.entries(MODES)) {
    it(`${name}: ${kernel} for the kernel, ${user} for user mode; the other segment stays`, () => {
      for (
        const [address, segctl2, other] of [
          [0x1234n, am << 20, 0x4000_1234n],
          [0x4000_1234n, am << 4, 0x1234n],
        ] as const
      ) {
        for (const [status, expected] of [[0, kernel], [MIPS_STATUS_UM, user]] as const) {
          const found = mipsPhysical(contextOf(status, segctl2), address);
          assertEquals(found, expected === "unmapped" ? 0x1234 : expected);
          // Its access mode is UK.
          const kept = status === 0 ? 0x1234 : "address error";
          assertEquals(mipsPhysical(contextOf(status, segctl2), other), kept);
        }
        // EXL makes it the kernel whatever KSU says; EU unmaps while ERL is set, and not otherwise.
        const exl = contextOf(MIPS_STATUS_EXL | MIPS_STATUS_UM, segctl2);
        assertEquals(mipsPhysical(exl, address), kernel === "unmapped" ? 0x1234 : kernel);
        for (const [eu, expected] of [[0, kernel], [0x0008_0008, "unmapped"]] as const) {
          const erl = contextOf(MIPS_STATUS_ERL, segctl2 | eu);
          assertEquals(mipsPhysical(erl, address), expected === "unmapped" ? 0x1234 : expected);
        }
      }
    });
  }

  it("leads to the memory that PA names: address bits 35 to 30, the bit below is none of 1 GiB", () => {
    for (const [pa, base] of [[0, 0], [1, 0], [2, 2 ** 30], [3, 2 ** 30], [0x7f, 63 * 2 ** 30]]) {
      const cfg = (pa << 9) | (7 << 4);
      assertEquals(mipsPhysical(contextOf(MIPS_STATUS_UM, cfg << 16), 0x3fff_fff8n), base + 0x3fff_fff8);
      assertEquals(mipsPhysical(contextOf(MIPS_STATUS_UM, cfg), 0x4000_0008n), base + 8);
    }
  });

  it("is all that user mode has", () => {
    for (
      const address of [0x8000_0000n, 0xffff_ffff_8000_0000n, 0xffff_ffff_c000_0000n, 0x9000_0000_0000_0000n]
    ) {
      assertEquals(mipsPhysical(contextOf(MIPS_STATUS_UM, 0x70_0070), address), "address error");
    }
  });
});

/** Runs a program that begins in the low GiB and goes to user mode; what it caught there. */
function inUserMode(
  code: (cpu: MipsCpu) => Generator<number, void, void>,
  { status = 0, ...options }: MipsRigOptions & { readonly status?: number } = {},
): { readonly rig: MipsRig; readonly fault: MachineFault | undefined; readonly cause: number } {
  let fault: MachineFault | undefined;
  let cause = 0;
  const rig = new MipsRig({
    ...options,
    *handler(cpu) {
      yield cpu.mfc0Cause();
      cause = cpu.value32;
      cpu.fixup();
    },
  });
  const entry = rig.text.addAt(USER_TEXT, function* program(cpu) {
    yield* mipsUnmapUseg(cpu);
    yield cpu.mfc0Status();
    yield cpu.mtc0Status(cpu.value32 | status);
    yield* mipsEnterUserMode(cpu);
    try {
      yield* code(cpu);
    } catch (error) {
      fault = error as MachineFault;
    }
  }, "program");
  rig.vm.load(rig.text);
  rig.vm.start(entry);
  assertEquals(rig.vm.machine.run().end, "finished");
  return { rig, fault, cause };
}

describe("a MIPS program in user mode", () => {
  for (const order of ["big", "little"] as const) {
    it(`runs, loads and stores in the low GiB, and has no other memory: ${order}-endian`, () => {
      const { rig, fault } = inUserMode(function* (cpu) {
        yield cpu.sw(DATA, 0x1234_5678);
        yield cpu.lw(DATA);
        assertEquals(cpu.value32, 0x1234_5678);
        yield cpu.work(100);
        yield cpu.lw(mipsKseg0(DATA));
      }, { order });
      assertEquals(rig.vm.words.read(DATA, 4), 0x1234_5678);
      assertEquals(fault?.exception, "AdEL");
      assertEquals(rig.vm.exits(), {});
    });
  }

  it("cannot use coprocessor 0: its own kernel gets HYPCALL, and moves, as coprocessor unusable", () => {
    for (const host of [...MIPS_KVMS, "none"] as const) {
      for (const issue of [(cpu: MipsCpu) => cpu.hypcall(), (cpu: MipsCpu) => cpu.mfc0Count()]) {
        const { rig, fault, cause } = inUserMode(function* (cpu) {
          yield issue(cpu);
        }, { host });
        assertEquals([fault?.exception, fault?.code], ["CpU", 11]);
        assertEquals([(cause >>> 2) & 0x1f, (cause >>> 28) & 3], [11, 0]); // Cause.CE: coprocessor 0.
        assertEquals([rig.vm.exits(), rig.vm.counters().kvm_exit], [{}, undefined]);
      }
    }
  });

  it("calls the host where its kernel has set Status.CU0: KVM does not look at the mode", () => {
    const { rig, fault } = inUserMode(function* (cpu) {
      cpu.loadHypercall({ number: 6n, arguments: [] });
      yield cpu.hypcall();
      assertEquals(cpu.gpr("v0"), 100_000_000n);
    }, { host: "imgtec", status: MIPS_STATUS_CU0 });
    assertEquals([fault, rig.vm.exits()], [undefined, { HC: 1 }]);
  });
});
