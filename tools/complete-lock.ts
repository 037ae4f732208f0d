// `make lock`: writes package-lock.json anew from package.json, and completes it.
//
// A registry mirror may not have every platform's binary of a tool yet. npm then leaves those optional packages out of
// the lock file, and `npm ci` refuses the file as incomplete. Each is added with its version and platform, without a
// hash, which only the platform's own users would need; vmsweep's tools run on Linux x64 and arm64.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

interface LockedPackage {
	readonly version?: string;
	readonly resolved?: string;
	readonly optionalDependencies?: Readonly<Record<string, string>>;
	readonly [key: string]: unknown;
}
interface LockFile {
	packages: Record<string, LockedPackage>;
}

const lockPath = join(import.meta.dirname, "../package-lock.json");

export const readLock = (): LockFile => JSON.parse(readFileSync(lockPath, "utf8")) as LockFile;

/** Entries that the lock file lacks: optional packages of a locked package, with an exact version. */
export function missingEntries(lock: LockFile): Record<string, LockedPackage> {
	const missing: Record<string, LockedPackage> = {};
	for (const locked of Object.values(lock.packages)) {
		for (const [name, version] of Object.entries(locked.optionalDependencies ?? {})) {
			const path = `node_modules/${name}`;
			if (lock.packages[path] === undefined && /^\d/.test(version))
				missing[path] = { version, ...platformOf(name), dev: true, optional: true };
		}
	}
	return missing;
}

/** The platform that a binary package's name ends with, in the words of its package.json: `…-linux-x64-musl`. */
function platformOf(name: string): { readonly os: string[]; readonly cpu: string[]; readonly libc?: string[] } {
	const match = name.match(/(android|darwin|freebsd|linux|openharmony|win32)-([a-z0-9]+)(?:-(\w+))?$/);
	if (match === null) throw new Error(`${name}: its name tells no platform; add it to package-lock.json by hand`);
	const [, os, cpu, variant] = match;
	const libc = variant?.startsWith("musl") ? ["musl"] : variant?.startsWith("gnu") ? ["glibc"] : undefined;
	return { os: [os!], cpu: [cpu!], ...(os === "linux" && libc !== undefined ? { libc } : {}) };
}

if (import.meta.main) {
	const lock = readLock();
	const missing = missingEntries(lock);
	const packages = Object.entries({ ...lock.packages, ...missing }).sort(([a], [b]) => (a < b ? -1 : 1));
	writeFileSync(lockPath, `${JSON.stringify({ ...lock, packages: Object.fromEntries(packages) }, null, "\t")}\n`);
	console.log(`package-lock.json: ${Object.keys(missing).length} entries added`);
}
