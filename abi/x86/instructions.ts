/**
 * The instructions that a guest issues. Each has one opcode number (what a guest yields), its real encoding (what
 * stands in guest memory), and its operands in the registers that the encoding names: nothing travels beside them.
 *
 * A guest function occupies one block of text. In it every instruction has exactly one site, so RIP is known from the
 * block and the instruction:
 *
 *     +0x00  endbr64          the entry: what IDT gates, SIPI vectors and calls point to
 *     +0x04  one site for each row of the table, in order
 *     +0xf0  ud2              the fixup pad: a handler that sends RIP here throws into the function
 *     +0x100 the next block
 *
 * @module
 */

/** CPUID: leaf in EAX, subleaf in ECX. */
export const OP_CPUID = 1;
/** RDMSR: index in ECX, value to EDX:EAX. */
export const OP_RDMSR = 2;
/** WRMSR: index in ECX, value in EDX:EAX. */
export const OP_WRMSR = 3;
/** RDTSC: to EDX:EAX. */
export const OP_RDTSC = 4;
/** VMCALL: Intel's hypercall. */
export const OP_VMCALL = 5;
/** VMMCALL: AMD's hypercall. */
export const OP_VMMCALL = 6;
/** HLT. */
export const OP_HLT = 7;
/** PAUSE. */
export const OP_PAUSE = 8;
/** CLI. */
export const OP_CLI = 9;
/** STI: interrupts are recognized after the next instruction. */
export const OP_STI = 10;
/** IN AL, DX. */
export const OP_IN8 = 11;
/** IN AX, DX. */
export const OP_IN16 = 12;
/** IN EAX, DX. */
export const OP_IN32 = 13;
/** OUT DX, AL. */
export const OP_OUT8 = 14;
/** OUT DX, AX. */
export const OP_OUT16 = 15;
/** OUT DX, EAX. */
export const OP_OUT32 = 16;
/** MOVZX EAX, byte [RDI]. */
export const OP_LOAD8 = 17;
/** MOVZX EAX, word [RDI]. */
export const OP_LOAD16 = 18;
/** MOV EAX, [RDI]. */
export const OP_LOAD32 = 19;
/** MOV RAX, [RDI]. */
export const OP_LOAD64 = 20;
/** MOV [RDI], AL. */
export const OP_STORE8 = 21;
/** MOV [RDI], AX. */
export const OP_STORE16 = 22;
/** MOV [RDI], EAX. */
export const OP_STORE32 = 23;
/** MOV [RDI], RAX. */
export const OP_STORE64 = 24;
/** BTR [RDI], ECX: test and reset a bit, atomic on this processor alone. */
export const OP_BTR = 25;
/** BTS [RDI], ECX: test and set a bit, atomic on this processor alone. */
export const OP_BTS = 26;
/** LOCK BTR [RDI], ECX. */
export const OP_LOCK_BTR = 27;
/** LOCK BTS [RDI], ECX. */
export const OP_LOCK_BTS = 28;
/** XCHG [RDI], EAX; always locked. */
export const OP_XCHG32 = 29;
/** XCHG [RDI], RAX; always locked. */
export const OP_XCHG64 = 30;
/** LOCK CMPXCHG [RDI], ECX; comparand in EAX. */
export const OP_CMPXCHG32 = 31;
/** LOCK CMPXCHG [RDI], RCX; comparand in RAX. */
export const OP_CMPXCHG64 = 32;
/** LOCK XADD [RDI], EAX. */
export const OP_XADD32 = 33;
/** MOV CR0, RAX. */
export const OP_MOV_TO_CR0 = 34;
/** MOV CR3, RAX. */
export const OP_MOV_TO_CR3 = 35;
/** MOV CR4, RAX. */
export const OP_MOV_TO_CR4 = 36;
/** MOV CR8, RAX. */
export const OP_MOV_TO_CR8 = 37;
/** MOV RAX, CR0. */
export const OP_MOV_FROM_CR0 = 38;
/** MOV RAX, CR3. */
export const OP_MOV_FROM_CR3 = 39;
/** MOV RAX, CR4. */
export const OP_MOV_FROM_CR4 = 40;
/** MOV RAX, CR8. */
export const OP_MOV_FROM_CR8 = 41;
/** LIDT [RDI]: limit and base from a ten-byte (in 32-bit mode a six-byte) memory operand. */
export const OP_LIDT = 42;
/** LRETQ to behind itself: the switch to the code segment whose selector is in EAX. */
export const OP_LRET = 43;
/** IRETQ. A handler that returns has executed it. */
export const OP_IRET = 44;
/** SYSCALL: RIP to RCX, RFLAGS to R11, on at IA32_LSTAR. */
export const OP_SYSCALL = 45;
/** SYSRETQ: on at RCX with R11 as RFLAGS, at CPL 3. */
export const OP_SYSRET = 46;
/** UD2: raises #UD by definition. */
export const OP_UD2 = 47;
/** INVD. */
export const OP_INVD = 48;
/** WBINVD. */
export const OP_WBINVD = 49;
/** LOOP to itself: computation that takes RCX cycles and can be interrupted; RCX is what is left. */
export const OP_WORK = 50;
/** PAUSE; CMP [RDI], EAX; JE back: the wait loop of a lock, until the 32-bit word differs from EAX. */
export const OP_PAUSE_WHILE = 51;
/** XCHG RAX, RSP: the stack switch. Goes on with the frames of another task. */
export const OP_SWITCH = 52;
/** PUSHFQ; POP RAX: RFLAGS to RAX. */
export const OP_PUSHF = 53;
/** MOV RAX, CR2: the address of the last page fault. */
export const OP_MOV_FROM_CR2 = 54;
/** INVLPG [RDI]: the translation of the operand's address is dropped. */
export const OP_INVLPG = 55;
/** INVPCID RAX, [RDI]: the type in RAX, the descriptor in memory. */
export const OP_INVPCID = 56;
/** STAC: sets RFLAGS.AC. */
export const OP_STAC = 57;
/** CLAC: clears RFLAGS.AC. */
export const OP_CLAC = 58;

