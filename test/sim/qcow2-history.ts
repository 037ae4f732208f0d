// One history of a qcow2 image under simulated power cuts: sweeps and compactions, cut anywhere, then looked at.
//
// The promise
//  1  no entry leads to a cluster whose count is too low, whatever the cut left (independent checker)
//  2  what was not dropped reads as before; what was dropped reads as before or as zeros, and as zeros once flushed
//  3  internal snapshots read as before
//  4  after the next complete sweep nothing is leaked
//
// Sectors are never torn inside (see qcow2-store-history.ts).

import assert from "node:assert/strict";
import type { WritableImageFile } from "../../src/core/images/image-file.ts";
import { compactImage } from "../../src/core/images/qcow2/compact.ts";
import { type Decompress, Qcow2Disk } from "../../src/core/images/qcow2/disk.ts";
import { readHeader } from "../../src/core/images/qcow2/header.ts";
import { readSnapshots } from "../../src/core/images/qcow2/snapshots.ts";
import { Qcow2Sweep } from "../../src/core/images/qcow2/sweep.ts";
import { MappingTables } from "../../src/core/images/qcow2/tables.ts";
import { verifyImage } from "../../src/core/images/qcow2/verify.ts";
import type { VirtualDisk } from "../../src/core/images/virtual-disk.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import { checkQcow2 } from "./qcow2-checker.ts";
import { Random } from "./random.ts";
import { PowerCut, SimFile, World } from "./sim-file.ts";

/** What a broken variant of the code does wrong. */
export type Mutant = "none" | "no flush" | "flush too late" | "every other flush";

/** An image to begin with. */
export interface Base {
	readonly name: string;
	/** The whole file; a whole number of clusters. */
	readonly bytes: Uint8Array;
	/** Content of the image below, if there is one. */
	readonly backing: VirtualDisk | null;
	/** The same, as bytes. */
	readonly below: Uint8Array | null;
	readonly decompress: Decompress;
}

/** What histories reached. */
export interface Tally {
	cuts: number;
	leaks: number;
	sweeps: number;
	compactions: number;
	shortened: number;
}

const PATH = "image";

export class History {
	readonly #base: Base;
	readonly #random: Random;
	readonly #world: World;
	readonly #sim: SimFile;
	readonly #file: WritableImageFile;
	readonly #tally: Tally;
	/** Per cluster: dropped, and for sure. */
	readonly #dropped = new Set<number>();
	readonly #surelyDropped = new Set<number>();

	constructor(base: Base, seed: number, mutant: Mutant, tally: Tally) {
		this.#base = base;
		this.#random = new Random(seed);
		this.#world = new World(this.#random, 0);
		this.#sim = new SimFile(this.#world);
		this.#sim.write(base.bytes, 0);
		this.#sim.datasync();
		this.#file = imageFile(this.#sim, mutant);
		this.#tally = tally;
	}

