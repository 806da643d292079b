import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { HYPERCALLS, KVM_ENOSYS, MIPS_GPR, type MipsCpu, type MipsGpr, mipsKseg0 } from "../../../abi/mod.ts";
import { mipsHypercall } from "../../../guest/mod.ts";
import { MIPS_KVMS, MipsRig, ORDERS, runMips } from "../../support/mips.ts";

const GET_CLOCK_FREQ = BigInt(HYPERCALLS.KVM_HC_MIPS_GET_CLOCK_FREQ.nr);
const CONSOLE_OUTPUT = BigInt(HYPERCALLS.KVM_HC_MIPS_CONSOLE_OUTPUT.nr);
const ENOSYS = BigInt(-KVM_ENOSYS);
const U64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });

/** Every general register by name. */
function registers(cpu: MipsCpu): Record<string, bigint> {
  return Object.fromEntries(Object.keys(MIPS_GPR).map((name) => [name, cpu.gpr(name as MipsGpr)]));
}

for (const order of ORDERS) {
  for (const bits of [64, 32] as const) {
    describe(`HYPCALL of a ${order}-endian ${bits}-bit guest`, () => {
      it("gets -KVM_ENOSYS from mainline's host, whatever it asks for", () => {
        const numbers = [0n, 1n, 6n, 7n, 8n, 10n, 13n, 0x2a_0003n, 0x1_0000_0006n, -1n];
        const results: bigint[] = [];
        const vm = runMips(function* (cpu) {
          for (const number of numbers) {
            yield cpu.loadHypercall({ number, arguments: [] }).hypcall();
            results.push(cpu.gpr("v0"));
          }
        }, { order, bits });
        assertEquals(results, numbers.map(() => 0xffff_ffff_ffff_fc18n));
        assertEquals(vm.exits(), { HC: numbers.length });
      });

      it("leaves every register but v0 as it was", () => {
        runMips(function* (cpu) {
          for (let i = 1; i < 32; i++) cpu.setRegister(i, 0x1111_1111_1111_1111n * BigInt(i % 16));
          cpu.loadHypercall({ number: 6n, arguments: [1n, 2n, 3n, 4n] });
          const before = registers(cpu);
          yield cpu.hypcall();
          assertEquals(registers(cpu), { ...before, v0: BigInt.asUintN(64, ENOSYS) });
        }, { order, bits });
      });

      it("stands in memory in the guest's byte order", () => {
        const rig = new MipsRig({ order, bits });
        rig.run(function* (cpu) {
          yield cpu.hypcall();
        });
        const entry = rig.text.blocks.at(-1)!.address - mipsKseg0(0);
        const site = entry + rig.text.layout.site[1];
        const bytes = order === "big" ? [0x42, 0, 0, 0x28] : [0x28, 0, 0, 0x42];
        assertEquals([...rig.vm.words.bytes(site, 4)!], bytes);
      });

      it("asks for the clock's frequency under the hosts that know it", () => {
        for (const host of ["imgtec", "cavium"] as const) {
          runMips(function* (cpu) {
            assertEquals(yield* mipsHypercall(cpu, "KVM_HC_MIPS_GET_CLOCK_FREQ", {}), 100_000_000n);
          }, { host, order, bits });
        }
      });
    });
  }
}

