// A disk's life in which the log keeps things: views that are taken again after each restart, drops that can be undone, and
// a disk that shrinks and grows. Cut at any call, as every history.
//
// What must hold, besides the promise of model.ts
//  - a view that was held shows, after any restart that reaches it, what it showed
//  - a drop within the quarantine can be undone, to exactly what its block held; and nothing else is said to be undoable
//  - what a disk lost by shrinking is never seen again, whatever it grows to

import { ABSENT, UNDO_STRIDE, ZERO } from "../../src/core/log/first-image.ts";
import type { LogPosition } from "../../src/foundations/units.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { blocksOf, GARBAGE } from "./blocks.ts";
import { emptyTally, History, PromiseBroken } from "./history.ts";
import { PowerCut, pinned } from "./sim-file.ts";

const BLOCK = 4096;

/** What was done to a block, and how many entries the log had before and after. */
interface Deed {
	readonly from: number;
	readonly entry: number;
	/** "doubt": nobody knows whether something happened. */
	readonly kind: "write" | "zero" | "drop" | "doubt";
	/** The block's content, or what it held before it was dropped. */
	readonly value: number;
	/** Of a drop: where the log stood, and whether the quarantine held it ever since. */
	readonly position: number;
	isHeld: boolean;
}

interface Kept {
	readonly entry: number;
	/** Per block what the first image showed; undefined: nothing; no entry: not to be checked. */
	readonly shown: Map<number, number | undefined>;
	/** The block's content, by either image. */
	readonly content: Map<number, number>;
}

export interface KeepingTally {
	cuts: number;
	viewsRetaken: number;
	undoable: number;
	undone: number;
	shrunk: number;
	grown: number;
}

export class KeepingHistory extends History {
	// Declared only: the base's constructor opens the log, before initializers of this class would run.
	declare kept: Kept[];
	/** Kept views of this opening and of the one that took them, by entry. */
	declare views: Map<number, { release(): void }>;
	declare deeds: Map<number, Deed[]>;
	/** Blocks that a commit or a resize under way is about. */
	declare pending: number[];
	/** Blocks that the disk lost by shrinking and that were not written since. */
	declare lost: Set<number>;
	declare held: LogPosition | undefined;
	declare nextContent: number;
	readonly counts: KeepingTally;

	constructor(seed: number, counts: KeepingTally) {
		super(seed, undefined, emptyTally());
		this.counts = counts;
	}

	override open(): void {
		this.kept ??= [];
		this.views ??= new Map();
		this.deeds ??= new Map();
		this.pending ??= [];
		this.lost ??= new Set();
		this.nextContent ??= 1;
		super.open();
		this.log.holdFrom(this.held);
		this.cutSecond();
	}

	/** The second image ends where the disk does, once the log says so for good. */
	cutSecond(): void {
		const end = this.log.diskBlocks * BLOCK;
		if (end >= this.second.size()) return;
		this.second.punch(byteOffset(end), this.second.size() - end);
		this.second.datasync();
	}

	protected override viewsAtEntries(): number[] {
		return this.kept.map(({ entry }) => entry);
	}

	override run(): void {
		for (let life = 0; life < 4; life++) {
			this.world.cutAt = this.world.calls + 1 + this.random.below(150);
			while (!this.world.isCut && !this.log.poisoned) this.#act();
			this.crash();
			this.counts.cuts++;
		}
	}

	override recoverAndCheck(): void {
		this.open();
		this.#forgetLost();
		super.recoverAndCheck();
		this.#checkViews();
		this.#checkUndoable();
		this.#checkLost();
	}

	override guestWrite(): void {
		const { random } = this;
		const blocks = this.log.diskBlocks;
		const block = random.below(blocks);
		const count = 1 + random.below(Math.min(blocks - block, random.pick([1, 3, 9])));
		const values = Array.from({ length: count }, () => this.nextContent++);
		if (random.chance(20)) this.#write(block, values.fill(0), "zero");
		else this.#write(block, values, "write");
		if (this.log.commitError?.code === "LOG_FULL") {
			// Room is worth more than what could be undone, or seen.
			this.#hold(undefined);
			for (const { entry } of this.kept.splice(0)) this.views.get(entry)?.release();
			this.clean();
		}
	}

	override guestWriteNested(): void {
		if (!this.log.poisoned && !this.world.isCut)
			this.#write(this.random.below(this.log.diskBlocks), [this.nextContent++], "write");
	}

