import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { HYPERCALLS, PPC_HYPERCALLS, ppcHypercallToken, S390_HYPERCALLS } from "../../abi/mod.ts";
import { command } from "../../lab/cli.ts";
import type { ExperimentResult, HypercallRun, ObservedCall } from "../../lab/mod.ts";
import { ENCODINGS } from "../support/headers.ts";

/** What a command finds, by name of the call. */
function calls(...args: string[]): Record<string, ObservedCall> {
  const { out, err, code } = command(["run", "hypercalls", "--json", ...args], 80);
  assertEquals([err, code], ["", 0]);
  const { runs }: { runs: HypercallRun[] } = JSON.parse(out);
  return Object.fromEntries(runs.map(({ name, call }) => [name, call]));
}

/** What a command refuses. */
function refused(...args: string[]): string {
  const { out, err, code } = command(["run", "hypercalls", ...args], 80);
  assertEquals([out, code], ["", 2]);
  return err;
}

/** That a call changed some registers to these values, and no other. */
function assertChanged(call: ObservedCall, registers: Record<string, string>): void {
  assertEquals(call.after, { ...call.before, ...registers });
}

/** The bytes of an instruction as two assemblers have them. */
function assembled(target: string, ...lines: string[]): string {
  return lines.map((line) => ENCODINGS.targets[target].bytes[line]).join("");
}

function digits(bytes: string): string {
  return bytes.replaceAll(" ", "");
}

describe("run hypercalls: x86", () => {
  for (
    const [backend, native, exit, foreign, fault] of [
      ["vmx", "vmcall", "VMCALL", "vmmcall", "EXCEPTION_NMI"],
      ["svm", "vmmcall", "hypercall", "vmcall", "UD excp"],
    ] as const
  ) {
    it(`makes every call of the table, by ${native}, with one exit: ${backend}`, () => {
      const found = calls("--backend", backend);
      for (const [name, { nr, arch }] of Object.entries(HYPERCALLS)) {
        assertEquals(name in found, (arch as readonly string[]).includes("x86"), name);
        if (!(name in found)) continue;
        const { before, instruction, bytes, rewritten, exits } = found[name];
        assertEquals(before.rax, `0x${nr.toString(16)}`);
        assertEquals([instruction, digits(bytes), rewritten], [native, assembled("x86", native), null]);
        assertEquals(exits, [exit]);
      }
    });

    it(`answers in RAX, and changes nothing else: ${backend}`, () => {
      const found = calls("--backend", backend);
      assertChanged(found.KVM_HC_VAPIC_POLL_IRQ, { rax: "0x0" });
      assertChanged(found.KVM_HC_KICK_CPU, { rax: "0x0" });
      assertChanged(found.KVM_HC_SEND_IPI, { rax: "0x1" }); // one APIC was reached
      assertChanged(found.KVM_HC_SCHED_YIELD, { rax: "0x0" });
      for (const name of ["KVM_HC_MMU_OP", "KVM_HC_MAP_GPA_RANGE", "unknown number 13"]) {
        assertChanged(found[name], { rax: "0xfffffffffffffc18" });
        assertEquals(found[name].outcome, "rax = -1000 (-KVM_ENOSYS)");
      }
    });

    it(`cuts what it answers a 32-bit guest: ${backend}`, () => {
      const found = calls("--backend", backend, "--bits", "32");
      assertChanged(found["unknown number 13"], { rax: "0xfffffc18" });
      assertEquals(found["unknown number 13"].outcome, "rax = -1000 (-KVM_ENOSYS)");
    });

    it(`rewrites the other vendor's instruction: ${backend}`, () => {
      const call = calls("--backend", backend)["KVM_HC_VAPIC_POLL_IRQ, by the other vendor's instruction"];
      assertEquals([call.instruction, digits(call.bytes)], [foreign, assembled("x86", foreign)]);
      assertEquals(digits(call.rewritten!), assembled("x86", native));
      assertEquals(call.exits, [fault, exit]);
      assertChanged(call, { rax: "0x0" });
    });
  }

  it("refuses user mode with an error, not with a fault; there is no SYSRET into it from 32 bits", () => {
    for (const backend of ["vmx", "svm"]) {
      const call = calls("--backend", backend)["KVM_HC_VAPIC_POLL_IRQ, from user mode"];
      assertChanged(call, { rax: "0xffffffffffffffff" });
      assertEquals([call.outcome, call.exits.length], ["rax = -1 (-KVM_EPERM)", 1]);
      assert(!("KVM_HC_VAPIC_POLL_IRQ, from user mode" in calls("--backend", backend, "--bits", "32")));
    }
  });

  it("pairs clocks, which older hosts do not", () => {
    assertChanged(calls().KVM_HC_CLOCK_PAIRING, { rax: "0x0" });
    assertEquals(calls("--host", "2012").KVM_HC_CLOCK_PAIRING.outcome, "rax = -1000 (-KVM_ENOSYS)");
  });

  it("shows that hosts had calls only once they were written", () => {
    const year = (host: string) => calls("--host", host).KVM_HC_SEND_IPI.outcome;
    assertEquals([year("2012"), year("2018")], ["rax = -1000 (-KVM_ENOSYS)", "rax = 1"]);
  });
});

