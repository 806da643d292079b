import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type ByteOrder,
  encodePpc,
  fdtCells,
  type FdtNode,
  fdtStrings,
  type FdtTree,
  HCALL_STUB,
  HCALL_WORDS_BOOKE_HV,
  HCALL_WORDS_FAIL,
  HCALL_WORDS_PR,
  parseFdt,
  PPC_BLR,
  PPC_HYPERCALLS,
  type PpcCpu,
  type PpcHypercallName,
  ppcHypercallToken,
} from "../../../abi/mod.ts";
import { epaprInit, type EpaprParavirt, FlatTree, useMagicPage } from "../../../guest/mod.ts";
import type { PpcVmOptions } from "../../../host/mod.ts";
import { CODE, nameOf, PR_HOSTS, routine, runPpc, SPACE, STUB, withHypercalls } from "../../support/ppc.ts";

function node(properties: FdtNode["properties"], children: FdtNode["children"] = {}): FdtNode {
  return { properties, children };
}

/** Boots with a tree, and tells what the guest found and what its stub became. */
function boot(options: PpcVmOptions): { found: EpaprParavirt; stub: number[] } {
  let found: EpaprParavirt | undefined;
  const vm = runPpc(options, function* (cpu) {
    found = yield* epaprInit(cpu, { fdt: Number(cpu.r3), stub: STUB, order: options.order ?? "big" });
  });
  return { found: found!, stub: HCALL_STUB.map((_, i) => vm.words.read(STUB + 4 * i, 4)!) };
}

const NOTHING: EpaprParavirt = { enabled: false, hasIdle: false, kvm: false };

describe("a guest that looks for its hypercall", () => {
  for (const options of PR_HOSTS) {
    it(`patches the words of its host in front of the return: ${nameOf(options)}`, () => {
      const { found, stub } = boot(options);
      assertEquals(found, { enabled: true, hasIdle: options.host === "e500v2", kvm: true });
      assertEquals(stub, [...HCALL_WORDS_PR, PPC_BLR]);
      assertEquals(stub.slice(0, 3), [0x3c00_4b56, 0x6000_4d21, 0x4400_0002]);
    });
  }

  it("gets the call to the hypervisor on BookE with hypervisor state", () => {
    assertEquals(boot({ host: "e500mc" }).stub, [...HCALL_WORDS_BOOKE_HV, PPC_BLR]);
  });

  it("keeps a stub that fails where its host is KVM but has no such call", () => {
    const found = { enabled: false, hasIdle: false, kvm: true };
    assertEquals(boot({ host: "book3s-64-hv" }), { found, stub: [...HCALL_STUB] });
  });

  for (const order of ["big", "little"] as const) {
    it(`patches words that always fail where QEMU 2.5 runs it on KVM-HV, and calls nobody: ${order}-endian`, () => {
      const failing: PpcVmOptions = { host: "book3s-64-hv+qemu-2.5", order };
      assertEquals(boot(failing), {
        found: { enabled: true, hasIdle: false, kvm: true },
        stub: [...HCALL_WORDS_FAIL, PPC_BLR],
      });
      assertCallsNobody(failing);
    });

    it(`finds no KVM where there is none, and calls nobody: ${order}-endian`, () => {
      const alone: PpcVmOptions = { host: "none", order };
      assertEquals(boot(alone), { found: NOTHING, stub: [...HCALL_STUB] });
      assertCallsNobody(alone);
    });
  }

  /** Every call answers -1, and nothing else happens: r4 keeps its value, nobody hears of it, there is no magic page. */
  function assertCallsNobody(options: PpcVmOptions): void {
    const vm = runPpc(
      options,
      withHypercalls(function* (cpu) {
        for (const name of Object.keys(PPC_HYPERCALLS) as PpcHypercallName[]) {
          const before = PPC_HYPERCALLS[name].args.map((_, index) => BigInt(index + 5));
          cpu.loadHypercall({ number: BigInt(ppcHypercallToken(name)), arguments: before });
          const r4 = cpu.r4;
          yield cpu.call(STUB);
          assertEquals([BigInt.asIntN(64, cpu.r3), cpu.r4], [-1n, r4], name);
        }
        const text = [{ from: CODE, to: CODE + 4 }];
        const { outcome } = yield* useMagicPage(cpu, { stub: STUB, text, space: SPACE });
        assertEquals(outcome, "absent");
      }, options.order),
      { code: routine(encodePpc("mfmsr", { RT: 3 })) },
    );
    assertEquals(vm.exits(), {});
    assertEquals([...vm.userspaceExits], []);
    assertEquals(vm.words.read(CODE, 4), encodePpc("mfmsr", { RT: 3 }));
  }

  const trees:
    readonly (readonly [what: string, tree: FdtTree, found: EpaprParavirt, words: readonly number[]])[] = [
      [
        "fewer words than the stub has room for, and keeps what follows",
        { root: node({}, { hypervisor: node({ "hcall-instructions": fdtCells(0x4400_0022) }) }) },
        { enabled: true, hasIdle: false, kvm: false },
        [0x4400_0022, ...HCALL_STUB.slice(1)],
      ],
      [
        "words of any node that has them, wherever it is",
        {
          root: node({}, {
            a: node({}, { b: node({ "has-idle": new Uint8Array(0), "hcall-instructions": fdtCells(1, 2) }) }),
          }),
        },
        { enabled: true, hasIdle: false, kvm: false },
        [1, 2, ...HCALL_STUB.slice(2)],
      ],
      [
        "no words from an empty property, and calls the stub as it is",
        { root: node({}, { hypervisor: node({ "hcall-instructions": new Uint8Array(0) }) }) },
        { enabled: true, hasIdle: false, kvm: false },
        HCALL_STUB,
      ],
      [
        "nothing from a property of five words",
        { root: node({}, { hypervisor: node({ "hcall-instructions": fdtCells(1, 2, 3, 4, 5) }) }) },
        NOTHING,
        HCALL_STUB,
      ],
      [
        "nothing from a property whose length is no multiple of four",
        { root: node({}, { hypervisor: node({ "hcall-instructions": new Uint8Array(6) }) }) },
        NOTHING,
        HCALL_STUB,
      ],
      [
        "nothing from the name that the documentation gives",
        { root: node({}, { hypervisor: node({ "hypercall-instructions": fdtCells(1) }) }) },
        NOTHING,
        HCALL_STUB,
      ],
      [
        "KVM from a list of what the hypervisor is compatible with",
        { root: node({}, { hypervisor: node({ compatible: fdtStrings("epapr,hypervisor", "linux,kvm") }) }) },
        { enabled: false, hasIdle: false, kvm: true },
        HCALL_STUB,
      ],
      [
        "KVM in letters of either case",
        { root: node({}, { hypervisor: node({ compatible: fdtStrings("Linux,KVM") }) }) },
        { enabled: false, hasIdle: false, kvm: true },
        HCALL_STUB,
      ],
      [
        "KVM from /hypervisor, behind a node of that name elsewhere",
        {
          root: node({}, {
            a: node({}, { hypervisor: node({ compatible: fdtStrings("xen,xen") }) }),
            hypervisor: node({ compatible: fdtStrings("linux,kvm") }),
          }),
        },
        { enabled: false, hasIdle: false, kvm: true },
        HCALL_STUB,
      ],
      [
        "no KVM from a node of that name below another",
        { root: node({}, { a: node({}, { hypervisor: node({ compatible: fdtStrings("linux,kvm") }) }) }) },
        NOTHING,
        HCALL_STUB,
      ],
      [
        "no KVM from a name that only begins like it",
        { root: node({}, { hypervisor: node({ compatible: fdtStrings("linux,kvm2") }) }) },
        NOTHING,
        HCALL_STUB,
      ],
    ];
  for (const [what, deviceTree, found, words] of trees) {
    for (const order of ["big", "little"] as const) {
      it(`takes ${what}: ${order}-endian`, () => {
        assertEquals(boot({ deviceTree, order }), { found, stub: [...words] });
      });
    }
  }

  it("hears of has-idle from any node with words where it has 32 bits, and never where it has 64", () => {
    const tree = {
      root: node({}, { a: node({ "has-idle": new Uint8Array(0), "hcall-instructions": fdtCells(1) }) }),
    };
    for (
      const [host, hasIdle] of [["e500v2", true], ["book3s-32-pr", true], ["book3s-64-pr", false]] as const
    ) {
      assertEquals(boot({ host, deviceTree: tree }).found, { enabled: true, hasIdle, kvm: false }, host);
    }
  });

  it("finds nothing where there is no tree", () => {
    runPpc({}, function* (cpu) {
      assertEquals(yield* epaprInit(cpu, { fdt: 0x9000, stub: STUB, order: "big" }), NOTHING);
    });
  });
});

