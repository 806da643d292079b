/**
 * Stands in for `@std/testing/bdd` where JSR is out of reach: nested `describe` and `it` with hooks, over `Deno.test`.
 *
 * @module
 */

/** What a suite, a test or a hook runs. */
type Body = () => void | Promise<void>;

interface Suite {
  readonly name: string;
  readonly before: Body[];
  readonly after: Body[];
  readonly tests: [string, Body][];
  readonly suites: Suite[];
}

const open: Suite[] = [];

function suite(name: string): Suite {
  return { name, before: [], after: [], tests: [], suites: [] };
}

function innermost(call: string): Suite {
  const found = open.at(-1);
  if (found === undefined) throw new Error(`Cannot call ${call}: no describe is open`);
  return found;
}

async function run(all: readonly Body[]): Promise<void> {
  for (const body of all) await body();
}

async function runSuite(
  t: Deno.TestContext,
  { before, after, tests, suites }: Suite,
  outer: Pick<Suite, "before" | "after">,
): Promise<void> {
  const hooks = { before: [...outer.before, ...before], after: [...after, ...outer.after] };
  for (const [name, body] of tests) {
    await t.step(name, async () => {
      await run(hooks.before);
      try {
        await body();
      } finally {
        await run(hooks.after);
      }
    });
  }
  for (const inner of suites) await t.step(inner.name, (t) => runSuite(t, inner, hooks));
}

/** A suite of tests. */
export function describe(name: string, fn: () => void): void {
  const parent = open.at(-1);
  const made = suite(name);
  open.push(made);
  try {
    fn();
  } finally {
    open.pop();
  }
  if (parent === undefined) Deno.test(name, (t) => runSuite(t, made, { before: [], after: [] }));
  else parent.suites.push(made);
}

/** A test. */
export function it(name: string, fn: Body): void {
  const parent = open.at(-1);
  if (parent === undefined) Deno.test(name, fn);
  else parent.tests.push([name, fn]);
}

/** Runs before each test of the suite that it stands in. */
export function beforeEach(fn: Body): void {
  innermost("beforeEach").before.push(fn);
}

/** Runs after each test of the suite that it stands in. */
export function afterEach(fn: Body): void {
  innermost("afterEach").after.push(fn);
}
