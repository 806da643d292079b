import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { IA32_TSC_DEADLINE, X2APIC_EOI, X2APIC_ICR, X2APIC_SELF_IPI, type X86Cpu } from "../../../abi/mod.ts";
import type { BackendName, HostSemantics, Tracepoint } from "../../../host/mod.ts";
import { enter, lookAtEvents } from "../../support/apic.ts";
import { chain, eventsOf, mark, tracingRig } from "../../support/events.ts";

const APIC = 0xfee0_0000;
const MMIO = 0xd000_0000;
const VECTOR = 0x41;

/** An instruction, and the tracepoints that fire, in order, between its exit and the next entry (KVM v6.19's calls). */
interface Chain {
  readonly what: string;
  readonly mode?: "xapic" | "x2apic";
  readonly backends?: readonly BackendName[];
  readonly host?: HostSemantics;
  /** Whether vector 0x51 is in service. */
  readonly inService?: boolean;
  readonly op: (cpu: X86Cpu) => number;
  readonly fires: readonly Tracepoint[];
}

/** How an access to the APIC's page gets to KVM's local APIC: by a fault on a page that nothing backs. */
const FAULT: readonly Tracepoint[] = ["kvm_page_fault", "kvm_emulate_insn"];
/** A trip to user space and back. */
const USERSPACE: readonly Tracepoint[] = ["kvm_userspace_exit", "kvm_fpu", "kvm_fpu"];

const CHAINS: readonly Chain[] = [
  { what: "CPUID", op: (cpu) => cpu.cpuid(0), fires: ["kvm_cpuid"] },
  { what: "WBINVD", op: (cpu) => cpu.wbinvd(), fires: [] },
  { what: "a hypercall", op: (cpu) => cpu.loadHypercall(1).vmcall(), fires: ["kvm_hypercall"] },
  { what: "a write of CR4", op: (cpu) => cpu.movToCr4(0x60), fires: ["kvm_cr"] },
  {
    what: "an EOI, x2APIC",
    mode: "x2apic",
    inService: true,
    op: (cpu) => cpu.wrmsr(X2APIC_EOI, 0),
    fires: ["kvm_apic", "kvm_eoi", "kvm_msr"],
  },
  {
    what: "an EOI of nothing, x2APIC",
    mode: "x2apic",
    op: (cpu) => cpu.wrmsr(X2APIC_EOI, 0),
    fires: ["kvm_apic", "kvm_eoi", "kvm_msr"],
  },
  {
    what: "an EOI, xAPIC",
    mode: "xapic",
    inService: true,
    op: (cpu) => cpu.store32(APIC + 0x0b0, 0),
    fires: [...FAULT, "kvm_mmio", "kvm_apic", "kvm_eoi"],
  },
  {
    what: "an EOI, xAPIC, through the APIC-access page: nothing is decoded",
    mode: "xapic",
    backends: ["vmx"],
    host: "2018",
    inService: true,
    op: (cpu) => cpu.store32(APIC + 0x0b0, 0),
    fires: ["kvm_apic", "kvm_eoi"],
  },
  {
    what: "another register, xAPIC, through the APIC-access page",
    mode: "xapic",
    backends: ["vmx"],
    host: "2018",
    op: (cpu) => cpu.store32(APIC + 0x370, 0x1_0000),
    fires: ["kvm_emulate_insn", "kvm_mmio", "kvm_apic"],
  },
  {
    what: "an ICR write, x2APIC, by the fast path",
    mode: "x2apic",
    op: (cpu) => cpu.wrmsr(X2APIC_ICR, 0x800 | VECTOR, 0b110),
    fires: ["kvm_apic_accept_irq", "kvm_apic_accept_irq", "kvm_apic_ipi", "kvm_apic", "kvm_msr"],
  },
  {
    what: "an ICR write, x2APIC, by the slow path",
    mode: "x2apic",
    host: "2018",
    op: (cpu) => cpu.wrmsr(X2APIC_ICR, 0x800 | VECTOR, 0b110),
    fires: ["kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_apic_accept_irq", "kvm_apic", "kvm_msr"],
  },
  {
    what: "an ICR write to all others, x2APIC: not for the fast path",
    mode: "x2apic",
    op: (cpu) => cpu.wrmsr(X2APIC_ICR, 0xc_0000 | VECTOR),
    fires: ["kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_apic_accept_irq", "kvm_apic", "kvm_msr"],
  },
  {
    what: "an ICR write, xAPIC",
    mode: "xapic",
    op: (cpu) => cpu.store32(APIC + 0x300, 0xc_0000 | VECTOR),
    fires: [...FAULT, "kvm_mmio", "kvm_apic", "kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_apic_accept_irq"],
  },
  {
    what: "a self-IPI",
    mode: "x2apic",
    op: (cpu) => cpu.wrmsr(X2APIC_SELF_IPI, VECTOR),
    fires: ["kvm_apic", "kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_msr"],
  },
  {
    what: "a read of the ICR, x2APIC: the only register whose read is not traced as one",
    mode: "x2apic",
    op: (cpu) => cpu.rdmsr(X2APIC_ICR),
    fires: ["kvm_msr"],
  },
  {
    what: "a read of another register, x2APIC",
    mode: "x2apic",
    op: (cpu) => cpu.rdmsr(0x803),
    fires: ["kvm_apic", "kvm_msr"],
  },
  {
    what: "a read of a register, xAPIC",
    mode: "xapic",
    op: (cpu) => cpu.load32(APIC + 0x030),
    fires: [...FAULT, "kvm_apic", "kvm_mmio"],
  },
  {
    what: "a PV IPI",
    mode: "x2apic",
    op: (cpu) => cpu.loadHypercall(10, 0b110, 0, 0, VECTOR).vmcall(),
    fires: ["kvm_hypercall", "kvm_apic_accept_irq", "kvm_apic_accept_irq"],
  },
  {
    what: "a kick",
    mode: "x2apic",
    op: (cpu) => cpu.loadHypercall(5, 0, 1).vmcall(),
    fires: ["kvm_hypercall", "kvm_apic_accept_irq"],
  },
  {
    what: "a TSC deadline while the timer is in another mode",
    mode: "x2apic",
    op: (cpu) => cpu.wrmsr(IA32_TSC_DEADLINE, 1),
    fires: ["kvm_msr"],
  },
  { what: "OUT to user space", op: (cpu) => cpu.out8(0x80, 1), fires: ["kvm_pio", ...USERSPACE] },
  { what: "IN from user space", op: (cpu) => cpu.in8(0x60), fires: [...USERSPACE, "kvm_pio"] },
  {
    what: "an MMIO write to user space",
    op: (cpu) => cpu.store32(MMIO, 1),
    fires: [...FAULT, "vcpu_match_mmio", "kvm_mmio", ...USERSPACE],
  },
  {
    what: "an MMIO read from user space: its answer is traced apart",
    op: (cpu) => cpu.load32(MMIO),
    fires: [...FAULT, "vcpu_match_mmio", "kvm_mmio", ...USERSPACE, "kvm_mmio"],
  },
];

