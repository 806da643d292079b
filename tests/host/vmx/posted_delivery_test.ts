import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { type Steps, straight, VcpuMode, type Vm } from "../../../host/mod.ts";
import { ipiVirtualization } from "../../../host/vmx/ipi_virtualization.ts";
import { request, setUp, still, vectors } from "../../support/apic.ts";
import { put, shown, type State, STATES, vmx, wakeupUnderWay } from "../../support/posted.ts";

/** Who posts: KVM on the sender's CPU, or the sender's hardware. */
const KINDS = ["KVM", "hardware"] as const;
type Kind = (typeof KINDS)[number];

/** A virtual machine whose vCPU 1 is in a state, and whose vCPU 0 sends. */
function stage(state: State, acceleration: "apicv" | "ipiv" = "ipiv") {
  const vm = still({ vcpus: 2, acceleration, trace: 64 }, { pcpus: 8 });
  for (const vcpu of vm.vcpus) setUp(vcpu.lapic, "x2apic");
  put(vm.bootstrap, "runs in guest mode");
  const target = vm.vcpus[1];
  const pcpu = put(target, state);
  target.requests = 0; // What was asked while it was set up is done.
  return { vm, target, pcpu };
}

function post(vm: Vm, kind: Kind, vector: number): void {
  if (kind === "KVM") request(vm.vcpus[1].lapic, vector);
  else straight(ipiVirtualization(vm.bootstrap.processor, vector, 1));
}

/** What comes of a post: the descriptor, and who is told. */
type Outcome = readonly [descriptor: string, ...told: ("0xf2" | "0xf1" | "woken")[]];

/** Hardware posts by SDM 3C 30.6; KVM (__vmx_deliver_posted_interrupt) does not look at SN, and wakes a sleeper at once. */
const OUTCOMES: Readonly<Record<State, Readonly<Record<Kind, Outcome>>>> = {
  "never ran": { KVM: ["41 ON SN nv=f2 ndst=0"], hardware: ["41 SN nv=f2 ndst=0"] },
  "runs in guest mode": { KVM: ["41 ON nv=f2 ndst=1", "0xf2"], hardware: ["41 ON nv=f2 ndst=1", "0xf2"] },
  "runs in the host": { KVM: ["41 ON nv=f2 ndst=1"], hardware: ["41 ON nv=f2 ndst=1", "0xf2"] },
  "is preempted": { KVM: ["41 ON SN nv=f2 ndst=1"], hardware: ["41 SN nv=f2 ndst=1"] },
  "polls": { KVM: ["41 ON nv=f2 ndst=1", "woken"], hardware: ["41 ON nv=f2 ndst=1", "0xf2", "woken"] },
  "sleeps with IF=1": { KVM: ["41 ON nv=f1 ndst=1", "woken"], hardware: ["41 ON nv=f1 ndst=1", "0xf1"] },
  "sleeps with IF=0": { KVM: ["41 ON SN nv=f2 ndst=1", "woken"], hardware: ["41 SN nv=f2 ndst=1"] },
};

/** Without IPI virtualization only KVM posts, and a vCPU that leaves its CPU tells nobody (vmx_needs_pi_wakeup). */
const PLAIN: Readonly<Record<State, Outcome>> = {
  "never ran": ["41 ON SN nv=f2 ndst=0"],
  "runs in guest mode": ["41 ON nv=f2 ndst=1", "0xf2"],
  "runs in the host": ["41 ON nv=f2 ndst=1"],
  "is preempted": ["41 ON nv=f2 ndst=1"],
  "polls": ["41 ON nv=f2 ndst=1", "woken"],
  "sleeps with IF=1": ["41 ON nv=f2 ndst=1", "woken"],
  "sleeps with IF=0": ["41 ON nv=f2 ndst=1", "woken"],
};

