import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { command } from "../../lab/cli.ts";
import type { HypercallRun } from "../../lab/mod.ts";

describe("run hypercalls --trace", () => {
  /** The trace of each call, by its name. */
  function traces(...args: string[]): Record<string, string[]> {
    const run = () => command(["run", "hypercalls", ...args, "--trace", "trace.txt"], 80);
    const { out, code, file } = run();
    assertEquals([code, file?.path], [0, "trace.txt"]);
    assertEquals(run().file, file); // Byte for byte.
    assertEquals(out, command(["run", "hypercalls", ...args], 80).out); // Being watched changes nothing.
    return Object.fromEntries(
      file!.text.trimEnd().split("\n\n").map((boot) => {
        const [title, ...lines] = boot.split("\n");
        return [title.slice(2, title.indexOf(": ")), lines.map((line) => line.slice(line.indexOf(": ") + 2))];
      }),
    );
  }

  it("has one trace a call, on every architecture", () => {
    for (const arch of ["x86", "s390", "ppc", "mips"]) {
      const { runs }: { runs: HypercallRun[] } = JSON.parse(
        command(["run", "hypercalls", "--arch", arch, "--json"], 80).out,
      );
      assertEquals(Object.keys(traces("--arch", arch)), runs.map(({ name }) => name));
    }
  });

  it("has what KVM traces on s390 (arch/s390/kvm/trace.h and trace-s390.h)", () => {
    assertEquals(traces("--arch", "s390").KVM_S390_VIRTIO_CCW_NOTIFY, [
      "kvm_s390_vcpu_start_stop: id 0 state 1",
      "kvm_s390_sie_enter: address 0x10300",
      "kvm_s390_sie_exit: icptcode ICPT_INST address 0x10306",
      "kvm_s390_intercept_instruction: ipa 0x8324 ipb 0x5000000",
      "kvm_s390_handle_diag: code 0x500",
      "kvm_s390_sie_enter: address 0x10306",
    ]);
  });

  it("has what KVM-PR traces on PowerPC (arch/powerpc/kvm/trace_pr.h)", () => {
    assertEquals(traces("--arch", "ppc").KVM_HC_FEATURES, [
      "kvm_exit: exit SYSCALL pc 0x800c msr 0x8000000000001030 last_inst 0x44000002",
      "kvm_book3s_reenter: r 0 pc 0x800c",
    ]);
  });

  it("has what KVM traces on MIPS: a guest exit twice (arch/mips/kvm/trace.h)", () => {
    assertEquals(traces("--arch", "mips", "--host", "imgtec").KVM_HC_MIPS_GET_CLOCK_FREQ, [
      "kvm_enter: pc 0xffffffff80100080",
      "kvm_exit: reason Guest Exit pc 0xffffffff80100084",
      "kvm_exit: reason HC pc 0xffffffff80100084",
      "kvm_reenter: pc 0xffffffff80100088",
    ]);
  });

  it("has nothing where there is no KVM: on an emulator, on a processor of its own", () => {
    const emulated = [["s390", "tcg-7.2"], ["mips", "none"]];
    for (const [arch, host] of emulated) {
      for (const events of Object.values(traces("--arch", arch, "--host", host))) {
        assertEquals(events, []);
      }
    }
  });

  it("explains x86's machines alone", () => {
    for (const arch of ["s390", "ppc", "mips"]) {
      const { out, err, code } = command(["explain", "hypercalls", "--arch", arch], 80);
      assertEquals([out, code], ["", 2]);
      assertEquals(err, `Cannot explain hypercalls --arch ${arch}: allowed are machines of x86`);
    }
  });
});
