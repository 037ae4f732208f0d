// Mapped image: an image in a format that is only read (VMDK, VHD, VHDX, VDI), as a DiskImage.
//
// The format says where the guest's bytes lie in which file; the host says which parts of those files take space. What
// an image holds is both together: a block that is allocated in the format may be a hole of the file.

import type { DataPiece, DiskPiece, MappedDisk } from "../../core/images/mapped-disk.ts";
import type { DiskRun } from "../../core/images/virtual-disk.ts";
import { checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../../foundations/units.ts";
import type { DiskFormat, DiskImage, HeldRun, ImagePart } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";

/** A file of an image, and what it is for. */
export interface FileInUse {
	readonly file: HostImageFile;
	readonly role: ImagePart["role"];
}

/** Bytes of a file that the host is asked about at once. */
const HOST_STRETCH_BYTES = 1 << 30;

/** Takes the files over: closing the image closes them. The first one is the image that was named. */
export class MappedImage implements DiskImage {
	readonly path: string;
	readonly format: DiskFormat;
	readonly size: ByteCount;
	readonly snapshots = [];
	readonly warnings: readonly string[];
	readonly #disk: MappedDisk;
	readonly #files: readonly FileInUse[];

	constructor(format: DiskFormat, disk: MappedDisk, files: readonly FileInUse[]) {
		this.path = files[0]!.file.path;
		this.format = format;
		this.size = disk.size;
		this.warnings = disk.warnings;
		this.#disk = disk;
		this.#files = files;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#disk.read(at, into);
	}

	/** As the format says; what is a hole of its file besides reads as zeros. */
	async *runs(from: ByteOffset, to: ByteOffset): AsyncGenerator<DiskRun> {
		checkRange(this.size, from, to - from, this.path);
		let pending: DiskRun | undefined;
		for await (const piece of this.#disk.visiblePieces(from, to))
			for (const run of this.#runsOf(piece)) {
				if (pending?.kind === run.kind) {
					pending = { ...pending, length: byteCount(pending.length + run.length) };
					continue;
				}
				if (pending !== undefined) yield pending;
				pending = run;
			}
		if (pending !== undefined) yield pending;
	}

	async *held(from: ByteOffset, to: ByteOffset): AsyncGenerator<HeldRun> {
		let pending: HeldRun | undefined;
		for await (const piece of this.#disk.pieces(from, to))
			for (const { start, length } of this.#heldOf(piece)) {
				if (pending !== undefined && pending.start + pending.length === start) {
					pending = { start: pending.start, length: byteCount(pending.length + length) };
					continue;
				}
				if (pending !== undefined) yield pending;
				pending = { start, length };
			}
		if (pending !== undefined) yield pending;
	}

	async allocatedBytes(): Promise<ByteCount> {
		const own = (await this.parts()).filter(({ role }) => role !== "backing");
		return byteCount(own.reduce((sum, { hostBytes }) => sum + (hostBytes ?? 0), 0));
	}

	async parts(): Promise<readonly ImagePart[]> {
		return await Promise.all(
			this.#files.map(async ({ file, role }) => ({
				path: file.path,
				format: this.format,
				role,
				hostBytes: await file.allocatedBytes(),
			})),
		);
	}

	async close(): Promise<void> {
		await closeAll(this.#files);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	*#runsOf(piece: DiskPiece): Generator<DiskRun> {
		const run = (start: number, end: number, kind: DiskRun["kind"]): DiskRun => ({
			start: byteOffset(start),
			length: byteCount(end - start),
			kind,
		});
		const end = piece.start + piece.length;
		if (piece.kind !== "data") {
			yield run(piece.start, end, piece.kind === "packed" ? "data" : piece.kind);
			return;
		}
		const file = this.#ownFile(piece);
		const shift = piece.start - piece.at;
		let at = piece.start;
		for (const found of file?.data(piece.at, piece.at + piece.length) ?? [{ start: piece.at, end: end - shift }]) {
			if (found.start + shift > at) yield run(at, found.start + shift, "zero");
			yield run(found.start + shift, found.end + shift, "data");
			at = found.end + shift;
		}
		if (at < end) yield run(at, end, "zero");
	}

	*#heldOf(piece: DiskPiece): Generator<HeldRun> {
		if (piece.kind === "packed") yield { start: byteOffset(piece.start), length: byteCount(piece.length) };
		if (piece.kind !== "data") return;
		const file = this.#ownFile(piece) ?? this.#files[0]!.file;
		const { start: guestStart, at, length } = piece;
		for (let done = 0; done < length; done += HOST_STRETCH_BYTES) {
			const end = Math.min(length, done + HOST_STRETCH_BYTES);
			// All at once: the file's own walk must be finished before another one begins.
			for (const run of Array.from(file.allocated(at + done, at + end)))
				yield { start: byteOffset(guestStart + run.start - at), length: byteCount(run.end - run.start) };
		}
	}

	/** Undefined where the format reads through a layer over the named file: a log that is replayed in memory. */
	#ownFile(piece: DataPiece): HostImageFile | undefined {
		return this.#files.find(({ file }) => file === piece.file)?.file;
	}
}

/** Closes files that one image opened, the last one first. */
export async function closeAll(files: readonly FileInUse[]): Promise<void> {
	for (const { file } of files.toReversed()) await file.close();
}
