import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_DEFAULT_BASE,
  PFERR_PRESENT,
  PFERR_WRITE,
  PTE_A,
  PTE_D,
  PTE_P,
  PTE_PCD,
} from "../../../../abi/mod.ts";
import {
  type BackendName,
  BACKENDS,
  GuestError,
  IoEventFd,
  LimitExceeded,
  NotModelled,
  type UserspaceDevice,
} from "../../../../host/mod.ts";
import { DATA } from "../../../support/guests.ts";
import { IOAPIC } from "../../../support/ioapic.ts";
import {
  addUser,
  KERNEL_PAGE,
  pagingOn,
  PagingRig,
  setEfer,
  storeEntry,
  tells,
  writeProtect,
} from "../../../support/paging.ts";

/** Where guests map what they need; none of these is the page's own address. */
const APIC = -0x2000;
const IO = 0x7fff_ffff_f000;
const DEVICE = -0x7000_0000_0000;
const MMIO = 0xd000_0000;
const READ_ONLY = 0x40_0000;
const UNCACHED = KERNEL_PAGE | PTE_PCD;

/** Notes what reaches user space. */
class Recorder implements UserspaceDevice {
  readonly log: string[] = [];

  access(address: number, bytes: number, value: bigint | undefined): bigint | undefined {
    this.log.push(
      value === undefined
        ? `read ${bytes} at ${address.toString(16)}`
        : `write ${bytes} at ${address.toString(16)}: ${value.toString(16)}`,
    );
    return value === undefined ? 0x8877_6655_4433_2211n & ((1n << BigInt(8 * bytes)) - 1n) : undefined;
  }
}

function recorded(backend: BackendName): { rig: PagingRig; log: string[] } {
  const rig = new PagingRig({
    vm: { backend, slots: [{ base: READ_ONLY, size: 8192, readonly: true }] },
  }).fixups();
  const device = new Recorder();
  rig.vm.userspaceMmioDevice = device;
  return { rig, log: device.log };
}

