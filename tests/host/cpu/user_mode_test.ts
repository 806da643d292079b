import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  EFER_SCE,
  FLAG_FIXED,
  FLAG_IF,
  FLAG_ZF,
  GATE_INTERRUPT,
  GeneralProtection,
  GP_VECTOR,
  type Guest,
  type GuestFunction,
  IA32_EFER,
  IA32_FMASK,
  IA32_LSTAR,
  InvalidOpcode,
  KVM_EPERM,
  LENGTH,
  OP_SYSCALL,
  PF_VECTOR,
  SITE,
  UD_VECTOR,
  X2APIC_EOI,
  X2APIC_SELF_IPI,
  type X86Cpu,
  type X86Fault,
} from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { DATA, enableX2apic, Rig, type RigOptions } from "../../support/guests.ts";

/** A rig with fixups, and a kernel that runs a user program at CPL 3. */
class UserRig extends Rig {
  /** What the handlers of faults found: vector, error code, CPL of what they interrupted. */
  readonly faults: (readonly [vector: number, errorCode: number, cpl: number])[] = [];

  constructor(options: RigOptions = {}) {
    super(options);
    for (const vector of [UD_VECTOR, GP_VECTOR, PF_VECTOR]) {
      const { faults } = this;
      this.on(vector, function* (cpu) {
        faults.push([cpu.vector, cpu.errorCode, cpu.interruptedCpl]);
        cpu.fixup();
        yield cpu.iret();
      });
    }
  }

  /** Runs `user` at CPL 3, with `syscall` behind LSTAR; `before` and `after` run in the kernel. */
  runUser(user: GuestFunction, { syscall, before, after, rflags = FLAG_FIXED | FLAG_IF }: {
    readonly syscall?: GuestFunction;
    readonly before?: GuestFunction;
    readonly after?: GuestFunction;
    readonly rflags?: number;
  } = {}): void {
    const entry = this.text.add(user, "user");
    const lstar = syscall === undefined ? 0 : this.text.add(syscall, "entry_SYSCALL_64");
    this.finish(function* kernel(cpu) {
      yield* enableSyscall(cpu, lstar);
      if (before !== undefined) yield* before(cpu);
      yield cpu.sysret(entry, rflags);
      if (after !== undefined) yield* after(cpu);
    });
  }
}

function* enableSyscall(cpu: X86Cpu, lstar: number): Guest {
  yield cpu.rdmsr(IA32_EFER);
  yield cpu.wrmsr(IA32_EFER, cpu.eax | EFER_SCE);
  yield cpu.wrmsr(IA32_LSTAR, lstar);
  yield cpu.wrmsr(IA32_FMASK, FLAG_IF);
}

/** The vector of the fault that an instruction raises, -1 for none. */
function* faultOf(op: () => number): Generator<number, number, void> {
  try {
    yield op();
    return -1;
  } catch (error) {
    return (error as X86Fault).vector;
  }
}

const privileged: Readonly<Record<string, (cpu: X86Cpu) => number>> = {
  hlt: (cpu) => cpu.hlt(),
  rdmsr: (cpu) => cpu.rdmsr(IA32_EFER),
  wrmsr: (cpu) => cpu.wrmsr(IA32_LSTAR, 0),
  "mov to cr0": (cpu) => cpu.movToCr0(1),
  "mov to cr3": (cpu) => cpu.movToCr3(0),
  "mov to cr4": (cpu) => cpu.movToCr4(0),
  "mov to cr8": (cpu) => cpu.movToCr8(0),
  "mov from cr0": (cpu) => cpu.movFromCr0(),
  "mov from cr3": (cpu) => cpu.movFromCr3(),
  "mov from cr4": (cpu) => cpu.movFromCr4(),
  "mov from cr8": (cpu) => cpu.movFromCr8(),
  lidt: (cpu) => cpu.lidt(DATA),
  invd: (cpu) => cpu.invd(),
  wbinvd: (cpu) => cpu.wbinvd(),
  sysret: (cpu) => cpu.sysret(0),
};

const needsIopl: Readonly<Record<string, (cpu: X86Cpu) => number>> = {
  cli: (cpu) => cpu.cli(),
  sti: (cpu) => cpu.sti(),
  in8: (cpu) => cpu.in8(0x71),
  in32: (cpu) => cpu.in32(0x71),
  out8: (cpu) => cpu.out8(0x80, 0),
  out32: (cpu) => cpu.out32(0x80, 0),
};

