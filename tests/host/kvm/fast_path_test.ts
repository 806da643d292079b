import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { IA32_TSC_AUX, IA32_TSC_DEADLINE, X2APIC_EOI, X2APIC_ICR, type X86Cpu } from "../../../abi/mod.ts";
import { FastPath } from "../../../host/kvm/backend.ts";
import { BACKENDS, type HostSemantics, type Vm } from "../../../host/mod.ts";
import { type Asking, completes, enter } from "../../support/apic.ts";
import { chain, eventsOf, mark, tracingRig } from "../../support/events.ts";

const VECTOR = 0x41;
/** LVT timer in TSC-deadline mode. */
const DEADLINE_MODE = 0x4_0000 | VECTOR;
const FAR_AWAY = 0xffff_ffff;

/** Executes an instruction and tells what KVM's last entry cost: that of the inner loop, or of the whole way round. */
function* wayBack(cpu: X86Cpu, vm: Vm, op: number): Asking<"fast" | "slow" | "no exit"> {
  const from = mark(vm);
  yield op;
  yield cpu.rdtsc();
  const entry = eventsOf(vm, "kvm_entry", from).at(-1);
  if (entry === undefined) return "no exit";
  const cost = cpu.edx * 2 ** 32 + cpu.eax - entry.time;
  assertEquals([vm.cost.reentry, vm.cost.vmentry].includes(cost), true, `the entry cost ${cost}`);
  return cost === vm.cost.reentry ? "fast" : "slow";
}

type Row = readonly [what: string, op: (cpu: X86Cpu) => number, today: "fast" | "slow"];

/** vCPU 1 is there and was never started; nobody has x2APIC ID 99. */
const ROWS: readonly Row[] = [
  ["an IPI to one", (cpu) => cpu.wrmsr(X2APIC_ICR, VECTOR, 1), "fast"],
  ["an NMI to one", (cpu) => cpu.wrmsr(X2APIC_ICR, 0x400, 1), "fast"],
  ["an IPI to nobody", (cpu) => cpu.wrmsr(X2APIC_ICR, VECTOR, 99), "fast"],
  ["an IPI to a cluster", (cpu) => cpu.wrmsr(X2APIC_ICR, 0x800 | VECTOR, 0b10), "fast"],
  ["an IPI to all others", (cpu) => cpu.wrmsr(X2APIC_ICR, 0xc_0000 | VECTOR), "slow"],
  ["an IPI to the broadcast ID", (cpu) => cpu.wrmsr(X2APIC_ICR, VECTOR, 0xffff_ffff), "slow"],
  ["a TSC deadline", (cpu) => cpu.wrmsr(IA32_TSC_DEADLINE, 0, FAR_AWAY), "fast"],
  ["INVD", (cpu) => cpu.invd(), "fast"],
  ["WBINVD", (cpu) => cpu.wbinvd(), "slow"],
  ["CPUID", (cpu) => cpu.cpuid(0), "slow"],
  ["an EOI", (cpu) => cpu.wrmsr(X2APIC_EOI, 0), "slow"],
  ["another MSR", (cpu) => cpu.wrmsr(IA32_TSC_AUX, 1), "slow"],
  ["a read of the ICR", (cpu) => cpu.rdmsr(X2APIC_ICR), "slow"],
  ["a hypercall", (cpu) => cpu.loadHypercall(1).vmcall(), "slow"],
];

