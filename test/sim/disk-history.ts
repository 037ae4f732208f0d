// One simulated life of a served disk: the product's data-plane calls, log, cleaner, mover, dropper and raw second image,
// and a guest with a file system (toy-guest.ts), all on one simulated host, all from one seed.
//
//   guest ─────────────► SimPlane: log, view points ─┐
//     │ records                                      ├─► first.log, second.raw ─► cut, kill, faults ─► recovery ─► checks
//   cleaner: judge, drop, move, free ─► RawImage ────┘
//
// Checked, at every cut and every end of the process
//  - nothing flushed is lost, and the disk is a consistent prefix (model.ts), byte for byte in every block that the
//    recovered file system uses
//  - no block is dropped while the guest uses it, at the moment of the drop
//  - recovery is stable, also when it is cut itself, and repeatable
//  - a view shows the same as long as it is held, and a snapshot for ever
//  - where the second image's record says that it stands by itself, it does
//  - a cleaned disk's first image becomes small: no reference update is forgotten

import { crc32 } from "node:zlib";
import type { SecondImage } from "../../src/adapters/images/second-image.ts";
import type { PlanePort } from "../../src/adapters/plane/messages.ts";
import type { View } from "../../src/core/log/first-image.ts";
import { ABSENT, formatFirstImage, ZERO } from "../../src/core/log/first-image.ts";
import { SecondSums } from "../../src/core/log/second-sums.ts";
import type { Safeguards } from "../../src/core/log/state.ts";
import { ALL_SAFEGUARDS } from "../../src/core/log/state.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { byteCount, byteOffset, type LogPosition, logPosition } from "../../src/foundations/units.ts";
import { Cleaner, type CleanerDisk, type RoundOptions } from "../../src/services/clean/cleaner.ts";
import { KEEP_ALL } from "../../src/services/clean/policy.ts";
import { viewSource } from "../../src/services/view-source.ts";
import { blocksOf, valueIn } from "./blocks.ts";
import { blockAt, DiskFiles, openLog, type SecondFormat, valueAt } from "./disk-files.ts";
import { type DiskTally, emptyDiskTally, type RotTally } from "./disk-tally.ts";
import { PromiseBroken } from "./history.ts";
import { Model } from "./model.ts";
import { checkQcow2 } from "./qcow2-checker.ts";
import { Random } from "./random.ts";
import { type Chooser, Scheduler } from "./scheduler.ts";
import { type Corruption, PowerCut, pinned, SOME_TORN, unitsOf, World } from "./sim-file.ts";
import { SimPlane } from "./sim-plane.ts";
import { allocatedIn, DISK_BLOCKS_MAX } from "./sim-second.ts";
import { type SnapshotDisk, SnapshotHistory } from "./snapshot-history.ts";
import { tinyQcow2 } from "./tiny-qcow2.ts";
import { type Commit, RECORD_BLOCK, ToyGuest, ToyVolumes } from "./toy-guest.ts";

const BLOCK = 4096;
/** Descriptors mean nothing here. */
const FIRST_FD = 1_000_001;
const UUID = new Uint8Array(16).fill(7);

/** What storage did to one of the disk's files. */
interface Misdeed extends Corruption {
	readonly name: "first" | "second" | "sums";
}

/** A deliberate fault of the product, made of its own code: switched-off safeguards, or calls lost or reordered. */
export interface Mutant {
	readonly name: string;
	readonly safeguards?: Partial<Safeguards>;
	readonly port?: (plane: SimPlane) => PlanePort;
	readonly second?: (second: SecondImage) => SecondImage;
	/** The second image changes while its record says that it stands by itself. */
	readonly staleStand?: boolean;
	/** The cleaner knows of no snapshots. */
	readonly ignoreSnapshots?: boolean;
}

interface Fetched {
	readonly bytes: Uint8Array;
	readonly sum: number;
	readonly place: "first" | "second" | "zero";
}

interface HeldView {
	readonly view: View;
	/** Value of every block that was in the first image, undefined for the others. */
	readonly values: readonly (number | undefined)[];
}

export interface DiskHistoryOptions {
	readonly tally?: DiskTally;
	readonly mutant?: Mutant | undefined;
	/** Decides the interleaving in place of the seed. */
	readonly chooser?: Chooser;
	/** Of the second image; by default the seed chooses. */
	readonly format?: SecondFormat;
	/** A disk of few blocks and small segments, without faults. */
	readonly small?: boolean;
}

/** One thing that happens to a disk from outside, for histories that are written down rather than drawn. */
export type Step =
	| { readonly kind: "write" | "trim" | "free"; readonly block: number }
	| { readonly kind: "record" | "flush" | "seal" | "clean" | "clean all" };

