// The guest map of a large ext4 volume against dumpe2fs: time, bytes read, and whether both find the same free space.
//
// Volumes of 1 TiB in sparse files, with nothing in them but their metadata, in the page cache:
//   new          as mke2fs makes them: most groups are marked uninitialised, their bitmaps need not be read
//   all bitmaps  without that feature: the bitmap of every group is there and must be read
//
// vmsweep's reader runs in this process and counts what it asks for. dumpe2fs is a process of its own; its bytes come
// from the kernel's count for the shell that waited for it (proc(5), io, rchar), and include loading the program.

import { formatBytes } from "../src/foundations/units.ts";
import { readGuestMap } from "../src/services/guest-map.ts";
import { openSource } from "../test/interop/map-images.ts";
import { runOk } from "../test/support/processes.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { table } from "./report.ts";
import { spreadOf } from "./statistics.ts";

const TIB = 2 ** 40;
/** Each is read this often; the median counts. */
const REPEATS = 3;

const volumes = [
	{ name: "1 TiB ext4, new", features: [] },
	{ name: "1 TiB ext4, all bitmaps", features: ["-O", "^metadata_csum,^uninit_bg"] },
] as const;

interface Reading {
	readonly seconds: number;
	readonly bytesRead: number;
	readonly freeBytes: number;
}

/** Both readers on one volume. */
export interface GuestMapResult {
	readonly volume: string;
	readonly vmsweep: Reading;
	readonly dumpe2fs: Reading;
}

/** Makes the volumes, reads each with both, prints a table, and removes the volumes with the scratch folder. */
export async function measureGuestMap(scratch: ScratchFolder): Promise<GuestMapResult[]> {
	const results: GuestMapResult[] = [];
	for (const [index, { name, features }] of volumes.entries()) {
		const image = scratch.file(`volume-${index}.raw`);
		await runOk("truncate", ["-s", String(TIB), image]);
		// Few inodes: their tables are no part of the map, and would only cost the benchmark's host space.
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-T", "largefile4", ...features, image], { timeoutSeconds: 600 });
		const [vmsweep, dumpe2fs]: [Reading[], Reading[]] = [[], []];
		for (let i = 0; i < REPEATS; i++) {
			vmsweep.push(await readWithVmsweep(image));
			dumpe2fs.push(await readWithDumpe2fs(image));
		}
		results.push({ volume: name, vmsweep: medianOf(vmsweep), dumpe2fs: medianOf(dumpe2fs) });
	}
	console.log(`\nGuest map: vmsweep against dumpe2fs\n\n${resultTable(results)}`);
	return results;
}

const medianOf = (readings: readonly Reading[]): Reading => ({
	...readings[0]!,
	seconds: spreadOf(readings.map(({ seconds }) => seconds))!.median,
});

async function readWithVmsweep(image: string): Promise<Reading> {
	const started = performance.now();
	await using source = await openSource(image);
	const map = await readGuestMap(source);
	let freeBytes = 0;
	for (const { state, length } of map.extents) if (state === "free") freeBytes += length;
	return { seconds: (performance.now() - started) / 1000, bytesRead: map.bytesRead, freeBytes };
}

async function readWithDumpe2fs(image: string): Promise<Reading> {
	const started = performance.now();
	const counted = await runOk("sh", ["-c", 'dumpe2fs "$0" >/dev/null 2>&1; cat /proc/$$/io', image]);
	const seconds = (performance.now() - started) / 1000;
	const header = await runOk("sh", ["-c", 'dumpe2fs -h "$0" 2>/dev/null', image]);
	const field = (text: string, name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1]);
	return {
		seconds,
		bytesRead: field(counted, "rchar"),
		freeBytes: field(header, "Free blocks") * field(header, "Block size"),
	};
}

const resultTable = (results: readonly GuestMapResult[]): string =>
	table([
		["", "vmsweep", "read", "dumpe2fs", "read", "free space"],
		...results.map(({ volume, vmsweep, dumpe2fs }) => [
			volume,
			`${vmsweep.seconds.toFixed(2)} s`,
			formatBytes(vmsweep.bytesRead),
			`${dumpe2fs.seconds.toFixed(2)} s`,
			formatBytes(dumpe2fs.bytesRead),
			vmsweep.freeBytes === dumpe2fs.freeBytes ? "equal" : `DIFFERS: ${vmsweep.freeBytes}, ${dumpe2fs.freeBytes}`,
		]),
	]);
