/**
 * A schedule: which thread took each step of a run. It prints as one line, and the line is all that a replay needs.
 *
 *     0*12.3.0*5      thread 0 twelve times, thread 3 once, thread 0 five times
 *
 * @module
 */

/** The steps of a run, in order, by thread number. */
export type Schedule = readonly number[];

/** A schedule in one line. */
export function formatSchedule(schedule: Schedule): string {
  const runs: string[] = [];
  for (let i = 0; i < schedule.length;) {
    let end = i + 1;
    while (end < schedule.length && schedule[end] === schedule[i]) end++;
    runs.push(end - i > 1 ? `${schedule[i]}*${end - i}` : `${schedule[i]}`);
    i = end;
  }
  return runs.join(".");
}

/** The most steps that {@linkcode parseSchedule} takes. */
export const SCHEDULE_LIMIT = 10_000_000;

/** The schedule that a line stands for. Throws `SyntaxError` for anything else, naming the place. */
export function parseSchedule(line: string): Schedule {
  const schedule: number[] = [];
  if (line.trim() === "") return schedule;
  for (const [index, run] of line.trim().split(".").entries()) {
    const match = /^(\d{1,9})(?:\*(\d{1,9}))?$/.exec(run);
    if (match === null) {
      throw new SyntaxError(
        `Cannot parse schedule: run ${index + 1} is "${run}", not THREAD or THREAD*STEPS`,
      );
    }
    const steps = match[2] === undefined ? 1 : Number(match[2]);
    if (schedule.length + steps > SCHEDULE_LIMIT) {
      throw new SyntaxError(`Cannot parse schedule: it has more than ${SCHEDULE_LIMIT} steps`);
    }
    for (let i = 0; i < steps; i++) schedule.push(Number(match[1]));
  }
  return schedule;
}
