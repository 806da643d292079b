import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodePpc, KVM_MAGIC_PAGE, MSR_EE, MSR_RI, ppcAsm, type PpcCpu, SPRS } from "../../../abi/mod.ts";
import { mapMagicPage, useMagicPage } from "../../../guest/mod.ts";
import { PPC_EXITS, PPC_HOSTS, PPC_TP, type PpcVm, type PpcVmOptions } from "../../../host/mod.ts";
import {
  CODE,
  DATA,
  loadWords,
  nameOf,
  PR_HOSTS,
  routine,
  runPpc,
  SPACE,
  STUB,
  withHypercalls,
} from "../../support/ppc.ts";
import { arm, decrementerHandler, setEe, taken } from "../../support/ppc_decrementer.ts";

describe("a critical section", () => {
  /**
   * A program in which the decrementer expires while `critical` equals r1, and how often it was taken at three
   * points.
   */
  function story(options: PpcVmOptions): { seen: number[]; vm: PpcVm } {
    const seen: number[] = [];
    const half = PPC_HOSTS[options.host!].core === "book3s-64" ? 0 : 4;
    const vm = runPpc(
      options,
      withHypercalls(function* (cpu) {
        const store = (value: bigint) =>
          half === 0 ? cpu.std(KVM_MAGIC_PAGE + 0x18, value) : cpu.stw(KVM_MAGIC_PAGE + 0x1c, value);
        yield* mapMagicPage(cpu, STUB);
        yield* setEe(cpu, true);
        yield store(cpu.register(1));
        yield* arm(cpu, 1000);
        yield cpu.work(100_000);
        seen.push(yield* taken(cpu));
        yield cpu.lwz(KVM_MAGIC_PAGE + 0x64); // int_pending
        seen.push(Number(cpu.r3));
        yield store(cpu.register(2));
        seen.push(yield* taken(cpu)); // nobody has told the host
        yield cpu.mfspr("PVR"); // an exit
        seen.push(yield* taken(cpu));
        yield cpu.lwz(KVM_MAGIC_PAGE + 0x64);
        seen.push(Number(cpu.r3));
      }, options.order),
      { handlers: { DECREMENTER: decrementerHandler() } },
    );
    return { seen, vm };
  }

  for (const options of PR_HOSTS) {
    it(`holds interrupts back, tells the guest, and gives way at the next exit: ${nameOf(options)}`, () => {
      assertEquals(story(options).seen, [0, 1, 0, 1, 0]);
    });
  }

  it("is none where critical equals r1 in a user program", () => {
    // Each starts with 0 in the page; a kernel whose r1 is 0 too is in a critical section without having entered one.
    for (const [user, expected] of [[false, 0], [true, 1]] as const) {
      runPpc({}, function* (cpu) {
        yield* arm(cpu, 1000);
        cpu.setRegister(1, 0);
        yield cpu.mfmsr();
        yield cpu.mtmsrd(cpu.r3 | BigInt(MSR_EE | (user ? 0x4000 : 0)));
        yield cpu.work(100_000);
        assertEquals(yield* taken(cpu), expected);
      }, { handlers: { DECREMENTER: decrementerHandler() } });
    }
  });

  it("compares 32 bits in 32-bit mode, and 64 otherwise", () => {
    for (const [narrow, expected] of [[false, 1], [true, 0]] as const) {
      runPpc(
        {},
        withHypercalls(function* (cpu) {
          yield* mapMagicPage(cpu, STUB);
          yield cpu.std(KVM_MAGIC_PAGE + 0x18, 0x1_0000_0000n + cpu.register(1));
          yield* arm(cpu, 1000);
          yield cpu.mfmsr();
          yield cpu.mtmsrd((narrow ? cpu.r3 & 0xffff_ffffn : cpu.r3) | BigInt(MSR_EE));
          yield cpu.work(100_000);
          assertEquals(yield* taken(cpu), expected);
        }),
        { handlers: { DECREMENTER: decrementerHandler() } },
      );
    }
  });

  it("of a handler is another one, and when it ends the section that was interrupted has ended too", () => {
    for (const host of ["book3s-64-pr", "book3s-32-pr", "e500v2"] as const) {
      const store = (cpu: PpcCpu, value: bigint) =>
        cpu.bits === 64 ? cpu.std(KVM_MAGIC_PAGE + 0x18, value) : cpu.stw(KVM_MAGIC_PAGE + 0x1c, value);
      const seen: number[] = [];
      runPpc(
        { host },
        withHypercalls(function* (cpu) {
          yield* mapMagicPage(cpu, STUB);
          yield store(cpu, cpu.register(1));
          cpu.setRegister(0, 0); // the stub has left KVM's magic there
          yield cpu.sc();
          // The handler's section has ended with a word that is not this r1 either: nothing is held back any more.
          yield* arm(cpu, 1000);
          yield* setEe(cpu, true);
          yield cpu.work(100_000);
          seen.push(yield* taken(cpu));
        }),
        {
          handlers: {
            DECREMENTER: decrementerHandler(),
            *SYSCALL(cpu) {
              yield cpu.mfspr("SRR0");
              const srr0 = cpu.r3;
              yield cpu.mfspr("SRR1");
              const srr1 = cpu.r3;
              cpu.setRegister(1, 0x7000); // its own stack: it is in no section
              yield* arm(cpu, 1000);
              yield* setEe(cpu, true);
              yield cpu.work(100_000);
              seen.push(yield* taken(cpu));
              yield store(cpu, 0x7000n);
              yield* arm(cpu, 1000);
              yield cpu.work(100_000);
              seen.push(yield* taken(cpu));
              yield store(cpu, cpu.register(2));
              yield cpu.mfspr("PVR"); // an exit
              seen.push(yield* taken(cpu));
              yield* setEe(cpu, false);
              yield cpu.mtspr("SRR0", srr0);
              yield cpu.mtspr("SRR1", srr1);
            },
          },
        },
      );
      assertEquals(seen, [1, 1, 2, 3], host);
    }
  });

  it("holds back no system call and no fault", () => {
    runPpc(
      {},
      withHypercalls(function* (cpu) {
        yield* mapMagicPage(cpu, STUB);
        yield cpu.std(KVM_MAGIC_PAGE + 0x18, cpu.register(1));
        cpu.setRegister(0, 0); // the stub has left the magic there
        yield cpu.sc();
        assertEquals(cpu.r3, 7n);
        let faulted = false;
        try {
          yield cpu.lwz(0x7fff_0000);
        } catch {
          faulted = true;
        }
        assertEquals(faulted, true);
      }),
      {
        handlers: {
          *SYSCALL(cpu) {
            yield cpu.isync();
            cpu.setInterruptedRegister(3, 7);
          },
        },
      },
    );
  });
});

