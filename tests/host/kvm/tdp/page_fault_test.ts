import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  EPT_VIOLATION_FETCH,
  EPT_VIOLATION_LINEAR,
  EPT_VIOLATION_READ,
  EPT_VIOLATION_TRANSLATED,
  EPT_VIOLATION_WRITE,
  HIGH,
  LEVEL_PD,
  LEVEL_PT,
  X2APIC_EOI,
  X2APIC_ICR,
  X2APIC_SELF_IPI,
} from "../../../../abi/mod.ts";
import { type BackendName, BACKENDS, RunFailed, straight, TP, type Vm } from "../../../../host/mod.ts";
import { enableX2apic, IDT, Rig, startAps } from "../../../support/guests.ts";
import { pagingOn, PagingRig, tells } from "../../../support/paging.ts";
import { DISK, hardwareFinds, mapped, SMALL, task, trackedRig } from "../../../support/tdp.ts";

const PAGE = 4096;
/** Pages that no program or table of a rig's is in. */
const FAR = 0x4_0000;

/** The faults that KVM traced: address, error code or qualification. */
function faults(vm: Vm): [address: number, code: number][] {
  return [...vm.tracer.records()].filter(({ event }) => event === TP.kvm_page_fault).map(({ args }) => [
    args[1] * HIGH + args[0],
    args[3] * HIGH + args[2],
  ]);
}

/** What hardware says of an access to a page that is not mapped. */
const CODES: Record<BackendName, { read: number; write: number; fetch: number }> = {
  // SDM 3C table 28-7: the access, a linear address that was translated; no rights.
  vmx: {
    read: EPT_VIOLATION_READ | EPT_VIOLATION_LINEAR | EPT_VIOLATION_TRANSLATED,
    write: EPT_VIOLATION_WRITE | EPT_VIOLATION_LINEAR | EPT_VIOLATION_TRANSLATED,
    fetch: EPT_VIOLATION_FETCH | EPT_VIOLATION_LINEAR | EPT_VIOLATION_TRANSLATED,
  },
  // APM 2 15.25.6: a user's, of the final address (bit 32).
  svm: { read: HIGH + 4, write: HIGH + 6, fetch: HIGH + 0x14 },
};

