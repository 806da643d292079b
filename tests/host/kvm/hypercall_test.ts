import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_WP,
  type GuestFunction,
  type Gva,
  IA32_EFER,
  KERNEL32_CS,
  KERNEL_CS,
  LENGTH,
  OP_VMCALL,
  OP_VMMCALL,
  PF_VECTOR,
  SITE,
  SYS_CR2,
  UD_VECTOR,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, LimitExceeded, type Vm } from "../../../host/mod.ts";
import { type Asking, completes } from "../../support/apic.ts";
import { chain, count, eventsOf, type Exit, exits, mark, tracingRig } from "../../support/events.ts";
import type { Rig, RigOptions } from "../../support/guests.ts";

const VAPIC_POLL_IRQ = 1;
const ENOSYS = 0xffff_ffff_ffff_fc18n; // -1000
const EPERM = 0xffff_ffff_ffff_ffffn; // -1
const BYTES = { vmx: [0x0f, 0x01, 0xc1], svm: [0x0f, 0x01, 0xd9] } as const;
const EXIT = { vmx: "VMCALL", svm: "hypercall" } as const;
const UD_EXIT = { vmx: "EXCEPTION_NMI", svm: "UD excp" } as const;
/** A page that the guest maps read-only for itself. */
const LOCKED = 0x60_0000 as Gva;

/** Runs a function at CPL 3. */
function finishUser(rig: Rig, user: GuestFunction, at?: Gva): void {
  const entry = at === undefined ? rig.text.add(user, "user") : rig.text.addAt(at, user, "user");
  rig.finish(function* (cpu) {
    yield cpu.rdmsr(IA32_EFER);
    yield cpu.wrmsr(IA32_EFER, cpu.eax | 1);
    yield cpu.sysret(entry);
  });
}

/** Has the handler of vector 0x30 run: an interrupt to itself. */
function* selfInterrupt(cpu: X86Cpu): Asking<void> {
  yield cpu.store32(0xfee0_00f0, 0x1ff);
  yield cpu.store32(0xfee0_0300, 0x4_0030);
  yield cpu.sti();
  yield cpu.pause();
  yield cpu.cli();
  yield cpu.store32(0xfee0_00b0, 0);
}

