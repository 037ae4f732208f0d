// Overwrites: writes to a file that were done one after the other, as the disjoint runs that remain visible.
//
// Painted from the newest to the oldest over the pieces that all their borders cut the file into; a piece that has its
// paint is skipped for good. So the cost is that of sorting, whatever the writes are.

/** A write of `bytes`, or of zeros (null), to `[start, end)`. */
export interface Overwrite {
	readonly start: number;
	readonly end: number;
	readonly bytes: Uint8Array | null;
}

/** What of `writes`, oldest first, is left to see: disjoint and by position. */
export function paint(writes: readonly Overwrite[]): Overwrite[] {
	const borders = [...new Set(writes.flatMap(({ start, end }) => [start, end]))].sort((a, b) => a - b);
	const pieceOf = new Map(borders.map((border, index) => [border, index]));
	const paintOf = Array.from<Overwrite | undefined>({ length: borders.length });
	// Where to look for the next piece without paint, shortened while it is followed.
	const next = new Int32Array(borders.length + 1).map((_, index) => index);
	const nextBare = (piece: number): number => {
		let at = piece;
		while (next[at] !== at) {
			next[at] = next[next[at]!]!;
			at = next[at]!;
		}
		return at;
	};
	for (const write of writes.toReversed()) {
		const last = pieceOf.get(write.end)!;
		for (let piece = nextBare(pieceOf.get(write.start)!); piece < last; piece = nextBare(piece)) {
			paintOf[piece] = write;
			next[piece] = piece + 1;
		}
	}
	return paintOf.flatMap((write, piece) => {
		if (write === undefined) return [];
		const [start, end] = [borders[piece]!, borders[piece + 1]!];
		return [{ start, end, bytes: write.bytes?.subarray(start - write.start, end - write.start) ?? null }];
	});
}
