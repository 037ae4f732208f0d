// One history of a qcow2 image as a second image under simulated power cuts: blocks are written, punched and flushed,
// the disk grows and shrinks, the power is cut anywhere, and the image is looked at and opened again.
//
// The promise
//  1  whatever a cut leaves has no errors: nothing is referred to that isn't counted, and no flag is wrong (independent
//     checker). There may be leaks, and after the next undisturbed change there are none
//  2  a block that nobody wrote or punched since the last flush reads as it did then
//  3  a sector of any other block reads as it did at the last flush, as one of the writes since, or as zeros; only where a
//     write failed for lack of space, its blocks may read as anything
//  4  internal snapshots read as before
//  5  at every instant, between any two calls to the host: whoever reads by the tables as the data plane knows them finds
//     every block that nobody writes or punches as it was at the last flush
//
// Sectors are never torn inside: qcow2 has no checksums, so neither QEMU nor anybody else could bear that.

import assert from "node:assert/strict";
import { unpackSync } from "../../src/adapters/images/unpack.ts";
import type { Qcow2Header } from "../../src/core/images/qcow2/header.ts";
import { Qcow2Store, type StoreFile, type TableWrite } from "../../src/core/images/qcow2/store.ts";
import { SyncTables } from "../../src/core/images/qcow2/sync-tables.ts";
import type { StoredRun } from "../../src/core/images/qcow2/tables.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../src/foundations/units.ts";
import { checkQcow2 } from "./qcow2-checker.ts";
import { type Base, contentsOf } from "./qcow2-history.ts";
import { Random } from "./random.ts";
import { PowerCut, SECTOR, SimFile, World } from "./sim-file.ts";

/** What a broken variant of the code does wrong. */
export type StoreMutant =
	| "none"
	| "no flush"
	| "no flush before references"
	| "no flush before what was freed is reused"
	| "counts after references"
	| "data plane that is not told";

/** What histories reached. */
export interface StoreTally {
	cuts: number;
	leaks: number;
	noSpace: number;
	writes: number;
	punches: number;
	flushes: number;
	grown: number;
	shrunk: number;
	movedRefcountTables: number;
	/** Blocks that were read as a data plane reads, between two calls. */
	looks: number;
}

const PATH = "image";

export class StoreHistory {
	readonly #base: Base;
	readonly #random: Random;
	/** Chooses what is looked at, and nothing else: looking must not change the history. */
	readonly #looks: Random;
	readonly #world: World;
	readonly #sim: SimFile;
	readonly #mutant: StoreMutant;
	readonly #tally: StoreTally;
	/** What must be read, as of the last flush. */
	#durable: Uint8Array = new Uint8Array(0);
	/** By block: its contents since the last flush. */
	readonly #since = new Map<number, Uint8Array[]>();
	/** Blocks of a write that failed. */
	readonly #anything = new Set<number>();
	#last: { readonly block: number; readonly count: number } = { block: 0, count: 0 };
	/** Sizes that the disk may have: of the last flush, and one that is being set. */
	#sizes: number[] = [];
	#snapshots: readonly Uint8Array[] = [];
	/** How a data plane reads. */
	#plane: SyncTables | undefined;
	#clusterSize = 0;
	#compression: Qcow2Header["compression"] = "deflate";

