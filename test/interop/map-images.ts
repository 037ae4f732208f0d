// What the tests of the guest map share: sources over files, and what e2fsprogs itself says is free.

import type { FileHandle } from "node:fs/promises";
import { open } from "node:fs/promises";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import type { ByteSource } from "../../src/foundations/source.ts";
import { checkRange } from "../../src/foundations/source.ts";
import { byteCount } from "../../src/foundations/units.ts";
import { readGuestMap } from "../../src/services/guest-map.ts";
import { runOk } from "../support/processes.ts";

/** A file as a source. Close it by leaving the scope. */
export class FileSource implements ByteSource, AsyncDisposable {
	readonly size;
	readonly #file: FileHandle;
	constructor(file: FileHandle, size: number) {
		this.#file = file;
		this.size = byteCount(size);
	}
	async read(at: number, into: Uint8Array): Promise<void> {
		checkRange(this.size, at, into.length, "file");
		for (let done = 0; done < into.length; ) {
			const { bytesRead } = await this.#file.read(into, done, into.length - done, at + done);
			if (bytesRead === 0) throw new Error(`the file ends at ${at + done}`);
			done += bytesRead;
		}
	}
	async [Symbol.asyncDispose](): Promise<void> {
		await this.#file.close();
	}
}

export async function openSource(path: string): Promise<FileSource> {
	const file = await open(path, "r");
	return new FileSource(file, (await file.stat()).size);
}

/** The map of an image file. */
export async function mapOf(path: string): Promise<GuestMap> {
	await using source = await openSource(path);
	return await readGuestMap(source);
}

/** A volume's blocks as `dumpe2fs` sees them. */
export interface Dumped {
	readonly blockSize: number;
	readonly blockCount: number;
	/** One byte per block, 1 = free. */
	readonly free: Uint8Array;
}

/** Reads `dumpe2fs IMAGE`: the free blocks of every group. */
export async function dumpFree(path: string): Promise<Dumped> {
	const text = await runOk("dumpe2fs", [path]);
	const number = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? 0);
	const blockSize = number("Block size");
	const blockCount = number("Block count");
	const ratio = number("Cluster size") === 0 ? 1 : number("Cluster size") / blockSize;
	const free = new Uint8Array(blockCount);
	for (const line of text.matchAll(/^ {2}Free blocks: (.*)$/gm))
		for (const range of line[1]!.split(",")) {
			if (range.trim() === "") continue;
			const [first, last] = range.split("-").map(Number) as [number, number | undefined];
			// Of a run of clusters the first block of the first and of the last one are printed.
			free.fill(1, first, Math.min(blockCount, (last ?? first) + ratio));
		}
	return { blockSize, blockCount, free };
}

/** The free blocks of a map of one volume, in the same form; fails where a run does not consist of whole blocks. */
export function mappedFree(map: GuestMap, volumeId: string, { blockSize, blockCount }: Dumped): Uint8Array {
	const volume = map.volumes.find(({ id }) => id === volumeId);
	if (volume === undefined) throw new Error(`no volume ${volumeId}`);
	const free = new Uint8Array(blockCount);
	let cursor = 0;
	let bytes = 0;
	for (const extent of map.extents) {
		if (extent.start !== cursor || extent.length <= 0)
			throw new Error(`gap or overlap at ${extent.start}, expected ${cursor}`);
		cursor += extent.length;
		if (extent.state !== "free" || extent.volume !== volumeId) continue;
		const first = (extent.start - volume.offset) / blockSize;
		const count = extent.length / blockSize;
		if (!Number.isInteger(first) || !Number.isInteger(count))
			throw new Error(`extent ${extent.start}+${extent.length} is no whole blocks`);
		free.fill(1, first, first + count);
		bytes += extent.length;
	}
	if (cursor !== map.size) throw new Error(`extents end at ${cursor} of ${map.size}`);
	if (volume.freeBytes !== null && bytes !== volume.freeBytes)
		throw new Error(`extents have ${bytes} free bytes, the volume ${volume.freeBytes}`);
	return free;
}

/** Blocks that `mine` calls free and `theirs` does not, and the other way round; the first few of each. */
export function differences(mine: Uint8Array, theirs: Uint8Array): { onlyMine: number[]; onlyTheirs: number[] } {
	const onlyMine: number[] = [];
	const onlyTheirs: number[] = [];
	for (let block = 0; block < theirs.length; block++) {
		if (mine[block] === theirs[block]) continue;
		const list = mine[block] === 1 ? onlyMine : onlyTheirs;
		if (list.length < 10) list.push(block);
	}
	return { onlyMine, onlyTheirs };
}
