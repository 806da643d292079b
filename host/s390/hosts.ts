/**
 * The hosts of s390 guests: KVM and the user space that it leaves calls to, or QEMU's emulator, which does all by itself. One
 * row says what differs (what each answers was read in its source, and for the emulator recorded from it).
 *
 * @module
 */

import { PGM_OPERATION, PGM_SPECIFICATION } from "../../abi/mod.ts";

/** A host. */
export type S390Host = "kvm" | "kvm+qemu-7.2" | "kvm+qemu-2.5" | "tcg-7.2";

/** What differs between hosts. */
export interface S390HostBehaviour {
  /** KVM serves calls: interceptions leave the guest, and user space gets what KVM leaves. Else QEMU's emulator does all. */
  readonly kvm: boolean;
  /** Devices are virtio-ccw's (KVM_CAP_S390_CSS_SUPPORT). Else they are those of the older s390-virtio transport. */
  readonly css: boolean;
  /** DIAGNOSE 0x500 subcode 4 exists. Since QEMU 10.0. */
  readonly storageLimit: boolean;
  /** How DIAGNOSE's code is found: base and displacement as an address, or the 16 bits of both fields as they are. */
  readonly diagCode: "address" | "immediate";
  /** What a breakpoint (DIAGNOSE 0x501) gets that no debugger planted. */
  readonly strayBreakpoint: typeof PGM_OPERATION | typeof PGM_SPECIFICATION;
  /** What the virtual machine calls itself in STSI 3.2.2. */
  readonly name: string;
}

/** The hosts. */
export const S390_HOSTS: Readonly<Record<S390Host, S390HostBehaviour>> = {
  "kvm": {
    kvm: true,
    css: true,
    storageLimit: true,
    diagCode: "address",
    strayBreakpoint: PGM_OPERATION,
    name: "KVMguest",
  },
  "kvm+qemu-7.2": {
    kvm: true,
    css: true,
    storageLimit: false,
    diagCode: "address",
    strayBreakpoint: PGM_OPERATION,
    name: "KVMguest",
  },
  "kvm+qemu-2.5": {
    kvm: true,
    css: false,
    storageLimit: false,
    diagCode: "address",
    strayBreakpoint: PGM_OPERATION,
    name: "KVMguest",
  },
  "tcg-7.2": {
    kvm: false,
    css: true,
    storageLimit: false,
    diagCode: "immediate",
    strayBreakpoint: PGM_SPECIFICATION,
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