describe("hosts' calls on MIPS", () => {
  it("a frequency from 2^31 on is sign-extended by Imagination's host and not by Cavium's", () => {
    const found: Record<string, bigint> = {};
    for (const host of ["imgtec", "cavium"] as const) {
      runMips(function* (cpu) {
        yield cpu.loadHypercall({ number: GET_CLOCK_FREQ, arguments: [] }).hypcall();
        found[host] = cpu.gpr("v0");
      }, { host, countHz: 0x9000_0000 });
    }
    assertEquals(found, { imgtec: 0xffff_ffff_9000_0000n, cavium: 0x9000_0000n });
  });

  it("a number that nobody knows gets -KVM_ENOSYS from Imagination's host, and itself from Cavium's", () => {
    const found: Record<string, bigint> = {};
    for (const host of ["imgtec", "cavium"] as const) {
      runMips(function* (cpu) {
        yield cpu.loadHypercall({ number: 0x77n, arguments: [] }).hypcall();
        found[host] = cpu.gpr("v0");
      }, { host });
    }
    assertEquals(found, { imgtec: 0xffff_ffff_ffff_fc18n, cavium: 0x77n });
  });

  it("the number counts with all 64 bits: 2^32 + 6 is no call", () => {
    for (const host of ["imgtec", "cavium"] as const) {
      const vm = runMips(function* (cpu) {
        yield cpu.loadHypercall({ number: (1n << 32n) + GET_CLOCK_FREQ, arguments: [] }).hypcall();
        assert(cpu.gpr("v0") !== 100_000_000n);
      }, { host });
      assertEquals(vm.ending, undefined);
    }
  });

  it("EXIT_VM ends the virtual machine: a system event, or a shutdown; on mainline it comes back", () => {
    const ends = MIPS_KVMS.map((host) => {
      let cameBack = false;
      const vm = runMips(function* (cpu) {
        yield* mipsHypercall(cpu, "KVM_HC_MIPS_EXIT_VM", {});
        cameBack = true;
      }, { host });
      return [vm.ending, vm.systemEvent, cameBack, [...vm.userspaceExits.keys()]];
    });
    // Imagination's: system_event.type = KVM_SYSTEM_EVENT_SHUTDOWN (arch/mips/kvm/hypcall.c).
    const shutdown = "KVM_SYSTEM_EVENT_SHUTDOWN";
    assertEquals(ends, [
      [undefined, undefined, true, []],
      [`KVM_EXIT_SYSTEM_EVENT: ${shutdown}`, shutdown, false, ["KVM_EXIT_SYSTEM_EVENT"]],
      ["KVM_EXIT_SHUTDOWN", undefined, false, ["KVM_EXIT_SHUTDOWN"]],
    ]);
  });

  it("CONSOLE_OUTPUT is written by user space, which sets no result: the preset one, or the number, stays", () => {
    const found = MIPS_KVMS.map((host) => {
      let v0 = 0n;
      const vm = runMips(function* (cpu) {
        yield cpu.sb(mipsKseg0(0x4000), 0x68);
        yield cpu.sb(mipsKseg0(0x4001), 0x69);
        const call = { number: CONSOLE_OUTPUT, arguments: [0n, 0xffff_ffff_8000_4000n, 2n] };
        yield cpu.loadHypercall(call).hypcall();
        v0 = cpu.gpr("v0");
      }, { host });
      return [vm.userspace.text(), BigInt.asIntN(64, v0), vm.userspaceExits.get("KVM_EXIT_HYPERCALL")];
    });
    assertEquals(found, [["", ENOSYS, undefined], ["hi", ENOSYS, 1], ["hi", CONSOLE_OUTPUT, 1]]);
  });

  it("a code that is not KVM's is a failure of emulation, fatal, with the PC at the instruction; Cavium's looks at none", () => {
    const ends = MIPS_KVMS.map((host) => {
      const rig = new MipsRig({ host });
      const layout = rig.text.layout;
      let went = 0;
      rig.run(function* (cpu) {
        // Code 5, patched over the site of this very function's HYPCALL.
        const site = rig.text.blocks.at(-1)!.address + layout.site[1];
        yield cpu.sw(site, 0x4200_2828);
        yield cpu.loadHypercall({ number: GET_CLOCK_FREQ, arguments: [] }).hypcall();
        went = Number(cpu.gpr("v0"));
      });
      const site = rig.text.blocks.at(-1)!.address + layout.site[1];
      return [rig.vm.ending, went, rig.vm.vcpus[0].context.pc === site];
    });
    const fatal = "KVM_EXIT_INTERNAL_ERROR: HYPCALL with code 5";
    assertEquals(ends, [[fatal, 0, true], [fatal, 0, true], [undefined, 100_000_000, false]]);
  });

  it("without a KVM the instruction is reserved: ExcCode 10, EPC at it, and v0 as it was", () => {
    for (const order of ORDERS) {
      const rig = new MipsRig({ host: "none", order });
      let caught: unknown;
      rig.run(function* (cpu) {
        try {
          yield cpu.loadHypercall({ number: 6n, arguments: [] }).hypcall();
        } catch (fault) {
          caught = fault;
          assertEquals(cpu.gpr("v0"), 6n);
          yield cpu.mfc0Cause();
          assertEquals((cpu.value32 >>> 2) & 0x1f, 10);
        }
      });
      assertEquals(String(caught), "MachineFault: hypcall caused RI (0xa)");
      assertEquals(rig.vm.exits(), {});
    }
  });

  it("what becomes of any call, no register but v0 changes, and the guest goes on behind it or ends", () => {
    const call = fc.record({
      number: fc.oneof(fc.bigInt({ min: 0n, max: 14n }), U64),
      arguments: fc.array(U64, { maxLength: 4 }),
    });
    const hosts = fc.constantFrom(...MIPS_KVMS);
    fc.assert(
      fc.property(call, hosts, fc.constantFrom(...ORDERS), fc.boolean(), (call, host, order, slot) => {
        let checked = false;
        const vm = runMips(function* (cpu) {
          cpu.loadHypercall(call);
          const before = registers(cpu);
          yield slot ? cpu.hypcallInDelaySlot() : cpu.hypcall();
          assertEquals({ ...registers(cpu), v0: 0n }, { ...before, v0: 0n });
          checked = true;
        }, { host, order });
        assertEquals(checked, vm.ending === undefined);
        assertEquals(vm.exits(), { HC: 1 });
        assertEquals(vm.counters().kvm_exit, 2, "the guest exit, and what kind it is");
      }),
      { numRuns: 60 },
    );
  });
});
