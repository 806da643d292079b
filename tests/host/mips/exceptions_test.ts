import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  MIPS_CP0,
  MIPS_EBASE,
  MIPS_GPR,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  MIPS_STATUS_UM,
  type MipsCpu,
  type MipsException,
  mipsKseg0,
  mipsRegisterAddress,
} from "../../../abi/mod.ts";
import { NotModelled } from "../../../host/mod.ts";
import { MipsRig, ORDERS } from "../../support/mips.ts";

const DATA = mipsKseg0(0x4000);
const STUB = mipsKseg0(0x6000);

/** What a handler finds. */
interface Found {
  readonly exccode: number;
  readonly bd: boolean;
  readonly epc: bigint;
  readonly badVAddr: bigint;
  readonly coprocessor: number;
}

/** Runs a program until its first exception, and says what the handler finds. The way on is the fixup's. */
function exceptionOf(program: (cpu: MipsCpu) => Generator<number, void, void>, words: number[] = []): Found {
  const found: Found[] = [];
  const rig = new MipsRig({
    *handler(cpu) {
      yield cpu.mfc0Cause();
      const cause = cpu.value32;
      yield cpu.dmfc0BadVAddr();
      found.push({
        exccode: (cause >>> 2) & 0x1f,
        bd: cause >>> 31 === 1,
        epc: cpu.system(MIPS_CP0.epc),
        badVAddr: cpu.value64,
        coprocessor: (cause >>> 28) & 3,
      });
      cpu.fixup();
    },
  });
  if (words.length > 0) rig.text.addWords(STUB, words);
  rig.run(function* (cpu) {
    try {
      yield* program(cpu);
    } catch { /* That is how it ends. */ }
  });
  assertEquals(found.length, 1);
  return found[0];
}

const CODES: Readonly<Record<MipsException, number>> = {
  Int: 0,
  Mod: 1,
  TLBL: 2,
  TLBS: 3,
  AdEL: 4,
  AdES: 5,
  IBE: 6,
  DBE: 7,
  Sys: 8,
  Bp: 9,
  RI: 10,
  CpU: 11,
};

