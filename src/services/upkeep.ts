// Upkeep: what operators do to a disk beside its service, with its VM running or off: check, undo, resize.
//
// All of it is done in turns with the cleaner, which is the only one that changes the second image.

import type { DataPlane } from "../adapters/plane/data-plane.ts";
import { joinRuns } from "../core/cleaner/runs.ts";
import { ABSENT } from "../core/log/first-image.ts";
import { isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import type { GuestMap } from "../foundations/guest-map.ts";
import { BLOCK_SIZE, type ByteCount, byteCount } from "../foundations/units.ts";
import { type CheckReport, checkReport, placesOf, type RottenPlace, repairable } from "./check.ts";
import type { Cleaner } from "./clean/cleaner.ts";
import type { DiskDirectory } from "./disk-directory.ts";
import { readGuestMap } from "./guest-map.ts";
import { checkNewSize, checkTailUnused, notesAfterShrinking } from "./resize.ts";
import { type ScrubOptions, type ScrubReport, scrub } from "./scrub.ts";
import { viewSource } from "./view-source.ts";

/** Blocks brought back in one call: bounds memory. */
const UNDONE_AT_ONCE = 1024;

export interface UpkeepParts {
	readonly directory: DiskDirectory;
	readonly plane: DataPlane;
	readonly cleaner: Cleaner;
	/** Runs work while no round of the cleaner runs. */
	readonly exclusive: <T>(work: () => Promise<T>) => Promise<T>;
}

export class Upkeep {
	readonly #parts: UpkeepParts;

	constructor(parts: UpkeepParts) {
		this.#parts = parts;
	}

	get #size(): ByteCount {
		return byteCount(this.#parts.directory.description.size);
	}

	/**
	 * Reads everything again and compares it with its checksums; with `repair`, makes good what can be. Throws INTERRUPTED,
	 * DISK_STOPPED or IO.
	 */
	async check(options: ScrubOptions & { readonly repair?: boolean } = {}): Promise<CheckReport> {
		const { second, snapshots } = this.#parts.directory;
		const found = await scrub(
			{
				plane: this.#parts.plane,
				second,
				size: this.#size,
				snapshots: snapshots.readable(),
				exclusive: this.#parts.exclusive,
			},
			options,
		);
		return await this.#parts.exclusive(async () => {
			const places = found.rotten.length === 0 ? [] : placesOf(found.rotten, await this.#guestMap());
			const repaired = options.repair === true ? await this.#repair(found, places) : nothingRepaired;
			return checkReport(found, places, [], repaired);
		});
	}

	/** Of the disk as it is now; undefined where what it would read is rotten, too. */
	async #guestMap(): Promise<GuestMap | undefined> {
		const view = await this.#parts.plane.ask("takeView");
		try {
			const { firstFd, second } = this.#parts.directory;
			return await readGuestMap(viewSource(this.#parts.plane, view, firstFd, second, this.#size));
		} catch (error) {
			if (isVmsweepError(error, "IO")) return undefined;
			throw error;
		} finally {
			await this.#parts.plane.ask("releaseView", view.id);
		}
	}

	async #repair(
		{ rottenRecords }: ScrubReport,
		places: readonly RottenPlace[],
	): Promise<{ blocks: number; lines: string[]; records: boolean }> {
		const lines: string[] = [];
		const unused = joinRuns(repairable(places));
		// A running guest may use them again at any moment; its file system's view of them is older than that.
		const isQuiet = (await this.#parts.plane.ask("status")).clients === 0;
		let blocks = 0;
		if (unused.length > 0 && isQuiet) {
			blocks = await this.#parts.cleaner.giveUp(unused);
			lines.push(`gave up ${blocks} rotten blocks that the guest doesn't use; they read as zeros now`);
		}
		if (rottenRecords > 0) {
			const view = await this.#parts.plane.ask("takeView");
			try {
				await this.#parts.plane.ask("flush");
				await this.#parts.cleaner.foldView(view);
				lines.push(`moved what ${rottenRecords} rotten records of the first image describe to the second image`);
			} finally {
				await this.#parts.plane.ask("releaseView", view.id);
			}
		}
		return { blocks, lines, records: rottenRecords > 0 };
	}

	/** Brings back what was dropped and not written since; the VM must be off. Returns the bytes. Throws DISK_LOCKED, IO, NO_SPACE. */
	async undo(onProgress: (done: number, total: number) => void = () => {}): Promise<number> {
		await this.refuseClients("undo");
		return await this.#parts.exclusive(async () => {
			const runs = await this.#parts.plane.ask("undoable");
			let total = 0;
			for (let i = 0; i < runs.length; i += 4) total += runs[i + 1]! * BLOCK_SIZE;
			let done = 0;
			for (let i = 0; i < runs.length; i += 4)
				for (let from = 0; from < runs[i + 1]!; from += UNDONE_AT_ONCE) {
					const count = Math.min(UNDONE_AT_ONCE, runs[i + 1]! - from);
					const [block, , slot, at] = runs.subarray(i, i + 4);
					const piece = [
						block! + from,
						count,
						slot === ABSENT ? ABSENT : slot! + from,
						at! < 0 ? -1 : at! + from * BLOCK_SIZE,
					];
					done += (await this.#parts.plane.ask("restore", Float64Array.from(piece))) * BLOCK_SIZE;
					onProgress(done, total);
				}
			await this.#parts.plane.ask("flush");
			return done;
		});
	}

	/** Bytes that `undo` would bring back now. */
	async undoableBytes(): Promise<number> {
		const runs = await this.#parts.plane.ask("undoable");
		let bytes = 0;
		for (let i = 0; i < runs.length; i += 4) bytes += runs[i + 1]! * BLOCK_SIZE;
		return bytes;
	}

	/**
	 * Gives the disk another size, in bytes; clients see it when they connect again. Shrinking needs a disk without clients and
	 * snapshots, and a guest map that shows the tail unused. Returns notes for the operator.
	 * Throws USAGE, DISK_LOCKED, IMAGE_UNSUPPORTED, NO_SPACE or IO; a resize that was begun is finished by the next start.
	 */
	async resize(size: number): Promise<string[]> {
		checkNewSize(size);
		const isShrinking = size < this.#size;
		if (isShrinking) await this.refuseClients("shrink it");
		return await this.#parts.exclusive(async () => {
			const notes: string[] = [];
			if (isShrinking) notes.push(...(await this.#checkShrinking(size)));
			if (size !== this.#size) {
				const { directory } = this.#parts;
				const before = directory.description;
				await directory.describe({ ...before, resizingTo: size });
				try {
					await this.#finishResize(size);
				} catch (error) {
					// Only a log that has its old size can forget that another one was wanted.
					const { size: now } = await this.#parts.plane.ask("status");
					if (now === before.size && directory.second.size >= now) await directory.describe(before);
					throw error;
				}
			}
			return notes;
		});
	}

	async #checkShrinking(size: number): Promise<string[]> {
		const { snapshots } = this.#parts.directory;
		if (snapshots.count > 0)
			throw new VmsweepError(
				"DISK_LOCKED",
				`${this.#parts.directory.path} has ${snapshots.count} snapshots of its present size. Delete them before it is shrunk.`,
			);
		const map = await this.#guestMap();
		if (map === undefined)
			throw new VmsweepError(
				"IO",
				`${this.#parts.directory.path}: the guest's file systems can't be read. Run vmsweep check.`,
			);
		checkTailUnused(map, size, this.#parts.directory.path);
		return notesAfterShrinking(map);
	}

	/**
	 * Goes on with a resize that a crash interrupted. One that would shrink the disk, and had not come to the log yet, is
	 * looked at anew: clients may have written since. Throws as `resize` does.
	 */
	async resumeResize(): Promise<void> {
		const { directory, plane } = this.#parts;
		const { size, resizingTo, ...rest } = directory.description;
		if (resizingTo === undefined) return;
		const { size: now } = await plane.ask("status");
		if (resizingTo < size && now === size) await directory.describe({ ...rest, size });
		else await this.#finishResize(resizingTo);
	}

	/** Finishes a resize that was begun: whatever was done of it before a crash is done again. The image that has the guest's data beyond an end goes last. */
	async #finishResize(size: number): Promise<void> {
		const { second, description } = this.#parts.directory;
		if (size > second.size) await second.resize(byteCount(size));
		await this.#parts.plane.ask("resize", size);
		if (size < second.size) await second.resize(byteCount(size));
		await second.flush();
		this.#parts.cleaner.resized();
		const { resizingTo: _, ...rest } = description;
		await this.#parts.directory.describe({ ...rest, size });
	}

	/** Throws DISK_LOCKED where clients are connected. */
	async refuseClients(command: string): Promise<void> {
		const { clients } = await this.#parts.plane.ask("status");
		if (clients > 0)
			throw new VmsweepError(
				"DISK_LOCKED",
				`${this.#parts.directory.path} has ${clients} clients. Shut the VM down, then ${command}.`,
			);
	}
}

const nothingRepaired = { blocks: 0, lines: [], records: false };