describe("run hypercalls: s390", () => {
  it("makes every call of DIAGNOSE 0x500 with its subcode in gpr 1", () => {
    const found = calls("--arch", "s390");
    for (const [name, { nr }] of Object.entries(S390_HYPERCALLS)) {
      const { before, bytes, exits } = found[name];
      assertEquals(before.gpr1, `0x${nr.toString(16)}`);
      assertEquals(digits(bytes), assembled("s390", "diag %r2, %r4, 0x500"));
      assertEquals(exits, ["ICPT_INST"]);
    }
  });

  it("serves a virtio-ccw notification in the kernel, and others in user space", () => {
    const found = calls("--arch", "s390");
    assertEquals(found.KVM_S390_VIRTIO_CCW_NOTIFY.userspace, []);
    assertChanged(found.KVM_S390_VIRTIO_CCW_NOTIFY, { gpr2: "0x0" }); // the cookie
    assertEquals(found.DIAG500_SC_STOR_LIMIT.userspace, ["KVM_EXIT_S390_SIEIC"]);
    assertChanged(found.DIAG500_SC_STOR_LIMIT, { gpr2: "0xffffff" }); // the last byte of 16 MiB
  });

  it("answers what is unknown with a specification exception, and leaves the registers alone", () => {
    const found = calls("--arch", "s390");
    for (const name of ["KVM_S390_VIRTIO_RESET", "KVM_S390_VIRTIO_SET_STATUS", "unknown subcode 5"]) {
      assertEquals(found[name].outcome, "specification exception (0x6)");
      assertChanged(found[name], {});
    }
  });

  it("refuses the problem state with a privileged-operation exception", () => {
    for (const host of ["kvm", "kvm+qemu-7.2", "kvm+qemu-2.5", "tcg-7.2"]) {
      const call = calls("--arch", "s390", "--host", host)["KVM_S390_VIRTIO_CCW_NOTIFY, from user mode"];
      assertEquals(call.outcome, "privileged-operation exception (0x2)");
      assertChanged(call, {});
    }
  });

  it("has what QEMU 7.2's emulator was seen to do", () => {
    // As tests/data/s390_tcg_7_2.json has it, which was recorded from version 7.2.22.
    const found = calls("--arch", "s390", "--host", "tcg-7.2");
    assertEquals(found.KVM_S390_VIRTIO_NOTIFY.outcome, "gpr2 = 0");
    assertEquals(found.KVM_S390_VIRTIO_CCW_NOTIFY.outcome, "gpr2 = 0");
    for (const name of ["DIAG500_SC_STOR_LIMIT", "KVM_S390_VIRTIO_RESET", "unknown subcode 5"]) {
      assertEquals(found[name].outcome, "specification exception (0x6)", name);
    }
    const functions = Object.fromEntries(
      Object.entries(found).filter(([name]) => name.startsWith("DIAG 0x")).map((
        [name, { outcome }],
      ) => [name.split(" ")[1], outcome]),
    );
    const specification = "specification exception (0x6)";
    assertEquals(functions["0x44"], "returns; no register changes");
    for (const code of ["0x9c", "0x10", "0x258", "0x501"]) assertEquals(functions[code], specification, code);
    assertEquals(functions["0x308"], "gpr3 = 258", "0x102: nothing was set that could be stored");
  });

  it("tells a stray breakpoint by an operation exception under KVM", () => {
    const call = calls("--arch", "s390")["DIAG 0x501 KVM_BREAKPOINT"];
    assertEquals(call.outcome, "operation exception (0x1)");
    assertEquals(digits(call.bytes), "83240501");
  });
});

