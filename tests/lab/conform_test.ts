import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { textOf } from "../../lab/conform/probe.ts";
import { HEADER_SETS } from "../../lab/conform/manifest.ts";
import { ASSEMBLY_TARGETS } from "../../lab/conform/assembler.ts";

const DATA = new URL("../data/", import.meta.url);

/** The recorded files with their bytes. */
async function record(): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  for await (const { name } of Deno.readDir(DATA)) files[name] = await Deno.readTextFile(new URL(name, DATA));
  return files;
}

/** Runs the command where no program can be found. */
async function withoutPrograms(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "--no-lock", "-P=conform", "lab/conform/main.ts", ...args],
    cwd: new URL("../../", import.meta.url),
    env: { PATH: "/nonexistent", NO_COLOR: "1" },
    stdin: "null",
  }).output();
  const text = new TextDecoder();
  return { code, out: text.decode(stdout), err: text.decode(stderr) };
}

describe("conform:headers, where compiler and assemblers are missing,", () => {
  it("ends with 2, names each program with its Debian package, and leaves the record alone", async () => {
    const before = await record();
    const { code, out, err } = await withoutPrograms();
    assertEquals([code, out], [2, ""]);
    const [title, ...lines] = err.trimEnd().split("\n");
    assertMatch(title, /^Cannot record headers: .* Debian /);
    for (const line of lines) assertMatch(line, /^ {2}\S+: \S+$/);
    for (const what of ["clang: clang", "dpkg-query: dpkg", "llvm-mc: llvm"]) {
      assert(lines.includes(`  ${what}`), what);
    }
    for (const { gnu, gnuPackage } of Object.values(ASSEMBLY_TARGETS)) {
      assert(lines.includes(`  ${gnu}: ${gnuPackage}`), gnu);
    }
    assertEquals(await record(), before);
  });

  it("names the packages of every set of headers that a folder lacks", async () => {
    const { code, out, err } = await withoutPrograms("tests/data");
    assertEquals([code, out], [2, ""]);
    for (const { name, origins, optional } of HEADER_SETS) {
      assertEquals(err.includes(`  the headers of ${name}: `), optional !== true, name);
      if (optional) continue;
      for (const { packages } of origins) for (const one of packages) assertStringIncludes(err, one);
    }
  });

  it("says which folder cannot be read", async () => {
    const { code, out, err } = await withoutPrograms("tests/nowhere");
    assertEquals([code, out], [2, ""]);
    assertMatch(err, /^Cannot read folder tests\/nowhere: .*\n$/);
  });

  it("takes one folder, and no options", async () => {
    for (const args of [["--install"], ["a", "b"]]) {
      const { code, out, err } = await withoutPrograms(...args);
      assertEquals([code, out], [2, ""]);
      assertEquals(
        err,
        "Cannot record headers: allowed is one folder of .deb files, or nothing for what is installed\n",
      );
    }
  });
});

describe("a header's own text", () => {
  const preprocessed = [
    '# 1 "<stdin>"',
    "int before;",
    '# 1 "/usr/include/linux/kvm.h" 1',
    "#define KVM_OUTER 1",
    '# 1 "/usr/include/asm/kvm.h" 1',
    "#define KVM_INNER 2",
    '# 4 "/usr/include/linux/kvm.h" 2',
    "#define KVM_AGAIN 3",
    '# 2 "<stdin>" 2',
    "int after;",
  ].join("\n");

  it("is what stands between its line markers, without what it includes", () => {
    assertEquals(textOf(preprocessed, "linux/kvm.h"), "#define KVM_OUTER 1\n#define KVM_AGAIN 3");
    assertEquals(textOf(preprocessed, "asm/kvm.h"), "#define KVM_INNER 2");
  });

  it("is not found where nobody includes the header: an empty one is another thing", () => {
    assertThrows(() => textOf(preprocessed, "vm.h"), Error, "Cannot find vm.h");
    assertEquals(textOf('# 1 "/usr/include/asm/kvm_para.h" 1\n# 1 "<stdin>" 2\n', "asm/kvm_para.h"), "");
  });
});