	override drop(): void {
		const { random, log } = this;
		const view = log.takeView();
		const block = random.below(log.diskBlocks);
		const count = 1 + random.below(Math.min(6, log.diskBlocks - block));
		this.flush();
		if (log.poisoned || this.world.isCut) return;
		const held = Array.from({ length: count }, (_, i) => this.readBlock(block + i));
		const position = log.position;
		const isHeld = this.held !== undefined && position >= this.held;
		const from = this.#entry();
		this.pending = Array.from({ length: count }, (_, i) => block + i);
		const dropped = log.dropped(Float64Array.of(block, count), view);
		view.release();
		if (log.commitError) {
			for (const at of this.pending) {
				this.model.drop(at);
				this.#doubt(at);
			}
		} else
			for (let i = 0; i < dropped.length; i += 2)
				for (let at = dropped[i]!; at < dropped[i]! + dropped[i + 1]!; at++) {
					this.model.drop(at);
					this.#note(at, { from, entry: this.#entry(), kind: "drop", value: held[at - block]!, position, isHeld });
				}
		this.pending = [];
	}

	#act(): void {
		const step = this.random.below(100);
		try {
			if (step < 45) this.guestWrite();
			else if (step < 58) this.flush();
			else if (step < 68) this.clean();
			else if (step < 78) this.drop();
			else if (step < 84) this.#keepOrRelease();
			else if (step < 88) this.#hold(this.random.chance(80) ? this.log.position : undefined);
			else if (step < 92) this.#undoOne();
			else if (step < 95) this.#resize();
			else if (step < 97) this.log.seal();
			else {
				this.#checkUndoable();
				this.#checkLost();
			}
		} catch (error) {
			if (!(error instanceof PowerCut) && !this.world.isCut) throw error;
		}
	}

	#write(block: number, values: readonly number[], kind: "write" | "zero"): void {
		const { log, model } = this;
		this.pending = values.map((_, i) => block + i);
		const from = this.#entry();
		if (kind === "zero") log.stageZero(block, values.length, "zero");
		else log.stageData(block, values.length, pinned(blocksOf(values)), 0);
		const failed = log.commit() < 1;
		const entry = failed ? 0 : this.#entry();
		for (const [i, value] of values.entries()) {
			model.write(block + i, value, failed);
			if (failed) this.#doubt(block + i);
			else this.#note(block + i, { from, entry, kind, value, position: 0, isHeld: false });
			this.lost.delete(block + i);
		}
		if (!this.world.isCut) this.pending = [];
	}

	#note(block: number, deed: Deed): void {
		const deeds = this.deeds.get(block);
		if (deeds) deeds.push(deed);
		else this.deeds.set(block, [deed]);
	}

	#doubt(block: number): void {
		this.#note(block, { from: 0, entry: 0, kind: "doubt", value: 0, position: 0, isHeld: false });
	}

	#entry(): number {
		const view = this.log.takeView();
		view.release();
		return view.entry;
	}

	#keepOrRelease(): void {
		const { log } = this;
		if (this.kept.length > 2 || this.random.chance(30)) {
			const [kept] = this.kept.splice(this.random.below(Math.max(1, this.kept.length)), 1);
			if (kept && !this.kept.some(({ entry }) => entry === kept.entry)) this.views.get(kept.entry)?.release();
			return;
		}
		this.flush();
		if (this.world.isCut || log.poisoned) return;
		const view = log.takeView();
		const kept: Kept = { entry: view.entry, shown: new Map(), content: new Map() };
		for (let block = 0; block < log.diskBlocks; block++) {
			const value = view.get(block);
			kept.shown.set(block, value === ABSENT ? undefined : this.valueAt(value));
			kept.content.set(block, this.readBlock(block));
		}
		// Only what is durable may be asked for after a restart: else its entries may be others then.
		if (view.durable && !this.kept.some(({ entry }) => entry === view.entry)) {
			this.kept.push(kept);
			this.views.set(view.entry, view);
		} else view.release();
	}

	#hold(position: LogPosition | undefined): void {
		this.held = position;
		for (const deed of [...this.deeds.values()].flat())
			if (position === undefined || deed.position < position) deed.isHeld = false;
		this.log.holdFrom(position);
	}

	/** Entries that the cut took never happened; what was under way may have. */
	#forgetLost(): void {
		const end = this.#entry();
		for (const [block, deeds] of this.deeds) {
			const happened = deeds.filter(({ entry }) => entry <= end);
			this.deeds.set(block, happened);
			// A write that a segment's end split may have survived in part.
			if (deeds.some(({ from, entry }) => from < end && entry > end)) this.#doubt(block);
		}
		for (const block of this.pending.splice(0)) this.#doubt(block);
	}

	#checkViews(): void {
		const { recoveredViews } = this.log;
		this.views = new Map(recoveredViews);
		const tail = this.log.segments()[0];
		for (const kept of this.kept) {
			const view = recoveredViews.get(kept.entry);
			if (!view) {
				const needed = [...kept.shown.values()].some((value) => value !== undefined);
				if (needed) throw new PromiseBroken(`a view at entry ${kept.entry} is gone (tail ${tail?.sequence})`);
				continue;
			}
			this.counts.viewsRetaken++;
			for (const [block, shown] of kept.shown) {
				if (block >= this.log.diskBlocks) continue;
				const value = view.get(block);
				const now = value === ABSENT ? undefined : this.valueAt(value);
				// What was in the second image may be in the log as well.
				if (now === shown || (shown === undefined && now === kept.content.get(block))) continue;
				throw new PromiseBroken(`block ${block} of the view at entry ${kept.entry} was ${shown} and became ${now}`);
			}
		}
	}

	#checkUndoable(): void {
		const runs = this.log.undoable();
		const found = new Map<number, { slot: number; value: number }>();
		for (let i = 0; i < runs.length; i += UNDO_STRIDE)
			for (let j = 0; j < runs[i + 1]!; j++) {
				const block = runs[i]! + j;
				const slot = runs[i + 2] === ABSENT ? ABSENT : runs[i + 2]! + j;
				const value = slot === ABSENT ? this.readFrom(this.second, block * BLOCK) : this.valueAt(slot);
				found.set(block, { slot, value });
			}
		for (let block = 0; block < this.log.diskBlocks; block++) {
			const last = this.deeds.get(block)?.at(-1);
			if (last?.kind === "doubt") continue;
			const undoable = found.get(block);
			if (last?.kind !== "drop") {
				if (undoable) throw new PromiseBroken(`block ${block} is undoable, but was not dropped last`);
				continue;
			}
			const { isHeld } = last;
			// Without a promise the second image may have been punched; what is in the log must be right all the same.
			if (undoable && (isHeld || undoable.slot !== ABSENT) && undoable.value !== last.value)
				throw new PromiseBroken(`block ${block} held ${last.value} when it was dropped, undo gives ${undoable.value}`);
			if (!undoable && isHeld && last.value !== 0)
				throw new PromiseBroken(`block ${block}, dropped at entry ${last.entry} with ${last.value}, can't be undone`);
			if (undoable) this.counts.undoable++;
		}
	}

	#undoOne(): void {
		const runs = this.log.undoable();
		if (runs.length === 0) return;
		const at = this.random.below(runs.length / UNDO_STRIDE) * UNDO_STRIDE;
		const [block, count, slot] = runs.subarray(at) as unknown as [number, number, number];
		const values = Array.from({ length: count }, (_, i) =>
			slot === ABSENT ? this.readFrom(this.second, (block + i) * BLOCK) : this.valueAt(slot + i),
		);
		// Without a promise, the second image may hold a part of a write.
		if (values.includes(GARBAGE)) return;
		this.#write(block, values, "write");
		this.counts.undone++;
	}

	#resize(): void {
		const before = this.log.diskBlocks;
		const blocks = before < this.model.blocks ? this.model.blocks : 1 + this.random.below(before);
		if (blocks === before) return;
		if (blocks < before) {
			// Its end is unused.
			for (let block = blocks; block < before; block++) {
				this.model.write(block, 0, true);
				this.model.drop(block);
				this.pending.push(block);
			}
			for (const { shown } of this.kept) for (let block = blocks; block < before; block++) shown.delete(block);
		}
		try {
			this.log.resize(blocks * BLOCK);
		} catch (error) {
			if (this.log.commitError?.code !== "LOG_FULL") throw error;
			for (const block of this.pending.splice(0)) this.#doubt(block);
			return;
		}
		if (blocks < before) {
			this.cutSecond();
			this.counts.shrunk++;
			for (let block = blocks; block < before; block++) {
				this.deeds.delete(block);
				this.lost.add(block);
			}
		} else this.counts.grown++;
		this.pending = [];
	}

	#checkLost(): void {
		for (const block of this.lost)
			if (block < this.log.diskBlocks && this.log.get(block) > ZERO)
				throw new PromiseBroken(`block ${block} shows what it held before the disk shrank`);
	}
}
