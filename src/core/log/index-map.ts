// Index map: which value each disk block has: ABSENT, ZERO or a slot of the first image. Four bytes per
// block that was written where writes lie close together, little more where they don't, nothing for the rest, and views
// that cost one copy of a small array.
//
//   root, one word per 256 MiB ──▶ middle page, 256 words ──▶ leaf page of 1 MiB: the values
//
// Pages lie in large slabs and are named by number; there are no objects per page. Full pages are 256 words. Page 0 holds
// only zeros and page 1 only ones, and both stand for themselves at either level: a root or middle word of 0
// means that everything below is ABSENT, 1 that everything below is ZERO, without a case in the lookup.
//
// A leaf begins sparse (sparse-pages.ts): a short list of those blocks that differ from all others in it. With more of
// them it becomes a larger sparse page, then a full one; back to nothing when all its values are the same again.
//
// Views share pages with the map. Each page has the epoch in which it was made, each view the epoch that it
// closed; the map changes a page in place only if no living view can see it, and otherwise a copy. The page
// that was replaced goes on the dead list of the newest view, as that one certainly sees it. Releasing a view
// frees the pages on its dead list, except those that the next older view sees too: these move to its list.
//
// Invariants
//  - a page is on exactly one of: the map (or reachable from it), one dead list, the free list
//  - a page born after the newest living view is reachable from the map only
//  - values >= 2 that are replaced are reported to the ledger, once each

import { assert } from "../../foundations/errors.ts";
import { FIRST_SPARSE, SparsePages } from "./sparse-pages.ts";

/** Index value of a block that the first image doesn't hold: its content is in the second image. */
export const ABSENT = 0;
/** Index value of a block that reads as zeros, whatever the second image holds. */
export const ZERO = 1;

/** Told of one run: `value` is ABSENT, ZERO or the first of `count` consecutive slots (slots are >= 2). */
export type RunVisitor = (value: number, block: number, count: number) => void;

/** Told of every slot that the map stops pointing at. */
export interface SlotLedger {
	release(slot: number): void;
}

const PAGE_WORDS = 256;
const LEAF_SHIFT = 8;
const MIDDLE_SHIFT = 16;
const MIDDLE_BLOCKS = 1 << MIDDLE_SHIFT;
const SLAB_SHIFT = 7;
const SLAB_PAGES = 1 << SLAB_SHIFT;

/** Pages and where they are: shared by the map and all its views. */
class PageStore {
	readonly slabs: Uint32Array[] = [];
	readonly births: Uint32Array[] = [];
	readonly sparse = new SparsePages();
	/** Full pages ever handed out. */
	#used = 0;
	#free: Uint32Array = new Uint32Array(1024);
	#freeCount = 0;

	constructor() {
		this.allocate(0);
		const ones = this.allocate(0);
		this.slabs[0]!.fill(ZERO, ones * PAGE_WORDS, (ones + 1) * PAGE_WORDS);
	}

	get pagesInUse(): number {
		return this.#used - this.#freeCount + this.sparse.pagesInUse;
	}

	birth(page: number): number {
		if (page >= FIRST_SPARSE) return this.sparse.birth(page);
		return this.births[page >>> SLAB_SHIFT]![page & (SLAB_PAGES - 1)]!;
	}

