import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { CR0_PG, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_SMEP } from "../../../abi/mod.ts";
import {
  type CachedTranslation,
  eptViolation,
  invalidate,
  INVALIDATIONS,
  movToCr0,
  movToCr3,
  movToCr4,
  NO_EPT,
  Tlb,
} from "../../../host/mmu/mod.ts";
import {
  ADDRESSES,
  fill,
  mustGo,
  operations,
  ROOMY,
  samePage,
  SVM_OPERATIONS,
  TAGS,
  TINY,
  translation,
  TRANSLATIONS,
  usable,
  VMX_OPERATIONS,
} from "./tlb_models.ts";

const ARRAYS = fc.constantFrom("linear" as const, "guestPhysical" as const);
const FILLS = fc.array(fc.tuple(TAGS, TRANSLATIONS, ARRAYS), { maxLength: 40 });

describe("every operation, against its rule in the manuals", () => {
  for (const [vendor, names] of [["vmx", VMX_OPERATIONS], ["svm", SVM_OPERATIONS]] as const) {
    for (const [size, geometry] of [["roomy", ROOMY], ["tiny", TINY]] as const) {
      it(`drops what has to go and nothing else from a ${size} TLB under ${vendor}`, () => {
        fc.assert(
          fc.property(FILLS, TAGS, operations(names), (fills, now, operation) => {
            const tlb = new Tlb(vendor, geometry);
            for (const [tags, found, array] of fills) {
              tlb.setTags(tags);
              fill(tlb, found, array);
            }
            tlb.setTags(now);
            const before = tlb.entries();
            const dropped = invalidate(tlb, operation);
            assertEquals(tlb.entries(), before.filter((entry) => !mustGo(entry, operation, now)));
            assertEquals(dropped, before.length - tlb.entries().length);
            assertEquals(tlb.linear.valid + tlb.guestPhysical.valid, tlb.entries().length);
          }),
          { numRuns: 500 },
        );
      });
    }
  }

  it("is found by these tests: each operation that has to drop something does in some run", () => {
    const tlb = new Tlb("vmx", ROOMY);
    for (const operation of [...VMX_OPERATIONS, ...SVM_OPERATIONS]) {
      for (const root of operation.includes("TLB") || operation === "INVLPGA" ? [NO_EPT] : [NO_EPT, 0x1000]) {
        const vpid = operation.includes("without VPID") ? 0 : 1;
        tlb.setTags({ vpid, pcid: 0, root });
        tlb.linear.insert(translation(0x5000));
        if (root !== NO_EPT) fill(tlb, translation(0x5000), "guestPhysical");
      }
      const dropped = invalidate(tlb, { operation, vpid: 1, pcid: 0, root: 0x1000, address: 0x5fff });
      assertEquals(dropped > 0, INVALIDATIONS[operation].kinds !== 0, operation);
      invalidate(tlb, { operation: "reset" });
    }
  });
});

describe("a story of fills, lookups and invalidations", () => {
  const step = fc.oneof(
    fc.record({ do: fc.constant("tags" as const), tags: TAGS }),
    fc.record({ do: fc.constant("fill" as const), found: TRANSLATIONS }),
    fc.record({ do: fc.constant("look" as const), address: ADDRESSES }),
    fc.record({ do: fc.constant("invalidate" as const), operation: operations(VMX_OPERATIONS) }),
  );

  for (const [size, geometry] of [["roomy", ROOMY], ["tiny", TINY]] as const) {
    it(`gives from a ${size} TLB what a list of entries ${size === "roomy" ? "gives" : "gives, or nothing"}`, () => {
      fc.assert(
        fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
          const tlb = new Tlb("vmx", geometry);
          let list: CachedTranslation[] = [];
          let [hits, misses] = [0, 0];
          for (const now of steps) {
            if (now.do === "tags") {
              tlb.setTags(now.tags);
            } else if (now.do === "invalidate") {
              invalidate(tlb, now.operation);
              list = list.filter((entry) => !mustGo(entry, now.operation, tlb.tags));
            } else if (now.do === "fill") {
              const { linear, shift } = now.found;
              list = list.filter((e) => !(e.shift === shift && e.linear === linear && usable(e, tlb.tags)));
              list.push(tlb.linear.entry(tlb.linear.insert(now.found))!);
              assertEquals(list.at(-1)!.physical, now.found.physical);
            } else {
              const expected = list.filter((e) =>
                usable(e, tlb.tags) && samePage(e.linear, now.address, e.shift)
              );
              const slot = tlb.linear.lookupAddress(now.address);
              if (slot >= 0) {
                hits++;
                const entry = tlb.linear.entry(slot)!;
                // Of pages of two sizes for one address either may be used (SDM 3A 5.10.2.3).
                assert(
                  expected.some((e) => JSON.stringify(e) === JSON.stringify(entry)),
                  "an entry that must be gone",
                );
              } else {
                misses++;
                if (size === "roomy") assertEquals(expected, []);
              }
            }
          }
          assertEquals([tlb.linear.hits, tlb.linear.misses], [hits, misses]);
        }),
        { numRuns: 500 },
      );
    });
  }
});

