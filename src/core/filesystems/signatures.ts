// Signatures: the marks by which file systems, volume managers and other owners of a volume make themselves known.
//
// A volume with the mark of something that is not read here is kept whole and named. One with two marks is kept,
// too: one of them is stale, and nothing on the disk says which. So the list is long rather than clever, and
// every mark is looked for at each of its places.

import { VmsweepError } from "../../foundations/errors.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { viewOf } from "../../foundations/struct.ts";
import { byteCount, byteOffset, roundDown } from "../../foundations/units.ts";

/** A mark: `bytes` at `at`, counted from the volume's start, or from its end where negative. */
interface Mark {
	readonly type: string;
	readonly at: number;
	readonly bytes: string;
}

const mark = (type: string, at: number, bytes: string): Mark => ({ type, at, bytes });

/**
 * Four labels of 256 KiB, two at each end of a volume whose size is cut to whole labels. Each holds a list of names
 * and values, the first of which is "version" (OpenZFS, "ZFS On-Disk Specification", chapter 1).
 */
const ZFS_LABEL_BYTES = 256 << 10;
const ZFS_NAMES_AT = (16 << 10) + 20;
const ZFS_NAMES = "\0\0\0\x07version\0";

/** `fs_magic` of UFS1 and UFS2 and the variants of HP-UX, in both byte orders (util-linux, superblocks/ufs.c). */
const ufsMagics: readonly string[] = [
	"\x00\x01\x19\x54",
	"\x19\x54\x01\x19",
	"\x00\x19\x56\x12",
	"\x00\x09\x50\x14",
	"\x00\x61\x21\x95",
	"\x05\x23\x19\x94",
].flatMap((magic) => [magic, magic.split("").reverse().join("")]);

