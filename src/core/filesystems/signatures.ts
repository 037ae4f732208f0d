// Signatures: the marks by which file systems, volume managers and other owners of a volume make themselves known.
//
// A volume with the mark of something that is not read here is kept whole and named. One with two marks is kept,
// too: one of them is stale, and nothing on the disk says which. So the list is long rather than clever, and
// every mark is looked for at each of its places.

import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";

/** A mark: `bytes` at `at`, counted from the volume's start, or from its end where negative. */
interface Mark {
	readonly type: string;
	readonly at: number;
	readonly bytes: string;
}

const mark = (type: string, at: number, bytes: string): Mark => ({ type, at, bytes });

/** Marks of everything but ext2, ext3 and ext4. Each string is one byte per character. */
const marks: readonly Mark[] = [
	mark("xfs", 0, "XFSB"),
	mark("btrfs", 0x10040, "_BHRfS_M"),
	mark("luks", 0, "LUKS\xba\xbe"),
	mark("luks", 0x4000, "SKUL\xba\xbe"),
	mark("ntfs", 3, "NTFS    "),
	mark("exfat", 3, "EXFAT   "),
	mark("bitlocker", 3, "-FVE-FS-"),
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
	mark("ocfs2", 0x800, "OCFSV2"),
	mark("gfs2", 0x10000, "\x01\x16\x19\x70"),
	mark("vmfs", 0x100000, "\x0d\xd0\x01\xc0"),
	mark("ceph-bluestore", 0, "bluestore block device"),
	mark("dm-verity", 0, "verity\0\0"),
	mark("dm-integrity", 0, "integrt\0"),
	mark("dm-snapshot", 0, "SnAp"),
	mark("drbd", -4096 + 0x3c, "\x83\x74\x02\x6b"),
	mark("drbd", -4096 + 0x3c, "\x83\x74\x02\x6c"),
];

/** MD superblocks of versions 0.90 and 1.0 lie at the end, at a place that depends on the size. */
const endMarks = (size: number): readonly Mark[] => [
	mark("md-raid", Math.floor(size / 0x10000) * 0x10000 - 0x10000, "\xfc\x4e\x2b\xa9"),
	mark("md-raid", Math.floor((size - 0x2000) / 0x1000) * 0x1000, "\xfc\x4e\x2b\xa9"),
];

/** ext2, ext3 and ext4 share one magic number, in the superblock's `s_magic`. */
const extMark = mark("ext", 1024 + 0x38, "\x53\xef");

/** The names of all known owners whose mark is in the volume, without repeats; `ext` stands for the ext family. */
export async function findSignatures(volume: ByteSource): Promise<readonly string[]> {
	const windows = new Map<number, Uint8Array>();
	/** Marks lie close together, so whole 4 KiB windows are read, each once. */
	const window = async (index: number): Promise<Uint8Array> => {
		const known = windows.get(index);
		if (known !== undefined) return known;
		const bytes = await readBytes(volume, byteOffset(index * WINDOW), Math.min(WINDOW, volume.size - index * WINDOW));
		windows.set(index, bytes);
		return bytes;
	};
	const found = new Set<string>();
	for (const place of placesIn(volume.size)) {
		const text = place.bytes;
		let same = true;
		for (let i = 0; same && i < text.length; i++) {
			const at = place.start + i;
			const bytes = await window(Math.floor(at / WINDOW));
			same = bytes[at % WINDOW] === text.charCodeAt(i);
		}
		if (same) found.add(place.type);
	}
	return [...found];
}

const WINDOW = 4096;

function placesIn(size: number): { type: string; start: number; bytes: string }[] {
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
