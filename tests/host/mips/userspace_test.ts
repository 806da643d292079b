import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { HYPERCALLS, mipsKseg0, mipsUnmapped } from "../../../abi/mod.ts";
import { GuestMemory, MipsUserspace } from "../../../host/mod.ts";
import { runMips } from "../../support/mips.ts";

const NR = BigInt(HYPERCALLS.KVM_HC_MIPS_CONSOLE_OUTPUT.nr);
const RAM = 0x1_0000;

/** What user space makes of a call: what it says, or what it wrote where it goes on. */
function write(terminal: bigint, address: bigint, length: bigint): string | undefined {
  const memory = new GuestMemory();
  memory.addSlot({ base: 0, size: RAM });
  memory.load(0x100, new TextEncoder().encode("text"));
  memory.load(RAM - 4, new TextEncoder().encode("last"));
  const userspace = new MipsUserspace(memory);
  const problem = userspace.hypercall({ nr: NR, args: [terminal, address, length], ret: undefined });
  return problem ?? userspace.terminals.map((_, i) => userspace.text(i)).join("|");
}

describe("kvmtool's console of MIPS guests", () => {
  it("finds a buffer in kseg0, kseg1 and xkphys, without page tables", () => {
    const addresses = [
      0xffff_ffff_8000_0100n,
      0xffff_ffff_a000_0100n,
      0x9800_0000_0000_0100n,
      0x8000_0000_0000_0100n,
    ];
    for (const address of addresses) assertEquals(write(0n, address, 4n), "text|||");
  });

  it("takes any other address as a physical one: useg's by mistake, kseg2's out of memory", () => {
    assertEquals(write(0n, 0x100n, 4n), "text|||");
    assertEquals(
      write(0n, 0xffff_ffff_c000_0100n, 4n),
      "hypercall_write_cons unmapped physaddr ffffffffc0000100",
    );
    assertEquals(write(0n, BigInt(RAM), 4n), "hypercall_write_cons unmapped physaddr 10000");
  });

  it("has four terminals, whose number is an int", () => {
    assertEquals(write(3n, 0x100n, 4n), "|||text");
    assertEquals(write((1n << 32n) + 1n, 0x100n, 4n), "|text||");
    assertEquals(write(4n, 0x100n, 4n), "hypercall_write_cons term out of range <4>");
    assertEquals(write((1n << 64n) - 1n, 0x100n, 4n), "hypercall_write_cons term out of range <-1>");
  });

  it("writes one byte or more, and wants one more byte of memory behind them", () => {
    assertEquals(write(0n, 0x100n, 0n), "hypercall_write_cons len out of range <0>");
    assertEquals(write(0n, 0x100n, (1n << 64n) - 4n), "hypercall_write_cons len out of range <-4>");
    assertEquals(write(0n, BigInt(RAM - 4), 3n), "las|||");
    assertEquals(write(0n, BigInt(RAM - 4), 4n), "hypercall_write_cons len out of range <4>");
  });

  it("knows no other call", () => {
    const userspace = new MipsUserspace(new GuestMemory());
    assertEquals(
      userspace.hypercall({ nr: 7n, args: [], ret: undefined }),
      "KVM_EXIT_HYPERCALL unrecognized call 7",
    );
  });

  it("ends the virtual machine where it fails, and the guest does not go on", () => {
    for (const host of ["imgtec", "cavium"] as const) {
      let cameBack = false;
      const vm = runMips(function* (cpu) {
        const call = { number: NR, arguments: [9n, 0xffff_ffff_8000_4000n, 1n] };
        yield cpu.loadHypercall(call).hypcall();
        cameBack = true;
      }, { host });
      assertEquals([vm.ending, cameBack, vm.dead], [
        "hypercall_write_cons term out of range <9>",
        false,
        true,
      ]);
    }
  });

  it("translates unmapped segments as the processor does", () => {
    assertEquals(mipsUnmapped(BigInt.asUintN(64, BigInt(mipsKseg0(0x100) | 0))), 0x100n);
    assertEquals(mipsUnmapped(0x9000_0000_0000_0100n), 0x100n);
    for (const mapped of [0x100n, 0xffff_ffff_c000_0000n, 0x4000_0000_0000_0000n, 0xc000_0000_0000_0000n]) {
      assertEquals(mipsUnmapped(mapped), undefined);
    }
  });
});
