import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  DISABLED_WAIT_PSW_MASK,
  KERNEL_PSW_MASK,
  LOWCORE,
  MachineFault,
  PGM_ADDRESSING,
  PGM_OPERATION,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  PSW_MASK_CC,
  PSW_MASK_DAT,
  PSW_MASK_PSTATE,
  S390_OP_LG,
  S390_OP_NOPR,
  type S390Cpu,
  type S390Guest,
  s390Text,
  USER_PSW_MASK,
} from "../../../abi/mod.ts";
import {
  s390CpuAddress,
  s390DisabledWait,
  s390EnterUserMode,
  S390Kernel,
  s390Wait,
} from "../../../guest/mod.ts";
import { ArchGuestError, Machine, type S390Vm } from "../../../host/mod.ts";
import { MEMORY, runS390 } from "../../support/s390.ts";

const { fields } = LOWCORE;

/** What a step of a guest's is interrupted with: its code, and what the lowcore says. */
function interrupted(step: (cpu: S390Cpu) => S390Guest) {
  let code = 0;
  const vm = runS390(function* main(cpu) {
    try {
      yield* step(cpu);
    } catch (error) {
      if (!(error instanceof MachineFault)) throw error;
      code = error.code;
    }
  });
  const { words } = vm;
  return {
    vm,
    code,
    stored: words.read(fields.pgm_code.offset, 2),
    ilc: words.read(fields.pgm_ilc.offset, 2),
    mask: words.read64(fields.program_old_psw.offset)!,
    address: Number(words.read64(fields.program_old_psw.offset + 8)),
  };
}

