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
import { type ImageFingerprint, openRawImage, type RawImage } from "../adapters/images/raw-image.ts";
import { ioError } from "../adapters/images/write-run.ts";
import { isDiskLocked, lockDisk } from "../adapters/os/locks.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { formatBytes, type LogPosition, logPosition } from "../foundations/units.ts";
import { closedPath, firstImagePath, secondImageRecordPath } from "./disk-paths.ts";
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

export interface OpenDiskOptions {
	/** Serve even though the second image was changed since the last clean close. For users who know why. */
	readonly acceptChangedImage?: boolean;
}

/** How far the second image stands by itself: see `SecondImageRecord.state`. */
export interface SecondImageStand {
	readonly state: SecondImageRecord["state"];
	readonly position: LogPosition;
}

/**
 * Opens a disk for its one server, and locks both images. Throws FILE_NOT_FOUND, DISK_DAMAGED, DISK_WRONG_VERSION,
 * DISK_LOCKED, IMAGE_LOCKED, DISK_IMAGES_MIXED, DISK_IMAGE_CHANGED or IO.
 */
export async function openDiskDirectory(path: string, options: OpenDiskOptions = {}): Promise<DiskDirectory> {
	const directory = resolve(path);
	const description = await readDiskDescription(directory);
	const first = await openFirstImage(directory, constants.O_RDWR);
	let second: RawImage | undefined;
	try {
		await lockDisk(first.fd, firstImagePath(directory));
		second = await openRawImage(secondImagePath(directory, description), "write");
		const record = await checkIdentity(directory, description, second);
		const closed = await readClosedRecord(directory);
		if (closed !== undefined && closed.uuid !== description.uuid)
			throw mixed(closedPath(directory), "is of another disk", "Remove it if the directory was put together by hand");
		if (closed?.second && !options.acceptChangedImage)
			checkUnchanged(second.path, closed.second, await second.fingerprint());
		await removeRecord(closedPath(directory));
		return new DiskDirectory(directory, description, first, second, closed !== undefined, record);
	} catch (error) {
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

/** An open disk: its description, its locked images, and the records about them. */
export class DiskDirectory implements AsyncDisposable {
	/** Absolute. */
	readonly path: string;
	readonly description: DiskDescription;
	readonly second: RawImage;
	/** False after a crash: the log then recovers to what was durable. */
	readonly wasClean: boolean;
	readonly #first: FileHandle;
	#record: SecondImageRecord;
	#isOpen = true;

	constructor(
		path: string,
		description: DiskDescription,
		first: FileHandle,
		second: RawImage,
		wasClean: boolean,
		record: SecondImageRecord,
	) {
		this.path = path;
		this.description = description;
		this.#first = first;
		this.second = second;
		this.wasClean = wasClean;
		this.#record = record;
	}

	/** Descriptor of first.log, open for reading and writing; it holds the disk's lock and stays ours to close. */
	get firstFd(): number {
		return this.#first.fd;
	}
	get firstPath(): string {
		return firstImagePath(this.path);
	}
	/** Host space that first.log takes, in bytes. */
	async firstHostBytes(): Promise<number> {
		// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
		return (await this.#first.stat()).blocks * 512;
	}
	/** The 16 bytes that first.log must carry. */
	get uuid(): Uint8Array {
		return uuidBytes(this.description.uuid);
	}
	/** What the record beside the second image says now. */
	get stand(): SecondImageStand {
		return { state: this.#record.state, position: logPosition(this.#record.position) };
	}

	/**
	 * Notes how far the second image stands; durable once resolved. Call with `needs-first-image` before the first
	 * change of a pass, and with `whole` only after the flush that ended one.
	 */
	async recordStand({ state, position }: SecondImageStand): Promise<void> {
		if (state === this.#record.state && position === this.#record.position && this.#record.disk === this.path) return;
		const { kind } = this.second;
		const record = { ...this.#record, disk: this.path, state, position };
		await writeRecord(secondImageRecordPath(this.path, this.second.path, kind), record);
		this.#record = record;
	}

	/**
	 * Ends a clean session: call it when the first image's log is closed. Both locks go with it.
	 * Where anything failed before, dispose instead: the next open then knows that it wasn't clean.
	 */
	async close(): Promise<void> {
		if (!this.#isOpen) return;
		try {
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
	{ uuid, size }: DiskDescription,
	second: RawImage,
): Promise<SecondImageRecord> {
	if (second.size !== size)
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

function checkUnchanged(path: string, closed: ImageFingerprint, now: ImageFingerprint | undefined): void {
	if (now === undefined || (closed.size === now.size && sameTime(BigInt(closed.changedNs), BigInt(now.changedNs))))
		return;
	const when = new Date(Number(BigInt(now.changedNs) / 1_000_000n)).toISOString();
	throw new VmsweepError(
		"DISK_IMAGE_CHANGED",
		`${path} was changed at ${when} by something else than vmsweep, and the first image no longer fits it. Restore the image; or, if only its time changed, serve with --accept-changed-image.`,
	);
}

/** Copies by some tools keep whole seconds only. */
const sameTime = (closed: bigint, now: bigint): boolean =>
	closed === now || (now % 1_000_000_000n === 0n && closed / 1_000_000_000n === now / 1_000_000_000n);

const mixed = (path: string, what: string, advice: string): VmsweepError =>
	new VmsweepError("DISK_IMAGES_MIXED", `${path} ${what}. ${advice}.`);
