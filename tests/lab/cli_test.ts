import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { command } from "../../lab/cli.ts";
import { EXPERIMENTS } from "../../lab/mod.ts";

/** The experiments, as messages name them. */
const NAMES = "pv-eoi, pv-ipi, ipiv, avic-kick, demand-paging, tlb-shootdown, hypercalls";

const QUICK = ["run", "pv-ipi", "--vcpus", "2", "--times", "1"];

/** What a refused command says on standard error; it prints nothing, writes nothing, and ends with 2. */
function refused(...args: string[]): string {
  const { out, err, code, file } = command(args, 80);
  assertEquals([out, code, file], ["", 2, undefined]);
  assertEquals(err.split("\n").length, 1);
  assertMatch(err, /^Cannot .*[^.]$/);
  return err;
}

describe("the command line", () => {
  it("lists every experiment with its options, their ranges and their defaults", () => {
    const { out, err, code } = command(["list"], 80);
    assertEquals([err, code], ["", 0]);
    for (const { name, options } of EXPERIMENTS) {
      const paragraph = out.split("\n\n").find((text) => text.startsWith(`${name}\n`))!;
      for (const [option, spec] of Object.entries(options)) {
        const line = paragraph.replaceAll(/\n {3,}/g, " ").split("\n").find((text) =>
          text.startsWith(`  --${option} `)
        )!;
        const numbers = (min: number, max: number) => min === max ? String(min) : `${min} to ${max}`;
        const range = "choices" in spec ? spec.choices.join(", ") : numbers(spec.min, spec.max);
        assertStringIncludes(line, `: ${range} (${spec.default})`);
      }
    }
    for (const line of out.split("\n")) assertEquals(line.length <= 80, true, line);
  });

  it("tells what an experiment takes where its command is asked for help", () => {
    const words = [["run", "ipiv", "--help"], ["run", "ipiv", "--times", "nonsense", "-h"], [
      "explain",
      "ipiv",
      "-h",
    ]];
    for (const args of words) {
      const { out, err, code } = command(args, 80);
      assertEquals([err, code], ["", 0]);
      assertStringIncludes(out, "--acceleration  of the processor: all, none");
      assertStringIncludes(out, "--trace FILE");
      assertEquals(out.includes("avic-kick"), false, "of no other experiment");
    }
    for (const args of [["run", "--help"], ["explain", "-h"], ["run", "nothing", "--help"]]) {
      assertStringIncludes(command(args, 80).out, "exitless run EXPERIMENT");
    }
  });

  it("tells how it is used", () => {
    for (const word of ["help", "--help", "-h"]) {
      const { out, err, code } = command([word], 80);
      assertEquals([err, code], ["", 0]);
      for (
        const what of [
          "exitless list",
          "exitless run EXPERIMENT",
          "exitless explain EXPERIMENT",
          "exitless explain [options]",
          "exitless features",
          "--backend vmx|svm",
          "--json",
          "--trace",
          "--acceleration",
        ]
      ) {
        assertStringIncludes(out, what);
      }
      for (const line of out.split("\n")) assertEquals(line.length <= 80, true, line);
    }
  });

  for (const backend of ["vmx", "svm"]) {
    it(`runs an experiment and prints its table, or one line of JSON: ${backend}`, () => {
      const text = command([...QUICK, "--backend", backend], 80);
      assertEquals([text.err, text.code], ["", 0]);
      assertStringIncludes(text.out, `on 2 vCPUs, ${backend}`);
      const json = command([...QUICK, "--backend", backend, "--json"], 80);
      assertEquals([json.err, json.code, json.out.split("\n").length], ["", 0, 1]);
      const { experiment, options } = JSON.parse(json.out);
      assertEquals([experiment, options], ["pv-ipi", { vcpus: 2, seed: 0, times: 1, backend }]);
    });
  }

  it("prints the same bytes for the same seed", () => {
    const run = (seed: string): string =>
      command(["run", "pv-eoi", "--interrupts", "20000", "--pio", "20000", "--seed", seed, "--json"], 80).out;
    assertEquals(run("3"), run("3"));
    assertEquals(
      JSON.stringify(JSON.parse(run("3")).runs) === JSON.stringify(JSON.parse(run("4")).runs),
      false,
    );
  });

  it("takes numbers in hexadecimal, values behind an equals sign, and the last of two", () => {
    const { options } = JSON.parse(
      command(["run", "pv-ipi", "--vcpus=0x3", "--times", "9", "--times", "1", "--json"], 80).out,
    );
    assertEquals([options.vcpus, options.times], [3, 1]);
  });

  it("gives the trace of each boot as a file to write", () => {
    const { out, file } = command([...QUICK, "--trace", "trace.txt"], 80);
    assertEquals(file?.path, "trace.txt");
    const titles = file!.text.split("\n").filter((line) =>
      line.startsWith("# ") && !/overwritten/.test(line)
    );
    assertEquals(titles.length, 7);
    assertEquals(titles[0], "# x2apic-cluster/vanilla: vCPU, time in cycles, event");
    assertStringIncludes(file!.text, "kvm_exit: reason HLT");
    assertEquals(out, command(QUICK, 80).out); // Being watched changes nothing.
  });
});

