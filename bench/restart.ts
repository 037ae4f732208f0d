// How long opening a first image takes, and how much memory its index then needs.
//
//   node bench/restart.ts [--gib 8] [--rounds 3] [--disk-gib 8]
//
//   for small and large writes: build a log ─► several times, in a fresh process: drop its pages or not, open, measure
//
// How it measures
//  - The log is written by the product's own code, but for its data: the file under it leaves that out, so that it takes
//    only 64 KiB of disk per 8 MiB. Headers and summaries, all that opening reads of a log that was closed, are real.
//  - Small writes are of 4 KiB at random blocks of a disk as large as the log: an entry per block, and an index in no
//    order. Large writes are of 1 MiB, one behind the other: few entries, many checksums in each.
//  - Cold: the file's pages were dropped from the page cache. What a hypervisor below caches, nobody here can drop.
//  - Memory is what the process holds after opening and a collection of garbage, less what it held before.

import { closeSync, fsyncSync, openSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { crc32 } from "@node-rs/crc32";
import { OsHostFile } from "../src/adapters/os/host-file.ts";
import * as sys from "../src/adapters/os/syscalls.ts";
import type { OpenOptions } from "../src/core/log/first-image.ts";
import { FirstImage, formatFirstImage } from "../src/core/log/first-image.ts";
import { DEFAULT_SEGMENT_BYTES, geometryOf, SEGMENTS_AT } from "../src/core/log/format.ts";
import type { GatherList } from "../src/core/log/host-file.ts";
import type { ByteOffset } from "../src/foundations/units.ts";
import { BLOCK_SIZE, byteCount } from "../src/foundations/units.ts";
import { runOk } from "../test/support/processes.ts";
import { ScratchFolder } from "../tools/scratch-folder.ts";
import { positive } from "./choices.ts";
import { spreadOf } from "./statistics.ts";

const GIB = 2 ** 30;
const LARGE_BLOCKS = 256;
const writes = ["small", "large"] as const;
type Writes = (typeof writes)[number];

/** What one opening found. */
interface Opening {
	readonly seconds: number;
	readonly memoryBytes: number;
	readonly residentBytes: number;
	readonly logBytes: number;
}

/** The log's file without its data. */
class FileWithoutData extends OsHostFile {
	readonly #geometry = geometryOf(DEFAULT_SEGMENT_BYTES);

	override writeGather(list: GatherList, at: ByteOffset): void {
		const within = (at - SEGMENTS_AT) % this.#geometry.segmentBytes;
		if (at < SEGMENTS_AT || within < this.#geometry.leadBlocks * BLOCK_SIZE) super.writeGather(list, at);
	}

	override allocate(at: ByteOffset, length: number): void {
		if (this.size() < at + length) this.truncate(at + length);
	}
}

const options: OpenOptions = { checksum: (bytes) => crc32(bytes), allocatePinned: sys.pin };

/** Writes a log of about `gib` GiB of data for a disk of `diskGib` GiB, and closes it. */
function build(path: string, kind: Writes, gib: number, diskGib: number): void {
	const fd = openSync(path, "wx+");
	const file = new FileWithoutData(fd, path);
	const diskBlocks = (diskGib * GIB) / BLOCK_SIZE;
	formatFirstImage(file, { uuid: new Uint8Array(16).fill(1), diskBytes: byteCount(diskGib * GIB) });
	const log = FirstImage.open(file, options);
	const source = sys.pin(LARGE_BLOCKS * BLOCK_SIZE);
	const step = kind === "small" ? 1 : LARGE_BLOCKS;
	let random = 1;
	for (let done = 0; done < (gib * GIB) / BLOCK_SIZE; ) {
		for (let i = 0; i < LARGE_BLOCKS; i += step, done += step) {
			random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0;
			const block = kind === "small" ? Math.floor((random / 2 ** 32) * diskBlocks) : done % diskBlocks;
			log.stageData(block, step, source, i * BLOCK_SIZE);
		}
		const staged = log.stagedCount;
		if (log.commit() < staged) throw log.commitError!;
	}
	log.close();
	closeSync(fd);
}

function openOnce(path: string, isCold: boolean): Opening {
	const fd = openSync(path, "r+");
	fsyncSync(fd);
	if (isCold) sys.fadvise(fd, 0, 0, sys.POSIX_FADV_DONTNEED);
	const file = new OsHostFile(fd, path);
	const before = memory();
	const started = performance.now();
	const log = FirstImage.open(file, options);
	const seconds = (performance.now() - started) / 1000;
	const after = memory();
	const opening = {
		seconds,
		memoryBytes: after.held - before.held,
		residentBytes: after.resident - before.resident,
		logBytes: log.usedBytes,
	};
	closeSync(fd);
	return opening;
}

function memory(): { held: number; resident: number } {
	globalThis.gc?.();
	const { heapUsed, arrayBuffers, rss } = process.memoryUsage();
	return { held: heapUsed + arrayBuffers, resident: rss };
}

async function measure(): Promise<void> {
	const { values } = parseArgs({
		options: {
			gib: { type: "string", default: "8" },
			"disk-gib": { type: "string" },
			rounds: { type: "string", default: "3" },
		},
	});
	const gib = positive(values.gib, "--gib");
	const diskGib = positive(values["disk-gib"] ?? values.gib, "--disk-gib");
	const rounds = positive(values.rounds, "--rounds");
	console.log(`a log of ${gib} GiB for a disk of ${diskGib} GiB, without its data; medians of ${rounds}`);
	console.log("writes  pages  seconds  seconds/GiB  MiB/GiB held  MiB/GiB resident");
	await using folder = await ScratchFolder.make(tmpdir(), "vmsweep-restart-");
	for (const kind of writes) {
		const path = join(folder.path, `${kind}.log`);
		await child("build", path, kind, String(gib), String(diskGib));
		for (const pages of ["cached", "cold"]) {
			const openings: Opening[] = [];
			for (let round = 0; round < rounds; round++)
				openings.push(JSON.parse(await child("open", path, pages)) as Opening);
			const median = (of: (opening: Opening) => number): number => spreadOf(openings.map(of))!.median;
			const logGib = openings[0]!.logBytes / GIB;
			const perGib = (of: (opening: Opening) => number): string => (median(of) / logGib).toFixed(3);
			console.log(
				`${kind.padEnd(7)} ${pages.padEnd(6)} ${median((o) => o.seconds)
					.toFixed(2)
					.padStart(7)}  ` +
					`${perGib((o) => o.seconds).padStart(11)}  ${perGib((o) => o.memoryBytes / 2 ** 20).padStart(12)}  ` +
					`${perGib((o) => o.residentBytes / 2 ** 20).padStart(16)}`,
			);
		}
	}
}

const child = (...args: string[]): Promise<string> =>
	runOk(process.execPath, ["--expose-gc", import.meta.filename, ...args], { timeoutSeconds: 3600 });

const [act, path, kind, gib, diskGib] = process.argv.slice(2);
if (act === "build") build(path!, kind as Writes, Number(gib), Number(diskGib));
else if (act === "open") console.log(JSON.stringify(openOnce(path!, kind === "cold")));
else await measure();
