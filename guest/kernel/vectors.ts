/**
 * Interrupt vectors as Linux gives them out (arch/x86/include/asm/irq_vectors.h).
 *
 * @module
 */

/** The first vector that is no exception's. */
export const FIRST_EXTERNAL_VECTOR = 0x20;
/** The first vector that the kernel gives to devices: those below are for legacy pins and system calls. */
export const FIRST_DEVICE_VECTOR = 0x31;
/** The local APIC's timer. */
export const LOCAL_TIMER_VECTOR = 0xec;
/** The reboot IPI. */
export const REBOOT_VECTOR = 0xf8;
/** A function call for one processor. */
export const CALL_FUNCTION_SINGLE_VECTOR = 0xfb;
/** A function call for several. */
export const CALL_FUNCTION_VECTOR = 0xfc;
/** The rescheduling IPI. */
export const RESCHEDULE_VECTOR = 0xfd;
/** The local APIC's own errors. */
export const ERROR_APIC_VECTOR = 0xfe;
/** Spurious interrupts. */
export const SPURIOUS_APIC_VECTOR = 0xff;