describe("a guest that keeps its PCIDs apart", () => {
  function kernelAndTwoTasks(): Tlb {
    const tlb = new Tlb("vmx");
    tlb.setTags({ vpid: 1, pcid: 2, root: 0x1000 });
    tlb.linear.insert(translation(0x5000));
    tlb.setTags({ vpid: 1, pcid: 1, root: 0x1000 });
    tlb.linear.insert(translation(0x5000));
    tlb.linear.insert(translation(-(2 ** 31), { global: true }));
    return tlb;
  }
  const left = (tlb: Tlb) => tlb.entries().map(({ pcid, global }) => global ? "global" : pcid).sort();

  it("switches with bit 63 and loses nothing", () => {
    const tlb = kernelAndTwoTasks();
    assertEquals(invalidate(tlb, movToCr3(0x8000_0000, 0x3002, CR4_PCIDE)), 0);
    assertEquals(left(tlb), [1, 2, "global"]);
  });

  it("switches without it and loses the new PCID, not the old one, and no global page", () => {
    const tlb = kernelAndTwoTasks();
    invalidate(tlb, movToCr3(0, 0x3002, CR4_PCIDE));
    assertEquals(left(tlb), [1, "global"]);
  });

  it("loses PCID 0 alone where PCIDs are off, whatever bits 11:0 hold", () => {
    assertEquals(movToCr3(0, 0x3018, CR4_PGE), { operation: "MOV to CR3", pcid: 0 });
    // Bit 63 is no flag then: it is reserved.
    assertEquals(movToCr3(0x8000_0000, 0x3000, 0).operation, "MOV to CR3");
  });

  it("drops a global page by INVLPG from any PCID, and by no INVPCID of an address", () => {
    const tlb = kernelAndTwoTasks();
    tlb.setTags({ vpid: 1, pcid: 2, root: 0x1000 });
    const address = -(2 ** 31) + 0x123;
    for (const pcid of [1, 2]) invalidate(tlb, { operation: "INVPCID type 0", pcid, address });
    assertEquals(left(tlb), [1, 2, "global"]);
    invalidate(tlb, { operation: "INVLPG", address });
    assertEquals(left(tlb), [1, 2]);
  });

  it("keeps its entries over INVLPG by another VPID", () => {
    const tlb = kernelAndTwoTasks();
    tlb.setTags({ vpid: 2, pcid: 1, root: 0x1000 });
    assertEquals(invalidate(tlb, { operation: "INVLPG", address: 0x5000 }), 0);
  });

  it("drops by INVLPG every fragment of a large page that EPT maps by small ones", () => {
    const tlb = new Tlb("vmx");
    for (let i = 0; i < 512; i += 100) tlb.linear.insert(translation(0x20_0000 + i * 0x1000, { span: 21 }));
    tlb.linear.insert(translation(0x40_0000));
    for (let page = 0x80_0000; page < 0x88_0000; page += 0x1000) {
      tlb.linear.insert(translation(page));
      invalidate(tlb, { operation: "INVLPG", address: page });
    }
    invalidate(tlb, { operation: "INVLPG", address: 0x20_0000 + 0x7_7000 });
    assertEquals(tlb.entries().map(({ linear }) => linear), [0x40_0000]);
  });
});

