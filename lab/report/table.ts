/**
 * Tables of text.
 *
 * @module
 */

/** A number with thousands separated. */
export function grouped(value: number, digits: number = 0): string {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/**
 * A table with a head, the first column aligned left and the others right. A row of one cell is a heading for those
 * below it. Where the table is wider than `columns`, each row becomes a paragraph of `head: cell` lines.
 */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  columns: number,
): string {
  const full = rows.filter((row) => row.length > 1);
  const widths = head.map((title, i) => Math.max(title.length, ...full.map((row) => row[i].length)));
  const width = widths.reduce((sum, w) => sum + w, 0) + 2 * (widths.length - 1);
  if (width > columns) return paragraphs(head, rows, columns);
  const line = (cells: readonly string[]): string =>
    cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join("  ").trimEnd();
  return [line(head), "-".repeat(width), ...rows.map(line)].join("\n");
}

function paragraphs(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  columns: number,
): string {
  return rows.map(([name, ...cells]) => {
    if (cells.length === 0) return wrapped(name, columns);
    const indent = " ".repeat(name.length - name.trimStart().length + 2);
    const named = cells.map((cell, i) => cell === "" ? "" : `${indent}${head[i + 1]}: ${cell}`);
    return [name, ...named.filter((line) => line !== "")].join("\n");
  }).join("\n");
}

/** A text broken into lines of at most `columns`. */
export function wrapped(text: string, columns: number): string {
  const lines: string[] = [""];
  for (const word of text.split(/\s+/)) {
    const last = lines[lines.length - 1];
    if (last === "") lines[lines.length - 1] = word;
    else if (last.length + 1 + word.length <= columns) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.join("\n");
}

/** Columns that a text needs behind its head, to stand there. */
const ROOM = 16;

/** A text behind its head, broken so that it stays there; under it where there is no room. */
export function behind(head: string, text: string, columns: number): string {
  const below = columns - head.length < ROOM;
  const margin = " ".repeat(below ? head.length - head.trimStart().length + 2 : head.length);
  const lines = wrapped(text, columns - margin.length).replaceAll("\n", `\n${margin}`);
  return below ? `${head.trimEnd()}\n${margin}${lines}` : head + lines;
}

/** Heads in a column of their own, each with its text behind it. */
export function listed(rows: readonly (readonly [head: string, text: string])[], columns: number): string {
  const width = Math.max(...rows.map(([head]) => head.length)) + "    ".length;
  return rows.map(([head, text]) => behind(`  ${head}`.padEnd(width), text, columns)).join("\n");
}