describe("run hypercalls: PowerPC", () => {
  const PR = ["lis r0,0x4b56", "ori r0,r0,0x4d21", "sc", "nop"];

  it("makes every call through the device tree's words, with its token in r11", () => {
    const found = calls("--arch", "ppc");
    for (const name of Object.keys(PPC_HYPERCALLS) as (keyof typeof PPC_HYPERCALLS)[]) {
      assertEquals(found[name].before.r11, `0x${ppcHypercallToken(name).toString(16)}`);
      assertEquals(found[name].instruction, PR.join("; "));
      assertEquals(digits(found[name].bytes), "3c004b5660004d214400000260000000");
      assertEquals(found[name].exits, ["SYSCALL"]);
    }
  });

  it("answers with a status in r3 and always writes r4; r5 and on survive", () => {
    const found = calls("--arch", "ppc");
    const magic = { r0: "0x4b564d21" }; // the words load it
    assertChanged(found.KVM_HC_FEATURES, { ...magic, r3: "0x0", r4: "0x2" });
    assertChanged(found.KVM_HC_PPC_MAP_MAGIC_PAGE, { ...magic, r3: "0x0", r4: "0x3" });
    assertChanged(found.EV_IDLE, { ...magic, r3: "0x0", r4: "0x0" });
    assertChanged(found.EV_BYTE_CHANNEL_SEND, { ...magic, r3: "0xc", r4: "0x0" });
    assertEquals(found.EV_BYTE_CHANNEL_SEND.outcome, "r3 = 12 (EV_UNIMPLEMENTED), r4 = 0");
    assertChanged(found["unknown token 0x2a000d"], { ...magic, r3: "0xc", r4: "0x0" });
  });

  it("calls a hypervisor-state host by sc 1, which offers no magic page", () => {
    const { instruction, exits, outcome } = calls("--arch", "ppc", "--host", "e500mc").KVM_HC_FEATURES;
    assertEquals([instruction, exits], ["sc 1; nop; nop; nop", ["HV_SYSCALL"]]);
    assertEquals(outcome, "r3 = 0 (EV_SUCCESS), r4 = 0");
  });

  it("calls nobody where the device tree has no words, or words that fail, or no hypervisor: r3 is -1", () => {
    const failing = "tdi 0,r0,72; li r3,-1; b 0x8010; .long 0xffff6038";
    const stub = "li r3,-1; nop; nop; nop";
    for (
      const [host, words] of [["book3s-64-hv", stub], ["book3s-64-hv+qemu-2.5", failing], ["none", stub]]
    ) {
      for (const order of ["big", "little"]) {
        const found = calls("--arch", "ppc", "--host", host, "--order", order);
        assert(Object.keys(found).length > 17);
        for (const call of Object.values(found)) {
          assertEquals([call.exits, call.outcome], [[], "nobody is called; r3 = -1"]);
          assertEquals(call.instruction, words);
        }
      }
    }
  });

  it("is a system call to the guest itself in user mode, or a privileged instruction", () => {
    const call = (host: string) => calls("--arch", "ppc", "--host", host)["KVM_HC_FEATURES, from user mode"];
    for (const [host, vector] of [["book3s-64-pr", "0xc00"], ["book3s-32-pr", "0xc00"], ["e500v2", "0x8"]]) {
      assertEquals(call(host).outcome, `SYSCALL (${vector}): a system call to the guest itself`);
      assertChanged(call(host), { r0: "0x4b564d21" });
    }
    assertEquals(call("e500mc").outcome, "PROGRAM (0x6)");
    assertChanged(call("e500mc"), {});
  });

  it("has the words in the guest's byte order", () => {
    const big = calls("--arch", "ppc").KVM_HC_FEATURES;
    const little = calls("--arch", "ppc", "--order", "little").KVM_HC_FEATURES;
    assertEquals([little.outcome, little.instruction], [big.outcome, big.instruction]);
    assertEquals(little.bytes, "564b003c 214d0060 02000044 00000060");
  });
});

