// qcow2 target: a new image whose clusters are written as they come, or packed with zstd.
//
//   piece ─► clusters with content ─┬─► runs ─► a place in the file (in turn) ─► written, several at once
//                                   └─► packed on threads (packers.ts) ─► appended (in turn)
//
// Only finding places is done in turn: it changes the image's tables.

import { unlink } from "node:fs/promises";
import { createQcow2, type NewQcow2 } from "../../adapters/images/qcow2-create.ts";
import { type ByteCount, byteCount, byteOffset, roundUp } from "../../foundations/units.ts";
import { Packers } from "./packers.ts";
import { type ConvertTarget, EarlyFlusher, giveName, partName } from "./target.ts";
import { runsWithContent } from "./zeros.ts";

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
	/** Undefined where clusters are written as they come. */
	readonly #packers: Packers | undefined;
	readonly #flusher: EarlyFlusher;
	/** Ends when all changes of the tables that were asked for are done. */
	#turn: Promise<unknown> = Promise.resolve();

	private constructor(name: string, image: NewQcow2, { clusterSize, compress }: Qcow2TargetOptions) {
		this.#name = name;
		this.#image = image;
		this.granule = clusterSize;
		this.#packers = compress === "zstd" ? new Packers() : undefined;
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
			const from = at + start;
			written += await (this.#packers === undefined ? this.#writeRun(from, run) : this.#pack(this.#packers, from, run));
		}
		this.#flusher.note(written);
		return written;
	}

	async finish(): Promise<void> {
		const { file, writer } = this.#image;
		await this.#turn;
		await this.#flusher.settled();
		await this.#packers?.[Symbol.asyncDispose]();
		await writer.finish();
		this.hostBytes = await file.allocatedBytes();
		await file.close();
		await giveName(file.path, this.#name);
	}

	async abandon(): Promise<void> {
		const { file } = this.#image;
		await this.#turn.catch(() => {});
		await this.#flusher.settled().catch(() => {});
		await this.#packers?.[Symbol.asyncDispose]();
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
	async #pack(packers: Packers, at: number, bytes: Uint8Array): Promise<number> {
		let written = 0;
		const packed = await packers.pack(filledUp(bytes, this.granule), this.granule);
		for (const [index, frame] of packed.entries()) {
			const start = index * this.granule;
			const cluster = bytes.subarray(start, start + this.granule);
			if (frame === null) written += await this.#writeRun(at + start, cluster);
			else {
				await this.#inTurn(() => this.#image.writer.appendPacked(byteOffset(at + start), frame));
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
function filledUp(bytes: Uint8Array, clusterSize: number): Uint8Array {
	if (bytes.length % clusterSize === 0) return bytes;
	const whole = new Uint8Array(roundUp(bytes.length, clusterSize));
	whole.set(bytes);
	return whole;
}
