// Disk reader: where each part of a read comes from, and how it is fetched without stopping the thread.
//
//   disk bytes ─ index ─► the first image ─ absent ─► what snapshots kept … ─ absent ─► the second image
//                              └──► runs: a piece of a file | zeros | packed
//
// `readCached` answers from the page cache (RWF_NOWAIT) and says no where a device would have to be waited
// for; the caller then hands the runs to helper threads. `readBlocking` waits, for the rare partial block write.
//
// Whatever was read is compared with its checksum (`verify`) before anybody sees it: rotten bytes are an error, never
// data. Checksums are of whole blocks, so all ranges here start and end at one.

import { crc32 } from "@node-rs/crc32";
import type { FirstImage, RunVisitor } from "../../core/log/first-image.ts";
import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import { BROKEN_RUN, PACKED_RUN, type PushRun, type SecondReader, type Unpack, ZERO_RUN } from "./second-reader.ts";

export { ZERO_RUN };

/** A log and the descriptor of its file. */
export interface LogFile {
	readonly log: FirstImage;
	readonly fd: number;
	/** Blocks that are neither in this log nor anywhere behind it: reading them is an error. */
	readonly lost?: ReadonlySet<number>;
}

/** Splits a run of blocks into those that are lost and those that are not, in order. */
export function eachPart(
	lost: ReadonlySet<number>,
	block: number,
	count: number,
	visit: (block: number, count: number, isLost: boolean) => void,
): void {
	const end = block + count;
	for (let at = block; at < end; ) {
		const isLost = lost.has(at);
		let to = lost.size === 0 ? end : at + 1;
		while (to < end && lost.has(to) === isLost) to++;
		visit(at, to - at, isLost);
		at = to;
	}
}

/** Checksums of the second image's blocks; 0 where nothing is known. */
export interface BlockSums {
	get(block: number): number;
	/** The checksums of a run will be asked for soon. */
	willNeed(block: number, count: number): void;
}

/** The runs of one read, as parallel arrays: valid until the next `plan`. */
export class DiskReader {
	readonly fd: number[] = [];
	readonly fileAt: number[] = [];
	readonly length: number[] = [];
	/** Log position of a run in the first image, which no other content ever has; -1 for other runs. */
	readonly position: number[] = [];
	/** Fetches a packed run; undefined for all others. */
	readonly unpack: (Unpack | undefined)[] = [];
	/** What the second image's `generation` was when the runs were planned. */
	generation = 0;
	count = 0;

	readonly #logs: () => readonly LogFile[];
	readonly #second: SecondReader;
	readonly #sums: BlockSums;
	readonly #iovec: Pinned = sys.pin(16);
	readonly #iovecView: DataView;
	/** False once the host's file system turned out not to know RWF_NOWAIT. */
	#noWaitWorks = true;

	/** Blocks with a checksum to be compared: parallel arrays, the slot being -1 for blocks of the second image. */
	readonly #checkLog: (FirstImage | undefined)[] = [];
	readonly #checkBlock: number[] = [];
	readonly #checkCount: number[] = [];
	readonly #checkSlot: number[] = [];
	#checks = 0;
	#firstBlock = 0;
	#logsNow: readonly LogFile[] = [];
	readonly #visitors: RunVisitor[] = [];

	/** @param logs asked for every plan: where a block is looked for before the second image, in this order */
	constructor(logs: () => readonly LogFile[], second: SecondReader, sums: BlockSums) {
		this.#logs = logs;
		this.#second = second;
		this.#sums = sums;
		this.#iovecView = new DataView(this.#iovec.bytes.buffer, this.#iovec.bytes.byteOffset, 16);
	}

	/** Looks up where `length` bytes at `at` are now. Both are multiples of the block. */
	plan(at: number, length: number): void {
		this.count = 0;
		this.#checks = 0;
		this.generation = this.#second.generation;
		this.#firstBlock = at / BLOCK_SIZE;
		this.#logsNow = this.#logs();
		this.#planIn(0, at / BLOCK_SIZE, length / BLOCK_SIZE);
	}

