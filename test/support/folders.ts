// Temporary folders, gone at the end of their scope.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What the names of these folders begin with. */
export const FOLDER_PREFIX = "vms-";

/** A folder of a test's own. Its path is short, so that sockets fit in it. */
export class TemporaryFolder implements AsyncDisposable {
	readonly path: string;
	constructor(path: string) {
		this.path = path;
	}
	/** Path of a file in it. */
	file(name: string): string {
		return join(this.path, name);
	}
	async [Symbol.asyncDispose](): Promise<void> {
		await rm(this.path, { recursive: true, force: true });
	}
}

/** `await using folder = await temporaryFolder()`: before whatever uses it, so that it goes last. */
export const temporaryFolder = async (): Promise<TemporaryFolder> =>
	new TemporaryFolder(await mkdtemp(join(tmpdir(), FOLDER_PREFIX)));
