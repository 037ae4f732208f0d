// Disk directory: opens a disk so that exactly one process has it, with the two images that belong together.
//
//   lock first.log ─► open and lock the second image ─► compare identities ─► compare with the last clean close
//                                                                                  │
//                     serve …  ◄── remove closed.json, durably ◄───────────────────┘
//                        └─► close: second image durable, its looks noted in closed.json
//
// Invariants
//  - nothing is changed before every check has passed
//  - closed.json exists only while nobody has the disk open and both images are complete: a crash leaves none
//  - the record beside the second image never claims more than is durable in that image

import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { resolve } from "node:path";
import { removeRecord, writeRecord } from "../adapters/images/durable-json.ts";
import { openSecondImage } from "../adapters/images/open-second.ts";
import { SpaceReturner } from "../adapters/images/punch.ts";
import type { FileMark, ImageFingerprint, SecondImage } from "../adapters/images/second-image.ts";
import { ioError } from "../adapters/images/write-run.ts";
import { isDiskLocked, lockDisk } from "../adapters/os/locks.ts";
import { isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import { byteCount, formatBytes, type LogPosition, logPosition } from "../foundations/units.ts";
import { closedPath, diskJsonPath, firstImagePath, secondImageRecordPath, secondSumsPath } from "./disk-paths.ts";
import {
	ABOUT_SECOND_IMAGE,
	type DiskDescription,
	RECORD_FORMAT,
	readClosedRecord,
	readDiskDescription,
	readSecondImageRecord,
	type SecondImageRecord,
	secondImagePath,
	uuidBytes,
} from "./disk-records.ts";
import { DiskSnapshots } from "./snapshots.ts";

export interface OpenDiskOptions {
	/** Serve even though the second image was changed since the last clean close. For users who know why. */
	readonly acceptChangedImage?: boolean;
}

/** How far the second image stands by itself: see `SecondImageRecord.state`. */
export interface SecondImageStand {
	readonly state: SecondImageRecord["state"];
	/** While it needs the first image: the position at which it was last whole. */
	readonly position: LogPosition;
	/** When it was last whole, ISO 8601; null where nobody noted it. */
	readonly stoodAt: string | null;
}

/** What an open disk is made of. */
interface DiskParts {
	readonly path: string;
	readonly description: DiskDescription;
	readonly first: FileHandle;
	readonly firstSpace: SpaceReturner;
	readonly second: SecondImage;
	readonly sums: FileHandle;
	readonly snapshots: DiskSnapshots;
	readonly record: SecondImageRecord;
	readonly wasClean: boolean;
	readonly wasChanged: boolean;
}

/**
 * Opens a disk for its one server, and locks both images. Throws FILE_NOT_FOUND, DISK_DAMAGED, DISK_WRONG_VERSION,
 * DISK_LOCKED, IMAGE_LOCKED, DISK_IMAGES_MIXED, DISK_IMAGE_CHANGED or IO.
 */
export async function openDiskDirectory(path: string, options: OpenDiskOptions = {}): Promise<DiskDirectory> {
	const directory = resolve(path);
	const description = await readDiskDescription(directory);
	const first = await openFirstImage(directory, constants.O_RDWR);
	let second: SecondImage | undefined;
	let sums: FileHandle | undefined;
	let snapshots: DiskSnapshots | undefined;
	try {
		await lockDisk(first.fd, firstImagePath(directory));
		second = await openSecond(secondImagePath(directory, description), description.second.format ?? "raw");
		// A device may be larger than the disk; what lies behind is none of ours.
		const used = byteCount(Math.max(description.size, description.resizingTo ?? 0));
		if (second.kind === "block-device" && second.size > used) await second.resize(used);
		const record = await checkIdentity(directory, description, second);
		const closed = await readClosedRecord(directory);
		if (closed !== undefined && closed.uuid !== description.uuid)
			throw mixed(closedPath(directory), "is of another disk", "Remove it if the directory was put together by hand");
		const change = closed?.second ? changeOf(second.path, closed.second, await second.fingerprint()) : undefined;
		if (change !== undefined && !options.acceptChangedImage) throw change;
		sums = await openSums(directory, { forget: change !== undefined });
		snapshots = await DiskSnapshots.open(directory);
		await removeRecord(closedPath(directory));
		const how = { wasClean: closed !== undefined, wasChanged: change !== undefined };
		const firstSpace = await SpaceReturner.of(first, firstImagePath(directory), "file");
		return new DiskDirectory({
			path: directory,
			description,
			first,
			firstSpace,
			second,
			sums,
			snapshots,
			record,
			...how,
		});
	} catch (error) {
		await snapshots?.close();
		await sums?.close();
		await second?.close();
		await first.close();
		throw error;
	}
}

/** True where some process serves the disk. Takes no lock. Throws as {@link openDiskDirectory} does for a missing disk. */
export async function isDiskServed(path: string): Promise<boolean> {
	const directory = resolve(path);
	await readDiskDescription(directory);
	const first = await openFirstImage(directory, constants.O_RDONLY);
	try {
		return isDiskLocked(first.fd);
	} finally {
		await first.close();
	}
}

/** Throws DISK_DAMAGED where the image is gone: half of the disk is missing, whatever else is wrong. */
async function openSecond(...[path, format]: Parameters<typeof openSecondImage>): Promise<SecondImage> {
	try {
		return await openSecondImage(path, format);
	} catch (error) {
		if (!isVmsweepError(error, "FILE_NOT_FOUND")) throw error;
		throw new VmsweepError(
			"DISK_DAMAGED",
			`${path}, the disk's second image, is missing. Put it back where it was; most of the disk's content is in it.`,
			{ cause: error },
		);
	}
}

/** Host space, in bytes. */
export interface HostBytes {
	readonly first: number;
	readonly second: number;
}

/** An open disk: its description, its locked images, and the records about them. */
export class DiskDirectory implements AsyncDisposable {
	/** Absolute. */
	readonly path: string;
	readonly second: SecondImage;
	readonly snapshots: DiskSnapshots;
	/** Gives space of first.log back. */
	readonly firstSpace: SpaceReturner;
	/** Somebody else changed the second image, and the user accepts it. */
	readonly wasChanged: boolean;
	/** False after a crash: the log then recovers to what was durable. */
	readonly wasClean: boolean;
	#description: DiskDescription;
	readonly #first: FileHandle;
	readonly #sums: FileHandle;
	#record: SecondImageRecord;
	/** The file says what `#record` says. */
	#isRecordKnown = true;
	#isOpen = true;

	constructor({ path, description, first, firstSpace, second, sums, snapshots, record, ...how }: DiskParts) {
		this.path = path;
		this.#description = description;
		this.#first = first;
		this.firstSpace = firstSpace;
		this.second = second;
		this.#sums = sums;
		this.snapshots = snapshots;
		this.wasClean = how.wasClean;
		this.wasChanged = how.wasChanged;
		this.#record = record;
	}

	get description(): DiskDescription {
		return this.#description;
	}
	/** Replaces disk.json; durable once resolved. */
	async describe(description: DiskDescription): Promise<void> {
		await writeRecord(diskJsonPath(this.path), description);
		this.#description = description;
	}
	/** Descriptor of the checksums of the second image's blocks; stays ours to close. */
	get sumsFd(): number {
		return this.#sums.fd;
	}
	get sumsPath(): string {
		return secondSumsPath(this.path);
	}
	/** Descriptor of first.log, open for reading and writing; it holds the disk's lock and stays ours to close. */
	get firstFd(): number {
		return this.#first.fd;
	}
	get firstPath(): string {
		return firstImagePath(this.path);
	}
	/** Host space that both images take. */
	async hostBytes(): Promise<HostBytes> {
		const [first, second] = await Promise.all([this.#first.stat(), this.second.allocatedBytes()]);
		// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
		return { first: first.blocks * 512, second };
	}
	/** The 16 bytes that first.log must carry. */
	get uuid(): Uint8Array {
		return uuidBytes(this.description.uuid);
	}
	/** What the record beside the second image says now. */
	get stand(): SecondImageStand {
		const { state, position, stoodAt } = this.#record;
		return { state, position: logPosition(position), stoodAt: stoodAt ?? null };
	}

	/**
	 * Notes how far the second image stands; durable once resolved. Call with `needs-first-image` before the first
	 * change of a pass, and with `whole` only after the flush that ended one.
	 */
	async recordStand({ state, position, stoodAt }: SecondImageStand): Promise<void> {
		const isSame = state === this.#record.state && position === this.#record.position;
		if (isSame && this.#record.disk === this.path && this.#isRecordKnown) return;
		const { kind } = this.second;
		const { stoodAt: _, ...rest } = this.#record;
		const record = { ...rest, disk: this.path, state, position, ...(stoodAt === null ? {} : { stoodAt }) };
		// Where writing fails, the file may be the old one or the new one: whatever comes next is written.
		this.#isRecordKnown = false;
		await writeRecord(secondImageRecordPath(this.path, this.second.path, kind), record);
		this.#isRecordKnown = true;
		this.#record = record;
	}

	/**
	 * Ends a clean session: call it when the first image's log is closed. Both locks go with it.
	 * Where anything failed before, dispose instead: the next open then knows that it wasn't clean.
	 */
	async close(): Promise<void> {
		if (!this.#isOpen) return;
		try {
			// The data plane, which wrote its tables, is gone.
			this.second.writeTablesBy(undefined);
			await this.second.flushAll();
			const fingerprint = await this.second.fingerprint();
			const { uuid } = this.description;
			await writeRecord(closedPath(this.path), { format: RECORD_FORMAT, uuid, second: fingerprint ?? null });
		} finally {
			await this[Symbol.asyncDispose]();
		}
	}

	/** Lets go of the disk as it is, without calling it cleanly closed. */
	async [Symbol.asyncDispose](): Promise<void> {
		if (!this.#isOpen) return;
		this.#isOpen = false;
		await this.snapshots.close();
		await this.#sums.close();
		await this.second.close();
		await this.#first.close();
	}
}

/** The record that a second image starts with. */
export const newSecondImageRecord = (uuid: string, directory: string): SecondImageRecord => ({
	format: RECORD_FORMAT,
	about: ABOUT_SECOND_IMAGE,
	uuid,
	disk: directory,
	state: "whole",
	position: 0,
	stoodAt: new Date().toISOString(),
});

async function openFirstImage(directory: string, flags: number): Promise<FileHandle> {
	const path = firstImagePath(directory);
	return await open(path, flags).catch((cause: NodeJS.ErrnoException) => {
		if (cause.code === "ENOENT")
			throw new VmsweepError("DISK_DAMAGED", `${path} is missing, and with it the disk's newest data. Put it back.`, {
				cause,
			});
		if (cause.code === "EACCES" || cause.code === "EPERM")
			throw new VmsweepError("IO", `${path}: permission denied. Run as the user who made the disk.`, { cause });
		throw ioError(cause, `${path}: opening it failed`);
	});
}

/** Are these two images of one disk? */
async function checkIdentity(
	directory: string,
	{ uuid, size, resizingTo }: DiskDescription,
	second: SecondImage,
): Promise<SecondImageRecord> {
	if (second.size !== size && second.size !== resizingTo)
		throw new VmsweepError(
			"DISK_IMAGE_CHANGED",
			`${second.path} has ${second.size} bytes, but the disk has ${size} (${formatBytes(size)}). Restore the image's size.`,
		);
	const recordPath = secondImageRecordPath(directory, second.path, second.kind);
	const record = await readSecondImageRecord(recordPath);
	if (record === undefined)
		throw mixed(second.path, `has no record ${recordPath}, so it may be of another disk`, "Put that file back");
	if (record.uuid !== uuid)
		throw mixed(
			second.path,
			`belongs to disk ${record.uuid} (${record.disk}), not to ${uuid}`,
			"Put the right image in its place",
		);
	return record;
}

/** The checksums of the second image's blocks; a disk of an older version has none yet. */
async function openSums(directory: string, { forget }: { readonly forget: boolean }): Promise<FileHandle> {
	const path = secondSumsPath(directory);
	try {
		const file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
		if (forget) {
			await file.truncate(0);
			await file.sync();
		}
		return file;
	} catch (error) {
		throw ioError(error, `${path}: opening it failed`);
	}
}

/** What somebody else did to the second image, or to one below it, since it was closed; undefined for nothing. */
function changeOf(path: string, closed: ImageFingerprint, now: ImageFingerprint | undefined): VmsweepError | undefined {
	if (now === undefined) return undefined;
	if (!looksAlike(closed, now)) return changed(path, now, "the first image no longer fits it");
	for (const [index, below] of (now.below ?? []).entries()) {
		const before = closed.below?.[index];
		if (before !== undefined && !looksAlike(before, below))
			return changed(below.path, below, `${path}, which lies on it, no longer fits it`);
	}
	return undefined;
}

const looksAlike = (closed: FileMark, now: FileMark): boolean =>
	closed.size === now.size && sameTime(BigInt(closed.changedNs), BigInt(now.changedNs));

function changed(path: string, now: FileMark, consequence: string): VmsweepError {
	const when = new Date(Number(BigInt(now.changedNs) / 1_000_000n)).toISOString();
	return new VmsweepError(
		"DISK_IMAGE_CHANGED",
		`${path} was changed at ${when} by something else than vmsweep, and ${consequence}. Restore the image; or, if only its time changed, serve with --accept-changed-image.`,
	);
}

/** Copies by some tools keep whole seconds only. */
const sameTime = (closed: bigint, now: bigint): boolean =>
	closed === now || (now % 1_000_000_000n === 0n && closed / 1_000_000_000n === now / 1_000_000_000n);

const mixed = (path: string, what: string, advice: string): VmsweepError =>
	new VmsweepError("DISK_IMAGES_MIXED", `${path} ${what}. ${advice}.`);
