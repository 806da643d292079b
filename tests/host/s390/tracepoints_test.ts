import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { MachineFault, type S390Cpu, type S390Guest } from "../../../abi/mod.ts";
import { S390Tasks } from "../../../guest/mod.ts";
import { Disk, Machine } from "../../../host/mod.ts";
import { MEMORY, runS390 } from "../../support/s390.ts";

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

describe("KVM's tracepoints of page faults that an s390 guest is told of", () => {
  it("tell of the page when it comes, while the CPU sleeps", () => {
    const LATENCY = 1_000_000;
    const tasks = new S390Tasks({
      tables: 0x9000,
      tasks: [function* touches(cpu) {
        yield cpu.load64(DATA);
      }],
    });
    const vm = new Machine().createS390Vm({ memory: MEMORY, trace: 100 });
    vm.pageTo(new Disk(vm.engine, { pages: 512, latency: LATENCY })).evict(DATA);
    vm.load(tasks.kernel.text);
    vm.start(tasks.kernel.entry);
    assertEquals(vm.machine.run(1e8).end, "finished");
    const told = vm.traceText().map((line) => /^ *(\S+) +(\d+): kvm_s390_(pfault|inject)_(\w+):/.exec(line))
      .filter((found) => found !== null).map(([, who, time, what, which]) => ({
        time: Number(time),
        event: `${who} ${what}_${which}`,
      }));
    // kvm_arch_async_page_not_present, kvm_arch_async_page_present; a floating interruption is nobody's.
    assertEquals(told.map(({ event }) => event), [
      "vcpu0 pfault_init",
      "vcpu0 inject_vcpu",
      "vcpu0 pfault_done",
      "- inject_vm",
    ]);
    const [init, , done, injected] = told.map(({ time }) => time);
    assertEquals([done - init, injected - init], [LATENCY, LATENCY]);
  });
});
