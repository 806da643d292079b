/**
 * Hypercalls of ePAPR and of KVM on PowerPC (arch/powerpc/include/uapi/asm/{epapr_hcalls,kvm_para}.h,
 * Documentation/virt/kvm/ppc-pv.rst): tokens, status codes, and one table of calls with their arguments and results.
 *
 * @module
 */

/** Vendors of hypercalls: the high half of a token. */
export const EV_VENDORS = {
  EV_LOCAL_VENDOR_ID: 0,
  EV_EPAPR_VENDOR_ID: 1,
  EV_FSL_VENDOR_ID: 2,
  EV_IBM_VENDOR_ID: 3,
  EV_GHS_VENDOR_ID: 4,
  EV_ENEA_VENDOR_ID: 5,
  EV_WR_VENDOR_ID: 6,
  EV_AMCC_VENDOR_ID: 7,
  EV_KVM_VENDOR_ID: 42,
} as const;

/** What a call answers in r3. They are positive, and equal to no errno but by chance. */
export const EV_STATUS = {
  EV_SUCCESS: 0,
  EV_EPERM: 1,
  EV_ENOENT: 2,
  EV_EIO: 3,
  EV_EAGAIN: 4,
  EV_ENOMEM: 5,
  EV_EFAULT: 6,
  EV_ENODEV: 7,
  EV_EINVAL: 8,
  EV_INTERNAL: 9,
  EV_CONFIG: 10,
  EV_INVALID_STATE: 11,
  EV_UNIMPLEMENTED: 12,
  EV_BUFFER_OVERFLOW: 13,
} as const;

/** The name of a status. */
export type EvStatusName = keyof typeof EV_STATUS;

const STATUS_NAMES: ReadonlyMap<number, EvStatusName> = new Map(
  Object.entries(EV_STATUS).map(([name, code]) => [code, name as EvStatusName]),
);

/** The name of a status in r3; undefined for others, -1 from a stub that nobody patched among them. */
export function evStatusName(status: number | bigint): EvStatusName | undefined {
  return STATUS_NAMES.get(Number(status));
}

/** The token of a call: what r11 holds. */
export function evHcallToken(vendor: number, nr: number): number {
  return ((vendor << 16) | nr) >>> 0;
}

/** The most bytes that one call of a byte channel carries. */
export const EV_BYTE_CHANNEL_MAX_BYTES = 16;

/** KVM_HC_FEATURES: the host has a magic page. The number of a bit. */
export const KVM_FEATURE_MAGIC_PAGE = 1;
/** KVM_HC_PPC_MAP_MAGIC_PAGE's answer: the page has segment registers. A mask. */
export const KVM_MAGIC_FEAT_SR = 1;
/** The same: it has mas0 to sprg7. */
export const KVM_MAGIC_FEAT_MAS0_TO_SPRG7 = 2;
/**
 * KVM_HC_PPC_MAP_MAGIC_PAGE's flag, in its second argument: the guest takes care that its trampolines are executable.
 */
export const MAGIC_PAGE_FLAG_NOT_MAPPED_NX = 1;
/** What r0 holds where a plain `sc` is a hypercall: "KVM!". */
export const KVM_SC_MAGIC_R0 = 0x4b56_4d21;

/** A call: its number, and the names of what its registers hold. */
export interface PpcHypercallSpec {
  /** Whose call it is. */
  readonly vendor: keyof typeof EV_VENDORS;
  /** Its number in the vendor's space. */
  readonly nr: number;
  /** What r3 and the following registers hold, by name. */
  readonly args: readonly string[];
  /** What r4 and the following registers hold afterwards, by name; r3 holds the status. */
  readonly results: readonly string[];
  /** Whether KVM has it; where not, it answers EV_UNIMPLEMENTED. */
  readonly kvm: boolean;
  /** Purpose. */
  readonly meaning: string;
}

