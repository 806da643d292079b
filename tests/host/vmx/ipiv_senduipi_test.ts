import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { GuestError, NotModelled } from "../../../host/mod.ts";
import { senduipi, type UittEntry } from "../../../host/vmx/mod.ts";
import { APIC_MODES, type ApicMode, completes, enter, tryingRig } from "../../support/apic.ts";
import { type Exit, exits, mark } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";
import { pir, vmx } from "../../support/posted.ts";

const UPID = DATA;
const NV = 0x41;
const ON = 1;
const SN = 2;

/** What SENDUIPI came to. */
interface Sent {
  /** The descriptor's four words. */
  readonly upid: readonly number[];
  readonly posted: readonly number[];
  readonly exits: readonly Exit[];
  readonly completed: boolean;
}

/** A guest on whose first processor PAUSE is SENDUIPI. */
function send(
  mode: ApicMode,
  control: number,
  { entry = {}, ndst, acceleration = "ipiv" }: {
    entry?: Partial<UittEntry>;
    ndst?: number;
    acceleration?: "apicv" | "ipiv";
  } = {},
): Sent {
  const rig = tryingRig({ vm: { vcpus: 2, acceleration, trace: 1 << 12 } });
  const { vm } = rig;
  const { hardware } = vmx(vm.bootstrap);
  hardware.pause = (p) => {
    senduipi(p, { valid: true, userVector: 37, upid: UPID, ...entry });
    return true;
  };
  let sent: Sent | undefined;
  rig.finish(function* (cpu) {
    yield* enter(cpu, mode);
    yield cpu.store32(UPID, control);
    yield cpu.store32(UPID + 4, ndst ?? (mode === "xapic" ? 1 << 8 : 1));
    const from = mark(vm);
    const completed = yield* completes(cpu.pause());
    sent = {
      upid: [0, 4, 8, 12].map((offset) => rig.word(UPID + offset)),
      posted: pir(vm.vcpus[1]),
      exits: exits(vm, from),
      completed,
    };
  });
  return sent!;
}

const control = (bits: number) => (NV << 16) | bits;
/** User vector 37 is bit 5 of the PUIR's second word. */
const POSTED = [0, 1 << 5];

for (const mode of APIC_MODES) {
  const ndst = mode === "xapic" ? 1 << 8 : 1;
  describe(`SENDUIPI (${mode})`, () => {
    it("posts the user vector, and its notification is posted to a vCPU as an IPI is", () => {
      const { upid, ...rest } = send(mode, control(0));
      assertEquals(upid, [control(ON), ndst, ...POSTED]);
      assertEquals(rest, { posted: [NV], exits: [], completed: true });
    });

    for (const [what, bits] of [["outstanding", ON], ["suppressed", SN], ["both", ON | SN]] as const) {
      it(`posts, and notifies nobody, where notifications are ${what}`, () => {
        const { upid, ...rest } = send(mode, control(bits));
        assertEquals(upid, [control(bits), ndst, ...POSTED]);
        assertEquals(rest, { posted: [], exits: [], completed: true });
      });
    }

    it("exits as a write of the ICR would where the notification is not virtualized", () => {
      const { exits, posted, completed } = send(mode, 15 << 16); // A reserved vector.
      assertEquals([exits, posted, completed], [[["APIC_WRITE", 0x300n]], [], true]);
      const nobody = send(mode, control(0), { ndst: mode === "xapic" ? 9 << 8 : 9 });
      assertEquals([nobody.exits, nobody.posted], [[["APIC_WRITE", 0x300n]], []]);
    });

    it("reads all of NDST in x2APIC mode, and bits 15:8 in xAPIC mode", () => {
      const other = send(mode, control(0), { ndst: 0x1_0101 });
      assertEquals(other.posted, mode === "xapic" ? [NV] : []);
    });

    for (
      const [what, entry, bits] of [
        ["the entry is not valid", { valid: false }, 0],
        ["the user vector is above 63", { userVector: 64 }, 0],
        ["the descriptor is not aligned", { upid: UPID + 8 }, 0],
        ["the descriptor has a reserved bit set", {}, 1 << 2],
        ["the descriptor has a high reserved bit set", {}, 0x8000_0000],
      ] as const
    ) {
      it(`raises #GP where ${what}, and writes nothing`, () => {
        const { upid, posted, completed } = send(mode, control(bits), { entry });
        assertEquals([completed, posted, upid.slice(2)], [false, [], [0, 0]]);
        assertEquals(upid[0], control(bits) >>> 0);
      });
    }

    it("says loudly that nothing else is modelled", () => {
      const error = assertThrows(() => send(mode, control(0), { acceleration: "apicv" }));
      const cause = error instanceof GuestError ? error.cause : error;
      assertEquals(cause instanceof NotModelled, true, String(error));
    });
  });
}
