import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  assembleInstruction,
  encodeNotification,
  encodeSubchannelId,
  PGM_OPERATION,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  S390_DIAG,
  S390_OP_DIAG_44,
} from "../../../abi/mod.ts";
import { s390EnterUserMode, S390Kernel } from "../../../guest/mod.ts";
import { Machine, S390_HOSTS, type S390Host, s390Host, type S390Vm } from "../../../host/mod.ts";
import { call500, diagnose, MEMORY } from "../../support/s390.ts";

const EINVAL = 0xffff_ffff_ffff_ffean;
const WORD = encodeSubchannelId({ number: 0 });
const hosts = Object.keys(S390_HOSTS) as S390Host[];
const ccwHosts = hosts.filter((host) => S390_HOSTS[host].css);

/** A device with queues 0 and 2; what it is notified of is written down. */
function device(notified: unknown[], more: { ioeventfd?: boolean; notificationData?: boolean } = {}) {
  return (vm: S390Vm) => {
    const { ioeventfd = true, notificationData = false } = more;
    const known = { number: 0, queues: [8, 0, 8], notificationData };
    vm.addCcwDevice({
      ...known,
      notified: (queue, next) => notified.push(next === undefined ? queue : [queue, next]),
    }, { ioeventfd });
  };
}

describe("notifying a virtio-ccw queue", () => {
  it("is served by the kernel where the queue has a doorbell, and answers with its place on the bus", () => {
    const notified: unknown[] = [];
    const result = call500(3, [WORD, 2, 0], { prepare: device(notified) });
    assertEquals([result.pic, result.gprs[2], notified], [0, 1n, [2]]);
    assertEquals(result.vm.userspaceExits.size, 0, "KVM_RUN does not come back");
    assertEquals(result.vm.exits(), { ICPT_INST: 1 });
    assertEquals(result.vcpu.stats.instruction_diagnose_500, 1);
    assertEquals(result.outcome, { kind: "registers", values: [1n] });
  });

  it("is served by user space where it has none, and answers 0", () => {
    const notified: unknown[] = [];
    const result = call500(3, [WORD, 2, 0], { prepare: device(notified, { ioeventfd: false }) });
    assertEquals([result.pic, result.gprs[2], notified], [0, 0n, [2]]);
    assertEquals([...result.vm.userspaceExits], [["KVM_EXIT_S390_SIEIC", 1]]);
  });

  it("does not look at the left half of the subchannel's word", () => {
    for (const ioeventfd of [true, false]) {
      const notified: unknown[] = [];
      const dirty = 0xffff_ffff_0000_0000n | BigInt(WORD);
      const { gprs, vm } = call500(3, [dirty, 0, 0], { prepare: device(notified, { ioeventfd }) });
      assertEquals([gprs[2], notified, vm.userspaceExits.size], [0n, [0], ioeventfd ? 0 : 1]);
    }
  });

  it("compares all 64 bits of the queue in the kernel, and 16 of them in user space", () => {
    const notified: unknown[] = [];
    const result = call500(3, [WORD, encodeNotification(2, 7), 0], {
      prepare: device(notified, { notificationData: true }),
    });
    assertEquals([result.gprs[2], notified], [0n, [[2, 7]]], "notification data never match a doorbell");
    assertEquals(result.vm.userspaceExits.get("KVM_EXIT_S390_SIEIC"), 1);
    assertEquals(result.vm.ccwBus.counters.cookieHits, 0);
  });

  it("fails with EINVAL where nobody is", () => {
    const nobody: readonly (readonly [word: number, queue: number])[] = [
      [WORD, 1], // a queue of size 0
      [WORD, 3], // no such queue
      [WORD, 1024], // VIRTIO_QUEUE_MAX
      [WORD, 5000],
      [encodeSubchannelId({ number: 1 }), 0],
      [encodeSubchannelId({ number: 0, ssid: 1 }), 0],
      [encodeSubchannelId({ number: 0, cssid: 0xfd, m: true }), 0],
      [0, 0],
      [0x1234, 0],
    ];
    for (const host of ccwHosts) {
      for (const [word, queue] of nobody) {
        const notified: unknown[] = [];
        const { pic, gprs } = call500(3, [word, queue, 0], { vm: { host }, prepare: device(notified) });
        assertEquals([pic, gprs[2], notified], [0, EINVAL, []], `${host}: ${word.toString(16)}, ${queue}`);
      }
    }
  });

  it("reaches the device by its own channel subsystem too", () => {
    const notified: unknown[] = [];
    const word = encodeSubchannelId({ cssid: 0xfe, m: true, number: 0 });
    assertEquals(call500(3, [word, 2, 0], { prepare: device(notified) }).gprs[2], 0n, "through user space");
    assertEquals(notified, [2]);
  });

  it("changes nothing but gpr 2", () => {
    const { gprs, before, cc } = call500(3, [WORD, 0, 5], { prepare: device([]) });
    for (let number = 0; number < 16; number++) {
      if (number !== 2) assertEquals(gprs[number], before[number], `gpr ${number}`);
    }
    assertEquals(cc[0], cc[1]);
  });
});