export class DiskHistory implements SnapshotDisk {
	readonly random: Random;
	readonly world: World;
	readonly guest: ToyGuest;
	readonly tally: DiskTally;
	readonly rot: RotTally = { rotted: 0, refused: 0, rottenReads: 0, olderPairs: 0 };
	readonly files: DiskFiles;
	readonly snapshots: SnapshotHistory;
	readonly blocks: number;
	model: Model;
	plane!: SimPlane;
	/** The plane as the cleaner sees it. */
	port!: PlanePort;
	live!: Scheduler;
	cleaner!: Cleaner;
	/** Of the view that was taken last: blocks that may show anything. */
	unsettledInView: ReadonlySet<number> = new Set();
	readonly #chooser: Chooser | undefined;
	readonly #mutant: Mutant | undefined;
	readonly #segmentBytes: number;
	readonly #commits = new Map<number, Commit>();
	#secondSums!: SecondSums;
	readonly #closing = new AbortController();
	/** The disk right after each record, by log position. */
	readonly #instants = new Map<LogPosition, readonly number[]>();
	/** What the views showed that the cleaner took by itself, by their number in this life of the plane. */
	readonly #viewed = new Map<number, readonly number[]>();
	/** The disk that the second image is by itself, by its record. */
	#stands: readonly number[] | undefined;
	#cleaning = false;
	#views: HeldView[] = [];
	#nextValue = 1;
	#now = 0;
	#lastTail = 0;
	#faulty = false;
	readonly #quarantineMs: number;
	/** What dropped blocks held, since the last start. */
	#dropped = new Map<number, number>();

