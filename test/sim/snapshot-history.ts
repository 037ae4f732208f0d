// Snapshots of one simulated disk: taken as `DiskSnapshots` takes them, interrupted by crashes, looked at, deleted. Each
// must show for ever what the disk showed when it was taken.

import { crc32 } from "node:zlib";
import type { LogFile } from "../../src/adapters/plane/disk-reader.ts";
import type { PlanePort, ViewHandle } from "../../src/adapters/plane/messages.ts";
import { type SnapshotSetup, Snapshots } from "../../src/adapters/plane/snapshots.ts";
import { ABSENT, formatFirstImage, ZERO } from "../../src/core/log/first-image.ts";
import { byteCount } from "../../src/foundations/units.ts";
import type { Cleaner } from "../../src/services/clean/cleaner.ts";
import { valueIn } from "./blocks.ts";
import { type DiskFiles, valueAt } from "./disk-files.ts";
import type { DiskTally } from "./disk-tally.ts";
import { PromiseBroken } from "./history.ts";
import type { Random } from "./random.ts";
import type { Scheduler } from "./scheduler.ts";
import { SimFile, type World } from "./sim-file.ts";
import type { SimPlane } from "./sim-plane.ts";

const BLOCK = 4096;
const SNAPSHOTS_MAX = 3;

/** The disk that snapshots are taken of; what its process consists of is another after each end. */
export interface SnapshotDisk {
	readonly world: World;
	readonly files: DiskFiles;
	readonly blocks: number;
	readonly random: Random;
	readonly tally: DiskTally;
	readonly plane: SimPlane;
	readonly port: PlanePort;
	readonly live: Scheduler;
	readonly cleaner: Cleaner;
	/** Of the view that was taken last: blocks that may show anything. */
	readonly unsettledInView: ReadonlySet<number>;
	/** Nobody has the disk's images for himself. */
	readonly isFree: boolean;
	/** Has `work` done beside whatever else goes on; the cleaner does nothing meanwhile. */
	exclusively(work: () => Promise<void>): void;
	/** What the log's value of a block stands for. */
	valueAt(value: number): number;
}

/** A named position of the disk, as its record beside the disk and its log have it. */
interface SimSnapshot {
	readonly name: string;
	readonly fd: number;
	readonly file: SimFile;
	readonly uuid: Uint8Array;
	/** Of the view that it shows. */
	readonly entry: number;
	/** What it must show, block by block; undefined: anything. */
	readonly shows: readonly (number | undefined)[];
	/** Blocks that the storage would not give when they were to be kept. */
	readonly lost: number[];
	complete: boolean;
}

export class SnapshotHistory {
	readonly #disk: SnapshotDisk;
	/** Oldest first. */
	#snapshots: SimSnapshot[] = [];
	#logs!: Snapshots;
	#files!: Map<number, SimFile>;
	#nextFd = 2_000_000;

	constructor(disk: SnapshotDisk) {
		this.#disk = disk;
	}

