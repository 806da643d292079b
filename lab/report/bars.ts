/**
 * Charts of text.
 *
 * @module
 */

import { grouped } from "./table.ts";

/**
 * A bar for each value under a title, with the value behind it; `full` is what fills the width. A value that is too small
 * for a character has none.
 */
export function bars(
  title: string,
  values: readonly (readonly [name: string, value: number])[],
  full: number,
  columns: number,
): string {
  const names = Math.max(...values.map(([name]) => name.length));
  const numbers = Math.max(grouped(full).length, ...values.map(([, value]) => grouped(value).length));
  const room = Math.max(1, columns - names - numbers - 5);
  const lines = values.map(([name, value]) => {
    const length = full === 0 ? 0 : Math.round(room * value / full);
    return `  ${name.padStart(names)} |${"#".repeat(length)}${length === 0 ? "" : " "}${grouped(value)}`;
  });
  return [title, ...lines].join("\n");
}
