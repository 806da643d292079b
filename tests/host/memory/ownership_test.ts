import { assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import * as abi from "../../../abi/mod.ts";
import {
  ENDED_GRANT_LIMIT,
  MemoryOwnership,
  OWNERSHIP_FAILURE_LIMIT,
  type OwnershipFailure,
  type Purpose,
} from "../../../host/mod.ts";

/** Kernel documentation, KVM-specific MSRs: the registers, and the bytes of the area that each names. */
const LENDERS: readonly { purpose: Purpose; msr: number; bytes: number }[] = [
  { purpose: "PV EOI", msr: 0x4b56_4d04, bytes: 4 },
  { purpose: "steal time", msr: 0x4b56_4d03, bytes: 64 },
  { purpose: "kvmclock", msr: 0x4b56_4d01, bytes: 32 },
  { purpose: "kvmclock", msr: 0x12, bytes: 32 },
  { purpose: "async PF", msr: 0x4b56_4d02, bytes: 64 },
];

/** An oracle, its clock, and what it reports. */
function rig() {
  const heard: OwnershipFailure[] = [];
  const clock = { now: 0 };
  const ownership = new MemoryOwnership({ now: () => clock.now, failed: (failure) => heard.push(failure) });
  const wrmsr = (vcpuId: number, msr: number, value: number) =>
    ownership.msrWritten(vcpuId, { msr, low: value >>> 0, high: Math.floor(value / 2 ** 32) });
  return { ownership, heard, clock, wrmsr };
}

describe("the memory-ownership oracle", () => {
  it("lets the host write nowhere at first: memory is the guest's", () => {
    const { ownership, heard } = rig();
    assertEquals(ownership.loan("PV EOI", 0).wrote(0, 1), false);
    assertEquals(ownership.loan("steal time", 3).wrote(0x1000, 64), false);
    assertEquals(heard.map(({ message }) => message), [
      "Cannot write 1 bytes at 0x0 for PV EOI of vCPU 0: the guest never lent them; allowed is nothing",
      "Cannot write 64 bytes at 0x1000 for steal time of vCPU 3: the guest never lent them; allowed is nothing",
    ]);
    assertEquals(ownership.grants(), []);
  });

  for (const { purpose, msr, bytes } of LENDERS) {
    it(`lends ${bytes} bytes for ${purpose} through MSR ${abi.hex(msr)}, and no byte beside them`, () => {
      const { ownership, heard, wrmsr } = rig();
      for (const base of [0x7000, 2 ** 40 + 0x1_0000]) {
        wrmsr(1, msr, base + 1);
        const loan = ownership.loan(purpose, 1);
        for (const [first, count] of [[0, 1], [0, bytes], [bytes - 1, 1], [4 % bytes, bytes - 4 || 1]]) {
          assertEquals(loan.wrote(base + first, count), true);
        }
        assertEquals(heard.length, 0);
        for (const [first, count] of [[-1, 1], [-1, bytes + 2], [bytes, 1], [bytes - 1, 2], [-8, 8]]) {
          assertEquals(loan.wrote(base + first, count), false);
        }
        assertEquals(heard.splice(0).length, 5);
      }
    });

    it(`takes it back for ${purpose} at once when MSR ${abi.hex(msr)} is switched off`, () => {
      const { ownership, heard, clock, wrmsr } = rig();
      clock.now = 5;
      wrmsr(0, msr, 0x4_0001);
      clock.now = 9;
      wrmsr(0, msr, 0x4_0000); // the address stays, the enable bit goes
      clock.now = 12;
      assertEquals(ownership.loan(purpose, 0).wrote(0x4_0000, 1), false);
      const [{ address, purpose: why, vcpuId, at, last }] = heard;
      assertEquals([address, why, vcpuId, at], [0x4_0000, purpose, 0, 12]);
      assertEquals(last, {
        purpose,
        vcpuId: 0,
        address: 0x4_0000,
        bytes,
        at: 5,
        by: "guest",
        ended: `MSR ${abi.hex(msr)} was switched off at 9`,
      });
    });
  }

  it("has one loan for kvmclock under both names of its register", () => {
    const { ownership, wrmsr } = rig();
    wrmsr(0, abi.MSR_KVM_SYSTEM_TIME, 0x1001);
    wrmsr(0, abi.MSR_KVM_SYSTEM_TIME_NEW, 0x2001);
    const clock = ownership.loan("kvmclock", 0);
    assertEquals([clock.wrote(0x2000, 32), clock.wrote(0x1000, 32)], [true, false]);
    wrmsr(0, abi.MSR_KVM_SYSTEM_TIME, 0);
    assertEquals(clock.wrote(0x2000, 32), false);
  });

  it("lends the wall clock's area for one update, with no enable bit and at any address", () => {
    const { ownership, heard, wrmsr } = rig();
    const wallClock = ownership.loan("wall clock", 0);
    for (const msr of [abi.MSR_KVM_WALL_CLOCK, abi.MSR_KVM_WALL_CLOCK_NEW]) {
      wrmsr(0, msr, 0x3001);
      // Version, the whole, version again.
      assertEquals([[0, 4], [0, 12], [0, 4]].map(([n, count]) => wallClock.wrote(0x3001 + n, count)), [
        true,
        true,
        true,
      ]);
      assertEquals([wallClock.wrote(0x3000, 4), wallClock.wrote(0x3002, 12)], [false, false]);
      ownership.updated("wall clock", 0);
      heard.length = 0;
      assertEquals(wallClock.wrote(0x3001, 4), false);
      assertMatch(heard[0].message, /until its update was done at 0/);
    }
    wrmsr(0, abi.MSR_KVM_WALL_CLOCK_NEW, 0);
    assertEquals(ownership.grants(), []);
  });

  it("follows an area that the guest moves", () => {
    const { ownership, heard, wrmsr } = rig();
    const loan = ownership.loan("steal time", 2);
    wrmsr(2, abi.MSR_KVM_STEAL_TIME, 0x1001);
    wrmsr(2, abi.MSR_KVM_STEAL_TIME, 0x1041);
    assertEquals([loan.wrote(0x1040, 64), loan.wrote(0x1000, 64)], [true, false]);
    assertMatch(
      heard[0].message,
      /until MSR 0x4b564d03 was written again at 0; allowed is \[0x1040, 0x1080\)$/,
    );
  });

  it("lends to one purpose of one vCPU: another's write to the same bytes is a failure that names both", () => {
    const { ownership, heard, wrmsr } = rig();
    wrmsr(1, abi.MSR_KVM_STEAL_TIME, 0x5001);
    assertEquals(ownership.loan("async PF", 1).wrote(0x5000, 8), false);
    assertEquals(ownership.loan("steal time", 0).wrote(0x5000, 8), false);
    assertEquals(ownership.loan("steal time", 1).wrote(0x5000, 8), true);
    assertEquals(
      heard[1].message,
      "Cannot write 8 bytes at 0x5000 for steal time of vCPU 0: vCPU 1 lent [0x5000, 0x5040) for steal time at 0 " +
        "by the guest's write; allowed is nothing",
    );
  });

  it("takes everything back from a vCPU that is reset, and nothing from the others", () => {
    for (const why of ["INIT", "RESET"] as const) {
      const { ownership, heard, wrmsr } = rig();
      for (const vcpuId of [0, 1]) {
        for (const { msr } of LENDERS) wrmsr(vcpuId, msr, 0x1_0000 * (vcpuId + 1) + 1);
      }
      ownership.vcpuReset(1, why);
      for (const { purpose } of LENDERS) {
        assertEquals(ownership.loan(purpose, 0).wrote(0x1_0000, 4), true);
        assertEquals(ownership.loan(purpose, 1).wrote(0x2_0000, 4), false);
      }
      assertEquals(heard.every(({ last }) => last?.ended === `${why} at 0`), true);
    }
  });

  it("clears at INIT what KVM's registers lose there: no area stays lent", () => {
    for (const { msr } of LENDERS) {
      assertEquals(abi.MSRS.find(({ index }) => index === msr)?.clearedByInit, true);
    }
  });

  it("leaves the rest alone when a range goes to another use", () => {
    const { ownership, heard, wrmsr } = rig();
    wrmsr(0, abi.MSR_KVM_STEAL_TIME, 0x1fc1); // the last 64 bytes of the page at 0x1000
    wrmsr(1, abi.MSR_KVM_STEAL_TIME, 0x2001);
    wrmsr(0, abi.MSR_KVM_PV_EOI_EN, 0x3001);
    ownership.reclaimed(0x2000, 0x1000, "the page was freed");
    assertEquals(ownership.loan("steal time", 0).wrote(0x1fc0, 64), true);
    assertEquals(ownership.loan("PV EOI", 0).wrote(0x3000, 1), true);
    assertEquals(ownership.loan("steal time", 1).wrote(0x2000, 8), false);
    assertMatch(heard[0].message, /until the page was freed at 0; allowed is nothing/);
  });

  it("does not listen to MSRs that lend nothing: an interrupt's delivery needs no memory", () => {
    const { ownership, wrmsr } = rig();
    for (const msr of [abi.MSR_KVM_POLL_CONTROL, abi.MSR_KVM_ASYNC_PF_INT, abi.MSR_KVM_ASYNC_PF_ACK, 0x830]) {
      wrmsr(0, msr, 0x1001);
    }
    assertEquals(ownership.grants(), []);
  });

  it("takes what user space restores for the guest's own word, and says who wrote it", () => {
    const { ownership, heard } = rig();
    ownership.msrWritten(0, { msr: abi.MSR_KVM_PV_EOI_EN, low: 0x1001, high: 1, by: "user space" });
    assertEquals(ownership.loan("PV EOI", 0).wrote(2 ** 32 + 0x1000, 1), true);
    assertEquals(ownership.loan("PV EOI", 0).wrote(2 ** 32 + 0x1002, 8), false);
    assertMatch(
      heard[0].message,
      /vCPU 0 lent \[0x100001000, 0x100001004\) for PV EOI at 0 by the user space's/,
    );
  });

  it("keeps so many failures and no more, counts all, and forgets the oldest loans", () => {
    const { ownership, heard, wrmsr } = rig();
    const loan = ownership.loan("PV EOI", 0);
    for (let n = 0; n <= ENDED_GRANT_LIMIT + 1; n++) wrmsr(0, abi.MSR_KVM_PV_EOI_EN, 0x1000 + 4 * n + 1);
    loan.wrote(0x1000, 1);
    loan.wrote(0x1004, 1);
    assertEquals(heard.map(({ last }) => last?.address), [undefined, 0x1004]);
    for (let n = 0; n < OWNERSHIP_FAILURE_LIMIT; n++) loan.wrote(0, 1);
    assertEquals([ownership.failures.length, ownership.failed], [
      OWNERSHIP_FAILURE_LIMIT,
      OWNERSHIP_FAILURE_LIMIT + 2,
    ]);
  });
});

/** A guest kernel's life on one vCPU: it lends, may or may not take back, and leaves; the host writes where it was told. */
function leave(shutsDown: boolean) {
  const { ownership, heard, clock, wrmsr } = rig();
  /** What the host believes: the register's value, as KVM keeps it. */
  let register = 0;
  const write = (value: number) => {
    register = value;
    wrmsr(0, abi.MSR_KVM_PV_EOI_EN, value);
  };
  const hostArms = () => {
    if ((register & abi.KVM_MSR_ENABLED) !== 0) ownership.loan("PV EOI", 0).wrote(register - 1, 1);
  };
  write(0x9001);
  hostArms();
  assertEquals(heard, []);
  clock.now = 100;
  if (shutsDown) write(0);
  clock.now = 200;
  ownership.handedOver("the image of a hibernated kernel was resumed");
  clock.now = 300;
  hostArms();
  return heard;
}

describe("a kernel that leaves (CVE-2021-47112's kind)", () => {
  it("and forgets its boot CPU's PV EOI has the host write into its successor's memory", () => {
    assertEquals(leave(false).map(({ message }) => message), [
      "Cannot write 1 bytes at 0x9000 for PV EOI of vCPU 0: vCPU 0 lent [0x9000, 0x9004) for PV EOI at 0 by the " +
      "guest's write, until the image of a hibernated kernel was resumed at 200; allowed is nothing",
    ]);
  });

  it("and switches it off is safe", () => {
    assertEquals(leave(true), []);
  });
});

const happening = fc.oneof(
  fc.record({
    kind: fc.constant("wrmsr" as const),
    vcpu: fc.nat(2),
    lender: fc.nat(LENDERS.length - 1),
    slot: fc.nat(7),
    on: fc.boolean(),
  }),
  fc.record({ kind: fc.constant("reset" as const), vcpu: fc.nat(2) }),
  fc.record({ kind: fc.constant("handover" as const) }),
  fc.record({
    kind: fc.constant("reclaim" as const),
    first: fc.nat(600),
    bytes: fc.integer({ min: 1, max: 80 }),
  }),
);
const writing = fc.record({
  kind: fc.constant("write" as const),
  vcpu: fc.nat(2),
  lender: fc.nat(LENDERS.length - 1),
  first: fc.nat(600),
  bytes: fc.integer({ min: 1, max: 70 }),
});

describe("the oracle, against a map of who owns each byte", () => {
  it("lets a write pass exactly where all of its bytes are lent for it, and names a lender that really was one", () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(happening, writing, writing), { maxLength: 60 }), (events) => {
        const { ownership, heard, wrmsr } = rig();
        const keyOf = (vcpu: number, lender: number) => `${LENDERS[lender].purpose} ${vcpu}`;
        /** By purpose and vCPU: the bytes that are lent. */
        const lent = new Map<string, Set<number>>();
        const everLent = new Set<number>();
        for (const event of events) {
          if (event.kind === "wrmsr") {
            const { msr, bytes } = LENDERS[event.lender];
            wrmsr(event.vcpu, msr, event.slot * 64 + (event.on ? 1 : 0));
            const range = Array.from({ length: event.on ? bytes : 0 }, (_, n) => event.slot * 64 + n);
            lent.set(keyOf(event.vcpu, event.lender), new Set(range));
            for (const byte of range) everLent.add(byte);
          } else if (event.kind === "reset") {
            ownership.vcpuReset(event.vcpu, "INIT");
            for (const key of lent.keys()) if (key.endsWith(` ${event.vcpu}`)) lent.delete(key);
          } else if (event.kind === "handover") {
            ownership.handedOver("kexec");
            lent.clear();
          } else if (event.kind === "reclaim") {
            const taken = Array.from({ length: event.bytes }, (_, n) => event.first + n);
            ownership.reclaimed(event.first, event.bytes, "freed");
            for (const [key, bytes] of lent) if (taken.some((byte) => bytes.has(byte))) lent.delete(key);
          } else {
            const { vcpu, lender, first, bytes } = event;
            const wanted = Array.from({ length: bytes }, (_, n) => first + n);
            const mine = lent.get(keyOf(vcpu, lender)) ?? new Set();
            const allowed = wanted.every((byte) => mine.has(byte));
            const before = heard.length;
            assertEquals(ownership.loan(LENDERS[lender].purpose, vcpu).wrote(first, bytes), allowed);
            assertEquals(heard.length, before + (allowed ? 0 : 1));
            if (!allowed) {
              assertEquals(heard[before].last !== undefined, wanted.some((byte) => everLent.has(byte)));
            }
          }
        }
        const count = [...lent.values()].filter(({ size }) => size > 0).length;
        assertEquals(ownership.grants().length, count);
      }),
      { numRuns: 300 },
    );
  });
});