for (const backend of BACKENDS) {
  describe(`the fast path (${backend})`, () => {
    function ways(hostSemantics: HostSemantics): Record<string, string> {
      const rig = tracingRig({ vm: { backend, hostSemantics, vcpus: 2 } });
      const found: Record<string, string> = {};
      // KVM rewrites the first VMCALL on AMD; the second is the one to measure.
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(0x832, DEADLINE_MODE);
        yield cpu.loadHypercall(1).vmcall();
        for (const [what, op] of ROWS) found[what] = yield* wayBack(cpu, rig.vm, op(cpu));
        yield cpu.wrmsr(IA32_TSC_DEADLINE, 0);
      });
      return found;
    }

    it("serves ICR writes whose target the map knows, deadlines, and INVD", () => {
      assertEquals(ways("v6.19"), Object.fromEntries(ROWS.map(([what, , today]) => [what, today])));
    });

    it("goes round behind an ICR write until v6.12, and until v6.18 takes deadlines with a preemption timer", () => {
      // Whoever goes round pays for it, whether or not the exit was handled early.
      const round = Object.fromEntries(ROWS.map(([what]) => [what, "slow"]));
      assertEquals(ways("2021"), { ...round, "a TSC deadline": backend === "vmx" ? "fast" : "slow" });
    });

    it("served one fixed IPI to one physical destination until v6.18, and nothing else of the ICR", () => {
      for (
        const [low, destination, fast] of [
          [VECTOR, 1, true],
          [VECTOR, 99, true], // Nobody's.
          [0x4000 | VECTOR, 1, true], // Its level does not matter.
          [0x400, 1, false], // An NMI.
          [0x800 | VECTOR, 0b10, false],
          [0x4_0000 | VECTOR, 0, false],
          [0xc_0000 | VECTOR, 0, false],
          [VECTOR, 0xffff_ffff, false],
        ] as const
      ) {
        const rig = tracingRig({ vm: { backend, hostSemantics: "2021", vcpus: 2 } });
        const module = rig.vm.vcpus[0].backend;
        const served: FastPath[] = [];
        const { fastPath } = module;
        module.fastPath = () => {
          served.push(fastPath.call(module));
          return served.at(-1)!;
        };
        rig.finish(function* (cpu) {
          yield* enter(cpu, "x2apic");
          const from = mark(rig.vm);
          yield cpu.wrmsr(X2APIC_ICR, low, destination);
          assertEquals(served.at(-1), fast ? FastPath.Handled : FastPath.None);
          // Whichever serves it, it is sent and traced before it is delivered.
          const sent = chain(rig.vm, from, ["kvm_apic_accept_irq", "kvm_apic_ipi", "kvm_apic", "kvm_msr"]);
          assertEquals(sent.filter((event) => event !== "kvm_apic_accept_irq"), [
            "kvm_apic_ipi",
            "kvm_apic",
            "kvm_msr",
          ]);
          assertEquals(sent[0], "kvm_apic_ipi");
        });
      }
    });

    for (const host of ["2018", "2012"] as const) {
      it(`does not exist (${host})`, () => {
        assertEquals(ways(host), Object.fromEntries(ROWS.map(([what]) => [what, "slow"])));
      });
    }

    it("leaves an ICR value with reserved bits to the slow path, which raises #GP", () => {
      const rig = tracingRig({ vm: { backend, vcpus: 2 } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        const from = mark(rig.vm);
        assertEquals(yield* completes(cpu.wrmsr(X2APIC_ICR, 0x2000 | VECTOR, 1)), false);
        assertEquals(chain(rig.vm, from, ["kvm_apic_accept_irq", "kvm_apic_ipi", "kvm_apic"]), []);
        assertEquals(eventsOf(rig.vm, "kvm_msr", from).map(({ args }) => args), [[
          1,
          X2APIC_ICR,
          0x2041,
          1,
          1,
        ]]);
      });
    });

    it("raises #GP for the ICR in xAPIC mode, as the slow path does", () => {
      const rig = tracingRig({ vm: { backend, vcpus: 2 } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        assertEquals(yield* completes(cpu.wrmsr(X2APIC_ICR, VECTOR, 1)), false);
      });
      assertEquals(rig.vm.counters()["kvm_apic_accept_irq"], undefined);
    });

    it("goes round after all where the sender means itself: the interrupt must be injected", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.on(VECTOR, function* (cpu) {
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        yield cpu.pause();
        const from = mark(rig.vm);
        yield cpu.wrmsr(X2APIC_ICR, 0x4_0000 | VECTOR);
        assertEquals(chain(rig.vm, from).slice(0, 7), [
          "kvm_exit",
          "kvm_apic_accept_irq",
          "kvm_apic_ipi",
          "kvm_apic",
          "kvm_msr",
          "kvm_inj_virq",
          "kvm_entry",
        ]);
      });
    });

    it("goes round where the deadline is past: the timer's interrupt is delivered before the next instruction", () => {
      const rig = tracingRig({ vm: { backend } });
      let taken = 0;
      rig.on(VECTOR, function* (cpu) {
        taken++;
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(0x832, DEADLINE_MODE);
        yield cpu.sti();
        yield cpu.pause();
        yield cpu.wrmsr(IA32_TSC_DEADLINE, 1);
        assertEquals(taken, 1);
      });
    });

    it("ends a HLT for which a kick came before it, on hosts that have one for HLT", () => {
      for (const [hostSemantics, way] of [["v6.19", "fast"], ["2018", "slow"]] as const) {
        const rig = tracingRig({ vm: { backend, hostSemantics } });
        rig.finish(function* (cpu) {
          yield* enter(cpu, "x2apic");
          yield cpu.loadHypercall(5, 0, 0).vmcall();
          assertEquals(yield* wayBack(cpu, rig.vm, cpu.hlt()), way);
        });
      }
    });

    it("ends a HLT behind STI for which an interrupt waits, with one exit more: the window's", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.on(VECTOR, function* (cpu) {
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_ICR, 0x4_0000 | VECTOR);
        yield cpu.sti();
        const from = mark(rig.vm);
        yield cpu.hlt();
        assertEquals(chain(rig.vm, from).slice(0, 5), [
          "kvm_exit",
          "kvm_entry",
          "kvm_exit",
          "kvm_inj_virq",
          "kvm_entry",
        ]);
        assertEquals(rig.vm.bootstrap.stats.halt_exits, 1);
        assertEquals(rig.vm.counters()["kvm_vcpu_wakeup"], undefined, "it never blocked");
      });
    });
  });
}
