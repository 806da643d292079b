import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  DIAGNOSES,
  HYPERCALLS,
  KVM_FEATURES,
  KVM_HINTS,
  PPC_HYPERCALLS,
  S390_HYPERCALLS,
} from "../../abi/mod.ts";
import { HOST_SEMANTICS } from "../../host/mod.ts";
import { command } from "../../lab/cli.ts";
import {
  type ArchFeatures,
  ARCHITECTURES,
  conventionMatrix,
  featuresOf,
  type HypercallRun,
} from "../../lab/mod.ts";

/** What the command prints of architectures. */
function shown(...args: string[]): string {
  const { out, err, code, file } = command(["features", ...args], 80);
  assertEquals([err, code, file], ["", 0, undefined]);
  return out;
}

/** The paragraph of an architecture. */
function paragraph(arch: string): string {
  return shown().split("\n\n").find((text) => text.startsWith(`${arch}\n`))!;
}

describe("the README's table of hypercall conventions", () => {
  it("says what the tables say", async () => {
    const readme = await Deno.readTextFile(new URL("../../README.md", import.meta.url));
    const cells = (line: string) => line.split("|").slice(1, -1).map((cell) => cell.trim());
    const { head, rows } = conventionMatrix();
    const lines = readme.split("\n").map(cells);
    const start = lines.findIndex((line) => line.join() === head.join());
    assertEquals(lines.slice(start + 2, start + 2 + rows.length), rows);
    assertEquals(lines[start + 2 + rows.length], [], "and nothing else");
  });
});

describe("exitless features", () => {
  it("shows every hypercall where it exists, and nowhere else", () => {
    const tables = {
      x86: Object.entries(HYPERCALLS).filter(([, { arch }]) => (arch as readonly string[]).includes("x86")),
      s390: Object.entries(S390_HYPERCALLS),
      ppc: Object.entries(PPC_HYPERCALLS),
      mips: Object.entries(HYPERCALLS).filter(([, { arch }]) => (arch as readonly string[]).includes("mips")),
    };
    const everything = new Set(Object.values(tables).flatMap((table) => table.map(([name]) => name)));
    assertEquals(everything.size, 12 + 5 + 15, "KVM_HC_*, DIAGNOSE 0x500's and ePAPR's");
    for (const arch of ARCHITECTURES) {
      const text = paragraph(arch);
      const own = new Set(tables[arch].map(([name]) => name));
      for (const name of everything) {
        assertEquals(text.includes(` ${name}(`), own.has(name), `${arch}: ${name}`);
      }
    }
  });

  it("shows every feature and hint of x86, and that s390 and MIPS tell of none", () => {
    const text = paragraph("x86");
    for (const { name, bit } of [...Object.values(KVM_FEATURES), ...Object.values(KVM_HINTS)]) {
      assertStringIncludes(text, `${String(bit).padStart(10)}  ${name}: `);
    }
    for (const arch of ["s390", "mips"]) {
      assertStringIncludes(paragraph(arch), "features: hosts tell of none");
    }
  });

  it("says of no call of x86 that every host has it, where one answers that it does not", () => {
    const every = featuresOf("x86").calls.filter(({ offered }) => offered === "every host");
    assertEquals(every.map(({ name }) => name), ["KVM_HC_VAPIC_POLL_IRQ"]);
    for (const host of Object.keys(HOST_SEMANTICS)) {
      const { out } = command(["run", "hypercalls", "--json", "--host", host], 80);
      const { runs }: { runs: HypercallRun[] } = JSON.parse(out);
      for (const { name } of every) {
        assertEquals(runs.find((run) => run.name === name)!.call.outcome, "rax = 0", host);
      }
    }
    // arch/x86/kvm/x86.c, kvm_emulate_hypercall: under CONFIG_X86_64.
    assertStringIncludes(paragraph("x86").replaceAll(/\s+/g, " "), "TSC value; 64-bit hosts since v4.11");
  });

  it("shows every function of DIAGNOSE", () => {
    const text = paragraph("s390");
    for (const [name, { code }] of Object.entries(DIAGNOSES)) {
      assertStringIncludes(text, `0x${code.toString(16)}  ${name}(`);
    }
  });

  it("shows each instruction's bytes, in both byte orders where the guest chooses", () => {
    // As assemblers have them: tests/data/encodings.json.
    for (
      const [arch, ...bytes] of [
        ["x86", "vmcall: 0f 01 c1", "vmmcall: 0f 01 d9"],
        ["s390", "8324 0500"],
        ["ppc", "3c004b56 60004d21 44000002 60000000", "44000022 60000000 60000000 60000000"],
        ["mips", "42000028 big-endian", "28000042 little-endian"],
      ]
    ) {
      const text = paragraph(arch).replaceAll(/\s+/g, " ");
      for (const what of bytes) assertStringIncludes(text, what);
    }
  });

  it("shows what becomes of calls that cannot be", () => {
    for (
      const [arch, unknown, user] of [
        ["x86", "rax = -1000 (-KVM_ENOSYS)", "rax = -1 (-KVM_EPERM)"],
        ["s390", "specification exception (0x6)", "privileged-operation exception (0x2)"],
        ["ppc", "r3 = 12 (EV_UNIMPLEMENTED), r4 = 0", "SYSCALL (0xc00)"],
        ["mips", "v0 = -1000 (-KVM_ENOSYS)", "CpU (0xb)"],
      ]
    ) {
      assertStringIncludes(paragraph(arch), `  unknown number  ${unknown}\n`);
      assertStringIncludes(paragraph(arch), `  from user mode  ${user}\n`);
    }
  });

  it("shows the number of each PowerPC host's own interrupt, and which hosts are called how", () => {
    const lines = paragraph("ppc").split("\n");
    const what = (name: string) =>
      lines.filter((line) => line.startsWith(`  ${name}  `)).map((line) => line.slice(18));
    assertEquals(what("hosts"), ["book3s-64-pr, book3s-32-pr", "e500v2", "e500mc"]);
    // BookE's system call is interrupt 8, where Book3S has a vector at 0xc00 (asm/kvm_asm.h).
    assertEquals(what("from user mode"), ["SYSCALL (0xc00)", "SYSCALL (0x8)", "PROGRAM (0x6)"]);
  });

  it("fits on a terminal", () => {
    for (const line of shown().split("\n")) assert(line.length <= 80, line);
  });

  it("shows one architecture, and all of it as JSON", () => {
    for (const arch of ARCHITECTURES) {
      assertEquals(shown("--arch", arch), paragraph(arch));
      const { features }: { features: ArchFeatures[] } = JSON.parse(shown("--json", "--arch", arch));
      assertEquals(features, [featuresOf(arch)]);
    }
    assertEquals(JSON.parse(shown("--json")).features.length, 4);
  });

  it("refuses an architecture that there is not", () => {
    const { out, err, code } = command(["features", "--arch", "arm64"], 80);
    assertEquals([out, code], ["", 2]);
    assertEquals(err, "Cannot show features with arch arm64: allowed are all, x86, s390, ppc, mips");
  });
});
