/**
 * AMD's Advanced Virtual Interrupt Controller: the formats of its tables, and why an IPI could not be completed
 * (APM volume 2, 15.29).
 *
 * @module
 */

// Physical APIC ID table (APM 2 15.29.4.2): 8 bytes an entry, by guest physical APIC ID.

/** Bits 11:0: the physical APIC ID of the CPU that has the vCPU. */
export const AVIC_PHYSICAL_HOST_ID = 0xfff;
/** Bits 51:12, in the low word: the backing page. */
export const AVIC_PHYSICAL_PAGE_LOW = 0xffff_f000;
/** Bits 51:12, in the high word. */
export const AVIC_PHYSICAL_PAGE_HIGH = 0x000f_ffff;
/** Bit 62, in the high word: a CPU has the vCPU (IsRunning). */
export const AVIC_PHYSICAL_IS_RUNNING = 1 << 30;
/** Bit 63, in the high word: the entry is valid. */
export const AVIC_PHYSICAL_VALID = 1 << 31;

// Logical APIC ID table (APM 2 15.29.4.3): 4 bytes an entry, by logical ID; in xAPIC mode alone.

/** Bits 7:0: the guest physical APIC ID. */
export const AVIC_LOGICAL_GUEST_ID = 0xff;
/** Bit 31: the entry is valid. */
export const AVIC_LOGICAL_VALID = 1 << 31;

/** The highest index of the physical table in xAPIC mode; 255 is everybody. */
export const AVIC_MAX_PHYSICAL_ID = 0xfe;
/** The highest index in x2APIC mode, of processors without the extension (CPUID 0x8000000a ECX bit 6). */
export const X2AVIC_MAX_PHYSICAL_ID = 0x1ff;

/** int_ctl bit 30: AVIC in x2APIC mode. */
export const X2APIC_MODE_MASK = 1 << 30;
/** int_ctl bit 31: AVIC. */
export const AVIC_ENABLE_MASK = 1 << 31;

/** MSR: rings the doorbell of the CPU whose physical APIC ID is written. */
export const SVM_AVIC_DOORBELL = 0xc001_011b;

/** EXITINFO2 bits 63:32 of an incomplete IPI: not a fixed interrupt, or level-triggered. */
export const AVIC_IPI_INVALID_INT_TYPE = 0;
/** A target is not running; every target's IRR is set. */
export const AVIC_IPI_TARGET_NOT_RUNNING = 1;
/** A target has no valid entry in a table. */
export const AVIC_IPI_INVALID_TARGET = 2;
/** A target's entry names no page. */
export const AVIC_IPI_INVALID_BACKING_PAGE = 3;
/** The vector is below 16. */
export const AVIC_IPI_INVALID_VECTOR = 4;
/** EXITINFO2 bits 11:0 of an incomplete IPI: where in the table. */
export const AVIC_IPI_INDEX_MASK = 0xfff;

/** EXITINFO1 of an unaccelerated access, bits 11:4: the register. */
export const AVIC_UNACCELERATED_OFFSET = 0xff0;
