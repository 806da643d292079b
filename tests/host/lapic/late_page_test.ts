import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { APIC_TASKPRI } from "../../../abi/mod.ts";
import { acceptInterrupt, type Lapic } from "../../../host/lapic/mod.ts";
import { setUp, still } from "../../support/apic.ts";

/** What happens to a local APIC: a request, service by the straight way or the other, an end, a task priority. */
type Act = readonly [
  verb: "request" | "serve" | "acknowledge" | "end" | "tpr" | "shadow" | "priority",
  vector: number,
];

const acts: fc.Arbitrary<Act[]> = fc.array(
  fc.tuple(
    fc.constantFrom(
      "request",
      "request",
      "serve",
      "serve",
      "acknowledge",
      "end",
      "end",
      "tpr",
      "shadow",
      "priority",
    ),
    fc.constantFrom(0x31, 0x32, 0x5f, 0x60, 0xe0),
  ),
  { maxLength: 30 },
) as fc.Arbitrary<Act[]>;

function apic(levels: boolean): Lapic {
  const [{ lapic }] = still({ vcpuIds: [0] }).vcpus;
  setUp(lapic, "x2apic");
  if (levels) {
    acceptInterrupt(lapic, 0, 0x60, true, true);
    lapic.acknowledge(0x60);
    lapic.endService(0x60);
  }
  return lapic;
}

/** Does what its circumstances allow, as KVM's run loop and the straight way ask them. */
function perform(lapic: Lapic, [verb, vector]: Act): void {
  const { irrRegisters, isrCount } = lapic;
  switch (verb) {
    case "request":
      return lapic.requestEdge(vector);
    case "serve": {
      if (isrCount !== 0 || irrRegisters === 0 || (irrRegisters & (irrRegisters - 1)) !== 0) return;
      const only = lapic.onlyIrr();
      if (only !== -1 && (only & 0xf0) > lapic.taskPriority) lapic.serveOnly(only);
      return;
    }
    case "acknowledge": {
      const next = lapic.injectable();
      if (next !== -1) lapic.acknowledge(next);
      return;
    }
    case "end":
      if (isrCount !== 0) lapic.endService(lapic.highestIsr());
      return;
    case "tpr":
      return lapic.setTpr(vector & 0x70);
    case "shadow": // Hardware's TPR shadow leaves the processor priority as it was.
      return lapic.set(APIC_TASKPRI, vector & 0x70);
    case "priority":
      return lapic.updatePpr();
  }
}

function seen(lapic: Lapic): unknown {
  const { irrRegisters, irrPending, isrCount, taskPriority, page } = lapic;
  return { irrRegisters, irrPending, isrCount, taskPriority, page: [...page], highest: lapic.highestIrr() };
}

describe("a local APIC's page that nobody looks at", () => {
  it("says, when somebody does, what it would have said all the time", () => {
    fc.assert(
      fc.property(acts, fc.boolean(), (acts, levels) => {
        const [late, watched] = [apic(levels), apic(levels)];
        for (const act of acts) {
          perform(late, act);
          perform(watched, act);
          assertEquals(watched.page.length, 256, "a look");
        }
        assertEquals(seen(late), seen(watched));
      }),
      { numRuns: 500 },
    );
  });

  it("has the bit of a request in the IRR, then in the ISR, then nowhere", () => {
    const lapic = apic(false);
    const bits = (): number[] => [lapic.page[0x210 >>> 2], lapic.page[0x110 >>> 2], lapic.page[0xa0 >>> 2]];
    lapic.requestEdge(0x31);
    assertEquals(bits(), [1 << 17, 0, 0]);
    lapic.serveOnly(0x31);
    assertEquals(bits(), [0, 1 << 17, 0x30], "and its class is the processor priority");
    lapic.endService(0x31);
    assertEquals(bits(), [0, 0, 0]);
  });
});
