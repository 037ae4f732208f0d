// Linux swap: which of its pages hold something is known only to the running guest.
//
//   | header page … SWAPSPACE2 | page 1 | page 2 | … | last page | rest |
//
// With the VM off for good nobody will ask for a page again, and all but the header is free. A hibernated system is
// not off: its memory lies in these pages, and the signature says so.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { FileSystemMap, ReadOptions } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { VolumeIdentity } from "../kept-volume.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import { cString, uuidText } from "../names.ts";
import {
	PAGE_SIZES,
	SIGNATURE_LENGTH,
	SIGNATURE_OLD,
	SIGNATURE_SWAP,
	SIGNATURES_HIBERNATED,
	SWAP_HEADER_AT,
	SwapHeader,
} from "./layout.ts";

const ONLY_THE_GUEST_KNOWS =
	"what lies in swap is known only to the running guest; with the VM off for good, use --vm-off";
const HIBERNATED = "a hibernated system lies in it; start the guest and shut it down";

/** A signature at the end of a first page of that size. */
interface Signature {
	readonly pageSize: number;
	readonly text: string;
}

/**
 * Maps a swap area, or returns null where it has no signature of one. It is kept whole but with `vmOff`. Throws only
 * what the source throws (IO, READ_BUDGET).
 */
export async function readSwap(volume: ByteSource, { vmOff }: ReadOptions): Promise<FileSystemMap | null> {
	const found = await findSignatures(volume);
	const [signature] = found;
	if (signature === undefined) return null;
	const identity = await identify(volume, signature);
	const keep = (why: string): FileSystemMap => keptWhole(identity, "clean", volume, why);
	try {
		if (found.some(({ text }) => SIGNATURES_HIBERNATED.includes(text))) return { ...keep(HIBERNATED), isAsleep: true };
		if (found.length > 1) return keep("it has the signatures of two page sizes; run mkswap in the guest");
		if (signature.text === SIGNATURE_OLD) return keep("it is swap of the format before Linux 2.2");
		const size = await sizeOf(volume, signature.pageSize);
		return vmOff ? describe(identity, signature.pageSize, size) : keep(ONLY_THE_GUEST_KNOWS);
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keep(why);
	}
}

async function findSignatures(volume: ByteSource): Promise<Signature[]> {
	const found: Signature[] = [];
	for (const pageSize of PAGE_SIZES) {
		if (pageSize > volume.size) break;
		const raw = await readBytes(volume, byteOffset(pageSize - SIGNATURE_LENGTH), SIGNATURE_LENGTH);
		const text = new TextDecoder("latin1").decode(raw);
		if ([SIGNATURE_SWAP, SIGNATURE_OLD, ...SIGNATURES_HIBERNATED].includes(text)) found.push({ pageSize, text });
	}
	return found;
}

/** Bytes from the first page to the last one. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
async function sizeOf(volume: ByteSource, pageSize: number): Promise<number> {
	const { version, lastPage } = SwapHeader.at(await header(volume));
	if (version !== 1)
		throw new VmsweepError("VOLUME_UNSUPPORTED", `it is swap of version ${version}, or of a big-endian guest`);
	const size = (lastPage + 1) * pageSize;
	if (lastPage < 1 || size > volume.size)
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			`it says that it has ${lastPage + 1} pages, more than its partition holds`,
		);
	return size;
}

const header = async (volume: ByteSource): Promise<DataView> =>
	viewOf(await readBytes(volume, byteOffset(SWAP_HEADER_AT), SwapHeader.size));

async function identify(volume: ByteSource, { pageSize, text }: Signature): Promise<VolumeIdentity> {
	const { uuid, label } = SwapHeader.at(await header(volume));
	const known = text !== SIGNATURE_OLD;
	return {
		type: "swap",
		uuid: known && uuid.some((byte) => byte !== 0) ? uuidText(uuid) : null,
		label: known ? cString(label) : null,
		blockSize: pageSize,
	};
}

function describe(identity: VolumeIdentity, pageSize: number, size: number): FileSystemMap {
	return {
		...identity,
		blockSize: byteCount(pageSize),
		state: "clean",
		size: byteCount(size),
		usedBytes: byteCount(pageSize),
		freeBytes: byteCount(size - pageSize),
		kept: null,
		warnings: [],
		*freeRuns(from, to) {
			const start = Math.max(from, pageSize);
			const end = Math.min(to, size);
			if (end > start) yield { start: byteOffset(start), length: byteCount(end - start) };
		},
	};
}
