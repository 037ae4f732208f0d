// One simulated life of a disk: guest writes, flushes, cleaning into a second image, views, restarts, failing calls and
// power cuts, all from one seed; after every cut the promise of model.ts is checked.
//
// The harness is the product around the log in miniature: it reads through both images, copies with a flush of the
// second image before `moved`, punches before `punched`, and drops only what no later guest write depends on.

import { crc32 } from "node:zlib";
import type { View } from "../../src/core/log/first-image.ts";
import { ABSENT, FirstImage, formatFirstImage, ZERO } from "../../src/core/log/first-image.ts";
import type { Safeguards } from "../../src/core/log/state.ts";
import { ALL_SAFEGUARDS } from "../../src/core/log/state.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import { blocksOf, valueIn } from "./blocks.ts";
import { Model } from "./model.ts";
import { Random } from "./random.ts";
import { PowerCut, pinned, SimFile, SOME_TORN, World } from "./sim-file.ts";

const BLOCK = 4096;

/** What a history saw, to see that the simulation reaches what it is meant to reach. */
export interface Tally {
	cuts: number;
	lostEvents: number;
	reusedSegments: number;
	moved: number;
	dropped: number;
	noSpace: number;
	logFull: number;
	poisoned: number;
}

export const emptyTally = (): Tally => ({
	cuts: 0,
	lostEvents: 0,
	reusedSegments: 0,
	moved: 0,
	dropped: 0,
	noSpace: 0,
	logFull: 0,
	poisoned: 0,
});

/** The promise was broken. */
export class PromiseBroken extends Error {}

interface HeldView {
	readonly view: View;
	/** What the view showed when it was taken: value of every block in the first image, undefined for the others. */
	readonly values: readonly (number | undefined)[];
}

export class History {
	readonly random: Random;
	readonly world: World;
	first: SimFile;
	second: SimFile;
	readonly tally: Tally;
	model: Model;
	log!: FirstImage;
	readonly #blocks: number;
	readonly #safeguards: Safeguards;
	readonly #limitBytes: number;
	#views: HeldView[] = [];
	#nextValue = 1;
	#lastTail = 0;

