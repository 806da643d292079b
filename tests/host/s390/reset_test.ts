import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  decodeShortPsw,
  DIAG308_RESET_LOAD_NORM,
  DIAG308_RESET_MOD_CLR,
  DISABLED_WAIT_PSW_MASK,
  encodeShortPsw,
  EXT_IRQ_CP_SERVICE,
  isValidPsw,
  KERNEL_PSW_MASK,
  MachineFault,
  PFAULT_INIT_SUBCODE,
  PGM_SPECIFICATION,
  PSW_MASK_PSTATE,
} from "../../../abi/mod.ts";
import {
  diag308Reset,
  enableServiceSignals,
  pfaultInit,
  s390EnterUserMode,
  S390Kernel,
  s390Wait,
} from "../../../guest/mod.ts";
import { Disk, Machine, S390_HOSTS, type S390Host, type S390Vm } from "../../../host/mod.ts";

const HOSTS = Object.keys(S390_HOSTS) as S390Host[];
const MEMORY = 0x20_0000;
const SAVE = 0x8000;
const DATA = 0x10_0000;
const PREFIX = 0x4000;

describe("a kernel that has all CPUs reset, to go into the next kernel", () => {
  it("goes on behind the call with its memory, prefix and control register, and no other CPU does", () => {
    for (const host of HOSTS) {
      const vm = new Machine().createS390Vm({ memory: MEMORY, vcpus: 2, host, trace: 10_000 });
      const log: string[] = [];
      const kernel = new S390Kernel({
        *main(cpu) {
          yield cpu.store64(DATA, 0x1234_5678n);
          for (;;) yield cpu.work(1000);
        },
      });
      const crashes = kernel.cpu(PREFIX, function* crashes(cpu) {
        yield* enableServiceSignals(cpu);
        yield cpu.work(100_000);
        yield* diag308Reset(cpu, SAVE);
        yield cpu.stpx(SAVE);
        yield cpu.load32(SAVE);
        log.push(`prefix 0x${cpu.number.toString(16)}`);
        yield cpu.stctg0(SAVE);
        yield cpu.load64(SAVE);
        log.push(`cr0 0x${cpu.value.toString(16)}`);
        yield cpu.load64(DATA);
        log.push(`data 0x${cpu.value.toString(16)}`);
      });
      vm.load(kernel.text);
      vm.start(kernel.entry);
      vm.vcpus[1].start(crashes);
      assertEquals(vm.machine.run(1e8).end, "finished", host);
      assertEquals(log, ["prefix 0x4000", "cr0 0x2e0", "data 0x12345678"], host);
      assertEquals([vm.ending, vm.vcpus[0].phase, vm.bootCpu.index], [undefined, "ended", 1], host);
      assert(vm.vcpus[0].clock < vm.vcpus[1].clock, "CPU 0, which ran for ever, has stopped");
      const states = vm.traceText().map((line) => /start_stop: (.*)$/.exec(line)?.[1]).filter(Boolean);
      // Both start; both are stopped by the reset; the one that asked for it starts again. An emulator has no KVM.
      const told = ["id 0 state 1", "id 1 state 1", "id 0 state 0", "id 1 state 0", "id 1 state 1"];
      assertEquals(states, vm.behaviour.kvm ? told : []);
    }
  });

  it("finds control registers and prefix as the reset leaves them, and all general registers", () => {
    const seen: Record<number, bigint[]> = {};
    for (const subcode of [DIAG308_RESET_MOD_CLR, DIAG308_RESET_LOAD_NORM]) {
      let next = 0;
      const vm = new Machine().createS390Vm({ memory: MEMORY, vcpus: 2 });
      const kernel = new S390Kernel({
        *main(cpu) {
          yield* enableServiceSignals(cpu);
          yield cpu.store64(0, encodeShortPsw({ mask: KERNEL_PSW_MASK, address: BigInt(next) }));
          cpu.setRegister(9, 0x99);
          yield cpu.diag308(subcode, 0x77);
          throw new Error("what had itself reset has no say any more");
        },
      });
      const spins = kernel.cpu(PREFIX, function* spins(cpu) {
        for (;;) {
          cpu.setRegister(9, 0x55);
          yield cpu.nop();
        }
      });
      next = kernel.text.add(function* nextKernel(cpu) {
        seen[subcode] = [2, 4, 9].map((register) => cpu.register(register));
        yield cpu.stctg0(DATA);
        yield cpu.load64(DATA);
        seen[subcode].push(cpu.value);
      });
      vm.load(kernel.text);
      vm.vcpus[1].start(spins);
      vm.machine.run(1e4);
      vm.start(kernel.entry);
      assertEquals(vm.machine.run(1e8).end, "finished");
      const { phase, storage: { prefix }, context } = vm.vcpus[1];
      // The others: cleared with subcode 0; with 1 a CPU reset, which leaves all that.
      const clear = subcode === DIAG308_RESET_MOD_CLR;
      assertEquals([phase, prefix, context.register(9)], clear ? ["ended", 0, 0n] : ["ended", PREFIX, 0x55n]);
    }
    assertEquals(seen, { 0: [0n, 0n, 0n, 0xe0n], 1: [0x77n, 1n, 0x99n, 0xe0n] });
  });

  it("may start the others anew", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY, vcpus: 2 });
    const log: string[] = [];
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.work(10_000);
        yield* diag308Reset(cpu, SAVE);
        vm.vcpus[1].start(anew);
        log.push("reset");
      },
    });
    const waits = kernel.cpu(PREFIX, function* waits(cpu) {
      log.push("waits");
      yield* s390Wait(cpu);
      log.push("never");
    });
    const anew = kernel.cpu(PREFIX, function* anew(cpu) {
      yield cpu.nop();
      log.push("anew");
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.vcpus[1].start(waits);
    assertEquals([vm.machine.run(1e8).end, log], ["finished", ["waits", "reset", "anew"]]);
  });
});

