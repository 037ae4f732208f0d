// Metadata view: the volume's metadata blocks as log recovery would leave them. Nothing is ever written.
//
//   home      … AGF 3 (old) … tree block (old) …        read through the view:  AGF 3 (new), tree block (new)
//   overlay   { address of AGF 3 → new bytes, … }  ──────────────────────────────┘
//
// A replayed block still carries the checksum and the log position of the version that it was made from: kernels make
// both anew when they write it. So its checksum is not looked at, but all else about it is.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { byteOffset } from "../../../foundations/units.ts";

const MAX_REQUEST_BYTES = 256 << 10;
/** Requests under way at once, so that a disk with latency is kept busy. */
const MAX_PARALLEL = 16;

/** A metadata block as recovery would leave it. */
export interface MetadataBlock {
	readonly bytes: Uint8Array;
	/** Changed by the log, so its stored checksum is stale. */
	readonly replayed: boolean;
}

/** What the log changes, by byte position in the volume; a text says why a block can't be told. */
export type Overlay = ReadonlyMap<number, Uint8Array | string>;

export class MetadataView {
	readonly #volume: ByteSource;
	readonly #overlay: Overlay;

	constructor(volume: ByteSource, overlay: Overlay) {
		this.#volume = volume;
		this.#overlay = overlay;
	}

	/** Blocks that the log changes. */
	get replayedCount(): number {
		return this.#overlay.size;
	}

	/** Reads one block of `length` bytes. Throws VOLUME_DAMAGED where the log leaves it in an unknown state. */
	async read(at: number, length: number): Promise<MetadataBlock> {
		const found = this.#lookUp(at, length);
		return found ?? { bytes: await readBytes(this.#volume, byteOffset(at), length), replayed: false };
	}

	/** Reads blocks of `length` bytes, several at once, neighbours together; the result is in the order of `places`. */
	async readAll(places: readonly number[], length: number): Promise<readonly MetadataBlock[]> {
		const blocks: (MetadataBlock | undefined)[] = places.map((at) => this.#lookUp(at, length));
		const missing = places.map((_, index) => index).filter((index) => blocks[index] === undefined);
		missing.sort((a, b) => places[a]! - places[b]!);
		const requests: { start: number; end: number; indexes: number[] }[] = [];
		for (const index of missing) {
			const at = places[index]!;
			const last = requests.at(-1);
			if (last !== undefined && at === last.end && at + length - last.start <= MAX_REQUEST_BYTES) {
				last.end = at + length;
				last.indexes.push(index);
			} else requests.push({ start: at, end: at + length, indexes: [index] });
		}
		let next = 0;
		const worker = async (): Promise<void> => {
			while (next < requests.length) {
				const { start, end, indexes } = requests[next++]!;
				const bytes = await readBytes(this.#volume, byteOffset(start), end - start);
				for (const index of indexes) {
					const at = places[index]! - start;
					blocks[index] = { bytes: bytes.subarray(at, at + length), replayed: false };
				}
			}
		};
		await Promise.all(Array.from({ length: Math.min(MAX_PARALLEL, requests.length) }, worker));
		return blocks as MetadataBlock[];
	}

	#lookUp(at: number, length: number): MetadataBlock | undefined {
		const found = this.#overlay.get(at);
		if (found === undefined) return undefined;
		if (typeof found === "string") throw new VmsweepError("VOLUME_DAMAGED", found);
		if (found.length !== length)
			throw new VmsweepError("VOLUME_DAMAGED", `the log has ${found.length} bytes at ${at}, not ${length}`);
		return { bytes: found, replayed: true };
	}
}