describe("the command line on a narrow terminal", () => {
  it("folds what it can", () => {
    const COLUMNS = 40;
    for (
      const args of [
        ["list"],
        ["explain"],
        ["explain", "ipiv", "--times", "1"],
        ["explain", "hypercalls"],
        [...QUICK],
        ["run", "demand-paging", "--pages", "2"],
        ["features"],
        ["help"],
        ["run", "pv-eoi", "--help"],
        ["run", "hypercalls", "--arch", "s390", "--help"],
        ...["x86", "s390", "ppc", "mips"].map((arch) => ["run", "hypercalls", "--arch", arch]),
      ]
    ) {
      for (const line of command(args, COLUMNS).out.split("\n")) {
        // Between columns there is more than one space: what can be folded has one.
        assertEquals(line.length <= COLUMNS || !/\S \S/.test(line), true, line);
      }
    }
  });
});

describe("the command line ends with 1, and prints no table,", () => {
  it("where a run finds something wrong: it says what in one line", () => {
    const { out, err, code, file } = command(
      ["run", "tlb-shootdown", "--vcpus", "2", "--times", "2", "--quirk", "skip-one-cpu"],
      80,
    );
    assertEquals([out, code, file], ["", 1, undefined]);
    assertMatch(
      err,
      /^tlb-shootdown on 2 vCPUs: Cannot use the cached translation of 0x[0-9a-f]+ .* on CPU 1: /,
    );
    assertStringIncludes(err, '"page freed" was declared');
    assertStringIncludes(err, "has executed no INVLPG of 0x");
    assertEquals(err.split("\n").length, 1);
  });
});

describe("the command line refuses, in one line that names what is allowed,", () => {
  it("what it cannot do", () => {
    assertEquals(refused(), "Cannot do nothing: allowed are list, run, explain, features, help");
    for (const word of ["frob", "toString", "", "--version", "Run"]) {
      assertEquals(refused(word), `Cannot do ${word}: allowed are list, run, explain, features, help`);
    }
    assertStringIncludes(refused("list", "pv-eoi"), "takes no arguments");
  });

  it("experiments that there are not", () => {
    assertEquals(
      refused("run"),
      `Cannot run without an experiment's name: allowed are ${NAMES}`,
    );
    assertEquals(refused("run", "--json"), refused("run"));
    for (const name of ["pv-tlb", "__proto__", "PV-EOI", ""]) {
      assertEquals(
        refused("run", name),
        `Cannot run experiment ${name}: allowed are ${NAMES}`,
      );
    }
  });

  it("options that an experiment does not have, or not so", () => {
    const allowed = "allowed are --vcpus, --seed, --times, --backend, --json, --trace";
    for (
      const [args, problem] of [
        [["--pio", "3"], "Unknown option '--pio'"],
        [["-j"], "Unknown option '-j'"],
        [["--no-json"], "Unknown option '--no-json'"],
        [["--json=yes"], "Option '--json' does not take an argument"],
        [["--vcpus"], "Option '--vcpus <value>' argument missing"],
        [["--seed", "--json"], "Option '--seed' argument is ambiguous"],
        [["80"], "Unexpected argument '80'"],
        [["1.5"], "Unexpected argument '1.5'"],
        [["--", "x"], "Unexpected argument 'x'"],
      ] as const
    ) {
      assertEquals(refused("run", "pv-ipi", ...args), `Cannot run pv-ipi: ${problem}; ${allowed}`);
    }
  });

  it("numbers that are none, as they were typed", () => {
    for (
      const text of [
        "1.5",
        "-3",
        "1e3",
        "",
        " 8",
        "8 ",
        "eighty",
        "0b1",
        "١",
        "NaN",
        "Infinity",
        "0x",
        "1,000",
      ]
    ) {
      assertEquals(
        refused("run", "pv-ipi", `--vcpus=${text}`),
        `Cannot use "${text}" for --vcpus: allowed are 2 to 1024`,
      );
    }
    assertEquals(refused("run", "pv-ipi", "--vcpus", "-3"), refused("run", "pv-ipi", "--vcpus=-3"));
  });

  it("numbers that are too small, too large, or larger than any", () => {
    assertEquals(
      refused("run", "pv-ipi", "--vcpus", "1"),
      "Cannot run pv-ipi with vcpus 1: allowed are 2 to 1024",
    );
    assertEquals(
      refused("run", "pv-eoi", "--vcpus", "255"),
      "Cannot run pv-eoi with vcpus 255: allowed are 1 to 254",
    );
    for (const huge of ["9007199254740993", "99999999999999999999", "0xffffffffffffffff", "9".repeat(400)]) {
      assertEquals(
        refused("run", "pv-eoi", "--seed", huge),
        `Cannot use "${huge}" for --seed: allowed are 0 to 9007199254740991`,
      );
    }
    for (
      const [experiment, option, value] of [
        ["pv-eoi", "interrupts", "0"],
        ["pv-eoi", "interrupts", "200001"],
        ["pv-eoi", "pio", "200001"],
        ["pv-ipi", "times", "0"],
        ["pv-ipi", "times", "10001"],
      ]
    ) {
      assertMatch(
        refused("run", experiment, `--${option}`, value),
        new RegExp(`with ${option} ${value}: allowed are`),
      );
    }
  });

  it("backends that there are not", () => {
    for (const backend of ["arm", "VMX", "", "toString"]) {
      assertEquals(
        refused("run", "pv-ipi", `--backend=${backend}`),
        `Cannot run pv-ipi on backend ${backend}: allowed are vmx, svm`,
      );
    }
  });

  it("a trace without a name", () => {
    assertEquals(refused("run", "pv-ipi", "--trace="), "Cannot write a trace without a file's name");
  });

  it("whatever else is typed: never a stack trace, never more than a line", () => {
    const word = fc.oneof(
      fc.string(),
      fc.constantFrom(
        "run",
        "list",
        "pv-eoi",
        "avic-kick",
        "--vcpus",
        "--seed",
        "--json",
        "--",
        "-",
        "--trace=",
        "\n",
        "\u001b[31m",
        "a\nb",
      ),
    );
    fc.assert(fc.property(fc.array(word, { maxLength: 6 }), (words) => {
      // Nothing that runs: what would is looked at above.
      const runs = words[0] === "run" && EXPERIMENTS.some(({ name }) => name === words[1]);
      const { err, code } = command(runs ? [...words, "--nothing"] : words, 80);
      assertEquals(code === 0 || code === 2, true);
      assertEquals(err.split(/[\r\n]/).length, 1);
      assertEquals(code === 0, err === "");
    }));
  });
});

