import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { PF_VECTOR, PFERR_PRESENT, PFERR_WRITE, PTE_P, UD_VECTOR, type X86Cpu } from "../../../../abi/mod.ts";
import { type BackendName, BACKENDS } from "../../../../host/mod.ts";
import { KERNEL_PAGE, pagingOn, PagingRig, tells, writeProtect } from "../../../support/paging.ts";

/** Text at 0x10_0000 stands elsewhere in memory: the tables lead there, and what is at 0x10_0000 is nothing. */
function moved(backend: BackendName, flags: number): PagingRig {
  const rig = new PagingRig({ vm: { backend } }).fixups();
  for (let page = 0; page < 16; page++) {
    rig.map(0x10_0000 + 4096 * page, 0x18_0000 + 4096 * page, { flags });
  }
  return rig;
}

/** Puts the text there, once it is loaded. */
function copyText(rig: PagingRig): void {
  const { memory } = rig.vm;
  for (let at = 0; at < 0x1_0000; at += 4) {
    memory.setWord(0x18_0000 + at, memory.word(0x10_0000 + at));
    memory.setWord(0x10_0000 + at, 0);
  }
}

for (const backend of BACKENDS) {
  describe(`hypercalls from translated text (${backend})`, () => {
    const native = (cpu: X86Cpu) => backend === "vmx" ? cpu.vmcall() : cpu.vmmcall();
    const foreign = (cpu: X86Cpu) => backend === "vmx" ? cpu.vmmcall() : cpu.vmcall();
    it("are found where the tables lead: the instruction is what stands there", () => {
      const rig = moved(backend, KERNEL_PAGE);
      rig.start(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield native(cpu.loadHypercall(1));
        assertEquals(cpu.rax, 0n);
      });
      copyText(rig);
      assertEquals(rig.vm.machine.run(1e9).end, "finished");
      assertEquals(rig.vm.counters().kvm_hypercall, 1);
    });

    it("of the other vendor's are rewritten there, once", () => {
      const rig = moved(backend, KERNEL_PAGE);
      let site = 0;
      rig.start(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        for (let turn = 0; turn < 3; turn++) {
          yield foreign(cpu.loadHypercall(1));
          assertEquals(cpu.rax, 0n);
        }
        site = rig.vm.bootstrap.processor.rip - 3;
      });
      copyText(rig);
      assertEquals(rig.vm.machine.run(1e9).end, "finished");
      const third = backend === "vmx" ? 0xc1 : 0xd9;
      assertEquals([rig.vm.memory.byte(site + 0x8_0002), rig.vm.memory.byte(site + 2)], [third, 0]);
      assertEquals(rig.vm.counters().kvm_hypercall, 3);
    });

    it("of the other vendor's in read-only text raise #PF as the guest's own write would", () => {
      const rig = moved(backend, PTE_P);
      rig.start(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield* writeProtect(cpu);
        const fault = yield* tells(() => foreign(cpu.loadHypercall(1)));
        assertEquals(fault, `#PF(${PFERR_PRESENT | PFERR_WRITE})`);
        const { vector, cr2, rip } = rig.lastFault!;
        assertEquals([vector, cr2], [PF_VECTOR, rip]);
        assertEquals(yield* tells(() => cpu.ud2()), `${UD_VECTOR}(0)`);
      });
      copyText(rig);
      assertEquals(rig.vm.machine.run(1e9).end, "finished");
    });
  });
}