describe("the PSW at absolute 0", () => {
  /** Has the CPU reset with 8 bytes at absolute 0. */
  function reset(word: bigint, host: S390Host = "kvm"): { vm: S390Vm; pic: number } {
    let pic = 0;
    const vm = new Machine().createS390Vm({ memory: MEMORY, host });
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.store64(0, word);
        try {
          yield cpu.diag308(DIAG308_RESET_LOAD_NORM);
        } catch (error) {
          if (!(error instanceof MachineFault)) throw error;
          pic = error.code;
        }
      },
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.machine.run(1e8);
    return { vm, pic };
  }

  it("interrupts the program where it is none: without bit 12, at an odd address, or with what is reserved", () => {
    const good = encodeShortPsw({ mask: KERNEL_PSW_MASK, address: 0x1_0000n });
    for (const word of [0n, good & ~(1n << 51n), good | 1n, good | (1n << 63n)]) {
      assertEquals(reset(word).pic, PGM_SPECIFICATION, word.toString(16));
    }
  });

  it("counts for its address alone with QEMU 2.5, which goes on with a 64-bit PSW whatever its mask says", () => {
    // s390_cpu_load_normal in its target-s390x/cpu.c: ldl_phys(s->as, 4).
    for (const mask of [0n, 0xffff_ffffn, DISABLED_WAIT_PSW_MASK >> 32n]) {
      const { vm, pic } = reset(mask << 32n | 0x8001_0001n, "kvm+qemu-2.5");
      assertEquals([pic, vm.words.read64(0x150), vm.words.read64(0x158)], [
        PGM_SPECIFICATION, // The address is odd.
        KERNEL_PSW_MASK,
        0x1_0001n,
      ]);
    }
  });

  it("ends the virtual machine where it waits for nothing", () => {
    const { vm, pic } = reset(encodeShortPsw({ mask: DISABLED_WAIT_PSW_MASK, address: 0x1234n }));
    assertEquals([vm.ending, pic], ["guest panicked: disabled wait on CPU 0, PSW address 0x1234", 0]);
  });

  it("is refused to a guest function that is none, loudly", () => {
    assertThrows(
      () => reset(encodeShortPsw({ mask: KERNEL_PSW_MASK, address: 0x1_0002n })),
      Error,
      "no guest function has its entry there",
    );
  });

  it("is a PSW of 16 bytes whose address has 31 bits", () => {
    // kvm-unit-tests, s390x/cpu.S: reset_psw.
    assertEquals(encodeShortPsw({ mask: KERNEL_PSW_MASK, address: 0n }), 0x0008_0001_8000_0000n);
    fc.assert(fc.property(fc.nat(0x7fff_ffff), fc.boolean(), (address, user) => {
      const psw = { mask: KERNEL_PSW_MASK | (user ? PSW_MASK_PSTATE : 0n), address: BigInt(address) };
      assertEquals(decodeShortPsw(encodeShortPsw(psw)), psw);
      assertEquals(isValidPsw(decodeShortPsw(encodeShortPsw(psw) ^ (1n << 51n))), false);
    }));
    for (const psw of [{ mask: 0n, address: 1n << 31n }, { mask: 1n << 51n, address: 0n }]) {
      assertThrows(() => encodeShortPsw(psw), RangeError, "Cannot shorten the PSW");
    }
  });
});

describe("what a reset takes from the host's side", () => {
  it("is the handshake, and word of pages that are on their way", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const residency = vm.pageTo(new Disk(vm.engine, { pages: 512, latency: 1_000_000 }));
    residency.evict(DATA);
    let again = false;
    const kernel = new S390Kernel({
      *main(cpu) {
        yield* enableServiceSignals(cpu);
        assert(yield* pfaultInit(cpu, SAVE));
        yield* s390EnterUserMode(cpu);
        yield cpu.load8(DATA);
      },
    });
    const subcodes: number[] = [];
    kernel.onExternal(EXT_IRQ_CP_SERVICE, function* pfault(cpu, { subcode }) {
      subcodes.push(subcode);
      yield* diag308Reset(cpu, SAVE + 0x1000);
      again = yield* pfaultInit(cpu, SAVE);
      yield* s390Wait(cpu);
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    // The page comes; the CPU waits all the same.
    assertEquals([vm.machine.run(1e8).end, residency.state(DATA)], ["halted", "present"]);
    assertEquals([again, subcodes, vm.counters().kvm_s390_inject_vm], [
      true,
      [PFAULT_INIT_SUBCODE],
      undefined,
    ]);
  });

  it("is an interruption that floats", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const kernel = new S390Kernel({
      *main(cpu) {
        vm.injectPfaultDone(1n);
        yield* diag308Reset(cpu, SAVE);
      },
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals([vm.machine.run(1e8).end, vm.floating], ["finished", []]);
  });

  it("is the devices' state, and not the parameters of the next IPL", () => {
    let resets = 0;
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    vm.addCcwDevice({ number: 0, queues: [4], notified: () => {}, reset: () => void resets++ });
    vm.addCcwDevice({ number: 1, queues: [4], notified: () => {} });
    vm.ipl.parameters = new Uint8Array(200);
    const kernel = new S390Kernel({
      *main(cpu) {
        yield* diag308Reset(cpu, SAVE);
      },
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals([vm.machine.run(1e8).end, resets, vm.ipl.parameters?.length], ["finished", 1, 200]);
  });
});