/** Bytes of a block of text. */
export const BLOCK = 0x100;
/** Offset of the fixup pad in a block. */
export const FIXUP_PAD = 0xf0;

/** An instruction: its number, how an assembler spells it, its bytes. */
export interface InstructionSpec {
  /** What a guest yields. */
  readonly opcode: number;
  /** As an assembler spells it, operands included. */
  readonly text: string;
  /** The encoding. */
  readonly bytes: readonly number[];
}

const T: readonly (readonly [opcode: number, text: string, bytes: string])[] = [
  [OP_CPUID, "cpuid", "0f a2"],
  [OP_RDMSR, "rdmsr", "0f 32"],
  [OP_WRMSR, "wrmsr", "0f 30"],
  [OP_RDTSC, "rdtsc", "0f 31"],
  [OP_VMCALL, "vmcall", "0f 01 c1"],
  [OP_VMMCALL, "vmmcall", "0f 01 d9"],
  [OP_HLT, "hlt", "f4"],
  [OP_PAUSE, "pause", "f3 90"],
  [OP_CLI, "cli", "fa"],
  [OP_STI, "sti", "fb"],
  [OP_IN8, "in al, dx", "ec"],
  [OP_IN16, "in ax, dx", "66 ed"],
  [OP_IN32, "in eax, dx", "ed"],
  [OP_OUT8, "out dx, al", "ee"],
  [OP_OUT16, "out dx, ax", "66 ef"],
  [OP_OUT32, "out dx, eax", "ef"],
  [OP_LOAD8, "movzx eax, byte ptr [rdi]", "0f b6 07"],
  [OP_LOAD16, "movzx eax, word ptr [rdi]", "0f b7 07"],
  [OP_LOAD32, "mov eax, dword ptr [rdi]", "8b 07"],
  [OP_LOAD64, "mov rax, qword ptr [rdi]", "48 8b 07"],
  [OP_STORE8, "mov byte ptr [rdi], al", "88 07"],
  [OP_STORE16, "mov word ptr [rdi], ax", "66 89 07"],
  [OP_STORE32, "mov dword ptr [rdi], eax", "89 07"],
  [OP_STORE64, "mov qword ptr [rdi], rax", "48 89 07"],
  [OP_BTR, "btr dword ptr [rdi], ecx", "0f b3 0f"],
  [OP_BTS, "bts dword ptr [rdi], ecx", "0f ab 0f"],
  [OP_LOCK_BTR, "lock btr dword ptr [rdi], ecx", "f0 0f b3 0f"],
  [OP_LOCK_BTS, "lock bts dword ptr [rdi], ecx", "f0 0f ab 0f"],
  [OP_XCHG32, "xchg dword ptr [rdi], eax", "87 07"],
  [OP_XCHG64, "xchg qword ptr [rdi], rax", "48 87 07"],
  [OP_CMPXCHG32, "lock cmpxchg dword ptr [rdi], ecx", "f0 0f b1 0f"],
  [OP_CMPXCHG64, "lock cmpxchg qword ptr [rdi], rcx", "f0 48 0f b1 0f"],
  [OP_XADD32, "lock xadd dword ptr [rdi], eax", "f0 0f c1 07"],
  [OP_MOV_TO_CR0, "mov cr0, rax", "0f 22 c0"],
  [OP_MOV_TO_CR3, "mov cr3, rax", "0f 22 d8"],
  [OP_MOV_TO_CR4, "mov cr4, rax", "0f 22 e0"],
  [OP_MOV_TO_CR8, "mov cr8, rax", "44 0f 22 c0"],
  [OP_MOV_FROM_CR0, "mov rax, cr0", "0f 20 c0"],
  [OP_MOV_FROM_CR3, "mov rax, cr3", "0f 20 d8"],
  [OP_MOV_FROM_CR4, "mov rax, cr4", "0f 20 e0"],
  [OP_MOV_FROM_CR8, "mov rax, cr8", "44 0f 20 c0"],
  [OP_LIDT, "lidt [rdi]", "0f 01 1f"],
  [OP_LRET, "lretq", "48 cb"],
  [OP_IRET, "iretq", "48 cf"],
  [OP_SYSCALL, "syscall", "0f 05"],
  [OP_SYSRET, "sysretq", "48 0f 07"],
  [OP_UD2, "ud2", "0f 0b"],
  [OP_INVD, "invd", "0f 08"],
  [OP_WBINVD, "wbinvd", "0f 09"],
  [OP_WORK, "loop .", "e2 fe"],
  [OP_PAUSE_WHILE, "pause; cmp dword ptr [rdi], eax; je .-4", "f3 90 39 07 74 fa"],
  [OP_SWITCH, "xchg rsp, rax", "48 94"],
  [OP_PUSHF, "pushfq; pop rax", "9c 58"],
  [OP_MOV_FROM_CR2, "mov rax, cr2", "0f 20 d0"],
  [OP_INVLPG, "invlpg [rdi]", "0f 01 3f"],
  [OP_INVPCID, "invpcid rax, [rdi]", "66 0f 38 82 07"],
  [OP_STAC, "stac", "0f 01 cb"],
  [OP_CLAC, "clac", "0f 01 ca"],
];

