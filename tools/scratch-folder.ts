// A scratch folder for programs that take minutes: gone at the end of its scope, and also after Ctrl-C.
//
// A signal ends this process by `process.exit`, in whose handlers the programs of test/support/processes.ts and the
// guests of test/support/guest.ts are killed, each by its own process id. The folder goes last, when nobody writes
// into it any more; that is why its handler is only added when the signal arrives.

import { rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";

const endings = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

export class ScratchFolder implements AsyncDisposable {
	readonly path: string;
	readonly #interrupted = (signal: NodeJS.Signals): void => {
		process.once("exit", () => rmSync(this.path, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 }));
		process.exit(128 + constants.signals[signal]);
	};

	private constructor(path: string) {
		this.path = path;
		for (const signal of endings) process.once(signal, this.#interrupted);
	}

	/** Makes a new folder inside `parent`. */
	static async make(parent: string, prefix: string): Promise<ScratchFolder> {
		return new ScratchFolder(await mkdtemp(join(parent, prefix)));
	}

	/** Path of a file in it. */
	file(name: string): string {
		return join(this.path, name);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		for (const signal of endings) process.removeListener(signal, this.#interrupted);
		await rm(this.path, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
	}
}
