// The header of a qcow2 image: what kind of image it is, and where its tables are.
//
// Checked in this order: magic, version and features (anything unknown refuses, by name), then ranges. What passes is
// a geometry in which derived numbers are in range; the tables' own contents are checked where they are used.

import { VmsweepError } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { type ByteCount, byteCount, byteOffset, divCeil, formatBytes } from "../../../foundations/units.ts";
import type { ImageFile, WritableImageFile } from "../image-file.ts";
import * as layout from "./layout.ts";

/** What a header says. Offsets and sizes in bytes of the host file, unless said otherwise. */
export interface Qcow2Header {
	readonly version: 2 | 3;
	/** The guest's disk. */
	readonly size: ByteCount;
	readonly clusterBits: number;
	readonly clusterSize: number;
	/** Bits per reference count are 2^refcountOrder. */
	readonly refcountOrder: number;
	readonly refcountTableOffset: number;
	readonly refcountTableClusters: number;
	readonly l1Offset: number;
	/** Entries in the L1 table, of which the disk needs {@link l1Needed}. */
	readonly l1Entries: number;
	readonly l1Needed: number;
	/** Bytes of an entry of an L2 table, and how many a table has. */
	readonly l2EntryBytes: number;
	readonly l2Entries: number;
	readonly extendedL2: boolean;
	readonly compression: "deflate" | "zstd";
	readonly snapshotCount: number;
	readonly snapshotsOffset: number;
	/** The name of the image below, as it is in the header. */
	readonly backing: { readonly name: string; readonly format: string | null } | null;
	/** Data clusters are in a file of their own. `raw`: that file is a raw image of the disk by itself. */
	readonly dataFile: { readonly name: string | null; readonly raw: boolean } | null;
	/** Its reference counts were not written at the end ("lazy refcounts"). */
	readonly dirty: boolean;
	/** Somebody found it damaged and marked it. */
	readonly corrupt: boolean;
	/** Dirty bitmaps for incremental backups that are stored in the image. */
	readonly bitmapCount: number;
	/**
	 * There is something in the header that vmsweep doesn't know and may ignore. But it may refer to clusters, so what
	 * seems to be leaked need not be.
	 */
	readonly hasUnknownParts: boolean;
	/** Autoclear feature bits that vmsweep doesn't know: to be cleared before the first change. */
	readonly unknownAutoclear: boolean;
	readonly autoclear: { readonly high: number; readonly low: number };
}

