// A qcow2 image that a user named: its own file, its data file and the images below, under one roof.

import { Qcow2Disk } from "../../core/images/qcow2/disk.ts";
import { type Qcow2Header, readHeader } from "../../core/images/qcow2/header.ts";
import { readSnapshots, type SnapshotTable } from "../../core/images/qcow2/snapshots.ts";
import { damagedImage, MappingTables, type StoredRun } from "../../core/images/qcow2/tables.ts";
import type { DiskRun } from "../../core/images/virtual-disk.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../../foundations/units.ts";
import type { DiskImage, HeldRun, ImagePart, InternalSnapshot } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import type { Opening } from "./opening.ts";
import type { SecondLayout } from "./second-layout.ts";
import { unpack } from "./unpack.ts";

/** Opens a qcow2 image for reading. Takes `file` over where it succeeds. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED, IO. */
export async function openQcow2(file: HostImageFile, opening: Opening): Promise<DiskImage> {
	return new Qcow2Image(await openParts(file, opening));
}

/** Everything that is open for an image. */
export interface Qcow2Files {
	readonly file: HostImageFile;
	readonly dataFile: HostImageFile | null;
	readonly backing: DiskImage | null;
	readonly header: Qcow2Header;
	readonly tables: MappingTables;
	readonly snapshotTable: SnapshotTable;
}

export async function openParts(file: HostImageFile, opening: Opening): Promise<Qcow2Files> {
	const { path } = opening;
	const header = await readHeader(file, path);
	const { l1Offset, l1Needed } = header;
	const tables = await MappingTables.open(file, header, path, { l1Offset, l1Entries: l1Needed });
	const snapshotTable = await readSnapshots(file, header, path);
	let dataFile: HostImageFile | null = null;
	if (header.dataFile !== null) {
		if (header.dataFile.name === null)
			throw damagedImage(path, "its data is in another file, but its header doesn't name it");
		dataFile = await opening.openPart(header.dataFile.name);
	}
	try {
		const backing = header.backing === null ? null : await opening.openBacking(header.backing);
		return { file, dataFile, backing, header, tables, snapshotTable };
	} catch (error) {
		await dataFile?.close();
		throw error;
	}
}

/** An open qcow2 image. Owns its files. */
export class Qcow2Image implements DiskImage {
	readonly path: string;
	readonly format = "qcow2";
	readonly size: ByteCount;
	readonly snapshots: readonly InternalSnapshot[];
	readonly warnings: readonly string[];
	protected readonly files: Qcow2Files;
	readonly #disk: Qcow2Disk;

	constructor(files: Qcow2Files) {
		const { file, header, backing, snapshotTable } = files;
		this.files = files;
		this.#disk = new Qcow2Disk({ ...files, path: file.path, decompress: unpack });
		this.path = file.path;
		this.size = header.size;
		this.snapshots = snapshotTable.snapshots.map(({ id, name }) => ({ id, name }));
		this.warnings = [...warningsOf(file.path, header), ...(backing?.warnings ?? [])];
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#disk.read(at, into);
	}

	runs(from: ByteOffset, to: ByteOffset): AsyncIterable<DiskRun> {
		return this.#disk.runs(from, to);
	}

	async *held(from: ByteOffset, to: ByteOffset): AsyncGenerator<HeldRun> {
		const { file, dataFile } = this.files;
		let last: { start: number; end: number } | undefined;
		for await (const run of this.#disk.stored(from, to)) {
			if (run.host < 0) continue;
			const end = run.start + run.length;
			const ranges =
				run.kind === "compressed"
					? [run]
					: guestRanges(run, (dataFile ?? file).allocated(run.host, run.host + run.length));
			for (const range of ranges) {
				const rangeEnd = Math.min(end, range.start + range.length);
				if (last?.end === range.start) last.end = rangeEnd;
				else {
					if (last !== undefined) yield heldRun(last);
					last = { start: range.start, end: rangeEnd };
				}
			}
		}
		if (last !== undefined) yield heldRun(last);
	}

	/** How this image itself stores `[from, to)`. */
	protected stored(from: number, to: number): AsyncIterable<StoredRun> {
		return this.#disk.stored(from, to);
	}

	layout(): SecondLayout | null {
		const { file, dataFile, backing, header } = this.files;
		const below = backing?.layout?.() ?? null;
		if (dataFile !== null || (backing !== null && below === null)) return null;
		return { kind: "qcow2", fd: file.fd, path: this.path, header, below };
	}

	async allocatedBytes(): Promise<ByteCount> {
		const { file, dataFile } = this.files;
		return byteCount((await file.allocatedBytes()) + ((await dataFile?.allocatedBytes()) ?? 0));
	}

	async parts(): Promise<readonly ImagePart[]> {
		const { file, dataFile, backing } = this.files;
		const parts: ImagePart[] = [
			{ path: this.path, format: "qcow2", role: "image", hostBytes: await file.allocatedBytes() },
		];
		if (dataFile !== null)
			parts.push({ path: dataFile.path, format: "raw", role: "data", hostBytes: await dataFile.allocatedBytes() });
		for (const part of (await backing?.parts()) ?? [])
			parts.push({ ...part, role: part.role === "image" ? "backing" : part.role });
		return parts;
	}

	async close(): Promise<void> {
		const { file, dataFile, backing } = this.files;
		await file.close();
		await dataFile?.close();
		await backing?.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}
}

function warningsOf(path: string, header: Qcow2Header): string[] {
	const warnings: string[] = [];
	if (header.corrupt)
		warnings.push(`${path} is marked as damaged; what is read from it may be wrong. Run qemu-img check.`);
	if (header.dirty)
		warnings.push(
			`${path} was not closed cleanly, its reference counts are out of date. Repair them: qemu-img check -r all ${path}.`,
		);
	return warnings;
}

function* guestRanges(
	run: { readonly start: number; readonly host: number },
	hostRuns: Iterable<{ readonly start: number; readonly end: number }>,
): Generator<{ readonly start: number; readonly length: number }> {
	for (const { start, end } of hostRuns) yield { start: run.start + (start - run.host), length: end - start };
}

const heldRun = ({ start, end }: { readonly start: number; readonly end: number }): HeldRun => ({
	start: byteOffset(start),
	length: byteCount(end - start),
});
