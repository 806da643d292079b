import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { X2APIC_EOI, X2APIC_ICR } from "../../../abi/mod.ts";
import {
  BACKENDS,
  formatRecord,
  LimitExceeded,
  Machine,
  NOBODY,
  RECORD_WORDS,
  RING_LIMIT,
  TP,
  type Tracepoint,
  TRACEPOINTS,
  Tracer,
  type TraceRecord,
} from "../../../host/mod.ts";
import { enter, tryingRig } from "../../support/apic.ts";
import { startAps } from "../../support/guests.ts";
import { play, plots } from "../../support/random_guests.ts";

/** The rows of the 2012 `perf stat` table (the patch that introduced PV EOI), in its order. */
const TABLE_OF_2012 = [
  "kvm_entry, kvm_hypercall, kvm_hv_hypercall, kvm_pio, kvm_cpuid, kvm_apic, kvm_exit, kvm_inj_virq",
  "kvm_inj_exception, kvm_page_fault, kvm_msr, kvm_cr, kvm_pic_set_irq, kvm_apic_ipi, kvm_apic_accept_irq",
  "kvm_eoi, kvm_pv_eoi, kvm_nested_vmrun, kvm_nested_intercepts, kvm_nested_vmexit, kvm_nested_vmexit_inject",
  "kvm_nested_intr_vmexit, kvm_invlpga, kvm_skinit, kvm_emulate_insn, vcpu_match_mmio, kvm_userspace_exit",
  "kvm_set_irq, kvm_ioapic_set_irq, kvm_msi_set_irq, kvm_ack_irq, kvm_mmio, kvm_fpu, kvm_age_page",
  "kvm_try_async_get_page, kvm_async_pf_doublefault, kvm_async_pf_not_present, kvm_async_pf_ready",
  "kvm_async_pf_completed",
].join(", ").split(", ");

describe("the table of tracepoints", () => {
  it("is in the order of the 2012 table, as far as that goes, and later ones are marked", () => {
    const old = TRACEPOINTS.filter(({ in2012 }) => in2012).map(({ name }) => name);
    assertEquals(old, TABLE_OF_2012.filter((name) => old.includes(name)));
    for (const { name, in2012 } of TRACEPOINTS) assertEquals(in2012, TABLE_OF_2012.includes(name), name);
  });

  it("has room in a record for what each records, and says when it fires", () => {
    for (const { name, args, fires } of TRACEPOINTS) {
      const words = args.reduce((sum, [, format]) => sum + (format === "hex64" ? 2 : 1), 0);
      assert(words <= RECORD_WORDS - 3, `${name} records ${words} words`);
      assert(fires.length > 0 && !fires.endsWith("."), name);
    }
  });

  it("numbers them by their place", () => {
    for (const [number, { name }] of TRACEPOINTS.entries()) assertEquals(TP[name as Tracepoint], number);
    assert(TRACEPOINTS.length <= 256, "a record has eight bits for the number");
  });
});

describe("a tracer", () => {
  it("keeps the last records, oldest first, and tells how many it lost, whatever the numbers", () => {
    const record = fc.record({
      event: fc.nat(TRACEPOINTS.length - 1),
      vcpu: fc.integer({ min: NOBODY, max: 1023 }),
      time: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
      args: fc.array(fc.integer({ min: 0, max: 0xffff_ffff }), { minLength: 5, maxLength: 5 }),
    });
    fc.assert(
      fc.property(fc.array(record, { maxLength: 40 }), fc.integer({ min: 1, max: 16 }), (all, ring) => {
        const tracer = new Tracer(ring);
        for (const { event, vcpu, time, args: [a, b, c, d, e] } of all) {
          tracer.record(event, vcpu, time, a, b, c, d, e);
        }
        assertEquals([...tracer.records()], all.slice(-ring).map((r) => ({ ...r })));
        assertEquals(tracer.lost, Math.max(0, all.length - ring));
        assertEquals(tracer.bytes().length, 32 * Math.min(ring, all.length));
        const again = new Tracer(Math.max(1, Math.min(ring, all.length)));
        for (const { event, vcpu, time, args: [a, b, c, d, e] } of all.slice(-ring)) {
          again.record(event, vcpu, time, a, b, c, d, e);
        }
        assertEquals(
          again.bytes(),
          tracer.bytes(),
          "the same records are the same bytes, wherever they stand",
        );
      }),
    );
  });

  it("keeps negative words as they print: -1 stays -1", () => {
    const tracer = new Tracer(1);
    tracer.record(TP.kvm_eoi, 0, 0, 0, -1, 0, 0, 0);
    const [record] = tracer.records();
    assertEquals(record.args[1], 0xffff_ffff);
    assertEquals(formatRecord(record, String).endsWith("vector -1"), true);
  });

  it("counts without keeping anything where no ring is asked for", () => {
    const tracer = new Tracer();
    assertEquals(tracer.recording, false);
    const { counts, start } = tracer.addVcpu(0);
    counts[start + TP.kvm_exit] += 3;
    assertEquals([tracer.count(TP.kvm_exit, 0), tracer.count(TP.kvm_exit, NOBODY)], [3, 0]);
    assertEquals(tracer.total(TP.kvm_exit), 3);
    assertEquals([...tracer.records()], []);
    assertEquals([tracer.lost, tracer.bytes().length], [0, 0]);
  });

  it("has what is counted late added up before anybody looks", () => {
    const tracer = new Tracer();
    let late = 2;
    const { counts, start } = tracer.addVcpu(0, () => {
      counts[start + TP.kvm_entry] += late;
      late = 0;
    });
    counts[start + TP.kvm_entry]++;
    assertEquals([tracer.count(TP.kvm_exit, NOBODY), late], [0, 2], "another row");
    assertEquals([tracer.count(TP.kvm_entry, 0), late], [3, 0]);
    late = -1;
    assertEquals([tracer.total(TP.kvm_entry), late], [2, 0]);
    late = 5;
    assertEquals([tracer.exits(0).length, late], [0, 0]);
  });

  it("refuses rings that cannot be", () => {
    for (const ring of [-1, 1.5, RING_LIMIT + 1, NaN, Infinity]) {
      assertThrows(() => new Tracer(ring), RangeError, `Cannot keep ${ring} trace records`);
    }
  });
});

