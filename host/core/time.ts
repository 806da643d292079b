/**
 * Arithmetic on clocks, in doubles.
 *
 * Clocks are whole numbers, so V8 would take `a + b` for integer arithmetic and convert both ways each time, at several
 * times the price. Having met fractions, these two functions stay with doubles wherever they are inlined.
 *
 * @module
 */

/** A clock, some cycles later. */
export function later(clock: number, cycles: number): number {
  return clock + cycles;
}

/** The cycles from one clock to a later one. */
export function between(earlier: number, clock: number): number {
  return clock - earlier;
}

for (let i = 0; i < 2000; i++) between(later(0.5, i), later(0.25, i));
