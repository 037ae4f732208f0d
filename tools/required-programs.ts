// Programs that the demo and the benchmark start: missing ones are named at once, not when their turn comes.

import { accessSync, constants } from "node:fs";
import { join } from "node:path";
import { VmsweepError } from "../src/foundations/errors.ts";
import { searchPath } from "../test/support/processes.ts";

/** Throws USAGE with the names of all programs that are not there. `what` needs them. */
export function requirePrograms(what: string, names: readonly string[]): void {
	const missing = [...new Set(names)].filter((name) => !hasProgram(name));
	if (missing.length > 0)
		throw new VmsweepError(
			"USAGE",
			`${what} needs ${missing.join(", ")}. As root, "make setup" installs what is missing.`,
		);
}

const hasProgram = (name: string): boolean =>
	searchPath.split(":").some((folder) => {
		try {
			accessSync(join(folder, name), constants.X_OK);
			return folder !== "";
		} catch {
			return false;
		}
	});