	constructor(base: Base, seed: number, mutant: StoreMutant, tally: StoreTally) {
		this.#base = base;
		this.#random = new Random(seed);
		this.#looks = new Random(seed);
		this.#world = new World(this.#random, 0);
		this.#sim = new SimFile(this.#world);
		this.#sim.write(base.bytes, 0);
		this.#sim.datasync();
		this.#mutant = mutant;
		this.#tally = tally;
		this.#world.onCall = () => {
			if (mutant === "none" || mutant === "data plane that is not told") this.#lookThroughPlane();
		};
	}

	/** `look` is shown what each power cut left. */
	async run(look: (bytes: Uint8Array) => Promise<void> = async () => {}): Promise<Uint8Array> {
		[this.#durable, ...this.#snapshots] = (await contentsOf(this.#base.bytes, this.#base)) as [Uint8Array];
		this.#sizes = [this.#durable.length];
		const cycles = 1 + this.#random.below(4);
		for (let cycle = 0; cycle < cycles; cycle++) {
			this.#world.cutAt = this.#world.calls + 1 + this.#random.below(this.#random.chance(30) ? 12 : 150);
			this.#world.noSpacePercent = this.#random.chance(20) ? 5 : 0;
			try {
				await this.#work(10 + this.#random.below(30));
			} catch (error) {
				if (!(error instanceof PowerCut)) throw error;
				this.#tally.cuts++;
			}
			this.#world.noSpacePercent = 0;
			this.#world.powerOn();
			this.#sim.powerCut(this.#random);
			await this.#check();
			await look(this.#sim.contents());
		}
		// A last, undisturbed change repairs whatever is left.
		const store = await this.#open();
		this.#write(0, this.#someBytes(BLOCK_SIZE));
		await store.write(byteOffset(0), this.#since.get(0)!.at(-1)!);
		await store.flush();
		this.#flushed();
		await store.flush();
		await this.#check();
		assert.equal(checkQcow2(this.#sim.contents()).leaks, 0, "leaks are given back");
		return this.#sim.contents();
	}

	async #work(steps: number): Promise<void> {
		let store = await this.#open();
		for (let step = 0; step < steps; step++) {
			try {
				await this.#step(store);
			} catch (error) {
				if (!isVmsweepError(error) || error.code !== "NO_SPACE") throw error;
				this.#tally.noSpace++;
				const { block, count } = this.#last;
				for (let each = block; each < block + count; each++) this.#anything.add(each);
				// What failed is partly done. Either it goes on where it was, or the image is opened again, as after the end of
				// the process: what the host has is what counts.
				const goesOn = this.#random.chance(70) && (await this.#canFlush(store));
				await this.#withSpace(() => this.#sim.datasync());
				await this.#check();
				if (!goesOn) store = await this.#open();
			}
		}
	}

	async #withSpace(work: () => void | Promise<void>): Promise<void> {
		const saved = this.#world.noSpacePercent;
		this.#world.noSpacePercent = 0;
		try {
			await work();
		} finally {
			this.#world.noSpacePercent = saved;
		}
	}

	/** A flush that is repeated with room succeeds, unless the store wants to be opened again. */
	async #canFlush(store: Qcow2Store): Promise<boolean> {
		try {
			await this.#withSpace(() => store.flush());
			return true;
		} catch (error) {
			if (isVmsweepError(error) && error.code === "IO") return false;
			throw error;
		}
	}

	async #step(store: Qcow2Store): Promise<void> {
		const random = this.#random;
		const blocks = Math.floor(store.size / BLOCK_SIZE);
		const block = random.below(blocks);
		const count = Math.min(blocks - block, 1 + random.below(random.chance(20) ? 24 : 4));
		const kind = random.below(100);
		this.#last = { block, count: 0 };
		if (kind < 45) {
			this.#tally.writes++;
			const bytes = this.#someBytes(count * BLOCK_SIZE);
			this.#write(block, bytes);
			await store.write(byteOffset(block * BLOCK_SIZE), bytes);
		} else if (kind < 70) {
			this.#tally.punches++;
			this.#write(block, new Uint8Array(count * BLOCK_SIZE));
			await store.punch(byteOffset(block * BLOCK_SIZE), byteCount(count * BLOCK_SIZE));
		} else if (kind < 92) {
			this.#tally.flushes++;
			await store.flush();
			this.#flushed();
		} else if (kind < 95 && this.#snapshots.length === 0) await this.#resize(store);
		else await this.#compare(store, block, count);
	}

	async #resize(store: Qcow2Store): Promise<void> {
		const old = store.size;
		const grow = this.#random.chance(60);
		const size = grow
			? old + (1 + this.#random.below(60)) * BLOCK_SIZE
			: Math.max(BLOCK_SIZE, old - (1 + this.#random.below(20)) * BLOCK_SIZE);
		if (size === old) return;
		await store.flush();
		this.#flushed();
		const next = new Uint8Array(size);
		next.set(this.#durable.subarray(0, Math.min(size, old)));
		this.#sizes = [old, size];
		// What is to be cut off is nobody's any more.
		for (let block = Math.floor(size / BLOCK_SIZE); block * BLOCK_SIZE < old; block++)
			this.#since.set(block, [new Uint8Array(BLOCK_SIZE)]);
		await store.resize(byteCount(size));
		this.#sizes = [size];
		this.#since.clear();
		this.#durable = next;
		if (grow) this.#tally.grown++;
		else this.#tally.shrunk++;
	}

	/** What the store reads at once, before any flush. */
	async #compare(store: Qcow2Store, block: number, count: number): Promise<void> {
		const bytes = new Uint8Array(count * BLOCK_SIZE);
		await store.read(byteOffset(block * BLOCK_SIZE), bytes);
		for (let each = 0; each < count; each++) {
			const now = bytes.subarray(each * BLOCK_SIZE, (each + 1) * BLOCK_SIZE);
			this.#checkBlock(block + each, now);
		}
	}

	#someBytes(length: number): Uint8Array {
		const bytes = new Uint8Array(length);
		for (let at = 0; at < length; at += SECTOR) {
			bytes.fill(1 + this.#random.below(255), at, at + SECTOR);
			new DataView(bytes.buffer).setUint32(at, this.#random.bits());
		}
		return bytes;
	}

	#write(block: number, bytes: Uint8Array): void {
		this.#last = { block, count: bytes.length / BLOCK_SIZE };
		for (let at = 0; at < bytes.length; at += BLOCK_SIZE) {
			const index = block + at / BLOCK_SIZE;
			const versions = this.#since.get(index) ?? [];
			versions.push(bytes.slice(at, at + BLOCK_SIZE));
			this.#since.set(index, versions);
		}
	}

	#flushed(): void {
		for (const [block, versions] of this.#since) this.#durable.set(versions.at(-1)!, block * BLOCK_SIZE);
		this.#since.clear();
	}

	async #open(): Promise<Qcow2Store> {
		const { backing, decompress } = this.#base;
		const file = storeFile(this.#sim, this.#mutant, (write) => this.#written(write));
		this.#plane = undefined;
		const parts = { path: PATH, file, hostBlock: 4096, below: backing, decompress, ...file.tables };
		const store = await Qcow2Store.open(parts);
		this.#clusterSize = store.header.clusterSize;
		this.#compression = store.header.compression;
		this.#plane = new SyncTables({ read: (at, into) => this.#readNow(at, into) }, store.header, PATH, 1);
		return store;
	}

	#written({ pieces, header }: TableWrite): void {
		for (const { at, bytes } of pieces) this.#plane?.written(at, bytes);
		if (header !== undefined) this.#plane?.reload(header);
	}

	#readNow(at: number, into: Uint8Array): void {
		into.set(this.#sim.contents().subarray(at, at + into.length));
	}

	/** Reads a block that nobody is changing. */
	#lookThroughPlane(): void {
		if (this.#plane === undefined) return;
		const blocks = Math.floor(Math.min(this.#durable.length, ...this.#sizes) / BLOCK_SIZE);
		const block = this.#looks.below(blocks);
		if (this.#since.has(block) || this.#anything.has(block)) return;
		const bytes = new Uint8Array(BLOCK_SIZE);
		const [start, end] = [block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE];
		for (let at = start; at < end; ) {
			const run = this.#plane.run(at, end);
			this.#fetch(run, bytes.subarray(at - start, at - start + run.length));
			at += run.length;
		}
		this.#tally.looks++;
		const same = Buffer.compare(bytes, this.#durable.subarray(start, end)) === 0;
		assert.ok(same, `a data plane reads other bytes from block ${block}, which nobody is changing`);
	}

	#fetch({ kind, start, host, compressedLength }: StoredRun, into: Uint8Array): void {
		if (kind === "data") this.#readNow(host, into);
		else if (kind === "absent" && this.#base.below !== null)
			into.set(this.#base.below.subarray(start, start + into.length));
		else if (kind === "compressed") {
			const packed = this.#sim.contents().subarray(host, host + compressedLength);
			const cluster = unpackSync(this.#compression, packed, this.#clusterSize);
			const inCluster = start % this.#clusterSize;
			into.set(cluster.subarray(inCluster, inCluster + into.length));
		}
	}

	async #check(): Promise<void> {
		const bytes = this.#sim.contents();
		const { errors, leaks } = checkQcow2(bytes, { flags: true });
		assert.deepEqual(errors, []);
		if (leaks > 0) this.#tally.leaks++;
		const view = new DataView(bytes.buffer, bytes.byteOffset);
		const initial = new DataView(this.#base.bytes.buffer, this.#base.bytes.byteOffset);
		if (view.getBigUint64(48) !== initial.getBigUint64(48)) this.#tally.movedRefcountTables++;
		const [disk, ...snapshots] = (await contentsOf(bytes, this.#base)) as [Uint8Array];
		assert.ok(this.#sizes.includes(disk.length), `the disk has ${disk.length} bytes`);
		const next = disk.slice();
		for (let block = 0; block * BLOCK_SIZE < Math.min(disk.length, this.#durable.length); block++)
			this.#checkBlock(block, disk.subarray(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE));
		for (let at = this.#durable.length; at < disk.length; at++) assert.equal(disk[at], 0, `byte ${at} is new`);
		for (const [index, content] of snapshots.entries())
			assert.ok(Buffer.compare(content, this.#snapshots[index]!) === 0, `snapshot ${index} has other bytes`);
		this.#durable = next;
		this.#sizes = [next.length];
		this.#since.clear();
		this.#anything.clear();
	}

	#checkBlock(block: number, now: Uint8Array): void {
		const before = this.#durable.subarray(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
		if (this.#anything.has(block)) return;
		const versions = this.#since.get(block);
		if (versions === undefined) {
			assert.ok(Buffer.compare(now, before) === 0, `block ${block} has other bytes, but nobody wrote it`);
			return;
		}
		for (let at = 0; at < now.length; at += SECTOR) {
			const sector = now.subarray(at, at + SECTOR);
			const isOne = (version: Uint8Array): boolean => Buffer.compare(sector, version.subarray(at, at + SECTOR)) === 0;
			const known: boolean = [before, ...versions].some(isOne) || sector.every((byte) => byte === 0);
			assert.ok(known, `block ${block} has bytes that nobody wrote`);
		}
	}
}

type WriteTables = NonNullable<Parameters<typeof Qcow2Store.open>[0]["writeTables"]>;

/** Reads don't count as calls: a cut between two reads shows nothing. */
function storeFile(
	sim: SimFile,
	mutant: StoreMutant,
	written: (write: TableWrite) => void,
): StoreFile & { tables: { writeTables: WriteTables } } {
	/** The mutants' business: a flush that was asked for and not done, table writes since the last one. */
	let owed = false;
	let wroteTables = false;
	const held: { at: number; bytes: Uint8Array }[] = [];
	const settle = (): void => {
		if (owed) sim.datasync();
		owed = false;
	};
	const isCount = (at: number): boolean => {
		const bytes = sim.contents();
		const view = new DataView(bytes.buffer, bytes.byteOffset);
		const cluster = 2 ** view.getUint32(20);
		const table = Number(view.getBigUint64(48));
		for (let index = 0; index < (view.getUint32(56) * cluster) / 8; index++) {
			const block = Number(view.getBigUint64(table + index * 8));
			if (block !== 0 && at >= block && at < block + cluster) return true;
		}
		return false;
	};
	return {
		get size() {
			return byteCount(sim.size());
		},
		async read(at, into) {
			assert.ok(at + into.length <= sim.size(), "a read behind the end");
			into.set(sim.contents().subarray(at, at + into.length));
			for (const { at: from, bytes } of held) {
				const start = Math.max(at, from);
				const end = Math.min(at + into.length, from + bytes.length);
				if (start < end) into.set(bytes.subarray(start - from, end - from), start - at);
			}
		},
		async write(at, bytes) {
			settle();
			if (mutant === "counts after references" && !wroteTables && isCount(at)) held.push({ at, bytes: bytes.slice() });
			else sim.write(bytes, at);
		},
		async punch(at, length) {
			settle();
			sim.punch(at, length);
		},
		async zero(at, length) {
			settle();
			sim.punch(at, length);
		},
		async truncate(size) {
			settle();
			sim.truncate(size);
		},
		async flush() {
			const afterTables = wroteTables;
			wroteTables = false;
			if (mutant === "no flush") return;
			if (mutant === "no flush before what was freed is reused" && afterTables) return;
			if (mutant === "no flush before references") owed = true;
			else sim.datasync();
		},
		tables: {
			async writeTables(write) {
				wroteTables = true;
				owed = false;
				for (const { at, bytes } of write.pieces) sim.write(bytes, at);
				if (mutant !== "data plane that is not told") written(write);
				for (const { at, bytes } of held.splice(0)) sim.write(bytes, at);
			},
		},
	};
}
