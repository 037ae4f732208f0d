// File systems that are full by nature: made once, packed, never written again. All of their own size is in use, and
// what lies behind it belongs to nobody that is known here.
//
//   | file system: used | rest: unknown |

import type { FileSystemMap, FileSystemReader } from "../../foundations/guest-map.ts";
import { readBytes } from "../../foundations/source.ts";
import { bytes, struct, u8, u16le, u32le, u64le, viewOf } from "../../foundations/struct.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import type { VolumeIdentity } from "./kept-volume.ts";
import { keptWhole } from "./kept-volume.ts";
import { cString, uuidText } from "./names.ts";

/** Superblock of SquashFS 4 (Linux, fs/squashfs/squashfs_fs.h). */
const Squashfs = struct("squashfs_super_block", 96, {
	magic: u32le(0x0),
	blockSize: u32le(0xc),
	majorVersion: u16le(0x1c),
	bytesUsed: u64le(0x28),
});

/** Superblock of EROFS (Linux, fs/erofs/erofs_fs.h). */
const EROFS_AT = 1024;
const Erofs = struct("erofs_super_block", 128, {
	magic: u32le(0x0),
	blockShift: u8(0xc),
	blocks: u32le(0x24),
	uuid: bytes(0x30, 16),
	label: bytes(0x40, 16),
});

/** Primary volume descriptor of ISO 9660 (ECMA-119, 8.4); the offsets there count from 1. */
const ISO_AT = 32768;
const Iso = struct("Primary Volume Descriptor", 2048, {
	type: u8(0x0),
	identifier: bytes(0x1, 5),
	label: bytes(0x28, 32),
	spaceSize: u32le(0x50),
	blockSize: u16le(0x80),
	created: bytes(0x32d, 16),
});

/** Superblock of cramfs (Linux, include/uapi/linux/cramfs_fs.h). */
const Cramfs = struct("cramfs_super", 64, { magic: u32le(0x0), size: u32le(0x4), label: bytes(0x30, 16) });

/** What a superblock says; null where there is none. */
type Found = { readonly identity: VolumeIdentity; readonly size: number } | null;

const named = (type: string, blockSize: number, uuid: string | null = null, label: string | null = null) => ({
	type,
	uuid,
	label: label === "" ? null : label,
	blockSize,
});

/** SquashFS. Like all readers here: null where it is something else, and only what the source throws. */
export const readSquashfs: FileSystemReader = fullyUsed(0, Squashfs.size, (view) => {
	const { magic, majorVersion, blockSize, bytesUsed } = Squashfs.at(view);
	if (magic !== 0x73717368 || majorVersion !== 4) return null;
	return { identity: named("squashfs", blockSize), size: bytesUsed };
});

export const readErofs: FileSystemReader = fullyUsed(EROFS_AT, Erofs.size, (view) => {
	const { magic, blockShift, blocks, uuid, label } = Erofs.at(view);
	if (magic !== 0xe0f5e1e2 || blockShift < 9 || blockShift > 16) return null;
	const text = uuid.every((byte) => byte === 0) ? null : uuidText(uuid);
	const blockSize = 2 ** blockShift;
	return { identity: named("erofs", blockSize, text, upToZero(label)), size: blocks * blockSize };
});

/** ISO 9660, also where UDF describes the same files (bridge). */
export const readIso9660: FileSystemReader = fullyUsed(ISO_AT, Iso.size, (view) => {
	const { type, identifier, label, spaceSize, blockSize, created } = Iso.at(view);
	if (type !== 1 || upToZero(identifier) !== "CD001" || blockSize === 0) return null;
	// Who made it had no other identity to give than the time, which is what other tools show.
	const time = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)$/.exec(upToZero(created));
	const uuid = time === null || Number(time[1]) === 0 ? null : time.slice(1).join("-");
	return {
		identity: named("iso9660", blockSize, uuid, upToZero(label).trimEnd()),
		size: spaceSize * blockSize,
	};
});

export const readCramfs: FileSystemReader = fullyUsed(0, Cramfs.size, (view) => {
	const { magic, size, label } = Cramfs.at(view);
	return magic === 0x28cd3d45 ? { identity: named("cramfs", 4096, null, upToZero(label)), size } : null;
});

const upToZero = (raw: Uint8Array): string => cString(raw) ?? "";

/** A reader that looks at one record at a fixed place. */
function fullyUsed(at: number, length: number, parse: (view: DataView) => Found): FileSystemReader {
	return async (volume): Promise<FileSystemMap | null> => {
		if (volume.size < at + length) return null;
		const found = parse(viewOf(await readBytes(volume, byteOffset(at), length)));
		if (found === null) return null;
		const { identity, size } = found;
		if (size < at || size > volume.size)
			return keptWhole(
				identity,
				"unknown",
				volume,
				`it says that it has ${size} bytes, its partition has ${volume.size}`,
			);
		return {
			...keptWhole(identity, "clean", volume, ""),
			kept: null,
			size: byteCount(size),
			usedBytes: byteCount(size),
			freeBytes: byteCount(0),
		};
	};
}