	async run(): Promise<Uint8Array> {
		const before = await contentsOf(this.#base.bytes, this.#base);
		const cycles = 1 + this.#random.below(3);
		for (let cycle = 0; cycle < cycles; cycle++) {
			this.#world.cutAt = this.#world.calls + 1 + this.#random.below(this.#random.chance(30) ? 8 : 60);
			try {
				await this.#work();
			} catch (error) {
				if (!(error instanceof PowerCut)) throw error;
				this.#tally.cuts++;
			}
			this.#world.cutAt = Number.POSITIVE_INFINITY;
			this.#world.powerOn();
			this.#sim.powerCut(this.#random);
			await this.#check(before);
		}
		// A last, undisturbed sweep repairs whatever is left.
		await (await this.#openSweep()).commit(this.#file);
		await this.#file.flush();
		await this.#check(before);
		assert.equal(checkQcow2(this.#sim.contents()).leaks, 0, "leaks are given back");
		return this.#sim.contents();
	}

	async #work(): Promise<void> {
		for (let step = 0; step < 3; step++)
			if (this.#random.chance(60)) await this.#sweep();
			else {
				this.#tally.compactions++;
				const size = this.#sim.size();
				await compactImage(this.#file, PATH, { roundClusters: 1 + this.#random.below(40) });
				if (this.#sim.size() < size) this.#tally.shortened++;
			}
	}

	async #openSweep(): Promise<Qcow2Sweep> {
		const header = await readHeader(this.#file, PATH);
		const image = await verifyImage(this.#file, header, PATH, await readSnapshots(this.#file, header, PATH));
		return new Qcow2Sweep({ path: PATH, header, image, hostBlock: 4096 }, this.#file);
	}

	async #sweep(): Promise<void> {
		this.#tally.sweeps++;
		const sweep = await this.#openSweep();
		const { size, clusterSize, version, backing } = await readHeader(this.#file, PATH);
		const clusters = Math.ceil(size / clusterSize);
		const now: number[] = [];
		for (let cluster = 0; cluster < clusters; ) {
			const length = 1 + this.#random.below(Math.max(2, Math.floor(clusters / 10)));
			const end = Math.min(clusters, cluster + length);
			if (this.#random.chance(15)) {
				for (let each = cluster; each < end; each++) {
					this.#dropped.add(each);
					now.push(each);
				}
				const start = cluster * clusterSize;
				await sweep.drop(start, Math.min(size, end * clusterSize) - start);
				if (this.#random.chance(20)) await sweep.commit(this.#file);
			}
			cluster = end;
		}
		await sweep.commit(this.#file);
		await this.#file.flush();
		const staysAsItWas =
			(version === 2 && backing !== null) || this.#base.name.includes("snapshot") || backing !== null;
		if (!staysAsItWas) for (const each of now) this.#surelyDropped.add(each);
	}

	async #check(before: readonly Uint8Array[]): Promise<void> {
		const bytes = this.#sim.contents();
		const { errors, leaks } = checkQcow2(bytes);
		assert.deepEqual(errors, []);
		if (leaks > 0) this.#tally.leaks++;
		const [disk, ...snapshots] = await contentsOf(bytes, this.#base);
		const clusterSize = 2 ** new DataView(bytes.buffer, bytes.byteOffset).getUint32(20);
		for (let at = 0; at < disk!.length; at += clusterSize) {
			const cluster = at / clusterSize;
			const now = disk!.subarray(at, at + clusterSize);
			const zero = now.every((byte) => byte === 0);
			const same = Buffer.compare(now, before[0]!.subarray(at, at + clusterSize)) === 0;
			assert.ok(same || (zero && this.#dropped.has(cluster)), `guest cluster ${cluster} has other bytes`);
			assert.ok(zero || !this.#surelyDropped.has(cluster), `guest cluster ${cluster} is back`);
		}
		for (const [index, content] of snapshots.entries())
			assert.ok(Buffer.compare(content, before[index + 1]!) === 0, `snapshot ${index} has other bytes`);
	}
}

/** The disk's present content, and that of each snapshot. */
export async function contentsOf(bytes: Uint8Array, { backing, decompress }: Base): Promise<Uint8Array[]> {
	const file = {
		size: byteCount(bytes.length),
		async read(at: number, into: Uint8Array): Promise<void> {
			assert.ok(at + into.length <= bytes.length, "a read behind the end");
			into.set(bytes.subarray(at, at + into.length));
		},
	};
	const header = await readHeader(file, PATH);
	const { snapshots } = await readSnapshots(file, header, PATH);
	const contents: Uint8Array[] = [];
	for (const l1 of [{ l1Offset: header.l1Offset, l1Entries: header.l1Needed }, ...snapshots]) {
		const tables = await MappingTables.open(file, header, PATH, l1);
		const disk = new Qcow2Disk({ path: PATH, file, header, tables, dataFile: null, backing, decompress });
		const content = new Uint8Array(header.size);
		await disk.read(byteOffset(0), content);
		contents.push(content);
	}
	return contents;
}

/** Reads don't count as calls: a cut between two reads shows nothing. */
function imageFile(sim: SimFile, mutant: Mutant): WritableImageFile {
	let flushes = 0;
	let owed = false;
	const settle = (): void => {
		if (owed) sim.datasync();
		owed = false;
	};
	return {
		get size() {
			return byteCount(sim.size());
		},
		async read(at, into) {
			assert.ok(at + into.length <= sim.size(), "a read behind the end");
			into.set(sim.contents().subarray(at, at + into.length));
		},
		async write(at, bytes) {
			sim.write(bytes, at);
			settle();
		},
		async punch(at, length) {
			sim.punch(at, length);
			settle();
		},
		async truncate(size) {
			sim.truncate(size);
			settle();
		},
		async flush() {
			flushes++;
			if (mutant === "no flush" || (mutant === "every other flush" && flushes % 2 === 1)) return;
			if (mutant === "flush too late") owed = true;
			else sim.datasync();
		},
	};
}