describe("the other calls of DIAGNOSE 0x500", () => {
  it("tolerate early printk, and nothing beyond memory", () => {
    for (const host of ccwHosts) {
      const answer = (address: number | bigint) => call500(0, [address], { vm: { host } }).gprs[2];
      assertEquals([answer(0), answer(MEMORY - 1)], [0n, 0n]);
      assertEquals([answer(MEMORY), answer(MEMORY + 1), answer(2n ** 64n - 1n)], [EINVAL, EINVAL, EINVAL]);
    }
  });

  it("drive the older transport, with another boundary, where QEMU still has it", () => {
    const calls: unknown[] = [];
    const legacy = {
      notify: (ring: bigint) => (calls.push(["notify", ring]), ring === BigInt(MEMORY) + 0x1000n),
      reset: (descriptor: bigint) => (calls.push(["reset", descriptor]), descriptor === 8n),
      setStatus: (descriptor: bigint) => (calls.push(["status", descriptor]), descriptor === 8n),
    };
    const answer = (subcode: number, address: number) =>
      call500(subcode, [address], { vm: { host: "kvm+qemu-2.5", legacy } });
    assertEquals(answer(0, MEMORY).gprs[2], 0n, "the end of memory counts as memory");
    assertEquals(calls, []);
    assertEquals([answer(0, MEMORY + 0x1000).gprs[2], answer(0, MEMORY + 0x1001).gprs[2]], [0n, EINVAL]);
    assertEquals([answer(1, 8).gprs[2], answer(1, 9).gprs[2]], [0n, EINVAL]);
    assertEquals([answer(2, 8).gprs[2], answer(2, 9).gprs[2]], [0n, EINVAL]);
    assertEquals(answer(3, WORD).pic, PGM_SPECIFICATION, "there is no channel subsystem");
    assertEquals(calls.length, 6);
  });

  it("interrupt the program where a subcode is unknown, and leave gpr 2", () => {
    const unknown: Record<S390Host, readonly (number | bigint)[]> = {
      "kvm": [1, 2, 5, 255, 256, 1n << 32n, 3n | (1n << 63n), -1],
      "kvm+qemu-7.2": [1, 2, 4, 5, 1n << 32n, -1],
      "kvm+qemu-2.5": [3, 4, 5, 1n << 32n],
      "tcg-7.2": [1, 2, 4, 5, 255, 256, 1n << 32n, -1],
    };
    for (const host of hosts) {
      for (const subcode of unknown[host]) {
        const result = call500(subcode, [0x77], { vm: { host } });
        assertEquals([result.pic, result.gprs[2]], [PGM_SPECIFICATION, 0x77n], `${host}: ${subcode}`);
        assertEquals([result.ilc, result.advance], [4, 4]);
        assertEquals(result.cc[0], result.cc[1]);
      }
    }
  });

  it("are unknown but for five numbers, whatever the rest of gpr 1 holds", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 5n, max: 2n ** 64n - 1n }), (subcode) => {
        assertEquals(call500(subcode, [1]).pic, PGM_SPECIFICATION);
      }),
      { numRuns: 25 },
    );
  });

  it("tell the highest address for memory devices, inclusive", () => {
    assertEquals(call500(4, [0]).gprs[2], BigInt(MEMORY - 1));
    assertEquals(call500(4, [0], { vm: { storageLimit: 2 ** 32 } }).gprs[2], 0xffff_ffffn);
  });
});

