import { assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_ID, IA32_APICBASE } from "../../../abi/mod.ts";
import { setApicvInhibit } from "../../../host/kvm/apicv.ts";
import type { Vm, VmOptions } from "../../../host/mod.ts";
import { booted, no, said, yes } from "../../support/explain.ts";
import { KernelRig, type KernelRigOptions } from "../../support/kernels.ts";

const NO_APICV = 'the processor has no "APIC-register virtualization" (vapic_reg)';
const NO_IPIV = 'the processor has no "IPI virtualization" (ipi_virt)';

describe("VMX: APICv", () => {
  it("is in use where the processor has it and nothing is against it, and posted interrupts with it", () => {
    const vm = booted({ vm: { acceleration: "apicv" } });
    yes(vm, "APICv", "nothing inhibits it");
    yes(vm, "posted interrupts", "what is accepted is posted");
    no(vm, "IPI virtualization", NO_IPIV);
  });

  it("is not on a processor without it", () => {
    const vm = booted();
    no(vm, "APICv", NO_APICV);
    no(vm, "posted interrupts", `it needs APICv: ${NO_APICV}`);
    no(vm, "IPI virtualization", `it needs APICv: ${NO_APICV}`);
  });

  it("is not with its parameter off, nor is what goes with it", () => {
    const vm = booted({ vm: { acceleration: "ipiv", apicv: false } });
    const why = "module parameter enable_apicv is off";
    no(vm, "APICv", why);
    no(vm, "posted interrupts", `it needs APICv: ${why}`);
    no(vm, "IPI virtualization", `it needs APICv: ${why}`);
  });

  it("is not in 2012, nor IPI virtualization in 2018", () => {
    const of2012 = said(booted({ vm: { acceleration: "ipiv", hostSemantics: "2012" } }), "APICv");
    assertEquals(of2012.inUse, false);
    assertStringIncludes(of2012.why, "KVM of that year does not know it");
    const vm = booted({ vm: { acceleration: "ipiv", hostSemantics: "2018" } });
    yes(vm, "APICv", "nothing inhibits it");
    const ipiv = said(vm, "IPI virtualization");
    assertEquals(ipiv.inUse, false);
    assertStringIncludes(ipiv.why, "KVM of that year knows no tertiary controls");
  });

  it("goes with IPI virtualization, unless the parameter of that is off", () => {
    const on = booted({ vm: { acceleration: "ipiv" } });
    yes(on, "IPI virtualization", "fixed, edge-triggered IPIs to one physical ID do not exit");
    const off = booted({ vm: { acceleration: "ipiv", ipiv: false } });
    yes(off, "APICv", "nothing inhibits it");
    no(off, "IPI virtualization", "module parameter enable_ipiv is off");
  });

  it("gives way to what inhibits it, from the next entry on, and comes back", () => {
    const why = "inhibited by BLOCKIRQ, as user space debugs the guest with interrupts blocked";
    const rig = new KernelRig({ cpus: 2, vm: { vcpus: 2, acceleration: "ipiv" } });
    const { vm } = rig;
    rig.run(function* (cpu) {
      yield cpu.cpuid(0);
      setApicvInhibit(vm, "BLOCKIRQ", true);
      yes(vm, "APICv", `until the next entry: ${why}`);
      yield cpu.cpuid(0);
      const [awake, asleep] = vm.explain().filter(({ path }) => path === "APICv");
      assertEquals(awake, { path: "APICv", inUse: false, why, vcpus: [0] });
      // The other one sleeps: it has not entered since.
      assertEquals(asleep, { path: "APICv", inUse: true, why: `until the next entry: ${why}`, vcpus: [1] });
      const ipiv = vm.explain().find(({ path }) => path === "IPI virtualization")!;
      assertEquals([ipiv.inUse, ipiv.why], [false, `it needs APICv: ${why}`]);
      setApicvInhibit(vm, "BLOCKIRQ", false);
      const row = vm.explain().find(({ path, vcpus }) => path === "APICv" && vcpus.includes(0))!;
      assertEquals([row.inUse, row.why], [false, "from the next entry on nothing inhibits it"]);
      yield cpu.cpuid(0);
      yes(vm, "APICv", "nothing inhibits it");
    });
  });

  it("names every reason that there is", () => {
    const vm = booted({ vm: { acceleration: "apicv" } });
    setApicvInhibit(vm, "HYPERV", true);
    setApicvInhibit(vm, "ABSENT", true);
    assertEquals(
      said(vm, "APICv").why,
      "until the next entry: inhibited by HYPERV, as the guest uses Hyper-V's AutoEOI; " +
        "ABSENT, as the local APIC is not in the kernel",
    );
  });

  it("is not for a vCPU whose local APIC is disabled; the others keep it", () => {
    const rig = new KernelRig({
      cpus: 3,
      vm: { vcpus: 3, acceleration: "apicv" },
      *secondary(cpu) {
        yield cpu.load32(cpu.gsBase);
        if (cpu.eax === 2) yield cpu.wrmsr(IA32_APICBASE, 0xfee0_0000);
        for (;;) yield cpu.hlt();
      },
    });
    const { vm } = rig.run(function* (cpu) {
      yield cpu.work(1_000_000);
    });
    const rows = vm.explain().filter(({ path }) => path === "APICv");
    assertEquals(rows, [
      { path: "APICv", inUse: true, why: "nothing inhibits it", vcpus: [0, 1] },
      { path: "APICv", inUse: false, why: "the local APIC is disabled", vcpus: [2] },
    ]);
    const icr = vm.explain().filter(({ path }) => path === "ICR fast path");
    assertEquals(icr.map(({ inUse, vcpus }) => [inUse, vcpus]), [[true, [0, 1]], [false, [2]]]);
    assertEquals(icr[1].why, "the local APIC is disabled");
  });

  it("is inhibited by an xAPIC ID that the guest changes", () => {
    const rig = new KernelRig({ cpus: 2, apic: "xapic", vm: { vcpus: 2, acceleration: "apicv" } });
    const { vm } = rig;
    rig.run(function* (cpu) {
      yield cpu.store32(0xfee0_0000 + APIC_ID, 7 << 24);
      yield cpu.cpuid(0);
      const row = vm.explain().find(({ path, vcpus }) => path === "APICv" && vcpus.includes(0))!;
      assertEquals([row.inUse, row.why], [
        false,
        "inhibited by APIC_ID_MODIFIED, as an xAPIC ID is not the vCPU's number",
      ]);
    });
  });
});

