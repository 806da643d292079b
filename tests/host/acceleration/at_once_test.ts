import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { type Engine, type Steps, straight, type Vm } from "../../../host/mod.ts";
import { deliverInterrupt } from "../../../host/svm/avic/deliver.ts";
import { svm } from "../../support/avic.ts";
import { anyStorm, rage } from "../../support/interrupt_storms.ts";
import { LEVELS, nameOf } from "../../support/levels.ts";
import { vmx } from "../../support/posted.ts";

/** How often a virtual machine went the long way. */
interface Long {
  taken: number;
}

/** Where hardware asks whether others may come between its accesses. */
const ASKS = ["asynchronous", "unbacked", "writeMsr"] as const;

/** Has a timed run take the steps that explored runs take, all of them at once. */
function goTheLongWay(vm: Vm, long: Long): void {
  let asking = 0;
  const engine = new Proxy(vm.engine, {
    get(engine, name) {
      if (name === "explores") return asking > 0;
      const value = Reflect.get(engine, name, engine);
      return typeof value === "function" ? value.bind(engine) : value;
    },
  });
  const walk = (steps: Steps): true => {
    long.taken++;
    straight(steps);
    return true;
  };
  for (const vcpu of vm.vcpus) {
    const { processor, backend } = vcpu;
    (processor as { engine: Engine }).engine = engine;
    processor.perform = walk;
    const hardware = backend.hardware as unknown as Record<string, (...args: unknown[]) => boolean>;
    for (const name of ASKS) {
      const answer = hardware[name].bind(hardware);
      hardware[name] = (...args) => {
        asking++;
        try {
          return answer(...args);
        } finally {
          asking--;
        }
      };
    }
    if (backend.name === "svm") {
      backend.deliver = (target, deliveryMode, vector, levelTriggered) =>
        void walk(deliverInterrupt(target, { deliveryMode, vector, levelTriggered }));
      assert(svm(vcpu) === backend);
    } else {
      const { posted } = vmx(vcpu);
      posted.postAtOnce = (...what) => void walk(posted.post(...what));
      backend.syncPirToIrr = () => posted.synchronize();
    }
  }
}

describe("timed runs, which do in one piece what explored runs do in steps, are the same to the byte", () => {
  for (const level of LEVELS.filter(({ acceleration }) => acceleration !== "none")) {
    it(`as if they did it in steps (${nameOf(level)})`, () => {
      const long: Long = { taken: 0 };
      fc.assert(
        fc.property(anyStorm, fc.integer({ min: 1, max: 4 }), (storm, pcpus) => {
          const stage = { vm: level, machine: { pcpus, timeSlice: 300_000 } };
          const short = rage(storm, stage);
          const steps = rage(storm, { ...stage, made: (vm) => goTheLongWay(vm, long) });
          assertEquals(steps.complaints, []);
          assertEquals(
            steps.rig.vm.vcpus.map(({ clock }) => clock),
            short.rig.vm.vcpus.map(({ clock }) => clock),
          );
          assertEquals(steps.rig.vm.tracer.bytes(), short.rig.vm.tracer.bytes());
        }),
        { numRuns: 60 },
      );
      assert(long.taken > 100, `${long.taken} long ways`);
    });
  }
});

describe("timed runs take as long", () => {
  for (const level of LEVELS) {
    it(`whether they are traced or not, and spin in bulk or turn by turn (${nameOf(level)})`, () => {
      fc.assert(
        fc.property(anyStorm, fc.integer({ min: 1, max: 4 }), (storm, pcpus) => {
          const [plain, ...others] = [{}, { trace: 1 << 10 }, { bulkSpin: false }].map((options) => {
            const machine = { pcpus, timeSlice: 300_000 };
            const { vm } = rage(storm, { vm: { trace: 0, ...level, ...options }, machine }).rig;
            return [vm.vcpus.map(({ clock }) => clock), vm.counters(), vm.exits()];
          });
          for (const other of others) assertEquals(other, plain);
        }),
        { numRuns: 12 },
      );
    });
  }
});