/** Reads and checks the header. `path` is for messages. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function readHeader(file: ImageFile, path: string): Promise<Qcow2Header> {
	const damaged = (what: string): VmsweepError =>
		new VmsweepError("IMAGE_DAMAGED", `${path}: ${what}. Restore it from a copy, or try qemu-img check.`);
	const unsupported = (what: string): VmsweepError => new VmsweepError("IMAGE_UNSUPPORTED", `${path} ${what}.`);
	if (file.size < layout.HeaderV2.size) throw damaged(`it ends inside its qcow2 header (${file.size} bytes)`);
	const start = await readBytes(file, byteOffset(0), Math.min(file.size, 512));
	const view = viewOf(start);
	const v2 = layout.HeaderV2.at(view);
	if (v2.magic !== layout.QCOW2_MAGIC) throw damaged("it has no qcow2 header");
	const version = v2.version;
	if (version !== 2 && version !== 3) throw unsupported(`is a qcow2 image of version ${version}; 2 and 3 are read`);
	if (version === 3 && start.length < layout.HEADER_V3_LENGTH_MIN) throw damaged("it ends inside its qcow2 header");
	const v3 = version === 3 ? layout.HeaderV3.at(viewOf(padded(start, layout.HeaderV3.size))) : undefined;
	const headerLength = v3?.headerLength ?? layout.HeaderV2.size;
	const { clusterBits } = v2;
	if (clusterBits < 9 || clusterBits > 21) throw damaged(`its cluster size is 2^${clusterBits} bytes, not 2^9 to 2^21`);
	const clusterSize = 2 ** clusterBits;
	if (headerLength > clusterSize || (v3 !== undefined && headerLength < layout.HEADER_V3_LENGTH_MIN))
		throw damaged(`its header length is ${headerLength} bytes`);
	const first = await readBytes(file, byteOffset(0), Math.min(clusterSize, file.size));
	const extensionsEnd = v2.backingFileOffset > 0 ? Math.min(v2.backingFileOffset, first.length) : first.length;
	const extensions = readExtensions(first, headerLength, extensionsEnd, damaged);

	const incompatible = v3?.incompatibleLow ?? 0;
	const known = Object.values(layout.Incompatible).reduce((all, bit) => all | bit, 0);
	if ((incompatible & ~known) !== 0 || (v3?.incompatibleHigh ?? 0) !== 0) {
		const names = unknownFeatures(incompatible & ~known, v3?.incompatibleHigh ?? 0, extensions.featureNames);
		throw unsupported(
			`uses qcow2 features that vmsweep doesn't know: ${names.join(", ")}. Use a newer vmsweep, or rewrite it with qemu-img convert`,
		);
	}
	const has = (bit: number): boolean => (incompatible & bit) !== 0;
	if (v2.cryptMethod !== 0) {
		const method = v2.cryptMethod === 1 ? "AES" : v2.cryptMethod === 2 ? "LUKS" : `method ${v2.cryptMethod}`;
		throw unsupported(
			`is encrypted (${method}); what is used in it can't be read without its key. Serve it opened by qemu-nbd, and name that NBD address`,
		);
	}
	// Without its feature bit the byte belongs to a longer header of the future, or is padding.
	const compressionType = headerLength > layout.HEADER_V3_LENGTH_MIN ? (v3?.compressionType ?? 0) : 0;
	if (compressionType > 1)
		throw unsupported(`is compressed in a way that vmsweep doesn't know (type ${compressionType})`);
	if ((compressionType !== 0) !== has(layout.Incompatible.COMPRESSION))
		throw damaged("its compression type and the feature bit for it disagree");
	const extendedL2 = has(layout.Incompatible.EXTENDED_L2);
	if (extendedL2 && clusterBits < 14) throw damaged(`it has extended L2 entries with clusters of ${clusterSize} bytes`);

	const refcountOrder = v3?.refcountOrder ?? 4;
	if (refcountOrder > 6) throw damaged(`its reference counts have 2^${refcountOrder} bits, more than 64`);
	const l2EntryBytes = extendedL2 ? layout.EXTENDED_ENTRY_BYTES : layout.ENTRY_BYTES;
	const l2Entries = clusterSize / l2EntryBytes;
	const l1Needed = divCeil(v2.size, l2Entries * clusterSize);
	if (l1Needed * layout.ENTRY_BYTES > layout.L1_BYTES_MAX || v2.size > Number.MAX_SAFE_INTEGER)
		throw unsupported(`has a disk of ${formatBytes(v2.size)}, too large for its cluster size`);
	if (v2.l1Size < l1Needed)
		throw damaged(`its L1 table has ${v2.l1Size} entries, ${l1Needed} are needed for ${formatBytes(v2.size)}`);
	if (v2.l1Size * layout.ENTRY_BYTES > layout.L1_BYTES_MAX) throw damaged(`its L1 table has ${v2.l1Size} entries`);
	if (v2.l1TableOffset % clusterSize !== 0)
		throw damaged(`its L1 table is at byte ${v2.l1TableOffset}, inside a cluster`);
	if (v2.l1TableOffset + l1Needed * layout.ENTRY_BYTES > file.size)
		throw damaged(
			`its L1 table is at byte ${v2.l1TableOffset}, but the file ends at byte ${file.size}: it has been cut off`,
		);
	if (v2.snapshotCount > layout.SNAPSHOTS_MAX) throw damaged(`it has ${v2.snapshotCount} snapshots`);
	if (v2.snapshotCount > 0 && v2.snapshotsOffset % clusterSize !== 0)
		throw damaged(`its snapshot table is at byte ${v2.snapshotsOffset}, inside a cluster`);

	const autoclear = { high: v3?.autoclearHigh ?? 0, low: v3?.autoclearLow ?? 0 };
	return {
		version,
		size: byteCount(v2.size),
		clusterBits,
		clusterSize,
		refcountOrder,
		refcountTableOffset: v2.refcountTableOffset,
		refcountTableClusters: v2.refcountTableClusters,
		l1Offset: v2.l1TableOffset,
		l1Entries: v2.l1Size,
		l1Needed,
		l2EntryBytes,
		l2Entries,
		extendedL2,
		compression: compressionType === 1 ? "zstd" : "deflate",
		snapshotCount: v2.snapshotCount,
		snapshotsOffset: v2.snapshotsOffset,
		backing: backingOf(first, v2, extensions.backingFormat, damaged),
		dataFile: has(layout.Incompatible.DATA_FILE)
			? { name: extensions.dataFile, raw: (autoclear.low & layout.Autoclear.RAW_DATA_FILE) !== 0 }
			: null,
		dirty: has(layout.Incompatible.DIRTY),
		corrupt: has(layout.Incompatible.CORRUPT),
		bitmapCount: extensions.bitmapCount,
		hasUnknownParts: extensions.hasUnknown || headerLength > layout.HEADER_V3_LENGTH_KNOWN,
		unknownAutoclear: autoclear.high !== 0 || (autoclear.low & ~KNOWN_AUTOCLEAR) !== 0,
		autoclear,
	};
}

type Damaged = (what: string) => VmsweepError;

interface Extensions {
	readonly backingFormat: string | null;
	readonly dataFile: string | null;
	readonly bitmapCount: number;
	readonly hasUnknown: boolean;
	/** Bit → name, of incompatible features. */
	readonly featureNames: ReadonlyMap<number, string>;
}

