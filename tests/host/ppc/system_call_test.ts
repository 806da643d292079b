import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  encodePpc,
  EV_STATUS,
  KVM_SC_MAGIC_R0,
  type MachineFault,
  MSR_PR,
  PPC_NOP,
  PPC_SC,
  PPC_SC1,
  ppcAsm,
  type PpcCpu,
  ppcHypercallToken,
} from "../../../abi/mod.ts";
import type { PpcHostName, PpcVmOptions } from "../../../host/mod.ts";
import { CODE, DATA, loadWords, nameOf, PR_HOSTS, routine, runPpc } from "../../support/ppc.ts";

describe("a system call", () => {
  const magic = [
    ppcAsm.lis(0, KVM_SC_MAGIC_R0 >>> 16),
    encodePpc("ori", { RA: 0, RS: 0, UI: KVM_SC_MAGIC_R0 & 0xffff }),
  ];

  /** A handler that leaves what it saw in memory, and returns 7. */
  function* handler(cpu: PpcCpu) {
    yield cpu.mfspr("SRR0");
    yield cpu.stw(DATA, cpu.r3);
    cpu.setInterruptedRegister(3, 7);
  }

  it("of a kernel without the magic in r0 is its own, with SRR0 behind it", () => {
    for (const options of PR_HOSTS) {
      const vm = runPpc(options, function* (cpu) {
        cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
        yield cpu.call(CODE);
        assertEquals(cpu.r3, 7n);
        yield cpu.lwz(DATA);
        assertEquals(cpu.r3, BigInt(CODE + 8));
      }, { code: routine(ppcAsm.li(0, 0), PPC_SC), handlers: { SYSCALL: handler } });
      assertEquals(vm.vcpus[0].lastOutcome, undefined);
      assertEquals(vm.vcpus[0].stats.syscall_exits, 1);
    }
  });

  it("with the magic looks at 32 bits of r0", () => {
    const words = [
      ...magic,
      encodePpc("oris", { RA: 0, RS: 0, UI: 0 }),
      encodePpc("rldicl", { RA: 12, RS: 0, SH6: 32, MB6: 0 }),
      encodePpc("or", { RA: 0, RS: 0, RB: 12 }), // the high half holds the magic too
      PPC_SC,
    ];
    runPpc({}, function* (cpu) {
      cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
      yield cpu.call(CODE);
      assertEquals([cpu.r3, cpu.r4], [0n, 2n]);
    }, { code: routine(...words) });
  });

  it("of a user program is its kernel's, whatever r0 and r11 hold", () => {
    for (const options of PR_HOSTS) {
      const vm = runPpc(options, function* (cpu) {
        yield cpu.mfmsr();
        cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
        cpu.setRegister(4, 0x44);
        yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
        yield cpu.call(CODE);
        assertEquals([cpu.r3, cpu.r4], [7n, 0x44n]);
      }, { code: routine(...magic, PPC_SC), handlers: { SYSCALL: handler } });
      assertEquals(vm.vcpus[0].lastOutcome, undefined, nameOf(options));
    }
  });

  it("to the hypervisor is the call on BookE with hypervisor state, whatever r0 holds; a plain one is the guest's", () => {
    const vm = runPpc({ host: "e500mc" }, function* (cpu) {
      cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
      yield cpu.call(CODE);
      assertEquals([cpu.r3, cpu.r4], [0n, 0n]);
      yield cpu.call(CODE + 0x100);
      assertEquals(cpu.r3, 7n);
    }, {
      code: routine(ppcAsm.li(0, 0), PPC_SC1, PPC_NOP),
      handlers: { SYSCALL: handler },
      prepare: (vm) => loadWords(vm, CODE + 0x100, routine(...magic, PPC_SC)),
    });
    // The hypervisor has the registers of the vectors, which the guest has set (booke_emulate.c).
    assertEquals(vm.exits(), { HV_PRIV: 7, HV_SYSCALL: 1 });
  });

  it("to the hypervisor from a user program of BookE is a privileged instruction", () => {
    const vm = runPpc({ host: "e500mc" }, function* (cpu) {
      cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
      cpu.setRegister(5, 5);
      yield cpu.mfmsr();
      yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
      let caught: unknown;
      try {
        yield cpu.call(CODE);
      } catch (error) {
        caught = error;
      }
      assertEquals((caught as MachineFault).exception, "PROGRAM");
    }, { code: routine(PPC_SC1) });
    assertEquals(vm.vcpus[0].processor.shared.get("esr"), 0x400_0000n); // ESR[PPR]
    assertEquals(vm.vcpus[0].lastOutcome, undefined);
  });

  it("to the hypervisor of KVM-HV is PAPR's: user space gets it, and does not know KVM's calls", () => {
    const vm = runPpc({ host: "book3s-64-hv" }, function* (cpu) {
      cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
      cpu.setRegister(3, 0x1234);
      yield cpu.call(CODE);
      assertEquals(BigInt.asIntN(64, cpu.r3), -2n); // H_FUNCTION
    }, { code: routine(PPC_SC1) });
    assertEquals([...vm.userspaceExits], [["KVM_EXIT_PAPR_HCALL", 1]]);
  });

  it("to the hypervisor is the kernel's own where there is none", () => {
    const vm = runPpc({ host: "none" }, function* (cpu) {
      yield cpu.call(CODE);
      assertEquals(cpu.r3, 7n);
    }, { code: routine(PPC_SC1), handlers: { SYSCALL: handler } });
    assertEquals(vm.exits(), {});
  });

  it("to the hypervisor from a user program of KVM-HV is a system call to its kernel, and user space hears nothing", () => {
    let srr0 = 0n;
    let srr1 = 0n;
    const vm = runPpc({ host: "book3s-64-hv" }, function* (cpu) {
      yield cpu.mfmsr();
      const user = cpu.r3 | BigInt(MSR_PR);
      yield cpu.mtmsr(user);
      cpu.setRegister(3, 0x1234);
      yield cpu.call(CODE);
      assertEquals(cpu.r3, 0x1234n);
      assertEquals(srr0, BigInt(CODE + 4)); // behind the instruction
      assertEquals(srr1 & BigInt(MSR_PR), BigInt(MSR_PR));
    }, {
      code: routine(PPC_SC1),
      handlers: {
        *SYSCALL(cpu) {
          yield cpu.mfspr("SRR0");
          srr0 = cpu.r3;
          yield cpu.mfspr("SRR1");
          srr1 = cpu.r3;
        },
      },
    });
    assertEquals(vm.exits(), { SYSCALL: 1 });
    assertEquals([...vm.userspaceExits], []);
    // Real mode sees to it: neither KVM's tracepoints nor its statistics hear of it.
    assertEquals(vm.counters(), { kvm_guest_enter: 1 });
    assertEquals(vm.vcpus[0].stats.sum_exits, 0);
  });

  it("of a kernel of KVM-HV is traced by kvm_guest_exit, and not by kvm_exit", () => {
    const vm = runPpc({ host: "book3s-64-hv", trace: 16 }, function* (cpu) {
      yield cpu.call(CODE);
    }, { code: routine(PPC_SC1) });
    assertEquals(vm.counters(), { kvm_guest_enter: 2, kvm_guest_exit: 1, kvm_userspace_exit: 1 });
    assertEquals(vm.vcpus[0].stats.sum_exits, 1);
    const lines = [...vm.traceText()].filter((line) => line.includes("kvm_guest_exit"));
    assertEquals(lines.map((line) => line.replace(/^.*kvm_guest/, "kvm_guest")), [
      "kvm_guest_exit: trap SYSCALL pc 0x20004 msr 0x8000000000001030",
    ]);
  });

  it("to the hypervisor from a kernel is PAPR's on a server, even with KVM's magic in r0; a program's is its kernel's", () => {
    for (const options of PR_HOSTS.filter(({ host }) => host === "book3s-64-pr")) {
      const vm = runPpc(options, function* (cpu) {
        cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
        cpu.setRegister(4, 0x44);
        yield cpu.call(CODE);
        assertEquals([BigInt.asIntN(64, cpu.r3), cpu.r4], [-2n, 0x44n]); // H_FUNCTION
        yield cpu.mfmsr();
        yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
        yield cpu.call(CODE);
        assertEquals(cpu.r3, 7n);
      }, { code: routine(...magic, PPC_SC1), handlers: { SYSCALL: handler } });
      assertEquals([...vm.userspaceExits], [["KVM_EXIT_PAPR_HCALL", 1]], nameOf(options));
      assertEquals(vm.vcpus[0].lastOutcome, undefined);
      assertEquals(vm.vcpus[0].stats.syscall_exits, 1);
    }
  });

  it("of PAPR or OSI is a system call to the guest itself on KVM-PR, where user space enables neither", () => {
    for (const options of [{ host: "book3s-32-pr" }, { host: "e500v2" }] as const) {
      const vm = runPpc(options, function* (cpu) {
        cpu.setRegister(3, 0x1137_24fa); // OSI_SC_MAGIC_R3
        cpu.setRegister(4, 0x7781_0f9b); // OSI_SC_MAGIC_R4
        yield cpu.call(CODE);
        assertEquals(cpu.r3, 7n);
      }, { code: routine(ppcAsm.li(0, 0), PPC_SC1), handlers: { SYSCALL: handler } });
      assertEquals([...vm.userspaceExits], [], nameOf(options));
      assertEquals(vm.vcpus[0].stats.syscall_exits, 1);
    }
  });

  it("of PAPR may be a word that is illegal otherwise, from a kernel on KVM-PR's server", () => {
    const illegal: readonly (readonly [host: PpcHostName, user: boolean])[] = [
      ["book3s-64-pr", true],
      ["book3s-64-hv", false],
      ["book3s-32-pr", false],
      ["e500mc", false],
    ];
    for (const [host, user] of [["book3s-64-pr", false], ...illegal] as const) {
      let caught: MachineFault | undefined;
      let r3 = 0n;
      const vm = runPpc({ host }, function* (cpu) {
        yield cpu.mfmsr();
        if (user) yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
        try {
          yield cpu.call(CODE);
          r3 = cpu.r3;
        } catch (error) {
          caught = error as MachineFault;
        }
      }, { code: routine(0x7c00_0268) }); // opcode 31, and 308: OP_31_XOP_FAKE_SC1
      const call = host === "book3s-64-pr" && !user;
      assertEquals(caught?.exception, call ? undefined : "PROGRAM", host);
      assertEquals([...vm.userspaceExits], call ? [["KVM_EXIT_PAPR_HCALL", 1]] : []);
      if (call) assertEquals(BigInt.asIntN(64, r3), -2n);
    }
  });

  it("of an early little-endian Linux, which did not exchange the words' bytes, always fails and skips a word", () => {
    const reversed = [0x564b_003c, 0x214d_0060, 0x0200_0044, 0x0000_0060];
    const vm = runPpc({ order: "little" }, function* (cpu) {
      cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
      cpu.setRegister(4, 0x44);
      yield cpu.call(CODE);
      assertEquals([cpu.r3, cpu.r4], [BigInt(EV_STATUS.EV_UNIMPLEMENTED), 0x44n]);
    }, { code: routine(...reversed) });
    // One exit, for the third word; the fourth would be an illegal instruction, and is not reached.
    assertEquals(vm.exits(), { H_EMUL_ASSIST: 1 });
    assertEquals(vm.vcpus[0].lastOutcome, undefined);
  });

  it("with reversed bytes is an illegal instruction where the guest is big-endian", () => {
    runPpc({}, function* (cpu) {
      let caught: unknown;
      try {
        yield cpu.call(CODE);
      } catch (error) {
        caught = error;
      }
      assertEquals((caught as MachineFault).exception, "PROGRAM");
    }, { code: routine(0x0200_0044) });
  });

  it("goes to the hypervisor by the last bit of LEV on processors; KVM-PR compares the whole word", () => {
    // QEMU, target/ppc/translate.c, gen_sc: the other bits are reserved, and ignored.
    const made = (options: PpcVmOptions, LEV: number) => {
      const vm = runPpc(options, function* (cpu) {
        cpu.setRegister(3, 0x33);
        cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
        yield cpu.call(CODE);
      }, { code: routine(encodePpc("sc", { LEV })), handlers: { SYSCALL: handler } });
      const { HV_SYSCALL = 0 } = vm.exits();
      return [HV_SYSCALL, vm.userspaceExits.get("KVM_EXIT_PAPR_HCALL") ?? 0, vm.words.read(DATA, 4)];
    };
    for (const LEV of [1, 3, 0x7f]) {
      assertEquals(made({ host: "book3s-64-hv" }, LEV), [0, 1, 0]);
      assertEquals(made({ host: "e500mc" }, LEV), [1, 0, 0]);
      assertEquals(made({ host: "book3s-64-pr" }, LEV), LEV === 1 ? [0, 1, 0] : [0, 0, CODE + 4]);
    }
    assertEquals(made({ host: "book3s-64-hv" }, 2), [0, 0, CODE + 4]);
    assertEquals(made({ host: "e500mc" }, 0x7e), [0, 0, CODE + 4]);
  });
});