describe("run hypercalls: MIPS", () => {
  const USER = "KVM_HC_MIPS_GET_CLOCK_FREQ, from user mode";

  it("is an exception of the guest's own in user mode: coprocessor 0 is not usable", () => {
    for (const host of ["mainline", "imgtec", "cavium", "none"]) {
      for (const bits of ["64", "32"]) {
        const call = calls("--arch", "mips", "--host", host, "--bits", bits)[USER];
        assertEquals([call.exits, call.userspace, call.outcome], [[], [], "CpU (0xb)"]);
        assertEquals(digits(call.bytes), assembled("mips", "hypcall 0"));
        assertChanged(call, {});
      }
    }
  });

  it("knows no call on mainline's host", () => {
    for (const order of ["big", "little"]) {
      const { [USER]: _, ...found } = calls("--arch", "mips", "--order", order);
      for (const call of Object.values(found)) {
        assertEquals([call.exits, call.outcome], [["HC"], "v0 = -1000 (-KVM_ENOSYS)"]);
        assertChanged(call, { v0: "0xfffffffffffffc18" });
        assertEquals(digits(call.bytes), assembled(order === "big" ? "mips" : "mipsel", "hypcall 0"));
      }
    }
  });

  it("does on the two hosts beside it what the calls are for", () => {
    const imgtec = calls("--arch", "mips", "--host", "imgtec");
    const cavium = calls("--arch", "mips", "--host", "cavium");
    for (const host of [imgtec, cavium]) {
      assertChanged(host.KVM_HC_MIPS_GET_CLOCK_FREQ, { v0: "0x5f5e100" }); // 100 MHz
      assertEquals(host.KVM_HC_MIPS_EXIT_VM.after, null);
      assertEquals(host.KVM_HC_MIPS_CONSOLE_OUTPUT.userspace, ["KVM_EXIT_HYPERCALL"]);
    }
    assertEquals(imgtec.KVM_HC_MIPS_EXIT_VM.userspace, ["KVM_EXIT_SYSTEM_EVENT"]);
    assertEquals(cavium.KVM_HC_MIPS_EXIT_VM.userspace, ["KVM_EXIT_SHUTDOWN"]);
    assertEquals(imgtec["unknown number 13"].outcome, "v0 = -1000 (-KVM_ENOSYS)");
    assertChanged(cavium["unknown number 13"], {});
  });

  it("is a reserved instruction where there is no KVM", () => {
    const { [USER]: _, ...found } = calls("--arch", "mips", "--host", "none");
    for (const call of Object.values(found)) {
      assertEquals([call.exits, call.outcome], [[], "RI (0xa)"]);
      assertChanged(call, {});
    }
  });
});

