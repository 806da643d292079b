import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import * as calls from "../../../guest/sched/calls.ts";
import * as syscalls from "../../../guest/sched/syscalls.ts";
import * as task from "../../../guest/sched/task.ts";
import * as user from "../../../guest/sched/user.ts";
import { valuesOf } from "../../support/headers.ts";

describe("what a kernel and its tasks have in common", () => {
  it("has the headers' numbers: system calls, errors, signals, and what calls are told", () => {
    const compared: string[] = [];
    for (const [name, value] of Object.entries({ ...calls, ...syscalls, ...task, ...user })) {
      if (typeof value !== "number") continue;
      assertEquals(valuesOf("x86", name.replace(/^NR_/, "__NR_")), [BigInt(value)], name);
      compared.push(name);
    }
    const count = (pattern: RegExp) => compared.filter((name) => pattern.test(name)).length;
    assertEquals([/^NR_/, /^E[A-Z]+$/, /^SIG/, /^FUTEX_/, /^(PROT|MAP|MADV)_/].map(count), [11, 5, 3, 3, 8]);
    assertEquals(compared.length, 30, "no number is left out");
  });
});
