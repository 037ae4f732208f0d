// Test programs of other projects, compiled from the sources that Debian ships beside their packages. Nothing of them is
// in this repository; tools/in-debian.sh unpacks them, and says where in VMSWEEP_PEER_SOURCES.

import { readdirSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { TemporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";

/** The folder of a source package. Undefined where there are none: the test is marked as skipped, and returns. */
export function peerSources(t: TestContext, name: string): string | undefined {
	const root = process.env.VMSWEEP_PEER_SOURCES;
	if (root === undefined) {
		t.skip("needs other projects' sources: only in make test-clients");
		return undefined;
	}
	const folder = readdirSync(root).find((entry) => new RegExp(`^${name}-[0-9.]+$`).test(entry));
	if (folder === undefined) throw new Error(`${root} has no sources of ${name}`);
	return join(root, folder);
}

export interface PeerProgram {
	/** The package's folder. */
	readonly sources: string;
	/** C files in it. */
	readonly files: readonly string[];
	/** Folders in it that headers are in. */
	readonly headers: readonly string[];
	/** For pkg-config. */
	readonly libraries: readonly string[];
	/** What the package's own configure would find out, and what its makefiles pass on. */
	readonly defines: Readonly<Record<string, string | number>>;
	/** Words of the first file that become others. */
	readonly reworded?: Readonly<Record<string, string>>;
}

/** Compiles a program into `folder`, and returns its path. */
export async function compile(folder: TemporaryFolder, name: string, program: PeerProgram): Promise<string> {
	const { sources, files, headers, libraries, defines, reworded = {} } = program;
	const [first, ...others] = files.map((file) => join(sources, file));
	const main = folder.file(`${name}.c`);
	let text = await readFile(first!, "utf8");
	for (const [from, to] of Object.entries(reworded)) {
		if (!text.includes(from)) throw new Error(`${first} doesn't say ${from} any more`);
		text = text.replaceAll(from, to);
	}
	await writeFile(main, text);
	await writeFile(
		folder.file("config.h"),
		Object.entries({ _GNU_SOURCE: 1, ...defines })
			.map(([key, value]) => `#define ${key} ${value}\n`)
			.join(""),
	);
	const flags = (await runOk("pkg-config", ["--cflags", "--libs", ...libraries])).trim().split(/\s+/);
	const include = [folder.path, join(first!, ".."), ...headers.map((header) => join(sources, header))];
	const output = folder.file(name);
	const options = ["-w", "-O1", ...include.map((path) => `-I${path}`), "-include", "config.h"];
	await runOk("gcc", [...options, "-o", output, main, ...others, ...flags]);
	return output;
}
