/**
 * The page that KVM keeps a vCPU's supervisor registers in, and that a guest may map (vcpu->arch.shared). What stands
 * in it is what holds: instructions that trap act on the same fields.
 *
 * @module
 */

import {
  type ByteOrder,
  KVM_VCPU_ARCH_SHARED,
  MAGIC_PAGE_BYTES,
  type MagicField,
  SWABBED_FIELDS,
} from "../../abi/mod.ts";

/** A vCPU's shared page. */
export class SharedPage {
  /** Its bytes. */
  readonly bytes: Uint8Array = new Uint8Array(MAGIC_PAGE_BYTES);
  /** The same, for words of either byte order. */
  readonly view: DataView = new DataView(this.bytes.buffer);
  /** The byte order in which the host reads and writes it. */
  order: ByteOrder;

  /** A page of zeros. */
  constructor(order: ByteOrder) {
    this.order = order;
  }

  /** A field, or one of its elements. */
  get(field: MagicField, index: number = 0): bigint {
    const { offset, type } = KVM_VCPU_ARCH_SHARED.fields[field];
    const little = this.order === "little";
    return type === "u64"
      ? this.view.getBigUint64(offset, little)
      : BigInt(this.view.getUint32(offset + 4 * index, little));
  }

  /** Sets a field, or one of its elements, modulo its size. */
  set(field: MagicField, value: bigint, index: number = 0): void {
    const { offset, type } = KVM_VCPU_ARCH_SHARED.fields[field];
    const little = this.order === "little";
    if (type === "u64") this.view.setBigUint64(offset, BigInt.asUintN(64, value), little);
    else this.view.setUint32(offset + 4 * index, Number(BigInt.asUintN(32, value)), little);
  }

  /**
   * The guest turns out to have a byte order: from now on the host uses it. Where that is a change, the bytes of some
   * fields are exchanged, as kvmppc_swab_shared does; the others keep theirs, and read differently afterwards.
   */
  takeOver(order: ByteOrder): void {
    if (order === this.order) return;
    for (const field of SWABBED_FIELDS) {
      const { offset, size, count } = KVM_VCPU_ARCH_SHARED.fields[field];
      const bytes = size / count;
      for (let at = offset; at < offset + size; at += bytes) this.bytes.subarray(at, at + bytes).reverse();
    }
    this.order = order;
  }
}
