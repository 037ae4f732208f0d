// Chunks: from logical positions, which all of btrfs's trees speak of, to bytes of the device.
//
//   logical   | chunk (system) |   | chunk (metadata, DUP)  | chunk (data) | …      gaps were never given out, or freed
//   device    | 1 MiB … | stripe | free | stripe 1 | stripe 2 | free | stripe | …  whatever is no stripe is free
//
// The superblock has the system chunks, which hold the chunk tree, which has all chunks. Here every chunk lies on the
// one device, once (SINGLE) or twice (DUP); other profiles are refused.
//
// Invariants
//  - chunks are sorted by logical start and don't overlap; neither do stripes on the device, nor do they leave it
//  - starts and lengths are whole sectors

import { VmsweepError } from "../../../foundations/errors.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { hasFlag } from "./features.ts";
import { CHUNK_OBJECTID, ChunkItem, ChunkType, ItemType, Key, StripeItem } from "./layout.ts";
import type { Geometry } from "./open.ts";

/** Bounds memory; a device of 1 PiB in the usual chunks of 1 GiB has as many. */
const MAX_CHUNKS = 1 << 20;

/** A run of logical space and the places of its one or two copies on the device, in bytes. */
export interface Chunk {
	readonly start: number;
	readonly length: number;
	/** The bits of {@link ChunkType} and others, as stored. */
	readonly type: number;
	/** Where each copy starts on the device. */
	readonly stripes: readonly number[];
}

/** A copy of a chunk on the device. */
export interface Stripe {
	readonly physical: number;
	readonly length: number;
	/** Index of its chunk in {@link ChunkMap.chunks}. */
	readonly chunk: number;
}

export class ChunkMap {
	/** By logical start. */
	readonly chunks: readonly Chunk[];
	/** By place on the device. */
	readonly stripes: readonly Stripe[];

	/** Throws VOLUME_DAMAGED where chunks or stripes overlap. */
	constructor(chunks: readonly Chunk[]) {
		this.chunks = [...chunks].sort((a, b) => a.start - b.start);
		this.stripes = this.chunks
			.flatMap(({ stripes, length }, chunk) => stripes.map((physical) => ({ physical, length, chunk })))
			.sort((a, b) => a.physical - b.physical);
		for (const [index, { start, length }] of this.chunks.entries())
			if (start + length > (this.chunks[index + 1]?.start ?? Number.POSITIVE_INFINITY))
				throw damaged(`its chunk at ${start} overlaps the next one`);
		for (const [index, { physical, length }] of this.stripes.entries())
			if (physical + length > (this.stripes[index + 1]?.physical ?? Number.POSITIVE_INFINITY))
				throw damaged(`two of its chunks lie at byte ${this.stripes[index + 1]!.physical} of the device`);
	}

	/** Index of the chunk that holds all of the logical bytes `[at, at + length)`, or -1. */
	find(at: number, length: number): number {
		let low = 0;
		let high = this.chunks.length;
		while (low < high) {
			const middle = (low + high) >>> 1;
			if (this.chunks[middle]!.start <= at) low = middle + 1;
			else high = middle;
		}
		const chunk = this.chunks[low - 1];
		return chunk !== undefined && at + length <= chunk.start + chunk.length ? low - 1 : -1;
	}

	/** Bytes of all chunks that may hold tree blocks. */
	get metadataBytes(): number {
		return this.chunks.reduce((sum, { type, length }) => (holdsTrees(type) ? sum + length : sum), 0);
	}
}

/** True where a chunk of this type may hold tree blocks. */
export const holdsTrees = (type: number): boolean =>
	hasFlag(type, ChunkType.system) || hasFlag(type, ChunkType.metadata);

/** The chunks in the superblock's array: those that hold the chunk tree. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
export function systemChunks(geometry: Geometry): ChunkMap {
	const array = geometry.systemChunkArray;
	const view = viewOf(array);
	const chunks: Chunk[] = [];
	for (let at = 0; at < array.length; ) {
		const itemAt = at + Key.size;
		if (itemAt + ChunkItem.size > array.length) throw damaged("its system chunk array ends in the middle of an entry");
		const size = ChunkItem.size + ChunkItem.read.stripeCount(view, itemAt) * StripeItem.size;
		if (itemAt + size > array.length) throw damaged("its system chunk array ends in the middle of an entry");
		const chunk = parseChunk(view, at, itemAt, size, geometry);
		if (!hasFlag(chunk.type, ChunkType.system)) throw damaged("its system chunk array has a chunk of another type");
		chunks.push(chunk);
		at = itemAt + size;
	}
	return new ChunkMap(chunks);
}

/** Collects the chunk items of the chunk tree. */
export class ChunkCollector {
	readonly #chunks: Chunk[] = [];
	readonly #geometry: Geometry;
	constructor(geometry: Geometry) {
		this.#geometry = geometry;
	}