/** Every instruction, in the order in which a block of text holds their sites. */
export const INSTRUCTIONS: readonly InstructionSpec[] = T.map(([opcode, text, bytes]) => ({
  opcode,
  text,
  bytes: bytes.split(" ").map((byte) => parseInt(byte, 16)),
}));

/** One past the highest opcode number. */
export const OPCODES: number = 1 + Math.max(...T.map(([opcode]) => opcode));

/** By opcode: the offset of the instruction's site in a block. */
export const SITE: Readonly<Uint8Array> = new Uint8Array(OPCODES);
/** By opcode: the instruction's bytes. */
export const LENGTH: Readonly<Uint8Array> = new Uint8Array(OPCODES);
/** By opcode: the offset behind the instruction's site, where the guest goes on; 0, the entry, before the first. */
export const BEHIND: Readonly<Uint8Array> = new Uint8Array(OPCODES);

const ENTRY = [0xf3, 0x0f, 0x1e, 0xfa]; // endbr64
const INT3 = 0xcc;
const UD2 = [0x0f, 0x0b];

/** The bytes of a block of text, as the loader writes them. */
export const BLOCK_BYTES: Readonly<Uint8Array> = assemble();

function assemble(): Uint8Array {
  const block = new Uint8Array(BLOCK).fill(INT3);
  block.set(ENTRY, 0);
  let offset = ENTRY.length;
  for (const { opcode, bytes } of INSTRUCTIONS) {
    (SITE as Uint8Array)[opcode] = offset;
    (LENGTH as Uint8Array)[opcode] = bytes.length;
    (BEHIND as Uint8Array)[opcode] = offset + bytes.length;
    block.set(bytes, offset);
    offset += bytes.length;
  }
  if (offset > FIXUP_PAD) {
    throw new RangeError(`Cannot assemble a block of text: its sites end at ${offset}, past ${FIXUP_PAD}`);
  }
  block.set(UD2, FIXUP_PAD);
  return block;
}

const TEXT_OF: readonly (string | undefined)[] = (() => {
  const names: (string | undefined)[] = [];
  for (const { opcode, text } of INSTRUCTIONS) names[opcode] = text;
  return names;
})();

/** The instruction as an assembler spells it; `opcode N` where there is none with that number. */
export function instructionText(opcode: number): string {
  return TEXT_OF[opcode] ?? `opcode ${opcode}`;
}