	constructor(seed: number, options: DiskHistoryOptions = {}) {
		this.random = new Random(seed);
		this.tally = options.tally ?? emptyDiskTally();
		this.#mutant = options.mutant;
		this.#chooser = options.chooser;
		const { random } = this;
		this.world = new World(random, SOME_TORN);
		this.blocks = options.small ? 4 : random.pick([5, 12, DISK_BLOCKS_MAX]);
		this.#segmentBytes = (options.small ? 16 : random.pick([16, 16, 32, 64])) * 1024;
		if (!options.small) {
			this.world.atomicBytes = random.chance(30) ? 4096 : 512;
			this.world.tearPercent = random.pick([0, 4, 20]);
			this.world.shortPercent = random.pick([0, 20]);
		}
		this.#quarantineMs = options.small ? 0 : random.pick([0, 0, 60_000, 1e9]);
		const limitBytes = options.small || random.chance(50) ? 0 : 65_536 + this.#segmentBytes * (8 + random.below(8));
		this.guest = new ToyGuest(this.blocks, this.#commits);
		const initial: number[] = [];
		for (let block = 0; block < this.blocks; block++)
			initial.push(block !== RECORD_BLOCK && random.chance(50) ? 1_000_000 + block : 0);
		// What the image held before: all in use, as the first record will say.
		const old = new Set(initial.flatMap((value, block) => (value === 0 ? [] : [block])));
		this.#commits.set(0, { used: old, written: old });
		this.guest.mount(0);
		const format = options.format ?? (!options.small && random.chance(30) ? "qcow2" : "raw");
		this.files = new DiskFiles(this.world, this.blocks, format);
		this.snapshots = new SnapshotHistory(this);
		// As its own documents say, it bears no torn sectors.
		if (format === "qcow2") this.world.tearPercent = 0;
		const content = blocksOf(initial);
		const { first, second } = this.files;
		second.write(format === "raw" ? content : tinyQcow2(content, random.pick([12, 12, 14, 16])), 0);
		second.datasync();
		this.model = new Model(initial);
		formatFirstImage(first, {
			uuid: UUID,
			diskBytes: byteCount(this.blocks * BLOCK),
			segmentBytes: this.#segmentBytes,
			limitBytes,
		});
	}

	// ---- Lives --------------------------------------------------------------------------------------------

	/** Up to three lives, each ended by a cut, a kill or a clean stop. Throws PromiseBroken. */
	async run(): Promise<void> {
		await this.open();
		this.#faulty = this.random.chance(30);
		for (let life = 0; life < 3; life++) {
			this.tally.lives++;
			const cut = this.random.chance(80);
			this.world.cutAt = cut
				? this.world.calls + 1 + this.random.below(this.random.pick([60, 160, 500]))
				: Number.POSITIVE_INFINITY;
			this.world.noSpacePercent = this.#faulty ? this.random.pick([0, 3, 20]) : 0;
			this.world.ioPercent = this.#faulty ? this.random.pick([0, 0, 2]) : 0;
			await this.steps(40 + this.random.below(160));
			if (!this.world.isCut && this.plane.log.poisoned) this.tally.poisoned++;
			const calm = !this.#faulty && !this.world.isCut;
			// A quarantine holds segments for its time.
			if (calm && this.#quarantineMs === 0 && this.random.chance(50)) await this.settle();
			if (calm && !this.world.isCut && this.random.chance(30)) await this.cleanRestart();
			else await this.crash();
		}
	}

	/**
	 * One life without faults, and then storage that broke its word: a flipped bit, a lost or a misdirected write, in any of
	 * the files. The disk may refuse to open and blocks may be refused as rotten; none is read as what it never was. One case
	 * can't be noticed: a block of the second image and its checksum, both lost, are the older ones, and fit each other.
	 */
	async runRotten(): Promise<void> {
		this.world.remembers = true;
		await this.open();
		await this.steps(60 + this.random.below(160));
		const end = this.random.below(4);
		if (end < 2) await this.cleanRestart();
		else if (end === 2) this.#powerCut();
		const deeds = Array.from({ length: 1 + this.random.below(3) }, () => (): Misdeed | undefined => {
			const name = this.random.pick(["first", "first", "second", "sums"] as const);
			const deed = this.files[name].corrupt(this.random);
			return deed && { ...deed, name };
		});
		await this.breakWord(deeds);
	}

	/** Storage does this to the files while nobody has them open; then the disk is opened and every block looked at. Throws PromiseBroken. */
	async breakWord(misdeeds: readonly (() => Misdeed | undefined)[]): Promise<void> {
		const deeds: string[] = [];
		const lostContent = new Map<number, Uint8Array>();
		const lostSums = new Map<number, number>();
		for (const act of misdeeds) {
			const before = this.files.secondCopy();
			const deed = act();
			if (deed === undefined) continue;
			deeds.push(`${deed.name}: ${deed.what}`);
			if (!deed.isLostWrite) continue;
			const { stored, sums } = this.files.secondCopy();
			for (const [block, bytes] of stored.entries()) {
				const was = before.stored[block];
				if (bytes !== undefined && was !== undefined && Buffer.compare(bytes, was) !== 0) lostContent.set(block, bytes);
				if (sums[block] !== before.sums[block]) lostSums.set(block, sums[block]!);
			}
		}
		if (deeds.length === 0) return;
		this.rot.rotted++;
		try {
			await this.open();
		} catch (error) {
			if (!isVmsweepError(error) || error.kind === "bug") throw error;
			this.rot.refused++;
			return;
		}
		const unknown = new Set<number>();
		const disk = Array.from({ length: this.blocks }, (_, block) => {
			const { bytes, sum, place } = this.#fetch(block);
			const isRotten = sum !== 0 && sum !== crc32(bytes);
			if (isRotten) this.rot.rottenReads++;
			// What was in the second image before the disk was made has no checksum.
			if (isRotten || (place === "second" && sum === 0)) unknown.add(block);
			// Exactly the older pair: nothing beside the image can tell (docs/format/second-sums.md).
			const older = lostContent.get(block);
			const isOlderPair = older !== undefined && Buffer.compare(bytes, older) === 0 && lostSums.get(block) === sum;
			if (place === "second" && !unknown.has(block) && isOlderPair) {
				this.rot.olderPairs++;
				unknown.add(block);
			}
			return valueIn(bytes);
		});
		const inUse = unknown.has(RECORD_BLOCK) ? undefined : this.#commits.get(disk[RECORD_BLOCK]!)?.written;
		const served = `served silently, after ${deeds.join(", ")}`;
		if (deeds.some((deed) => deed.startsWith("first:"))) {
			// What is damaged at the log's end, behind what it notes as durable, looks like a write that a power cut took away.
			const wrong = disk.findIndex((value, block) => !unknown.has(block) && !this.model.everHeld(block, value));
			if (wrong >= 0) throw new PromiseBroken(`${served}: block ${wrong} is ${disk[wrong]}, which it never held`);
			return;
		}
		const explained = this.model.explain(disk, inUse, unknown);
		if ("problem" in explained) throw new PromiseBroken(`${served}: ${explained.problem}`);
	}

	/** Up to `count` steps of the guest and of who else waits, fewer if the power is cut. */
	async steps(count: number): Promise<void> {
		for (let i = 0; i < count && !this.world.isCut; i++) {
			if (this.plane.log.poisoned && this.random.chance(10)) return;
			if (this.live.waiting > 0 && this.random.chance(60)) await this.live.next();
			else {
				this.#guestStep();
				await this.live.drain();
			}
		}
	}

	/** Does one step; what it starts goes on in the turns after it. */
	perform(step: Step): void {
		try {
			if (step.kind === "write") this.writeData(step.block);
			else if (step.kind === "trim" || step.kind === "free") this.freeBlocks(step.kind === "trim", step.block, 1);
			else if (step.kind === "record") this.record();
			else if (step.kind === "flush") this.plane.flush(() => {});
			else if (step.kind === "seal") this.plane.log.seal();
			else this.#startCleaner(step.kind === "clean" ? { everything: true } : { everything: true, evenYoung: true });
		} catch (error) {
			this.#tolerate(error);
		}
	}

	/** Does steps one after another, each to its end. */
	async performAll(steps: readonly Step[]): Promise<void> {
		await this.open();
		for (const step of steps) {
			this.perform(step);
			await this.live.drain();
			while (this.live.waiting > 0) await this.live.next();
		}
	}

	/** Looks before every call of the host at what a cut there could leave; `look` says which cuts and how. */
	watchCuts(look: () => void): void {
		this.world.onCall = () => {
			try {
				look();
			} catch (error) {
				// Not into the product, which would take it for a failing host.
				this.live.fail(error);
			}
		};
	}

	/** Does steps in order, while those who wait go on in every order that the chooser picks. */
	async interleave(steps: readonly Step[]): Promise<void> {
		const left = steps.values();
		let step = left.next();
		while (!step.done || this.live.waiting > 0) {
			const choices = this.live.waiting + (step.done ? 0 : 1);
			// One choice for both questions: the guest's next step, or who of those that wait.
			const choice = choices === 1 ? 0 : this.#chooser!.below(choices);
			if (!step.done && choice === choices - 1) {
				this.perform(step.value);
				step = left.next();
				await this.live.drain();
			} else await this.live.next(choice);
		}
	}

	/** Recovers from what a power cut right now could leave, with each of some subsets of unflushed sectors. */
	checkCutNow(subsetsMax: number): number {
		const units = unitsOf(this.files.first.dirtySectors()).map((sectors) => ({
			first: sectors,
			second: [] as number[],
		}));
		units.push(
			...unitsOf(this.files.second.dirtySectors()).map((sectors) => ({ first: [] as number[], second: sectors })),
		);
		const subsets = Math.min(2 ** Math.min(units.length, 20), subsetsMax);
		for (let i = 0; i < subsets; i++) {
			// All of them where they are few; else spread over all, and always none and everything.
			const subset = units.length <= 20 && 2 ** units.length <= subsetsMax ? i : this.#sample(i, units.length);
			const kept = units.filter((_, unit) => (subset >> (unit % 20)) & 1);
			const world = new World(new Random(1), SOME_TORN);
			const first = this.files.first.clone(world);
			const second = this.files.second.clone(world);
			first.cutKeeping(new Set(kept.flatMap((unit) => unit.first)), i % 2 === 0);
			second.cutKeeping(new Set(kept.flatMap((unit) => unit.second)), true);
			const log = openLog(first, 1, this.#safeguards);
			const disk = Array.from({ length: this.blocks }, (_, block) => {
				const value = log.get(block);
				if (value === ABSENT) return valueAt(second, block * BLOCK);
				return value === ZERO ? 0 : valueAt(first, log.offsetOfSlot(value));
			});
			const explained = this.model.explain(disk, this.#commits.get(disk[RECORD_BLOCK]!)?.written);
			if ("problem" in explained)
				throw new PromiseBroken(`cut at call ${this.world.calls}, kept ${subset.toString(2)}: ${explained.problem}`);
		}
		return subsets;
	}

	#sample(i: number, units: number): number {
		if (i < 2) return i === 0 ? 0 : 0xf_ffff;
		if (i < 2 + units) return 0xf_ffff & ~(1 << ((i - 2) % 20));
		return Math.imul(i * 2 + 1, 0x9e37_79b1) >>> 12;
	}

	/** Power cut or end of the process, then recovery and all checks. */
	async crash(): Promise<void> {
		// After a failed sync the first image is written anew where it matters. Nobody can do that for a second image that
		// shows holes which may not be on disk: such a host has to be mounted anew before its disks are served again.
		const powerCut = this.world.isCut || this.files.second.cacheLies || this.random.chance(50);
		this.#calmWorld();
		if (powerCut) this.#powerCut();
		else this.tally.kills++;
		// Recovery itself may be cut, and again.
		while (this.random.chance(25)) {
			this.world.cutAt = this.world.calls + 1 + this.random.below(30);
			try {
				await this.open();
			} catch (error) {
				if (!(error instanceof PowerCut) && !this.world.isCut) throw error;
			}
			this.#calmWorld();
			this.#powerCut();
		}
		await this.recoverAndCheck();
	}

	async recoverAndCheck(): Promise<void> {
		this.#checkStand();
		this.#checkSecond();
		await this.open();
		const disk = this.readDisk();
		const inUse = this.#commits.get(disk[RECORD_BLOCK]!)?.written;
		const explained = this.model.explain(disk, inUse);
		if ("problem" in explained) throw new PromiseBroken(explained.problem);
		this.tally.lostEvents += this.model.eventCount - explained.events;
		const unsettled = this.model.unsettled(explained.events);
		for (const block of inUse ?? []) unsettled.delete(block);
		// Recovered is recovered: neither another start nor a power cut changes it.
		if (this.random.chance(50)) this.#powerCut();
		await this.open();
		const again = this.readDisk();
		const changed = again.findIndex((value, block) => value !== disk[block] && !unsettled.has(block));
		if (changed >= 0)
			throw new PromiseBroken(
				`block ${changed} was ${disk[changed]} after recovery and ${again[changed]} after another start`,
			);
		this.snapshots.checkAll();
		this.#begin(again, unsettled);
		this.snapshots.resume();
	}

	/** Where the record says so, the second image is by itself the disk at a record of the guest. */
	#checkStand(): void {
		const instant = this.#stands;
		if (instant === undefined) return;
		this.tally.standsChecked++;
		for (const block of [RECORD_BLOCK, ...(this.#commits.get(instant[RECORD_BLOCK]!)?.written ?? [])]) {
			const found = valueIn(this.files.stored(block));
			if (found !== instant[block])
				throw new PromiseBroken(
					`the second image stands by itself, but its block ${block} is ${found}, not ${instant[block]}`,
				);
		}
	}

	/** The guest shuts down and the disk is closed as `serve` does it. */
	async cleanRestart(): Promise<void> {
		this.tally.cleanRestarts++;
		await this.#finish(() => !this.#cleaning);
		const events = this.model.eventCount;
		let stopped = false;
		this.live.spawn(async () => {
			try {
				await this.plane.ask("stop");
			} catch (error) {
				this.#tolerate(error);
			}
			stopped = true;
		});
		await this.#finish(() => stopped);
		if (this.world.isCut) {
			await this.crash();
			return;
		}
		this.model.flushed(events);
		this.#calmWorld();
		if (this.random.chance(50)) this.#powerCut();
		await this.recoverAndCheck();
	}

	/** With a guest at rest and no views, cleaning leaves next to nothing in the first image. */
	async settle(): Promise<void> {
		this.world.cutAt = Number.POSITIVE_INFINITY;
		this.tally.settledDisks++;
		while (this.#views.length > 0) this.#checkView();
		await this.#finish(() => !this.#cleaning);
		for (let round = 0; round < 24; round++) {
			this.plane.log.seal();
			this.#startCleaner({ everything: true, evenYoung: true });
			await this.#finish(() => !this.#cleaning);
		}
		const live = this.plane.log.segments().reduce((sum, { liveSlots }) => sum + liveSlots, 0);
		const segments = this.plane.log.segments().length;
		if (live > 0 || segments > 2)
			throw new PromiseBroken(`${segments} segments with ${live} live blocks remain, whatever is cleaned`);
	}

	async open(): Promise<void> {
		this.#views = [];
		this.#cleaning = false;
		// A new process: who waited in the old one is gone.
		this.live = new Scheduler(
			this.#chooser ?? this.random,
			(error) => this.world.isCut && !(error instanceof PromiseBroken),
		);
		this.live.everyTurn = this.#chooser !== undefined;
		const log = openLog(this.files.first, this.random.below(3), this.#safeguards, this.snapshots.entriesTaking);
		if (this.#quarantineMs > 0) log.holdFrom(logPosition(0));
		const secondSums = new SecondSums(this.files.sums, UUID, "second.sums", 1);
		const { logs, files: snapshotLogs } = this.snapshots.open();
		const { first, sums } = this.files;
		const stored = (block: number): Uint8Array => this.files.stored(block);
		const files = { first, stored, sums, secondSums, snapshots: logs, snapshotLogs };
		this.#secondSums = secondSums;
		this.#viewed.clear();
		this.plane = new SimPlane(log, files, this.world, this.live, {
			dropped: (pairs) => this.#noteDropped(pairs),
			viewTaken: (id) => {
				this.#viewed.set(id, this.readDisk());
				this.unsettledInView = this.model.unsettled();
			},
			restoring: (runs) => this.#noteRestoring(runs),
			maybeDropped: (pairs) => this.#noteMaybeDropped(pairs),
			flushBegins: () => {
				const [model, events] = [this.model, this.model.eventCount];
				return () => model.flushed(events);
			},
		});
		const port = this.#mutant?.port?.(this.plane) ?? this.plane;
		this.port = port;
		const opened = await this.files.openSecond(this.live);
		const second = this.#mutant?.second?.(opened) ?? opened;
		const readView = (view: { readonly id: number; readonly position: LogPosition }) =>
			viewSource(
				port,
				view,
				FIRST_FD,
				second,
				byteCount(this.blocks * BLOCK),
				async (_: number, at: number, into: Uint8Array) => this.files.first.read(byteOffset(at), into),
			);
		const disk: CleanerDisk = {
			plane: port,
			firstFd: FIRST_FD,
			second,
			readView,
			newestSnapshot: () => (this.#mutant?.ignoreSnapshots ? undefined : this.snapshots.newest),
			onLost: async (name, blocks) => {
				if (!this.#faulty)
					throw new PromiseBroken(`blocks ${blocks.join()} are lost to a snapshot, but nothing failed`);
				await this.live.turn();
				if (this.world.isCut) return;
				this.snapshots.lose(name, blocks);
				for (const block of blocks) await port.ask("lose", { name, block });
			},
			beforeChange: () => (this.#mutant?.staleStand ? Promise.resolve() : this.#recordStand(undefined)),
			onFolded: (view) => this.#recordStand(this.#viewed.get(view.id) ?? this.#instants.get(view.position)!),
			closing: this.#closing.signal,
			rest: async () => {
				await this.live.later();
				return this.random.chance(90);
			},
			firstSpace: {
				can: true,
				giveBack: async (at: number, length: number) => {
					await this.live.turn();
					if (this.world.isCut) return new Promise(() => {});
					this.files.first.punch(byteOffset(at), length);
				},
			},
			policy: KEEP_ALL,
			quarantineMs: this.#quarantineMs,
		};
		this.cleaner = new Cleaner(disk, log.position, {
			identify: (plane, read) => ToyVolumes.identify(plane, read, this.guest),
			allocated: ({ held }) => (this.files.format === "raw" ? allocatedIn(this.files.second) : held),
			// Mostly all at once: each rest takes turns that the history then lacks.
			piece: () => ({ blocks: this.random.chance(20) ? 1 + this.random.below(8) : DISK_BLOCKS_MAX }),
			now: () => {
				this.#now += this.random.below(8000);
				return this.#now;
			},
		});
		this.#lastTail = log.tailPosition;
	}

	/** Whatever a cut leaves of a qcow2 image has no errors; leaks at most. */
	#checkSecond(): void {
		if (this.files.format === "raw") return;
		const { errors } = checkQcow2(this.files.second.contents().slice());
		if (errors.length > 0) throw new PromiseBroken(`the second image is damaged: ${errors.join("; ")}`);
		this.tally.qcow2Checked++;
	}

	get #safeguards(): Safeguards {
		return { ...ALL_SAFEGUARDS, ...this.#mutant?.safeguards };
	}

	readDisk(): number[] {
		return Array.from({ length: this.blocks }, (_, block) => this.readBlock(block));
	}

	/** What a client would be answered: verified, as the data plane does it. */
	readBlock(block: number): number {
		const { bytes, sum } = this.#fetch(block);
		if (sum !== 0 && sum !== crc32(bytes)) throw new PromiseBroken(`block ${block} looks rotten, but nothing rotted`);
		return valueIn(bytes);
	}

	/** A block as it is stored, and its checksum; 0: none is known. */
	#fetch(block: number): Fetched {
		const { log } = this.plane;
		const value = log.get(block);
		if (value === ZERO) return { bytes: new Uint8Array(BLOCK), sum: 0, place: "zero" };
		if (value === ABSENT) return { bytes: this.files.stored(block), sum: this.#secondSums.get(block), place: "second" };
		return { bytes: blockAt(this.files.first, log.offsetOfSlot(value)), sum: log.sumOfSlot(value), place: "first" };
	}

	/** Notes durably whether the second image stands by itself, and at which position. */
	async #recordStand(disk: readonly number[] | undefined): Promise<void> {
		if (this.#stands === disk) return;
		if (disk !== undefined) this.tally.folds++;
		await this.live.turn();
		// A small record, written and renamed: there or not.
		if (!this.world.isCut) this.#stands = disk;
	}

	#begin(disk: readonly number[], unsettled: ReadonlySet<number>): void {
		this.model = new Model(disk, unsettled);
		this.#dropped.clear();
		const record = disk[RECORD_BLOCK]!;
		this.guest.mount(this.#commits.has(record) ? record : 0);
	}

	#calmWorld(): void {
		this.world.powerOn();
		this.world.noSpacePercent = 0;
		this.world.ioPercent = 0;
	}

	#powerCut(): void {
		this.tally.cuts++;
		this.files.powerCut(this.random);
		this.snapshots.powerCut(this.random);
	}

	/** Lets all who wait go on until `done`. */
	async #finish(done: () => boolean): Promise<void> {
		await this.live.drain();
		for (let turns = 0; !done() && !this.world.isCut; turns++) {
			if (turns > 100_000 || this.live.waiting === 0) throw new PromiseBroken("somebody waits for ever");
			await this.live.next();
		}
	}

	// ---- The guest ----------------------------------------------------------------------------------------

	#guestStep(): void {
		const { random } = this;
		const step = random.below(100);
		try {
			if (step < 30) this.writeData();
			else if (step < 43) this.freeBlocks(random.chance(30));
			else if (step < 60) this.record();
			else if (step < 68) this.plane.flush(() => {});
			else if (step < 82) this.#startCleaner(this.#roundOptions());
			else if (step < 84) this.#takeOrCheckView();
			else if (step < 86) this.snapshots.take();
			else if (step < 87) this.snapshots.look();
			else if (step < 89) this.#undo();
			else if (step < 93) this.plane.log.seal();
			else this.#checkBlock();
			const tail = this.plane.log.tailPosition;
			if (tail > this.#lastTail) this.tally.freedSegments++;
			this.#lastTail = tail;
		} catch (error) {
			this.#tolerate(error);
		}
	}

	/** A batch of writes, to blocks in use and to new ones. */
	writeData(block?: number): void {
		const items: { block: number; count: number }[] = [];
		for (let i = block === undefined ? this.random.below(3) : 0; i >= 0; i--) {
			const first = block ?? 1 + this.random.below(this.blocks - 1);
			const count =
				block === undefined ? 1 + this.random.below(Math.min(this.blocks - first, this.random.pick([1, 3, 9]))) : 1;
			items.push({ block: first, count });
		}
		if (!this.#hasRoom(items.reduce((sum, { count }) => sum + count, 2 * items.length))) return;
		const { log } = this.plane;
		const writes = items.map((item) => ({
			...item,
			values: Array.from({ length: item.count }, () => this.#nextValue++),
		}));
		for (const { block: at, count, values } of writes) log.stageData(at, count, pinned(blocksOf(values)), 0);
		this.#commit(writes);
	}

	/** Frees some blocks in memory, and perhaps trims them. */
	freeBlocks(
		trim: boolean,
		block = 1 + this.random.below(this.blocks - 1),
		count = 1 + this.random.below(Math.min(4, this.blocks - block)),
	): void {
		for (let at = block; at < block + count; at++) this.guest.free(at);
		if (!trim || !this.#hasRoom(4)) return;
		this.plane.log.stageZero(block, count, "zero");
		const done = this.plane.log.commit();
		for (let at = block; at < block + count; at++) this.model.write(at, 0, done < 1);
		this.#notice(done === 1, block, count, undefined);
	}

	/** Freezes what the next record says, or writes it. */
	record(): void {
		const { guest } = this;
		if (guest.frozen === undefined) {
			guest.freeze();
			// Often at once, else with writes of the next transaction in between.
			if (this.#chooser !== undefined || this.random.chance(40)) return;
		}
		if (!this.#hasRoom(3)) return;
		const value = this.#nextValue++;
		this.#commits.set(value, guest.frozen!);
		guest.frozen = undefined;
		this.plane.log.stageData(RECORD_BLOCK, 1, pinned(blocksOf([value])), 0);
		const done = this.plane.log.commit();
		this.model.write(RECORD_BLOCK, value, done < 1);
		this.#noteFailure();
		this.#notice(done === 1, RECORD_BLOCK, 1, blocksOf([value]));
		if (done === 1) {
			this.tally.records++;
			this.#instants.set(this.plane.log.position, this.readDisk());
		}
		if (this.random.chance(50)) this.plane.flush(() => {});
	}

	#commit(writes: readonly { readonly block: number; readonly values: readonly number[] }[]): void {
		const done = this.plane.log.commit();
		writes.forEach(({ block, values }, item) => {
			for (const [i, value] of values.entries()) {
				this.model.write(block + i, value, item >= done);
				// A new block whose first write failed holds nothing that counts.
				if (item < done || this.guest.written.has(block + i)) this.guest.write(block + i);
				else this.guest.used.add(block + i);
			}
			this.#notice(item < done, block, values.length, blocksOf(values));
		});
		this.#noteFailure();
	}

	/** As the plane tells its view points of a write. */
	#notice(done: boolean, block: number, count: number, bytes: Uint8Array | undefined): void {
		const { viewPoints, log } = this.plane;
		if (!viewPoints.isWatching) return;
		const [at, length] = [block * BLOCK, count * BLOCK];
		if (!done) viewPoints.lose();
		else if (bytes === undefined) viewPoints.note(at, length, undefined, 0, log.position, log.position);
		else {
			const slot = log.get(block);
			viewPoints.note(at, length, bytes, 0, slot > ZERO ? log.positionOfSlot(slot) : log.position, log.position);
		}
	}

	#noteFailure(): void {
		if (this.plane.log.commitError?.code === "NO_SPACE") this.tally.noSpace++;
	}

	/** As the plane lets clients wait while the log is nearly full; the cleaner then makes room. */
	#hasRoom(blocks: number): boolean {
		const { log } = this.plane;
		const room = log.limitBytes - log.usedBytes >= blocks * BLOCK + 3 * this.#segmentBytes;
		if (!room && this.plane.stalled === 0) this.tally.stalls++;
		this.plane.stalled = room ? 0 : 1;
		if (!room) {
			this.plane.flush(() => {});
			this.#startCleaner({ inBackground: true });
		}
		return room;
	}

	// ---- The cleaner --------------------------------------------------------------------------------------

	#roundOptions(): RoundOptions {
		return this.random.pick([
			{ inBackground: true },
			{ everything: true },
			{ everything: true },
			{ everything: true, evenYoung: true },
		]);
	}

	/** One round, beside whatever else goes on. */
	#startCleaner(options: RoundOptions): void {
		if (!this.isFree) return;
		this.tally.rounds++;
		const { cleaner } = this;
		const moved = cleaner.counters.movedBytes;
		this.exclusively(async () => {
			try {
				await cleaner.round(options);
			} catch (error) {
				this.tally.brokenRounds++;
				throw error;
			} finally {
				this.tally.movedBlocks += (cleaner.counters.movedBytes - moved) / BLOCK;
			}
		});
	}

	get isFree(): boolean {
		return !this.#cleaning;
	}

	/** See `SnapshotDisk`. */
	exclusively(work: () => Promise<void>): void {
		this.#cleaning = true;
		this.live.spawn(async () => {
			try {
				await work();
			} catch (error) {
				this.#tolerate(error);
			}
			this.#cleaning = false;
		});
	}

	#noteDropped(pairs: Float64Array): void {
		for (let i = 0; i < pairs.length; i += 2)
			for (let block = pairs[i]!; block < pairs[i]! + pairs[i + 1]!; block++) {
				this.tally.droppedBlocks++;
				if (block === RECORD_BLOCK || this.guest.written.has(block))
					throw new PromiseBroken(`block ${block} was dropped while the guest uses it`);
				const held = this.model.latest(block);
				if (held === undefined) this.#dropped.delete(block);
				else this.#dropped.set(block, held);
				this.model.drop(block);
			}
	}

	#noteMaybeDropped(pairs: Float64Array): void {
		for (let i = 0; i < pairs.length; i += 2)
			for (let block = pairs[i]!; block < pairs[i]! + pairs[i + 1]!; block++)
				if (!this.guest.written.has(block)) this.model.drop(block);
	}

	/** Brings back what the quarantine still holds, some of it or all, as `vmsweep undo` does. */
	#undo(): void {
		if (!this.isFree || this.#quarantineMs === 0) return;
		this.exclusively(async () => {
			const undoable = await this.port.ask("undoable");
			for (let i = 0; i < undoable.length; i += 4)
				if (this.random.chance(70)) await this.port.ask("restore", undoable.slice(i, i + 4));
		});
	}

	/** Blocks are about to be brought back, where they still read as dropped: each as it was before. */
	#noteRestoring(runs: Float64Array): (done: boolean) => void {
		const restored: { readonly block: number; readonly value: number }[] = [];
		for (let i = 0; i < runs.length; i += 4)
			for (let j = 0; j < runs[i + 1]!; j++) {
				const block = runs[i]! + j;
				if (this.plane.log.get(block) !== ZERO) continue;
				const value =
					runs[i + 2] === ABSENT
						? valueIn(this.files.stored(block))
						: valueAt(this.files.first, runs[i + 3]! + j * BLOCK);
				const dropped = this.#dropped.get(block);
				if (dropped !== undefined && dropped !== value)
					throw new PromiseBroken(`undo brings back ${value} in block ${block}, which held ${dropped}`);
				restored.push({ block, value });
			}
		return (done) => {
			this.tally.undone += restored.length;
			for (const { block, value } of restored) this.model.write(block, value, !done);
		};
	}

	// ---- Views and the host -------------------------------------------------------------------------------

	#checkBlock(): void {
		const block = this.random.below(this.blocks);
		const value = this.readBlock(block);
		if (!this.model.allowsNow(block, value, this.guest.written.has(block)))
			throw new PromiseBroken(`block ${block} reads as ${value} while running`);
	}

	#takeOrCheckView(): void {
		if (this.#views.length >= 3 || (this.#views.length > 0 && this.random.chance(40))) {
			this.#checkView();
			return;
		}
		const view = this.plane.log.takeView();
		const values = Array.from({ length: this.blocks }, (_, block) => {
			const value = view.get(block);
			return value === ABSENT ? undefined : this.valueAt(value);
		});
		this.#views.push({ view, values });
	}

	#checkView(): void {
		const [held] = this.#views.splice(this.random.below(this.#views.length), 1);
		this.tally.viewsChecked++;
		held!.values.forEach((expected, block) => {
			const value = held!.view.get(block);
			const now = value === ABSENT ? undefined : this.valueAt(value);
			if (now !== expected) throw new PromiseBroken(`block ${block} of a view was ${expected} and became ${now}`);
		});
		held!.view.release();
	}

	/** See `SnapshotDisk`. */
	valueAt(value: number): number {
		return value === ZERO ? 0 : valueAt(this.files.first, this.plane.log.offsetOfSlot(value));
	}

	/** Simulated failures are part of the history; anything else is a bug. */
	#tolerate(error: unknown): void {
		if (error instanceof PowerCut || this.world.isCut) return;
		const codes = this.#faulty ? ["IO", "NO_SPACE", "LOG_POISONED", "LOG_FULL"] : ["LOG_FULL"];
		if (isVmsweepError(error) && codes.includes(error.code)) return;
		throw error;
	}
}
