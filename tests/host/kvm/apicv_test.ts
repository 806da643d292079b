import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APICV_INHIBITS, inhibitNames, SVM_INHIBITS, VMX_INHIBITS } from "../../../host/kvm/apicv.ts";
import { REQ_EVENT } from "../../../host/kvm/requests.ts";
import { request, setUp, still } from "../../support/apic.ts";
import { put } from "../../support/posted.ts";

/** enum kvm_apicv_inhibit of v6.19, from 0 on. */
const REASONS = [
  "DISABLED",
  "HYPERV",
  "ABSENT",
  "BLOCKIRQ",
  "PHYSICAL_ID_ALIASED",
  "APIC_ID_MODIFIED",
  "APIC_BASE_MODIFIED",
  "NESTED",
  "IRQWIN",
  "PIT_REINJ",
  "SEV",
  "LOGICAL_ID_ALIASED",
  "PHYSICAL_ID_TOO_BIG",
] as const;
/** Before v6.0 AVIC had one more. */
const FORMER = "X2APIC";

describe("the reasons why APICv is inhibited", () => {
  it("have the kernel's names and numbers", () => {
    assertEquals(Object.keys(APICV_INHIBITS), [...REASONS, FORMER]);
    assertEquals(REASONS.map((name) => APICV_INHIBITS[name].bit), REASONS.map((_, bit) => bit));
  });

  it("count as each vendor's module says (VMX_REQUIRED_APICV_INHIBITS, AVIC_REQUIRED_APICV_INHIBITS)", () => {
    assertEquals(inhibitNames(VMX_INHIBITS), [...REASONS.slice(0, 7)]);
    assertEquals(inhibitNames(SVM_INHIBITS), [...REASONS, FORMER]);
  });
});

describe("an EOI that hardware has made, and that exits", () => {
  it("makes KVM look for events: the I/O APIC may have sent again (kvm_apic_set_eoi_accelerated)", () => {
    const { bootstrap } = still({ acceleration: "apicv" });
    setUp(bootstrap.lapic, "xapic");
    bootstrap.requests = 0;
    bootstrap.lapic.eoiAccelerated(0x41);
    assertEquals(bootstrap.requests, REQ_EVENT);
  });
});

describe("a doorbell", () => {
  it("is traced with the vCPU's number and its CPU's APIC ID", () => {
    const vm = still({ backend: "svm", acceleration: "avic", vcpuIds: [0, 3], trace: 64 }, { pcpus: 2 });
    const [, target] = vm.vcpus;
    for (const { lapic } of vm.vcpus) setUp(lapic, "xapic");
    put(vm.bootstrap, "runs in the host");
    const pcpu = put(target, "runs in guest mode");
    request(target.lapic, 0x41);
    const rung = [...vm.tracer.records()].at(-1)!;
    assertEquals([...rung.args].slice(0, 2), [3, pcpu.id]);
    assertEquals(pcpu.id, 1);
    assertEquals(vm.counters().kvm_avic_doorbell, 1);
  });
});
