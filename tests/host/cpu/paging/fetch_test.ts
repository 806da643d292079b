import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR4_SMEP,
  EFER_NX,
  EFER_SCE,
  type Gva,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  PF_VECTOR,
  PFERR_FETCH,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PTE_A,
  PTE_D,
  PTE_NX_HIGH,
  PTE_P,
  X2APIC_SELF_IPI,
} from "../../../../abi/mod.ts";
import { type BackendName, GuestError } from "../../../../host/mod.ts";
import { DATA, enableX2apic } from "../../../support/guests.ts";
import {
  HOSTS,
  type HostState,
  KERNEL_PAGE,
  pagingOn,
  PagingRig,
  readCr2,
  setCr4,
  setEfer,
  storeEntry,
  USER_PAGE,
} from "../../../support/paging.ts";

/** The text of a function that is called by an interrupt gate, in a page of its own. */
const CALLEE = 0x14_0000 as Gva;
const P = PFERR_PRESENT;
const U = PFERR_USER;
const I = PFERR_FETCH;

interface Fetch {
  readonly efer?: number;
  readonly cr4?: number;
  readonly flags?: number;
  readonly noExecute?: boolean;
  readonly high?: number;
  /** It is called at CPL 3, by SYSRET; else at CPL 0, by a gate. */
  readonly user?: boolean;
}

/** Has the callee's page mapped as told, and calls it: the error codes of its page faults, until the handler mends it. */
function call(backend: BackendName, host: HostState, fetch: Fetch): { codes: number[]; ran: number } {
  const { efer = 0, cr4 = 0, flags = KERNEL_PAGE, noExecute = false, high = 0, user = false } = fetch;
  const rig = new PagingRig({ vm: { backend } }, host);
  rig.map(CALLEE, CALLEE, { flags, noExecute });
  const at = rig.entry(CALLEE);
  if (high !== 0) rig.vm.memory.setWord(at + 4, high);
  let ran = 0;
  const codes: number[] = [];
  rig.text.addAt(CALLEE, function* callee(cpu) {
    assertEquals(cpu.cpl, user ? 3 : 0);
    ran++;
    yield cpu.pause();
  }, "callee");
  rig.gate(0x50, CALLEE);
  rig.on(PF_VECTOR, function* (cpu) {
    codes.push(cpu.errorCode);
    assertEquals(yield* readCr2(cpu), CALLEE, "CR2 is the address of the instruction");
    assertEquals(cpu.interruptedRip, CALLEE);
    assertEquals(cpu.interruptedCpl, user ? 3 : 0);
    yield* storeEntry(cpu, at, CALLEE, { flags: user ? USER_PAGE : KERNEL_PAGE });
  });
  rig.finish(function* (cpu) {
    yield* setEfer(cpu, efer | EFER_SCE);
    yield* pagingOn(cpu, rig.tables);
    if (cr4 !== 0) yield* setCr4(cpu, cr4);
    if (user) {
      yield cpu.sysret(CALLEE);
    } else {
      // A self-IPI whose gate leads there.
      yield* enableX2apic(cpu);
      yield cpu.sti();
      yield cpu.wrmsr(X2APIC_SELF_IPI, 0x50);
      yield cpu.work(10_000);
    }
  });
  return { codes, ran };
}

