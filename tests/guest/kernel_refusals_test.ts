import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APICBASE_X2APIC_ENABLE, IA32_APICBASE } from "../../abi/mod.ts";
import { Kernel, rdmsr } from "../../guest/mod.ts";
import { GuestError, Machine } from "../../host/mod.ts";
import { APICS, KernelRig } from "../support/kernels.ts";

describe("what a kernel refuses to be built from", () => {
  const refused = (options: ConstructorParameters<typeof KernelRig>[0], text: string): void =>
    void assertThrows(() => new KernelRig(options), RangeError, text);

  it("too many processors, or none", () => {
    for (const cpus of [0, -1, 1.5, NaN, 1025]) {
      refused({ cpus }, `Cannot build a kernel for ${cpus} processors: allowed are 1 to 1024`);
    }
  });

  it("APIC IDs that are not one a processor", () => {
    refused({ cpus: 3, apicIds: [0, 1] }, "Cannot build a kernel for 3 processors with APIC IDs 0, 1");
    refused({ apicIds: [0, 1, 1] }, "Cannot build a kernel for 3 processors with APIC IDs 0, 1, 1");
  });

  it("APIC IDs that its driver cannot send to", () => {
    refused({ cpus: 256, apic: "xapic" }, "Cannot drive APIC ID 255 with xapic: allowed are 0 to 254");
    refused(
      { apicIds: [0, -1] },
      "Cannot drive APIC ID -1 with x2apic-physical: allowed are 0 to 4294967294",
    );
    refused({ apicIds: [0, 0.5] }, "Cannot drive APIC ID 0.5");
    refused({ apicIds: [0, 2 ** 32 - 1], apic: "x2apic-cluster" }, "Cannot drive APIC ID 4294967295");
  });

  it("names that it does not know", () => {
    refused(
      { apic: "apic" as "xapic" },
      "Cannot drive the APIC with apic: allowed are x2apic-physical, x2apic-cluster, xapic",
    );
    refused(
      { guestSemantics: "2015" as "2018" },
      "Cannot simulate a guest of 2015: allowed are 2012, 2018, 2021, 2022, v6.19",
    );
    refused({ guestSemantics: "toString" as "2018" }, "Cannot simulate a guest of toString");
    refused({ disable: ["pv-spinlock"] }, "Cannot disable driver pv-spinlock: allowed are pv-eoi, pv-ipi");
  });

  it("a width that is no long's", () => {
    refused({ bits: 16 as 32 }, "Cannot build a 16-bit kernel: allowed are 64 and 32");
  });

  it("handlers for what is no interrupt", () => {
    const { kernel } = new KernelRig();
    for (const vector of [-1, 256, 1.5, NaN]) {
      assertThrows(() => kernel.gate(vector, function* () {}), RangeError, `Cannot handle vector ${vector}`);
    }
    for (const vector of [0, 13, 31, 256, NaN]) {
      assertThrows(
        () => kernel.irq(vector, function* () {}),
        RangeError,
        `Cannot handle interrupt ${vector}: allowed are 2 and 32 to 255`,
      );
    }
  });

  it("an IPI to nobody, or of no vector", () => {
    for (const apic of APICS) {
      for (
        const [target, vector, text] of [
          [2, 0x60, "Cannot send an IPI to processor 2: allowed are 0 to 1"],
          [-1, 0x60, "Cannot send an IPI to processor -1"],
          [0.5, 0x60, "Cannot send an IPI to processor 0.5"],
          [1, 256, "Cannot send vector 256: allowed are 0 to 255"],
          [1, NaN, "Cannot send vector NaN"],
        ] as const
      ) {
        const rig = new KernelRig({ cpus: 2, apic });
        const send = () =>
          rig.go(function* (cpu, kernel) {
            yield* kernel.apic.sendIpi(cpu, target, vector);
          });
        assertThrows(send, GuestError, text);
      }
    }
  });

  it("functions that were never registered", () => {
    assertThrows(
      () => new KernelRig().kernel.functionAt(0x1234),
      RangeError,
      "Cannot call 0x1234: no function was registered there",
    );
  });
});

describe("a kernel on a machine that cannot carry it says which instruction failed", () => {
  it("x2APIC mode where CPUID does not offer it", () => {
    const rig = new KernelRig({ apic: "x2apic-physical", vm: { x2apic: false } });
    const error = assertThrows(() => rig.go(), GuestError);
    assertStringIncludes(error.message, "#GP");
    assertStringIncludes(error.message, "start_kernel");
  });

  it("xAPIC mode still works there", () => {
    const rig = new KernelRig({ cpus: 2, apic: "xapic", vm: { x2apic: false } });
    rig.run(function* (cpu) {
      assertEquals((yield* rdmsr(cpu, IA32_APICBASE)) & BigInt(APICBASE_X2APIC_ENABLE), 0n);
    });
  });

  it("memory that ends before the kernel's own does", () => {
    for (const memory of [2 ** 21, 2 ** 23]) {
      const rig = new KernelRig({ cpus: 80, vm: { memory } });
      assertThrows(() => rig.go(), GuestError, `Cannot boot: it takes ${rig.kernel.memory} bytes of memory`);
    }
  });

  it("a table that does not begin with the boot processor", () => {
    assertThrows(
      () => new KernelRig({ apicIds: [1, 0] }).go(),
      GuestError,
      "Cannot boot on APIC ID 0: the table begins with 1",
    );
  });

  it("text where there is no memory", () => {
    const { text } = new Kernel({ *main() {} });
    const vm = new Machine().createVm({ memory: 2 ** 20 });
    assertThrows(() => vm.load(text), RangeError, "Cannot load text at 0x100000: no memory there");
  });
});