describe("MIPS exceptions", () => {
  it("SYSCALL and BREAK have codes 8 and 9, and EPC at them", () => {
    const calls = exceptionOf(function* (cpu) {
      yield cpu.syscall();
    });
    const breaks = exceptionOf(function* (cpu) {
      yield cpu.break();
    });
    assertEquals([calls.exccode, breaks.exccode], [CODES.Sys, CODES.Bp]);
    assertEquals([calls.bd, breaks.bd], [false, false]);
  });

  for (const [name, bytes] of [["lw", 4], ["ld", 8]] as const) {
    it(`${name} at an address that is not aligned is an address error, and BadVAddr says which`, () => {
      const found = exceptionOf(function* (cpu) {
        yield cpu[name](DATA + bytes / 2);
      });
      assertEquals(found.exccode, CODES.AdEL);
      assertEquals(found.badVAddr, 0xffff_ffff_8000_4000n + BigInt(bytes / 2));
    });
  }

  it("a store that is not aligned is one of its own", () => {
    const found = exceptionOf(function* (cpu) {
      yield cpu.sw(DATA + 1, 0);
    });
    assertEquals(found.exccode, CODES.AdES);
  });

  it("a segment that the TLB maps has no translation: a refill, for a load and for a store", () => {
    const load = exceptionOf(function* (cpu) {
      yield cpu.lw(0xc000_0000);
    });
    const store = exceptionOf(function* (cpu) {
      yield cpu.sw(0x1000, 0);
    });
    assertEquals([load.exccode, load.badVAddr], [CODES.TLBL, 0xffff_ffff_c000_0000n]);
    assertEquals([store.exccode, store.badVAddr], [CODES.TLBS, 0x1000n]);
  });

  it("a refill has a vector of its own, unless EXL is set", () => {
    const seen: string[] = [];
    const rig = new MipsRig({ handler: undefined });
    const jump = (entry: number) => [0x0800_0000 | ((entry >>> 2) & 0x03ff_ffff), 0];
    const refill = rig.text.add(function* refill(cpu) {
      seen.push("refill");
      cpu.fixup();
      if (seen.length > 1) return;
      try {
        yield cpu.lw(0xc000_0000); // Another one, while EXL is set.
      } catch { /* Sent here by the general handler. */ }
      cpu.setSystem(MIPS_CP0.epc, mipsRegisterAddress(outer));
    });
    const general = rig.text.add(function* general(cpu) {
      seen.push("general");
      cpu.fixup();
      yield cpu.mfc0Status();
    });
    rig.text.addWords(MIPS_EBASE, jump(refill));
    rig.text.addWords(MIPS_EBASE + 0x180, jump(general));
    let outer = 0;
    rig.run(function* (cpu) {
      outer = rig.text.blocks.at(-1)!.address + cpu.layout.pad;
      try {
        yield cpu.lw(0xc000_0000);
      } catch { /* The first one's. */ }
      seen.push("program");
    });
    assertEquals(seen, ["refill", "general", "program"]);
  });

  it("kseg1 and xkphys reach the memory that kseg0 does", () => {
    for (const order of ORDERS) {
      new MipsRig({ order }).run(function* (cpu) {
        yield cpu.sw(DATA, 0x1234_5678);
        for (const address of [0xa000_4000, 0x9000_0000_0000_4000n, 0xb800_0000_0000_4000n]) {
          yield cpu.lw(address);
          assertEquals(cpu.value32, 0x1234_5678);
        }
      });
    }
  });

  it("a word that no instruction has is reserved", () => {
    for (const word of [0xec00_0000, 0x0000_003f, 0x7c00_0000, 0x4200_003f, 0x4260_0028, 0x4200_0068]) {
      const found = exceptionOf(function* (cpu) {
        yield cpu.call(STUB);
      }, [word, 0, 0]);
      assertEquals([found.exccode, found.epc], [CODES.RI, 0xffff_ffff_8000_6000n], word.toString(16));
    }
  });

  it("in a branch delay slot EPC is the branch, and Cause.BD says so", () => {
    const found = exceptionOf(function* (cpu) {
      yield cpu.call(STUB);
    }, [0x1000_0003, 0x0000_000c, /* syscall */ 0, 0, 0]);
    assertEquals(found, {
      exccode: CODES.Sys,
      bd: true,
      epc: 0xffff_ffff_8000_6000n,
      badVAddr: 0n,
      coprocessor: 0,
    });
  });

  it("the handler returns to the branch, which is executed again with its delay slot", () => {
    let syscalls = 0;
    const rig = new MipsRig({
      *handler(cpu) {
        syscalls++;
        yield cpu.sw(STUB + 4, 0); // A NOP takes the SYSCALL's place.
      },
    });
    rig.text.addWords(STUB, [0x03e0_0008, /* jr ra */ 0x0000_000c]);
    let back = false;
    rig.run(function* (cpu) {
      yield cpu.call(STUB);
      back = true;
    });
    assertEquals([syscalls, back], [1, true]);
  });

  it("a second one while EXL is set leaves EPC and BD alone", () => {
    const epcs: bigint[] = [];
    const rig = new MipsRig({
      *handler(cpu) {
        epcs.push(cpu.system(MIPS_CP0.epc));
        if (epcs.length === 1) {
          try {
            yield cpu.break();
          } catch { /* The inner one's fixup. */ }
          return;
        }
        cpu.fixup();
      },
    });
    // Both return by fixup: the inner one's into the handler, and EPC is then the handler's: the program goes on there.
    try {
      rig.run(function* (cpu) {
        yield cpu.syscall();
      });
    } catch { /* EPC was lost, as on hardware. */ }
    assertEquals(epcs[0], epcs[1]);
  });

  it("user mode may not fetch from the kernel's segments: an address error at the next instruction", () => {
    const found = exceptionOf(function* (cpu) {
      yield cpu.mfc0Status();
      yield cpu.mtc0Status(cpu.value32 | MIPS_STATUS_UM);
      yield cpu.hypcall();
    });
    assertEquals(found.exccode, CODES.AdEL);
    assertEquals(found.badVAddr, found.epc);
  });

  it("coprocessor 1's branches need Status.CU1: Cause.CE says that it is missing", () => {
    const found = exceptionOf(function* (cpu) {
      yield cpu.call(STUB);
    }, [0x4501_0001, 0, 0]);
    assertEquals([found.exccode, found.coprocessor], [CODES.CpU, 1]);
  });

  it("ERET clears EXL, or ERL before it, and goes to EPC or ErrorEPC", () => {
    const rig = new MipsRig();
    rig.run(function* (cpu) {
      yield cpu.mfc0Status();
      assertEquals(cpu.value32 & MIPS_STATUS_EXL, 0);
      try {
        yield cpu.lw(DATA + 1);
      } catch { /* A handler has come and gone. */ }
      yield cpu.mfc0Status();
      assertEquals(cpu.value32 & MIPS_STATUS_EXL, 0);
    });

    const both = MIPS_STATUS_ERL | MIPS_STATUS_EXL;
    const nested = new MipsRig();
    // mtc0 a0, ErrorEPC; mtc0 a1, EPC; mtc0 a2, Status; eret; nop; nop; jr ra; nop
    nested.text.addWords(STUB, [0x4084_f000, 0x4085_7000, 0x4086_6000, 0x4200_0018, 0, 0, 0x03e0_0008, 0]);
    nested.run(function* (cpu) {
      yield cpu.mfc0Status();
      const status = cpu.value32;
      cpu.setRegister(MIPS_GPR.a0, mipsRegisterAddress(STUB + 24));
      cpu.setRegister(MIPS_GPR.a1, mipsRegisterAddress(mipsKseg0(0x1fff_f000))); // Where no memory is.
      cpu.setRegister(MIPS_GPR.a2, status | both);
      yield cpu.call(STUB);
      yield cpu.mfc0Status();
      assertEquals(cpu.value32, status | MIPS_STATUS_EXL);
      yield cpu.mtc0Status(status);
    });
    assertEquals([nested.vm.ending, nested.vm.finished], [undefined, true]);
  });

  it("a guest begins as kvmtool sets it up: Status.ERL and EXL, nothing else", () => {
    const { vm } = new MipsRig();
    assertEquals(vm.vcpus[0].context.system(MIPS_CP0.status), 6n);
  });
});

