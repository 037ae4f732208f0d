// A qcow2 image that is swept in place: verified as a whole first, then dropped from in batches.
//
// Where the data is in a file of its own, that file is punched and the tables stay as they are: they say "data", which
// then reads as zeros, and no counts are kept for another file.

import { compactImage } from "../../core/images/qcow2/compact.ts";
import { readHeader } from "../../core/images/qcow2/header.ts";
import { type ClusterCounts, Holds } from "../../core/images/qcow2/refcounts.ts";
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

interface Verified {
	readonly sweep: Qcow2Sweep;
	/** Of the file; what is dropped is taken off. */
	readonly counts: ClusterCounts;
}

/** Reads all that the image says about itself, and checks it. */
async function verified(file: HostImageFile): Promise<Verified> {
	const { path } = file;
	const header = await readHeader(file, path);
	const image = await verifyImage(file, header, path, await readSnapshots(file, header, path));
	const sweep = new Qcow2Sweep({ path, header, image, hostBlock: await file.hostBlock() }, file);
	return { sweep, counts: image.counts };
}

class SweepableQcow2Image extends Qcow2Image implements SweepableImage {
	readonly unit: ByteCount;
	readonly dropsToZeros: boolean;
	#verified: Verified;
	/** Something was dropped that reads don't see yet. */
	#unsettled = false;

	constructor(files: Qcow2Files, image: Verified) {
		super(files);
		this.unit = byteCount(files.header.clusterSize);
		// Clusters of a data file stay in the tables.
		this.dropsToZeros = files.dataFile === null || files.dataFile.punchesToZeros;
		this.#verified = image;
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

	async drop(start: ByteOffset, length: ByteCount): Promise<number> {
		const { file, dataFile } = this.files;
		if (dataFile !== null) {
			let bytes = 0;
			for await (const run of this.#dataRuns(start, length)) {
				bytes += heldIn(dataFile, run.start, run.start + run.length);
				await dataFile.giveBack(byteOffset(run.start), byteCount(run.length));
			}
			return bytes;
		}
		const { sweep } = this.#verified;
		const ranges = await sweep.drop(start, length);
		const bytes = ranges.reduce((sum, range) => sum + heldIn(file, range.start, range.end), 0);
		this.#unsettled = true;
		if (sweep.shouldCommit) await this.#settle();
		return bytes;
	}

	async wouldDrop(start: ByteOffset, length: ByteCount): Promise<number> {
		const { file, dataFile } = this.files;
		let bytes = 0;
		if (dataFile !== null) {
			for await (const run of this.#dataRuns(start, length))
				bytes += heldIn(dataFile, run.start, run.start + run.length);
			return bytes;
		}
		const { sweep } = this.#verified;
		for (const range of await sweep.drop(start, length)) bytes += heldIn(file, range.start, range.end);
		if (sweep.shouldCommit) sweep.forget();
		return bytes;
	}

	async snapshotBytes(): Promise<ByteCount> {
		if (this.snapshots.length === 0) return byteCount(0);
		const { counts } = this.#verified;
		const present = await this.#presentClusters();
		const isOnlyInSnapshots = (cluster: number): boolean => {
			const what = counts.holds(cluster);
			return (
				(what === Holds.DATA || what === Holds.COMPRESSED) && (present[cluster >>> 3]! & (1 << (cluster & 7))) === 0
			);
		};
		let bytes = 0;
		for (let cluster = 0; cluster < counts.clusters; cluster++) {
			if (!isOnlyInSnapshots(cluster)) continue;
			const first = cluster;
			while (cluster + 1 < counts.clusters && isOnlyInSnapshots(cluster + 1)) cluster++;
			for (const { start, end } of this.files.file.allocated(first * this.unit, (cluster + 1) * this.unit))
				bytes += end - start;
		}
		return byteCount(bytes);
	}

	/** A bit for each cluster of the file that holds something of the disk's present state. */
	async #presentClusters(): Promise<Uint8Array> {
		const present = new Uint8Array(Math.ceil(this.#verified.counts.clusters / 8));
		for await (const { host, length, compressedLength } of this.stored(0, this.size)) {
			if (host < 0) continue;
			const last = Math.floor((host + (compressedLength || length) - 1) / this.unit);
			for (let cluster = Math.floor(host / this.unit); cluster <= last; cluster++)
				present[cluster >>> 3]! |= 1 << (cluster & 7);
		}
		return present;
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
			this.#verified = await verified(file);
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
		await this.#verified.sweep.commit(this.files.file);
		this.#unsettled = false;
		await this.files.tables.reload();
	}
}

/** Host bytes that a part of a file takes. */
function heldIn(file: HostImageFile, from: number, to: number): number {
	let bytes = 0;
	for (const { start, end } of file.allocated(from, to)) bytes += end - start;
	return bytes;
}
