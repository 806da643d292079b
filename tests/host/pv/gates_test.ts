import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { type KvmFeature, MSR_KVM_POLL_CONTROL, MSR_KVM_PV_EOI_EN, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, type HostSemantics, type VmOptions } from "../../../host/mod.ts";
import { type Asking, completes, tryingRig } from "../../support/apic.ts";
import { DATA } from "../../support/guests.ts";

const ENOSYS = 0xffff_ffff_ffff_fc18n;

/** What a feature bit is for: an attempt to use it, and whether the host allowed it. */
interface Use {
  readonly feature: KvmFeature;
  readonly what: string;
  readonly attempt: (cpu: X86Cpu) => Asking<boolean>;
}

function hypercall(feature: KvmFeature, what: string, nr: number): Use {
  return {
    feature,
    what,
    *attempt(cpu) {
      yield cpu.loadHypercall(nr, 0, 0, 0, 0).vmcall();
      return cpu.rax !== ENOSYS;
    },
  };
}

/** What each bit gates (guest_pv_has in arch/x86/kvm), of what this host models. */
const USES: readonly Use[] = [
  {
    feature: "PV_EOI",
    what: "WRMSR of PV_EOI_EN",
    attempt: (cpu) => completes(cpu.wrmsr(MSR_KVM_PV_EOI_EN, DATA | 1)),
  },
  {
    feature: "PV_EOI",
    what: "RDMSR of PV_EOI_EN",
    attempt: (cpu) => completes(cpu.rdmsr(MSR_KVM_PV_EOI_EN)),
  },
  {
    feature: "POLL_CONTROL",
    what: "WRMSR of POLL_CONTROL",
    attempt: (cpu) => completes(cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0)),
  },
  {
    feature: "POLL_CONTROL",
    what: "RDMSR of POLL_CONTROL",
    attempt: (cpu) => completes(cpu.rdmsr(MSR_KVM_POLL_CONTROL)),
  },
  hypercall("PV_UNHALT", "KVM_HC_KICK_CPU", 5),
  hypercall("PV_SEND_IPI", "KVM_HC_SEND_IPI", 10),
  hypercall("PV_SCHED_YIELD", "KVM_HC_SCHED_YIELD", 11),
];
const ALL = USES.map(({ what }) => what);

/** Tries everything; tells what was allowed. */
function allowed(options: VmOptions): string[] {
  const found: string[] = [];
  tryingRig({ vm: options }).finish(function* (cpu) {
    for (const { what, attempt } of USES) if (yield* attempt(cpu)) found.push(what);
  });
  return found;
}

for (const backend of BACKENDS) {
  describe(`a feature bit (${backend})`, () => {
    it("gates nothing by default: what CPUID does not offer works all the same", () => {
      assertEquals(allowed({ backend, features: [] }), ALL);
      assertEquals(allowed({ backend, hypervisor: false }), ALL, "not even KVM's signature is needed");
    });

    for (const feature of new Set(USES.map((use) => use.feature))) {
      it(`gates exactly its own where KVM_CAP_ENFORCE_PV_FEATURE_CPUID is on: ${feature}`, () => {
        const own = USES.filter((use) => use.feature === feature).map(({ what }) => what);
        assertEquals(allowed({ backend, features: [feature], enforcePvFeatureCpuid: true }), own);
      });
    }

    it("gates everything where enforcement is on and KVM's signature is nowhere", () => {
      assertEquals(allowed({ backend, hypervisor: false, enforcePvFeatureCpuid: true }), []);
    });

    it("counts where KVM's leaves are moved out of another hypervisor's way", () => {
      assertEquals(allowed({ backend, kvmCpuidBase: 0x4000_0100, enforcePvFeatureCpuid: true }), ALL);
      const cpuid = [{
        leaf: 0x4000_0000,
        registers: [0x4000_0001, 0x7263_694d, 0x666f_736f, 0x7648_2074] as const,
      }];
      assertEquals(
        allowed({ backend, cpuid, kvmCpuidBase: 0x4000_ff00, enforcePvFeatureCpuid: true }),
        ALL,
        "behind Microsoft's signature",
      );
    });

    it("is looked up at each use: enforcement that user space switches on later counts at once", () => {
      const rig = tryingRig({ vm: { backend, features: [] } });
      rig.finish(function* (cpu) {
        assertEquals(yield* completes(cpu.wrmsr(MSR_KVM_PV_EOI_EN, DATA | 1)), true);
        rig.vm.enforcePvFeatureCpuid = true;
        assertEquals(yield* completes(cpu.rdmsr(MSR_KVM_PV_EOI_EN)), false);
        rig.vm.enforcePvFeatureCpuid = false;
        yield cpu.rdmsr(MSR_KVM_PV_EOI_EN);
        assertEquals(cpu.eax, DATA | 1, "what was written before is still there");
      });
    });

    it("does not gate KVM_HC_VAPIC_POLL_IRQ, which has none", () => {
      tryingRig({ vm: { backend, features: [], enforcePvFeatureCpuid: true } }).finish(function* (cpu) {
        yield cpu.loadHypercall(1).vmcall();
        assertEquals(cpu.rax, 0n);
      });
    });

    it("that a host of that year does not know refuses, whether or not it is enforced", () => {
      const known: Readonly<Record<Exclude<HostSemantics, "v6.19">, KvmFeature[]>> = {
        "2022": ["PV_EOI", "PV_UNHALT", "PV_SEND_IPI", "POLL_CONTROL", "PV_SCHED_YIELD"],
        "2021": ["PV_EOI", "PV_UNHALT", "PV_SEND_IPI", "POLL_CONTROL", "PV_SCHED_YIELD"],
        // POLL_CONTROL came in v5.2 and SCHED_YIELD in v5.3 (2019).
        "2018": ["PV_EOI", "PV_UNHALT", "PV_SEND_IPI"],
        // KICK_CPU came in v3.12 (2013), SEND_IPI in v4.19 (2018).
        "2012": ["PV_EOI"],
      };
      for (const [hostSemantics, features] of Object.entries(known) as [HostSemantics, KvmFeature[]][]) {
        const expected = USES.filter(({ feature }) => features.includes(feature)).map(({ what }) => what);
        for (const enforcePvFeatureCpuid of [false, true]) {
          assertEquals(allowed({ backend, hostSemantics, enforcePvFeatureCpuid }), expected, hostSemantics);
        }
      }
    });

    it("of an MSR that a host of that year does not know is no different from any unknown MSR's", () => {
      const rig = tryingRig({ vm: { backend, hostSemantics: "2018", ignoreMsrs: true } });
      rig.finish(function* (cpu) {
        assertEquals(yield* completes(cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0)), true);
        yield cpu.rdmsr(MSR_KVM_POLL_CONTROL);
        assertEquals(cpu.eax, 0);
      });
      assertEquals(rig.vm.bootstrap.msrs.pollControl, true, "the write was ignored");
    });

    it("that is refused is refused with ignore_msrs too: KVM knows the MSR", () => {
      tryingRig({ vm: { backend, features: [], enforcePvFeatureCpuid: true, ignoreMsrs: true } }).finish(
        function* (cpu) {
          assertEquals(yield* completes(cpu.rdmsr(MSR_KVM_PV_EOI_EN)), false);
          assertEquals(yield* completes(cpu.wrmsr(MSR_KVM_POLL_CONTROL, 1)), false);
        },
      );
    });
  });
}