describe("a MIPS guest's access to where no memory is", () => {
  it("is an exit, by kind; what would be MMIO is not modelled, and that is said", () => {
    const nowhere = mipsKseg0(0x1000_0000);
    for (const [access, exit] of [["load", "TLB Miss (LD)"], ["store", "TLB Miss (ST)"]] as const) {
      const rig = new MipsRig();
      assertThrows(
        () =>
          rig.run(function* (cpu) {
            yield access === "load" ? cpu.lw(nowhere) : cpu.sw(nowhere, 0);
          }),
        NotModelled,
        `a MIPS guest's MMIO ${access} at 0xffffffff90000000`,
      );
      assertEquals(rig.vm.exits(), { [exit]: 1 });
    }
  });
});

describe("an access to where no memory is, without a KVM", () => {
  it("is a bus error, of which KVM neither hears nor tells, and BadVAddr stays", () => {
    // MIPS64 Architecture, volume III, "Bus Error Exception": IBE for fetches, DBE for loads and stores.
    const nowhere = mipsKseg0(0x1000_0000);
    for (
      const [code, access] of [
        [CODES.IBE, (cpu: MipsCpu) => cpu.call(nowhere)],
        [CODES.DBE, (cpu: MipsCpu) => cpu.lw(nowhere)],
        [CODES.DBE, (cpu: MipsCpu) => cpu.sw(nowhere, 0)],
      ] as const
    ) {
      const caught: number[] = [];
      const rig = new MipsRig({
        host: "none",
        *handler(cpu) {
          yield cpu.mfc0Cause();
          caught.push((cpu.value32 >>> 2) & 0x1f);
          cpu.fixup();
        },
      });
      rig.run(function* (cpu) {
        try {
          yield access(cpu);
        } catch { /* That is how it ends. */ }
      });
      assertEquals(caught, [code]);
      assertEquals(rig.vm.vcpus[0].context.system(MIPS_CP0.badVAddr), 0n);
      assertEquals([rig.vm.exits(), rig.vm.counters(), rig.vm.ending], [{}, {}, undefined]);
    }
  });
});

describe("MIPS code outside the 32-bit segments", () => {
  it("is not modelled, and a jump or a return there says so", () => {
    const xkphys = 0x9800_0000_0000_6000n;
    assertThrows(
      () => {
        const rig = new MipsRig();
        rig.text.addWords(STUB, [0x0080_0008, /* jr a0 */ 0]);
        rig.run(function* (cpu) {
          cpu.setRegister(4, xkphys);
          yield cpu.call(STUB);
        });
      },
      NotModelled,
      "MIPS code at 0x9800000000006000",
    );
    const rig = new MipsRig({
      *handler(cpu) {
        yield cpu.dmtc0Epc(xkphys);
      },
    });
    assertThrows(
      () =>
        rig.run(function* (cpu) {
          yield cpu.syscall();
        }),
      NotModelled,
      "MIPS code at 0x9800000000006000",
    );
  });
});

describe("Count", () => {
  it("runs at its frequency beside the host's clock, in 32 bits, and can be set", () => {
    const countHz = 50_000_000;
    const rig = new MipsRig({ countHz });
    rig.text.addWords(STUB, [0x03e0_0008, 0x4084_4800 /* mtc0 a0, Count */]);
    rig.run(function* (cpu) {
      yield cpu.mfc0Count();
      const before = cpu.value32;
      yield cpu.work(25_000_000); // 10 ms at 2.5 GHz
      yield cpu.mfc0Count();
      assertEquals(cpu.value32 - before, countHz / 100);
      cpu.setRegister(4, 0xffff_fff0);
      yield cpu.call(STUB);
      yield cpu.work(25_000_000);
      yield cpu.mfc0Count();
      assertEquals(cpu.value32, countHz / 100 - 0x10);
    });
  });
});
