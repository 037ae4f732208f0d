// Snapshots: the disk as it was at named positions, as the data plane reads and keeps them.
//
// When a snapshot is made, all that it shows is moved to the second image. From then on a block of the second image that
// is about to change is first copied to the newest snapshot's own log ("kept"). So a snapshot reads as
//
//   what it kept itself ─ absent ─► what newer snapshots kept, oldest of them first … ─ absent ─► the second image
//
// Only the data plane's thread has these logs, as it has the disk's own. They only grow, and go as a whole.

import { ABSENT, FirstImage } from "../../core/log/first-image.ts";
import type { HostFile } from "../../core/log/host-file.ts";
import { assert, VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import { OsHostFile } from "../os/host-file.ts";
import * as sys from "../os/syscalls.ts";
import { eachPart, type LogFile } from "./disk-reader.ts";

/** A snapshot as the control plane hands it over. It keeps the descriptor open until the snapshot is removed. */
export interface SnapshotSetup {
	readonly name: string;
	/** Its log's file, open for reading and writing. */
	readonly fd: number;
	/** For messages. */
	readonly path: string;
	/** The 16 bytes that its log must carry. */
	readonly uuid: Uint8Array;
	/** Blocks of which nothing could be kept, because they were rotten: reading them is an error. */
	readonly lost: readonly number[];
}

interface Snapshot extends LogFile {
	readonly name: string;
	readonly lost: Set<number>;
	/** The logs in which its blocks are looked for, its own first. */
	logs: readonly LogFile[];
	/** Clients that read it. */
	readers: number;
	/** False: its log shows blocks that a power cut could still take away, as after a call to keep them that failed halfway. */
	isDurable: boolean;
}

export class Snapshots {
	/** Oldest first. */
	readonly #list: Snapshot[] = [];
	readonly #checksum: (bytes: Uint8Array) => number;
	readonly #openFile: (fd: number, path: string) => HostFile;

	/** @param openFile a descriptor as a log's file; by default the host's */
	constructor(
		checksum: (bytes: Uint8Array) => number,
		openFile: (fd: number, path: string) => HostFile = (fd, path) => new OsHostFile(fd, path),
	) {
		this.#checksum = checksum;
		this.#openFile = openFile;
	}

	/** Opens the log of a snapshot that is newer than all others. Throws LOG_DAMAGED, DISK_IMAGES_MIXED, IO. */
	add({ name, fd, path, uuid, lost }: SnapshotSetup): void {
		assert(!this.#list.some((each) => each.name === name), `snapshot ${name} is opened twice`);
		const log = FirstImage.open(this.#openFile(fd, path), {
			checksum: this.#checksum,
			allocatePinned: sys.pin,
			expectedUuid: uuid,
			limitBytes: Number.POSITIVE_INFINITY,
			warmSegments: 0,
			name: path,
		});
		this.#list.push({ name, fd, log, lost: new Set(lost), logs: [], readers: 0, isDurable: true });
		this.#order();
	}

	/** Closes a snapshot's log for good. Throws DISK_LOCKED where clients read the snapshot. */
	remove(name: string): void {
		const snapshot = this.#find(name);
		if (snapshot.readers > 0)
			throw new VmsweepError("DISK_LOCKED", `snapshot ${name} is in use by ${snapshot.readers} clients. Detach them.`);
		this.#list.splice(this.#list.indexOf(snapshot), 1);
		this.#order();
	}

	/** The logs in which a snapshot's blocks are looked for, in this order; what is in none is in the second image. */
	logsOf(name: string): readonly LogFile[] {
		return this.#find(name).logs;
	}

	/** A client begins (1) or ends (-1) to read a snapshot. */
	countReader(name: string, change: 1 | -1): void {
		this.#find(name).readers += change;
	}

	/** The log of a snapshot that has to be flushed before what it shows counts as kept; undefined where all is durable. */
	undurable(name: string): LogFile | undefined {
		const snapshot = this.#find(name);
		return snapshot.isDurable ? undefined : snapshot;
	}

	/** A flush of its log that began after the last `keep` has completed. */
	flushed(name: string): void {
		this.#find(name).isDurable = true;
	}

	/** Of pairs [block, count], what a snapshot has not kept itself, and can still keep. */
	notKept(name: string, runs: Float64Array): Float64Array {
		const { log, lost } = this.#find(name);
		const pairs: number[] = [];
		for (let i = 0; i + 1 < runs.length; i += 2) {
			// What lies behind the snapshot's end is none of its business.
			const count = Math.min(runs[i + 1]!, log.diskBlocks - runs[i]!);
			if (count > 0)
				log.resolve(runs[i]!, count, (value, block, length) => {
					if (value !== ABSENT) return;
					eachPart(lost, block, length, (at, part, isLost) => {
						if (!isLost) pairs.push(at, part);
					});
				});
		}
		return Float64Array.from(pairs);
	}

	/**
	 * Keeps blocks for a snapshot: pairs [block, count] with their bytes one after another, and pairs that read as zeros.
	 * None of them may be kept already. Not durable yet; see `log` and `fd`. Throws NO_SPACE, IO, LOG_POISONED.
	 */
	keep(name: string, runs: Float64Array, bytes: Uint8Array, zeros: Float64Array): LogFile {
		const snapshot = this.#find(name);
		const { log } = snapshot;
		const memory = sys.pin(Math.max(BLOCK_SIZE, bytes.length));
		memory.bytes.set(bytes);
		let staged = 0;
		let at = 0;
		for (let i = 0; i + 1 < runs.length; i += 2) {
			this.#checkNotKept(snapshot, runs[i]!, runs[i + 1]!);
			log.stageData(runs[i]!, runs[i + 1]!, memory, at);
			at += runs[i + 1]! * BLOCK_SIZE;
			staged++;
		}
		for (let i = 0; i + 1 < zeros.length; i += 2) {
			this.#checkNotKept(snapshot, zeros[i]!, zeros[i + 1]!);
			log.stageZero(zeros[i]!, zeros[i + 1]!, "zero");
			staged++;
		}
		snapshot.isDurable = false;
		if (log.commit() < staged) throw log.commitError!;
		return snapshot;
	}

	/** A block of which nothing can be kept for a snapshot, nor for older ones that look through it. */
	lose(name: string, block: number): void {
		this.#find(name).lost.add(block);
	}

	/** Clients that read a snapshot. Throws FILE_NOT_FOUND. */
	readersOf(name: string): number {
		return this.#find(name).readers;
	}

	/** Closes all logs cleanly. Throws IO. */
	close(): void {
		for (const { log } of this.#list) log.close();
		this.#list.length = 0;
	}

	/** The first content that was kept is the snapshot's; later content would be another time's. */
	#checkNotKept({ name, log }: Snapshot, block: number, count: number): void {
		log.resolve(block, count, (value) => assert(value === ABSENT, `a block of snapshot ${name} is kept twice`));
	}

	#find(name: string): Snapshot {
		const snapshot = this.#list.find((each) => each.name === name);
		if (snapshot === undefined) throw new VmsweepError("FILE_NOT_FOUND", `the disk has no snapshot ${name}`);
		return snapshot;
	}

	#order(): void {
		for (const [index, snapshot] of this.#list.entries()) snapshot.logs = this.#list.slice(index);
	}
}
