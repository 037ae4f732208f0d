// Where a zstd frame ends (RFC 8878, section 3.1.1). Compressed clusters lie close together, so behind one frame the
// next may begin, and a decompressor that is given both unpacks both.

const MAGIC = 0xfd2fb528;
const BLOCK_HEADER_BYTES = 3;
const RLE = 1;
const RESERVED = 3;

/** Bytes of the frame that starts at byte 0; undefined where there is no whole frame. */
export function zstdFrameLength(bytes: Uint8Array): number | undefined {
	const at = (index: number): number => bytes[index] ?? 0;
	if (bytes.length < 6 || (at(0) | (at(1) << 8) | (at(2) << 16) | (at(3) << 24)) >>> 0 !== MAGIC) return undefined;
	const descriptor = at(4);
	const singleSegment = (descriptor & 0x20) !== 0;
	const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
	const sizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >>> 6]!;
	let end = 5 + (singleSegment ? 0 : 1) + dictionaryBytes + sizeBytes;
	for (let last = false; !last; ) {
		const header = at(end) | (at(end + 1) << 8) | (at(end + 2) << 16);
		const type = (header >>> 1) & 3;
		if (type === RESERVED) return undefined;
		last = (header & 1) !== 0;
		end += BLOCK_HEADER_BYTES + (type === RLE ? 1 : header >>> 3);
		if (end > bytes.length) return undefined;
	}
	if ((descriptor & 4) !== 0) end += 4;
	return end <= bytes.length ? end : undefined;
}
