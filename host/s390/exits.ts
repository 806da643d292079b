/**
 * Why an s390 guest leaves guest mode: SIE's interception codes (asm/kvm_host_types.h), and a fault on the host's side.
 * Numbers here are the codes divided by 4.
 *
 * @module
 */

/** A fault on the host's side: the guest touched memory that the host has not mapped. */
export const S390_EXIT_FAULT = 0;
/** ICPT_INST: an instruction that the host is to carry out. */
export const S390_EXIT_INST = 0x04 / 4;
/** ICPT_EXTREQ: an external interruption that waited can be taken now. */
export const S390_EXIT_EXTREQ = 0x10 / 4;
/** ICPT_EXTINT: the host's own interrupt. */
export const S390_EXIT_EXTINT = 0x14 / 4;
/** ICPT_WAIT: the guest has loaded a wait PSW. */
export const S390_EXIT_WAIT = 0x1c / 4;
/** No interception: the helper function that QEMU's emulator calls for an instruction. */
export const S390_EXIT_HELPER = 0x80 / 4;

/** The exits' names, by number. */
export const S390_EXITS: readonly string[] = (() => {
  const names = Array.from(
    { length: S390_EXIT_HELPER + 1 },
    (_, number) => `ICPT_0x${(4 * number).toString(16)}`,
  );
  names[S390_EXIT_FAULT] = "HOST_FAULT";
  names[S390_EXIT_INST] = "ICPT_INST";
  names[S390_EXIT_EXTREQ] = "ICPT_EXTREQ";
  names[S390_EXIT_EXTINT] = "ICPT_EXTINT";
  names[S390_EXIT_WAIT] = "ICPT_WAIT";
  names[S390_EXIT_HELPER] = "TCG_HELPER";
  return names;
})();
