import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { DiagField } from "../../../abi/mod.ts";
import { S390_HOSTS, type S390Host } from "../../../host/mod.ts";
import record from "../../data/s390_tcg_7_2.json" with { type: "json" };
import { diagnose, type DiagResult, MEMORY } from "../../support/s390.ts";

interface Row {
  readonly call: string;
  readonly fields?: Partial<Record<DiagField, number>>;
  readonly gprs: Readonly<Record<string, string>>;
  readonly pic: number;
  readonly after: Readonly<Record<string, string>>;
}

const rows = record.rows as unknown as readonly Row[];

/** "memory" is the end of memory, whatever that is. */
function value(text: string): bigint {
  if (!text.startsWith("memory")) return BigInt(text);
  return BigInt(MEMORY) + BigInt(text.split("+")[1]?.trim() ?? 0);
}

function run({ fields, gprs }: Row, host: S390Host): DiagResult {
  const loads = Object.fromEntries(Object.entries(gprs).map(([number, text]) => [number, value(text)]));
  return diagnose({
    ...(fields === undefined ? {} : { fields }),
    gprs: loads,
    vm: { host },
    prepare: (vm) => void vm.addCcwDevice({ number: 0, queues: [8], notified: () => {} }),
  });
}

describe("QEMU's emulator answers as it was recorded", () => {
  for (const row of rows) {
    it(row.call, () => {
      const result = run(row, "tcg-7.2");
      assertEquals(result.pic, row.pic);
      for (const [number, text] of Object.entries(row.after)) {
        assertEquals(result.gprs[Number(number)], value(text), `gpr ${number}`);
      }
      if (row.pic !== 0) {
        assertEquals(result.ilc, record.exceptions.ilc);
        assertEquals(result.gprs.slice(2), result.before.slice(2), "nothing has changed");
      }
      assertEquals(result.advance, record.exceptions.advance);
      assertEquals(result.cc[0], result.cc[1]);
      // It is no virtual machine of KVM's: nothing is intercepted, and no KVM_RUN comes back.
      assertEquals(result.vm.exits().ICPT_INST, undefined);
      assertEquals([result.vm.userspaceExits.size, result.vm.counters()], [0, {}]);
      assertEquals(result.vm.ccwBus.devices, []);
    });
  }
});

describe("KVM differs from the emulator", () => {
  const differs = rows.filter((row) => {
    const [kvm, tcg] = [run(row, "kvm+qemu-7.2"), run(row, "tcg-7.2")];
    return kvm.pic !== tcg.pic || kvm.gprs.slice(2).join() !== tcg.gprs.slice(2).join();
  }).map(({ call }) => call);

  it("in the functions that the kernel serves, the code's address, and a stray breakpoint", () => {
    assertEquals(differs, [
      "9c",
      "10, a page",
      "501",
      // The kernel looks at 16 bits of the subcode and takes it for 3, a reset; QEMU would look at all.
      "308, subcode 0x10003",
      "500 by base and displacement",
    ]);
  });

  it("and is the same host otherwise", () => {
    assert(Object.keys(S390_HOSTS).includes("kvm+qemu-7.2"));
    assert(rows.length - differs.length > 25);
  });
});
