import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  EV_STATUS,
  KVM_MAGIC_PAGE,
  KVM_VCPU_ARCH_SHARED,
  KVM_VCPU_ARCH_SHARED_LE,
  MachineFault,
  magicDisplacement,
  type MagicField,
  MSR_DR,
  MSR_IR,
  MSR_PR,
  MSR_SF,
  PPC_BLR,
  PPC_LR,
  ppcAsm,
  type PpcCpu,
  SWABBED_FIELDS,
} from "../../../abi/mod.ts";
import { ppcHypercall } from "../../../guest/mod.ts";
import { type PpcVcpu, SharedPage } from "../../../host/mod.ts";
import { DATA, nameOf, PR_HOSTS, runPpc, STUB, withHypercalls } from "../../support/ppc.ts";

/** Maps the page. */
function* map(cpu: PpcCpu, realAddress: number | bigint, effectiveAddress: number | bigint) {
  const { status, results } = yield* ppcHypercall(cpu, STUB, "KVM_HC_PPC_MAP_MAGIC_PAGE", {
    realAddress,
    effectiveAddress,
  });
  assertEquals([status, results.features], [EV_STATUS.EV_SUCCESS, 3n]);
}

/** Whether a load meets something; its value is in r3 then. */
function* readable(cpu: PpcCpu, address: number | bigint) {
  try {
    yield cpu.lwz(address);
    return true;
  } catch (error) {
    if (error instanceof MachineFault && error.exception === "DATA_STORAGE") return false;
    throw error;
  }
}

describe("the magic page's layout", () => {
  it("is struct kvm_vcpu_arch_shared: 240 bytes, the same in either width and byte order", () => {
    const offsets: Readonly<Record<MagicField, readonly [offset: number, size: number]>> = {
      scratch1: [0, 8],
      scratch2: [8, 8],
      scratch3: [0x10, 8],
      critical: [0x18, 8],
      sprg0: [0x20, 8],
      sprg1: [0x28, 8],
      sprg2: [0x30, 8],
      sprg3: [0x38, 8],
      srr0: [0x40, 8],
      srr1: [0x48, 8],
      dar: [0x50, 8],
      msr: [0x58, 8],
      dsisr: [0x60, 4],
      int_pending: [0x64, 4],
      sr: [0x68, 64],
      mas0: [0xa8, 4],
      mas1: [0xac, 4],
      mas7_3: [0xb0, 8],
      mas2: [0xb8, 8],
      mas4: [0xc0, 4],
      mas6: [0xc4, 4],
      esr: [0xc8, 4],
      pir: [0xcc, 4],
      sprg4: [0xd0, 8],
      sprg5: [0xd8, 8],
      sprg6: [0xe0, 8],
      sprg7: [0xe8, 8],
    };
    for (const layout of [KVM_VCPU_ARCH_SHARED, KVM_VCPU_ARCH_SHARED_LE]) {
      for (const [name, { offset, size }] of Object.entries(layout.fields)) {
        assertEquals([offset, size], [...offsets[name as MagicField]], name);
      }
      assertEquals(Object.keys(layout.fields), Object.keys(offsets));
      assertEquals([layout.size, layout.align], [240, 8]);
    }
    assertEquals(magicDisplacement("msr", 64), -4096 + 0x58);
    assertEquals(magicDisplacement("msr", 32), -4096 + 0x5c);
    assertEquals(magicDisplacement("dsisr", 32), -4096 + 0x60);
  });
});

