// Owner names: the UUID and label by which an administrator knows a volume that is kept whole because nobody here can
// look inside. Only for owners that write them in one known place; they are for people, nothing is decided by them.

import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { viewOf } from "../../foundations/struct.ts";
import { byteOffset, roundDown } from "../../foundations/units.ts";
import { cString } from "./names.ts";

export interface OwnerNames {
	readonly uuid: string | null;
	readonly label: string | null;
}

const NONE: OwnerNames = { uuid: null, label: null };
const HEAD_BYTES = 8192;

/** The names in a volume of the given type, as `findSignatures` reports it. Throws what the source throws. */
export async function readOwnerNames(volume: ByteSource, type: string): Promise<OwnerNames> {
	if (type !== "luks" && type !== "md-raid") return NONE;
	const head = await readBytes(volume, byteOffset(0), Math.min(HEAD_BYTES, volume.size));
	return type === "luks" ? luksNames(head) : await mdNames(volume, head);
}

/** LUKS1 and LUKS2 headers (cryptsetup, "LUKS2 On-Disk Format Specification", binary header): text, both. */
function luksNames(head: Uint8Array): OwnerNames {
	if (head.length < 512 || cString(head.subarray(0, 4)) !== "LUKS") return NONE;
	const version = viewOf(head).getUint16(6);
	return { uuid: cString(head.subarray(168, 208)), label: version === 2 ? cString(head.subarray(24, 72)) : null };
}

/** MD's superblocks (Linux, include/uapi/linux/raid/md_p.h): version 1 at one of three places, or version 0.90. */
async function mdNames(volume: ByteSource, head: Uint8Array): Promise<OwnerNames> {
	const atEnd = async (at: number): Promise<Uint8Array> =>
		at < 0 ? new Uint8Array(0) : await readBytes(volume, byteOffset(at), Math.min(4096, volume.size - at));
	const places = [head, head.subarray(4096), await atEnd(roundDown(volume.size - 0x2000, 0x1000))];
	for (const block of places) {
		if (block.length < 256 || viewOf(block).getUint32(0, true) !== MD_MAGIC) continue;
		if (viewOf(block).getUint32(4, true) !== 1) continue;
		return { uuid: hex(block.subarray(16, 32)), label: cString(block.subarray(32, 64)) };
	}
	const old = await atEnd(roundDown(volume.size, 0x10000) - 0x10000);
	if (old.length < 256 || viewOf(old).getUint32(0, true) !== MD_MAGIC) return NONE;
	const words = [20, 52, 56, 60].map((at) => viewOf(old).getUint32(at, true).toString(16).padStart(8, "0"));
	return { uuid: words.join(":"), label: null };
}

const MD_MAGIC = 0xa92b4efc;

/** As mdadm prints it: four groups of eight digits. */
const hex = (raw: Uint8Array): string =>
	[0, 4, 8, 12]
		.map((at) => [...raw.subarray(at, at + 4)].map((byte) => byte.toString(16).padStart(2, "0")).join(""))
		.join(":");