/** Marks of everything but ext2, ext3 and ext4. Each string is one byte per character. */
const marks: readonly Mark[] = [
	mark("xfs", 0, "XFSB"),
	mark("btrfs", 0x10040, "_BHRfS_M"),
	mark("luks", 0, "LUKS\xba\xbe"),
	mark("luks", 0x4000, "SKUL\xba\xbe"),
	mark("ntfs", 3, "NTFS    "),
	mark("exfat", 3, "EXFAT   "),
	mark("bitlocker", 3, "-FVE-FS-"),
	mark("bitlocker", 424, "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01"), // BitLocker To Go, posing as FAT
	mark("refs", 3, "ReFS\0\0\0\0"),
	mark("vfat", 82, "FAT32   "),
	mark("vfat", 54, "FAT16   "),
	mark("vfat", 54, "FAT12   "),
	mark("vfat", 54, "FAT     "),
	...[0, 512, 1024, 1536].map((at) => mark("lvm-pv", at, "LABELONE")),
	...[4096, 8192, 16384, 65536].flatMap((page) =>
		["SWAPSPACE2", "SWAP-SPACE", "S1SUSPEND\0", "S2SUSPEND\0", "ULSUSPEND\0", "LINHIB0001"].map((text) =>
			mark("swap", page - 10, text),
		),
	),
	mark("f2fs", 1024, "\x10\x20\xf5\xf2"),
	mark("f2fs", 0x1400, "\x10\x20\xf5\xf2"),
	mark("erofs", 1024, "\xe2\xe1\xf5\xe0"),
	mark("bcachefs", 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
	mark("bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
	mark("md-raid", 0, "\xfc\x4e\x2b\xa9"),
	mark("md-raid", 4096, "\xfc\x4e\x2b\xa9"),
	mark("jfs", 0x8000, "JFS1"),
	mark("reiserfs", 0x10034, "ReIsErFs"),
	mark("reiserfs", 0x10034, "ReIsEr2Fs"),
	mark("reiserfs", 0x10034, "ReIsEr3Fs"),
	mark("reiserfs", 0x2034, "ReIsErFs"),
	mark("reiser4", 0x10000, "ReIsEr4"),
	mark("nilfs2", 1024, "\x02\0\0\0\0\0\x34\x34"),
	mark("squashfs", 0, "hsqs"),
	mark("cramfs", 0, "\x45\x3d\xcd\x28"),
	mark("iso9660", 0x8001, "CD001"),
	mark("udf", 0x8001, "BEA01"),
	mark("hfsplus", 1024, "H+\0\x04"),
	mark("hfsplus", 1024, "HX\0\x05"),
	mark("apfs", 32, "NXSB"),
	mark("zfs", 0x20000, "\x0c\xb1\xba\0\0\0\0\0"),
	mark("zfs", ZFS_NAMES_AT, ZFS_NAMES),
	mark("zfs", ZFS_LABEL_BYTES + ZFS_NAMES_AT, ZFS_NAMES),
	mark("ocfs2", 0x800, "OCFSV2"),
	mark("gfs2", 0x10000, "\x01\x16\x19\x70"),
	mark("vmfs", 0x100000, "\x0d\xd0\x01\xc0"),
	mark("ceph-bluestore", 0, "bluestore block device"),
	mark("dm-verity", 0, "verity\0\0"),
	mark("dm-integrity", 0, "integrt\0"),
	mark("dm-snapshot", 0, "SnAp"),
	mark("stratis", 512 + 4, "!Stra0tis\x86\xff\x02^\x41rh"),
	mark("vdo", 0, "dmvdo001"),
	mark("oracle-asm", 32, "ORCLDISK"),
	mark("intel-raid", -1024, "Intel Raid ISM Cfg"),
	mark("ddf-raid", -512, "\xde\x11\xde\x11"),
	...["\x6b", "\x6c", "\x6d"].map((version) => mark("drbd", -4096 + 0x3c, `\x83\x74\x02${version}`)),
	// newfs leaves what was in front: an older file system's superblock stays there, whole.
	...[0, 8, 64, 256].flatMap((kib) => ufsMagics.map((magic) => mark("ufs", kib * 1024 + 1372, magic))),
	mark("ldm", 0xc00, "PRIVHEAD"), // a Windows dynamic disk's first header (Linux, block/partitions/ldm.h)
	mark("befs", 32, "BFS1"),
	mark("befs", 32, "1SFB"),
	mark("befs", 512 + 32, "BFS1"),
	mark("befs", 512 + 32, "1SFB"),
	mark("bfs", 0, "\xce\xfa\xad\x1b"),
	mark("exfs", 0, "EXFS"),
	mark("hpfs", 0x2000, "\x49\xe8\x95\xf9"),
	mark("lvm1", 0, "HM\x01\0"),
	mark("mpool", 0, "mpoolDev"),
	mark("nss", 0x1000, "SPB5"),
	...[0x400, 0x1000, 0x2000].map((at) => mark("ocfs2", at, "OCFSV2")),
	mark("ocfs", 0x2000, "OracleCFS"),
	mark("romfs", 0, "-rom1fs-"),
	mark("ubifs", 0, "\x31\x18\x10\x06"),
	mark("vmfs", 0x200000, "\x5e\xf1\xab\x2f"),
	mark("vxfs", 0x400, "\xf5\xfc\x01\xa5"),
	mark("vxfs", 0x2000, "\xa5\x01\xfc\xf5"),
	mark("zonefs", 0, "SFOZ"),
];

/** Marks near the end whose place depends on the size: MD superblocks of versions 0.90 and 1.0, labels of ZFS. */
const endMarks = (size: number): readonly Mark[] => {
	const [md90, zfs] = [roundDown(size, 0x10000) - 0x10000, roundDown(size, ZFS_LABEL_BYTES)];
	return [
		mark("md-raid", md90, "\xfc\x4e\x2b\xa9"),
		mark("md-raid", md90, "\xa9\x2b\x4e\xfc"), // version 0.90 has its host's byte order
		mark("md-raid", roundDown(size - 0x2000, 0x1000), "\xfc\x4e\x2b\xa9"),
		mark("zfs", zfs - ZFS_LABEL_BYTES + ZFS_NAMES_AT, ZFS_NAMES),
		mark("zfs", zfs - 2 * ZFS_LABEL_BYTES + ZFS_NAMES_AT, ZFS_NAMES),
	].filter(({ at }) => at >= 0);
};

/** ext2, ext3 and ext4 share one magic number, in the superblock's `s_magic`. */
const extMark = mark("ext", 1024 + 0x38, "\x53\xef");

/** A mark that is there: whose, and which bytes of the volume it is. */
export interface FoundMark extends ByteRange {
	readonly type: string;
}

/** The names of all known owners whose mark is in the volume, without repeats; `ext` stands for the ext family. */
export async function findSignatures(volume: ByteSource): Promise<readonly string[]> {
	const places = await matching(volume);
	// ext alone is ext, in whatever state: its reader has words for that.
	const marks = places.length === 1 ? places : await plausible(volume, places);
	return [...new Set(marks.map(({ type }) => type))];
}

/** Throws VOLUME_DAMAGED where the volume has other marks than those of `type`, or none. */
export async function checkSoleOwner(volume: ByteSource, type: string): Promise<void> {
	const owners = await findSignatures(volume);
	if (owners.length === 1 && owners[0] === type) return;
	const names = owners.join(" and ") || "nothing";
	throw new VmsweepError("VOLUME_DAMAGED", `it has the marks of ${names}; wipe the stale one with wipefs`);
}

/** All marks in the volume, but ext's only where a superblock is around it: two bytes come about by chance. */
export async function findMarks(volume: ByteSource): Promise<readonly FoundMark[]> {
	return (await plausible(volume, await matching(volume))).map(({ type, start, bytes }) => ({
		type,
		start: byteOffset(start),
		length: byteCount(bytes.length),
	}));
}

async function matching(volume: ByteSource): Promise<Place[]> {
	const windows = new Map<number, Uint8Array>();
	/** Marks lie close together, so whole 4 KiB windows are read, each once. */
	const window = async (index: number): Promise<Uint8Array> => {
		const known = windows.get(index);
		if (known !== undefined) return known;
		const bytes = await readBytes(volume, byteOffset(index * WINDOW), Math.min(WINDOW, volume.size - index * WINDOW));
		windows.set(index, bytes);
		return bytes;
	};
	const found: Place[] = [];
	for (const place of placesIn(volume.size)) {
		const text = place.bytes;
		let same = true;
		for (let i = 0; same && i < text.length; i++) {
			const at = place.start + i;
			const bytes = await window(Math.floor(at / WINDOW));
			same = bytes[at % WINDOW] === text.charCodeAt(i);
		}
		if (same) found.push(place);
	}
	return found;
}

async function plausible(volume: ByteSource, places: readonly Place[]): Promise<readonly Place[]> {
	if (!places.some(({ type }) => type === "ext") || (await holdsExtSuperblock(volume))) return places;
	return places.filter(({ type }) => type !== "ext");
}

/**
 * True where the fields around ext's mark could be those of a superblock that some kernel would mount: block size,
 * groups, revision and creator as the format has them (Linux, Documentation/filesystems/ext4, "Super Block").
 */
async function holdsExtSuperblock(volume: ByteSource): Promise<boolean> {
	if (volume.size < 2048) return false;
	const view = viewOf(await readBytes(volume, byteOffset(1024), 1024));
	const word = (at: number): number => view.getUint32(at, true);
	const [inodes, blocks, firstBlock, logBlockSize] = [word(0x0), word(0x4), word(0x14), word(0x18)];
	const [blocksPerGroup, inodesPerGroup, creator, revision] = [word(0x20), word(0x28), word(0x48), word(0x4c)];
	return (
		inodes > 0 &&
		blocks + word(0x150) > 0 &&
		firstBlock <= 1 &&
		logBlockSize <= 6 &&
		blocksPerGroup > 0 &&
		inodesPerGroup > 0 &&
		creator <= 4 &&
		revision <= 1
	);
}

const WINDOW = 4096;

/** A mark at its place in a volume of a certain size. */
interface Place {
	readonly type: string;
	readonly start: number;
	readonly bytes: string;
}

function placesIn(size: number): Place[] {
	return [extMark, ...marks, ...endMarks(size)]
		.map(({ type, at, bytes }) => ({ type, start: at < 0 ? size + at : at, bytes }))
		.filter(({ start, bytes }) => start >= 0 && start + bytes.length <= size);
}

/**
 * A quick test for writes to a volume of `size` bytes: true where `bytes`, written at `at`, agree with all they overlap
 * of some mark's place other than ext's. Most writes to those places are ext's own and give false.
 */
export function signatureWatcher(size: number): (at: number, bytes: Uint8Array) => boolean {
	const places = placesIn(size).filter(({ type }) => type !== "ext");
	return (at, bytes) =>
		places.some(({ start, bytes: text }) => {
			const from = Math.max(start, at);
			const to = Math.min(start + text.length, at + bytes.length);
			if (from >= to) return false;
			for (let i = from; i < to; i++) if (bytes[i - at] !== text.charCodeAt(i - start)) return false;
			return true;
		});
}

/** Where marks may stand in a volume of `size` bytes: whole 4 KiB blocks, sorted, merged. */
export function signatureRanges(size: number): readonly ByteRange[] {
	const windows = [...new Set(placesIn(size).map(({ start }) => Math.floor(start / WINDOW)))].sort((a, b) => a - b);
	const ranges: { start: number; length: number }[] = [];
	for (const index of windows) {
		const last = ranges.at(-1);
		const length = Math.min(WINDOW, size - index * WINDOW);
		if (last !== undefined && last.start + last.length === index * WINDOW) last.length += length;
		else ranges.push({ start: index * WINDOW, length });
	}
	return ranges.map(({ start, length }) => ({ start: byteOffset(start), length: byteCount(length) }));
}