describe("a guest that maps the magic page", () => {
  for (const options of PR_HOSTS) {
    it(`finds in it what privileged instructions wrote, and they find what it stores: ${nameOf(options)}`, () => {
      runPpc(
        options,
        withHypercalls(function* (cpu) {
          yield cpu.mtspr("SPRG0", 0x1111_2222);
          yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
          const low = KVM_MAGIC_PAGE + 0x20 + (options.order === "little" ? 0 : 4);
          yield cpu.lwz(low);
          assertEquals(cpu.r3, 0x1111_2222n);
          yield cpu.stw(low, 0x3333_4444);
          yield cpu.mfspr("SPRG0");
          assertEquals(cpu.r3, 0x3333_4444n);
        }, options.order),
      );
    });

    it(`has it in supervisor mode alone: ${nameOf(options)}`, () => {
      runPpc(
        options,
        withHypercalls(function* (cpu) {
          yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
          assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), true);
          yield cpu.mfmsr();
          yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
          assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), false);
        }, options.order),
      );
    });

    it(`has nothing there before, nor after address 0 has taken its place: ${nameOf(options)}`, () => {
      runPpc(
        options,
        withHypercalls(function* (cpu) {
          assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), false);
          yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
          assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), true);
          yield* map(cpu, 0, 1);
          assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), false);
        }, options.order),
      );
    });

    it(`pays one exit for the first access, and none for others: ${nameOf(options)}`, () => {
      const vm = runPpc(
        options,
        withHypercalls(function* (cpu) {
          yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
          for (let i = 0; i < 10; i++) yield cpu.lwz(KVM_MAGIC_PAGE + 4 * i);
        }, options.order),
      );
      const { DATA_STORAGE = 0, DTLB_MISS = 0 } = vm.exits();
      assertEquals([DATA_STORAGE, DTLB_MISS], options.host === "e500v2" ? [0, 1] : [1, 0]);
      const { pf_storage, dtlb_virt_miss_exits, dtlb_real_miss_exits } = vm.vcpus[0].stats;
      assertEquals([pf_storage, dtlb_virt_miss_exits], [DATA_STORAGE, DTLB_MISS]);
      assertEquals(dtlb_real_miss_exits, 0);
    });
  }

  it("chooses the real address by r3 and the effective one by r4, and neither is checked", () => {
    runPpc(
      {},
      withHypercalls(function* (cpu) {
        yield cpu.mtspr("SPRG2", 0xabc);
        yield* map(cpu, DATA, 0x7777_0fff);
        const page = 0x7777_0000;
        yield cpu.ld(page + 0x30);
        assertEquals(cpu.r3, 0xabcn);
        assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), false);
        // Its real address is memory of the guest, which it hides.
        yield cpu.ld(DATA + 0x30);
        assertEquals(cpu.r3, 0xabcn);
      }),
    );
  });

  it("reaches it in real mode by its real address, whose top four bits do not count", () => {
    const vm = runPpc(
      {},
      withHypercalls(function* (cpu) {
        yield cpu.mtspr("SPRG1", 0x5678);
        yield* map(cpu, KVM_MAGIC_PAGE, 0x7777_0001);
        yield cpu.mfmsr();
        yield cpu.mtmsrd(cpu.r3 & ~BigInt(MSR_IR | MSR_DR));
        yield cpu.ld(KVM_MAGIC_PAGE + 0x28);
        assertEquals(cpu.r3, 0x5678n);
        yield cpu.ld(0x0fff_ffff_ffff_f028n);
        assertEquals(cpu.r3, 0x5678n);
        assertEquals(yield* readable(cpu, 0x7777_0000), false);
      }),
    );
    assertEquals(vm.vcpus[0].processor.magic.real, 0xffff_ffff_ffff_f000n);
  });

  it("reaches it in 32-bit mode where the address has 32 bits, as RTAS does", () => {
    runPpc(
      {},
      withHypercalls(function* (cpu) {
        yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
        yield cpu.mtspr("SPRG1", 0x5678);
        yield cpu.mfmsr();
        yield cpu.mtmsrd(cpu.r3 & ~(MSR_SF | BigInt(MSR_IR | MSR_DR)));
        yield cpu.lwz(0xffff_f02c);
        assertEquals(cpu.r3, 0x5678n);
      }),
    );
  });

  it("at real address 0 has memory on Book3S, which knows the page by that; BookE has the page", () => {
    for (const host of ["book3s-64-pr", "book3s-32-pr", "e500v2"] as const) {
      runPpc(
        { host },
        withHypercalls(function* (cpu) {
          yield cpu.stw(0x2c, 0x4d);
          yield cpu.mtspr("SPRG1", 0x5678);
          yield* map(cpu, 0, 0x7777_0001);
          yield cpu.lwz(0x7777_002c);
          assertEquals(cpu.r3, host === "e500v2" ? 0x5678n : 0x4dn, host);
        }),
      );
    }
  });

  it("runs what it has written there on Book3S; BookE maps it for data alone", () => {
    for (const host of ["book3s-64-pr", "book3s-32-pr", "e500v2"] as const) {
      let stopped = 0;
      const page = 0x7777_0000;
      const vm = runPpc(
        { host },
        withHypercalls(function* (cpu) {
          yield* map(cpu, KVM_MAGIC_PAGE, page | 1);
          yield cpu.stw(page + 0xff8, ppcAsm.li(3, 42));
          yield cpu.stw(page + 0xffc, PPC_BLR);
          vm0().processor.magicMapped = false; // the host has dropped its translations
          yield cpu.call(page + 0xff8);
          assertEquals([cpu.r3 === 42n, stopped], host === "e500v2" ? [false, 1] : [true, 0], host);
        }),
        {
          prepare: (vm) => {
            vm0 = () => vm.vcpus[0];
          },
          handlers: {
            *INST_STORAGE(cpu) {
              stopped++;
              yield cpu.mtspr("SRR0", cpu.interruptedRegister(PPC_LR));
            },
          },
        },
      );
      assertEquals(vm.exits()[host === "e500v2" ? "ITLB_MISS" : "INST_STORAGE"], 1);
    }
  });

  let vm0!: () => PpcVcpu;

  it("meets it with the part of an access that lies in it, at either end", () => {
    for (const order of ["big", "little"] as const) {
      const vm = runPpc(
        { order },
        withHypercalls(function* (cpu) {
          yield* map(cpu, DATA, 0x7777_0001);
          for (const at of [DATA - 3, DATA + 0xffd]) {
            yield cpu.std(at, 0x1122_3344_5566_7788n);
            yield cpu.ld(at);
            assertEquals(cpu.r3, 0x1122_3344_5566_7788n);
            yield cpu.lwbrx(at);
            assertEquals(cpu.r3, order === "big" ? 0x4433_2211n : 0x8877_6655n);
          }
        }, order),
      );
      const { bytes } = vm.vcpus[0].processor.shared;
      const stored = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
      if (order === "little") stored.reverse();
      assertEquals([...bytes.subarray(0, 5)], stored.slice(3));
      assertEquals([...bytes.subarray(0xffd)], stored.slice(0, 3));
      assertEquals([...vm.words.bytes(DATA - 3, 3)!], stored.slice(0, 3));
      assertEquals([...vm.words.bytes(DATA + 0x1000, 5)!], stored.slice(3));
      // The page hides memory, which nobody wrote.
      assertEquals([...vm.words.bytes(DATA, 5)!], [0, 0, 0, 0, 0]);
    }
  });

  it("keeps its kernel's no-execute pages only where it says that it takes care of them", () => {
    for (const [flag, disabled] of [[0, true], [1, false]] as const) {
      const vm = runPpc(
        {},
        withHypercalls(function* (cpu) {
          yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | flag);
        }),
      );
      assertEquals(vm.vcpus[0].disableKernelNx, disabled);
    }
  });

  it("may ask with any flags, of which one counts, and with all ones in 32-bit mode", () => {
    for (
      const [effective, narrow, expected, nx] of [
        [0x7777_0ffen, false, { real: ~0xfffn, effective: 0x7777_0000n }, true],
        [0x7777_0fffn, false, { real: ~0xfffn, effective: 0x7777_0000n }, false],
        [-1n, false, { real: ~0xfffn, effective: ~0xfffn }, false],
        [-1n, true, { real: 0xffff_f000n, effective: 0xffff_f000n }, false],
      ] as const
    ) {
      const vm = runPpc(
        {},
        withHypercalls(function* (cpu) {
          yield cpu.mfmsr();
          const msr = cpu.r3;
          if (narrow) yield cpu.mtmsrd(msr & ~MSR_SF);
          for (let r = 3; r <= 10; r++) cpu.setRegister(r, -1n);
          cpu.setRegister(4, effective);
          cpu.setRegister(11, 0xffff_ffff_002a_0004n);
          yield cpu.call(STUB);
          assertEquals([cpu.r3, cpu.r4], [0n, 3n]);
          for (let r = 5; r <= 10; r++) assertEquals(cpu.register(r), 2n ** 64n - 1n);
          assertEquals(cpu.register(11), 0xffff_ffff_002a_0004n);
          yield cpu.mtmsrd(msr);
        }),
      );
      const [{ processor, disableKernelNx }] = vm.vcpus;
      assertEquals(processor.magic, {
        real: BigInt.asUintN(64, expected.real),
        effective: BigInt.asUintN(64, expected.effective),
      });
      assertEquals(disableKernelNx, nx);
    }
  });

  it("has one for each vCPU, and must ask for each", () => {
    let other = false;
    runPpc(
      { vcpus: 2 },
      withHypercalls(function* (cpu) {
        yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
        yield cpu.std(KVM_MAGIC_PAGE + 0x20, 1);
        yield cpu.work(1_000_000);
        yield cpu.ld(KVM_MAGIC_PAGE + 0x20);
        assertEquals(cpu.r3, 1n);
      }),
      {
        functions: [function* second(cpu) {
          yield cpu.work(500_000);
          other = yield* readable(cpu, KVM_MAGIC_PAGE);
          yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
          yield cpu.ld(KVM_MAGIC_PAGE + 0x20);
          assertEquals(cpu.r3, 0n);
        }],
        prepare: (vm) => vm.vcpus[1].start(0x1_0100),
      },
    );
    assertEquals(other, false);
  });

  it("gets no page from hosts without the feature, though they answer the call alike", () => {
    runPpc(
      { host: "e500mc" },
      withHypercalls(function* (cpu) {
        const { results } = yield* ppcHypercall(cpu, STUB, "KVM_HC_FEATURES", {});
        assertEquals(results.features, 0n);
        yield* map(cpu, KVM_MAGIC_PAGE, KVM_MAGIC_PAGE | 1);
        assertEquals(yield* readable(cpu, KVM_MAGIC_PAGE), false);
      }),
    );
  });
});

