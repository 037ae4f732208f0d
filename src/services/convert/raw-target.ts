// Raw targets: a new sparse file, or a block device, which is written in place.

import { unlink } from "node:fs/promises";
import { createRawImage, type RawImage } from "../../adapters/images/raw-image.ts";
import { type ByteCount, byteCount, byteOffset } from "../../foundations/units.ts";
import { type ConvertTarget, EarlyFlusher, giveName, partName } from "./target.ts";
import { runsWithContent } from "./zeros.ts";

/** A new file, sparse. */
export class RawFileTarget implements ConvertTarget {
	readonly format = "raw";
	readonly granule = 4096;
	hostBytes = 0;
	readonly #name: string;
	readonly #image: RawImage;
	readonly #flusher: EarlyFlusher;

	private constructor(name: string, image: RawImage) {
		this.#name = name;
		this.#image = image;
		this.#flusher = new EarlyFlusher(() => image.flush());
	}

	static async create(name: string, size: ByteCount): Promise<RawFileTarget> {
		return new RawFileTarget(name, await createRawImage(partName(name), size));
	}

	get left(): string {
		return `nothing of ${this.#name} is left`;
	}

	async write(at: number, bytes: Uint8Array): Promise<number> {
		let written = 0;
		for (const { start, end } of runsWithContent(bytes)) {
			await this.#image.writeBatch([{ at: byteOffset(at + start), bytes: bytes.subarray(start, end) }]);
			written += end - start;
		}
		this.#flusher.note(written);
		return written;
	}

	async finish(): Promise<void> {
		await this.#flusher.settled();
		await this.#image.flushAll();
		this.hostBytes = await this.#image.allocatedBytes();
		await this.#image.close();
		await giveName(this.#image.path, this.#name);
	}

	async abandon(): Promise<void> {
		await this.#flusher.settled().catch(() => {});
		await this.#image.close().catch(() => {});
		await unlink(this.#image.path).catch(() => {});
	}
}

/** A block device. What lies between the pieces is zeroed; so pieces are remembered until the end. */
export class DeviceTarget implements ConvertTarget {
	readonly format = "raw";
	readonly granule = 4096;
	hostBytes = 0;
	readonly #image: RawImage;
	readonly #size: number;
	/** Runs that were written, by start; neighbours joined as far as they came in order. */
	readonly #written: { start: number; end: number }[] = [];

	constructor(image: RawImage, size: number) {
		this.#image = image;
		this.#size = size;
	}

	get left(): string {
		return this.#written.length === 0
			? `${this.#image.path} is as it was`
			: `what was on ${this.#image.path} is overwritten in part`;
	}

	async write(at: number, bytes: Uint8Array): Promise<number> {
		let written = 0;
		for (const { start, end } of runsWithContent(bytes)) {
			await this.#image.writeBatch([{ at: byteOffset(at + start), bytes: bytes.subarray(start, end) }]);
			this.#note(at + start, at + end);
			written += end - start;
		}
		return written;
	}

	async finish(): Promise<void> {
		let at = 0;
		for (const { start, end } of this.#written.sort((a, b) => a.start - b.start)) {
			await this.#zero(at, start);
			at = end;
		}
		await this.#zero(at, this.#size);
		await this.#image.flush();
		this.hostBytes = this.#image.size;
		await this.#image.close();
	}

	async abandon(): Promise<void> {
		await this.#image.close().catch(() => {});
	}

	#note(start: number, end: number): void {
		const last = this.#written.at(-1);
		if (last?.end === start) last.end = end;
		else this.#written.push({ start, end });
	}

	async #zero(from: number, to: number): Promise<void> {
		for (let at = from; at < to; at += ZERO_BYTES_MAX)
			await this.#image.punch(byteOffset(at), byteCount(Math.min(to - at, ZERO_BYTES_MAX)));
	}
}

/** Longest run of a device that is zeroed in one call, in bytes. */
const ZERO_BYTES_MAX = 256 * 1024 * 1024;
