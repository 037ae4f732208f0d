// Memory: what stays resident for as long as the process lives although nobody needs it.
//
//   garbage           of work that is done; at rest nothing is allocated, so nothing would ever collect it
//   freed memory      the C library keeps it for the next time
//   program text      the start ran through most of Node, a served disk uses a small part

import { readFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import * as sys from "./syscalls.ts";

const mallocTrim = sys.glibcCall("int malloc_trim(size_t keep)");

/** What several disks ask for within this time is done once. */
const TOGETHER_MS = 1000;
let isDueSoon = false;
let collectGarbage: (() => void) | undefined;

/** Gives the host back, in a while, what this thread and the allocators of all threads don't need. Takes some ten milliseconds then. */
export function trimMemorySoon(): void {
	if (isDueSoon) return;
	isDueSoon = true;
	setTimeout(trimMemory, TOGETHER_MS).unref();
}

function trimMemory(): void {
	isDueSoon = false;
	collectGarbage ??= garbageCollector();
	// What the first one finds only the second one frees.
	collectGarbage?.();
	collectGarbage?.();
	mallocTrim?.(0);
	unmapProgram();
}

/**
 * The collector, which only contexts have that were made under this flag. It's taken back at once, since Node's cache of compiled
 * code is for the flags that it was filled under. Undefined where this Node has none.
 */
function garbageCollector(): (() => void) | undefined {
	setFlagsFromString("--expose-gc");
	const collect: unknown = runInNewContext("globalThis.gc");
	setFlagsFromString("--no-expose-gc");
	return typeof collect === "function" ? (): void => collect() : undefined;
}

/** A mapping of the program's file that can be executed. */
interface TextMapping {
	readonly address: number;
	readonly length: number;
	readonly residentBytes: number;
	/** Pages that aren't the file's any more, such as a debugger's: they must stay. */
	readonly changedBytes: number;
}

/**
 * Unmaps the pages of Node's program. They stay in the host's page cache as long as there is room, and the first use of each
 * brings it back, with its neighbours, in about a microsecond. Neighbours are up to 2 MiB where somebody has read the file in one
 * go (Linux 6.18 maps all of a folio, whatever MADV_NOHUGEPAGE says); less is gained then.
 */
export function unmapProgram(): void {
	for (const { address, length, changedBytes } of textMappings())
		if (changedBytes === 0) sys.madvise(address, length, sys.MADV_DONTNEED);
}

/** The mappings of the program's text, from proc(5), "smaps"; none where the host doesn't show them. */
export function textMappings(): TextMapping[] {
	let smaps: string;
	try {
		smaps = readFileSync("/proc/self/smaps", "latin1");
	} catch {
		return [];
	}
	const found: TextMapping[] = [];
	for (const part of smaps.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)) {
		const [, start, end, path] = /^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \S+ +(.+)\n/.exec(part) ?? [];
		if (path !== process.execPath) continue;
		const address = Number.parseInt(start!, 16);
		const kibOf = (field: string): number => Number(new RegExp(`^${field}: +(\\d+) kB$`, "m").exec(part)?.[1]);
		found.push({
			address,
			length: Number.parseInt(end!, 16) - address,
			residentBytes: kibOf("Rss") * 1024,
			changedBytes: kibOf("Anonymous") * 1024,
		});
	}
	return found;
}
