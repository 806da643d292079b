/**
 * The hosts of s390 guests: KVM and the user space that it leaves calls to, or QEMU's emulator, which does all by itself. One
 * row says what differs (what each answers was read in its source, and for the emulator recorded from it).
 *
 * @module
 */

/** A host. */
export type S390Host = "kvm" | "kvm+qemu-7.2" | "kvm+qemu-2.5" | "tcg-7.2";

/** What differs between hosts. */
export interface S390HostBehaviour {
  /**
   * KVM serves calls: interceptions leave the guest, and user space gets what KVM leaves. Else QEMU's emulator does all: it
   * knows fewer functions, and takes what stands in the instruction for the code, not base and displacement.
   */
  readonly kvm: boolean;
  /** Devices are virtio-ccw's (KVM_CAP_S390_CSS_SUPPORT). Else they are those of the older s390-virtio transport. */
  readonly css: boolean;
  /** DIAGNOSE 0x500 subcode 4 exists. Since QEMU 10.0. */
  readonly storageLimit: boolean;
  /**
   * DIAGNOSE 0x308 looks at the parameters of the next IPL, and goes on after a reset at the whole short PSW. QEMU 2.5 takes
   * any 200 bytes for parameters, and a PSW's address alone, for a 64-bit PSW.
   */
  readonly checksIpl: boolean;
  /** What the virtual machine calls itself in STSI 3.2.2, in its short and its extended name. */
  readonly name: string;
}

/** The hosts. */
export const S390_HOSTS: Readonly<Record<S390Host, S390HostBehaviour>> = {
  "kvm": {
    kvm: true,
    css: true,
    storageLimit: true,
    checksIpl: true,
    name: "KVMguest",
  },
  "kvm+qemu-7.2": {
    kvm: true,
    css: true,
    storageLimit: false,
    checksIpl: true,
    name: "KVMguest",
  },
  "kvm+qemu-2.5": {
    kvm: true,
    css: false,
    storageLimit: false,
    checksIpl: false,
    name: "KVMguest",
  },
  "tcg-7.2": {
    kvm: false,
    css: true,
    storageLimit: false,
    checksIpl: true,
    name: "TCGguest",
  },
};

/** Vouches for a host's name. Throws `RangeError` naming those allowed. */
export function s390Host(name: string): S390Host {
  if (Object.hasOwn(S390_HOSTS, name)) return name as S390Host;
  throw new RangeError(
    `Cannot simulate the s390 host ${name}: allowed are ${Object.keys(S390_HOSTS).join(", ")}`,
  );
}
