import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { HOST_SEMANTICS, type HostBehaviour, type HostSemantics } from "../../host/mod.ts";

/** A release, as a number that grows: v5.18 is 518. */
type Release = number;

/** The release that each host is like; the patches of its year came on top of that. */
const LIKE: Readonly<Record<HostSemantics, Release>> = {
  "v6.19": 619,
  "2022": 518,
  "2021": 513,
  "2018": 418,
  "2012": 306,
};

/** What a host has before the release that it came with: the patches for which it is there, and what they build on. */
const AHEAD: Partial<Record<HostSemantics, Partial<HostBehaviour>>> = {
  "2022": { avic: "x2avic", avicKick: "2022" },
  "2021": { tertiaryControls: true },
};

/** Since when, from the kernel's history: the commits' releases. */
const SINCE: Partial<Record<keyof HostBehaviour, Release>> = {
  apicv: 310,
  haltPolling: 400,
  clockPairing: 411,
  icrFastPath: 505, // 1e9e2622a149
  timerFastPath: 508,
  tertiaryControls: 600, // d588bb9be1da
  avicInvalidTargets: 603,
  icrFastPathReenters: 612,
  haltFastPath: 612,
  deadlineFastPath: 618,
};

function expected(host: HostSemantics): Partial<HostBehaviour> {
  const like = LIKE[host];
  const since = Object.entries(SINCE).map(([name, release]) => [name, like >= release]);
  return {
    ...Object.fromEntries(since),
    apicAccessPage: like < 515, // 36222b117e36
    avic: like >= 600 ? "x2avic" : like >= 407 ? "avic" : "none",
    avicKick: like >= 603 ? "v6.19" : "slow",
    haltPollShrink: like >= 611 ? 2 : 0,
    ...AHEAD[host],
  };
}

describe("a host of a year", () => {
  for (const host of Object.keys(LIKE) as HostSemantics[]) {
    it(`has what had been merged by then, and the patches that it is there for (${host})`, () => {
      const wanted = expected(host);
      const names = Object.keys(wanted) as (keyof HostBehaviour)[];
      assertEquals<unknown>(
        Object.fromEntries(names.map((name) => [name, HOST_SEMANTICS[host][name]])),
        wanted,
      );
    });
  }

  it("is one of those that there are", () => {
    assertEquals(Object.keys(HOST_SEMANTICS).sort(), Object.keys(LIKE).sort());
  });
});
