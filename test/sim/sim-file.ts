// Simulated host: files whose unflushed sectors a power cut keeps, drops or tears, and a world that decides at which
// call the power is cut or a call fails.
//
//   durable   what is on disk          cache   what reads see          versions   per sector: contents since the last sync
//
// After a cut each sector that was written since the last sync holds what was durable or any of its later versions,
// chosen independently, or (rarely) a byte-wise mix of two. A sync that fails leaves some sectors on disk and forgets
// that the others were dirty, as Linux does: reads still see them, later syncs don't write them.
//
// A sync covers what was written before it began, not what comes while it runs: `beginSync`, then `completeSync`.
// Storage that breaks its word (a write that was acknowledged and lost, one that went elsewhere, a bit that flipped)
// is `corrupt`: no order of writes helps against it, so only detection is promised.

import type { GatherList, HostFile, PinnedBytes } from "../../src/core/log/host-file.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";
import type { Random } from "./random.ts";

export const SECTOR = 512;
/** Percent of sectors that are torn, for files that must bear it. */
export const SOME_TORN = 4;

/** Thrown by every call from the power cut on. */
export class PowerCut extends Error {}

/** What goes wrong, and when; shared by all files of a simulated host. */
export class World {
	readonly random: Random;
	/** Calls made so far. */
	calls = 0;
	/** The call at which the power is cut; that call may still have any part of its effect. */
	cutAt = Number.POSITIVE_INFINITY;
	/** Percent of calls that fail. */
	ioPercent = 0;
	noSpacePercent = 0;
	isCut = false;
	/** Told before every call: what a cut right now would leave can be looked at. */
	onCall: (() => void) | undefined;
	/** The call at which the power is cut issues all of its writes: for trying every subset of them. */
	wholeCalls = false;
	/** What the disk writes as a whole: 512 or 4096 bytes, aligned. All sectors of a unit share their fate. */
	atomicBytes: 512 | 4096 = 512;
	/** Percent of unflushed sectors that a cut leaves as a byte-wise mix of two contents: 0 for who can't bear any. */
	tearPercent: number;
	/** Keeps what writes replaced, so that `corrupt` can lose some. */
	remembers = false;
	/** Percent of asynchronous transfers that do less than they were asked for. */
	shortPercent = 0;

	constructor(random: Random, tearPercent: number) {
		this.random = random;
		this.tearPercent = tearPercent;
	}

	/** Counts a call. "cut" and errors: the caller applies a part of its effect, then throws `failure()`. */
	step(kind: "write" | "read" | "sync"): "ok" | "cut" | "IO" | "NO_SPACE" {
		if (this.isCut) throw new PowerCut("the power is off");
		this.calls++;
		this.onCall?.();
		if (this.calls >= this.cutAt) {
			this.isCut = true;
			return "cut";
		}
		if (kind === "write" && this.noSpacePercent > 0 && this.random.chance(this.noSpacePercent)) return "NO_SPACE";
		if (this.ioPercent > 0 && this.random.chance(this.ioPercent)) return "IO";
		return "ok";
	}

	isPartial(outcome: string): boolean {
		return outcome !== "ok" && !(outcome === "cut" && this.wholeCalls);
	}

	failure(outcome: "cut" | "IO" | "NO_SPACE"): Error {
		if (outcome === "cut") return new PowerCut("the power goes off");
		return new VmsweepError(outcome, outcome === "IO" ? "simulated I/O error" : "simulated full host");
	}

	powerOn(): void {
		this.isCut = false;
		this.cutAt = Number.POSITIVE_INFINITY;
	}
}

/** What storage that breaks its word did. */
export interface Corruption {
	readonly what: string;
	readonly isLostWrite: boolean;
}

/** What a sync that began covers. */
export interface SyncCover {
	readonly order: number;
	readonly size: number;
}

/** Pinned memory of the simulation: any memory will do. */
export const pinned = (bytes: Uint8Array): PinnedBytes => ({ bytes, address: 0 });

