// A qcow2 image that is swept in place: verified as a whole first, then dropped from in batches.
//
// Where the data is in a file of its own, that file is punched and the tables stay as they are: they say "data", which
// then reads as zeros, and no counts are kept for another file.

import { compactImage } from "../../core/images/qcow2/compact.ts";
import { readHeader } from "../../core/images/qcow2/header.ts";
import { readSnapshots } from "../../core/images/qcow2/snapshots.ts";
import { Qcow2Sweep } from "../../core/images/qcow2/sweep.ts";
import { verifyImage } from "../../core/images/qcow2/verify.ts";
import type { DiskRun } from "../../core/images/virtual-disk.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset, roundDown, roundUp } from "../../foundations/units.ts";
import type { CompactOptions, HeldRun, SweepableImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import type { Opening } from "./opening.ts";
import { openParts, type Qcow2Files, Qcow2Image } from "./qcow2-image.ts";

/**
 * Opens and verifies a qcow2 image. Takes `file` over where it succeeds.
 * Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO; nothing is changed then.
 */
export async function openSweepableQcow2(file: HostImageFile, opening: Opening): Promise<SweepableImage> {
	const files = await openParts(file, opening);
	try {
		const { dataFile, snapshotTable } = files;
		const { path } = file;
		if (dataFile !== null && snapshotTable.snapshots.length > 0)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${path} has both snapshots and a data file, which QEMU never makes.`,
			);
		return new SweepableQcow2Image(files, await verified(file));
	} catch (error) {
		await files.dataFile?.close();
		await files.backing?.close();
		throw error;
	}
}

/** Reads all that the image says about itself, and checks it. */
async function verified(file: HostImageFile): Promise<Qcow2Sweep> {
	const { path } = file;
	const header = await readHeader(file, path);
	const image = await verifyImage(file, header, path, await readSnapshots(file, header, path));
	return new Qcow2Sweep({ path, header, image, hostBlock: await file.hostBlock() }, file);
}

class SweepableQcow2Image extends Qcow2Image implements SweepableImage {
	readonly unit: ByteCount;
	#sweep: Qcow2Sweep;
	/** Something was dropped that reads don't see yet. */
	#unsettled = false;

	constructor(files: Qcow2Files, sweep: Qcow2Sweep) {
		super(files);
		this.unit = byteCount(files.header.clusterSize);
		this.#sweep = sweep;
	}

	override async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#settle();
		await super.read(at, into);
	}

	override async *runs(from: ByteOffset, to: ByteOffset): AsyncGenerator<DiskRun> {
		await this.#settle();
		yield* super.runs(from, to);
	}

	override async *held(from: ByteOffset, to: ByteOffset): AsyncGenerator<HeldRun> {
		await this.#settle();
		yield* super.held(from, to);
	}

	async drop(start: ByteOffset, length: ByteCount): Promise<void> {
		const { dataFile } = this.files;
		if (dataFile !== null) {
			for await (const run of this.#dataRuns(start, length))
				await dataFile.punch(byteOffset(run.start), byteCount(run.length));
			return;
		}
		await this.#sweep.drop(start, length);
		this.#unsettled = true;
		if (this.#sweep.shouldCommit) await this.#settle();
	}

	async wouldDrop(start: ByteOffset, length: ByteCount): Promise<number> {
		const { file, dataFile } = this.files;
		let bytes = 0;
		const count = (counted: HostImageFile, from: number, to: number): void => {
			for (const run of counted.allocated(from, to)) bytes += run.end - run.start;
		};
		if (dataFile === null)
			for (const range of await this.#sweep.drop(start, length)) count(file, range.start, range.end);
		else for await (const run of this.#dataRuns(start, length)) count(dataFile, run.start, run.start + run.length);
		return bytes;
	}

	async flush(): Promise<void> {
		// Also where nothing was dropped: what an interrupted sweep leaked is given back.
		this.#unsettled = true;
		await this.#settle();
		await this.files.file.flush();
		await this.files.dataFile?.flush();
	}

	async compact(options: CompactOptions): Promise<void> {
		await this.flush();
		const { file, dataFile, tables } = this.files;
		// What little is in the file beside the data file is not worth it.
		if (dataFile !== null) return;
		try {
			await compactImage(file, this.path, options);
		} finally {
			const header = await readHeader(file, this.path);
			await tables.reload(header.l1Offset);
			this.#sweep = await verified(file);
		}
	}

	/** Whole clusters of a data file: its bytes are where the guest's are. */
	async *#dataRuns(start: number, length: number): AsyncGenerator<{ readonly start: number; readonly length: number }> {
		checkRange(this.size, start, length, this.path);
		const end = start + length === this.size ? this.size : roundDown(start + length, this.unit);
		const from = roundUp(start, this.unit);
		const fileEnd = this.files.dataFile?.size ?? 0;
		for await (const run of this.stored(from, Math.max(from, end)))
			if (run.host >= 0 && run.host < fileEnd)
				yield { start: run.host, length: Math.min(run.length, fileEnd - run.host) };
	}

	/** What was dropped is in the file, so that reads see it. */
	async #settle(): Promise<void> {
		if (!this.#unsettled) return;
		await this.#sweep.commit(this.files.file);
		this.#unsettled = false;
		await this.files.tables.reload();
	}
}