	constructor(seed: number, safeguards: Safeguards = ALL_SAFEGUARDS, tally: Tally = emptyTally(), blocks?: number) {
		this.random = new Random(seed);
		this.tally = tally;
		this.#safeguards = safeguards;
		this.world = new World(this.random, SOME_TORN);
		this.first = new SimFile(this.world);
		this.second = new SimFile(this.world);
		this.#blocks = blocks ?? this.random.pick([4, 12, 40]);
		const segmentBytes = (blocks ? 16 : this.random.pick([16, 16, 32, 64])) * 1024;
		this.#limitBytes = this.random.chance(50) ? 0 : 65_536 + segmentBytes * (4 + this.random.below(8));
		const initial: number[] = [];
		for (let block = 0; block < this.#blocks; block++) initial.push(this.random.chance(50) ? 1_000_000 + block : 0);
		this.second.write(blocksOf(initial), 0);
		this.second.datasync();
		this.model = new Model(initial);
		const uuid = new Uint8Array(16).fill(7);
		formatFirstImage(this.first, {
			uuid,
			diskBytes: byteCount(this.#blocks * BLOCK),
			segmentBytes,
			limitBytes: this.#limitBytes,
		});
		this.open();
	}

	/** A few dozen steps with up to three power cuts. Throws PromiseBroken. */
	run(): void {
		const faulty = this.random.chance(30);
		for (let life = 0; life < 3; life++) {
			this.world.cutAt = this.world.calls + 1 + this.random.below(120);
			this.world.noSpacePercent = faulty ? this.random.pick([0, 3, 20]) : 0;
			this.world.ioPercent = faulty ? this.random.pick([0, 0, 2]) : 0;
			this.steps(Number.POSITIVE_INFINITY);
			if (this.log.poisoned) this.tally.poisoned++;
			this.crash();
		}
	}

	/** Up to `count` steps, fewer if the power is cut. */
	steps(count: number): void {
		for (let i = 0; i < count && !this.world.isCut && !this.log.poisoned; i++) this.#step();
	}

	/** Power cut or end of the process, then recovery and all checks. */
	crash(): void {
		const powerCut = this.world.isCut || this.random.chance(50);
		this.world.powerOn();
		this.world.noSpacePercent = 0;
		this.world.ioPercent = 0;
		if (powerCut) this.powerCut();
		// Recovery itself may be cut, and again.
		while (this.random.chance(25)) {
			this.world.cutAt = this.world.calls + 1 + this.random.below(30);
			try {
				this.open();
			} catch (error) {
				if (!(error instanceof PowerCut) && !this.world.isCut) throw error;
			}
			this.world.powerOn();
			this.powerCut();
		}
		this.recoverAndCheck();
	}

	powerCut(): void {
		this.tally.cuts++;
		this.first.powerCut(this.random);
		this.second.powerCut(this.random);
	}

	recoverAndCheck(): void {
		this.open();
		const disk = this.readDisk();
		const explained = this.model.explain(disk);
		if ("problem" in explained) throw new PromiseBroken(explained.problem);
		this.tally.lostEvents += this.model.eventCount - explained.events;
		// Recovered is recovered: neither another start nor a power cut changes it.
		if (this.random.chance(50)) this.powerCut();
		this.open();
		const again = this.readDisk();
		const changed = again.findIndex((value, block) => value !== disk[block]);
		if (changed >= 0)
			throw new PromiseBroken(
				`block ${changed} was ${disk[changed]} after recovery and ${again[changed]} after another start`,
			);
		this.model = new Model(disk);
	}

	open(): void {
		// Only so that a dropped block, which may have any content, reads the same before and after the next power cut.
		this.second.datasync();
		this.#views = [];
		this.log = FirstImage.open(this.first, {
			checksum: (bytes) => crc32(bytes),
			allocatePinned: (length) => pinned(new Uint8Array(length)),
			warmSegments: this.random.below(3),
			safeguards: this.#safeguards,
			viewsAtEntries: this.viewsAtEntries(),
		});
		this.#lastTail = this.log.tailPosition;
	}

	/** Views to be taken again. */
	protected viewsAtEntries(): number[] {
		return [];
	}

	readDisk(): number[] {
		return Array.from({ length: this.#blocks }, (_, block) => this.readBlock(block));
	}

	readBlock(block: number): number {
		const value = this.log.get(block);
		return value === ABSENT ? this.readFrom(this.second, block * BLOCK) : this.valueAt(value);
	}

	/** One batch of guest writes, committed. */
	guestWrite(): void {
		const { random, model } = this;
		const items: { block: number; values: number[] }[] = [];
		for (let i = random.below(3); i >= 0; i--) {
			const block = random.below(this.#blocks);
			const count = 1 + random.below(Math.min(this.#blocks - block, random.pick([1, 3, 9])));
			const zero = random.chance(20);
			const values = Array.from({ length: count }, () => (zero ? 0 : this.#nextValue++));
			items.push({ block, values });
			if (zero) this.log.stageZero(block, count, "zero");
			else this.log.stageData(block, count, pinned(blocksOf(values)), 0);
		}
		const done = this.log.commit();
		items.forEach(({ block, values }, item) => {
			for (const [i, value] of values.entries()) model.write(block + i, value, item >= done);
		});
		const code = this.log.commitError?.code;
		if (code === "NO_SPACE") this.tally.noSpace++;
		if (code === "LOG_FULL") {
			this.tally.logFull++;
			this.clean();
		}
	}

	/** A flush, perhaps with writes while it runs. */
	flush(): void {
		try {
			const events = this.model.eventCount;
			const position = this.log.beginFlush();
			if (this.random.chance(30)) this.guestWriteUnlessCut();
			try {
				this.first.datasync();
			} catch (error) {
				this.log.failFlush(error);
				throw error;
			}
			// The log's promise starts here, whatever completeFlush itself meets.
			if (!this.log.poisoned) this.model.flushed(events);
			this.log.completeFlush(position);
			if (this.log.tailPosition > this.#lastTail) this.tally.reusedSegments++;
			this.#lastTail = this.log.tailPosition;
		} catch (error) {
			this.#tolerate(error);
		}
	}

	guestWriteUnlessCut(): void {
		if (!this.world.isCut && !this.log.poisoned) this.guestWrite();
	}

	/** Moves what is live in some of the oldest segments to the second image, and punches what is zero. */
	clean(): void {
		if (this.log.poisoned || this.world.isCut) return;
		if (this.random.chance(50)) this.log.seal();
		const view = this.log.takeView();
		try {
			const segments = this.log.segments().slice(0, 1 + this.random.below(3));
			for (const { sequence } of segments) {
				const runs = this.#durableRuns(this.log.liveRuns(sequence).runs);
				for (let i = 0; i < runs.length; i += 3) {
					const data = new Uint8Array(runs[i + 1]! * BLOCK);
					this.first.read(byteOffset(runs[i + 2]! * BLOCK), data);
					this.second.write(data, runs[i]! * BLOCK);
				}
				if (this.random.chance(30)) this.guestWriteNested();
				if (runs.length > 0) {
					this.second.datasync();
					this.tally.moved += this.log.moved(runs, view);
				}
				this.#punchAll(this.log.zeroRuns(sequence));
			}
		} catch (error) {
			this.#tolerate(error);
		} finally {
			view.release();
		}
	}

	/** Gives up some blocks, as the cleaner does with those that the guest's file system proves unused. */
	drop(): void {
		const view = this.log.takeView();
		try {
			const block = this.random.below(this.#blocks);
			const count = 1 + this.random.below(Math.min(4, this.#blocks - block));
			this.flush();
			if (this.log.poisoned || this.world.isCut) return;
			if (this.random.chance(30)) this.guestWriteNested();
			const unchanged = Array.from({ length: count }, (_, i) => block + i).filter(
				(at) => this.log.get(at) === view.get(at),
			);
			const dropped = this.log.dropped(Float64Array.of(block, count), view);
			// A drop entry that failed to be written may be there all the same.
			if (this.log.commitError) for (const at of unchanged) this.model.drop(at);
			for (let i = 0; i < dropped.length; i += 2) {
				for (let j = 0; j < dropped[i + 1]!; j++) this.model.drop(dropped[i]! + j);
				this.tally.dropped += dropped[i + 1]!;
			}
			this.#punchAll(dropped);
		} catch (error) {
			this.#tolerate(error);
		} finally {
			view.release();
		}
	}

	#step(): void {
		const { random } = this;
		const step = random.below(100);
		try {
			if (step < 45) this.guestWrite();
			else if (step < 62) this.flush();
			else if (step < 76) this.clean();
			else if (step < 82) this.drop();
			else if (step < 86) this.#takeOrCheckView();
			else if (step < 89) this.#giveSpaceBack();
			else if (step < 93) this.log.seal();
			else if (step < 94) this.#restart();
			else this.#checkBlock();
		} catch (error) {
			this.#tolerate(error);
		}
	}

	#checkBlock(): void {
		const block = this.random.below(this.#blocks);
		const value = this.readBlock(block);
		if (!this.model.allowsNow(block, value)) throw new PromiseBroken(`block ${block} reads as ${value} while running`);
	}

	#takeOrCheckView(): void {
		if (this.#views.length < 3 && this.random.chance(60)) {
			const view = this.log.takeView();
			const values = Array.from({ length: this.#blocks }, (_, block) => {
				const value = view.get(block);
				return value === ABSENT ? undefined : this.valueAt(value);
			});
			this.#views.push({ view, values });
			return;
		}
		const [held] = this.#views.splice(this.random.below(Math.max(1, this.#views.length)), 1);
		held?.values.forEach((expected, block) => {
			const value = held.view.get(block);
			const now = value === ABSENT ? undefined : this.valueAt(value);
			if (now !== expected) throw new PromiseBroken(`block ${block} of a view was ${expected} and became ${now}`);
		});
		held?.view.release();
	}

	#giveSpaceBack(): void {
		const cold = this.log.borrowCold(2);
		if (this.random.chance(30)) this.guestWriteNested();
		for (const range of cold) this.first.punch(range.offset, range.length);
		this.log.returnCold(cold);
		if (this.random.chance(50)) this.log.trimFile();
	}

	/** Ends the process without a power cut, cleanly or not. */
	#restart(): void {
		if (this.random.chance(50)) {
			const events = this.model.eventCount;
			this.log.close();
			this.model.flushed(events);
		}
		// Faults during recovery are the business of `crash`.
		const { ioPercent, noSpacePercent } = this.world;
		this.world.ioPercent = 0;
		this.world.noSpacePercent = 0;
		this.open();
		this.world.ioPercent = ioPercent;
		this.world.noSpacePercent = noSpacePercent;
	}

	/** A guest write in the middle of something else. Not after a full log's cleaning, which must not nest. */
	guestWriteNested(): void {
		if (this.log.poisoned || this.world.isCut) return;
		const block = this.random.below(this.#blocks);
		const value = this.#nextValue++;
		this.log.stageData(block, 1, pinned(blocksOf([value])), 0);
		this.model.write(block, value, this.log.commit() < 1);
	}

	/** Only what is durable in the first image may be copied to the second. */
	#durableRuns(runs: Float64Array): Float64Array {
		const kept: number[] = [];
		for (let i = 0; i < runs.length; i += 3)
			for (let j = 0; j < runs[i + 1]!; j++)
				if (this.log.positionOfSlot(runs[i + 2]! + j) < this.log.durablePosition)
					kept.push(runs[i]! + j, 1, runs[i + 2]! + j);
		return Float64Array.from(kept);
	}

	#punchAll(pairs: Float64Array): void {
		if (pairs.length === 0) return;
		for (let i = 0; i < pairs.length; i += 2) this.second.punch(byteOffset(pairs[i]! * BLOCK), pairs[i + 1]! * BLOCK);
		this.second.datasync();
		this.log.punched(pairs);
	}

	/** What a slot, or zeros, of the first image stands for. */
	protected valueAt(value: number): number {
		return value === ZERO ? 0 : this.readFrom(this.first, this.log.offsetOfSlot(value));
	}

	protected readFrom(file: SimFile, at: number): number {
		const block = new Uint8Array(BLOCK);
		file.read(byteOffset(at), block);
		return valueIn(block);
	}

	/** Simulated failures are part of the history; anything else is a bug. */
	#tolerate(error: unknown): void {
		if (error instanceof PowerCut || this.world.isCut) return;
		if (isVmsweepError(error) && ["IO", "NO_SPACE", "LOG_POISONED"].includes(error.code)) return;
		throw error;
	}
}