for (const backend of BACKENDS) {
  const options: RigOptions = { vm: { backend } };

  describe(`a program at CPL 3 (${backend})`, () => {
    it("gets #GP(0) for every privileged instruction, without a VM exit of it", () => {
      for (const [name, op] of Object.entries(privileged)) {
        const rig = new UserRig(options);
        let exits = -1;
        rig.runUser(function* (cpu) {
          const before = rig.vm.machine.exits;
          assertEquals(yield* faultOf(() => op(cpu)), GP_VECTOR, name);
          exits = rig.vm.machine.exits - before;
          assertEquals(cpu.cpl, 3, name);
        });
        assertEquals(rig.faults, [[GP_VECTOR, 0, 3]], name);
        assertEquals(exits, 0, name);
      }
    });

    it("needs IOPL 3 for CLI, STI, IN and OUT", () => {
      for (const [name, op] of Object.entries(needsIopl)) {
        for (const [iopl, fault] of [[0, GP_VECTOR], [2, GP_VECTOR], [3, -1]]) {
          const rig = new UserRig(options);
          rig.runUser(function* (cpu) {
            assertEquals(yield* faultOf(() => op(cpu)), fault, `${name} with IOPL ${iopl}`);
          }, { rflags: FLAG_FIXED | FLAG_IF | (iopl << 12) });
        }
      }
    });

    it("may do all else: memory, CPUID, RDTSC, PAUSE; but KVM refuses its hypercalls", () => {
      const rig = new UserRig(options);
      rig.runUser(function* (cpu) {
        yield cpu.store32(DATA, 5);
        yield cpu.xadd32(DATA, 2);
        yield cpu.load32(DATA);
        assertEquals(cpu.eax, 7);
        yield cpu.cpuid(0x4000_0000);
        assertEquals(cpu.ebx, 0x4b4d_564b);
        yield cpu.rdtsc();
        yield cpu.pause();
        yield cpu.work(1000);
        cpu.loadHypercall(1);
        yield backend === "vmx" ? cpu.vmcall() : cpu.vmmcall();
        assertEquals(cpu.rax, BigInt.asUintN(64, BigInt(-KVM_EPERM)));
        assertEquals(yield* faultOf(() => cpu.ud2()), UD_VECTOR);
      });
      assertEquals(rig.faults, [[UD_VECTOR, 0, 3]]);
    });

    it("is interrupted into CPL 0 whatever the gate's DPL, and goes on at CPL 3", () => {
      for (const dpl of [0, 3]) {
        const rig = new UserRig(options);
        const levels: number[] = [];
        rig.on(0x40, function* (cpu) {
          levels.push(cpu.cpl, cpu.interruptedCpl);
          yield cpu.wrmsr(X2APIC_EOI, 0);
        }, { type: GATE_INTERRUPT | (dpl << 5) });
        rig.runUser(function* (cpu) {
          yield cpu.pause();
          levels.push(cpu.cpl);
        }, {
          before: function* (cpu) {
            yield* enableX2apic(cpu);
            yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40); // Waits for SYSRET to set IF.
          },
        });
        assertEquals(levels, [0, 3, 3]);
      }
    });

    it("cannot write what its kernel could with write protection off: the error code says user", () => {
      const slot = { base: 0x40_0000, size: 4096, guestReadonly: true };
      const rig = new UserRig({ vm: { backend, slots: [slot] } });
      rig.runUser(function* (cpu) {
        assertEquals(yield* faultOf(() => cpu.store32(slot.base, 1)), PF_VECTOR);
      }, {
        before: function* (cpu) {
          yield cpu.store32(slot.base, 7); // CR0.WP is clear.
        },
      });
      assertEquals(rig.faults, [[PF_VECTOR, 7, 3]]); // Present, write, user (SDM 3A 4.7).
      assertEquals(rig.word(slot.base), 7);
    });

    it("ends for good when it returns: the kernel goes on behind SYSRET with its own registers", () => {
      const rig = new UserRig(options);
      const levels: number[] = [];
      rig.runUser(function* (cpu) {
        yield cpu.store64(DATA, 1, 2);
        levels.push(cpu.cpl);
      }, {
        after: function* (cpu) {
          levels.push(cpu.cpl);
          yield cpu.pause();
          assertEquals(cpu.interruptsEnabled, false);
        },
      });
      assertEquals(levels, [3, 0]);
    });
  });

  describe(`a system call (${backend})`, () => {
    it("enters at LSTAR with CPL 0, RCX behind itself, R11 the flags, and FMASK's flags clear", () => {
      const rig = new UserRig(options);
      const seen: unknown[] = [];
      let flags = 0;
      rig.runUser(function* (cpu) {
        yield cpu.cmpxchg32(DATA, 0, 0); // Sets ZF.
        yield cpu.pushf();
        flags = cpu.eax;
        yield cpu.store64(DATA, 60, 1); // RAX is the call's number.
        yield cpu.syscall();
        seen.push(cpu.rax, cpu.cpl, cpu.interruptsEnabled, cpu.zf);
      }, {
        syscall: function* (cpu) {
          seen.push(cpu.rax, cpu.cpl, cpu.interruptsEnabled, cpu.interruptedCpl);
          seen.push(cpu.register("rcx"), cpu.register("r11"));
          yield cpu.cmpxchg32(DATA, 1, 1); // Clears ZF.
          cpu.setInterruptedRax(-38, -1);
        },
      });
      const user = rig.text.blocks.find(({ name }) => name === "user")!;
      const behind = BigInt(user.address + SITE[OP_SYSCALL] + LENGTH[OP_SYSCALL]);
      assertEquals(flags & FLAG_ZF, FLAG_ZF);
      assertEquals(seen, [
        ...[2n ** 32n + 60n, 0, false, 3],
        ...[behind, BigInt(flags)],
        ...[2n ** 64n - 38n, 3, true, true],
      ]);
    });

    it("may end with IRET as well as by returning", () => {
      const rig = new UserRig(options);
      let calls = 0;
      rig.runUser(function* (cpu) {
        yield cpu.syscall();
        yield cpu.syscall();
        assertEquals(cpu.cpl, 3);
      }, {
        syscall: function* (cpu) {
          if (++calls === 1) yield cpu.iret();
        },
      });
      assertEquals(calls, 2);
    });

    it("can be interrupted, and can fault, like any kernel code", () => {
      const rig = new UserRig(options);
      const story: string[] = [];
      rig.on(0x40, function* (cpu) {
        story.push(`interrupt from CPL ${cpu.interruptedCpl}`);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.runUser(function* (cpu) {
        yield cpu.syscall();
        story.push("user");
      }, {
        before: enableX2apic,
        syscall: function* (cpu) {
          yield cpu.wrmsr(X2APIC_SELF_IPI, 0x40);
          yield cpu.sti();
          yield cpu.pause();
          story.push(`fault ${yield* faultOf(() => cpu.rdmsr(0x1234))}`);
        },
      });
      assertEquals(story, ["interrupt from CPL 0", `fault ${GP_VECTOR}`, "user"]);
    });

    it("is an invalid opcode while EFER.SCE is clear, and so is SYSRET", () => {
      const rig = new UserRig(options);
      rig.finish(function* (cpu) {
        for (const op of [() => cpu.syscall(), () => cpu.sysret(0)]) {
          let caught: unknown;
          try {
            yield op();
          } catch (error) {
            caught = error;
          }
          assertEquals(caught instanceof InvalidOpcode, true);
        }
      });
    });

    it("does not let a user program set what SYSRET clears: VM, RF and reserved flags", () => {
      const rig = new UserRig(options);
      let flags = 0;
      rig.runUser(function* (cpu) {
        yield cpu.pushf();
        flags = cpu.eax;
      }, { rflags: 0xffff_ffff & ~FLAG_IF });
      assertEquals(flags, (0x3c_7fd7 | FLAG_FIXED) & ~FLAG_IF); // SDM 2B, SYSRET.
    });
  });
}

describe("a fault at CPL 3 that the kernel does not fix up", () => {
  it("is the kernel's to retry", () => {
    const rig = new Rig();
    let faults = 0;
    rig.on(GP_VECTOR, function* (cpu) {
      faults++;
      if (faults === 3) cpu.fixup();
      yield cpu.iret();
    });
    const user = rig.text.add(function* user(cpu) {
      try {
        yield cpu.hlt();
      } catch (error) {
        assertEquals(error instanceof GeneralProtection, true);
      }
    });
    rig.finish(function* (cpu) {
      yield* enableSyscall(cpu, 0);
      yield cpu.sysret(user);
    });
    assertEquals(faults, 3);
  });
});