describe("a program interruption", () => {
  it("leaves code, length and old PSW in the lowcore, behind the instruction", () => {
    const { vm, code, stored, ilc, mask, address } = interrupted(function* (cpu) {
      yield cpu.load64(MEMORY);
    });
    assertEquals([code, stored, ilc, mask], [PGM_ADDRESSING, PGM_ADDRESSING, 6, KERNEL_PSW_MASK]);
    const { behind } = vm.vcpus[0].context.layout;
    assertEquals(address & 0xff, behind[S390_OP_LG]);
    assertEquals(vm.exits(), { HOST_FAULT: 1 });
    const { kvm_s390_sie_fault, kvm_s390_major_guest_pfault } = vm.counters();
    assertEquals([kvm_s390_sie_fault, kvm_s390_major_guest_pfault], [1, undefined]);
  });

  it("is told by KVM's tracepoints, from the exit to the entry", () => {
    const vm = runS390(
      function* main(cpu) {
        try {
          yield cpu.diag501();
        } catch (error) {
          assert(error instanceof MachineFault);
        }
      },
      { trace: 100 },
    );
    const events = vm.traceText().map((line) =>
      line.replace(/^.*?(kvm_)/, "$1").replace(/ address 0x[0-9a-f]+/, "")
    );
    assertEquals(events, [
      "kvm_s390_vcpu_start_stop: id 0 state 1",
      "kvm_s390_sie_enter:",
      "kvm_s390_sie_exit: icptcode ICPT_INST",
      "kvm_s390_intercept_instruction: ipa 0x8324 ipb 0x5010000",
      "kvm_s390_handle_diag: code 0x501",
      "kvm_userspace_exit: reason 13",
      "kvm_s390_inject_vcpu: type 0xfffe0001 parm 0x1 parm64 0x0",
      "kvm_s390_deliver_interrupt: type 0xfffe0001 parm 0x1 parm64 0x0",
      "kvm_s390_sie_enter:",
    ]);
  });

  it("keeps the mask that was: problem state, and condition code", () => {
    const { code, mask } = interrupted(function* (cpu) {
      yield* s390EnterUserMode(cpu);
      yield cpu.compareAndSwap32(0x10_0000, 1, 2);
      yield cpu.lpswe(0x10_0000);
    });
    assertEquals([code, mask], [PGM_PRIVILEGED_OP, USER_PSW_MASK | (1n << 44n)]);
  });

  it("comes from the CPU itself for privileged instructions in the problem state, without an exit", () => {
    const steps: ((cpu: S390Cpu) => number)[] = [
      (cpu) => cpu.lpswe(0x10_0000),
      (cpu) => cpu.stosm(0x10_0000),
      (cpu) => cpu.stnsm(0x10_0000),
      (cpu) => cpu.lctlg0(0x10_0000),
      (cpu) => cpu.stctg0(0x10_0000),
    ];
    for (const step of steps) {
      const { code, vm } = interrupted(function* (cpu) {
        yield* s390EnterUserMode(cpu);
        yield step(cpu);
      });
      assertEquals([code, vm.exits()], [PGM_PRIVILEGED_OP, {}]);
      assertEquals(
        vm.counters(),
        { kvm_s390_vcpu_start_stop: 1, kvm_s390_sie_enter: 1 },
        "KVM has no part in it",
      );
      assertEquals(vm.words.read64(0x10_0000), 0n, "nothing was stored");
    }
  });

  it("comes from the host for those that it carries out", () => {
    for (
      const step of [
        (cpu: S390Cpu) => cpu.spx(0x10_0000),
        (cpu: S390Cpu) => cpu.stpx(0x10_0000),
        (cpu: S390Cpu) => cpu.stap(0x10_0000),
      ]
    ) {
      const { code, vm } = interrupted(function* (cpu) {
        yield* s390EnterUserMode(cpu);
        yield step(cpu);
      });
      assertEquals([code, vm.exits()], [PGM_PRIVILEGED_OP, { ICPT_INST: 1 }]);
    }
  });

  it("comes for operands that are not on their boundary", () => {
    const steps: ((cpu: S390Cpu) => number)[] = [
      (cpu) => cpu.lpswe(0x10_0004),
      (cpu) => cpu.lctlg0(0x10_0004),
      (cpu) => cpu.compareAndSwap32(0x10_0002, 0, 1),
      (cpu) => cpu.spx(0x10_0002),
      (cpu) => cpu.stpx(0x10_0002),
      (cpu) => cpu.stap(0x10_0001),
    ];
    for (const step of steps) {
      assertEquals(
        interrupted(function* (cpu) {
          yield step(cpu);
        }).code,
        PGM_SPECIFICATION,
      );
    }
    // Plain loads and stores have none.
    assertEquals(
      interrupted(function* (cpu) {
        yield cpu.store64(0x10_0001, 5);
        yield cpu.load64(0x10_0001);
        assertEquals(cpu.value, 5n);
      }).code,
      0,
    );
  });

  it("comes for a prefix that is no memory, and for addresses of 64 bits", () => {
    const far = interrupted(function* (cpu) {
      yield cpu.store32(0x10_0000, 0x7000_0000);
      yield cpu.spx(0x10_0000);
    });
    assertEquals([far.code, far.vm.vcpus[0].storage.prefix], [PGM_ADDRESSING, 0]);
    for (const address of [2n ** 52n, 2n ** 64n - 8n, 2n ** 63n]) {
      assertEquals(
        interrupted(function* (cpu) {
          yield cpu.load64(address);
        }).code,
        PGM_ADDRESSING,
      );
    }
  });

  it("comes for an invalid PSW, which was loaded, with no length", () => {
    const { code, ilc, mask, address } = interrupted(function* (cpu) {
      yield cpu.store64(0x10_0000, KERNEL_PSW_MASK | (1n << 63n));
      yield cpu.store64(0x10_0008, 0x1234);
      yield cpu.lpswe(0x10_0000);
    });
    assertEquals([code, ilc, mask, address], [PGM_SPECIFICATION, 0, KERNEL_PSW_MASK | (1n << 63n), 0x1234]);
  });

  it("comes for what is patched over an instruction: no operation code", () => {
    let site = 0;
    const { code, ilc, vm } = interrupted(function* (cpu) {
      site = cpu.top!.block.address + cpu.layout.site[S390_OP_LG];
      yield cpu.store16(site, 0);
      yield cpu.load64(0x10_0000);
    });
    assertEquals([code, ilc, vm.exits()], [PGM_OPERATION, 2, {}]);
  });

  it("goes to the lowcore at the prefix", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY, vcpus: 2 });
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.nop();
      },
    });
    let address = -1;
    const other = kernel.cpu(0x8000, function* other(cpu) {
      try {
        yield cpu.load64(MEMORY);
      } catch (error) {
        assert(error instanceof MachineFault);
      }
      address = yield* s390CpuAddress(cpu);
      yield cpu.stpx(0x10_0000);
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.vcpus[1].start(other);
    assertEquals(vm.machine.run(1e8).end, "finished");
    assertEquals([
      vm.words.read(0x8000 + fields.pgm_code.offset, 2),
      vm.words.read(fields.pgm_code.offset, 2),
    ], [
      PGM_ADDRESSING,
      0,
    ]);
    assertEquals([address, vm.words.read(0x10_0000, 4)], [1, 0x8000]);
  });
});