for (const backend of BACKENDS) {
  const foreign = backend === "vmx" ? "svm" : "vmx";
  const call = { vmx: (cpu: X86Cpu) => cpu.vmcall(), svm: (cpu: X86Cpu) => cpu.vmmcall() };
  const native = call[backend];
  const other = call[foreign];
  const otherOp = foreign === "vmx" ? OP_VMCALL : OP_VMMCALL;

  const rigWith = (options: RigOptions = {}) => tracingRig({ ...options, vm: { backend, ...options.vm } });
  /** The bytes at the foreign instruction's site in a function. */
  const site = (vm: Vm, address: number) =>
    Array.from({ length: 3 }, (_, i) => vm.memory.byte(address + SITE[otherOp] + i));

  describe(`a hypercall (${backend})`, () => {
    it("answers in RAX and clobbers no other register", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        cpu.loadHypercall(VAPIC_POLL_IRQ, 0x1122_3344_5566_7788n, -2n, 3, 4);
        yield native(cpu);
        assertEquals(cpu.rax, 0n);
        assertEquals(
          ["rbx", "rcx", "rdx", "rsi"].map((name) => cpu.register(name)),
          [0x1122_3344_5566_7788n, 0xffff_ffff_ffff_fffen, 3n, 4n],
        );
      });
      assertEquals(rig.vm.exits()[EXIT[backend]], 1);
      assertEquals(count(rig.vm, "kvm_hypercall"), 1);
    });

    it("goes on behind its three bytes", () => {
      const rig = rigWith();
      let entry = 0;
      rig.finish(function* main(cpu) {
        entry = rig.text.blocks.find((block) => block.name === "main")!.address;
        const from = mark(rig.vm);
        yield native(cpu.loadHypercall(VAPIC_POLL_IRQ));
        const op = backend === "vmx" ? OP_VMCALL : OP_VMMCALL;
        const at = entry + SITE[op];
        assertEquals(eventsOf(rig.vm, "kvm_exit", from).map(({ args }) => args[1]), [at]);
        assertEquals(eventsOf(rig.vm, "kvm_entry", from).map(({ args }) => args[0]), [at + LENGTH[op]]);
      });
    });

    it("is not known where KVM has no such number, or has it for others", () => {
      // 2: MMU_OP is gone. 3, 4: PowerPC. 6 to 8: MIPS. 12: user space has not asked for exits.
      const numbers = [0, 2, 3, 4, 6, 7, 8, 12, 13, 100, 0x7fff_ffff, 0xffff_ffff, 2 ** 32 + 1];
      rigWith().finish(function* (cpu) {
        for (const nr of numbers) {
          yield native(cpu.loadHypercall(nr));
          assertEquals(cpu.rax, ENOSYS, `number ${nr}`);
        }
      });
    });

    it("that a host of 2012 had not yet is KVM_ENOSYS there", () => {
      rigWith({ vm: { hostSemantics: "2012" } }).finish(function* (cpu) {
        yield native(cpu.loadHypercall(9));
        assertEquals(cpu.rax, ENOSYS);
      });
    });

    it("at CPL 3 is traced and counted, and not permitted, whatever its number", () => {
      const rig = rigWith();
      finishUser(rig, function* (cpu) {
        for (const nr of [VAPIC_POLL_IRQ, 10, 100]) {
          yield native(cpu.loadHypercall(nr, 1, 0, 0, 0x40));
          assertEquals(cpu.rax, EPERM, `number ${nr}`);
        }
      });
      assertEquals(eventsOf(rig.vm, "kvm_hypercall").map(({ args }) => args[0]), [VAPIC_POLL_IRQ, 10, 100]);
      assertEquals(count(rig.vm, "kvm_apic_accept_irq"), 0);
    });

    for (const [mode, compatibility] of [["32-bit", false], ["64-bit", true]] as const) {
      it(`uses 32 bits of number, arguments and result ${compatibility ? "in compatibility" : "in 32-bit"} mode`, () => {
        const rig = rigWith({ mode });
        rig.finish(function* (cpu) {
          if (compatibility) yield cpu.loadCs(KERNEL32_CS);
          yield native(cpu.loadHypercall(2 ** 32 + VAPIC_POLL_IRQ));
          assertEquals(cpu.rax, 0n);
          yield native(cpu.loadHypercall(2 ** 32 + 100));
          assertEquals(cpu.rax, ENOSYS & 0xffff_ffffn);
          // A logical destination is no argument of SEND_IPI: -22. Bits above 31 of the ICR are.
          yield native(cpu.loadHypercall(10, 0, 0, 0, 0x800));
          assertEquals(cpu.rax, 0xffff_ffean);
          yield native(cpu.loadHypercall(10, 2 ** 32, 2 ** 32, 2 ** 32, 2 ** 43));
          assertEquals(cpu.rax, 0n);
          if (compatibility) yield cpu.loadCs(KERNEL_CS);
        });
        // The trace shows the registers as they were.
        assertEquals(eventsOf(rig.vm, "kvm_hypercall").map(({ args }) => args.slice(0, 2)), [
          [VAPIC_POLL_IRQ, 1],
          [100, 1],
          [10, 0],
          [10, 0],
        ]);
      });
    }

    it("uses all 64 bits in 64-bit mode: a number above 2^32 is not the one below it", () => {
      rigWith().finish(function* (cpu) {
        yield native(cpu.loadHypercall(2 ** 32 + VAPIC_POLL_IRQ));
        assertEquals(cpu.rax, ENOSYS);
      });
    });
  });

  describe(`the other vendor's hypercall instruction (${backend})`, () => {
    const PATCHED: Exit[] = [[UD_EXIT[backend], 0n], [EXIT[backend], 0n]];

    it("raises #UD once: KVM writes its own over it, and the guest executes that", () => {
      const rig = rigWith();
      rig.finish(function* main(cpu) {
        const { address } = rig.text.blocks.find((block) => block.name === "main")!;
        assertEquals(site(rig.vm, address), [...BYTES[foreign]]);
        const first = mark(rig.vm);
        yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
        assertEquals(cpu.rax, 0n);
        assertEquals(exits(rig.vm, first), PATCHED);
        assertEquals(chain(rig.vm, first), [
          "kvm_exit",
          "kvm_emulate_insn",
          "kvm_entry",
          "kvm_exit",
          "kvm_hypercall",
          "kvm_entry",
        ]);
        assertEquals(site(rig.vm, address), [...BYTES[backend]]);

        const second = mark(rig.vm);
        yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
        assertEquals(exits(rig.vm, second), [PATCHED[1]]);
      });
      assertEquals(rig.vm.bootstrap.stats.insn_emulation, 1);
    });

    it("is rewritten where it was executed, not elsewhere", () => {
      const rig = rigWith().on(0x40, function* elsewhere() {});
      rig.finish(function* main(cpu) {
        yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
      });
      const { address } = rig.text.blocks.find((block) => block.name === "elsewhere")!;
      assertEquals(site(rig.vm, address), [...BYTES[foreign]]);
    });

    it("stays what it is, and its #UD the guest's, with KVM_X86_QUIRK_FIX_HYPERCALL_INSN disabled", () => {
      const rig = rigWith({ vm: { disabledKvmQuirks: ["FIX_HYPERCALL_INSN"] } });
      let faults = 0;
      rig.on(UD_VECTOR, function* (cpu) {
        const { address } = rig.text.blocks.find((block) => block.name === "main")!;
        assertEquals(cpu.interruptedRip, address + SITE[otherOp]);
        faults++;
        cpu.skip();
        yield cpu.iret();
      }).finish(function* main(cpu) {
        const { address } = rig.text.blocks.find((block) => block.name === "main")!;
        for (let i = 0; i < 2; i++) yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
        assertEquals(faults, 2);
        assertEquals(site(rig.vm, address), [...BYTES[foreign]]);
      });
      assertEquals(count(rig.vm, "kvm_hypercall"), 0);
    });

    it("on a page that the guest maps read-only is a #PF of the guest's own, which KVM raises for its write", () => {
      const rig = rigWith({ vm: { slots: [{ base: LOCKED, size: 0x1000, guestReadonly: true }] } });
      const faults: number[][] = [];
      rig.on(PF_VECTOR, function* (cpu) {
        faults.push([cpu.errorCode, rig.vm.bootstrap.processor.sys[SYS_CR2], cpu.interruptedRip]);
        cpu.skip();
        yield cpu.iret();
      });
      rig.text.addAt(LOCKED, function* locked(cpu) {
        yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
      });
      rig.gate(0x30, LOCKED);
      const at = LOCKED + SITE[otherOp];
      rig.finish(function* (cpu) {
        yield cpu.movFromCr0();
        yield cpu.movToCr0(cpu.eax | CR0_WP);
        yield* selfInterrupt(cpu);
        assertEquals(faults, [[3, at, at]]); // P and W.
        assertEquals(site(rig.vm, LOCKED), [...BYTES[foreign]]);
        assertEquals(count(rig.vm, "kvm_hypercall"), 0);

        // Without CR0.WP the kernel's writes are not stopped, and KVM's stand for them.
        yield cpu.movFromCr0();
        yield cpu.movToCr0(cpu.eax & ~CR0_WP);
        yield* selfInterrupt(cpu);
        assertEquals(faults.length, 1);
        assertEquals(site(rig.vm, LOCKED), [...BYTES[backend]]);
        assertEquals(count(rig.vm, "kvm_hypercall"), 1);
      });
    });

    it("in a KVM_MEM_READONLY slot is never rewritten: user space gets the write, and the guest tries again", () => {
      const rig = rigWith({
        machine: { limits: { exits: 100 } },
        vm: { slots: [{ base: LOCKED, size: 0x1000, readonly: true }] },
      });
      const writes: (readonly [number, number, bigint | undefined])[] = [];
      rig.vm.userspaceMmioDevice = {
        access(address, bytes, value) {
          writes.push([address, bytes, value]);
          return undefined;
        },
      };
      rig.text.addAt(LOCKED, function* (cpu) {
        yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
      });
      rig.vm.load(rig.text);
      rig.vm.start(LOCKED);
      assertThrows(() => rig.vm.machine.run(), LimitExceeded, "exits");
      const [b0, b1, b2] = BYTES[backend];
      assertEquals(writes[0], [LOCKED + SITE[otherOp], 3, BigInt(b0 | (b1 << 8) | (b2 << 16))]);
      assertEquals(writes.length, 100);
      assertEquals(site(rig.vm, LOCKED), [...BYTES[foreign]]);
    });

    if (backend === "svm") {
      it("at CPL 3 is a #GP: the emulator has VMCALL as privileged (emulate.c, group7_rm0)", () => {
        const rig = rigWith();
        finishUser(rig, function* (cpu): Asking<void> {
          assertEquals(yield* completes(other(cpu.loadHypercall(VAPIC_POLL_IRQ))), false);
        });
        const { address } = rig.text.blocks.find((block) => block.name === "user")!;
        assertEquals(site(rig.vm, address), [...BYTES[foreign]]);
        assertEquals(count(rig.vm, "kvm_hypercall"), 0);
      });
    } else {
      it("at CPL 3 is rewritten too: the emulator does not have VMMCALL as privileged (emulate.c, group7_rm3)", () => {
        const rig = rigWith();
        finishUser(rig, function* (cpu): Asking<void> {
          yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
          assertEquals(cpu.rax, EPERM);
        });
        const { address } = rig.text.blocks.find((block) => block.name === "user")!;
        assertEquals(site(rig.vm, address), [...BYTES[backend]]);
      });

      it("at CPL 3 on a page that is mapped read-only is a user's #PF, even without CR0.WP", () => {
        const rig = rigWith({ vm: { slots: [{ base: LOCKED, size: 0x1000, guestReadonly: true }] } });
        const faults: number[] = [];
        rig.on(PF_VECTOR, function* (cpu) {
          faults.push(cpu.errorCode);
          cpu.skip();
          yield cpu.iret();
        });
        finishUser(rig, function* (cpu) {
          yield other(cpu.loadHypercall(VAPIC_POLL_IRQ));
        }, LOCKED);
        assertEquals(faults, [7]); // P, W and U.
      });
    }
  });
}