function readExtensions(cluster: Uint8Array, from: number, to: number, damaged: Damaged): Extensions {
	const view = viewOf(cluster);
	let backingFormat: string | null = null;
	let dataFile: string | null = null;
	let bitmapCount = 0;
	let hasUnknown = false;
	const featureNames = new Map<number, string>();
	let at = from;
	while (at + layout.ExtensionHeader.size <= to) {
		const { type, length } = layout.ExtensionHeader.at(view, at);
		if (type === layout.Extension.END) break;
		const start = at + layout.ExtensionHeader.size;
		if (start + length > to) throw damaged(`its header extension at byte ${at} is ${length} bytes long`);
		const data = cluster.subarray(start, start + length);
		if (type === layout.Extension.BACKING_FORMAT) backingFormat = textOf(data);
		else if (type === layout.Extension.DATA_FILE) dataFile = textOf(data);
		else if (type === layout.Extension.BITMAPS) {
			if (length !== layout.BitmapsExtension.size) throw damaged(`its bitmaps extension is ${length} bytes long`);
			bitmapCount = layout.BitmapsExtension.read.count(view, start);
		} else if (type === layout.Extension.FEATURE_NAMES) readFeatureNames(data, featureNames);
		else if (type !== layout.Extension.ENCRYPTION) hasUnknown = true;
		at = start + Math.ceil(length / 8) * 8;
	}
	return { backingFormat, dataFile, bitmapCount, hasUnknown, featureNames };
}

function readFeatureNames(table: Uint8Array, names: Map<number, string>): void {
	const { size, read } = layout.FeatureName;
	const view = viewOf(table);
	for (let at = 0; at + size <= table.length; at += size)
		if (read.kind(view, at) === layout.FEATURE_KIND_INCOMPATIBLE)
			names.set(read.bit(view, at), textOf(table.subarray(at + 2, at + size)));
}

function unknownFeatures(low: number, high: number, names: ReadonlyMap<number, string>): string[] {
	const bits = Array.from({ length: 64 }, (_, bit) => bit);
	const set = bits.filter((bit) => ((bit < 32 ? low >>> bit : high >>> (bit - 32)) & 1) !== 0);
	return set.map((bit) => (names.has(bit) ? `"${names.get(bit)}" (bit ${bit})` : `bit ${bit}`));
}

function backingOf(
	cluster: Uint8Array,
	{ backingFileOffset, backingFileSize }: { readonly backingFileOffset: number; readonly backingFileSize: number },
	format: string | null,
	damaged: Damaged,
): Qcow2Header["backing"] {
	if (backingFileOffset === 0 || backingFileSize === 0) return null;
	if (backingFileSize > layout.BACKING_NAME_BYTES_MAX || backingFileOffset + backingFileSize > cluster.length)
		throw damaged(`the name of its backing file is at byte ${backingFileOffset}, ${backingFileSize} bytes long`);
	const name = textOf(cluster.subarray(backingFileOffset, backingFileOffset + backingFileSize));
	return name === "" ? null : { name, format };
}

/** Text up to the first zero byte. Control characters, which have no place in a name, become U+FFFD: it goes to terminals. */
function textOf(bytes: Uint8Array): string {
	const end = bytes.indexOf(0);
	const text = new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
	return text.replaceAll(/\p{Cc}/gu, "\ufffd");
}

function padded(bytes: Uint8Array, length: number): Uint8Array {
	if (bytes.length >= length) return bytes;
	const longer = new Uint8Array(length);
	longer.set(bytes);
	return longer;
}

const KNOWN_AUTOCLEAR = layout.Autoclear.BITMAPS | layout.Autoclear.RAW_DATA_FILE;

/**
 * Clears the autoclear bits that aren't known here: what they stand for will no longer be true. Durable when it resolves;
 * to be done before the first change of an image that has some. Throws IO.
 */
export async function clearUnknownAutoclear(file: WritableImageFile, { autoclear }: Qcow2Header): Promise<void> {
	const word = new Uint8Array(8);
	viewOf(word).setUint32(4, autoclear.low & KNOWN_AUTOCLEAR);
	await file.write(byteOffset(layout.HeaderV3.offset.autoclearHigh), word);
	await file.flush();
}
