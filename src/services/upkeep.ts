// Upkeep: what operators do to a disk beside its service, with its VM running or off: check, undo, resize.
//
// All of it is done in turns with the cleaner, which is the only one that changes the second image.

import type { PlanePort, ViewHandle } from "../adapters/plane/messages.ts";
import { type LiveRun, partOf, unpackLiveRuns } from "../core/cleaner/plan.ts";
import { type BlockRun, blocksIn, joinRuns, piecesOf } from "../core/cleaner/runs.ts";
import { ABSENT } from "../core/log/first-image.ts";
import { isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import { allVolumes, type GuestMap } from "../foundations/guest-map.ts";
import { BLOCK_SIZE, type ByteCount, byteCount } from "../foundations/units.ts";
import { type CheckReport, checkReport, placesOf, type RottenPlace, repairable } from "./check.ts";
import type { Cleaner } from "./clean/cleaner.ts";
import { forgetSums } from "./clean/forget-sums.ts";
import { heldBlocks } from "./clean/held-blocks.ts";
import { makeDurable } from "./clean/make-durable.ts";
import type { DiskDirectory } from "./disk-directory.ts";
import { nbdSocketPath } from "./disk-paths.ts";
import { checkNewSize } from "./disk-size.ts";
import { type DropPolicy, wholeUnits, whyKept } from "./droppable.ts";
import { readGuestMap } from "./guest-map.ts";
import { checkTailUnused, notesAfterShrinking } from "./resize.ts";
import { checkNotSaved } from "./saved-machines.ts";
import { type ScrubOptions, type ScrubReport, scrub } from "./scrub.ts";
import { viewSource } from "./view-source.ts";

/** Blocks brought back in one call: bounds memory. */
const UNDONE_AT_ONCE = 1024;

export interface UpkeepParts {
	readonly directory: DiskDirectory;
	readonly plane: PlanePort;
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
			return await this.#withView(async (view) => {
				const places = found.rotten.length === 0 ? [] : placesOf(found.rotten, await this.#guestMap(view));
				const repaired = options.repair === true ? await this.#repair(found, places, view) : nothingRepaired;
				return checkReport(found, places, [], repaired);
			});
		});
	}

	async #withView<T>(work: (view: ViewHandle) => Promise<T>): Promise<T> {
		const view = await this.#parts.plane.ask("takeView");
		try {
			return await work(view);
		} finally {
			await this.#parts.plane.ask("releaseView", view.id);
		}
	}

	/** Of the disk in a view; undefined where what it would read is rotten, too. */
	async #guestMap(view: ViewHandle): Promise<GuestMap | undefined> {
		try {
			const { firstFd, second } = this.#parts.directory;
			return await readGuestMap(viewSource(this.#parts.plane, view, firstFd, second, this.#size));
		} catch (error) {
			if (isVmsweepError(error, "IO")) return undefined;
			throw error;
		}
	}

	/** @param view the one that `places` were looked up in */
	async #repair(
		{ rottenRecords }: ScrubReport,
		places: readonly RottenPlace[],
		view: ViewHandle,
	): Promise<{ blocks: number; lines: string[]; records: boolean }> {
		const lines: string[] = [];
		const unused = joinRuns(repairable(places));
		// A running guest may use them again at any moment; its file system's view of them is older than that.
		const { clients, guestEntries } = await this.#parts.plane.ask("status");
		const isQuiet = clients === 0 && guestEntries === view.guestEntries;
		let blocks = 0;
		if (unused.length > 0 && isQuiet) {
			blocks = await this.#parts.cleaner.giveUp(unused, view);
			lines.push(`gave up ${blocks} rotten blocks that the guest doesn't use; they read as zeros now`);
		}
		if (rottenRecords > 0) {
			await this.#withView(async (now) => {
				await makeDurable(this.#parts.plane, now);
				await this.#parts.cleaner.foldView(now);
			});
			lines.push(`moved what ${rottenRecords} rotten records of the first image describe to the second image`);
		}
		return { blocks, lines, records: rottenRecords > 0 };
	}

	/**
	 * Brings back what was dropped and not written since; the VM must be off. Returns the bytes that are back, and those that
	 * can't be read any more. Throws DISK_LOCKED, IO, NO_SPACE.
	 */
	async undo(
		onProgress: (done: number, total: number) => void = () => {},
	): Promise<{ bytes: number; rottenBytes: number }> {
		await this.refuseClients("undo");
		return await this.#parts.exclusive(async () => {
			const runs = await this.#undoable();
			const total = blocksIn(runs) * BLOCK_SIZE;
			let done = 0;
			let back = 0;
			let rotten = 0;
			for (const run of runs)
				for (const { block, count } of piecesOf(run, UNDONE_AT_ONCE)) {
					const piece = await this.#restore(partOfDropped(run, block, count));
					back += piece.back;
					rotten += piece.rotten;
					done += count * BLOCK_SIZE;
					onProgress(done, total);
				}
			await this.#parts.plane.ask("flush");
			return { bytes: back * BLOCK_SIZE, rottenBytes: rotten * BLOCK_SIZE };
		});
	}

	/** Bytes that `undo` would bring back now, but for blocks of zeros and rotten ones. */
	async undoableBytes(): Promise<number> {
		return blocksIn(await this.#undoable()) * BLOCK_SIZE;
	}

	/** Dropped blocks of which there still is something: what the second image holds no more was punched. */
	async #undoable(): Promise<LiveRun[]> {
		const { plane, directory } = this.#parts;
		const dropped = unpackLiveRuns(await plane.ask("undoable"));
		const there: LiveRun[] = [];
		for (const run of dropped) {
			if (run.slot !== ABSENT) {
				there.push(run);
				continue;
			}
			const { second } = directory;
			for await (const held of heldBlocks(second.held, second.size, run)) there.push({ ...run, ...held });
		}
		return there;
	}

	/** Counts blocks. A rotten block stays away, but not the others around it. */
	async #restore(run: LiveRun): Promise<{ back: number; rotten: number }> {
		const { block, count, slot, at } = run;
		try {
			return { back: await this.#parts.plane.ask("restore", Float64Array.of(block, count, slot, at)), rotten: 0 };
		} catch (error) {
			if (!isVmsweepError(error, "IO")) throw error;
			if (count === 1) return { back: 0, rotten: 1 };
			const sum = { back: 0, rotten: 0 };
			for (let i = 0; i < count; i++) {
				const { back, rotten } = await this.#restore(partOfDropped(run, block + i, 1));
				sum.back += back;
				sum.rotten += rotten;
			}
			return sum;
		}
	}

	/**
	 * Drops what the guest's file systems don't use, mounted or not, with the VM off for good (docs/live-safety.md, "VM off").
	 * Returns why volumes are kept all the same, by their ids. Throws DISK_LOCKED where clients are connected, IMAGE_LOCKED
	 * where a saved VM needs the disk, DISK_STOPPED, NO_SPACE or IO.
	 */
	async dropWithVmOff(keepFreeExtents: boolean): Promise<ReadonlyMap<string, string | null>> {
		const { directory, plane, cleaner, exclusive } = this.#parts;
		await this.refuseClients("clean --vm-off");
		await checkNotSaved(directory.second.path);
		await checkNotSaved(nbdSocketPath(directory.path));
		return await exclusive(() =>
			this.#withView(async (view) => {
				const { firstFd, second } = directory;
				const source = viewSource(plane, view, firstFd, second, this.#size);
				const map = await readGuestMap(source, { vmOff: true, keepFreeExtents });
				await this.refuseClients("clean --vm-off");
				await cleaner.dropUnused(blockRunsOf(map), view);
				return new Map([...allVolumes(map.volumes)].map((volume) => [volume.id, whyKept(volume, VM_OFF)]));
			}),
		);
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
			const { notes, guestEntries } = isShrinking ? await this.#checkShrinking(size) : nothingToCheck;
			if (size !== this.#size) {
				const { directory } = this.#parts;
				const before = directory.description;
				await directory.second.checkResize(byteCount(size));
				await directory.describe({ ...before, resizingTo: size });
				try {
					await this.#finishResize(size, guestEntries);
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

	async #checkShrinking(size: number): Promise<{ notes: string[]; guestEntries: number }> {
		const { snapshots } = this.#parts.directory;
		if (snapshots.count > 0)
			throw new VmsweepError(
				"DISK_LOCKED",
				`${this.#parts.directory.path} has ${snapshots.count} snapshots of its present size. Delete them before it is shrunk.`,
			);
		return await this.#withView(async (view) => {
			const map = await this.#guestMap(view);
			if (map === undefined)
				throw new VmsweepError(
					"IO",
					`${this.#parts.directory.path}: the guest's file systems can't be read. Run vmsweep check.`,
				);
			checkTailUnused(map, size, this.#parts.directory.path);
			return { notes: notesAfterShrinking(map), guestEntries: view.guestEntries };
		});
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
	async #finishResize(size: number, guestEntries?: number): Promise<void> {
		const { directory, plane } = this.#parts;
		const { second, description, stand } = directory;
		const before = second.size;
		await directory.recordStand({ ...stand, state: "needs-first-image" });
		if (size > before) await second.resize(byteCount(size));
		await plane.ask("resize", { size, guestEntries });
		// What is cut off is gone, and what is gained later is zeros: old checksums would make that look rotten.
		const [from, to] = [Math.min(size, before) / BLOCK_SIZE, Math.max(size, before) / BLOCK_SIZE];
		await forgetSums(plane, [{ block: from, count: to - from }]);
		if (size < before) await second.resize(byteCount(size));
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

const VM_OFF: DropPolicy = { vmOff: true };

/** What may go with the VM off, in whole blocks; found as it is walked. */
function* blockRunsOf(map: GuestMap): Generator<BlockRun> {
	for (const { start, end } of wholeUnits(map, VM_OFF, BLOCK_SIZE))
		yield { block: start / BLOCK_SIZE, count: Math.floor((end - start) / BLOCK_SIZE) };
}

/** Blocks of the second image have no slot that counts on. */
const partOfDropped = (run: LiveRun, block: number, count: number): LiveRun =>
	run.slot === ABSENT ? { ...run, block, count } : partOf(run, block, count);

const nothingToCheck = { notes: [], guestEntries: undefined };
const nothingRepaired = { blocks: 0, lines: [], records: false };
