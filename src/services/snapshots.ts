// Snapshots of a served disk: named positions that stay readable, whatever the guest and the cleaner do afterwards.
//
//   take:    a durable view ─► record "taking" ─► fold the view into the second image ─► record "complete" ─► let go of the view
//   read:    an NBD export DISK@NAME, or `vmsweep map DISK@NAME`
//   delete:  what older snapshots need of it is copied to the next older one ─► record away ─► log away
//
// A crash while one is taken: the log still holds its instant, because the view held its segments until the end. So the
// next start takes the view again, at the same entry, and folds it again.

import { randomUUID } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { removeRecord, syncDirectory, writeRecord } from "../adapters/images/durable-json.ts";
import { ioError } from "../adapters/images/write-run.ts";
import { OsHostFile } from "../adapters/os/host-file.ts";
import { LOCATED_AT_ONCE, unpackSnapshotRuns } from "../adapters/plane/located.ts";
import { IN_NONE, IN_NOTHING, IN_ZEROS, type PlanePort, type ViewHandle } from "../adapters/plane/messages.ts";
import type { SnapshotSetup } from "../adapters/plane/snapshots.ts";
import { packRuns, piecesOf, unpackRuns } from "../core/cleaner/runs.ts";
import { formatFirstImage } from "../core/log/first-image.ts";
import { isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE, type ByteCount, byteCount } from "../foundations/units.ts";
import { makeDurable } from "./clean/make-durable.ts";
import { snapshotLogPath, snapshotRecordPath, snapshotsPath } from "./disk-paths.ts";
import { RECORD_FORMAT, readSnapshotRecord, type SnapshotRecord, uuidBytes } from "./disk-records.ts";
import { readFully, verifyBlocks } from "./verified-read.ts";

/** What a name may look like: it is a part of file names, export names and command lines. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
/** Snapshots of a disk at once; every read of the oldest looks through all of them. */
export const SNAPSHOTS_MAX = 64;
/** Blocks that a snapshot may lose to bit rot before cleaning stops for its sake. */
const LOST_MAX = 4000;
/** Blocks merged in one call. */
const MERGED_AT_ONCE = 256;

/** A snapshot as `vmsweep snapshot` and `status` show it. Sizes in bytes. */
export interface SnapshotStatus {
	readonly name: string;
	readonly created: string;
	/** Of the disk when it was taken. */
	readonly size: number;
	readonly position: number;
	/** Host space of what it kept of the second image so far. */
	readonly hostBytes: number;
	readonly complete: boolean;
}

/** A snapshot that clients can read. */
export interface ReadableSnapshot {
	readonly name: string;
	/** ISO 8601. */
	readonly created: string;
	readonly size: ByteCount;
}

/** How a snapshot is taken: by the disk's cleaner. */
export interface Folder {
	/** Makes the second image equal a durable view; undefined where the disk is being closed. */
	foldView(view: ViewHandle): Promise<number | undefined>;
}

interface OpenSnapshot {
	readonly name: string;
	record: SnapshotRecord;
	readonly file: FileHandle;
}

/** Positions only grow over a disk's life; entries begin anew where a lost first image was replaced. */
const olderFirst = (a: SnapshotRecord, b: SnapshotRecord): number =>
	a.position - b.position || a.entry - b.entry || a.created.localeCompare(b.created);

const statusOf = (
	name: string,
	{ created, size, position, state }: SnapshotRecord,
	hostBytes: number,
): SnapshotStatus => ({ name, created, size, position, hostBytes, complete: state === "complete" });

/** Throws USAGE where no snapshot can have this name. */
export function checkSnapshotName(name: string): void {
	if (NAME.test(name) && !name.endsWith(".new")) return;
	throw new VmsweepError(
		"USAGE",
		`"${name}" can't name a snapshot. Use 1 to 64 letters, digits, dots, underscores and hyphens, starting with a letter or digit.`,
	);
}

export class DiskSnapshots implements AsyncDisposable {
	readonly #directory: string;
	/** Oldest first. */
	readonly #list: OpenSnapshot[];

	private constructor(directory: string, list: OpenSnapshot[]) {
		this.#directory = directory;
		this.#list = list;
	}

