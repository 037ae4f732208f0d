// The checksum algorithms of btrfs, by the number in the superblock (`btrfs_csum_type`).

import { blake2b } from "@noble/hashes/blake2.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { crc32c } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { xxhash64 } from "../../../foundations/xxhash64.ts";
import { CHECKSUM_FIELD } from "./layout.ts";

/** The checksum of a byte array; at most 32 bytes, as stored. */
type Checksum = (data: Uint8Array) => Uint8Array;

const algorithms: ReadonlyMap<number, Checksum> = new Map<number, Checksum>([
	[0, crc32cBytes],
	[1, xxhash64],
	[2, sha256],
	[3, (data) => blake2b(data, { dkLen: 32 })],
]);

/** Checks blocks that begin with a checksum over all that follows the checksum's field. */
export type BlockCheck = (block: Uint8Array) => boolean;

/** The check for a superblock's `checksumType`. Throws VOLUME_UNSUPPORTED for one that is not known. */
export function blockCheck(checksumType: number): BlockCheck {
	const checksum = algorithms.get(checksumType);
	if (checksum === undefined)
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			`it has checksums of type ${checksumType}; a newer vmsweep may read them`,
		);
	return (block) => checksum(block.subarray(CHECKSUM_FIELD)).every((byte, at) => block[at] === byte);
}

function crc32cBytes(data: Uint8Array): Uint8Array {
	const sum = new Uint8Array(4);
	viewOf(sum).setUint32(0, ~crc32c(0xffffffff, data) >>> 0, true);
	return sum;
}
