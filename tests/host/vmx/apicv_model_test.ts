import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { CPU_BASED_INTR_WINDOW_EXITING, EXIT_REASON_EOI_INDUCED, FLAG_IF, RFLAGS } from "../../../abi/mod.ts";
import type { Vm } from "../../../host/mod.ts";
import type { VmxHardware } from "../../../host/vmx/mod.ts";
import { still, vectors } from "../../support/apic.ts";

/** What happens to a virtual APIC: software writes state, or hardware does one of the things that the SDM lists. */
type Event =
  | { readonly do: "software RVI" | "request" | "posted" | "self-IPI"; readonly vector: number }
  | { readonly do: "TPR"; readonly value: number }
  | { readonly do: "EOI" | "boundary" | "entry" }
  | { readonly do: "window" | "IF" | "shadow"; readonly on: boolean };

const classes = fc.constantFrom(0x10, 0x1f, 0x20, 0x31, 0x3e, 0x52, 0x5f, 0x80, 0xf0, 0xff);
const events: fc.Arbitrary<Event> = fc.oneof(
  fc.record({
    do: fc.constantFrom("software RVI" as const, "request" as const, "posted" as const, "self-IPI" as const),
    vector: classes,
  }),
  fc.record({
    do: fc.constant("TPR" as const),
    value: fc.oneof(fc.nat(255), fc.constantFrom(0, 0x10, 0x2f)),
  }),
  fc.record({ do: fc.constantFrom("EOI" as const, "entry" as const) }),
  fc.constant({ do: "boundary" as const }),
  fc.constant({ do: "boundary" as const }),
  fc.record({ do: fc.constant("IF" as const), on: fc.constantFrom(true, true, true, false) }),
  fc.record({
    do: fc.constantFrom("window" as const, "shadow" as const),
    on: fc.constantFrom(true, false, false),
  }),
);

/** The SDM's sections 30.1 and 30.2 with sets for bitmaps, and every rule in full each time. */
class Model {
  tpr = 0;
  ppr = 0;
  rvi = 0;
  svi = 0;
  recognized = false;
  readonly requested = new Set<number>();
  readonly serving = new Set<number>();
  window = false;
  interrupts = true;
  shadow = false;
  readonly delivered: number[] = [];
  readonly exits: number[] = [];
  readonly eoiExits: ReadonlySet<number>;

  constructor(eoiExits: readonly number[]) {
    this.eoiExits = new Set(eoiExits);
  }

  virtualizePpr(): void {
    if (this.tpr >> 4 >= this.svi >> 4) this.ppr = this.tpr & 0xff;
    else this.ppr = this.svi & 0xf0;
  }

  evaluate(): void {
    this.recognized = !this.window && this.rvi >> 4 > this.ppr >> 4;
  }

  happen(event: Event): void {
    switch (event.do) {
      case "software RVI":
        this.rvi = event.vector;
        return;
      case "request":
        this.requested.add(event.vector);
        return;
      case "posted":
      case "self-IPI":
        this.requested.add(event.vector);
        this.rvi = Math.max(this.rvi, event.vector);
        return this.evaluate();
      case "TPR":
        this.tpr = event.value;
        this.virtualizePpr();
        return this.evaluate();
      case "EOI": {
        const ended = this.svi;
        this.serving.delete(ended);
        this.svi = Math.max(0, ...this.serving);
        this.virtualizePpr();
        if (this.eoiExits.has(ended)) this.exits.push(ended);
        else this.evaluate();
        return;
      }
      case "entry":
        this.virtualizePpr();
        return this.evaluate();
      case "boundary":
        if (!this.recognized || !this.interrupts || this.shadow || this.window) return;
        this.svi = this.rvi;
        this.delivered.push(this.svi);
        this.serving.add(this.svi);
        this.ppr = this.svi & 0xf0;
        this.requested.delete(this.svi);
        this.rvi = Math.max(0, ...this.requested);
        this.recognized = false;
        this.interrupts = false; // An interrupt gate.
        return;
      case "window":
        this.window = event.on;
        return;
      case "IF":
        this.interrupts = event.on;
        return;
      case "shadow":
        this.shadow = event.on;
    }
  }
}

/** The hardware, on a virtual machine that stands still. Its gates lead to one empty handler. */
class Hardware {
  readonly vm: Vm;
  readonly hardware: VmxHardware;
  readonly delivered: number[] = [];
  readonly exits: number[] = [];

  constructor(eoiExits: readonly number[]) {
    this.vm = still({ acceleration: "apicv" });
    const { bootstrap } = this.vm;
    this.hardware = bootstrap.backend.hardware as VmxHardware;
    const { vmcs, virtualInterrupts } = this.hardware;
    for (const vector of eoiExits) vmcs.eoiExitBitmap[vector >>> 5] |= 1 << (vector & 31);
    const { processor } = bootstrap;
    processor.guestMode = true;
    processor.regs[RFLAGS] |= FLAG_IF;
    // Delivery through the IDT is the processor's; here only what the virtual APIC does counts.
    const deliver = virtualInterrupts.deliver.bind(virtualInterrupts);
    virtualInterrupts.deliver = (p): true => {
      this.delivered.push(vmcs.rvi);
      try {
        deliver(p);
      } catch { /* There is no IDT, and so no handler. */ }
      p.regs[RFLAGS] &= ~FLAG_IF;
      return true;
    };
  }

