import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { type HypercallOn, HYPERCALLS, type MipsCpu, mipsKseg0, mipsRegisterAddress } from "../../abi/mod.ts";
import { runMipsHypercalls } from "../../guest/examples/mips_hypercalls.ts";
import {
  MIPS_PARAVIRT,
  type MipsClock,
  mipsHypercall,
  mipsKvmParaAvailable,
  mipsKvmParaFeatures,
  mipsMachineHalt,
  mipsPlatTimeInit,
  mipsPromPutchar,
  mipsPutChars,
} from "../../guest/mod.ts";
import { MIPS_KVMS, ORDERS, runMips } from "../support/mips.ts";

describe("a typed hypercall of a MIPS guest", () => {
  it("loads the number and the arguments of the table, in the registers of the convention", () => {
    runMips(function* (cpu) {
      const call = mipsHypercall(cpu, "KVM_HC_MIPS_CONSOLE_OUTPUT", { length: 3, port: 1n, buffer: -1n });
      yield call.next().value as number;
      const registers = ["a0", "a1", "a2"] as const;
      assertEquals(registers.map((name) => cpu.gpr(name)), [1n, 0xffff_ffff_ffff_ffffn, 3n]);
      assertEquals(call.next().value, -1000n);
    });
  });

  it("does not compile with a call of another architecture, or with other arguments", () => {
    const misuse = (cpu: MipsCpu) => [
      // @ts-expect-error: x86 alone has this one.
      mipsHypercall(cpu, "KVM_HC_KICK_CPU", { flags: 0, apicId: 1 }),
      // @ts-expect-error: PowerPC alone has this one.
      mipsHypercall(cpu, "KVM_HC_FEATURES", {}),
      // @ts-expect-error: there is no such call.
      mipsHypercall(cpu, "KVM_HC_MIPS_GET_HOST_TIME", {}),
      // @ts-expect-error: an argument is missing.
      mipsHypercall(cpu, "KVM_HC_MIPS_CONSOLE_OUTPUT", { port: 0, buffer: 0 }),
      // @ts-expect-error: an argument has another name.
      mipsHypercall(cpu, "KVM_HC_MIPS_CONSOLE_OUTPUT", { port: 0, buffer: 0, count: 1 }),
      // @ts-expect-error: an argument is no number.
      mipsHypercall(cpu, "KVM_HC_MIPS_CONSOLE_OUTPUT", { port: "0", buffer: 0, length: 1 }),
      // @ts-expect-error: the call takes no argument.
      mipsHypercall(cpu, "KVM_HC_MIPS_EXIT_VM", { code: 1 }),
    ];
    assertEquals(typeof misuse, "function");
    const calls: Record<HypercallOn<"mips">, number> = {
      KVM_HC_MIPS_GET_CLOCK_FREQ: 6,
      KVM_HC_MIPS_EXIT_VM: 7,
      KVM_HC_MIPS_CONSOLE_OUTPUT: 8,
    };
    for (const [name, nr] of Object.entries(calls)) {
      assertEquals(HYPERCALLS[name as HypercallOn<"mips">].nr, nr);
    }
  });
});

describe("the paravirtual MIPS platform", () => {
  const clock = (host: (typeof MIPS_KVMS)[number], bits: 32 | 64, countHz?: number) => {
    let found: MipsClock | undefined;
    runMips(function* (cpu) {
      found = yield* mipsPlatTimeInit(cpu);
    }, { host, bits, ...countHz === undefined ? {} : { countHz } });
    return found;
  };

  it("is there when the kernel was built for it: nothing asks the host", () => {
    assertEquals(mipsKvmParaAvailable(MIPS_PARAVIRT), true);
    assertEquals(mipsKvmParaAvailable({ ...MIPS_PARAVIRT, paravirt: false }), false);
    assertEquals(mipsKvmParaFeatures(), 0);
  });

  it("presets the delay loop from the clock's frequency: half of it a second", () => {
    for (const bits of [32, 64] as const) {
      for (const host of ["imgtec", "cavium"] as const) {
        assertEquals(clock(host, bits), { hptFrequency: 100_000_000, presetLpj: 200_000 });
        assertEquals(clock(host, bits, 0x9000_0000)?.hptFrequency, 0x9000_0000);
      }
    }
  });

  it("takes mainline's -KVM_ENOSYS for a frequency", () => {
    for (const bits of [32, 64] as const) assertEquals(clock("mainline", bits)?.hptFrequency, 2 ** 32 - 1000);
  });

  it("writes characters from its stack, and buffers, and says that all was written whoever is there", () => {
    for (const host of MIPS_KVMS) {
      let count = 0;
      const vm = runMips(function* (cpu) {
        for (const character of "ok ") yield* mipsPromPutchar(cpu, character.charCodeAt(0));
        yield cpu.sw(mipsKseg0(0x4000), 0x2121_2121);
        count = yield* mipsPutChars(cpu, 0, { address: mipsRegisterAddress(mipsKseg0(0x4000)), count: 4 });
      }, { host });
      assertEquals([vm.userspace.text(), count], [host === "mainline" ? "" : "ok !!!!", 4]);
      assertEquals(vm.exits(), { HC: 4 });
    }
  });

  it("of a 32-bit kernel passes pointers as they are: registers sign-extend them; a 64-bit one has to do it itself", () => {
    const ends = ([32, 64] as const).map((bits) => {
      const vm = runMips(function* (cpu) {
        yield cpu.sb(mipsKseg0(0x4000), 0x21);
        yield* mipsPutChars(cpu, 0, { address: BigInt(mipsKseg0(0x4000)), count: 1 });
      }, { host: "imgtec", bits });
      return [vm.userspace.text(), vm.ending];
    });
    assertEquals(ends, [["!", undefined], ["", "hypercall_write_cons unmapped physaddr 80004000"]]);
  });

  it("halts by a hypercall, and comes back where nobody knows it", () => {
    const back = MIPS_KVMS.map((host) => {
      let cameBack = false;
      runMips(function* (cpu) {
        yield* mipsMachineHalt(cpu);
        cameBack = true;
      }, { host });
      return cameBack;
    });
    assertEquals(back, [true, false, false]);
  });
});

describe("the example of MIPS hypercalls", () => {
  it("asks, prints and ends with three exits, in both byte orders", () => {
    for (const order of ORDERS) {
      const runs = MIPS_KVMS.map((host) => {
        const vm = runMipsHypercalls(host, order);
        return [vm.userspace.text(), vm.ending, vm.exits().HC];
      });
      const line = "clock 100000000 Hz, 200000 loops a tick\n";
      assertEquals(runs, [
        ["", undefined, 3],
        [line, "KVM_EXIT_SYSTEM_EVENT: KVM_SYSTEM_EVENT_SHUTDOWN", 3],
        [line, "KVM_EXIT_SHUTDOWN", 3],
      ]);
    }
  });
});