describe("a hypervisor that changes its tables", () => {
  it("keeps guest-physical mappings over INVVPID, and linear ones over INVEPT", () => {
    const tlb = new Tlb("vmx");
    tlb.setTags({ vpid: 1, pcid: 0, root: NO_EPT });
    tlb.linear.insert(translation(0x5000));
    tlb.setTags({ vpid: 1, pcid: 0, root: 0x1000 });
    fill(tlb, translation(0x9000), "guestPhysical");
    assertEquals(invalidate(tlb, { operation: "INVEPT type 2" }), 1);
    fill(tlb, translation(0x9000), "guestPhysical");
    assertEquals(invalidate(tlb, { operation: "INVVPID type 2" }), 1);
    assertEquals(tlb.entries().map(({ root }) => root), [0x1000]);
  });

  it("needs no INVEPT for the address of an EPT violation", () => {
    const tlb = new Tlb("vmx");
    tlb.setTags({ vpid: 1, pcid: 3, root: 0x1000 });
    for (const page of [0x5000, 0x6000]) {
      tlb.linear.insert(translation(page));
      fill(tlb, translation(page + 0x10_0000), "guestPhysical");
    }
    for (const operation of eptViolation(0x10_5008, 0x5008)) invalidate(tlb, operation);
    assertEquals(tlb.entries().map(({ linear }) => linear), [0x6000, 0x10_6000]);
    assertEquals(eptViolation(0x10_5008).length, 1);
  });

  it("shares no combined mapping between two EPT roots of one VPID", () => {
    const tlb = new Tlb("vmx");
    tlb.setTags({ vpid: 1, pcid: 0, root: 0x1000 });
    tlb.linear.insert(translation(0x5000, { global: true }));
    tlb.setTags({ vpid: 1, pcid: 0, root: 0x2000 });
    assertEquals(tlb.linear.lookupAddress(0x5000), -1);
    tlb.setTags({ vpid: 1, pcid: 0, root: NO_EPT });
    assertEquals(tlb.linear.lookupAddress(0x5000), -1);
  });

  it("goes on using an ASID's entries with other nested tables, until it flushes the ASID", () => {
    const tlb = new Tlb("svm");
    tlb.setTags({ vpid: 1, pcid: 0, root: 0x1000 });
    tlb.linear.insert(translation(0x5000, { global: true }));
    tlb.setTags({ vpid: 1, pcid: 0, root: 0x2000 });
    assert(tlb.linear.lookupAddress(0x5000) >= 0);
    invalidate(tlb, { operation: "TLB_CONTROL 7", vpid: 1 });
    assert(tlb.linear.lookupAddress(0x5000) >= 0);
    invalidate(tlb, { operation: "TLB_CONTROL 3", vpid: 1 });
    assertEquals(tlb.linear.lookupAddress(0x5000), -1);
  });
});

describe("control registers", () => {
  it("invalidate where CR0.PG is cleared, not where it is set", () => {
    assertEquals(movToCr0(CR0_PG + 1, 1), { operation: "MOV to CR0 that clears PG" });
    assertEquals(movToCr0(1, CR0_PG + 1), undefined);
    assertEquals(movToCr0(CR0_PG + 1, CR0_PG + 3), undefined);
  });

  it("invalidate where CR4.PGE or PAE changes, PCIDE is cleared or SMEP is set", () => {
    assertEquals(movToCr4(0, CR4_PGE)?.operation, "MOV to CR4 that changes PGE");
    assertEquals(movToCr4(CR4_PGE, 0)?.operation, "MOV to CR4 that changes PGE");
    assertEquals(movToCr4(CR4_PCIDE | CR4_PAE, 0)?.operation, "MOV to CR4 that clears PCIDE");
    assertEquals(movToCr4(0, CR4_PCIDE), undefined);
    assertEquals(movToCr4(0, CR4_PAE)?.operation, "MOV to CR4 that changes PAE");
    assertEquals(movToCr4(0, CR4_SMEP)?.operation, "MOV to CR4 that sets SMEP");
    assertEquals(movToCr4(CR4_SMEP, 0), undefined);
  });

  it("refuse an operation without the operand that its rule names", () => {
    assertThrows(
      () => invalidate(new Tlb("vmx"), { operation: "INVVPID type 0", vpid: 1 }),
      TypeError,
      "Cannot execute INVVPID type 0: its address is missing",
    );
  });
});
