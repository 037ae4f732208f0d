// A qcow2 image as a virtual disk: the guest's bytes, put together from clusters, the data file, and the image below.
//
//   guest bytes ─▶ mapping tables ─▶ runs ─▶ data        one read per run that lies in one piece
//                                       ├──▶ compressed  read, unpacked, a few of them kept
//                                       ├──▶ zero
//                                       └──▶ absent      the image below, or zeros

import { type ByteSource, checkRange } from "../../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../../../foundations/units.ts";
import { BoundedCache } from "../bounded-cache.ts";
import type { ImageFile } from "../image-file.ts";
import type { DiskRun, DiskRunKind, VirtualDisk } from "../virtual-disk.ts";
import type { Qcow2Header } from "./header.ts";
import { damagedImage, type MappingTables, type StoredRun } from "./tables.ts";

/** Unpacks one compressed cluster. The input may end with bytes that don't belong to it. Throws where it can't. */
export type Decompress = (
	compression: Qcow2Header["compression"],
	packed: Uint8Array,
	/** Never gives more bytes than this. */
	lengthMax: number,
) => Promise<Uint8Array>;

/** What a disk is made of. */
export interface Qcow2Parts {
	/** For messages. */
	readonly path: string;
	readonly file: ImageFile;
	readonly header: Qcow2Header;
	/** How the disk is mapped: {@link MappingTables}, or whoever changes them. */
	readonly tables: Pick<MappingTables, "run">;
	/** The file that holds the data clusters, where the header says that there is one. */
	readonly dataFile: ImageFile | null;
	/** The image below. */
	readonly backing: VirtualDisk | null;
	readonly decompress: Decompress;
}

/** Reads under way at once for one call: enough to keep the host's storage busy. */
const READS_AT_ONCE = 16;
/** Unpacked clusters that are kept, in bytes; at least one cluster. */
const UNPACKED_BYTES = 4 << 20;

/** Reads a disk; doesn't own the files. */
export class Qcow2Disk implements VirtualDisk {
	readonly size: ByteCount;
	readonly #parts: Qcow2Parts;
	/** By the guest's cluster: in a damaged image, two may lie at one place with different lengths. */
	readonly #unpacked = new BoundedCache<Uint8Array>(UNPACKED_BYTES);

	constructor(parts: Qcow2Parts) {
		this.#parts = parts;
		this.size = parts.header.size;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		checkRange(this.size, at, into.length, this.#parts.path);
		const end = at + into.length;
		let pending: Promise<void>[] = [];
		try {
			for (let done: number = at; done < end; ) {
				const run = await this.#parts.tables.run(done, end);
				const part = into.subarray(done - at, done - at + run.length);
				if (run.kind === "zero" || (run.kind === "absent" && this.#parts.backing === null)) part.fill(0);
				else {
					const reading = this.#readRun(run, part);
					// It may fail while the next table is read, before anybody waits for it: not a failure of the process.
					reading.catch(() => {});
					pending.push(reading);
				}
				done += run.length;
				if (pending.length < READS_AT_ONCE) continue;
				await Promise.all(pending);
				pending = [];
			}
			await Promise.all(pending);
		} finally {
			// Nothing writes into the caller's array after the call has ended, not even when it failed.
			await Promise.allSettled(pending);
		}
	}

	async *runs(from: ByteOffset, to: ByteOffset): AsyncGenerator<DiskRun> {
		checkRange(this.size, from, to - from, this.#parts.path);
		let last: DiskRun | undefined;
		for await (const run of this.#resolvedRuns(from, to)) {
			if (last?.kind === run.kind) last = { ...last, length: byteCount(last.length + run.length) };
			else {
				if (last !== undefined) yield last;
				last = run;
			}
		}
		if (last !== undefined) yield last;
	}

	/** How this image itself stores `[from, to)`, in order and without gap. */
	async *stored(from: number, to: number): AsyncGenerator<StoredRun> {
		for (let at = from; at < to; ) {
			const run = await this.#parts.tables.run(at, to);
			yield run;
			at += run.length;
		}
	}

	async *#resolvedRuns(from: number, to: number): AsyncGenerator<DiskRun> {
		const { backing } = this.#parts;
		for await (const { kind, start, length } of this.stored(from, to)) {
			const end = start + length;
			const belowEnd = kind === "absent" && backing !== null ? Math.min(end, backing.size) : start;
			if (belowEnd > start) yield* backing!.runs(byteOffset(start), byteOffset(belowEnd));
			const rest = Math.max(start, belowEnd);
			const own: DiskRunKind = kind === "compressed" ? "data" : kind;
			if (rest < end) yield { kind: own, start: byteOffset(rest), length: byteCount(end - rest) };
		}
	}

	async #readRun(run: StoredRun, into: Uint8Array): Promise<void> {
		switch (run.kind) {
			case "data":
				return await this.#readHost(run, into);
			case "compressed": {
				const cluster = await this.#unpackedCluster(run);
				const start = run.start % this.#parts.header.clusterSize;
				into.set(cluster.subarray(start, start + into.length));
				return;
			}
			case "absent":
				return await readBelow(this.#parts.backing!, run.start, into);
			case "zero":
				into.fill(0);
				return;
			default:
				run.kind satisfies never;
		}
	}

	/** Bytes behind the end of the file, whose last cluster may be short, are zeros. */
	async #readHost({ host, start }: StoredRun, into: Uint8Array): Promise<void> {
		const { dataFile, file, path } = this.#parts;
		const source: ByteSource = dataFile ?? file;
		if (host >= source.size)
			throw damagedImage(path, `guest byte ${start} is at byte ${host} of a file of ${source.size} bytes`);
		const there = Math.min(into.length, source.size - host);
		await source.read(byteOffset(host), into.subarray(0, there));
		into.fill(0, there);
	}

	async #unpackedCluster(run: StoredRun): Promise<Uint8Array> {
		const { clusterSize } = this.#parts.header;
		return await this.#unpacked.get(run.start - (run.start % clusterSize), clusterSize, () => this.#unpack(run));
	}

	async #unpack({ host, compressedLength, start }: StoredRun): Promise<Uint8Array> {
		const { file, header, decompress, path } = this.#parts;
		const packed = new Uint8Array(Math.min(compressedLength, file.size - host));
		await file.read(byteOffset(host), packed);
		const cluster = await decompress(header.compression, packed, header.clusterSize).catch(() => undefined);
		if (cluster?.length !== header.clusterSize)
			throw damagedImage(
				path,
				`the compressed cluster of guest byte ${start} (byte ${host} of the file) can't be unpacked`,
			);
		return cluster;
	}
}

/** An image below may be shorter; what it lacks reads as zeros. */
async function readBelow(backing: VirtualDisk, start: number, into: Uint8Array): Promise<void> {
	const there = Math.max(0, Math.min(into.length, backing.size - start));
	if (there > 0) await backing.read(byteOffset(start), into.subarray(0, there));
	into.fill(0, there);
}