describe("an interrupt that is posted", () => {
  for (const state of STATES) {
    const outcome = ({ vm, target, pcpu }: ReturnType<typeof stage>): Outcome => [
      shown(target),
      ...pcpu.notifiedAt < 1e6 ? ["0xf2" as const] : [],
      ...wakeupUnderWay(vm, pcpu) ? ["0xf1" as const] : [],
      ...target.woken ? ["woken" as const] : [],
    ];

    for (const kind of KINDS) {
      it(`by ${kind} to a vCPU that ${state}`, () => {
        const staged = stage(state);
        post(staged.vm, kind, 0x41);
        assertEquals(outcome(staged), OUTCOMES[state][kind]);
        assertEquals(vectors(staged.target.lapic, 0x200), [], "the IRR is the target's own");
        assertEquals(staged.target.requests, 0);
        assertEquals(staged.vm.counters()["kvm_apicv_accept_irq"] ?? 0, kind === "KVM" ? 1 : 0);
        assertEquals(staged.vm.counters()["kvm_apic_accept_irq"] ?? 0, kind === "KVM" ? 1 : 0);
      });

      it(`by ${kind} twice, and with another vector, to one that ${state}, notifies nobody again`, () => {
        const staged = stage(state);
        post(staged.vm, kind, 0x41);
        const [before, ...told] = outcome(staged);
        staged.pcpu.notified(); // The host has heard it, to whom it means nothing: ON stays.
        const spent = staged.vm.bootstrap.time;
        post(staged.vm, kind, 0x41);
        post(staged.vm, kind, 0x52);
        assertEquals(outcome(staged), [
          before.replace("41", "41 52"),
          ...told.filter((who) => who !== "0xf2"),
        ]);
        const { cost } = staged.vm;
        const each = kind === "KVM" ? cost.accept + cost.post : cost.postIpi;
        assertEquals(staged.vm.bootstrap.time - spent, 2 * each, "nor is a notification paid for");
        // Traced each time all the same: it was accepted.
        assertEquals(staged.vm.counters()["kvm_apicv_accept_irq"] ?? 0, kind === "KVM" ? 3 : 0);
      });
    }

    it(`by KVM, without IPI virtualization, to one that ${state}`, () => {
      const staged = stage(state, "apicv");
      post(staged.vm, "KVM", 0x41);
      assertEquals(outcome(staged), PLAIN[state]);
    });
  }

  for (const kind of KINDS) {
    it(`is set in PIR before ON, and ON before anybody is told (${kind})`, () => {
      const { vm, target, pcpu } = stage("runs in guest mode");
      const seen: string[] = [];
      const walk = (steps: Steps) => {
        for (let over = false; !over;) {
          over = steps.next().done!;
          seen.push(`${shown(target)}${pcpu.notifiedAt < 1e6 ? " told" : ""}`);
        }
      };
      if (kind === "KVM") walk(vmx(target).posted.post(0, 0x41, false));
      else walk(ipiVirtualization(vm.bootstrap.processor, 0x41, 1));
      assertEquals([...new Set(seen)], [
        ...kind === "KVM" ? [] : ["nv=f2 ndst=1"], // Hardware reads the table first.
        "41 nv=f2 ndst=1",
        "41 ON nv=f2 ndst=1",
        "41 ON nv=f2 ndst=1 told",
      ]);
    });
  }

  it("by hardware notifies with the descriptor's vector, whatever that is: others are the host's own", () => {
    const { vm, target, pcpu } = stage("runs in guest mode");
    straight(vmx(target).posted.descriptor.update({ nv: 0xec }));
    post(vm, "hardware", 0x41);
    assertEquals([pcpu.notifiedAt < 1e6, wakeupUnderWay(vm, pcpu), pcpu.interruptAt < 1e6], [
      false,
      false,
      true,
    ]);
  });

  it("by a vCPU to itself tells nobody: it synchronizes before it enters the guest", () => {
    const posts = [
      (vm: Vm) => post(vm, "KVM", 0x41),
      ({ vcpus: [, target] }: Vm) => straight(vmx(target).posted.post(0, 0x41, false)), // As explored runs do.
    ];
    for (const toItself of posts) {
      const { vm, target, pcpu } = stage("runs in guest mode");
      vm.engine.running = target;
      toItself(vm);
      assertEquals(shown(target), "41 ON nv=f2 ndst=1");
      assertEquals(pcpu.notifiedAt > 1e6, true);
    }
  });

  it("to a vCPU that is leaving guest mode already tells nobody either", () => {
    const { vm, target, pcpu } = stage("runs in guest mode");
    target.mode = VcpuMode.Exiting;
    post(vm, "KVM", 0x41);
    assertEquals([shown(target), pcpu.notifiedAt > 1e6], ["41 ON nv=f2 ndst=1", true]);
  });

  it("is accepted before it is posted, and traced so", () => {
    const { vm } = stage("runs in the host");
    post(vm, "KVM", 0x41);
    const names = [...vm.tracer.records()].slice(-2).map(({ args }) => [...args].slice(0, 4));
    assertEquals(names, [[1, 0, 0, 0x41], [1, 0, 0, 0x41]]);
  });

  it("is posted nowhere while APICv is not in use: KVM requests, and kicks", () => {
    const { vm, target, pcpu } = stage("runs in guest mode");
    target.lapic.apicvActive = false;
    post(vm, "KVM", 0x41);
    assertEquals(shown(target), "nv=f2 ndst=1");
    assertEquals(vectors(target.lapic, 0x200), [0x41]);
    assertEquals(target.requests !== 0, true);
    assertEquals([pcpu.notifiedAt > 1e6, pcpu.interruptAt < 1e6], [true, true]);
    assertEquals(vm.counters()["kvm_apicv_accept_irq"], undefined);
  });
});