for (const backend of BACKENDS) {
  describe(`MMIO behind tables (${backend})`, () => {
    it("reaches user space at the guest-physical address, whatever the linear one", () => {
      const { rig, log } = recorded(backend);
      rig.map(DEVICE, MMIO, { flags: UNCACHED });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        for (let turn = 0; turn < 2; turn++) {
          yield cpu.store8(DEVICE + 1, 0x1ff);
          yield cpu.store64(DEVICE + 8, 0x0506_0708, 0x0102_0304);
          yield cpu.load16(DEVICE + 3);
          assertEquals(cpu.rax, 0x2211n);
          yield cpu.xadd32(DEVICE + 0x10, 1);
          assertEquals(cpu.eax, 0x4433_2211);
          yield cpu.bts(DEVICE + 0x100, -32);
        }
      });
      const once = [
        "write 1 at d0000001: ff",
        "write 8 at d0000008: 102030405060708",
        "read 2 at d0000003",
        "read 4 at d0000010",
        "write 4 at d0000010: 44332212",
        "read 4 at d00000fc",
        "write 4 at d00000fc: 44332211",
      ];
      assertEquals(log, [...once, ...once]);
    });

    it("is MMIO or memory by itself in each page of an access across two", () => {
      const { rig, log } = recorded(backend);
      rig.map(DEVICE, DATA).map(DEVICE + 4096, MMIO + 0x5000).map(DEVICE + 8192, DATA + 0x3000);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(DEVICE + 0xfff, 0x0403_0201);
        yield cpu.load32(DEVICE + 0xfff);
        assertEquals(cpu.eax, 0x3322_1101);
        yield cpu.store64(DEVICE + 0x1ffd, 0x4433_2211, 0x8877_6655);
      });
      assertEquals(log, [
        "write 3 at d0005000: 40302",
        "read 3 at d0005000",
        "write 3 at d0005ffd: 332211",
      ]);
      assertEquals(rig.vm.memory.read(DATA + 0x3000, 8), 0x88_7766_5544n);
      assertEquals(rig.vm.memory.byte(DATA + 0xfff), 1);
    });

    it("whose second page is absent raises #PF there before anything happens", () => {
      const { rig, log } = recorded(backend);
      rig.map(DEVICE, MMIO);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        assertEquals(yield* tells(() => cpu.store32(DEVICE + 0xffe, 1)), `#PF(${PFERR_WRITE})`);
        assertEquals(rig.lastFault!.cr2, DEVICE + 4096);
        assertEquals(yield* tells(() => cpu.load64(DEVICE + 0xffe)), "#PF(0)");
      });
      assertEquals(log, []);
    });

    it("is guarded by the tables' rights, and sets their accessed and dirty flags", () => {
      const { rig, log } = recorded(backend);
      rig.map(DEVICE, MMIO, { flags: PTE_P }).map(DEVICE + 4096, MMIO);
      const seen: string[] = [];
      const user = addUser(rig, function* (cpu) {
        seen.push(yield* tells(() => cpu.load32(DEVICE)));
      });
      rig.finish(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield* writeProtect(cpu);
        assertEquals(yield* tells(() => cpu.store32(DEVICE, 1)), `#PF(${PFERR_PRESENT | PFERR_WRITE})`);
        yield cpu.load32(DEVICE);
        yield cpu.store32(DEVICE + 4096, 1);
        yield cpu.sysret(user);
      });
      assertEquals(seen, ["#PF(5)"]);
      assertEquals(log, ["read 4 at d0000000", "write 4 at d0000000: 1"]);
      assertEquals(rig.word(rig.entry(DEVICE)) & (PTE_A | PTE_D), PTE_A);
      assertEquals(rig.word(rig.entry(DEVICE + 4096)) & (PTE_A | PTE_D), PTE_A | PTE_D);
    });

    it("moves with the tables: KVM walks them again for each access", () => {
      const { rig, log } = recorded(backend);
      rig.map(DEVICE, MMIO);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(DEVICE, 1);
        yield* storeEntry(cpu, rig.entry(DEVICE), MMIO + 0x1000);
        yield cpu.invlpg(DEVICE);
        yield cpu.store32(DEVICE, 2);
        yield* storeEntry(cpu, rig.entry(DEVICE), DATA);
        yield cpu.invlpg(DEVICE);
        yield cpu.store32(DEVICE, 3);
      });
      assertEquals(log, ["write 4 at d0000000: 1", "write 4 at d0001000: 2"]);
      assertEquals(rig.word(DATA), 3);
    });

    it("rings a doorbell in the kernel by an ioeventfd", () => {
      const { rig, log } = recorded(backend);
      const bell = new IoEventFd(MMIO + 0x20, 4);
      rig.vm.mmioBus.add(bell);
      rig.map(DEVICE, MMIO);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(DEVICE + 0x20, 7);
        yield cpu.store32(DEVICE + 0x24, 8);
      });
      assertEquals([bell.rung, log], [1, ["write 4 at d0000024: 8"]]);
    });

    it("takes the writes to a read-only slot, which is read as memory", () => {
      const { rig, log } = recorded(backend);
      rig.map(DEVICE, READ_ONLY + 4096);
      rig.vm.memory.find(READ_ONLY, 1)!.u32[1024] = 0x77;
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.load32(DEVICE);
        assertEquals(cpu.eax, 0x77);
        yield cpu.store32(DEVICE, 5);
        yield cpu.xadd32(DEVICE, 1);
        assertEquals(cpu.eax, 0x77);
        yield cpu.load32(DEVICE);
        assertEquals(cpu.eax, 0x77);
      });
      assertEquals(log, ["write 4 at 401000: 5", "write 4 at 401000: 78"]);
    });
  });

  describe(`the APICs behind tables (${backend})`, () => {
    it("are where the guest maps their pages: an interrupt to itself from an xAPIC in the upper half", () => {
      const rig = new PagingRig({ vm: { backend } }).fixups();
      rig.map(APIC, APIC_DEFAULT_BASE, { flags: UNCACHED });
      let handled = 0;
      rig.on(0x41, function* (cpu) {
        handled++;
        yield cpu.store32(APIC + 0xb0, 0);
      });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(APIC + 0xf0, 0x1ff);
        yield cpu.load32(APIC + 0xf0);
        assertEquals(cpu.eax, 0x1ff);
        yield cpu.load32(APIC + 0x20);
        assertEquals(cpu.eax, 0);
        yield cpu.sti();
        yield cpu.store32(APIC + 0x300, 0x4_0041);
        yield cpu.work(10_000);
        assertEquals(handled, 1);
        // Nobody mapped it where it is.
        assertEquals(yield* tells(() => cpu.load32(APIC_DEFAULT_BASE + 0x20)), "#PF(0)");
        yield cpu.load32(APIC + 0x120);
        assertEquals(cpu.eax, 0, "ISR is empty: the EOI has arrived");
      });
    });

    it("answer at the I/O APIC's page, too", () => {
      const rig = new PagingRig({ vm: { backend } }).fixups();
      rig.map(IO, IOAPIC, { flags: UNCACHED });
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.store32(IO, 0x12);
        yield cpu.store32(IO + 0x10, 0x1_0044);
        yield cpu.store32(IO, 0x12);
        yield cpu.load32(IO + 0x10);
        assertEquals(cpu.eax, 0x1_0044);
      });
    });

    for (const acceleration of backend === "vmx" ? ["apicv", "ipiv"] as const : ["avic", "x2avic"] as const) {
      it(`are virtualized by hardware at any linear address (${acceleration})`, () => {
        const rig = new PagingRig({ vm: { backend, acceleration } }).fixups();
        rig.map(APIC, APIC_DEFAULT_BASE, { flags: UNCACHED });
        const seen: number[] = [];
        for (const vector of [0x41, 0x51]) {
          rig.on(vector, function* (cpu) {
            seen.push(vector);
            yield cpu.load32(APIC + 0x100 + 0x10 * (vector >>> 5));
            assertEquals(cpu.eax, 1 << (vector & 31), "its bit in ISR");
            yield cpu.store32(APIC + 0xb0, 0);
          });
        }
        rig.finish(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          yield cpu.store32(APIC + 0xf0, 0x1ff);
          yield cpu.sti();
          yield cpu.store32(APIC + 0x300, 0x4_0041);
          yield cpu.work(20_000);
          yield cpu.store32(APIC + 0x80, 0x60);
          yield cpu.store32(APIC + 0x300, 0x4_0051);
          yield cpu.work(20_000);
          assertEquals(seen, [0x41]);
          yield cpu.load32(APIC + 0x80);
          assertEquals(cpu.eax, 0x60);
          yield cpu.store32(APIC + 0x80, 0);
          yield cpu.work(20_000);
        });
        assertEquals(seen, [0x41, 0x51]);
        assertEquals(rig.faults, []);
      });

      it(`hold no operand of a system instruction, which ends in guest terms (${acceleration})`, () => {
        const rig = new PagingRig({
          machine: { limits: { steps: 5_000, exits: 1_000 } },
          vm: { backend, acceleration },
        }).map(APIC, APIC_DEFAULT_BASE, { flags: UNCACHED });
        let beyond = false;
        rig.start(function* (cpu) {
          yield* pagingOn(cpu, rig.tables);
          yield cpu.store32(APIC + 0xf0, 0x1ff);
          yield cpu.invpcid(2, APIC + 0x20);
          beyond = true;
        });
        const error = assertThrows(() => rig.vm.machine.run(1e9), Error) as Error;
        assert(error instanceof GuestError || error instanceof NotModelled || error instanceof LimitExceeded);
        assertEquals(beyond, false);
      });
    }
  });
}