describe("a guest that cannot go on", () => {
  it("is given up at an interruption for which there is no new PSW", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const text = s390Text();
    const entry = text.add(function* main(cpu) {
      yield cpu.load64(MEMORY);
    });
    vm.load(text);
    vm.start(entry);
    assertEquals(vm.machine.run(1e8).end, "shutdown");
    assertEquals(vm.ending, "guest panicked: interruption loop: the new PSW at 0x1d0 cannot be loaded");
  });

  it("is given up where an interruption leads to a disabled wait, as boot code has it", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const text = s390Text();
    const entry = text.add(function* main(cpu) {
      yield cpu.store64(fields.program_new_psw.offset, DISABLED_WAIT_PSW_MASK);
      yield cpu.store64(fields.program_new_psw.offset + 8, 0x1234);
      yield cpu.load64(MEMORY);
    });
    vm.load(text);
    vm.start(entry);
    assertEquals(vm.machine.run(1e6).end, "shutdown");
    assertEquals(vm.ending, "guest panicked: disabled wait on CPU 0, PSW address 0x1234");
  });

  it("is given up in a disabled wait, and told to user space", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const kernel = new S390Kernel({ main: s390DisabledWait });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals(vm.machine.run(1e8).end, "shutdown");
    assert(vm.ending!.startsWith("guest panicked: disabled wait on CPU 0"));
    assertEquals([vm.exits(), vm.userspaceExits.get("KVM_EXIT_S390_SIEIC")], [{ ICPT_WAIT: 1 }, 1]);
  });

  it("waits for ever in an enabled wait that nothing ends", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const kernel = new S390Kernel({ main: s390Wait });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals([vm.machine.run(1e8).end, vm.exits()], ["halted", { ICPT_WAIT: 1 }]);
  });

  it("is an error in guest terms where its PSW asks for translation, or leads nowhere", () => {
    const go = (mask: bigint, address: (cpu: S390Cpu) => number) => () =>
      runS390(function* main(cpu) {
        yield cpu.store64(0x10_0000, mask);
        yield cpu.store64(0x10_0008, address(cpu));
        yield cpu.lpswe(0x10_0000);
        yield cpu.nop();
      });
    assertThrows(
      go(KERNEL_PSW_MASK | PSW_MASK_DAT, (cpu) => cpu.behindLpswe),
      ArchGuestError,
      "dynamic address translation",
    );
    assertThrows(
      go(KERNEL_PSW_MASK, (cpu) => cpu.top!.block.address + cpu.layout.site[S390_OP_LG]),
      ArchGuestError,
      "neither an entry nor a continuation",
    );
  });
});

describe("instructions", () => {
  it("move bytes big-endian, and the reversed ones little-endian", () => {
    const vm = runS390(function* main(cpu) {
      yield cpu.store64(0x10_0000, 0x0102_0304_0506_0708n);
      yield cpu.load16(0x10_0000);
      assertEquals(cpu.value, 0x0102n);
      yield cpu.load32(0x10_0004);
      assertEquals(cpu.value, 0x0506_0708n);
      yield cpu.load8(0x10_0007);
      assertEquals(cpu.value, 8n);
      yield cpu.loadReversed16(0x10_0000);
      assertEquals(cpu.value, 0x0201n);
      yield cpu.loadReversed32(0x10_0004);
      assertEquals(cpu.value, 0x0807_0605n);
      yield cpu.storeReversed64(0x10_0010, 0x0102_0304_0506_0708n);
      yield cpu.storeReversed32(0x10_0018, 0x0102_0304);
      yield cpu.storeReversed16(0x10_001c, 0x0102);
    });
    assertEquals([...vm.words.bytes(0x10_0000, 8)!], [1, 2, 3, 4, 5, 6, 7, 8]);
    assertEquals([...vm.words.bytes(0x10_0010, 14)!], [8, 7, 6, 5, 4, 3, 2, 1, 4, 3, 2, 1, 2, 1]);
  });

  it("swap if what they compare is equal, and tell what there was", () => {
    runS390(function* main(cpu) {
      yield cpu.compareAndSwap32(0x10_0000, 0, 7);
      assertEquals(cpu.cc, 0);
      yield cpu.compareAndSwap32(0x10_0000, 0, 9);
      assertEquals([cpu.cc, cpu.value], [1, 7n]);
      yield cpu.load32(0x10_0000);
      assertEquals(cpu.value, 7n);
      assertEquals(cpu.pswMask & PSW_MASK_CC, 1n << 44n, "loads leave the condition code");
    });
  });

  it("take time, as long as they count", () => {
    let made: S390Vm | undefined;
    let took = 0;
    const vm = runS390(
      function* main(cpu) {
        const begin = made!.vcpus[0].clock;
        yield cpu.work(123_456);
        took = made!.vcpus[0].clock - begin;
      },
      {},
      (vm) => {
        made = vm;
      },
    );
    assertEquals([took, vm.exits()], [123_456, {}]);
  });

  it("are executed as they stand in memory: other registers, other lengths", () => {
    runS390(function* main(cpu) {
      yield cpu.store64(0x10_0008, 77);
      const site = cpu.top!.block.address + cpu.layout.site[S390_OP_LG];
      // lg %r9, 8(%r1) in the place of lg %r0, 0(%r1).
      yield cpu.store32(site, 0xe390_1008);
      yield cpu.load64(0x10_0000);
      assertEquals(cpu.register(9), 77n);
      // Three times nopr.
      yield cpu.store32(site, 0x0700_0700);
      yield cpu.store16(site + 4, 0x0700);
      yield cpu.load64(0x10_0000);
      assertEquals(cpu.register(9), 77n);
      assertEquals(cpu.layout.instructionText(S390_OP_NOPR), "nopr");
    });
  });

  it("run in the problem state, unless they are privileged", () => {
    runS390(function* main(cpu) {
      yield* s390EnterUserMode(cpu);
      assert((cpu.pswMask & PSW_MASK_PSTATE) !== 0n);
      yield cpu.store64(0x10_0000, 1);
      yield cpu.work(10);
    });
  });
});