describe("VMX: x2APIC virtualization", () => {
  it("is for x2APIC mode, for all that APICv virtualizes, or for the TPR alone", () => {
    yes(
      booted({ vm: { acceleration: "apicv" } }),
      "x2APIC virtualization",
      "reads do not exit, nor do writes of the TPR, the EOI and the self-IPI register",
    );
    yes(booted(), "x2APIC virtualization", `for the TPR alone, as without APICv: ${NO_APICV}`);
    no(
      booted({ apic: "xapic", vm: { acceleration: "apicv" } }),
      "x2APIC virtualization",
      "the local APIC is in xAPIC mode",
    );
    assertEquals(said(booted({ vm: { hostSemantics: "2012" } }), "x2APIC virtualization").inUse, false);
  });
});

describe("SVM: AVIC", () => {
  const svm = (options: VmOptions = {}, rest: KernelRigOptions = {}): Vm =>
    booted({ ...rest, vm: { backend: "svm", acceleration: "x2avic", ...options } });

  it("is in use in both modes where there is x2AVIC", () => {
    const vm = svm();
    yes(vm, "AVIC", "nothing inhibits it");
    yes(vm, "x2AVIC", "the MSRs of the x2APIC reach its page");
    yes(vm, "AVIC's IPIs", "fixed, edge-triggered IPIs exit only if a target does not run");
    const xapic = svm({}, { apic: "xapic" });
    yes(xapic, "AVIC", "nothing inhibits it");
    no(xapic, "x2AVIC", "the local APIC is in xAPIC mode");
    yes(xapic, "AVIC's IPIs", "fixed, edge-triggered IPIs exit only if a target does not run");
  });

  it("rings doorbells alone in x2APIC mode without x2AVIC", () => {
    const vm = svm({ acceleration: "avic" });
    yes(vm, "AVIC", "nothing inhibits it");
    no(vm, "x2AVIC", "the processor has no x2AVIC");
    no(vm, "AVIC's IPIs", "in x2APIC mode they need x2AVIC: writes of the ICR exit");
    no(vm, "AVIC's kick without a search", "IPIs are not AVIC's here, and none is incomplete");
    yes(vm, "ICR fast path", "for whatever the APIC map resolves");
  });

  it("is not without it, with its parameter off, or before v4.7", () => {
    no(svm({ acceleration: "none" }), "AVIC", "the processor has no AVIC");
    no(svm({ apicv: false }), "AVIC", "module parameter avic is off");
    no(svm({ hostSemantics: "2012" }), "AVIC", "KVM of 2012 does not know AVIC: it came in v4.7");
  });

  it("is not in 2021 where the guest may use x2APIC mode, and knows no x2AVIC there", () => {
    no(
      svm({ hostSemantics: "2021" }),
      "AVIC",
      "inhibited by X2APIC, as the guest may use x2APIC mode, which this host's KVM cannot accelerate",
    );
    const vm = svm({ hostSemantics: "2021", x2apic: false }, { apic: "xapic" });
    yes(vm, "AVIC", "nothing inhibits it");
    no(vm, "x2AVIC", "KVM of 2021 does not know x2AVIC: it came in v6.0");
  });

  it("sends no IPI to who runs, as far as hardware sees, with IPI virtualization off", () => {
    no(
      svm({ ipiv: false }),
      "AVIC's IPIs",
      "module parameter enable_ipiv is off: no target seems to run, and each IPI exits",
    );
  });

  it("finds halted targets as it is told, or as its year does", () => {
    const path = "AVIC's kick without a search";
    yes(svm(), path, "every target is looked up; for shorthands and physical broadcasts every vCPU is asked");
    yes(
      svm({ hostSemantics: "2022" }),
      path,
      "as of 2022: one target is looked up; for shorthands every vCPU is asked",
    );
    no(svm({ avicKick: "slow" }), path, "it is told to ask every vCPU");
    no(
      svm({ hostSemantics: "2021", x2apic: false }, { apic: "xapic" }),
      path,
      "KVM of 2021 asks every vCPU: looking targets up came in v5.19",
    );
  });
});
