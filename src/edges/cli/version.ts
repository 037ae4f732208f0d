// vmsweep version.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { print } from "./output.ts";

export async function printVersion({ json = false }: { readonly json?: boolean }): Promise<void> {
	const line = json ? JSON.stringify({ version: version(), node: process.versions.node }) : `vmsweep ${version()}`;
	await print(`${line}\n`);
}

/** From the package's own description, which lies at the same distance in a checkout and when built. */
export function version(): string {
	const path = join(import.meta.dirname, "../../../package.json");
	return (JSON.parse(readFileSync(path, "utf8")) as { readonly version: string }).version;
}