export class SimFile implements HostFile {
	readonly #world: World;
	#cache = new Uint8Array(0);
	#cacheSize = 0;
	#durable = new Uint8Array(0);
	#durableSize = 0;
	/** Whole sectors written since the last sync, oldest first. */
	#writes: { readonly sector: number; readonly content: Uint8Array; readonly order: number }[] = [];
	#nextOrder = 0;
	/** A sync failed since the last power cut: the cache may show what is not on disk and never will be. */
	cacheLies = false;
	/** What sectors held before their present durable content, for writes that get lost. */
	readonly #before = new Map<number, Uint8Array>();

	constructor(world: World) {
		this.#world = world;
	}

	size(): number {
		return this.#cacheSize;
	}

	write(from: Uint8Array, at: number): void {
		const outcome = this.#world.step("write");
		this.#put(from, at, this.#world.isPartial(outcome));
		if (outcome !== "ok") throw this.#world.failure(outcome);
	}

	writeGather(list: GatherList, at: number): void {
		const outcome = this.#world.step("write");
		let offset = at;
		for (let i = 0; i < list.count; i++) {
			const start = list.offsets[i]!;
			const piece = list.pinned[i]!.bytes.subarray(start, start + list.lengths[i]!);
			this.#put(piece, offset, this.#world.isPartial(outcome));
			offset += piece.length;
		}
		if (outcome !== "ok") throw this.#world.failure(outcome);
	}