describe("run hypercalls", () => {
  it("prints a paragraph a call, which fits on a terminal", () => {
    for (const arch of ["x86", "s390", "ppc", "mips"]) {
      const { out, code } = command(["run", "hypercalls", "--arch", arch], 80);
      assertEquals(code, 0);
      const [title, ...paragraphs] = out.split("\n\n");
      assert(title.startsWith(arch));
      for (const paragraph of paragraphs) {
        const what = paragraph.split("\n").slice(1).map((line) => line.slice(2, 11).trim()).filter((word) =>
          word !== ""
        );
        assertEquals(what, ["call", "before", "after", "exit", "outcome"]);
      }
      for (const line of out.split("\n")) assert(line.length <= 80, line);
    }
  });

  it("tells of x86's vendors and of years of kernels for x86 alone, and of the width that there is", () => {
    const told = (...args: string[]) => {
      const { options, guestSemantics, hostSemantics }: ExperimentResult = JSON.parse(
        command(["run", "hypercalls", "--json", ...args], 80).out,
      );
      const { backend, host, bits } = options;
      return [backend, host, bits, guestSemantics, hostSemantics];
    };
    assertEquals(told("--host", "2018", "--bits", "32"), ["vmx", "2018", "32", "v6.19", "2018"]);
    assertEquals(told("--arch", "s390"), [null, "kvm", null, null, null]);
    assertEquals(told("--arch", "ppc"), [null, "book3s-64-pr", null, null, null]);
    assertEquals(told("--arch", "mips", "--bits", "32"), [null, "mainline", "32", null, null]);
  });

  it("refuses the options and the values of other architectures, and says what this one has", () => {
    const hosts = {
      x86: ["v6.19", "2012", "2018", "2021", "2022"],
      s390: ["kvm", "kvm+qemu-7.2", "kvm+qemu-2.5", "tcg-7.2"],
      ppc: [
        "book3s-64-pr",
        "book3s-32-pr",
        "e500v2",
        "e500mc",
        "book3s-64-hv",
        "book3s-64-hv+qemu-2.5",
        "none",
      ],
      mips: ["mainline", "imgtec", "cavium", "none"],
    };
    for (const [arch, own] of Object.entries(hosts)) {
      for (const host of [...Object.values(hosts).flat(), "nonsense", "usual", "toString", ""]) {
        if (own.includes(host)) continue;
        assertEquals(
          refused("--arch", arch, "--host", host),
          `Cannot run hypercalls --arch ${arch} with host ${host}: allowed are ${own.join(", ")}`,
        );
      }
    }
    const options = {
      x86: ["host", "bits", "backend"],
      s390: ["host"],
      ppc: ["host", "order"],
      mips: ["host", "bits", "order"],
    };
    const values = { host: "none", bits: "64", order: "big", backend: "vmx" };
    for (const [arch, own] of Object.entries(options)) {
      for (const [option, value] of Object.entries(values)) {
        if (own.includes(option)) continue;
        const all = ["vcpus", "seed", "arch", ...own, "json", "trace"].map((name) => `--${name}`);
        assertEquals(
          refused(`--${option}`, value, "--arch", arch),
          `Cannot run hypercalls --arch ${arch}: Unknown option '--${option}'; allowed are ${all.join(", ")}`,
        );
      }
    }
    assertEquals(refused("--host", "kvm"), refused("--arch", "x86", "--host", "kvm"));
    assertEquals(refused("--order", "little"), refused("--arch", "x86", "--order", "little"));
  });

  it("refuses architectures, numbers and byte orders that there are not", () => {
    for (const arch of ["arm", "X86", "", "toString"]) {
      assertEquals(
        refused(`--arch=${arch}`, "--order", "big"),
        `Cannot run hypercalls with arch ${arch}: allowed are x86, s390, ppc, mips`,
      );
    }
    for (const [arch, vcpus] of [["x86", 2], ["s390", 2], ["ppc", 1], ["mips", 1]] as const) {
      for (const wrong of [0, 3 - vcpus, 3, 2 ** 53 - 1]) {
        assertEquals(
          refused("--arch", arch, "--vcpus", String(wrong)),
          `Cannot run hypercalls --arch ${arch} with vcpus ${wrong}: allowed are ${vcpus}`,
        );
      }
      for (const seed of ["-1", "NaN", "9007199254740992", "1e3"]) {
        assertEquals(
          refused("--arch", arch, "--seed", seed),
          `Cannot use "${seed}" for --seed: allowed are 0 to 9007199254740991`,
        );
      }
    }
    for (const host of ["book3s-32-pr", "e500v2", "e500mc"]) {
      assertStringIncludes(refused("--arch", "ppc", "--host", host, "--order", "little"), "allowed is big");
    }
  });

  it("tells what an architecture's calls can be told", () => {
    const help = (arch: string) => command(["run", "hypercalls", "--arch", arch, "--help"], 200).out;
    assertStringIncludes(help("mips"), "mainline, imgtec, cavium, none (mainline)");
    for (const [arch, has] of [["x86", true], ["s390", false], ["ppc", false], ["mips", false]] as const) {
      assertEquals([help(arch).includes("--backend"), help(arch).includes("2012")], [has, has]);
    }
  });
});