	/** Opens a disk's snapshots; the caller holds the disk's lock. Throws DISK_DAMAGED, DISK_WRONG_VERSION or IO. */
	static async open(directory: string): Promise<DiskSnapshots> {
		const list: OpenSnapshot[] = [];
		try {
			for (const name of await snapshotNames(directory)) {
				const record = (await readSnapshotRecord(directory, name))!;
				list.push({ name, record, file: await openLog(directory, name) });
			}
		} catch (error) {
			for (const { file } of list) await file.close();
			throw error;
		}
		list.sort((a, b) => olderFirst(a.record, b.record));
		return new DiskSnapshots(directory, list);
	}

	/** Oldest first; the complete ones only. */
	readable(): ReadableSnapshot[] {
		return this.#complete.map(({ name, record: { created, size } }) => ({ name, created, size: byteCount(size) }));
	}

	/** Undefined for none. */
	get newest(): string | undefined {
		return this.#complete.at(-1)?.name;
	}

	get count(): number {
		return this.#list.length;
	}

	/** What the data plane opens at its start: complete snapshots, oldest first. */
	setups(): SnapshotSetup[] {
		return this.#complete.map((snapshot) => this.#setupOf(snapshot));
	}

	/** Instants of which views are needed again: of snapshots that a crash interrupted. */
	get entries(): number[] {
		return this.#list.filter(({ record }) => record.state === "taking").map(({ record }) => record.entry);
	}

	/** In bytes. Throws FILE_NOT_FOUND. */
	sizeOf(name: string): number {
		return this.#find(name).record.size;
	}

	async status(): Promise<SnapshotStatus[]> {
		return await Promise.all(
			// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
			this.#list.map(async ({ name, record, file }) => statusOf(name, record, (await file.stat()).blocks * 512)),
		);
	}