	/** A full page with undefined content (zeros only if it is new). */
	allocate(epoch: number): number {
		let page: number;
		if (this.#freeCount > 0) page = this.#free[--this.#freeCount]!;
		else {
			page = this.#used++;
			if (page >>> SLAB_SHIFT === this.slabs.length) {
				this.slabs.push(new Uint32Array(SLAB_PAGES * PAGE_WORDS));
				this.births.push(new Uint32Array(SLAB_PAGES));
			}
		}
		this.births[page >>> SLAB_SHIFT]![page & (SLAB_PAGES - 1)] = epoch;
		return page;
	}

	free(page: number): void {
		if (page >= FIRST_SPARSE) {
			this.sparse.free(page);
			return;
		}
		if (this.#freeCount === this.#free.length) {
			const grown = new Uint32Array(this.#free.length * 2);
			grown.set(this.#free);
			this.#free = grown;
		}
		this.#free[this.#freeCount++] = page;
	}

	copy(from: number, to: number): void {
		const source = this.slabs[from >>> SLAB_SHIFT]!;
		const target = this.slabs[to >>> SLAB_SHIFT]!;
		const sourceAt = (from & (SLAB_PAGES - 1)) * PAGE_WORDS;
		const targetAt = (to & (SLAB_PAGES - 1)) * PAGE_WORDS;
		for (let i = 0; i < PAGE_WORDS; i++) target[targetAt + i] = source[sourceAt + i]!;
	}

	word(page: number, index: number): number {
		return this.slabs[page >>> SLAB_SHIFT]![(page & (SLAB_PAGES - 1)) * PAGE_WORDS + index]!;
	}

	/** A value of a leaf, full or sparse. */
	valueIn(leaf: number, index: number): number {
		return leaf >= FIRST_SPARSE ? this.sparse.get(leaf, index) : this.word(leaf, index);
	}

	setWord(page: number, index: number, value: number): void {
		this.slabs[page >>> SLAB_SHIFT]![(page & (SLAB_PAGES - 1)) * PAGE_WORDS + index] = value;
	}

	/** The value that all words of a page have, or -1. */
	uniform(page: number): number {
		if (page >= FIRST_SPARSE) return this.sparse.count(page) === 0 ? this.sparse.others(page) : -1;
		const slab = this.slabs[page >>> SLAB_SHIFT]!;
		const at = (page & (SLAB_PAGES - 1)) * PAGE_WORDS;
		const first = slab[at]!;
		for (let i = 1; i < PAGE_WORDS; i++) if (slab[at + i] !== first) return -1;
		return first;
	}
}

/** The map at one instant. */
export class IndexView {
	/** The epoch that this view closed: it sees pages born in it or before. */
	readonly epoch: number;
	/** Pages that this view sees and no newer view nor the map. */
	readonly dead: number[] = [];
	readonly #root: Uint32Array;
	/** Blocks that the root reaches: the disk may have grown since. */
	readonly #reach: number;
	readonly #pages: PageStore;
	released = false;

	constructor(epoch: number, root: Uint32Array, pages: PageStore) {
		this.epoch = epoch;
		this.#root = root;
		this.#reach = root.length * MIDDLE_BLOCKS;
		this.#pages = pages;
	}

	get(block: number): number {
		assert(!this.released, "a released view is read");
		return block < this.#reach ? lookUp(this.#pages, this.#root, block) : ABSENT;
	}

	/** Visits `[block, block + count)` in order, as merged runs; what the disk gained since the view was taken is ABSENT. */
	runs(block: number, count: number, visit: RunVisitor): void {
		assert(!this.released, "a released view is read");
		const within = Math.min(count, Math.max(0, this.#reach - block));
		visitRuns(this.#pages, this.#root, block, within, visit);
		if (within < count) visit(ABSENT, block + within, count - within);
	}
}

export class IndexMap {
	#blocks: number;
	readonly #pages = new PageStore();
	#root: Uint32Array;
	readonly #ledger: SlotLedger;
	/** Living views, oldest first. */
	readonly #views: IndexView[] = [];
	#epoch = 1;
	/** Pages born in this epoch or before may be seen by a view. */
	#sharedThrough = 0;

	constructor(blocks: number, ledger: SlotLedger) {
		this.#blocks = blocks;
		this.#root = new Uint32Array(Math.ceil(blocks / MIDDLE_BLOCKS));
		this.#ledger = ledger;
	}

	/** Blocks of the disk: values exist for 0 to one less. */
	get blocks(): number {
		return this.#blocks;
	}

	/** Makes the disk larger, with ABSENT blocks, or smaller; the slots of those beyond its end are released. */
	resize(blocks: number): void {
		if (blocks < this.#blocks) this.fill(blocks, this.#blocks - blocks, ABSENT);
		const length = Math.ceil(blocks / MIDDLE_BLOCKS);
		if (length > this.#root.length) {
			const root = new Uint32Array(length);
			root.set(this.#root);
			this.#root = root;
		}
		this.#blocks = blocks;
	}

	/** Grows by one with every view taken. */
	get epoch(): number {
		return this.#epoch;
	}

	/** Memory held, in pages of 1 KiB. */
	get pagesInUse(): number {
		return this.#pages.pagesInUse;
	}

	get(block: number): number {
		return lookUp(this.#pages, this.#root, block);
	}

	/** Visits `[block, block + count)` in order, as merged runs. Allocates nothing. */
	resolve(block: number, count: number, visit: RunVisitor): void {
		visitRuns(this.#pages, this.#root, block, count, visit);
	}

	/** Points `count` blocks at consecutive slots from `firstSlot`. */
	setSlots(block: number, count: number, firstSlot: number): void {
		let done = 0;
		while (done < count) {
			const at = block + done;
			const within = at & (PAGE_WORDS - 1);
			const step = Math.min(PAGE_WORDS - within, count - done);
			const leaf = this.#ownLeaf(at, step);
			if (leaf >= FIRST_SPARSE) {
				for (let i = 0; i < step; i++) {
					const old = this.#pages.sparse.set(leaf, within + i, firstSlot + done + i);
					if (old > ZERO) this.#ledger.release(old);
				}
			} else {
				const slab = this.#pages.slabs[leaf >>> SLAB_SHIFT]!;
				const base = (leaf & (SLAB_PAGES - 1)) * PAGE_WORDS + within;
				for (let i = 0; i < step; i++) {
					const old = slab[base + i]!;
					slab[base + i] = firstSlot + done + i;
					if (old > ZERO) this.#ledger.release(old);
				}
			}
			done += step;
		}
	}

	/** Gives `count` blocks the value ZERO or ABSENT, whole pages at a time where it can. */
	fill(block: number, count: number, value: typeof ZERO | typeof ABSENT): void {
		const end = block + count;
		let at = block;
		while (at < end) {
			if ((at & (MIDDLE_BLOCKS - 1)) === 0 && end - at >= MIDDLE_BLOCKS) {
				this.#replaceMiddle(at >>> MIDDLE_SHIFT, value);
				at += MIDDLE_BLOCKS;
			} else {
				const within = at & (PAGE_WORDS - 1);
				const step = Math.min(PAGE_WORDS - within, end - at);
				if (step === PAGE_WORDS) this.#replaceLeaf(at, value);
				else this.#fillPart(at, step, value);
				at += step;
			}
		}
	}

	/**
	 * Compare and swap: of `count` blocks, those whose value is still expected become ABSENT. Expected is
	 * `first` for all (ZERO), or consecutive slots from `first`. Returns the number of blocks changed.
	 */
	clearWhere(block: number, count: number, first: number): number {
		const stride = first > ZERO ? 1 : 0;
		const end = block + count;
		let changed = 0;
		let at = block;
		while (at < end) {
			const middle = this.#root[at >>> MIDDLE_SHIFT]!;
			const inMiddle = Math.min(MIDDLE_BLOCKS - (at & (MIDDLE_BLOCKS - 1)), end - at);
			// A middle page of 0 or 1 that can't match, or that matches as a whole, is one step.
			if (middle <= ZERO && (middle !== first || inMiddle === MIDDLE_BLOCKS)) {
				if (middle === first) {
					this.#replaceMiddle(at >>> MIDDLE_SHIFT, ABSENT);
					changed += MIDDLE_BLOCKS;
				}
				at += inMiddle;
				continue;
			}
			const step = Math.min(PAGE_WORDS - (at & (PAGE_WORDS - 1)), end - at);
			changed += this.#clearInLeaf(at, step, first + (at - block) * stride, stride);
			at += step;
		}
		return changed;
	}

	/** The map as it is now. Release it, or its pages stay for ever. */
	takeView(): IndexView {
		const view = new IndexView(this.#epoch, this.#root.slice(), this.#pages);
		this.#views.push(view);
		this.#sharedThrough = this.#epoch;
		this.#epoch++;
		return view;
	}

	/** Idempotent. */
	release(view: IndexView): void {
		const index = this.#views.indexOf(view);
		if (index < 0) return;
		view.released = true;
		const older = this.#views[index - 1];
		for (const page of view.dead) {
			if (older && this.#pages.birth(page) <= older.epoch) older.dead.push(page);
			else this.#pages.free(page);
		}
		view.dead.length = 0;
		this.#views.splice(index, 1);
		this.#sharedThrough = this.#views.at(-1)?.epoch ?? 0;
	}

	/** The leaf of `block` as it is, or ABSENT or ZERO where there is none. */
	#leafOf(block: number): number {
		return this.#pages.word(this.#root[block >>> MIDDLE_SHIFT]!, (block >>> LEAF_SHIFT) & (PAGE_WORDS - 1));
	}

	/** The leaf of `block`, private to the map; if it's sparse, `count` values from `block` on can be set in it. */
	#ownLeaf(block: number, count: number): number {
		const pages = this.#pages;
		const middle = this.#ownMiddle(block >>> MIDDLE_SHIFT);
		const index = (block >>> LEAF_SHIFT) & (PAGE_WORDS - 1);
		const leaf = pages.word(middle, index);
		const isPrivate = leaf > ZERO && pages.birth(leaf) > this.#sharedThrough;
		let own = leaf;
		if (leaf > ZERO && leaf < FIRST_SPARSE) {
			if (isPrivate) return leaf;
			own = this.#copy(leaf);
		} else {
			const { sparse } = pages;
			const room = leaf > ZERO ? sparse.roomFor(leaf, block & (PAGE_WORDS - 1), count) : count;
			if (isPrivate && room <= sparse.capacity(leaf)) return leaf;
			own = sparse.allocate(room, leaf > ZERO ? sparse.others(leaf) : leaf, this.#epoch);
			if (own === 0) own = this.#spread(leaf);
			else if (leaf > ZERO) sparse.copy(leaf, own);
			this.#retire(leaf);
		}
		pages.setWord(middle, index, own);
		return own;
	}

	/** A full page with the values of a sparse one, or of none. */
	#spread(leaf: number): number {
		const pages = this.#pages;
		const full = pages.allocate(this.#epoch);
		const slab = pages.slabs[full >>> SLAB_SHIFT]!;
		const base = (full & (SLAB_PAGES - 1)) * PAGE_WORDS;
		slab.fill(leaf > ZERO ? pages.sparse.others(leaf) : leaf, base, base + PAGE_WORDS);
		if (leaf > ZERO) pages.sparse.spread(leaf, slab, base);
		return full;
	}

	#ownMiddle(rootIndex: number): number {
		const middle = this.#root[rootIndex]!;
		if (middle > ZERO && this.#pages.birth(middle) > this.#sharedThrough) return middle;
		const own = this.#copy(middle);
		this.#root[rootIndex] = own;
		return own;
	}

	#copy(page: number): number {
		const own = this.#pages.allocate(this.#epoch);
		this.#pages.copy(page, own);
		this.#retire(page);
		return own;
	}

	/** The map no longer reaches `page`. */
	#retire(page: number): void {
		if (page <= ZERO) return;
		if (this.#pages.birth(page) > this.#sharedThrough) this.#pages.free(page);
		else this.#views.at(-1)!.dead.push(page);
	}

	#fillPart(block: number, count: number, value: number): void {
		const before = this.#leafOf(block);
		if (before === value) return;
		// To become as the others of a sparse page takes no room in it.
		const isOthers = before >= FIRST_SPARSE && this.#pages.sparse.others(before) === value;
		const leaf = this.#ownLeaf(block, isOthers ? 0 : count);
		if (leaf >= FIRST_SPARSE) {
			const within = block & (PAGE_WORDS - 1);
			for (let i = 0; i < count; i++) {
				const old = this.#pages.sparse.set(leaf, within + i, value);
				if (old > ZERO) this.#ledger.release(old);
			}
			this.#collapse(block);
			return;
		}
		const slab = this.#pages.slabs[leaf >>> SLAB_SHIFT]!;
		const base = (leaf & (SLAB_PAGES - 1)) * PAGE_WORDS + (block & (PAGE_WORDS - 1));
		for (let i = 0; i < count; i++) {
			const old = slab[base + i]!;
			slab[base + i] = value;
			if (old > ZERO) this.#ledger.release(old);
		}
		this.#collapse(block);
	}

	#replaceLeaf(block: number, value: number): void {
		const index = (block >>> LEAF_SHIFT) & (PAGE_WORDS - 1);
		const rootIndex = block >>> MIDDLE_SHIFT;
		if (this.#root[rootIndex] === value) return;
		const middle = this.#ownMiddle(rootIndex);
		const leaf = this.#pages.word(middle, index);
		this.#pages.setWord(middle, index, value);
		this.#forgetLeaf(leaf);
	}

	#replaceMiddle(rootIndex: number, value: number): void {
		const middle = this.#root[rootIndex]!;
		this.#root[rootIndex] = value;
		if (middle <= ZERO) return;
		for (let i = 0; i < PAGE_WORDS; i++) this.#forgetLeaf(this.#pages.word(middle, i));
		this.#retire(middle);
	}

	#forgetLeaf(leaf: number): void {
		if (leaf <= ZERO) return;
		for (let i = 0; i < PAGE_WORDS; i++) {
			const old = this.#pages.valueIn(leaf, i);
			if (old > ZERO) this.#ledger.release(old);
		}
		this.#retire(leaf);
	}

	#clearInLeaf(block: number, count: number, first: number, stride: number): number {
		const pages = this.#pages;
		const within = block & (PAGE_WORDS - 1);
		let leaf = this.#leafOf(block);
		// To become as the others of a sparse page takes no room in it.
		const room = leaf >= FIRST_SPARSE && pages.sparse.others(leaf) === ABSENT ? 0 : count;
		let changed = 0;
		for (let i = 0; i < count; i++) {
			if (pages.valueIn(leaf, within + i) !== first + i * stride) {
				// All up to the next one that is listed are alike.
				if (leaf >= FIRST_SPARSE) i = pages.sparse.next(leaf, within + i) - within - 1;
				continue;
			}
			if (changed === 0) leaf = this.#ownLeaf(block, room);
			if (leaf >= FIRST_SPARSE) pages.sparse.set(leaf, within + i, ABSENT);
			else pages.setWord(leaf, within + i, ABSENT);
			if (first > ZERO) this.#ledger.release(first + i * stride);
			changed++;
		}
		if (changed > 0) this.#collapse(block);
		return changed;
	}

	/** Gives back the pages on the way to `block` that hold nothing but ABSENT or nothing but ZERO. */
	#collapse(block: number): void {
		const pages = this.#pages;
		const rootIndex = block >>> MIDDLE_SHIFT;
		const index = (block >>> LEAF_SHIFT) & (PAGE_WORDS - 1);
		const middle = this.#root[rootIndex]!;
		const leaf = pages.word(middle, index);
		const value = pages.uniform(leaf);
		if (value !== ABSENT && value !== ZERO) return;
		pages.setWord(middle, index, value);
		this.#retire(leaf);
		if (pages.uniform(middle) !== value) return;
		this.#root[rootIndex] = value;
		this.#retire(middle);
	}
}

function lookUp(pages: PageStore, root: Uint32Array, block: number): number {
	const slabs = pages.slabs;
	const middle = root[block >>> MIDDLE_SHIFT]!;
	const leaf =
		slabs[middle >>> SLAB_SHIFT]![
			(middle & (SLAB_PAGES - 1)) * PAGE_WORDS + ((block >>> LEAF_SHIFT) & (PAGE_WORDS - 1))
		]!;
	if (leaf >= FIRST_SPARSE) return pages.sparse.get(leaf, block & (PAGE_WORDS - 1));
	return slabs[leaf >>> SLAB_SHIFT]![(leaf & (SLAB_PAGES - 1)) * PAGE_WORDS + (block & (PAGE_WORDS - 1))]!;
}

function visitRuns(pages: PageStore, root: Uint32Array, block: number, count: number, visit: RunVisitor): void {
	const end = block + count;
	let at = block;
	let runValue = 0;
	let runStart = block;
	let runCount = 0;
	while (at < end) {
		// One step: a whole empty middle page, a whole empty leaf, or one block.
		const middle = root[at >>> MIDDLE_SHIFT]!;
		let value = middle;
		let step = Math.min(MIDDLE_BLOCKS - (at & (MIDDLE_BLOCKS - 1)), end - at);
		if (middle > ZERO) {
			const leaf = pages.word(middle, (at >>> LEAF_SHIFT) & (PAGE_WORDS - 1));
			value = leaf;
			step = Math.min(PAGE_WORDS - (at & (PAGE_WORDS - 1)), end - at);
			if (leaf >= FIRST_SPARSE) {
				const index = at & (PAGE_WORDS - 1);
				value = pages.sparse.get(leaf, index);
				step = Math.min(step, pages.sparse.next(leaf, index) - index);
			} else if (leaf > ZERO) {
				value = pages.word(leaf, at & (PAGE_WORDS - 1));
				step = 1;
			}
		}
		const continues = value > ZERO ? runValue > ZERO && value === runValue + runCount : value === runValue;
		if (runCount > 0 && !continues) {
			visit(runValue, runStart, runCount);
			runCount = 0;
		}
		if (runCount === 0) {
			runValue = value;
			runStart = at;
		}
		runCount += step;
		at += step;
	}
	if (runCount > 0) visit(runValue, runStart, runCount);
}