for (const { backend, host } of HOSTS) {
  describe(`instruction fetches (${backend}, ${host} host)`, () => {
    const calls = (name: string, fetch: Fetch, codes: number[]) => {
      it(name, () => assertEquals(call(backend, host, fetch), { codes, ran: 1 }));
    };

    calls("need no more than a present page", { flags: PTE_P }, []);
    calls("from an absent page fault without the I bit, as nobody has NXE or SMEP", { flags: 0 }, [0]);
    calls("tell that they were fetches with IA32_EFER.NXE", { flags: 0, efer: EFER_NX }, [I]);
    calls("and with CR4.SMEP", { flags: 0, cr4: CR4_SMEP }, [I]);
    calls("from a page with XD fault", { noExecute: true, efer: EFER_NX }, [P | I]);
    calls("meet a reserved bit in XD without NXE", { noExecute: true }, [P | PFERR_RSVD]);
    calls("meet one with the I bit where SMEP has it told", { noExecute: true, cr4: CR4_SMEP }, [
      P | PFERR_RSVD | I,
    ]);
    calls("above MAXPHYADDR fault", { high: 1 << 14, efer: EFER_NX }, [P | PFERR_RSVD | I]);
    calls("by the supervisor from a user's page are allowed", { flags: USER_PAGE }, []);
    calls("but with CR4.SMEP", { flags: USER_PAGE, cr4: CR4_SMEP }, [P | I]);
    calls("at CPL 3 need a user's page", { user: true }, [P | U]);
    calls("and tell the I bit by the same rules", { user: true, efer: EFER_NX }, [P | U | I]);
    calls("at CPL 3 from an absent page", { user: true, flags: 0, efer: EFER_NX }, [U | I]);
    calls("at CPL 3 from a user's page mind XD", {
      user: true,
      flags: USER_PAGE,
      noExecute: true,
      efer: EFER_NX,
    }, [P | U | I]);
    calls(
      "at CPL 3 from a user's page do not mind SMEP",
      { user: true, flags: USER_PAGE, cr4: CR4_SMEP },
      [],
    );

    it("mind SMEP where a read of the supervisor's has cached the page, and U/S where its own fetch has", () => {
      const rig = new PagingRig({ vm: { backend } }, host);
      rig.map(CALLEE, CALLEE, { flags: USER_PAGE });
      const codes: number[] = [];
      const pages: number[] = [];
      rig.on(PF_VECTOR, function* (cpu) {
        codes.push(cpu.errorCode);
        const page = Math.floor((yield* readCr2(cpu)) / 4096) * 4096;
        pages.push(page);
        yield* storeEntry(cpu, rig.entry(page), page, { flags: page === CALLEE ? KERNEL_PAGE : USER_PAGE });
      });
      rig.text.addAt(CALLEE, function* callee(cpu) {
        yield cpu.pause();
      });
      rig.gate(0x50, CALLEE);
      // In the page of the kernel's own text.
      const user = rig.text.add(function* user(cpu) {
        yield cpu.pause();
      });
      rig.finish(function* (cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield* setCr4(cpu, CR4_SMEP);
        yield* enableX2apic(cpu);
        yield cpu.load32(CALLEE);
        yield cpu.sti();
        yield cpu.wrmsr(X2APIC_SELF_IPI, 0x50);
        yield cpu.work(10_000);
        yield* setCr4(cpu, 0);
        yield cpu.pause();
        yield cpu.sysret(user);
      });
      assertEquals([codes, pages], [[P | I, P | U | I], [CALLEE, 0x10_0000]]);
    });

    it("mind XD in any entry on the way", () => {
      for (const level of [LEVEL_PML4, LEVEL_PDPT, LEVEL_PD]) {
        const rig = new PagingRig({ vm: { backend } }, host);
        // The callee's page is under entries of its own: text at 1 GiB, in a slot there.
        const far = 2 ** 30;
        rig.vm.memory.addSlot({ base: far, size: 4096 });
        rig.map(far, far);
        const at = rig.entry(far, level) + 4;
        const codes: number[] = [];
        rig.on(PF_VECTOR, function* (cpu) {
          codes.push(cpu.errorCode);
          yield cpu.store32(at, 0);
        });
        rig.text.addAt(far as Gva, function* callee(cpu) {
          yield cpu.pause();
        });
        rig.gate(0x50, far);
        const shared = rig.entry(0, level) + 4 === at;
        rig.finish(function* (cpu) {
          yield* setEfer(cpu);
          yield* pagingOn(cpu, rig.tables);
          yield* enableX2apic(cpu);
          yield cpu.load32(far);
          if (!shared) yield cpu.store32(at, PTE_NX_HIGH);
          yield cpu.invlpg(far);
          yield cpu.sti();
          yield cpu.wrmsr(X2APIC_SELF_IPI, 0x50);
          yield cpu.work(10_000);
        });
        assertEquals(codes, shared ? [] : [P | I], `level ${level}`);
      }
    });

    it("set the accessed flag, not the dirty one", () => {
      const rig = new PagingRig({ vm: { backend } }, host);
      rig.finish(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.pause();
      });
      assertEquals(rig.word(rig.entry(0x10_0000)) & (PTE_A | PTE_D), PTE_A);
    });

    it("go on from the TLB when the page of text is gone, until INVLPG", () => {
      const rig = new PagingRig({ vm: { backend } }, host);
      const codes: number[] = [];
      let at = 0;
      const seen: number[] = [];
      rig.text.addAt(0x18_0000 as Gva, function* handler(cpu) {
        codes.push(cpu.errorCode);
        seen.push(yield* readCr2(cpu));
        yield* storeEntry(cpu, at, 0x10_0000);
      }, "handler");
      rig.gate(PF_VECTOR, 0x18_0000);
      at = rig.entry(0x10_0000);
      rig.finish(function* main(cpu) {
        yield* setEfer(cpu);
        yield* pagingOn(cpu, rig.tables);
        yield cpu.pause();
        yield* storeEntry(cpu, at, 0, { flags: 0 });
        yield cpu.pause();
        yield cpu.store32(DATA, 1);
        assertEquals(codes, []);
        yield cpu.invlpg(0x10_0000);
        yield cpu.store32(DATA, 2);
        assertEquals(codes, [I]);
      });
      assertEquals(Math.floor(seen[0] / 4096), 0x100);
      assertEquals(rig.word(DATA), 2);
    });

    it("fault between instructions: a handler that returns goes on with the next one, none is lost or done twice", () => {
      const rig = new PagingRig({ vm: { backend } }, host);
      let faults = 0;
      const at = rig.entry(0x10_0000);
      rig.text.addAt(0x18_0000 as Gva, function* handler(cpu) {
        faults++;
        yield* storeEntry(cpu, at, 0x10_0000);
      }, "handler");
      rig.gate(PF_VECTOR, 0x18_0000);
      rig.finish(function* main(cpu) {
        yield* pagingOn(cpu, rig.tables);
        for (let turn = 0; turn < 10; turn++) {
          yield cpu.xadd32(DATA, 1);
          assertEquals(cpu.eax, turn, "its result is there behind the fault");
          yield* storeEntry(cpu, at, 0, { flags: 0 });
          yield cpu.invlpg(0x10_0000);
        }
      });
      assertEquals([rig.word(DATA), faults], [10, 10]);
    });

    it("of a handler whose own text is absent fault behind its delivery: again and again, which is no double fault", () => {
      const rig = new PagingRig({ vm: { backend } }, host).fixups();
      rig.map(CALLEE, CALLEE, { flags: 0 });
      rig.text.addAt(CALLEE, function* handler(cpu) {
        yield cpu.store32(DATA, 1);
      }, "handler");
      rig.gate(PF_VECTOR, CALLEE);
      rig.start(function* (cpu) {
        yield* pagingOn(cpu, rig.tables);
        yield cpu.load32(0x6000_0000);
      });
      // A real one's stack overflows some day.
      const error = assertThrows(() => rig.vm.machine.run(1e9), GuestError);
      assertStringIncludes(error.message, "24 activations are nested already");
      assertEquals(rig.word(DATA), 0);
    });
  });
}
