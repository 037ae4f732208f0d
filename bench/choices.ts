// Options of the benchmarks' command lines.

import { VmsweepError } from "../src/foundations/errors.ts";

/** A whole number above 0. Throws USAGE. */
export function positive(text: string, option: string): number {
	const value = Number(text);
	if (!Number.isInteger(value) || value <= 0)
		throw new VmsweepError("USAGE", `${option} takes a whole number above 0, not "${text}".`);
	return value;
}

/** The names in a comma-separated list, or all where there is none. Throws USAGE for a name that isn't known. */
export function chosen<T extends string>(text: string | undefined, all: readonly T[], what: string): readonly T[] {
	if (text === undefined) return all;
	const names = text.split(",");
	const unknown = names.find((name) => !(all as readonly string[]).includes(name));
	if (unknown !== undefined)
		throw new VmsweepError("USAGE", `there is no ${what} "${unknown}". There are: ${all.join(", ")}.`);
	return all.filter((name) => names.includes(name));
}
