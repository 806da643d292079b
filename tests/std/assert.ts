/**
 * Stands in for `@std/assert` where JSR is out of reach: std's names, types and verdicts, for what the tests use.
 *
 * @module
 */

import { AssertionError as NodeAssertionError, deepStrictEqual } from "node:assert/strict";

/** A class whose instances can be thrown. */
// deno-lint-ignore no-explicit-any
type ErrorClass<E> = abstract new (...args: any[]) => E;

/** An assertion that does not hold. */
export class AssertionError extends Error {
  /** An error that says `message`. */
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "AssertionError";
  }
}

function show(value: unknown): string {
  return Deno.inspect(value, { depth: 6, strAbbreviateSize: 10_000 });
}

function check(holds: boolean, message: string, note: string | undefined): asserts holds {
  if (!holds) throw new AssertionError(note === undefined ? message : `${message}: ${note}`);
}

/** What differs between two values; nothing if they are deeply equal. */
function difference(actual: unknown, expected: unknown): string | undefined {
  if (actual === expected) return undefined; // 0 equals -0, as in std
  try {
    deepStrictEqual(actual, expected);
  } catch (error) {
    if (error instanceof NodeAssertionError) return error.message;
    throw error;
  }
}

/** Whether two values are deeply equal. */
export function equal(a: unknown, b: unknown): boolean {
  return difference(a, b) === undefined;
}

/** Asserts that `expr` is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Asserts that `expr` is falsy. */
export function assertFalse(expr: unknown, msg = ""): asserts expr is false | 0 | 0n | "" | null | undefined {
  if (expr) throw new AssertionError(msg);
}

/** Asserts deep equality. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  const found = difference(actual, expected);
  check(found === undefined, `Values are not equal: ${found}`, msg);
}

/** Asserts that two values are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  check(!equal(actual, expected), `Expected actual: ${show(actual)} not to be: ${show(expected)}`, msg);
}

/** Asserts identity. */
export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  check(
    Object.is(actual, expected),
    `Values are not strictly equal: ${show(actual)} is not ${show(expected)}`,
    msg,
  );
}

/** Asserts that two values are not identical. */
export function assertNotStrictEquals<T>(actual: T, expected: T, msg?: string): void {
  check(!Object.is(actual, expected), `Expected "actual" to not be strictly equal to: ${show(actual)}`, msg);
}

/** Asserts that two numbers differ by at most `tolerance`: by default, a ten-millionth of `expected`. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, msg?: string): void {
  const allowed = tolerance ?? Math.abs(isFinite(expected) ? expected * 1e-7 : 1e-7);
  check(
    Object.is(actual, expected) || Math.abs(expected - actual) <= allowed,
    `Expected actual: "${actual}" to be close to "${expected}": delta is greater than "${allowed}"`,
    msg,
  );
}

/** Asserts that a value is neither null nor undefined. */
export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  check(
    actual !== undefined && actual !== null,
    `Expected actual: "${actual}" to not be null or undefined`,
    msg,
  );
}

/** Asserts that a value is an instance of a class. */
// deno-lint-ignore no-explicit-any
export function assertInstanceOf<T extends abstract new (...args: any[]) => any>(
  actual: unknown,
  expectedType: T,
  msg = "",
): asserts actual is InstanceType<T> {
  check(
    actual instanceof expectedType,
    `Expected object to be an instance of "${expectedType.name}" but was ${show(actual)}`,
    msg || undefined,
  );
}

/** Asserts `actual > expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  check(actual > expected, `Expect ${show(actual)} > ${show(expected)}`, msg);
}

/** Asserts `actual >= expected`. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  check(actual >= expected, `Expect ${show(actual)} >= ${show(expected)}`, msg);
}

/** Asserts `actual < expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  check(actual < expected, `Expect ${show(actual)} < ${show(expected)}`, msg);
}

/** Asserts `actual <= expected`. */
export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  check(actual <= expected, `Expect ${show(actual)} <= ${show(expected)}`, msg);
}

/** Asserts that each element of `expected` is, deeply, one of `actual`'s. */
export function assertArrayIncludes<T>(actual: ArrayLike<T>, expected: ArrayLike<T>, msg?: string): void {
  const missing = Array.from(expected).filter((wanted) =>
    !Array.from(actual).some((has) => equal(has, wanted))
  );
  check(
    missing.length === 0,
    `Expected actual: ${show(actual)} to include: ${show(expected)}. Missing: ${show(missing)}`,
    msg,
  );
}

/** Asserts that a text contains another. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  check(actual.includes(expected), `Expected actual: "${actual}" to contain: "${expected}"`, msg);
}

/** Asserts that a text matches. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  check(actual.search(expected) >= 0, `Expected actual: "${actual}" to match: "${expected}"`, msg);
}

/** Asserts that a text does not match. */
export function assertNotMatch(actual: string, expected: RegExp, msg?: string): void {
  check(actual.search(expected) < 0, `Expected actual: "${actual}" to not match: "${expected}"`, msg);
}

/** Asserts that a value is an error, of a class and with a text in its message if these are given. */
export function assertIsError<E extends Error = Error>(
  error: unknown,
  ErrorClass?: ErrorClass<E>,
  msgMatches?: string | RegExp,
  msg?: string,
): asserts error is E {
  check(error instanceof Error, `Expected "error" to be an Error object: ${show(error)}`, msg);
  if (ErrorClass !== undefined) {
    check(
      error instanceof ErrorClass,
      `Expected error to be instance of "${ErrorClass.name}", but was ${show(error)}`,
      msg,
    );
  }
  if (msgMatches === undefined) return;
  const matches = typeof msgMatches === "string"
    ? error.message.includes(msgMatches)
    : msgMatches.test(error.message);
  check(
    matches,
    `Expected error message to include ${show(msgMatches)}, but got ${show(error.message)}`,
    msg,
  );
}

/** Asserts that a call throws. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that a call throws an error of a class, with a text in its message. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows(
  fn: () => unknown,
  errorClassOrMsg?: ErrorClass<Error> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  const [ErrorClass, note] = split(errorClassOrMsg, msg);
  try {
    fn();
  } catch (error) {
    if (ErrorClass !== undefined) assertIsError(error, ErrorClass, msgIncludes, note);
    return error;
  }
  return fail(note === undefined ? "Expected function to throw" : `Expected function to throw: ${note}`);
}

/** Asserts that a promise rejects. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** Asserts that a promise rejects with an error of a class, with a text in its message. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects(
  fn: () => PromiseLike<unknown>,
  errorClassOrMsg?: ErrorClass<Error> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const [ErrorClass, note] = split(errorClassOrMsg, msg);
  let promise: PromiseLike<unknown> | undefined;
  try {
    promise = fn();
    await promise;
  } catch (error) {
    check(promise !== undefined, "Function throws when expected to reject", note);
    if (ErrorClass !== undefined) assertIsError(error, ErrorClass, msgIncludes, note);
    return error;
  }
  return fail(note === undefined ? "Expected function to reject" : `Expected function to reject: ${note}`);
}

function split(
  errorClassOrMsg: ErrorClass<Error> | string | undefined,
  msg: string | undefined,
): [ErrorClass<Error> | undefined, string | undefined] {
  return typeof errorClassOrMsg === "string" ? [undefined, errorClassOrMsg] : [errorClassOrMsg, msg];
}

/** Fails. */
export function fail(msg?: string): never {
  throw new AssertionError(msg === undefined ? "Failed assertion." : `Failed assertion: ${msg}`);
}

/** Fails where no run may come. */
export function unreachable(reason?: string): never {
  throw new AssertionError(reason ?? "Unreachable");
}
