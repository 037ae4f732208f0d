// A qcow2 image, with the images below it, as a second image (second-image.ts).
//
//   cleaner ─▶ copyFrom, punch, flush ─▶ Qcow2Store ─┬─▶ new clusters, new tables, counts: written here
//                                                    └─▶ tables that can be reached: by `writeTablesBy`'s function
//   readers of views ─▶ read ────────────▶ Qcow2Store
//   the guest ─▶ data plane ─▶ its own tables, by `layout` (plane/qcow2-reader.ts)
//
// Images below are open for reading, under QEMU's locks, so that nobody writes them meanwhile. What the image leaves
// unsaid shows what is below: a punched block is said to be zero, and never shows it.

import { stat } from "node:fs/promises";
import { readHeader } from "../../core/images/qcow2/header.ts";
import { type GuestRange, type Place, Qcow2Store } from "../../core/images/qcow2/store.ts";
import type { StoredRun } from "../../core/images/qcow2/tables.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../../foundations/units.ts";
import type { DataRun } from "../os/data-runs.ts";
import type { RangeCopier } from "./copy-ranges.ts";
import type { DiskImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import type { Opening } from "./opening.ts";
import type {
	CopyMethod,
	CopyRange,
	HeldParts,
	ImageFingerprint,
	SecondImage,
	SecondImageKind,
	WritePiece,
} from "./second-image.ts";
import type { SecondLayout, TableUpdate, WriteTables } from "./second-layout.ts";
import { unpack } from "./unpack.ts";
import { ioError } from "./write-run.ts";

/**
 * Opens and verifies an image. Takes `file`, open for writing, over where it succeeds; its format is the caller's word.
 * Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED (with what to do) or IO; nothing is changed then.
 */
export async function openQcow2Second(file: HostImageFile, opening: Opening): Promise<Qcow2SecondImage> {
	const { path } = file;
	const { backing } = await readHeader(file, path);
	const below = backing === null ? null : await opening.openBacking(backing);
	try {
		const layoutBelow = below?.layout?.() ?? null;
		if (below !== null && layoutBelow === null)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${path}: below it is ${below.path}, a ${below.format} image${below.format === "qcow2" ? " with a data file or with such an image below it" : ""}; only raw and qcow2 images may be there. Copy it into one image: qemu-img convert -O qcow2 ${path} NEW.`,
			);
		let writer: WriteTables | undefined;
		const writeTables = async (update: TableUpdate): Promise<void> => {
			if (writer !== undefined) return await writer(update);
			for (const { at, bytes } of update.pieces) await file.write(byteOffset(at), bytes);
		};
		const hostBlock = await file.hostBlock();
		const store = await Qcow2Store.open({ path, file, hostBlock, below, decompress: unpack, writeTables });
		return new Qcow2SecondImage(store, { file, below, layoutBelow }, (write) => {
			writer = write;
		});
	} catch (error) {
		await below?.close();
		throw error;
	}
}

interface Files {
	readonly file: HostImageFile;
	readonly below: DiskImage | null;
	readonly layoutBelow: SecondLayout | null;
}

/** An open qcow2 second image. Owns its files. */
export class Qcow2SecondImage implements SecondImage {
	readonly path: string;
	readonly kind: SecondImageKind;
	readonly format = "qcow2";
	readonly held: HeldParts = { within: (from, to) => this.#heldWithin(from, to) };
	readonly #store: Qcow2Store;
	readonly #files: Files;
	readonly #setWriter: (write: WriteTables | undefined) => void;
	readonly #copier: RangeCopier;
	/** Ends when the last change that was asked for has: the store takes one at a time. */
	#turn: Promise<unknown> = Promise.resolve();

	/** @param setWriter says who writes tables from now on */
	constructor(store: Qcow2Store, files: Files, setWriter: (write: WriteTables | undefined) => void) {
		this.#store = store;
		this.#files = files;
		this.#setWriter = setWriter;
		this.#copier = files.file.copier();
		this.path = files.file.path;
		this.kind = files.file.kind;
	}

	get size(): ByteCount {
		return this.#store.size;
	}

	get layout(): SecondLayout {
		const { file, layoutBelow } = this.#files;
		return { kind: "qcow2", fd: file.fd, path: this.path, header: this.#store.header, below: layoutBelow };
	}

	get copyMethod(): CopyMethod {
		return this.#copier.method;
	}

	/** The images below, nearest first; their paths. */
	async belowPaths(): Promise<string[]> {
		return ((await this.#files.below?.parts()) ?? []).map(({ path }) => path);
	}

	writeTablesBy(write: WriteTables | undefined): void {
		this.#setWriter(write);
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#store.read(at, into);
	}

	async writeBatch(pieces: readonly WritePiece[]): Promise<void> {
		await this.#inTurn(async () => {
			const ranges = pieces.map(({ at, bytes }) => ({ start: at, length: bytes.length }));
			for (const { index, offset, host, length } of placed(ranges, await this.#store.prepare(ranges)))
				await this.#files.file.write(byteOffset(host), pieces[index]!.bytes.subarray(offset, offset + length));
		});
	}

	async copyFrom(sourceFd: number, ranges: readonly CopyRange[]): Promise<void> {
		await this.#inTurn(async () => {
			const sorted = ranges.toSorted((a, b) => a.to - b.to);
			const targets = sorted.map(({ to, length }) => ({ start: to, length }));
			const copies: CopyRange[] = [];
			for (const { index, offset, host, length } of placed(targets, await this.#store.prepare(targets)))
				copies.push({ from: sorted[index]!.from + offset, to: byteOffset(host), length: byteCount(length) });
			await this.#copier.copy(sourceFd, copies);
		});
	}

	async punch(at: ByteOffset, length: ByteCount): Promise<void> {
		await this.#inTurn(() => this.#store.punch(at, length));
	}

	async flush(): Promise<void> {
		await this.#inTurn(() => this.#store.flush());
		await this.#files.file.refuseDeleted();
	}

	async flushAll(): Promise<void> {
		await this.#inTurn(() => this.#store.flush());
		await this.#files.file.flushAll();
	}

	async checkResize(size: ByteCount): Promise<void> {
		this.#store.checkResize(size);
	}

	async resize(size: ByteCount): Promise<void> {
		await this.#inTurn(() => this.#store.resize(size));
	}

	async allocatedBytes(): Promise<ByteCount> {
		return await this.#files.file.allocatedBytes();
	}

	async fingerprint(): Promise<ImageFingerprint | undefined> {
		const mark = await this.#files.file.mark();
		if (mark === undefined) return undefined;
		const below = [];
		for (const path of await this.belowPaths()) {
			const status = await stat(path, { bigint: true }).catch((error: unknown) => {
				throw ioError(error, `${path}: asking for its size and time failed`);
			});
			if (status.isFile()) below.push({ path, size: Number(status.size), changedNs: status.mtimeNs.toString() });
		}
		return below.length > 0 ? { ...mark, below } : mark;
	}

	async close(): Promise<void> {
		await this.#turn.catch(() => {});
		await this.#files.file.close();
		await this.#files.below?.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	async #inTurn<T>(work: () => Promise<T>): Promise<T> {
		const mine = this.#turn.catch(() => {}).then(work);
		this.#turn = mine;
		return await mine;
	}

	/** What the image's own clusters hold on the host, and what of the images below shows through. */
	async *#heldWithin(from: number, to: number): AsyncGenerator<DataRun> {
		let last: { start: number; end: number } | undefined;
		for await (const run of this.#store.stored(from, Math.min(to, this.size)))
			for await (const { start, end } of this.#heldIn(run))
				if (last?.end === start) last.end = end;
				else {
					if (last !== undefined) yield last;
					last = { start, end };
				}
		if (last !== undefined) yield last;
	}

	async *#heldIn({ kind, start, length, host }: StoredRun): AsyncGenerator<DataRun> {
		const { file, below } = this.#files;
		switch (kind) {
			case "data":
				for (const run of file.allocated(host, Math.min(host + length, file.size)))
					yield { start: start + (run.start - host), end: start + (run.end - host) };
				return;
			case "compressed":
				yield { start, end: start + length };
				return;
			case "absent": {
				if (below === null) return;
				const end = Math.min(start + length, below.size);
				if (start >= end) return;
				for await (const run of below.runs(byteOffset(start), byteOffset(end)))
					if (run.kind === "data") yield { start: run.start, end: run.start + run.length };
				return;
			}
			case "zero":
				return;
			default:
				kind satisfies never;
		}
	}
}

/** Where the parts of each range go: both lists are sorted, and the places cover the ranges. */
function* placed(
	ranges: readonly GuestRange[],
	places: readonly Place[],
): Generator<{ readonly index: number; readonly offset: number; readonly host: number; readonly length: number }> {
	let at = 0;
	for (const [index, range] of ranges.entries()) {
		const end = range.start + range.length;
		for (let start = range.start; start < end; ) {
			while (places[at]!.start + places[at]!.length <= start) at++;
			const place = places[at]!;
			const length = Math.min(end, place.start + place.length) - start;
			yield { index, offset: start - range.start, host: place.host + (start - place.start), length };
			start += length;
		}
	}
}