describe("patched code that enables interrupts", () => {
  const words: Readonly<Record<string, number>> = {
    mtmsr: encodePpc("mtmsr", { RS: 5 }),
    mtmsrd: encodePpc("mtmsrd", { RS: 5 }),
    "mtmsrd 1": encodePpc("mtmsrd", { RS: 5, L15: 1 }),
    wrtee: encodePpc("wrtee", { RS: 5 }),
    "wrteei 1": encodePpc("wrteei", { E: 1 }),
  };
  const has = (options: PpcVmOptions, name: string) => {
    const { core } = PPC_HOSTS[options.host!];
    return name === "mtmsr" ||
      (core === "booke" ? name.startsWith("wrtee") : core === "book3s-64" && name.startsWith("mtmsrd"));
  };

  for (const options of PR_HOSTS) {
    for (const name of Object.keys(words).filter((name) => has(options, name))) {
      for (const due of [true, false]) {
        const what = due
          ? "leaves guest mode for the interrupt that is due"
          : "leaves guest mode for nothing";
        it(`${what}: ${name}, ${nameOf(options)}`, () => {
          let exits = 0;
          const vm = runPpc(
            options,
            withHypercalls(function* (cpu) {
              yield* useMagicPage(cpu, { stub: STUB, text: [{ from: CODE, to: CODE + 8 }], space: SPACE });
              yield cpu.mfmsr();
              const enabled = cpu.r3 | BigInt(MSR_EE);
              if (due) {
                yield* arm(cpu, 1000);
                yield cpu.work(100_000);
                yield cpu.mfspr("PVR");
              }
              cpu.setRegister(5, enabled);
              cpu.setRegister(30, 0x3030);
              cpu.setRegister(31, 0x3131);
              cpu.setRegister(35, 0x1234_5678);
              exits = program();
              yield cpu.call(CODE);
              exits = program() - exits;
              assertEquals([cpu.register(30), cpu.register(31), cpu.register(35)], [
                0x3030n,
                0x3131n,
                0x1234_5678n,
              ]);
              assertEquals(yield* taken(cpu), due ? 1 : 0);
              yield cpu.mfmsr();
              assertEquals(cpu.r3, enabled);
            }, options.order),
            {
              handlers: { DECREMENTER: decrementerHandler() },
              prepare: (vm) => {
                loadWords(vm, CODE, routine(words[name]));
                program = () => vm.exits().PROGRAM ?? 0;
              },
            },
          );
          // The instruction itself, then what the handler needs of the host.
          assertEquals(exits > 0, due);
          assertEquals(vm.vcpus[0].processor.shared.get("critical"), 0x2222n);
        });
      }
    }
  }
  let program = (): number => 0;

  it("needs the host where bits besides EE and RI change", () => {
    const vm = runPpc(
      {},
      withHypercalls(function* (cpu) {
        yield* useMagicPage(cpu, { stub: STUB, text: [{ from: CODE, to: CODE + 8 }], space: SPACE });
        yield cpu.mfmsr();
        const before = cpu.r3;
        cpu.setRegister(5, before ^ BigInt(MSR_RI));
        yield cpu.call(CODE);
        const first = program();
        cpu.setRegister(5, before ^ 0x4000_0000n);
        yield cpu.call(CODE);
        assertEquals(program() - first, 1);
        yield cpu.mfmsr();
        assertEquals(cpu.r3, before ^ 0x4000_0000n);
      }),
      {
        prepare: (vm) => {
          loadWords(vm, CODE, routine(words.mtmsrd));
          program = () => vm.exits().PROGRAM ?? 0;
        },
      },
    );
    assertEquals(vm.finished, true);
  });

  it("is interrupted nowhere in a template, wherever the decrementer expires, and loses no interrupt", () => {
    // The timer expires on the way into the guest, at each instruction of the template, and behind it.
    const left = new Set<number>();
    const begun = new Set<number>();
    for (let cycles = 790; cycles < 850; cycles++) {
      const vm = runPpc(
        { trace: 64 },
        withHypercalls(function* (cpu) {
          yield* useMagicPage(cpu, { stub: STUB, text: [{ from: CODE, to: CODE + 16 }], space: SPACE });
          cpu.setRegister(5, MSR_EE);
          cpu.setRegister(6, cycles);
          for (const r of [28, 29, 30, 31]) cpu.setRegister(r, 0x100 * r);
          yield cpu.call(CODE);
          for (const r of [28, 29, 30, 31]) assertEquals(cpu.register(r), BigInt(0x100 * r));
          yield cpu.mfspr("PVR");
          yield cpu.work(1000);
          assertEquals(yield* taken(cpu), 1);
          yield cpu.lwz(DATA + 4);
          begun.add(Number(cpu.r3));
        }),
        {
          handlers: { DECREMENTER: inHandler },
          code: routine(ppcAsm.mtspr(SPRS.DEC, 6), encodePpc("mtmsrd", { RS: 5, L15: 1 })),
        },
      );
      for (const { event, args } of vm.tracer.records()) {
        if (event === PPC_TP.kvm_exit && PPC_EXITS[args[0]] === "DECREMENTER") left.add(args[1]);
      }
    }
    const inTemplate = (pc: number) => pc >= SPACE.from && pc < SPACE.to;
    // The host wanted the CPU at more than twenty addresses of the template. Interrupts begin in it where the
    // critical
    // section has not begun, or has ended: at its first word, its last, and at the instruction itself.
    assertEquals([...left].filter(inTemplate).length > 20, true);
    assertEquals([...begun].filter(inTemplate).length <= 4, true);
    assertEquals(begun.size > 1, true);
  });

  /** A handler that uses the same template, and the scratch fields with it. */
  function* inHandler(cpu: PpcCpu) {
    yield cpu.mfspr("SRR0");
    const srr0 = cpu.r3;
    yield cpu.stw(DATA + 4, srr0);
    yield cpu.mfspr("SRR1");
    const srr1 = cpu.r3;
    cpu.setRegister(5, MSR_RI);
    cpu.setRegister(6, 0x7fff_ffff);
    cpu.setRegister(30, 1);
    cpu.setRegister(31, 2);
    yield cpu.call(CODE);
    yield cpu.lwz(DATA);
    yield cpu.stw(DATA, cpu.r3 + 1n);
    yield cpu.mtspr("SRR0", srr0);
    yield cpu.mtspr("SRR1", srr1);
  }
});
