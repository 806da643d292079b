import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { MachineFault, type S390Cpu, type S390Guest } from "../../../abi/mod.ts";
import { runS390 } from "../../support/s390.ts";

const DATA = 0x10_0000;

/** What KVM tells of instructions that it has carried out (arch/s390/kvm/priv.c), without where the guest is. */
function traced(main: (cpu: S390Cpu) => S390Guest): string[] {
  return runS390(main, { trace: 100 }).traceText().map((line) => line.replace(/^.*?: /, ""))
    .filter((line) => line.startsWith("kvm_s390_handle_"));
}

describe("KVM's tracepoints of what it carries out for an s390 guest", () => {
  it("tell the prefix that was set or stored, and where the CPU's address went", () => {
    assertEquals(
      traced(function* (cpu) {
        yield cpu.store32(DATA, 0x4fff);
        yield cpu.spx(DATA);
        yield cpu.stpx(DATA + 4);
        yield cpu.stap(DATA + 8);
      }),
      [
        "kvm_s390_handle_prefix: set 1 address 0x4000",
        "kvm_s390_handle_prefix: set 0 address 0x4000",
        "kvm_s390_handle_stap: address 0x100008",
      ],
    );
  });

  it("tell which information was stored and where, by the low half of register 0", () => {
    assertEquals(
      traced(function* (cpu) {
        const op = cpu.stsi(0, [0, 0], DATA);
        cpu.setRegister(0, 0x1234_5678_3000_0002n);
        cpu.setRegister(1, 2);
        yield op;
      }),
      ["kvm_s390_handle_stsi: fc 3 sel1 2 sel2 2 addr 0x100000"],
    );
  });

  it("tell nothing of what was refused", () => {
    assertEquals(
      traced(function* (cpu) {
        for (const step of [cpu.spx, cpu.stpx, cpu.stap]) {
          try {
            yield step.call(cpu, DATA + 1);
          } catch (error) {
            if (!(error instanceof MachineFault)) throw error;
          }
        }
      }),
      [],
    );
  });
});
