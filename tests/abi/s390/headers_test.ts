import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  DIAGNOSES,
  KVM_S390_INTERRUPTS,
  KVM_S390_RESETS,
  LOWCORE,
  PROGRAM_INTERRUPTIONS,
  programInterruptionName,
  S390_ERRNO,
  S390_HYPERCALLS,
  SYSIB_322,
  SYSIB_322_ENTRY,
} from "../../../abi/mod.ts";
import { assertLayout, assertValue, HEADERS, namesLike } from "../../support/headers.ts";

describe("s390's tables against the headers", () => {
  it("have no call from asm/kvm_para.h, which is empty: DIAGNOSE's subcodes are elsewhere", () => {
    for (const { sets } of HEADERS) assertEquals(sets.s390.whole["asm/kvm_para.h"], []);
    assertValue("s390", "KVM_S390_VIRTIO_CCW_NOTIFY", S390_HYPERCALLS.KVM_S390_VIRTIO_CCW_NOTIFY.nr);
  });

  it("have functions of DIAGNOSE that trace events name", () => {
    for (const { sets } of HEADERS) {
      const codes = sets.s390.lists.diagnose_codes;
      for (const { code } of Object.values(DIAGNOSES)) {
        assert(`0x${code.toString(16)}` in codes, `DIAG ${code}`);
      }
      assertEquals(codes["0x500"], "DIAG (0x500) KVM virtio functions");
    }
  });

  it("name program interruptions by their codes", () => {
    for (const { sets } of HEADERS) {
      const names = sets.s390.lists.icpt_prog_codes;
      const words = (text: string) => text.toLowerCase().replaceAll(/[^a-z]+|prog|exception|operation/g, " ");
      for (const code of Object.values(PROGRAM_INTERRUPTIONS)) {
        const theirs = names[`0x${code.toString(16)}`];
        for (const word of words(programInterruptionName(code)).trim().split(" ")) {
          assert(words(theirs).includes(word), `${theirs}: ${programInterruptionName(code)}`);
        }
      }
    }
  });

  it("have KVM's types of interruptions and flags of resets", () => {
    for (const [name, type] of Object.entries(KVM_S390_INTERRUPTS)) assertValue("s390", name, type);
    for (const [name, flag] of Object.entries(KVM_S390_RESETS)) assertValue("s390", name, flag);
    assertEquals(namesLike("s390", /^KVM_S390_RESET_/).size, Object.keys(KVM_S390_RESETS).length);
  });

  it("know errno's numbers", () => {
    for (const [name, number] of Object.entries(S390_ERRNO)) assertValue("s390", name, number);
  });

  it("lay the lowcore and block 3.2.2 out as the kernel does", () => {
    const padding = (field: string) => /^(pad|reserved)_/.test(field);
    assertLayout(
      ["s390-kernel"],
      "lowcore",
      LOWCORE,
      (field) => padding(field) || field === "svc_ilc" || field === "svc_code" ? undefined : field,
    );
    const { svc_ilc } = LOWCORE.fields;
    for (const { sets } of HEADERS) {
      const { lowcore, sysinfo_3_2_2 } = sets["s390-kernel"].structs;
      assertEquals([svc_ilc.offset, 4], [...lowcore.members.svc_int_code], "both halves of the code");
      assertEquals(SYSIB_322.size, sysinfo_3_2_2.size);
      const { vm, ext_names } = SYSIB_322.fields;
      assertEquals([vm.offset, vm.size], [...sysinfo_3_2_2.members.vm]);
      assertEquals([ext_names.offset, ext_names.size], [...sysinfo_3_2_2.members.ext_names]);
      assertEquals(SYSIB_322_ENTRY.size, sysinfo_3_2_2.members["vm[1]"][1]);
      for (const [field, { offset, size }] of Object.entries(SYSIB_322_ENTRY.fields)) {
        if (padding(field)) continue;
        const member = sysinfo_3_2_2.members[`vm[0].${field}`];
        assertEquals([vm.offset + offset, size], [...member], field);
      }
    }
  });
});
