/**
 * What a thread does in several accesses to state that others touch at the same time: a generator with a bare `yield`
 * between any two of them. It stands once. Explored runs let others come in at each; timed runs, in which nobody can
 * come between two steps of one time, go straight through.
 *
 * @module
 */

/** Accesses to shared state, a step each. */
export type Steps<T = void> = Generator<void, T, void>;

/** Takes all steps at once. */
export function straight<T>(steps: Steps<T>): T {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value as T;
  }
}