/** Every call that Linux has a number for; 8 is unassigned. */
export const PPC_HYPERCALLS = {
  EV_BYTE_CHANNEL_SEND: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 1,
    args: ["handle", "count", "data0", "data1", "data2", "data3"],
    results: ["count"],
    kvm: false,
    meaning: "writes up to 16 bytes to a byte channel",
  },
  EV_BYTE_CHANNEL_RECEIVE: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 2,
    args: ["handle", "count"],
    results: ["count", "data0", "data1", "data2", "data3"],
    kvm: false,
    meaning: "reads up to 16 bytes from a byte channel",
  },
  EV_BYTE_CHANNEL_POLL: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 3,
    args: ["handle"],
    results: ["rxCount", "txCount"],
    kvm: false,
    meaning: "how much can be read and written",
  },
  EV_INT_SET_CONFIG: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 4,
    args: ["interrupt", "config", "priority", "destination"],
    results: [],
    kvm: false,
    meaning: "configures an interrupt",
  },
  EV_INT_GET_CONFIG: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 5,
    args: ["interrupt"],
    results: ["config", "priority", "destination"],
    kvm: false,
    meaning: "how an interrupt is configured",
  },
  EV_INT_SET_MASK: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 6,
    args: ["interrupt", "mask"],
    results: [],
    kvm: false,
    meaning: "masks an interrupt",
  },
  EV_INT_GET_MASK: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 7,
    args: ["interrupt"],
    results: ["mask"],
    kvm: false,
    meaning: "whether an interrupt is masked",
  },
  EV_INT_IACK: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 9,
    args: ["handle"],
    results: ["vector"],
    kvm: false,
    meaning: "acknowledges an interrupt",
  },
  EV_INT_EOI: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 10,
    args: ["interrupt"],
    results: [],
    kvm: false,
    meaning: "ends an interrupt",
  },
  EV_INT_SEND_IPI: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 11,
    args: ["cpuMask"],
    results: [],
    kvm: false,
    meaning: "interrupts other CPUs",
  },
  EV_INT_SET_TASK_PRIORITY: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 12,
    args: ["priority"],
    results: [],
    kvm: false,
    meaning: "sets the CPU's task priority",
  },
  EV_INT_GET_TASK_PRIORITY: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 13,
    args: [],
    results: ["priority"],
    kvm: false,
    meaning: "the CPU's task priority",
  },
  EV_DOORBELL_SEND: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 14,
    args: ["handle"],
    results: [],
    kvm: false,
    meaning: "rings a doorbell of another partition",
  },
  EV_MSGSND: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 15,
    args: ["message"],
    results: [],
    kvm: false,
    meaning: "sends a message to CPUs",
  },
  EV_IDLE: {
    vendor: "EV_EPAPR_VENDOR_ID",
    nr: 16,
    args: [],
    results: [],
    kvm: true,
    meaning: "waits for an interrupt",
  },
  KVM_HC_FEATURES: {
    vendor: "EV_KVM_VENDOR_ID",
    nr: 3,
    args: [],
    results: ["features"],
    kvm: true,
    meaning: "which features the host offers: KVM_FEATURE_* by bit number",
  },
  KVM_HC_PPC_MAP_MAGIC_PAGE: {
    vendor: "EV_KVM_VENDOR_ID",
    nr: 4,
    args: ["realAddress", "effectiveAddress"],
    results: ["features"],
    kvm: true,
    meaning: "maps the page that holds supervisor registers; flags in bits 11:0 of the effective address",
  },
} as const satisfies Record<string, PpcHypercallSpec>;

/** The name of a call. */
export type PpcHypercallName = keyof typeof PPC_HYPERCALLS;

/** The arguments of a call by name: whole numbers below 2^53 or bigints, modulo 2^64. */
export type PpcHypercallArgs<Name extends PpcHypercallName> = (typeof PPC_HYPERCALLS)[Name]["args"] extends
  readonly [] ? Readonly<Record<string, never>>
  : { readonly [Arg in (typeof PPC_HYPERCALLS)[Name]["args"][number]]: number | bigint };

/** What a call answers: the status, and its results by name. */
export interface PpcHypercallResults<Name extends PpcHypercallName> {
  /** r3 as a signed number: {@linkcode EV_STATUS}, or -1 where the stub was never patched. */
  readonly status: number;
  /** r4 and the following registers. */
  readonly results: { readonly [Result in (typeof PPC_HYPERCALLS)[Name]["results"][number]]: bigint };
}

/** The token of a call: what r11 holds. */
export function ppcHypercallToken(name: PpcHypercallName): number {
  const { vendor, nr } = PPC_HYPERCALLS[name];
  return evHcallToken(EV_VENDORS[vendor], nr);
}

const BY_TOKEN: ReadonlyMap<number, PpcHypercallName> = new Map(
  (Object.keys(PPC_HYPERCALLS) as PpcHypercallName[]).map((name) => [ppcHypercallToken(name), name]),
);

/** The name of the call with a token; undefined where there is none. */
export function ppcHypercallName(token: number): PpcHypercallName | undefined {
  return BY_TOKEN.get(token >>> 0);
}
