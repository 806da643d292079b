import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  encodePpc,
  MachineFault,
  MSR_DE,
  MSR_DR,
  MSR_EE,
  MSR_GS,
  MSR_HV,
  MSR_IR,
  MSR_ME,
  MSR_PMM,
  MSR_PR,
  MSR_RI,
  MSR_SF,
  MSR_UCLE,
  ppcAsm,
  ppcHypercallToken,
  type SprName,
  SPRS,
} from "../../../abi/mod.ts";
import { ppcFixup, useMagicPage } from "../../../guest/mod.ts";
import type { PpcHostName, PpcVcpu, PpcVmOptions } from "../../../host/mod.ts";
import {
  CODE,
  DATA,
  nameOf,
  ppcGuest,
  ppcOutcome,
  PR_HOSTS,
  routine,
  runPpc,
  SPACE,
  STUB,
  withHypercalls,
} from "../../support/ppc.ts";

describe("KVM's emulation of privileged instructions", () => {
  for (const options of PR_HOSTS) {
    const booke = options.host === "e500v2";
    const names: SprName[] = booke
      ? ["SPRG0", "SPRG3", "SRR0", "SRR1", "DEAR", "ESR", "MAS0", "MAS2", "MAS3", "MAS6", "MAS7"]
      : ["SPRG0", "SPRG1", "SPRG2", "SPRG3", "SRR0", "SRR1", "DAR", "DSISR"];

    it(`gives each register back as it was written: ${nameOf(options)}`, () => {
      runPpc(options, function* (cpu) {
        for (const [index, name] of names.entries()) {
          yield cpu.mtspr(name, 0x1000_0000 + index);
        }
        for (const [index, name] of names.entries()) {
          yield cpu.mfspr(name);
          assertEquals(cpu.r3, BigInt(0x1000_0000 + index), name);
        }
      });
    });

    it(`gives a user program a program interrupt instead, whatever the instruction: ${nameOf(options)}`, () => {
      const privileged = [
        ppcAsm.mfspr(3, SPRS.SPRG0),
        ppcAsm.mtspr(SPRS.SPRG0, 5),
        encodePpc("mfmsr", { RT: 3 }),
        encodePpc("mtmsr", { RS: 5 }),
        encodePpc("tlbsync", {}),
        encodePpc(booke ? "rfi" : "mtsr", booke ? {} as never : { SR: 0, RS: 5 } as never),
      ];
      for (const word of privileged) {
        const { r3, fault, vm } = ppcOutcome(options, [word], true);
        assertEquals([r3, fault], [3n, "PROGRAM"]);
        assertEquals(vm.vcpus[0].processor.shared.get("sprg0"), 0n);
      }
    });
  }

  it("tells why in SRR1 on Book3S and in ESR on BookE: illegal, privileged, trap", () => {
    const trap = encodePpc("tw", { TO: 31, RA: 0, RB: 0 });
    const privileged = ppcAsm.mfspr(3, SPRS.SPRG0);
    for (
      const [word, user, srr1, esr] of [
        [0, true, 0x8_0000, 0x800_0000],
        [privileged, true, 0x4_0000, 0x400_0000],
        [trap, true, 0x2_0000, 0x200_0000],
        [trap, false, 0x2_0000, 0x200_0000],
      ] as const
    ) {
      assertEquals(cause({ host: "book3s-64-pr" }, word, user), srr1);
      assertEquals(cause({ host: "book3s-32-pr" }, word, user), srr1);
      assertEquals(cause({ host: "e500v2" }, word, user), esr);
      assertEquals(cause({ host: "e500mc" }, word, user), esr);
    }
  });

  it("keeps what ESR held where a kernel of e500v2 meets a trap", () => {
    // emulate.c, kvmppc_emulate_instruction: shared->esr | ESR_PTR.
    const trap = encodePpc("twi", { TO: 31, RA: 0, SI: 0 });
    assertEquals(cause({ host: "e500v2" }, trap, false, 0x80_0000), 0x280_0000);
    assertEquals(cause({ host: "e500v2" }, trap, true, 0x80_0000), 0x200_0000);
    assertEquals(cause({ host: "e500mc" }, trap, false, 0x80_0000), 0x200_0000);
  });

  it("takes tdi for a trap on a 32-bit processor of Book3S, which does not have it, and for nothing on BookE", () => {
    const never = encodePpc("tdi", { TO: 0, RA: 0, SI: 0 });
    assertEquals(cause({ host: "book3s-32-pr" }, never, false), 0x2_0000);
    assertEquals(cause({ host: "book3s-32-pr" }, never, true), 0x8_0000);
    assertEquals(ppcOutcome({ host: "book3s-64-pr" }, [never]).fault, undefined);
  });

  /** What a handler finds of an instruction's cause. `esr` is what ESR held. */
  function cause(options: PpcVmOptions, word: number, user: boolean, esr: number = 0): number {
    const booke = options.host!.startsWith("e500");
    const vm = runPpc(options, function* (cpu) {
      if (booke) yield cpu.mtspr("ESR", esr);
      yield cpu.mfmsr();
      if (user) yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
      try {
        yield cpu.call(CODE);
      } catch (error) {
        if (!(error instanceof MachineFault)) throw error;
      }
    }, {
      code: routine(word),
      handlers: {
        *PROGRAM(cpu) {
          yield cpu.mfspr(booke ? "ESR" : "SRR1");
          yield cpu.stw(DATA, cpu.r3);
          yield* ppcFixup(cpu);
        },
      },
    });
    return vm.words.read(DATA, 4)! & (booke ? 0xfff_ffff : 0x1f_0000);
  }

  it("takes the cause of a privileged instruction for MSR[POW] where a handler returns with it, and waits", () => {
    const vm = ppcGuest({}, function* (cpu) {
      yield cpu.mfmsr();
      yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
      yield cpu.call(CODE);
    }, {
      code: routine(ppcAsm.mfspr(3, SPRS.SPRG0)),
      handlers: {
        *PROGRAM(cpu) {
          yield cpu.mfspr("SRR0");
          yield cpu.mtspr("SRR0", cpu.r3 + 4n);
        },
      },
    });
    assertEquals(vm.machine.run().end, "halted");
    assertEquals(vm.vcpus[0].phase, "blocked");
  });

  it("lets a kernel of Book3S read 0 from registers that KVM does not know, and write nothing", () => {
    for (const spr of [SPRS.SPRG4, SPRS.SPRG7, SPRS.MAS0]) {
      assertEquals(ppcOutcome({}, [ppcAsm.mfspr(3, spr)]).r3, 0n);
      const { r3, fault } = ppcOutcome({}, [ppcAsm.mtspr(spr, 5), ppcAsm.mfspr(3, spr)]);
      assertEquals([r3, fault], [0n, undefined]);
    }
  });

  it("knows the CPU's number, which on Book3S is in no magic page: a patched kernel reads 0", () => {
    for (const [host, name, seen] of [["book3s-64-pr", "PIR", 0n], ["e500v2", "BOOKE_PIR", 1n]] as const) {
      runPpc({ host, vcpus: 2 }, function* (cpu) {
        yield cpu.work(10_000_000);
      }, {
        functions: [withHypercalls(function* second(cpu) {
          yield cpu.mfspr(name);
          assertEquals(cpu.r3, 1n);
          const size = cpu.layout.size;
          const text = [{ from: 0x1_0000 + size, to: 0x1_0000 + 2 * size }];
          yield* useMagicPage(cpu, { stub: STUB, text, space: SPACE });
          yield cpu.mfspr(name);
          assertEquals(cpu.r3, seen);
        })],
        prepare: (vm) => {
          vm.vcpus[1].context.setRegister(3, vm.fdtAddress);
          vm.vcpus[1].start(0x1_0000 + vm.vcpus[1].context.layout.size);
        },
      });
    }
  });

  it("gives up on BookE where it does not know a register or an instruction, and tells user space", () => {
    const unknown: readonly (readonly [word: number, text: string])[] = [
      [ppcAsm.mfspr(3, SPRS.SPRG4), "0x7c7442a6"],
      [encodePpc("mtmsrd", { RS: 5 }), "0x7ca00164"],
      [encodePpc("rfid", {}), "0x4c000024"],
      [encodePpc("mtsr", { SR: 2, RS: 5 }), "0x7ca201a4"],
    ];
    for (const [word, text] of unknown) {
      const vm = ppcGuest({ host: "e500v2" }, function* (cpu) {
        yield cpu.call(CODE);
      }, { code: routine(word) });
      assertEquals(vm.machine.run().end, "shutdown");
      assertEquals([...vm.userspaceExits], [["KVM_EXIT_UNKNOWN", 1]]);
      assertEquals(vm.ending, `it cannot emulate ${text} at 0x20000`);
      assertEquals(vm.vcpus[0].processor.shared.get("sr", 2), 0n);
    }
  });

  it("is asked about illegal instructions where POWER8 has hypervisor state, for KVM-HV's guests too", () => {
    const exits = (host: PpcHostName) => {
      const { fault, vm } = ppcOutcome({ host }, [0]);
      const { SYSCALL: _, ...others } = vm.exits();
      return [fault, others];
    };
    assertEquals(exits("book3s-64-hv"), ["PROGRAM", { H_EMUL_ASSIST: 1 }]);
    assertEquals(exits("none"), ["PROGRAM", {}]);
    assertEquals(ppcOutcome({}, [0]).vm.exits().H_EMUL_ASSIST, 1);
    assertEquals(ppcOutcome({ host: "book3s-32-pr" }, [0]).vm.exits().H_EMUL_ASSIST, undefined);
    assertEquals(cause({ host: "book3s-64-hv" }, 0, false), 0x8_0000);
  });

  it("knows rfi for a guest of POWER8, which does not have it; there KVM-HV's guests get a program interrupt", () => {
    const words = [ppcAsm.mtspr(SPRS.SRR0, 3), ppcAsm.mtspr(SPRS.SRR1, 4), encodePpc("rfi", {})];
    const run = (host: PpcHostName) => {
      let fault: string | undefined;
      const vm = runPpc({ host }, function* (cpu) {
        yield cpu.mfmsr();
        cpu.setRegister(4, cpu.r3);
        cpu.setRegister(3, CODE + 16);
        try {
          yield cpu.call(CODE);
        } catch (error) {
          fault = (error as MachineFault).exception;
        }
      }, { code: routine(...words, 0) });
      return [fault, vm.exits().H_EMUL_ASSIST];
    };
    assertEquals(run("book3s-64-pr"), [undefined, 1]);
    assertEquals(run("book3s-64-hv"), ["PROGRAM", 1]);
    assertEquals(run("book3s-32-pr"), [undefined, undefined]);
  });

  it("takes any MSR from a guest of KVM-PR; POWER8 itself keeps bits, and has programs interrupted and translated", () => {
    const start = MSR_SF | BigInt(MSR_ME | MSR_IR | MSR_DR);
    const user = BigInt(MSR_PR | MSR_EE | MSR_IR | MSR_DR);
    const written: readonly (readonly [
      how: "mtmsr" | "mtmsrd" | "rfid",
      value: bigint,
      pr: bigint,
      hardware: bigint,
    ])[] = [
      // KVM-PR itself sets MSR[ME] for PAPR's guests.
      ["mtmsr", BigInt(MSR_RI), BigInt(MSR_RI | MSR_ME), MSR_SF | BigInt(MSR_ME | MSR_RI)],
      ["mtmsrd", BigInt(MSR_RI), BigInt(MSR_RI | MSR_ME), BigInt(MSR_ME | MSR_RI)],
      ["mtmsrd", MSR_SF | BigInt(MSR_PR), MSR_SF | BigInt(MSR_PR | MSR_ME), MSR_SF | BigInt(MSR_ME) | user],
      ["mtmsrd", MSR_SF | MSR_HV, MSR_SF | BigInt(MSR_ME), MSR_SF | BigInt(MSR_ME)],
      ["rfid", MSR_SF | BigInt(MSR_PR), MSR_SF | BigInt(MSR_PR | MSR_ME), MSR_SF | BigInt(MSR_ME) | user],
    ];
    for (const [how, value, pr, hardware] of written) {
      for (const [host, expected] of [["book3s-64-pr", pr], ["book3s-64-hv", hardware]] as const) {
        let msr = -1n;
        runPpc({ host }, function* (cpu) {
          yield cpu.mtspr("SRR0", CODE + 4);
          yield cpu.mtspr("SRR1", value);
          cpu.setRegister(5, value);
          yield cpu.call(CODE);
          msr = vm0().processor.shared.get("msr");
        }, {
          prepare: (vm) => {
            vm0 = () => vm.vcpus[0];
            assertEquals(vm.vcpus[0].processor.shared.get("msr"), start);
          },
          code: routine(how === "rfid" ? encodePpc("rfid", {}) : encodePpc(how, { RS: 5 })),
        });
        assertEquals(msr, expected, `${host}: ${how} ${value.toString(16)}`);
      }
    }
  });
  let vm0!: () => PpcVcpu;

  it("ignores what a guest writes to the time base, and reads its halves exchanged", () => {
    for (const options of [...PR_HOSTS, { host: "e500mc" } as const]) {
      const { r3, r4, fault } = ppcOutcome(options, [
        ppcAsm.mtspr(SPRS.TBWU, 5),
        ppcAsm.mtspr(SPRS.TBWL, 5),
        ppcAsm.mfspr(3, SPRS.TBWL),
        ppcAsm.mfspr(4, SPRS.TBWU),
      ]);
      assertEquals([r3, r4 > 5n, fault], [0n, true, undefined], nameOf(options));
    }
  });

  it("has no segment registers in the page of a 64-bit guest, and reads none", () => {
    const { r3, vm } = ppcOutcome({}, [
      encodePpc("mtsr", { SR: 2, RS: 5 }),
      encodePpc("mtsrin", { RS: 6, RB: 7 }),
      encodePpc("mfsr", { RT: 3, SR: 2 }),
    ]);
    assertEquals(r3, 3n);
    for (let i = 0; i < 16; i++) assertEquals(vm.vcpus[0].processor.shared.get("sr", i), 0n);
  });

  it("hears of every program interrupt on BookE, and of no trap where Book3S has hypervisor state", () => {
    const trap = encodePpc("tw", { TO: 31, RA: 0, RB: 0 });
    const exits = (host: PpcHostName) => ppcOutcome({ host }, [trap]).vm.exits().PROGRAM;
    assertEquals([exits("e500v2") > 0, exits("e500mc"), exits("book3s-64-hv")], [true, 1, undefined]);
  });

  it("is counted by KVM's own statistics: BookE sums no exits, and a call by sc 1 is no system call", () => {
    const count = (host: PpcHostName, token: number) => {
      const { stats } = runPpc(
        { host },
        withHypercalls(function* (cpu) {
          cpu.setRegister(11, token);
          yield cpu.call(STUB);
        }),
      ).vcpus[0];
      return [stats.sum_exits > 0, stats.syscall_exits];
    };
    const token = ppcHypercallToken("KVM_HC_FEATURES");
    assertEquals(count("book3s-64-pr", token), [true, 0]);
    assertEquals(count("e500v2", token), [false, 1]);
    assertEquals(count("e500mc", token), [false, 0]);
  });

  it("is not asked about instructions of other cores, which are illegal to user programs, not privileged", () => {
    const foreign: readonly (readonly [host: PpcHostName, word: number, cause: number])[] = [
      ["book3s-32-pr", encodePpc("mtmsrd", { RS: 5 }), 0x8_0000],
      ["book3s-32-pr", encodePpc("ld", { RT: 3, DS: 0, RA: 5 }), 0x8_0000],
      ["book3s-32-pr", encodePpc("wrteei", { E: 1 }), 0x8_0000],
      ["book3s-64-pr", encodePpc("wrtee", { RS: 5 }), 0x8_0000],
      ["e500v2", encodePpc("mtsr", { SR: 2, RS: 5 }), 0x800_0000],
    ];
    for (const [host, word, expected] of foreign) assertEquals(cause({ host }, word, true), expected);
  });

  it("sets MSR[EE] of BookE alone with wrtee and wrteei", () => {
    runPpc({ host: "e500v2" }, function* (cpu) {
      yield cpu.mfmsr();
      const msr = cpu.r3;
      yield cpu.wrteei(1);
      yield cpu.mfmsr();
      assertEquals(cpu.r3, msr | BigInt(MSR_EE));
      yield cpu.wrtee(0xffff_7fff);
      yield cpu.mfmsr();
      assertEquals(cpu.r3, msr);
    });
  });

  it("writes segment registers of 32-bit Book3S by the address's top four bits", () => {
    runPpc({ host: "book3s-32-pr" }, function* (cpu) {
      for (let i = 0; i < 16; i++) yield cpu.mtsrin(i * 0x1000_0000 + 0xfff, 0x100 + i);
      for (let i = 0; i < 16; i++) {
        yield cpu.mfsrin(i * 0x1000_0000);
        assertEquals(cpu.r3, BigInt(0x100 + i));
      }
    });
  });

  it("sees in MSR[GS] of e500mc that it is a guest, and cannot change that, nor what KVM protects", () => {
    // booke.c, kvmppc_set_msr: MSR_GS; e500mc.c, kvmppc_core_vcpu_setup: MSRP_UCLEP and MSRP_PMMP.
    const written = MSR_EE | MSR_UCLE | MSR_PMM | MSR_DE;
    for (const [host, expected] of [["e500mc", MSR_GS | MSR_EE | MSR_DE], ["e500v2", written]] as const) {
      let srr1 = -1n;
      runPpc({ host }, function* (cpu) {
        yield cpu.mtmsr(written);
        yield cpu.mfmsr();
        assertEquals(cpu.r3, BigInt(expected), host);
        yield cpu.sc();
        assertEquals(srr1, BigInt(expected), host);
      }, {
        handlers: {
          *SYSCALL(cpu) {
            yield cpu.mfspr("SRR1");
            srr1 = cpu.r3;
          },
        },
      });
    }
  });

  it("has tlbsync for its hypervisor on POWER8, whose guests it interrupts, but not KVM-PR's", () => {
    const tlbsync = encodePpc("tlbsync", {});
    const fault = (host: PpcHostName) => ppcOutcome({ host }, [tlbsync]).fault;
    assertEquals(["book3s-64-hv", "none", "book3s-64-pr"].map((host) => fault(host as PpcHostName)), [
      "PROGRAM",
      undefined,
      undefined,
    ]);
    assertEquals(cause({ host: "book3s-64-hv" }, tlbsync, false), 0x4_0000);
  });
});
