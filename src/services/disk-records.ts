// A disk's records: the small JSON files that say what belongs together and how it was left.
//
//   web01/disk.json      what the disk is; written once, when it is created
//   web01/first.log      first image (binary; see the format document)
//   web01/second.raw     second image, unless an existing image elsewhere was adopted
//   web01/second.sums    checksums of the second image's blocks (binary; core/log/second-sums.ts)
//   web01/snapshots/     a record and a log per snapshot
//   web01/closed.json    there only while the disk is cleanly closed: how the second image looked then
//   IMAGE.vmsweep        beside the second image: which disk it belongs to, and how far it stands by itself
//
// The UUID stands in disk.json, in first.log and in IMAGE.vmsweep, so images of two disks can't be mixed up. A block
// device has no "beside": its record lies in the disk's directory, and nothing protects the device from being used
// for another disk while this one isn't served.

import { resolve } from "node:path";
import * as v from "valibot";
import { readRecord } from "../adapters/images/durable-json.ts";
import { MAX_DISK_BYTES } from "../core/log/format.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE } from "../foundations/units.ts";
import { closedPath, diskJsonPath, snapshotRecordPath } from "./disk-paths.ts";

/** Version of all records; another version is refused. */
export const RECORD_FORMAT = 1;
/** Largest disk that the first image's index can address. In bytes. */
export const DISK_BYTES_MAX = MAX_DISK_BYTES;
/** Smallest disk, in bytes. */
export const DISK_BYTES_MIN = 1024 * 1024;

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const size = v.pipe(count, v.minValue(DISK_BYTES_MIN), v.maxValue(DISK_BYTES_MAX), v.multipleOf(BLOCK_SIZE));
const position = count;
const uuid = v.pipe(v.string(), v.uuid());
const time = v.pipe(v.string(), v.isoTimestamp());
const fileMark = { size: count, changedNs: v.pipe(v.string(), v.regex(/^\d{1,20}$/)) };
const fingerprint = v.strictObject({
	...fileMark,
	/** The images below it, nearest first. */
	below: v.optional(v.array(v.strictObject({ ...fileMark, path: v.string() }))),
});

/** disk.json */
const DiskDescription = v.strictObject({
	format: v.literal(RECORD_FORMAT),
	uuid,
	size,
	created: time,
	/** Size that the disk is being given: whoever opens it goes on with that. */
	resizingTo: v.optional(size),
	second: v.strictObject({
		/** Relative to the disk's directory, or absolute. */
		path: v.pipe(v.string(), v.minLength(1)),
		kind: v.picklist(["file", "block-device"]),
		/** Said once and never probed again: a raw image's first bytes belong to the guest. Missing: raw. */
		format: v.optional(v.picklist(["raw", "qcow2"])),
		/** True where the image was there before the disk, so that it isn't ours to delete. */
		adopted: v.boolean(),
	}),
});
export type DiskDescription = v.InferOutput<typeof DiskDescription>;

/** IMAGE.vmsweep */
const SecondImageRecord = v.strictObject({
	format: v.literal(RECORD_FORMAT),
	about: v.string(),
	uuid,
	/** Directory of the disk, absolute, where it was last served. */
	disk: v.string(),
	/**
	 * `whole`: the image is the disk, and any tool may read it.
	 * `stands`: it is the disk as it was at `position`; newer writes are in the first image.
	 * `needs-first-image`: it is between two such states; alone it is worth nothing.
	 */
	state: v.picklist(["whole", "stands", "needs-first-image"]),
	/** While `needs-first-image`: the position at which it last stood by itself. */
	position,
	/** When it last did. Missing in records of older versions. */
	stoodAt: v.optional(time),
});
export type SecondImageRecord = v.InferOutput<typeof SecondImageRecord>;

/** snapshots/NAME.json */
const SnapshotRecord = v.strictObject({
	format: v.literal(RECORD_FORMAT),
	/** Its log's. */
	uuid,
	created: time,
	/** The disk's when it was taken. */
	size,
	position,
	/** Entries of the first image at that instant. */
	entry: count,
	/** Blocks that were rotten when they were to be kept; reading them is an error. */
	lost: v.optional(v.array(count)),
	/** `taking`: what it shows is still being moved to the second image. */
	state: v.picklist(["taking", "complete"]),
});
export type SnapshotRecord = v.InferOutput<typeof SnapshotRecord>;

/** closed.json */
const ClosedRecord = v.strictObject({
	format: v.literal(RECORD_FORMAT),
	uuid,
	/** How the second image looked when the disk was closed; null for a block device, which has no such marks. */
	second: v.nullable(fingerprint),
});
export type ClosedRecord = v.InferOutput<typeof ClosedRecord>;

/** For people who find the file and wonder. */
export const ABOUT_SECOND_IMAGE =
	"The image beside this file is the second image of a vmsweep disk. Don't change it with other tools while its state is needs-first-image.";

/** Absolute path of a disk's second image. */
export const secondImagePath = (directory: string, { second }: DiskDescription): string =>
	resolve(directory, second.path);

/** Reads disk.json. Throws FILE_NOT_FOUND where there is no disk, DISK_WRONG_VERSION or DISK_DAMAGED. */
export async function readDiskDescription(directory: string): Promise<DiskDescription> {
	const path = diskJsonPath(directory);
	const description = await readValidated(path, DiskDescription);
	if (description !== undefined) return description;
	throw new VmsweepError(
		"FILE_NOT_FOUND",
		`${directory} is no vmsweep disk (no ${path}). Name a disk's directory, or make one with "vmsweep create".`,
	);
}

/** Reads the record beside a second image; undefined where there is none. */
export const readSecondImageRecord = (path: string): Promise<SecondImageRecord | undefined> =>
	readValidated(path, SecondImageRecord);

/** Reads a snapshot's record; undefined where there is none. */
export const readSnapshotRecord = (directory: string, name: string): Promise<SnapshotRecord | undefined> =>
	readValidated(snapshotRecordPath(directory, name), SnapshotRecord);

/** Reads closed.json; undefined where the disk is open or wasn't closed cleanly. */
export const readClosedRecord = (directory: string): Promise<ClosedRecord | undefined> =>
	readValidated(closedPath(directory), ClosedRecord);

async function readValidated<Schema extends v.GenericSchema>(
	path: string,
	schema: Schema,
): Promise<v.InferOutput<Schema> | undefined> {
	const record = await readRecord(path);
	if (record === undefined) return undefined;
	const marked = v.safeParse(v.looseObject({ format: v.number() }), record);
	const version = marked.success ? marked.output.format : RECORD_FORMAT;
	if (version !== RECORD_FORMAT)
		throw new VmsweepError(
			"DISK_WRONG_VERSION",
			`${path} has format version ${version}; this vmsweep knows version ${RECORD_FORMAT}. Use the vmsweep that wrote it.`,
		);
	const parsed = v.safeParse(schema, record);
	if (parsed.success) return parsed.output;
	const [issue] = parsed.issues;
	const field = v.getDotPath(issue);
	const where = field === null ? "" : `"${field}": `;
	throw new VmsweepError("DISK_DAMAGED", `${path} is damaged (${where}${issue.message}). Restore it from a copy.`);
}

/** The 16 bytes of a UUID's text, in the order in which the text shows them. */
export function uuidBytes(uuid: string): Uint8Array {
	return Uint8Array.fromHex(uuid.replaceAll("-", ""));
}
