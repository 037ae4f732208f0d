// A sparse image in memory: only pages that are not all zeros are kept, and changes can be taken back.

import { open } from "node:fs/promises";
import type { ByteSource } from "../../src/foundations/source.ts";
import { checkRange } from "../../src/foundations/source.ts";
import { byteCount } from "../../src/foundations/units.ts";

const PAGE = 4096;
const WINDOW = 1 << 20;

export class SparseImage {
	readonly #sizeBefore: number;
	#size: number;
	readonly #pages = new Map<number, Uint8Array>();
	/** Pages as they were before the first change; undefined where there was none. */
	readonly #before = new Map<number, Uint8Array | undefined>();

	private constructor(size: number) {
		this.#sizeBefore = size;
		this.#size = size;
	}

	/** An image with these bytes. */
	static of(bytes: Uint8Array): SparseImage {
		const image = new SparseImage(bytes.length);
		image.#take(0, bytes);
		return image;
	}

	static async load(path: string): Promise<SparseImage> {
		const file = await open(path, "r");
		try {
			const { size } = await file.stat();
			const image = new SparseImage(size);
			const window = new Uint8Array(WINDOW);
			for (let at = 0; at < size; at += WINDOW) {
				const { bytesRead } = await file.read(window, 0, WINDOW, at);
				image.#take(at, window.subarray(0, bytesRead));
			}
			return image;
		} finally {
			await file.close();
		}
	}

	get size(): number {
		return this.#size;
	}

	read(at: number, into: Uint8Array): void {
		checkRange(byteCount(this.size), at, into.length, "image");
		for (let done = 0; done < into.length; ) {
			const [page, offset] = [Math.floor((at + done) / PAGE), (at + done) % PAGE];
			const length = Math.min(into.length - done, PAGE - offset);
			const bytes = this.#pages.get(page);
			if (bytes === undefined) into.fill(0, done, done + length);
			else into.set(bytes.subarray(offset, offset + length), done);
			done += length;
		}
	}

	bytes(at: number, length: number): Uint8Array<ArrayBuffer> {
		const bytes = new Uint8Array(length);
		this.read(at, bytes);
		return bytes;
	}

	write(at: number, from: Uint8Array): void {
		checkRange(byteCount(this.size), at, from.length, "image");
		for (let done = 0; done < from.length; ) {
			const [page, offset] = [Math.floor((at + done) / PAGE), (at + done) % PAGE];
			const length = Math.min(from.length - done, PAGE - offset);
			const old = this.#pages.get(page);
			if (!this.#before.has(page)) this.#before.set(page, old);
			const bytes = old === undefined ? new Uint8Array(PAGE) : old.slice();
			bytes.set(from.subarray(done, done + length), offset);
			this.#pages.set(page, bytes);
			done += length;
		}
	}

	/** Cuts the image, or adds a hole. */
	resize(size: number): void {
		this.#size = size;
	}

	/** Takes all changes back. */
	undo(): void {
		this.#size = this.#sizeBefore;
		for (const [page, bytes] of this.#before)
			if (bytes === undefined) this.#pages.delete(page);
			else this.#pages.set(page, bytes);
		this.#before.clear();
	}

	/** Positions of all pages that hold anything. */
	pages(): number[] {
		return [...this.#pages.keys()].sort((a, b) => a - b).map((page) => page * PAGE);
	}

	/** Keeps the pages of `bytes` that hold anything; `at` is at a page's start. */
	#take(at: number, bytes: Uint8Array): void {
		for (let from = 0; from < bytes.length; from += PAGE) {
			const page = bytes.subarray(from, from + PAGE);
			if (page.some((byte) => byte !== 0)) this.#pages.set((at + from) / PAGE, padded(page));
		}
	}

	/** A source that notes what is read, and refuses to be read more than `limit` times. */
	source(limit: number): ByteSource & { readonly ranges: { at: number; length: number }[] } {
		const ranges: { at: number; length: number }[] = [];
		return {
			size: byteCount(this.size),
			ranges,
			read: async (at, into) => {
				if (ranges.length >= limit) throw new Error(`more than ${limit} reads`);
				ranges.push({ at, length: into.length });
				this.read(at, into);
			},
		};
	}
}

function padded(bytes: Uint8Array): Uint8Array {
	const page = new Uint8Array(PAGE);
	page.set(bytes);
	return page;
}