	/** Takes the chunk item of `size` bytes at `itemAt`, its key at `keyAt`. */
	add(view: DataView, keyAt: number, itemAt: number, size: number): void {
		if (this.#chunks.length === MAX_CHUNKS)
			throw new VmsweepError("VOLUME_UNSUPPORTED", `it has more than ${MAX_CHUNKS} chunks`);
		this.#chunks.push(parseChunk(view, keyAt, itemAt, size, this.#geometry));
	}

	/** All chunks; they must agree with the superblock about the system chunks. */
	finish(system: ChunkMap): ChunkMap {
		const all = new ChunkMap(this.#chunks);
		for (const known of system.chunks) {
			const chunk = all.chunks[all.find(known.start, known.length)];
			const isSame =
				chunk !== undefined &&
				chunk.start === known.start &&
				chunk.length === known.length &&
				chunk.type === known.type &&
				chunk.stripes.join() === known.stripes.join();
			if (!isSame) throw damaged(`its superblock and its chunk tree disagree about the system chunk at ${known.start}`);
		}
		return all;
	}
}

function parseChunk(view: DataView, keyAt: number, at: number, size: number, geometry: Geometry): Chunk {
	const key = Key.at(view, keyAt);
	if (key.type !== ItemType.chunk || key.objectid !== CHUNK_OBJECTID || size < ChunkItem.size)
		throw damaged("one of its chunk items has a wrong key or size");
	const { length, type, stripeCount } = ChunkItem.at(view, at);
	const start = key.offset;
	if (size !== ChunkItem.size + stripeCount * StripeItem.size)
		throw damaged(`its chunk at ${start} has ${stripeCount} stripes in ${size} bytes`);
	const { data, system, metadata, raid0, dup } = ChunkType;
	const contents = type % 8;
	const profile = type - contents;
	if (contents === 0 || contents > (data | system | metadata))
		throw damaged(`its chunk at ${start} has the type 0x${type.toString(16)}`);
	// RAID0 of one device, which kernels make since 5.15, lies as a single copy does.
	if (profile !== 0 && profile !== dup && !(profile === raid0 && stripeCount === 1))
		throw new VmsweepError("VOLUME_UNSUPPORTED", `it has chunks with the profile ${profileName(profile)}`);
	if (stripeCount !== (profile === dup ? 2 : 1)) throw damaged(`its chunk at ${start} has ${stripeCount} stripes`);
	const isWhole = (n: number): boolean => Number.isSafeInteger(n) && n % geometry.sectorSize === 0;
	// Runs of free sectors are kept as 32-bit numbers.
	if (!isWhole(start) || !isWhole(length) || !isWhole(start + length) || length === 0)
		throw damaged(`its chunk at ${start} has ${length} bytes`);
	if (length / geometry.sectorSize >= 2 ** 32) throw damaged(`its chunk at ${start} has ${length} bytes`);
	const stripes: number[] = [];
	for (let i = 0; i < stripeCount; i++) {
		const { deviceId, offset } = StripeItem.at(view, at + ChunkItem.size + i * StripeItem.size);
		if (deviceId !== geometry.deviceId)
			throw new VmsweepError("VOLUME_UNSUPPORTED", `its chunk at ${start} lies on another device`);
		if (!isWhole(offset) || offset + length > geometry.end)
			throw damaged(`its chunk at ${start} reaches past the end of the device`);
		stripes.push(offset);
	}
	return { start, length, type, stripes };
}

const profiles: Readonly<Record<number, string>> = {
	8: "RAID0",
	16: "RAID1",
	64: "RAID10",
	128: "RAID5",
	256: "RAID6",
	512: "RAID1C3",
	1024: "RAID1C4",
};
const profileName = (profile: number): string => profiles[profile] ?? `0x${profile.toString(16)}`;

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `${what}; run btrfs check`);
