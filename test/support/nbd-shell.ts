// libnbd's shell, and what its version knows.

import { type Finished, run, searchPath } from "./processes.ts";

/** Runs nbdsh with these arguments. */
export const nbdsh = (...shellArguments: readonly string[]): Promise<Finished> =>
	// The system's Python has the module; another one may come first in PATH.
	run("nbdsh", shellArguments, { timeoutSeconds: 60, environment: { PATH: `/usr/bin:${searchPath}` } });

/** Can this libnbd ask for extended headers? Since 1.18 it can; Debian 12 has 1.14 (see tools/in-debian.sh). */
export const nbdshKnowsExtendedHeaders = async (): Promise<boolean> =>
	(await nbdsh("-c", "print(hasattr(h, 'block_status_64'))")).stdout.trim() === "True";