	/**
	 * Takes a snapshot of the disk as it is now. The cleaner does nothing else meanwhile.
	 * Throws USAGE (the name), FILE_EXISTS, DISK_STOPPED where the disk is closed first, NO_SPACE or IO.
	 */
	async take(name: string, size: number, plane: PlanePort, folder: Folder): Promise<SnapshotStatus> {
		checkSnapshotName(name);
		if (this.#list.some((each) => each.name === name))
			throw new VmsweepError("FILE_EXISTS", `there is a snapshot ${name} already. Choose another name.`);
		if (this.#list.length >= SNAPSHOTS_MAX)
			throw new VmsweepError("USAGE", `a disk can have ${SNAPSHOTS_MAX} snapshots. Delete one first.`);
		const view = await plane.ask("takeView");
		try {
			await makeDurable(plane, view);
			const created = new Date().toISOString();
			const { position, entry } = view;
			const record = {
				format: RECORD_FORMAT,
				uuid: randomUUID(),
				created,
				size,
				position,
				entry,
				state: "taking",
			} as const;
			const snapshot = { name, record, file: await createLog(this.#directory, name, record) };
			this.#list.push(snapshot);
			await writeRecord(snapshotRecordPath(this.#directory, name), record);
			await this.#finish(snapshot, view, plane, folder);
		} catch (error) {
			await this.#forget(name);
			throw error;
		} finally {
			await plane.ask("releaseView", view.id);
		}
		return (await this.status()).find((each) => each.name === name)!;
	}

	/** Goes on with snapshots that a crash interrupted. Returns the names of those whose instant is lost: they are removed. */
	async resume(plane: PlanePort, folder: Folder): Promise<string[]> {
		const lost: string[] = [];
		for (const snapshot of this.#list.filter(({ record }) => record.state === "taking")) {
			const view = await plane.ask("recovered", snapshot.record.entry);
			if (view === null) {
				lost.push(snapshot.name);
				await this.#forget(snapshot.name);
				continue;
			}
			try {
				await this.#finish(snapshot, view, plane, folder);
			} catch (error) {
				// The disk is being closed: until its log is, the view must hold what the next start needs.
				if (isVmsweepError(error, "DISK_STOPPED")) throw error;
				// Cleaning goes on after this, and what it moves must never be folded over.
				await this.#forget(snapshot.name);
				await plane.ask("releaseView", view.id);
				throw error;
			}
			await plane.ask("releaseView", view.id);
		}
		return lost;
	}

	/**
	 * Deletes a snapshot; the cleaner does nothing else meanwhile. Throws FILE_NOT_FOUND, DISK_LOCKED where clients read it,
	 * NO_SPACE or IO.
	 */
	async delete(name: string, plane: PlanePort): Promise<void> {
		const snapshot = this.#find(name);
		if (snapshot.record.state === "complete") await refuseReaders(name, plane);
		const older = this.#complete[this.#complete.indexOf(snapshot) - 1];
		if (older !== undefined) await this.#merge(snapshot, older, plane);
		await plane.ask("removeSnapshot", name);
		await this.#forget(name);
	}

	async close(): Promise<void> {
		for (const { file } of this.#list.splice(0)) await file.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	get #complete(): readonly OpenSnapshot[] {
		return this.#list.filter(({ record }) => record.state === "complete");
	}

	#find(name: string): OpenSnapshot {
		const snapshot = this.#list.find((each) => each.name === name);
		if (snapshot !== undefined) return snapshot;
		throw new VmsweepError(
			"FILE_NOT_FOUND",
			`${this.#directory} has no snapshot ${name}. List them: vmsweep snapshot.`,
		);
	}

	#setupOf({ name, record, file }: OpenSnapshot): SnapshotSetup {
		return {
			name,
			fd: file.fd,
			path: snapshotLogPath(this.#directory, name),
			uuid: uuidBytes(record.uuid),
			lost: record.lost ?? [],
		};
	}

	/** From its view on: the second image is made to equal it, and from then on whatever changes there is kept for it. */
	async #finish(snapshot: OpenSnapshot, view: ViewHandle, plane: PlanePort, folder: Folder): Promise<void> {
		if ((await folder.foldView(view)) === undefined)
			throw new VmsweepError("DISK_STOPPED", `the disk was closed before snapshot ${snapshot.name} was complete`);
		await plane.ask("addSnapshot", this.#setupOf(snapshot));
		try {
			await this.#record(snapshot, { ...snapshot.record, state: "complete" });
		} catch (error) {
			// The plane must not keep a descriptor that is about to be somebody else's.
			await plane.ask("removeSnapshot", snapshot.name);
			throw error;
		}
	}

	/** Notes durably that a snapshot has lost blocks, and tells the data plane. Throws IO where there are too many. */
	async lose(name: string, blocks: readonly number[], plane: PlanePort): Promise<void> {
		const snapshot = this.#find(name);
		const lost = [...new Set([...(snapshot.record.lost ?? []), ...blocks])];
		if (lost.length > LOST_MAX)
			throw new VmsweepError(
				"IO",
				`snapshot ${name} has lost ${lost.length} blocks to bit rot. Replace the storage; delete the snapshot to go on.`,
			);
		await this.#record(snapshot, { ...snapshot.record, lost });
		for (const block of blocks) await plane.ask("lose", { name, block });
	}

	/** Durable once resolved. */
	async #record(snapshot: OpenSnapshot, record: SnapshotRecord): Promise<void> {
		await writeRecord(snapshotRecordPath(this.#directory, snapshot.name), record);
		snapshot.record = record;
	}

	/** Older snapshots read what they don't have through this one: the next older one takes it over. */
	async #merge(from: OpenSnapshot, to: OpenSnapshot, plane: PlanePort): Promise<void> {
		const blocks = Math.min(from.record.size, to.record.size) / BLOCK_SIZE;
		for (let block = 0; block < blocks; block += LOCATED_AT_ONCE)
			await this.#mergePart(from, to, block, Math.min(LOCATED_AT_ONCE, blocks - block), plane);
	}

	async #mergePart(
		from: OpenSnapshot,
		to: OpenSnapshot,
		first: number,
		blocks: number,
		plane: PlanePort,
	): Promise<void> {
		const kept = await plane.ask("locateInSnapshot", { name: from.name, block: first, count: blocks, own: true });
		for (const { fd, at, ...run } of unpackSnapshotRuns(kept)) {
			if (fd === IN_NONE) continue;
			const missing = unpackRuns(await plane.ask("notKept", { name: to.name, runs: packRuns([run]) }));
			for (const { block, count } of missing.flatMap((each) => [...piecesOf(each, MERGED_AT_ONCE)])) {
				const none = new Float64Array(0);
				const runs = packRuns([{ block, count }]);
				if (fd === IN_NOTHING)
					await this.lose(
						to.name,
						Array.from({ length: count }, (_, j) => block + j),
						plane,
					);
				else if (fd === IN_ZEROS)
					await plane.ask("keep", { name: to.name, runs: none, bytes: new Uint8Array(0), zeros: runs });
				else {
					const bytes = new Uint8Array(count * BLOCK_SIZE);
					await readFully(fd, at + (block - run.block) * BLOCK_SIZE, bytes);
					verifyBlocks(bytes, block, await plane.ask("snapshotSums", { name: from.name, block, count }));
					await plane.ask("keep", { name: to.name, runs, bytes, zeros: none });
				}
			}
		}
	}

	async #forget(name: string): Promise<void> {
		const snapshot = this.#list.find((each) => each.name === name);
		if (snapshot === undefined) return;
		// As long as the record may be there, the next start finds the snapshot: until it is gone it stays in the list.
		await removeRecord(snapshotRecordPath(this.#directory, name));
		this.#list.splice(this.#list.indexOf(snapshot), 1);
		await snapshot.file.close();
		await rm(snapshotLogPath(this.#directory, name), { force: true });
	}
}

/** The snapshots of a disk that nobody serves, oldest first; `hostBytesOf` tells what a file takes of the host. Throws as `open`. */
export async function snapshotsAtRest(
	directory: string,
	hostBytesOf: (path: string) => Promise<number>,
): Promise<SnapshotStatus[]> {
	const found = await Promise.all(
		(await snapshotNames(directory)).map(async (name) => ({ name, record: await readSnapshotRecord(directory, name) })),
	);
	const there = found.flatMap(({ name, record }) => (record === undefined ? [] : [{ name, record }]));
	return await Promise.all(
		there
			.sort((a, b) => olderFirst(a.record, b.record))
			.map(async ({ name, record }) => statusOf(name, record, await hostBytesOf(snapshotLogPath(directory, name)))),
	);
}

/** Names of a disk's snapshots, in no order. Throws IO. */
export async function snapshotNames(directory: string): Promise<string[]> {
	const entries = await readdir(snapshotsPath(directory)).catch((error: NodeJS.ErrnoException) => {
		if (error.code === "ENOENT") return [];
		throw ioError(error, `${snapshotsPath(directory)}: reading the folder failed`);
	});
	return entries.filter((entry) => entry.endsWith(".json")).map((entry) => entry.slice(0, -".json".length));
}

async function refuseReaders(name: string, plane: PlanePort): Promise<void> {
	const readers = await plane.ask("snapshotReaders", name);
	if (readers > 0)
		throw new VmsweepError("DISK_LOCKED", `snapshot ${name} is in use by ${readers} clients. Detach them.`);
}

const openLog = (directory: string, name: string): Promise<FileHandle> =>
	open(snapshotLogPath(directory, name), "r+").catch((cause: NodeJS.ErrnoException) => {
		if (cause.code === "ENOENT")
			throw new VmsweepError(
				"DISK_DAMAGED",
				`${snapshotLogPath(directory, name)} is missing, and with it a part of snapshot ${name}. Put it back, or give the snapshot up by removing ${snapshotRecordPath(directory, name)}.`,
				{ cause },
			);
		throw ioError(cause, `${snapshotLogPath(directory, name)}: opening it failed`);
	});

/** An empty log for a new snapshot, durable with its name. */
async function createLog(directory: string, name: string, { uuid, size }: SnapshotRecord): Promise<FileHandle> {
	const path = snapshotLogPath(directory, name);
	try {
		await mkdir(snapshotsPath(directory), { recursive: true, mode: 0o700 });
		// Left over from a snapshot that was never recorded.
		const file = await open(path, "w+", 0o600);
		formatFirstImage(new OsHostFile(file.fd, path), {
			uuid: uuidBytes(uuid),
			diskBytes: byteCount(size),
			segmentBytes: SEGMENT_BYTES,
			limitBytes: 0,
		});
		await file.sync();
		await syncDirectory(snapshotsPath(directory));
		await syncDirectory(join(directory));
		return file;
	} catch (error) {
		throw ioError(error, `${path}: making it failed`);
	}
}

/** Smaller than a disk's: many snapshots keep little. */
const SEGMENT_BYTES = 1024 * 1024;