for (const backend of BACKENDS) {
  describe(`a page that the guest uses for the first time (${backend})`, () => {
    it("is mapped by a fault, once, and the access is made again", () => {
      const vm = trackedRig(backend).finish(function* (cpu) {
        yield cpu.store32(FAR, 7);
        yield cpu.load32(FAR);
        assertEquals(cpu.eax, 7);
        yield cpu.store32(FAR + PAGE - 4, 8);
      });
      const here = faults(vm).filter(([address]) => address >= FAR && address < FAR + PAGE);
      assertEquals(here, [[FAR, CODES[backend].write]]);
      assertEquals(mapped(vm, FAR), SMALL);
      assertEquals(mapped(vm, FAR + PAGE), undefined, "its neighbour");
      const { stats } = vm.bootstrap;
      assertEquals([stats.pf_taken, stats.pf_fixed], [faults(vm).length, faults(vm).length]);
      assertEquals([stats.pf_spurious, stats.pf_emulate, stats.pf_waits], [0, 0, 0]);
    });

    it("is mapped writable by a read, so that a write costs no second fault", () => {
      const vm = trackedRig(backend).finish(function* (cpu) {
        yield cpu.load32(FAR);
        yield cpu.store32(FAR, 1);
      });
      assertEquals(faults(vm).filter(([address]) => address === FAR), [[FAR, CODES[backend].read]]);
    });

    it("may be one that holds code", () => {
      const rig = trackedRig(backend);
      const vm = rig.finish(function* main() {});
      const [first] = faults(vm);
      assertEquals(first[1], CODES[backend].fetch);
      assert(first[0] >= 0x10_0000, "text");
    });

    it("is one fault for all vCPUs that come later, each of which walks the same tables", () => {
      const rig = trackedRig(backend, { vcpus: 2 });
      rig.aps(function* second(cpu) {
        yield cpu.store32(FAR + 8, 2);
      });
      const vm = rig.finish(function* (cpu) {
        yield cpu.store32(FAR, 1);
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        yield cpu.work(100_000);
      });
      assertEquals([rig.word(FAR), rig.word(FAR + 8)], [1, 2]);
      assertEquals(faults(vm).filter(([address]) => address >= FAR && address < FAR + PAGE).length, 1);
      const [a, b] = vm.vcpus;
      assertEquals(a.root, b.root);
      assertEquals(a.root?.users, 3, "both, and KVM itself");
    });
  });

  describe(`a page that two vCPUs use for the first time at once (${backend})`, () => {
    it("is mapped by one of them, and the other's fault is spurious", () => {
      let spurious = 0;
      for (let seed = 0; seed < 40; seed++) {
        const rig = trackedRig(backend, { vcpus: 2, policy: { random: seed } });
        const { vm } = rig;
        rig.aps(function* second(cpu) {
          for (let page = 0; page < 4; page++) yield cpu.load32(FAR + page * PAGE);
        });
        rig.finish(function* (cpu) {
          yield* enableX2apic(cpu);
          yield* startAps(cpu, 1);
          for (let page = 0; page < 4; page++) yield cpu.load32(FAR + page * PAGE);
        });
        for (const { stats } of vm.vcpus) {
          spurious += stats.pf_spurious;
          assertEquals(stats.pf_taken, stats.pf_fixed + stats.pf_spurious + stats.pf_emulate);
        }
      }
      assert(spurious > 0, "in some order");
    });
  });

  describe(`guests without page tables, where KVM tracks nothing (${backend})`, () => {
    it("have a root and nothing in it: no fault, no TLB, no flush that costs", () => {
      const rig = new Rig({ vm: { backend } });
      const vm = rig.finish(function* (cpu) {
        yield cpu.store32(FAR, 7);
      });
      assertEquals(vm.mmu.tables?.count, 1);
      assertEquals(vm.counters().kvm_page_fault, undefined);
      assertEquals(vm.machine.scheduler.pcpus[0].tlbInUse, undefined);
    });
  });

  describe(`the entries of what a guest has written and read (${backend})`, () => {
    it("have their accessed and dirty flags from the beginning: hardware has none to set", () => {
      const rig = trackedRig(backend, { acceleration: backend === "vmx" ? "apicv" : "none" });
      const { vm } = rig;
      const words: string[] = [];
      const note = (): void => {
        const { low, high } = vm.mmu.tables!.find(FAR);
        words.push(`${high.toString(16)} ${low.toString(16)}`);
      };
      rig.finish(function* (cpu) {
        yield cpu.load32(FAR);
        note();
        yield cpu.store32(FAR, 1);
        note();
      });
      assertEquals(words[0], words[1]);
    });
  });

  describe(`what no slot backs, or may not be written (${backend})`, () => {
    it("is emulated as ever, and mapped never", () => {
      const rig = trackedRig(backend);
      const seen: string[] = [];
      rig.vm.userspaceMmioDevice = {
        access(address, bytes, value) {
          seen.push(`${address.toString(16)} ${bytes} ${value ?? "read"}`);
          return value === undefined ? 5n : undefined;
        },
      };
      const vm = rig.finish(function* (cpu) {
        yield cpu.store32(0xc000_0000, 9);
        yield cpu.load32(0xc000_0000);
        assertEquals(cpu.eax, 5);
      });
      assertEquals(seen, ["c0000000 4 9", "c0000000 4 read"]);
      assertEquals(mapped(vm, 0xc000_0000), undefined);
      assertEquals(vm.bootstrap.stats.pf_emulate, 1, "the first marks the page as MMIO");
    });

    it("is mapped without W where the slot is KVM_MEM_READONLY, and only writes are MMIO", () => {
      const base = 0x1000_0000;
      const rig = trackedRig(backend, { slots: [{ base, size: PAGE, readonly: true }] });
      const written: bigint[] = [];
      rig.vm.userspaceMmioDevice = {
        access: (_a, _b, value) => void (value !== undefined && written.push(value)),
      };
      const vm = rig.finish(function* (cpu) {
        yield cpu.load32(base);
        yield cpu.store32(base, 3);
        yield cpu.load32(base);
        assertEquals(cpu.eax, 0);
      });
      assertEquals([mapped(vm, base), written], [{ level: LEVEL_PT, writable: false }, [3n]]);
    });
  });

  describe(`guests with page tables of their own (${backend})`, () => {
    it("fault in the second dimension for tables and for pages, and know nothing of it", () => {
      const rig = new PagingRig({ machine: { staleness: true }, vm: { backend, trace: 1 << 16 } });
      const linear = -0x8000_0000;
      rig.map(linear, FAR);
      const vm = rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.store32(linear + 4, 9)), "ok");
        yield cpu.load32(FAR + 4);
        assertEquals(cpu.eax, 9);
      });
      const tables = faults(vm).filter(([address]) => address >= 0x8_0000 && address < 0x10_0000);
      assert(tables.length >= 4, "the tables of the way to both addresses");
      // APM 2 15.25.6: bit 33, the guest's tables; SDM 3C table 28-7: bit 7 without bit 8.
      for (const [, code] of tables) {
        assertEquals(
          backend === "svm" ? Math.floor(code / HIGH) : (code >>> 7) & 3,
          backend === "svm" ? 2 : 1,
        );
      }
      assertEquals(mapped(vm, FAR), SMALL);
      assertEquals(rig.faults, []);
    });
  });

  describe(`an event whose gate is away (${backend})`, () => {
    it("is delivered when the page has come: the exit in its delivery loses nothing", () => {
      const rig = trackedRig(backend);
      let taken = 0;
      rig.on(0x51, function* handler(cpu) {
        taken++;
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      const vm = rig.vm;
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        straight(vm.evict(IDT, PAGE)); // Nobody uses it yet.
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x51);
        yield cpu.work(10);
        assertEquals(taken, 1);
      });
      assertEquals(vm.bootstrap.stats.pf_waits, 1);
      assertEquals(vm.residency!.state(IDT), "present");
    });

    it("is an NMI as well, which then blocks others as it should", () => {
      const rig = trackedRig(backend, { vcpus: 2 });
      const { vm } = rig;
      let taken = 0;
      rig.on(2, function* nmi(cpu) {
        taken++;
        yield cpu.work(100);
      });
      rig.aps(function* sender(cpu) {
        yield* enableX2apic(cpu);
        yield cpu.wrmsr(X2APIC_ICR, 0x4402, 0);
        yield cpu.work(2_000_000);
        yield cpu.wrmsr(X2APIC_ICR, 0x4402, 0);
      });
      vm.userspacePioDevice = { access: () => void straight(vm.evict(IDT, PAGE)) };
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 1);
        yield cpu.out8(0x80, 1);
        yield cpu.work(3_000_000);
      });
      assertEquals([taken, vm.bootstrap.stats.pf_waits], [2, 1]);
    });

    it("is an exception that KVM injects as well, with its error code", () => {
      const rig = trackedRig(backend);
      const { vm } = rig;
      const codes: number[] = [];
      rig.on(13, function* gp(cpu) {
        codes.push(cpu.errorCode);
        yield cpu.pause();
        cpu.fixup();
      });
      vm.userspacePioDevice = { access: () => void straight(vm.evict(IDT, PAGE)) };
      rig.finish(function* (cpu) {
        yield cpu.out8(0x80, 1);
        assertEquals(yield* tells(() => cpu.wrmsr(0x1b, 0xff, 0xffff_ffff)), "#GP(0)");
      });
      assertEquals([codes, vm.bootstrap.stats.pf_waits], [[0], 1]);
    });
  });

  describe(`a page that the host cannot read (${backend})`, () => {
    it("makes KVM_RUN fail with EFAULT, loudly", () => {
      const disk = { ...DISK, fails: () => true };
      const rig = trackedRig(backend, { disk });
      straight(rig.vm.evict(FAR, PAGE));
      const error = assertThrows(
        () =>
          rig.run(function* (cpu) {
            yield cpu.load32(FAR);
          }),
        RunFailed,
        "Cannot run vCPU 0: KVM_RUN failed with EFAULT, as the host cannot read its page at 0x40000",
      );
      assertEquals([error.vcpuId, error.errno, error.gpa], [0, "EFAULT", FAR]);
      const exits = [...rig.vm.tracer.records()].filter(({ event }) => event === TP.kvm_userspace_exit);
      assertEquals(exits.map(({ args }) => args[0]), [0], "KVM_EXIT_UNKNOWN: KVM says nothing of memory");
    });
  });

  describe(`pages of 2 MiB (${backend})`, () => {
    const base = 2 ** 30;
    const size = 2 ** 22;
    const huge = { level: LEVEL_PD, writable: true };

    it("are mapped where the host has such, and one fault is enough for all of one", () => {
      const rig = trackedRig(backend, { hostHugePages: true, slots: [{ base, size }] });
      const vm = rig.finish(function* (cpu) {
        for (let at = base; at < base + 2 ** 21; at += 64 * PAGE) yield cpu.store32(at, at);
      });
      assertEquals(mapped(vm, base), huge);
      assertEquals(faults(vm).filter(([address]) => address >= base).length, 1);
      assertEquals(hardwareFinds(vm, base)?.shift, 21);
      assertEquals(mapped(vm, base + 2 ** 21), undefined);
    });

    it("are not where the host has none, which is what it has by default", () => {
      const rig = trackedRig(backend, { slots: [{ base, size }] });
      const vm = rig.finish(function* (cpu) {
        yield cpu.store32(base, 1);
      });
      assertEquals(mapped(vm, base), SMALL);
    });

    it("are not where the slot has only part of one, or at another offset", () => {
      const odd = base + 2 ** 21 - PAGE;
      const rig = trackedRig(backend, {
        hostHugePages: true,
        slots: [{ base: odd, size: 2 ** 22 + 2 * PAGE }],
      });
      const vm = rig.finish(function* (cpu) {
        yield cpu.store32(odd, 1);
        yield cpu.store32(base + 2 ** 21, 1);
      });
      assertEquals(mapped(vm, odd), SMALL, "the slot begins in it");
      // All of the second is in the slot; the host has that at a multiple of 1 GiB, less a page.
      assertEquals(mapped(vm, base + 2 ** 21), SMALL, "misaligned");
    });

    it("are split where the host evicts a page of one, and come back small", () => {
      const rig = trackedRig(backend, { hostHugePages: true, slots: [{ base, size }] });
      const { vm } = rig;
      let waited = 0;
      task(vm, vm.evict(base + 5 * PAGE, PAGE), 100_000);
      rig.finish(function* (cpu) {
        yield cpu.store32(base, 1);
        assertEquals(mapped(vm, base), huge);
        yield cpu.work(200_000);
        assertEquals(mapped(vm, base), undefined, "one entry was all");
        yield cpu.load32(base);
        assertEquals(cpu.eax, 1);
        assertEquals(mapped(vm, base), SMALL);
        waited = vm.bootstrap.stats.pf_waits;
        yield cpu.load32(base + 5 * PAGE);
        assertEquals(mapped(vm, base + 5 * PAGE), SMALL);
      });
      assertEquals([waited, vm.bootstrap.stats.pf_waits], [0, 1]);
    });
  });
}