describe("records as text", () => {
  const text = (event: Tracepoint, vcpu: number, time: number, ...args: number[]) =>
    formatRecord(
      { event: TP[event], vcpu, time, args: [...args, 0, 0, 0, 0, 0].slice(0, 5) } satisfies TraceRecord,
      (reason) => `EXIT_${reason}`,
    );

  it("have who, when, what, and each argument by its name", () => {
    assertEquals(
      text("kvm_exit", 12, 1_234_567, 32, 0x10_0008, 0xffff_ffff, 0x1),
      " vcpu12        1234567: kvm_exit: reason EXIT_32 rip 0x100008 info1 0x1ffffffff",
    );
    assertEquals(text("kvm_entry", 0, 5, 0x10_0004, 0), "  vcpu0              5: kvm_entry: rip 0x100004");
  });

  it("name nobody with a dash", () => {
    assertEquals(
      text("kvm_msi_set_irq", NOBODY, 0, 0xfee0_1000, 0, 0x41),
      "      -              0: kvm_msi_set_irq: address 0xfee01000 data 0x41",
    );
  });

  for (
    const [event, args, expected] of [
      ["kvm_hypercall", [10, 0, 0b1110, 0x8000_0000], "nr 0xa a0 0x800000000000000e"],
      ["kvm_pio", [1, 0x3f8, 1, 0x41], "write 1 port 0x3f8 size 1 val 0x41"],
      ["kvm_cpuid", [0x4000_0001, 0, 0x38c2, 1], "func 0x40000001 index 0x0 eax 0x38c2 found 1"],
      ["kvm_apic", [1, 0x0b0, 0, 0], "write 1 reg APIC_EOI val 0x0"],
      ["kvm_apic", [1, 0x300, 0x41, 7], "write 1 reg APIC_ICR val 0x700000041"],
      ["kvm_apic", [0, 0x110, 0, 0], "write 0 reg 0x110 val 0x0"],
      ["kvm_inj_virq", [0x51, 1], "irq 81 reinjected 1"],
      ["kvm_msr", [1, 0x4b56_4d04, 0x2_0101, 0, 0], "write 1 msr KVM_PV_EOI_EN data 0x20101 exception 0"],
      ["kvm_msr", [0, 0x80b, 0, 0, 1], "write 0 msr x2APIC+0x0b0 data 0x0 exception 1"],
      ["kvm_msr", [0, 0x1234, 0, 0, 1], "write 0 msr 0x1234 data 0x0 exception 1"],
      ["kvm_apic_ipi", [0xc_4500, 0], "icr_low 0xc4500 dest 0x0"],
      ["kvm_apic_accept_irq", [3, 0, 0, 0x41], "apicid 0x3 delivery_mode Fixed trig_mode 0 vec 65"],
      ["kvm_eoi", [0, 0x51], "apicid 0x0 vector 81"],
      ["kvm_page_fault", [0x1000, 1, 0x181], "address 0x100001000 error_code 0x181"],
      ["kvm_vcpu_wakeup", [120_000, 1, 1], "ns 120000 waited 1 valid 1"],
    ] as [Tracepoint, number[], string][]
  ) {
    it(`print ${event}: ${expected}`, () => {
      assertEquals(text(event, 0, 0, ...args).slice(24), `${event}: ${expected}`);
    });
  }
});