  happen(event: Event): void {
    const { vmcs, virtualInterrupts, virtualApic } = this.hardware;
    const { processor, lapic } = this.vm.bootstrap;
    switch (event.do) {
      case "software RVI":
        return virtualInterrupts.setRvi(event.vector);
      case "request":
        return lapic.setIrr(event.vector);
      case "posted":
        lapic.setIrr(event.vector);
        return virtualInterrupts.posted(event.vector);
      case "self-IPI":
        return virtualInterrupts.selfIpi(event.vector);
      case "TPR":
        return void virtualApic.setTpr(processor, event.value);
      case "EOI":
        virtualInterrupts.endOfInterrupt(processor);
        if (processor.guestMode) return;
        assertEquals(processor.exitReason, EXIT_REASON_EOI_INDUCED);
        this.exits.push(processor.exitInfo1);
        processor.guestMode = true;
        return;
      case "entry":
        return virtualInterrupts.entered();
      case "boundary":
        // With interrupt-window exiting hardware would exit instead: that is not what is looked at here.
        if ((vmcs.primary & CPU_BASED_INTR_WINDOW_EXITING) === 0) this.hardware.window(processor);
        return;
      case "window":
        vmcs.primary = event.on
          ? vmcs.primary | CPU_BASED_INTR_WINDOW_EXITING
          : vmcs.primary & ~CPU_BASED_INTR_WINDOW_EXITING;
        return;
      case "IF":
        if (event.on) processor.regs[RFLAGS] |= FLAG_IF;
        else processor.regs[RFLAGS] &= ~FLAG_IF;
        return;
      case "shadow":
        processor.shadow = event.on;
    }
  }

  state(): Record<string, unknown> {
    const { vmcs, virtualInterrupts } = this.hardware;
    const { lapic } = this.vm.bootstrap;
    return {
      tpr: lapic.get(0x080),
      ppr: lapic.get(0x0a0),
      rvi: vmcs.rvi,
      svi: vmcs.svi,
      recognized: virtualInterrupts.recognized,
      requested: vectors(lapic, 0x200),
      serving: vectors(lapic, 0x100),
      highestRequested: lapic.highestIrr(),
      delivered: this.delivered,
      exits: this.exits,
    };
  }
}

function state(model: Model): Record<string, unknown> {
  const ascending = (set: Set<number>) => [...set].sort((a, b) => a - b);
  const { tpr, ppr, rvi, svi, recognized, delivered, exits } = model;
  const requested = ascending(model.requested);
  return {
    tpr,
    ppr,
    rvi,
    svi,
    recognized,
    requested,
    serving: ascending(model.serving),
    highestRequested: requested.at(-1) ?? -1,
    delivered,
    exits,
  };
}

describe("virtual interrupts", () => {
  it("are what the SDM's rules make of them, whatever happens", () => {
    let delivered = 0;
    let exited = 0;
    let takenBack = 0;
    fc.assert(
      fc.property(
        fc.array(events, { maxLength: 60, size: "max" }),
        fc.uniqueArray(classes, { maxLength: 6 }),
        (story, eoiExits) => {
          const model = new Model(eoiExits);
          const hardware = new Hardware(eoiExits);
          for (const [at, event] of story.entries()) {
            const before = model.recognized;
            model.happen(event);
            hardware.happen(event);
            assertEquals(hardware.state(), state(model), `behind event ${at}: ${JSON.stringify(event)}`);
            if (before && !model.recognized && event.do !== "boundary") takenBack++;
          }
          delivered += model.delivered.length;
          exited += model.exits.length;
        },
      ),
      { numRuns: 1000, seed: 90 },
    );
    // The stories are stories of something.
    assert(delivered > 500 && exited > 50 && takenBack > 200, `${delivered} ${exited} ${takenBack}`);
  });

  it("are recognized at five points alone: what software writes does nothing by itself", () => {
    const points: readonly Event[] = [
      { do: "entry" },
      { do: "TPR", value: 0 },
      { do: "EOI" },
      { do: "self-IPI", vector: 0x20 },
      { do: "posted", vector: 0x20 },
    ];
    for (const point of points) {
      const hardware = new Hardware([]);
      hardware.happen({ do: "request", vector: 0x52 });
      hardware.happen({ do: "software RVI", vector: 0x52 });
      for (let i = 0; i < 3; i++) hardware.happen({ do: "boundary" });
      assertEquals(hardware.delivered, [], `before ${point.do}`);
      hardware.happen(point);
      hardware.happen({ do: "boundary" });
      assertEquals(hardware.delivered, [0x52], `behind ${point.do}`);
    }
  });

  it("are not evaluated again behind a delivery: the next one waits for one of the five", () => {
    const hardware = new Hardware([]);
    hardware.happen({ do: "posted", vector: 0x31 });
    hardware.happen({ do: "boundary" });
    // A higher one that software requests meanwhile, with RVI.
    hardware.happen({ do: "request", vector: 0x80 });
    hardware.happen({ do: "software RVI", vector: 0x80 });
    hardware.happen({ do: "IF", on: true });
    hardware.happen({ do: "boundary" });
    assertEquals(hardware.delivered, [0x31]);
    hardware.happen({ do: "entry" });
    hardware.happen({ do: "boundary" });
    assertEquals(hardware.delivered, [0x31, 0x80]);
  });

  it("compare priority classes, bits 7:4, alone", () => {
    for (
      const [tpr, vector, comes] of [[0x4f, 0x4f, false], [0x40, 0x4f, false], [0x4f, 0x50, true]] as const
    ) {
      const hardware = new Hardware([]);
      hardware.happen({ do: "TPR", value: tpr });
      hardware.happen({ do: "posted", vector });
      hardware.happen({ do: "boundary" });
      assertEquals(hardware.delivered, comes ? [vector] : []);
    }
  });

  it("end with whatever vector SVI says: with none in service that is vector 0", () => {
    const hardware = new Hardware([0]);
    hardware.happen({ do: "EOI" });
    assertEquals(hardware.exits, [0]);
  });
});