describe("a device tree in guest memory", () => {
  const name = fc.stringMatching(/^[a-z][a-z0-9,._+-]{0,7}$/);
  const { tree } = fc.letrec<{ tree: FdtNode }>((tie) => ({
    tree: fc.record({
      properties: fc.dictionary(name, fc.uint8Array({ maxLength: 9 }), { maxKeys: 3, noNullPrototype: true }),
      children: fc.oneof(
        { depthSize: "small" },
        fc.constant({}),
        fc.dictionary(name, tie("tree"), { maxKeys: 2, noNullPrototype: true }),
      ),
    }),
  }));

  it("reads in the guest, a word at a time, as it reads to the library", () => {
    fc.assert(
      fc.property(tree, fc.constantFrom("big", "little"), (root, order) => {
        const seen: unknown[] = [];
        const vm = runPpc({ deviceTree: { root }, order: order as ByteOrder }, function* (cpu: PpcCpu) {
          const flat = new FlatTree(cpu, Number(cpu.r3), order as ByteOrder);
          assertEquals(yield* flat.open(), true);
          yield* flat.find(function* (node) {
            const properties: unknown[] = [];
            for (const wanted of names(root)) {
              const property = yield* flat.property(node, wanted);
              if (property === undefined) continue;
              const bytes: number[] = [];
              for (let i = 0; i < property.length; i++) {
                yield cpu.lbz(property.address + i);
                bytes.push(Number(cpu.r3));
              }
              properties.push([wanted, bytes]);
            }
            seen.push([node.name, properties]);
            return false;
          });
        });
        const blob = vm.words.bytes(vm.fdtAddress, 0x1_0000)!;
        assertEquals(seen, flattened("", parseFdt(blob).root, names(root)));
      }),
      { numRuns: 15 },
    );
  });
});

/** Every property's name in a tree, sorted. */
function names(root: FdtNode): string[] {
  const found = new Set(Object.keys(root.properties));
  for (const child of Object.values(root.children)) for (const name of names(child)) found.add(name);
  return [...found].sort();
}

/** The nodes of a tree in its order, with those properties that have one of the names. */
function flattened(name: string, node: FdtNode, wanted: readonly string[]): unknown[] {
  const properties = wanted.filter((property) => property in node.properties)
    .map((property) => [property, [...node.properties[property]]]);
  const below = Object.entries(node.children).flatMap(([child, of]) => flattened(child, of, wanted));
  return [[name, properties], ...below];
}
