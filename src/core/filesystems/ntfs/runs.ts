// Runs: where the clusters of a file's content lie ("mapping pairs").
//
//   | header: n bytes of length, m bytes of position | length | position, relative to the run before | … | 0 |
//
// A run without a position is a hole.

import { damaged } from "./open.ts";

/** A run of clusters of the volume. */
export interface Run {
	/** Number of its first cluster; null for a hole. */
	readonly cluster: number | null;
	readonly count: number;
}

/** More than any system file has; bounds memory. */
const MAX_RUNS = 1 << 20;

/** The runs of one file's content, from its first cluster on. */
export class RunList implements Iterable<Run> {
	readonly #runs: Run[] = [];
	/** Where in the content each run starts, in clusters. */
	readonly #starts: number[] = [];
	#length = 0;

	/** Clusters of content that are described so far. */
	get length(): number {
		return this.#length;
	}

	[Symbol.iterator](): Iterator<Run> {
		return this.#runs[Symbol.iterator]();
	}

	/**
	 * Appends the runs stored in `raw`: together `clusters` clusters, all inside a volume of `clusterCount`.
	 * Throws VOLUME_DAMAGED.
	 */
	append(raw: Uint8Array, clusters: number, clusterCount: number): void {
		let at = 0;
		let position = 0;
		let left = clusters;
		while (left > 0) {
			const header = raw[at++] ?? 0;
			const lengthBytes = header & 0xf;
			const positionBytes = header >> 4;
			if (lengthBytes === 0 || lengthBytes > 8 || positionBytes > 8 || at + lengthBytes + positionBytes > raw.length)
				throw damaged("a list of its runs of clusters is cut short; run chkdsk in the guest");
			const count = signed(raw, at, lengthBytes);
			at += lengthBytes;
			if (count <= 0 || count > left) throw damaged(`one of its runs has ${count} clusters; run chkdsk in the guest`);
			left -= count;
			if (positionBytes > 0) {
				position += signed(raw, at, positionBytes);
				at += positionBytes;
				if (position < 0 || position + count > clusterCount)
					throw damaged(`one of its runs lies at cluster ${position} of ${clusterCount}; run chkdsk in the guest`);
			}
			this.#push({ cluster: positionBytes > 0 ? position : null, count });
		}
	}

	#push(run: Run): void {
		if (this.#runs.length >= MAX_RUNS) throw damaged("one of its system files lies in more runs than a real one");
		this.#runs.push(run);
		this.#starts.push(this.#length);
		this.#length += run.count;
	}

	/** The rest of the run in which cluster `index` of the content lies, or null behind the end. */
	locate(index: number): Run | null {
		if (index < 0 || index >= this.#length) return null;
		let low = 0;
		let high = this.#runs.length - 1;
		while (low < high) {
			const middle = (low + high + 1) >> 1;
			if (this.#starts[middle]! <= index) low = middle;
			else high = middle - 1;
		}
		const { cluster, count } = this.#runs[low]!;
		const skip = index - this.#starts[low]!;
		return { cluster: cluster === null ? null : cluster + skip, count: count - skip };
	}
}

/** A signed little-endian number of 1 to 8 bytes; what is past 2^53 loses low bits but stays out of every range. */
function signed(raw: Uint8Array, at: number, length: number): number {
	let value = raw[at + length - 1]!;
	if (value >= 0x80) value -= 0x100;
	for (let i = length - 2; i >= 0; i--) value = value * 256 + raw[at + i]!;
	return value;
}