describe("DIAGNOSE", () => {
  it("is privileged, before its code is looked at", () => {
    for (const host of hosts) {
      for (const d2 of [0x10, 0x44, 0x9c, 0x258, 0x308, 0x500, 0x501, 0xfff]) {
        const result = diagnose({ fields: { d2 }, gprs: { 1: 3 }, vm: { host }, before: s390EnterUserMode });
        assertEquals([result.pic, result.ilc], [PGM_PRIVILEGED_OP, 4], `${host}: ${d2.toString(16)}`);
        assertEquals(result.vm.userspaceExits.size, 0);
      }
    }
  });

  it("finds its code by base and displacement under KVM", () => {
    const fields = { b2: 5, d2: 0x100 };
    const prepare = device([]);
    const good = diagnose({ fields, gprs: { 1: 3, 2: WORD, 5: 0xffff_0400 }, prepare });
    assertEquals([good.pic, good.gprs[2]], [0, 0n]);
    const tcg = diagnose({ fields, gprs: { 1: 3, 2: WORD, 5: 0x400 }, prepare, vm: { host: "tcg-7.2" } });
    assertEquals([tcg.pic, tcg.gprs[2]], [PGM_SPECIFICATION, BigInt(WORD)]);
    // Nor where the base is 0: the emulator takes both fields together for the code, 0x5500.
    const zero = { fields: { b2: 5, d2: 0x500 }, gprs: { 1: 3, 2: WORD }, prepare };
    assertEquals([diagnose(zero).pic, diagnose({ ...zero, vm: { host: "tcg-7.2" } }).pic], [
      0,
      PGM_SPECIFICATION,
    ]);
  });

  it("does not look at R1 and R3 of KVM's own calls", () => {
    fc.assert(
      fc.property(fc.nat(15), fc.nat(15), (r1, r3) => {
        const notified: unknown[] = [];
        const { pic } = diagnose({
          fields: { r1, r3 },
          gprs: { 1: 3, 2: WORD, 3: 2 },
          prepare: device(notified),
        });
        assertEquals([pic, notified], [0, [2]]);
      }),
      { numRuns: 20 },
    );
  });

  it("is an operation where no debugger planted a breakpoint, and unknown to the emulator", () => {
    for (
      const [host, expected] of [
        ["kvm", PGM_OPERATION],
        ["kvm+qemu-7.2", PGM_OPERATION],
        ["tcg-7.2", PGM_SPECIFICATION],
      ] as const
    ) {
      const { pic, advance } = diagnose({ fields: { d2: 0x501 }, vm: { host } });
      assertEquals([pic, advance], [expected, 4]);
    }
  });

  it("stops for a debugger that planted it, with the PSW back at it, as often as it is run", () => {
    const vm = new Machine().createS390Vm({ memory: MEMORY });
    const [vcpu] = vm.vcpus;
    let passed = false;
    const kernel = new S390Kernel({
      *main(cpu) {
        yield cpu.diag44();
        passed = true;
      },
    });
    vm.load(kernel.text);
    const site = kernel.entry + kernel.text.layout.site[S390_OP_DIAG_44];
    const saved = vm.words.bytes(site, 4)!;
    vm.memory.load(site, assembleInstruction(S390_DIAG, "big", { d2: 0x501 }));
    vm.breakpointAt = (address) => address === site;
    vm.start(kernel.entry);
    for (const stops of [1, 2]) {
      assertEquals(vm.machine.run(1e7).end, "stopped");
      assertEquals([vcpu.context.pc, passed, vcpu.interrupts.program], [site, false, undefined]);
      assertEquals([...vm.userspaceExits], [["KVM_EXIT_S390_SIEIC", stops]]);
    }
    vm.memory.load(site, saved);
    assertEquals(vm.machine.run(1e7).end, "finished");
    assertEquals([passed, vcpu.stats.instruction_diagnose_44], [true, 1]);
  });

  it("counts what it does not know as other, and user space refuses that", () => {
    for (const d2 of [0x204, 0x260, 0xfff]) {
      const { pic, vcpu, vm } = diagnose({ fields: { d2 } });
      assertEquals([pic, vcpu.stats.instruction_diagnose_other], [PGM_SPECIFICATION, 1]);
      assertEquals(vm.userspaceExits.get("KVM_EXIT_S390_SIEIC"), 1);
    }
  });
});

describe("hosts", () => {
  it("are known by name", () => {
    assertThrows(() => s390Host("xen"), RangeError, "Cannot simulate the s390 host xen: allowed are kvm, ");
    assert(hosts.every((host) => s390Host(host) === host));
  });
});
