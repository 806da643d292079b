import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { X86Cpu } from "../../../abi/mod.ts";
import type { Acceleration, BackendName } from "../../../host/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  enter,
  tryingRig,
  vectors,
  write,
} from "../../support/apic.ts";

describe("the order of handlers", () => {
  /** A guest's next step. Arrivals are its own doing, so they come at the same places on every host. */
  type Step =
    | { readonly do: "send"; readonly vector: number }
    | { readonly do: "tpr"; readonly value: number }
    | { readonly do: "sti" | "cli" | "nop" | "halt" };
  const VECTORS = [0x31, 0x3e, 0x41, 0x52, 0x5f, 0x80, 0xef];
  const vector = fc.constantFrom(...VECTORS);
  const step: fc.Arbitrary<Step> = fc.oneof(
    fc.record({ do: fc.constant("send" as const), vector }),
    fc.record({ do: fc.constant("send" as const), vector }),
    fc.record({ do: fc.constant("tpr" as const), value: fc.constantFrom(0, 0x20, 0x40, 0x5f, 0x80, 0xf0) }),
    fc.record({ do: fc.constantFrom("sti" as const, "sti" as const, "cli" as const, "nop" as const) }),
  );
  interface Story {
    readonly mode: ApicMode;
    readonly program: readonly Step[];
    /** By vector: what its handler does before its EOI. */
    readonly handlers: readonly (readonly Step[])[];
  }
  const stories: fc.Arbitrary<Story> = fc.record({
    mode: fc.constantFrom(...APIC_MODES),
    program: fc.array(step, { minLength: 5, maxLength: 40, size: "max" }),
    handlers: fc.array(fc.array(step, { maxLength: 3 }), {
      minLength: VECTORS.length,
      maxLength: VECTORS.length,
    }),
  });

  function order(
    { mode, program, handlers }: Story,
    backend: BackendName,
    acceleration: Acceleration,
  ): string[] {
    const rig = tryingRig({ vm: { backend, acceleration }, machine: { limits: { steps: 100_000 } } });
    const log: string[] = [];
    let sends = 0;
    function* take(cpu: X86Cpu, what: Step): Asking<void> {
      switch (what.do) {
        case "send":
          // Handlers send too: that must come to an end.
          if (sends++ < 60) yield* write(cpu, mode, 0x300, 0x4_0000 | what.vector);
          break;
        case "tpr":
          yield* write(cpu, mode, 0x080, what.value);
          break;
        case "sti":
          yield cpu.sti();
          break;
        case "cli":
          yield cpu.cli();
          break;
        case "nop":
          yield cpu.pushf();
      }
      log.push(what.do);
    }
    for (const [i, number] of VECTORS.entries()) {
      rig.on(number, function* (cpu) {
        log.push(`begin ${number}`);
        for (const what of handlers[i]) yield* take(cpu, what);
        yield cpu.cli();
        log.push(`end ${number}`);
        yield* write(cpu, mode, 0x0b0, 0);
      });
    }
    rig.finish(function* (cpu) {
      yield* enter(cpu, mode);
      for (const what of program) yield* take(cpu, what);
      yield* write(cpu, mode, 0x080, 0);
      yield cpu.sti();
      for (let i = 0; i < 4; i++) yield cpu.pushf();
      yield cpu.cli();
    });
    const { lapic } = rig.vm.bootstrap;
    return log.concat(`requested ${vectors(lapic, 0x200)}`, `in service ${vectors(lapic, 0x100)}`);
  }

  it("follows from what the guest does, on any host, with APICv and without", () => {
    let begun = 0;
    fc.assert(
      fc.property(stories, (story) => {
        const emulated = order(story, "vmx", "none");
        begun += emulated.filter((line) => line.startsWith("begin")).length;
        assertEquals(order(story, "vmx", "apicv"), emulated, "apicv");
        assertEquals(order(story, "vmx", "ipiv"), emulated, "ipiv");
        assertEquals(order(story, "svm", "none"), emulated, "svm");
      }),
      { numRuns: 150, seed: 100 },
    );
    assert(begun > 500, `${begun} handlers`);
  });
});