for (const backend of ["vmx", "svm"] as const) {
  describe(`tracepoints fire in KVM's order (${backend})`, () => {
    for (const { what, mode, backends, host, inService, op, fires } of CHAINS) {
      if (backends !== undefined && !backends.includes(backend)) continue;
      it(what + (host === undefined ? "" : ` (${host})`), () => {
        const rig = tracingRig({
          vm: { backend, vcpus: 3, ...(host === undefined ? {} : { hostSemantics: host }) },
        });
        let looked = false;
        const look = function* (cpu: X86Cpu) {
          const from = mark(rig.vm);
          yield op(cpu);
          assertEquals(chain(rig.vm, from), ["kvm_exit", ...fires, "kvm_entry"]);
          looked = true;
        };
        rig.on(0x51, look).finish(function* (cpu) {
          yield cpu.loadHypercall(1).vmcall(); // On AMD the first one is rewritten, in each function.
          if (mode !== undefined) yield* enter(cpu, mode);
          yield* lookAtEvents(cpu);
          if (!inService) return yield* look(cpu);
          yield cpu.sti();
          if (mode === "x2apic") yield cpu.wrmsr(X2APIC_SELF_IPI, 0x51);
          else yield cpu.store32(APIC + 0x300, 0x4_0051);
          yield cpu.cli();
        });
        assertEquals(looked, true);
      });
    }
  });

  describe(`what tracepoints record (${backend})`, () => {
    it("an EOI's vector is -1 where nothing is in service", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      assertEquals(eventsOf(rig.vm, "kvm_eoi").map(({ args }) => [args[0], args[1] | 0]), [[0, -1]]);
    });

    it("an exit's RIP is at the instruction, an entry's behind it", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.finish(function* (cpu) {
        const from = mark(rig.vm);
        yield cpu.cpuid(0);
        const [exit] = eventsOf(rig.vm, "kvm_exit", from);
        const [entry] = eventsOf(rig.vm, "kvm_entry", from);
        assertEquals(entry.args[0] - exit.args[1], 2, "CPUID has two bytes");
      });
    });

    it("an access's delivery is traced even where it is dropped", () => {
      const rig = tracingRig({ vm: { backend, vcpus: 2 } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_ICR, VECTOR, 1); // Software has not enabled vCPU 1's APIC.
      });
      assertEquals(eventsOf(rig.vm, "kvm_apic_accept_irq").map(({ args }) => args.slice(0, 4)), [[
        1,
        0,
        0,
        VECTOR,
      ]]);
      assertEquals(rig.vm.vcpus[1].lapic.highestIrr(), -1);
    });
  });
}