const { state } = await Deno.permissions.query({ name: "run" });
const SHOWN = { stdout: "piped", stderr: "piped" } as const;

/** What a program of this project did as a process of its own. */
async function spawned(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const cwd = new URL("../..", import.meta.url);
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", ...args],
    cwd,
    ...SHOWN,
  })
    .output();
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  return { code, out: text(stdout), err: text(stderr) };
}

if (state === "granted") {
  describe("as a process", () => {
    it("the command line needs no permission to run an experiment, and ends with 0", async () => {
      const { code, out, err } = await spawned("lab/cli.ts", ...QUICK, "--json");
      assertEquals([code, err], [0, ""]);
      assertEquals(out, command([...QUICK, "--json"], 200).out + "\n");
    });

    it("it ends with 2 and one line on standard error where it refuses", async () => {
      const { code, out, err } = await spawned("lab/cli.ts", "run", "pv-ipi", "--vcpus", "1");
      assertEquals([code, out], [2, ""]);
      assertEquals(err, "Cannot run pv-ipi with vcpus 1: allowed are 2 to 1024\n");
    });

    it("it says what it could not write", async () => {
      const { code, err } = await spawned(
        "-P=lab",
        "lab/cli.ts",
        ...QUICK,
        "--trace",
        "no/such/folder/trace.txt",
      );
      assertEquals([code, err.trimEnd().split("\n").length], [2, 1]);
      assertMatch(err, /^Cannot write no\/such\/folder\/trace\.txt: /);
      const odd = await spawned("-P=lab", "lab/cli.ts", ...QUICK, "--trace", "no\nsuch/folder");
      assertEquals([odd.code, odd.err.trimEnd().split("\n").length], [2, 1]);
      const folder = await spawned("-P=lab", "lab/cli.ts", ...QUICK, "--trace", "tests");
      assertMatch(folder.err, /^Cannot write tests: Is a directory/);
    });

    const full = Deno.build.os === "linux" ? it : () => {};
    full("it says in one line that what it prints goes nowhere: a full disk", async () => {
      const { code, stderr } = await new Deno.Command("sh", {
        args: ["-c", `"$0" run -q lab/cli.ts list > /dev/full`, Deno.execPath()],
        cwd: new URL("../..", import.meta.url),
        ...SHOWN,
      }).output();
      assertEquals([code, new TextDecoder().decode(stderr).match(/^Cannot print: .*\n$/)?.length], [2, 1]);
    });

    for (const name of ["pv_eoi", "pv_ipi", "ipiv", "avic_kick"]) {
      it(`an example guest takes the same options, and refuses as clearly: ${name}`, async () => {
        const file = `guest/examples/${name}.ts`;
        const experiment = name.replace("_", "-");
        const options = name === "pv_eoi"
          ? ["--interrupts", "100", "--pio", "10"]
          : ["--vcpus", "2", "--times", "1"];
        const ran = await spawned(file, ...options);
        assertEquals([ran.code, ran.err], [0, ""]);
        assertEquals(ran.out, command(["run", experiment, ...options], 200).out + "\n");
        const bad = await spawned(file, "--vcpus", "many");
        assertEquals([bad.code, bad.out, bad.err.split("\n").length], [2, "", 2]);
        assertMatch(bad.err, /^Cannot use "many" for --vcpus: allowed are /);
      });
    }
  });
}