for (const backend of BACKENDS) {
  describe(`the counters of a virtual machine (${backend})`, () => {
    it("are the same whether or not events are recorded", () => {
      fc.assert(
        fc.property(plots, (plot) => {
          const counted = play(plot, { vm: { backend, trace: 0 } });
          const recorded = play(plot, { vm: { backend, trace: 1 << 16 } });
          assertEquals(recorded.counters, counted.counters);
          assertEquals(recorded.exits, counted.exits);
          assertEquals(recorded.clocks, counted.clocks, "recording takes no simulated time");
          const { vm } = recorded.rig;
          assertEquals(vm.tracer.lost, 0);
          const seen: Record<string, number> = {};
          for (const { event } of vm.tracer.records()) {
            const { name } = TRACEPOINTS[event];
            seen[name] = (seen[name] ?? 0) + 1;
          }
          assertEquals(seen, recorded.counters, "what is counted is what is recorded");
        }),
        { numRuns: 15 },
      );
    });

    it("add up: events over vCPUs and nobody, exits over reasons, and each exit is followed by an entry", () => {
      fc.assert(
        fc.property(plots, (plot) => {
          const { rig: { vm }, counters, exits } = play(plot, { vm: { backend, trace: 1 << 16 } });
          for (const [number, { name }] of TRACEPOINTS.entries()) {
            const rows = [NOBODY, ...vm.vcpus.keys()].map((who) => vm.tracer.count(number, who));
            assertEquals(rows.reduce((a, b) => a + b), counters[name] ?? 0, name);
          }
          assertEquals(Object.values(exits).reduce((a, b) => a + b), counters["kvm_exit"]);
          assertEquals(vm.machine.exits, counters["kvm_exit"]);
          const inGuest = new Map<number, boolean>();
          for (const { event, vcpu, time, args } of vm.tracer.records()) {
            const where = `vCPU ${vcpu} at ${time}: ${TRACEPOINTS[event].name} ${args}`;
            if (event === TP.kvm_entry) {
              assertEquals(inGuest.get(vcpu) ?? false, false, where);
              inGuest.set(vcpu, true);
            } else if (event === TP.kvm_exit) {
              assertEquals(inGuest.get(vcpu), true, where);
              inGuest.set(vcpu, false);
            } else if (event === TP.kvm_inj_virq || event === TP.kvm_eoi || event === TP.kvm_msr) {
              assertEquals(inGuest.get(vcpu) ?? false, false, where);
            }
          }
        }),
        { numRuns: 15 },
      );
    });

    it("leave out what did not happen", () => {
      const rig = tryingRig({ vm: { backend } });
      assertEquals([rig.vm.counters(), rig.vm.exits()], [{}, {}]);
      rig.finish(function* (cpu) {
        yield cpu.cpuid(0);
      });
      const halt = backend === "vmx" ? "HLT" : "hlt";
      assertEquals(rig.vm.exits(), { [backend === "vmx" ? "CPUID" : "cpuid"]: 1, [halt]: 1 });
      assertEquals(rig.vm.counters(), { kvm_entry: 2, kvm_cpuid: 1, kvm_exit: 2, kvm_fpu: 1 });
    });

    it("tell whose event it was: what a vCPU causes at others is its own", () => {
      const rig = tryingRig({ vm: { backend, vcpus: 3 } });
      rig.aps(function* (cpu) {
        yield* enter(cpu, "x2apic");
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* startAps(cpu, 2);
        yield cpu.work(1_000_000);
        const before = rig.vm.tracer.count(TP.kvm_apic_accept_irq, 0);
        yield cpu.wrmsr(X2APIC_ICR, 0xc_0041);
        assertEquals(rig.vm.tracer.count(TP.kvm_apic_accept_irq, 0), before + 2);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      const eois = [0, 1, 2].map((vcpu) => rig.vm.tracer.count(TP.kvm_eoi, vcpu));
      assertEquals(eois, [1, 0, 0]);
      assertEquals(rig.vm.tracer.count(TP.kvm_apic_accept_irq, 1), 0);
    });

    it("of two virtual machines on one machine are apart; the machine counts both's exits", () => {
      const rigs = [tryingRig({ vm: { backend } })];
      const { machine } = rigs[0].vm;
      const other = machine.createVm({ backend, memory: 2 ** 21 });
      rigs[0].start(function* (cpu) {
        yield cpu.cpuid(0);
      });
      other.load(rigs[0].text);
      other.start(rigs[0].text.blocks.at(-1)!.address);
      machine.run();
      const exits = rigs[0].vm.counters()["kvm_exit"];
      assertEquals(other.counters()["kvm_exit"], exits);
      assertEquals(machine.exits, 2 * exits);
    });

    it("stop a run at the limit of exits, naming it and how to raise it", () => {
      const rig = tryingRig({ machine: { limits: { exits: 10 } }, vm: { backend } });
      assertThrows(
        () =>
          rig.run(function* (cpu) {
            for (;;) yield cpu.cpuid(0);
          }),
        LimitExceeded,
        "the limit of 10 exits is reached; raise limits.exits to allow more",
      );
    });
  });
}

describe("a virtual machine's ring", () => {
  it("is as large as its option says, and refused where it cannot be", () => {
    assertThrows(
      () => new Machine().createVm({ memory: 0, trace: -1 }),
      RangeError,
      "Cannot keep -1 trace records",
    );
    const rig = tryingRig({ vm: { trace: 4 } });
    rig.finish(function* (cpu) {
      for (let i = 0; i < 10; i++) yield cpu.cpuid(0);
    });
    assertEquals([...rig.vm.tracer.records()].length, 4);
    assertEquals(rig.vm.tracer.lost > 20, true);
  });
});
