import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  EV_STATUS,
  evHcallToken,
  HCALL_STUB,
  HCALL_WORDS_FAIL,
  type MachineFault,
  MSR_SF,
  PPC_HYPERCALLS,
  type PpcCpu,
  type PpcHypercallName,
  ppcHypercallToken,
} from "../../../abi/mod.ts";
import { ppcHypercall } from "../../../guest/mod.ts";
import { PPC_HOSTS, type PpcVm, type PpcVmOptions } from "../../../host/mod.ts";
import {
  CODE,
  loadWords,
  nameOf,
  ppcGuest,
  PR_HOSTS,
  routine,
  runPpc,
  STUB,
  withHypercalls,
} from "../../support/ppc.ts";

const { EV_SUCCESS, EV_UNIMPLEMENTED } = EV_STATUS;
const HOSTS: readonly PpcVmOptions[] = [...PR_HOSTS, { host: "e500mc" }];

/** Calls with any r11, and gives r3 to r11 before and after. */
function call(options: PpcVmOptions, token: bigint, args: readonly bigint[], words?: readonly number[]) {
  const registers = (cpu: PpcCpu) => Array.from({ length: 9 }, (_, i) => cpu.register(i + 3));
  let before: bigint[] = [];
  let after: bigint[] = [];
  const vm = runPpc(
    options,
    withHypercalls(function* (cpu) {
      args.forEach((arg, index) => cpu.setRegister(3 + index, arg));
      cpu.setRegister(11, token);
      before = registers(cpu);
      yield cpu.call(words === undefined ? STUB : CODE);
      after = registers(cpu);
    }, options.order),
    words === undefined ? {} : { code: words },
  );
  return { before, after, vm };
}

const ARGS = [0x33n, 0x44n, 0x55n, 0x66n, 0x77n, 0x88n, 0x99n, 0xaan];

describe("a PowerPC hypercall", () => {
  for (const options of HOSTS) {
    it(`answers in r3 and r4, and leaves r5 to r11 alone: ${nameOf(options)}`, () => {
      const features = options.host === "e500mc" ? 0n : 2n;
      const token = BigInt(ppcHypercallToken("KVM_HC_FEATURES"));
      const { before, after } = call(options, token, ARGS);
      assertEquals(after, [BigInt(EV_SUCCESS), features, ...before.slice(2)]);
    });

    it(`that nobody knows is EV_UNIMPLEMENTED with 0 in r4: ${nameOf(options)}`, () => {
      for (const token of [0n, 3n, 4n, 0x2a_0005n, 0x1_0008n, 0x2a_0001n, 0xffff_ffffn]) {
        const { before, after } = call(options, token, ARGS);
        assertEquals(after, [BigInt(EV_UNIMPLEMENTED), 0n, ...before.slice(2)]);
      }
    });
  }

  it("of ePAPR that KVM lacks is EV_UNIMPLEMENTED, which is all of them but EV_IDLE", () => {
    runPpc(
      {},
      withHypercalls(function* (cpu) {
        for (const name of Object.keys(PPC_HYPERCALLS) as PpcHypercallName[]) {
          if (PPC_HYPERCALLS[name].kvm) continue;
          const args = Object.fromEntries(PPC_HYPERCALLS[name].args.map((arg) => [arg, 1])) as never;
          assertEquals((yield* ppcHypercall(cpu, STUB, name, args)).status, EV_UNIMPLEMENTED, name);
        }
      }),
    );
    const known = (Object.keys(PPC_HYPERCALLS) as PpcHypercallName[]).filter((name) =>
      PPC_HYPERCALLS[name].kvm
    );
    assertEquals(known, ["EV_IDLE", "KVM_HC_FEATURES", "KVM_HC_PPC_MAP_MAGIC_PAGE"]);
  });

  it("is chosen by the low 32 bits of r11, in either mode", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 0xffff_ffffn }), (high) => {
        const token = (high << 32n) | BigInt(ppcHypercallToken("KVM_HC_FEATURES"));
        const { after } = call({}, token, []);
        assertEquals([after[0], after[1], after[8]], [0n, 2n, token]);
      }),
      { numRuns: 10 },
    );
  });

  it("may stand at the end of a page, and end on the next one", () => {
    for (const options of HOSTS) {
      const words = PPC_HOSTS[options.host!].convention!.instructions[0].units;
      for (const behind of [4, 8, 12]) {
        const stub = 0x3_1000 - behind;
        runPpc(
          options,
          function* (cpu) {
            cpu.setRegister(11, ppcHypercallToken("KVM_HC_FEATURES"));
            yield cpu.call(stub);
            assertEquals(cpu.r3, 0n, nameOf(options));
          },
          { prepare: (vm) => loadWords(vm, stub, routine(...words)) },
        );
      }
    }
  });

  it("has the numbers of Linux's headers", () => {
    assertEquals(ppcHypercallToken("KVM_HC_FEATURES"), 0x2a_0003);
    assertEquals(ppcHypercallToken("KVM_HC_PPC_MAP_MAGIC_PAGE"), 0x2a_0004);
    assertEquals(ppcHypercallToken("EV_IDLE"), 0x1_0010);
    assertEquals(evHcallToken(1, 1), ppcHypercallToken("EV_BYTE_CHANNEL_SEND"));
  });

  it("cuts its arguments to 32 bits where MSR[SF] is clear, and not where it is set", () => {
    const mapped = (narrow: boolean) => {
      const vm = runPpc(
        {},
        withHypercalls(function* (cpu) {
          yield cpu.mfmsr();
          const msr = cpu.r3;
          if (narrow) yield cpu.mtmsrd(msr & ~MSR_SF);
          cpu.setRegister(11, ppcHypercallToken("KVM_HC_PPC_MAP_MAGIC_PAGE"));
          cpu.setRegister(3, 0x1234_5678_9abc_d000n);
          cpu.setRegister(4, 0xfedc_ba98_7654_3001n);
          yield cpu.call(STUB);
          assertEquals([cpu.r3, cpu.r4], [0n, 3n]);
          yield cpu.mtmsrd(msr);
        }),
      );
      return vm.vcpus[0].processor.magic;
    };
    assertEquals(mapped(false), { real: 0x1234_5678_9abc_d000n, effective: 0xfedc_ba98_7654_3000n });
    assertEquals(mapped(true), { real: 0x9abc_d000n, effective: 0x7654_3000n });
  });

  it("through a stub that nobody patched is -1, and no exit", () => {
    for (const options of HOSTS) {
      const { after, vm } = call(options, BigInt(ppcHypercallToken("KVM_HC_FEATURES")), ARGS, HCALL_STUB);
      assertEquals(BigInt.asIntN(32, after[0]), -1n);
      assertEquals(after[1], 0x44n);
      assertEquals(callExits(vm), 0, nameOf(options));
    }
  });

  it("through the words of a host without calls is -1 in either byte order", () => {
    for (const options of PR_HOSTS.slice(0, 3)) {
      const swapped = HCALL_WORDS_FAIL.map((word) =>
        (((word & 0xff) << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24)) >>> 0
      );
      for (const words of [HCALL_WORDS_FAIL, swapped]) {
        const { after, vm } = call(options, 0n, ARGS, routine(...words));
        assertEquals([BigInt.asIntN(32, after[0]), callExits(vm)], [-1n, 0], nameOf(options));
      }
    }
  });

  it("through those words is an illegal instruction on a 32-bit processor: the first is a 64-bit one's", () => {
    for (const host of ["book3s-32-pr", "e500v2", "e500mc"] as const) {
      let caught: unknown;
      const vm = ppcGuest({ host }, function* (cpu) {
        try {
          yield cpu.call(CODE);
        } catch (error) {
          caught = error;
        }
      }, { code: routine(...HCALL_WORDS_FAIL) });
      vm.machine.run();
      // KVM of e500v2 gives up there and then: it cannot emulate the word.
      if (host === "e500v2") assertEquals(vm.ending, "it cannot emulate 0x8000048 at 0x20000");
      else assertEquals((caught as MachineFault).exception, "PROGRAM", host);
    }
  });
});