describe("a shared page that turns out to have the other byte order", () => {
  const fields = Object.keys(KVM_VCPU_ARCH_SHARED.fields) as MagicField[];

  it("keeps the values of what KVM exchanges, and only of that", () => {
    const bytes = fc.uint8Array({ minLength: 240, maxLength: 240 });
    fc.assert(fc.property(bytes, fc.constantFrom("big" as const, "little" as const), (bytes, order) => {
      const page = new SharedPage(order);
      page.bytes.set(bytes);
      const before = new Map(fields.map((field) => [field, page.get(field)]));
      page.takeOver(order === "big" ? "little" : "big");
      for (const field of fields) {
        const kept = SWABBED_FIELDS.includes(field);
        const size = KVM_VCPU_ARCH_SHARED.fields[field].type === "u64" ? 8 : 4;
        const value = before.get(field)!;
        assertEquals(page.get(field), kept ? value : reversed(value, size), field);
      }
    }));
  });

  it("is left alone where it has that order already", () => {
    const page = new SharedPage("little");
    page.set("msr", 0x1234n);
    page.takeOver("little");
    assertEquals(page.get("msr"), 0x1234n);
  });

  it("has its segment registers one by one", () => {
    const page = new SharedPage("big");
    for (let i = 0; i < 16; i++) page.set("sr", BigInt(0x1000_0000 + i), i);
    page.takeOver("little");
    for (let i = 0; i < 16; i++) assertEquals(page.get("sr", i), BigInt(0x1000_0000 + i));
  });
});

function reversed(value: bigint, bytes: number): bigint {
  let result = 0n;
  for (let i = 0; i < bytes; i++) result = (result << 8n) | ((value >> BigInt(8 * i)) & 0xffn);
  return result;
}