	/** What a new process is told of them: its data plane's snapshots, and their files by descriptor. */
	open(): { readonly logs: Snapshots; readonly files: Map<number, SimFile> } {
		const files = new Map(this.#snapshots.map(({ fd, file }) => [fd, file]));
		const logs = new Snapshots(
			(bytes) => crc32(bytes),
			(fd) => files.get(fd)!,
		);
		for (const snapshot of this.#snapshots) if (snapshot.complete) logs.add(setupOf(snapshot));
		this.#logs = logs;
		this.#files = files;
		return { logs, files };
	}

	/** Entries of the log whose instants must survive a crash: of snapshots that are not complete. */
	get entriesTaking(): number[] {
		return this.#snapshots.filter(({ complete }) => !complete).map(({ entry }) => entry);
	}

	/** The newest complete one. */
	get newest(): string | undefined {
		return this.#snapshots.findLast(({ complete }) => complete)?.name;
	}

	powerCut(random: Random): void {
		for (const { file } of this.#snapshots) file.powerCut(random);
	}

	/** The storage would not give these blocks when they were to be kept. */
	lose(name: string, blocks: readonly number[]): void {
		this.#snapshots.find((each) => each.name === name)!.lost.push(...blocks);
	}

	take(): void {
		const { isFree, port, plane, files, blocks, world, live } = this.#disk;
		if (!isFree || this.#snapshots.length >= SNAPSHOTS_MAX) return;
		this.#disk.exclusively(async () => {
			let snapshot: SimSnapshot | undefined;
			try {
				const view = await port.ask("takeView");
				const past = plane.viewPoints.view(view.id);
				// What was dropped is in use nowhere: while it can be brought back, a snapshot may show it or zeros.
				const unsettled = this.#disk.unsettledInView;
				const shows = Array.from({ length: blocks }, (_, block) => {
					const value = past.get(block);
					if (unsettled.has(block)) return undefined;
					return value === ABSENT ? valueIn(files.stored(block)) : this.#disk.valueAt(value);
				});
				await port.ask("flush");
				snapshot = this.#newSnapshot(view.entry, shows);
				await live.turn();
				if (world.isCut) return;
				this.#snapshots.push(snapshot);
				await this.#finish(snapshot, view);
				await port.ask("releaseView", view.id);
			} catch (error) {
				// The record goes first; what is left of the view goes with the process.
				this.#snapshots = this.#snapshots.filter((each) => each !== snapshot);
				throw error;
			}
		});
	}

	#newSnapshot(entry: number, shows: SimSnapshot["shows"]): SimSnapshot {
		const { world, blocks } = this.#disk;
		const fd = this.#nextFd++;
		const file = new SimFile(world);
		const uuid = new Uint8Array(16).fill(fd & 0xff);
		formatFirstImage(file, { uuid, diskBytes: byteCount(blocks * BLOCK), segmentBytes: 16 * 1024, limitBytes: 0 });
		file.datasync();
		this.#files.set(fd, file);
		return { name: `s${fd}`, fd, file, uuid, entry, shows, lost: [], complete: false };
	}

	async #finish(snapshot: SimSnapshot, view: ViewHandle): Promise<void> {
		const { cleaner, port, live, world, tally } = this.#disk;
		await cleaner.foldView(view);
		await port.ask("addSnapshot", setupOf(snapshot));
		await live.turn();
		if (world.isCut) return;
		snapshot.complete = true;
		tally.snapshots++;
	}

	/** Goes on with one that a crash interrupted: the log must still hold its instant. */
	resume(): void {
		const { port, tally } = this.#disk;
		const snapshot = this.#snapshots.find(({ complete }) => !complete);
		if (snapshot === undefined) return;
		this.#disk.exclusively(async () => {
			try {
				const view = await port.ask("recovered", snapshot.entry);
				if (view === null) throw new PromiseBroken(`the instant of ${snapshot.name} is lost`);
				await this.#finish(snapshot, view);
				await port.ask("releaseView", view.id);
				tally.snapshotsResumed++;
			} catch (error) {
				this.#snapshots = this.#snapshots.filter((each) => each !== snapshot);
				throw error;
			}
		});
	}

	/** Looks at one of them, and perhaps deletes one. */
	look(): void {
		const { random } = this.#disk;
		if (this.#snapshots.length > 0) this.#check(random.pick(this.#snapshots));
		if (random.chance(30)) this.#delete();
	}

	/** Deletes the oldest: no other reads through it. */
	#delete(): void {
		const { isFree, port } = this.#disk;
		const [oldest] = this.#snapshots;
		if (!isFree || !oldest?.complete) return;
		this.#disk.exclusively(async () => {
			// First, so that nobody looks at it between the data plane's answer and here.
			this.#snapshots.shift();
			await port.ask("removeSnapshot", oldest.name);
		});
	}

	/** Each shows what it showed when it was taken. */
	checkAll(): void {
		for (const snapshot of this.#snapshots) this.#check(snapshot);
	}

	#check({ name, shows, complete }: SimSnapshot): void {
		if (!complete) return;
		this.#disk.tally.snapshotsChecked++;
		const logs = this.#logs.logsOf(name);
		for (const [block, expected] of shows.entries()) {
			const found = this.#valueOf(logs, block);
			// An error is no wrong answer.
			if (found !== undefined && expected !== undefined && found !== expected)
				throw new PromiseBroken(`block ${block} of a snapshot is ${found}, was ${expected}`);
		}
	}

	/** What a snapshot shows of a block; undefined for an error. */
	#valueOf(logs: readonly LogFile[], block: number): number | undefined {
		for (const { log, fd, lost } of logs) {
			const value = log.get(block);
			if (value === ABSENT && lost?.has(block)) return undefined;
			if (value === ZERO) return 0;
			if (value !== ABSENT) return valueAt(this.#files.get(fd)!, log.offsetOfSlot(value));
		}
		return valueIn(this.#disk.files.stored(block));
	}
}

const setupOf = ({ name, fd, uuid, lost }: SimSnapshot): SnapshotSetup => ({ name, fd, path: name, uuid, lost });