	read(at: number, into: Uint8Array): void {
		const outcome = this.#world.step("read");
		if (outcome !== "ok") throw this.#world.failure(outcome);
		into.fill(0);
		into.set(this.#cache.subarray(Math.min(at, this.#cacheSize), Math.min(at + into.length, this.#cacheSize)));
	}

	datasync(): void {
		this.completeSync(this.beginSync());
	}

	/** A sync begins: what it covers. */
	beginSync(): SyncCover {
		return { order: this.#nextOrder, size: this.#cacheSize };
	}

	/** It ends. Throws IO, PowerCut. */
	completeSync(cover: SyncCover): void {
		const outcome = this.#world.step("sync");
		if (outcome === "ok") this.#syncAll(cover);
		else if (outcome === "cut") {
			if (!this.#world.wholeCalls) this.#syncSome();
		} else {
			this.#syncSome();
			this.cacheLies = true;
			// The failed sectors count as clean from now on.
			this.#writes = this.#writes.filter((write) => write.order >= cover.order);
		}
		if (outcome !== "ok") throw this.#world.failure(outcome);
	}

	punch(at: number, length: number): void {
		const outcome = this.#world.step("write");
		const end = Math.min(at + length, this.#cacheSize);
		if (end > at) this.#put(new Uint8Array(end - at), at, this.#world.isPartial(outcome));
		if (outcome !== "ok") throw this.#world.failure(outcome);
	}

	allocate(at: number, length: number): void {
		const outcome = this.#world.step("write");
		const end = outcome === "ok" ? at + length : at + this.#world.random.below(length);
		if (end > this.#cacheSize) this.#resize(end);
		if (outcome !== "ok") throw this.#world.failure(outcome);
	}

	truncate(size: number): void {
		const outcome = this.#world.step("write");
		if (outcome !== "ok" && this.#world.random.chance(50)) throw this.#world.failure(outcome);
		if (size < this.#cacheSize) this.#put(new Uint8Array(this.#cacheSize - size), size, false);
		this.#resize(size);
		if (outcome !== "ok") throw this.#world.failure(outcome);
	}

	/** Sectors written since the last sync. */
	dirtySectors(): number[] {
		return [...this.#versions().keys()];
	}

	/** The power was cut: unflushed sectors keep what `random` says. */
	powerCut(random: Random): void {
		const unitSectors = this.#world.atomicBytes / SECTOR;
		let unit = -1;
		let kept = 0;
		this.#settle(random.chance(50), (versions, sector) => {
			if (unitSectors === 1 || Math.floor(sector / unitSectors) !== unit) kept = random.below(100);
			unit = Math.floor(sector / unitSectors);
			if (kept < 45) return versions.at(-1);
			if (kept < 85) return undefined;
			return unitSectors === 1 ? random.pick(versions) : versions[0];
		});
		this.#tear(random);
	}

	/** The power was cut: exactly the sectors in `keep` hold their newest content. */
	cutKeeping(keep: ReadonlySet<number>, keepSize: boolean): void {
		this.#settle(keepSize, (versions, sector) => (keep.has(sector) ? versions.at(-1) : undefined));
	}

	/** An independent copy, as of now, in another world. */
	clone(world: World): SimFile {
		const copy = new SimFile(world);
		copy.#cache = this.#cache.slice();
		copy.#cacheSize = this.#cacheSize;
		copy.#durable = this.#durable.slice();
		copy.#durableSize = this.#durableSize;
		copy.#writes = [...this.#writes];
		return copy;
	}

	/**
	 * Storage breaks its word in one place: a flipped bit, a lost write, or a write that went to another place as well.
	 * Returns what it did, or undefined where there was nothing to do it to.
	 */
	corrupt(random: Random): Corruption | undefined {
		const sectors = Math.floor(Math.min(this.#cacheSize, this.#durable.length) / SECTOR);
		if (sectors <= 0) return undefined;
		const kind = random.below(3);
		if (kind === 0) {
			const at = random.below(sectors) * SECTOR + random.below(SECTOR);
			const flipped = Uint8Array.of(this.#cache[at]! ^ (1 << random.below(8)));
			this.#cache.set(flipped, at);
			if (at < this.#durable.length) this.#durable.set(flipped, at);
			return { what: `a bit of byte ${at} flipped`, isLostWrite: false };
		}
		// Blocks, not sectors: writes of the log's data and of the cleaner are blocks.
		const blocks = [...this.#before.keys()].filter((sector) => sector % 8 === 0);
		if (blocks.length === 0) return undefined;
		const block = random.pick(blocks);
		if (kind === 1) return this.loseWrite(block);
		const target = 8 * random.below(Math.ceil(sectors / 8));
		if (target === block) return undefined;
		const content = this.#durable.slice(block * SECTOR, (block + 8) * SECTOR);
		for (let i = 0; i < 8; i++) this.#replace(target + i, content.subarray(i * SECTOR, (i + 1) * SECTOR));
		return { what: `the write of sector ${block} went to sector ${target} as well`, isLostWrite: false };
	}

	/** The newest durable write of the 4 KiB from a sector on got lost: they hold what they held before. */
	loseWrite(first: number): Corruption {
		for (let sector = first; sector < first + 8; sector++) this.#replace(sector, this.#before.get(sector));
		return { what: `the last write of sector ${first} got lost`, isLostWrite: true };
	}

	#replace(sector: number, content: Uint8Array | undefined): void {
		if (content === undefined || content.length < SECTOR || (sector + 1) * SECTOR > this.#cacheSize) return;
		this.#persist(sector, content.slice());
		this.#cache.set(content, sector * SECTOR);
	}

	/** True where the block has only zeros: it takes no space. */
	isZero(at: number, length: number): boolean {
		const end = Math.min(at + length, this.#cacheSize);
		for (let i = at; i < end; i++) if (this.#cache[i] !== 0) return false;
		return true;
	}

	/** All bytes that reads see, for tests that damage or compare the file. */
	contents(): Uint8Array {
		return this.#cache.subarray(0, this.#cacheSize);
	}

	/** Torn sectors of the cut that is going on: sector and what to mix in. */
	#torn: [number, Uint8Array][] = [];

	#tear(random: Random): void {
		for (const [sector, other] of this.#torn) {
			if (!random.chance(this.#world.tearPercent)) continue;
			const boundary = random.below(SECTOR);
			this.#durable.set(other.subarray(boundary), sector * SECTOR + boundary);
			this.#cache.set(other.subarray(boundary), sector * SECTOR + boundary);
		}
		this.#torn = [];
	}

	#settle(keepSize: boolean, choose: (versions: Uint8Array[], sector: number) => Uint8Array | undefined): void {
		const size = keepSize ? this.#cacheSize : this.#durableSize;
		this.cacheLies = false;
		this.#torn = [];
		for (const [sector, versions] of this.#versions()) {
			if ((sector + 1) * SECTOR > size) continue;
			const chosen = choose(versions, sector);
			if (chosen) this.#persist(sector, chosen);
			this.#torn.push([sector, versions.at(-1)!]);
		}
		this.#writes = [];
		if (this.#durable.length < size) this.#durable = grown(this.#durable, size);
		this.#durable.fill(0, size);
		this.#durableSize = size;
		this.#cacheSize = size;
		if (this.#cache.length < this.#durable.length) this.#cache = new Uint8Array(this.#durable.length);
		this.#cache.set(this.#durable);
		this.#cache.fill(0, this.#durable.length);
	}

	/** Per sector, its contents since the last sync, oldest first. */
	#versions(): Map<number, Uint8Array[]> {
		const versions = new Map<number, Uint8Array[]>();
		for (const { sector, content } of this.#writes)
			for (let i = 0; i * SECTOR < content.length; i++) {
				const version = content.subarray(i * SECTOR, (i + 1) * SECTOR);
				const others = versions.get(sector + i);
				if (others) others.push(version);
				else versions.set(sector + i, [version]);
			}
		return versions;
	}

	#syncAll({ order, size }: SyncCover): void {
		const covered = this.#writes.findIndex((write) => write.order >= order);
		const writes = covered < 0 ? this.#writes : this.#writes.slice(0, covered);
		for (const { sector, content } of writes) this.#persist(sector, content);
		this.#writes = covered < 0 ? [] : this.#writes.slice(covered);
		this.#durableSize = Math.min(size, this.#cacheSize);
	}

	#syncSome(): void {
		for (const [sector, versions] of this.#versions())
			if (this.#world.random.chance(50)) this.#persist(sector, versions.at(-1)!);
		if (this.#world.random.chance(50)) this.#durableSize = this.#cacheSize;
	}

	#persist(sector: number, content: Uint8Array): void {
		const end = sector * SECTOR + content.length;
		if (this.#durable.length < end) this.#durable = grown(this.#durable, end);
		if (this.#world.remembers)
			for (let i = 0; i * SECTOR < content.length; i++)
				this.#before.set(sector + i, this.#durable.slice((sector + i) * SECTOR, (sector + i + 1) * SECTOR));
		this.#durable.set(content, sector * SECTOR);
	}

	/** Writes, or with `partly` writes a random subset of the range's sectors. */
	#put(from: Uint8Array, at: number, partly: boolean): void {
		const end = at + from.length;
		if (end > this.#cacheSize) this.#resize(end);
		const first = Math.floor(at / SECTOR);
		const last = Math.ceil(end / SECTOR);
		if (!partly) {
			this.#cache.set(from, at);
			this.#note(first, this.#cache.slice(first * SECTOR, last * SECTOR));
			return;
		}
		for (let sector = first; sector < last; sector++) {
			if (this.#world.random.chance(50)) continue;
			const start = Math.max(at, sector * SECTOR);
			const stop = Math.min(end, (sector + 1) * SECTOR);
			this.#cache.set(from.subarray(start - at, stop - at), start);
			this.#note(sector, this.#cache.slice(sector * SECTOR, (sector + 1) * SECTOR));
		}
	}

	#note(sector: number, content: Uint8Array): void {
		this.#writes.push({ sector, content, order: this.#nextOrder++ });
	}

	#resize(size: number): void {
		// Whole sectors of memory, so that the last one can be sliced.
		const room = Math.ceil(size / SECTOR) * SECTOR;
		if (this.#cache.length < room) this.#cache = grown(this.#cache, room);
		this.#cacheSize = size;
	}
}

function grown(array: Uint8Array<ArrayBuffer>, length: number): Uint8Array<ArrayBuffer> {
	const larger = new Uint8Array(Math.max(length, array.length * 2));
	larger.set(array);
	return larger;
}

/** What a cut keeps or drops together where subsets are enumerated: the first sector of each 4 KiB, and its other seven. */
export function unitsOf(sectors: readonly number[]): number[][] {
	const units = new Map<number, number[]>();
	for (const sector of sectors) {
		const unit = Math.floor(sector / 8) * 2 + (sector % 8 === 0 ? 0 : 1);
		const others = units.get(unit);
		if (others) others.push(sector);
		else units.set(unit, [sector]);
	}
	return [...units.values()];
}