/** Exits by which a guest calls somebody. */
function callExits(vm: PpcVm): number {
  const { SYSCALL = 0, HV_SYSCALL = 0 } = vm.exits();
  return SYSCALL + HV_SYSCALL;
}

describe("EV_IDLE", () => {
  for (const options of HOSTS) {
    it(`comes back at once where something from outside is held back, and again and again: ${nameOf(options)}`, () => {
      const vm = runPpc(
        options,
        withHypercalls(function* (cpu) {
          for (let round = 0; round < 3; round++) {
            const { status } = yield* ppcHypercall(cpu, STUB, "EV_IDLE", {});
            assertEquals(status, 0);
          }
        }, options.order),
        { prepare: (vm) => vm.vcpus[0].raise() },
      );
      assertEquals(callExits(vm), 3);
      assertEquals(vm.vcpus[0].interrupts.pending, true);
    });
  }

  for (const options of HOSTS) {
    it(`waits until an interrupt is pending, even one that is held back: ${nameOf(options)}`, () => {
      let waited = 0;
      const vm = runPpc(
        options,
        withHypercalls(function* (cpu) {
          yield cpu.mtspr("DEC", 1_000_000);
          if (cpu.core === "booke") yield cpu.mtspr("TCR", 0x400_0000);
          cpu.setRegister(4, 0x44);
          const { status } = yield* ppcHypercall(cpu, STUB, "EV_IDLE", {});
          waited = now();
          assertEquals([status, cpu.r4], [0, 0n]); // no handler ran: MSR[EE] is clear
        }, options.order),
        {
          prepare: (vm) => {
            now = () => vm.vcpus[0].clock;
          },
        },
      );
      assertEquals(waited >= 1_000_000, true);
      assertEquals(vm.machine.engine.steps < 20_000, true);
    });
  }
  let now = (): number => 0;

  it("comes back at once where one is pending already", () => {
    runPpc(
      {},
      withHypercalls(function* (cpu) {
        yield cpu.mtspr("DEC", 10);
        yield cpu.work(100);
        assertEquals((yield* ppcHypercall(cpu, STUB, "EV_IDLE", {})).status, 0);
      }),
    );
  });
});
