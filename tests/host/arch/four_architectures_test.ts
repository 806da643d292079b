import { assert, assertEquals, assertInstanceOf } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  type CallOutcome,
  encodeResults,
  MachineFault,
  MIPS_CONVENTION,
  mipsText,
  PPC_PR_CONVENTION,
  ppcText,
  S390_CONVENTION,
  Text,
  X86_CONVENTION,
} from "../../../abi/mod.ts";
import { epaprInit, placePpcHandlers, S390Kernel, setPpcVectors } from "../../../guest/mod.ts";
import { Machine, type MachineOptions } from "../../../host/mod.ts";

/** A number that names no call anywhere: of KVM_HC_*, a subcode of DIAGNOSE 0x500, an ePAPR token. */
const UNKNOWN = 0x7d;
const STUB = 0x8000;

/** What each guest found. */
interface Found {
  x86: bigint;
  s390: unknown;
  ppc: readonly bigint[];
  mips: bigint;
}

/** Guests of all four architectures on one machine, each of which makes one unknown call. */
function run(options: MachineOptions): { machine: Machine; found: Found } {
  const machine = new Machine(options);
  const found: Found = { x86: 0n, s390: undefined, ppc: [], mips: 0n };

  const x86 = machine.createVm({ memory: 2 ** 21 });
  const x86Text = new Text();
  const x86Entry = x86Text.add(function* main(cpu) {
    yield cpu.loadHypercall(UNKNOWN).vmcall();
    found.x86 = cpu.rax;
  });
  x86.load(x86Text);
  x86.start(x86Entry);

  const s390 = machine.createS390Vm({ memory: 2 ** 21 });
  const kernel = new S390Kernel({
    *main(cpu) {
      cpu.setRegister(1, UNKNOWN);
      try {
        yield cpu.diag500();
      } catch (fault) {
        found.s390 = fault;
      }
    },
  });
  s390.load(kernel.text);
  s390.start(kernel.entry);

  const ppc = machine.createPpcVm({ host: "book3s-64-pr" });
  const { core } = ppc.host;
  const textOfPpc = ppcText(core);
  const ppcEntry = textOfPpc.add(function* main(cpu) {
    const fdt = Number(cpu.r3);
    yield* setPpcVectors(cpu);
    yield* epaprInit(cpu, { fdt, stub: STUB, order: "big" });
    yield cpu.loadHypercall({ number: BigInt(UNKNOWN), arguments: [] }).call(STUB);
    found.ppc = [cpu.register(3), cpu.register(4)];
  });
  placePpcHandlers(textOfPpc, core);
  ppc.load(textOfPpc);
  ppc.start(ppcEntry);

  const mips = machine.createMipsVm({ memory: 2 ** 21 });
  const textOfMips = mipsText();
  const mipsEntry = textOfMips.add(function* main(cpu) {
    yield cpu.loadHypercall({ number: BigInt(UNKNOWN), arguments: [] }).hypcall();
    found.mips = cpu.gpr("v0");
  });
  mips.load(textOfMips);
  mips.start(mipsEntry);

  assertEquals(machine.run().end, "finished");
  assertEquals(mips.vcpus[0].lastOutcome, MIPS_CONVENTION.errors.unknown);
  assertEquals(ppc.vcpus[0].lastOutcome, PPC_PR_CONVENTION.errors.unknown);
  assertEquals(s390.vcpus[0].lastOutcome, S390_CONVENTION.errors.unknown);
  assertEquals([x86.exits().VMCALL, mips.exits()], [1, { HC: 1 }]);
  return { machine, found };
}

function values(outcome: CallOutcome): readonly bigint[] {
  assert(outcome.kind === "registers");
  return outcome.values;
}

describe("one machine with guests of all four architectures", () => {
  it("answers an unknown call as each convention says: two errors, a status, an interruption", () => {
    for (const policy of ["timed", { random: 1 }, { random: 2 }] as const) {
      const { found } = run({ policy });
      const x86 = encodeResults(X86_CONVENTION, values(X86_CONVENTION.errors.unknown), "wide");
      const mips = encodeResults(MIPS_CONVENTION, values(MIPS_CONVENTION.errors.unknown), "wide");
      assertEquals([found.x86, found.mips], [x86.rax, mips.v0]);
      assertEquals(found.ppc, values(PPC_PR_CONVENTION.errors.unknown));
      assertInstanceOf(found.s390, MachineFault);
      const { unknown } = S390_CONVENTION.errors;
      assert(unknown.kind === "exception");
      assertEquals([found.s390.exception, found.s390.code], [unknown.name, unknown.code]);
    }
  });

  it("replays a random schedule of theirs", () => {
    const { machine } = run({ policy: { random: 5 } });
    const again = run({ policy: { replay: machine.schedule, seed: 5 } });
    assertEquals(again.machine.schedule, machine.schedule);
    assertEquals(again.machine.exits, machine.exits);
  });
});
