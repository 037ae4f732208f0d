// qcow2 target: a new image whose clusters are written as they come, or packed with zstd.
//
//   piece ─► clusters with content ─┬─► runs ─► a place in the file (in turn) ─► written, several at once
//                                   └─► packed on Node's threads ─► appended (in turn)
//
// Only finding places is done in turn: it changes the image's tables.

import { unlink } from "node:fs/promises";
import { promisify } from "node:util";
import { zstdCompress } from "node:zlib";
import { createQcow2, type NewQcow2 } from "../../adapters/images/qcow2-create.ts";
import { type ByteCount, byteCount, byteOffset } from "../../foundations/units.ts";
import { type ConvertTarget, EarlyFlusher, giveName, partName } from "./target.ts";
import { runsWithContent } from "./zeros.ts";

const zstd = promisify<Uint8Array, Uint8Array>(zstdCompress);

interface Qcow2TargetOptions {
	/** The guest's disk. */
	readonly size: ByteCount;
	readonly clusterSize: ByteCount;
	readonly compress: "zstd" | "none";
}

export class Qcow2Target implements ConvertTarget {
	readonly format = "qcow2";
	readonly granule: number;
	hostBytes = 0;
	readonly #name: string;
	readonly #image: NewQcow2;
	readonly #isPacked: boolean;
	readonly #flusher: EarlyFlusher;
	/** Ends when all changes of the tables that were asked for are done. */
	#turn: Promise<unknown> = Promise.resolve();

	private constructor(name: string, image: NewQcow2, { clusterSize, compress }: Qcow2TargetOptions) {
		this.#name = name;
		this.#image = image;
		this.granule = clusterSize;
		this.#isPacked = compress === "zstd";
		this.#flusher = new EarlyFlusher(() => image.file.flush());
	}

	static async create(name: string, options: Qcow2TargetOptions): Promise<Qcow2Target> {
		const { size, clusterSize } = options;
		return new Qcow2Target(
			name,
			await createQcow2(partName(name), { size, clusterSize, compression: "zstd" }),
			options,
		);
	}

	get left(): string {
		return `nothing of ${this.#name} is left`;
	}

	async write(at: number, bytes: Uint8Array): Promise<number> {
		let written = 0;
		for (const { start, end } of runsWithContent(bytes, this.granule)) {
			const run = bytes.subarray(start, end);
			written += await (this.#isPacked ? this.#pack(at + start, run) : this.#writeRun(at + start, run));
		}
		this.#flusher.note(written);
		return written;
	}

	async finish(): Promise<void> {
		const { file, writer } = this.#image;
		await this.#turn;
		await this.#flusher.settled();
		await writer.finish();
		this.hostBytes = await file.allocatedBytes();
		await file.close();
		await giveName(file.path, this.#name);
	}

	async abandon(): Promise<void> {
		const { file } = this.#image;
		await this.#turn.catch(() => {});
		await this.#flusher.settled().catch(() => {});
		await file.close().catch(() => {});
		await unlink(file.path).catch(() => {});
	}

	/** Zeros inside of clusters stay holes of the file: it is new, so that nothing else can show there. */
	async #writeRun(at: number, bytes: Uint8Array): Promise<number> {
		const { file, writer } = this.#image;
		const host = await this.#inTurn(() => writer.reserve(byteOffset(at), byteCount(bytes.length)));
		let written = 0;
		for (const { start, end } of runsWithContent(bytes)) {
			await file.write(byteOffset(host + start), bytes.subarray(start, end));
			written += end - start;
		}
		return written;
	}

	/** Each cluster by itself, as the format has it; one that zstd can't make smaller is written as it is. */
	async #pack(at: number, bytes: Uint8Array): Promise<number> {
		let written = 0;
		for (let start = 0; start < bytes.length; start += this.granule) {
			const cluster = bytes.subarray(start, start + this.granule);
			const packed = await zstd(filledUp(cluster, this.granule));
			if (packed.length >= this.granule) written += await this.#writeRun(at + start, cluster);
			else {
				await this.#inTurn(() => this.#image.writer.appendPacked(byteOffset(at + start), packed));
				written += cluster.length;
			}
		}
		return written;
	}

	async #inTurn<T>(work: () => Promise<T>): Promise<T> {
		const result = this.#turn.then(work);
		this.#turn = result.catch(() => {}); // whoever asked gets the error
		return await result;
	}
}

/** The disk's last cluster may be short; packed it is whole. */
function filledUp(cluster: Uint8Array, size: number): Uint8Array {
	if (cluster.length === size) return cluster;
	const whole = new Uint8Array(size);
	whole.set(cluster);
	return whole;
}