	/** Finds a run's bytes in one log after another, and what is in none of them in the second image. */
	#planIn(index: number, block: number, count: number): void {
		const source = this.#logsNow[index];
		if (source === undefined) {
			this.#check(undefined, block, count, -1);
			this.#second.plan(block * BLOCK_SIZE, (block + count) * BLOCK_SIZE, this.#pushSecond);
			return;
		}
		// A disk may have grown since a snapshot was taken.
		const inside = Math.max(0, Math.min(count, source.log.diskBlocks - block));
		this.#visitors[index] ??= this.#visitorOf(index);
		if (inside > 0) source.log.resolve(block, inside, this.#visitors[index]);
		if (inside < count) this.#push(ZERO_RUN, 0, (count - inside) * BLOCK_SIZE, -1);
	}

	/** Made once per place in the order of logs, so that planning allocates nothing. */
	#visitorOf(index: number): RunVisitor {
		return (value, block, count) => {
			const { log, fd, lost } = this.#logsNow[index]!;
			if (value === ABSENT) {
				if (lost === undefined || lost.size === 0) this.#planIn(index + 1, block, count);
				else
					eachPart(lost, block, count, (at, part, isLost) => {
						if (isLost) this.#push(BROKEN_RUN, 0, part * BLOCK_SIZE, -1);
						else this.#planIn(index + 1, at, part);
					});
			} else if (value === ZERO) this.#push(ZERO_RUN, 0, count * BLOCK_SIZE, -1);
			else {
				this.#check(log, block, count, value);
				this.#push(fd, log.offsetOfSlot(value), count * BLOCK_SIZE, log.positionOfSlot(value));
			}
		};
	}

	readonly #pushSecond: PushRun = (fd, fileAt, length, unpack) => this.#push(fd, fileAt, length, -1, unpack);

	#push(fd: number, fileAt: number, length: number, position: number, unpack?: Unpack): void {
		this.fd[this.count] = fd;
		this.fileAt[this.count] = fileAt;
		this.length[this.count] = length;
		this.position[this.count] = position;
		this.unpack[this.count] = unpack;
		this.count++;
	}

	#check(log: FirstImage | undefined, block: number, count: number, slot: number): void {
		this.#checkLog[this.#checks] = log;
		this.#checkBlock[this.#checks] = block;
		this.#checkCount[this.#checks] = count;
		this.#checkSlot[this.#checks] = slot;
		this.#checks++;
	}

	/**
	 * Compares the planned blocks, as they were read to `at` in `bytes`, with their checksums. Returns the first block that
	 * is rotten, or -1. Where nothing is known of a block, it's taken as it is.
	 */
	verify(bytes: Uint8Array, at: number): number {
		for (let check = 0; check < this.#checks; check++) {
			const block = this.#checkBlock[check]!;
			const from = at + (block - this.#firstBlock) * BLOCK_SIZE;
			const count = this.#checkCount[check]!;
			const rotten = this.#firstRotten(this.#checkLog[check], this.#checkSlot[check]!, block, count, bytes, from);
			if (rotten >= 0) return rotten;
		}
		return -1;
	}

	/** The first of `count` blocks, read to `at` in `bytes`, that doesn't match its checksum, or -1. */
	#firstRotten(
		log: FirstImage | undefined,
		slot: number,
		block: number,
		count: number,
		bytes: Uint8Array,
		at: number,
	): number {
		for (let i = 0; i < count; i++) {
			const sum = log === undefined ? this.#sums.get(block + i) : log.sumOfSlot(slot + i);
			const from = at + i * BLOCK_SIZE;
			if (sum !== 0 && crc32(bytes.subarray(from, from + BLOCK_SIZE)) !== sum) return block + i;
		}
		return -1;
	}

	/** The plan is one run of a file, whose blocks are all compared with checksums of one kind. */
	get isOnePiece(): boolean {
		return this.count === 1 && this.#checks === 1 && this.fd[0]! >= 0;
	}

	/** Of a plan in one piece: the log that its slots are in; undefined for the second image. */
	get pieceLog(): FirstImage | undefined {
		return this.#checkLog[0];
	}

	/** Of a plan in one piece: its first slot, or -1. */
	get pieceSlot(): number {
		return this.#checkSlot[0]!;
	}

	/** `verify` for a piece that was planned a while ago: the disk's first wrong byte, or -1. */
	verifyPiece(
		{ log, slot, offset, length }: { log: FirstImage | undefined; slot: number; offset: number; length: number },
		bytes: Uint8Array,
		at: number,
	): number {
		const rotten = this.#firstRotten(log, slot, offset / BLOCK_SIZE, length / BLOCK_SIZE, bytes, at);
		return rotten < 0 ? -1 : rotten * BLOCK_SIZE;
	}

	/** Fetches the planned runs into `target` at `targetAt`; false where the page cache does not hold them all. */
	readCached(target: Pinned, targetAt: number): boolean {
		let to = targetAt;
		for (let run = 0; run < this.count; run++) {
			const length = this.length[run]!;
			if (this.fd[run] === ZERO_RUN) target.bytes.fill(0, to, to + length);
			else if (this.fd[run]! < 0 || !this.#readRunCached(run, target.address + to)) return false;
			to += length;
		}
		return true;
	}

	#readRunCached(run: number, address: number): boolean {
		const length = this.length[run]!;
		if (!this.#noWaitWorks) return sys.preadAll(this.fd[run]!, address, length, this.fileAt[run]!) >= 0;
		for (let done = 0; done < length; ) {
			sys.put64(this.#iovecView, 0, address + done);
			sys.put64(this.#iovecView, 8, length - done);
			const count = sys.preadvNoWait(this.fd[run]!, this.#iovec.address, 1, this.fileAt[run]! + done);
			if (count === -sys.EOPNOTSUPP) {
				this.#noWaitWorks = false;
				return sys.preadAll(this.fd[run]!, address, length, this.fileAt[run]!) >= 0;
			}
			// A short count says where the cache ends, or only that the kernel was interrupted: the next call tells.
			if (count <= 0) return false;
			done += count;
		}
		return true;
	}

	/** Fetches the planned runs, waiting for devices. Throws IO. */
	readBlocking(target: Pinned, targetAt: number): void {
		let to = targetAt;
		for (let run = 0; run < this.count; run++) {
			const result = this.readRun(run, target, to);
			if (result < 0) throw sys.hostError(result, "reading the disk's images");
			to += this.length[run]!;
		}
	}

	/** Fetches one planned run, waiting for its device; answers a negated errno where that fails. */
	readRun(run: number, target: Pinned, targetAt: number): number {
		const fd = this.fd[run]!;
		const length = this.length[run]!;
		if (fd >= 0) return sys.preadAll(fd, target.address + targetAt, length, this.fileAt[run]!);
		const bytes = target.bytes.subarray(targetAt, targetAt + length);
		if (fd === ZERO_RUN) bytes.fill(0);
		else if (fd === PACKED_RUN) return this.unpack[run]!(bytes);
		else return -sys.EIO;
		return 0;
	}

	/** Asks the host to bring the planned runs, and what they are compared with, into its page cache; nobody waits. */
	readAhead(): void {
		for (let run = 0; run < this.count; run++)
			if (this.fd[run]! >= 0) sys.fadvise(this.fd[run]!, this.fileAt[run]!, this.length[run]!, sys.POSIX_FADV_WILLNEED);
		this.readAheadSums();
	}

	/** The same for what the planned blocks are compared with alone. */
	readAheadSums(): void {
		for (let check = 0; check < this.#checks; check++)
			if (this.#checkLog[check] === undefined) this.#sums.willNeed(this.#checkBlock[check]!, this.#checkCount[check]!);
	}
}
