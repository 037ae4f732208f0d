// Recovery in memory: the metadata blocks that free space hangs on, as replaying the log would leave them.
//
//   tail ─▶ record ─▶ record ─▶ … ─▶ head       checksums, positions and places of all must fit, one after the other
//             └▶ transactions, in the order of their commits
//                   └▶ changes of AGFs and tree blocks: home block + changed 128-byte chunks ─▶ overlay
//
// As Linux recovers (`xlog_recover_buf_commit_pass2`): a change is skipped where the block is of the same or a later
// log position, and where a later transaction gave the block up. Kernels learn of the latter in a pass before; here
// a cancellation takes back what was applied so far, which comes to the same.
//
// What mounting does beyond that (finishing intents, emptying lists of unlinked files) only gives up more blocks, or
// uses free ones afresh. None of it is followed: what it would free stays in use.

import { isVmsweepError, VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import {
	AGF_MAGIC,
	Agf,
	BtreeBlock,
	BY_BLOCK_MAGIC_V5,
	KIND_AGF,
	KIND_BTREE,
	SUPERBLOCK_MAGIC,
	SuperBlock,
} from "./layout.ts";
import type { LogEnds } from "./log-ends.ts";
import type { LogRing } from "./log-records.ts";
import { cycleAt, NO_LSN, readWholeRecord } from "./log-records.ts";
import type { BufferChange, Transaction } from "./log-transactions.ts";
import { TransactionReader } from "./log-transactions.ts";
import { MetadataView, type Overlay } from "./metadata-view.ts";
import { crc32cOf, type Geometry } from "./open.ts";

/** Bounds memory; a volume whose log changes more tree blocks is kept whole. */
const MAX_OVERLAY_BYTES = 64 << 20;
const MAX_OVERLAY_BLOCKS = 1 << 19;

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its log is damaged: ${what}; mount it in the guest, then try again`);

/** What the log changes: nothing where it is clean. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED where it can't be believed. */
export async function recover(volume: ByteSource, geometry: Geometry, ring: LogRing, ends: LogEnds): Promise<Overlay> {
	if (ends.clean) return new Map();
	if (geometry.version === 4)
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			"it is mounted, or was not unmounted cleanly, and format version 4 can't tell its true state; mount and unmount it in the guest",
		);
	checkLogFeatures(geometry);
	return (await replayLog(volume, geometry, ring, ends)).overlay();
}

/** Throws VOLUME_UNSUPPORTED where a log has what isn't known here, and so can't be replayed. */
export function checkLogFeatures({ unknownLogFeatures }: Geometry): void {
	if (unknownLogFeatures !== 0)
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			`its log has the unknown feature 0x${unknownLogFeatures.toString(16)}; mount and unmount it in the guest`,
		);
}

/**
 * Replays a dirty log of a version 5 volume. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED where it can't be believed.
 * `transactions` and `replay` may go on from there with what the guest logs later.
 */
export async function replayLog(
	volume: ByteSource,
	geometry: Geometry,
	ring: LogRing,
	{ tail, head }: LogEnds,
	transactions = new TransactionReader(),
	replay = new LogReplay(geometry),
): Promise<LogReplay> {
	const length = ring.distance(tail, head);
	let cycle: number | null = null;
	for (let done = 0; done < length; ) {
		const sector = ring.wrap(tail + done);
		cycle ??= cycleAt(await ring.readAhead(sector, 1), 0);
		const place = { sector, cycle: sector < tail ? cycle + 1 : cycle };
		const found = await readWholeRecord(ring, geometry.logUuid, place, length - done);
		if (isVmsweepError(found)) throw found;
		const { record, data } = found;
		for (const transaction of transactions.feed(record.lsn, data, record.operationCount))
			await replay.apply(volume, transaction);
		done += record.sectors;
	}
	return replay;
}

/** A block that the log changes. */
interface Replayed {
	readonly bytes: Uint8Array;
	isChanged: boolean;
	/** Position of the newest change: what kernels write into the block when they write it home. */
	lsn: bigint;
	/** Changes of one log position don't skip each other, since kernels write home only in between positions. */
	epoch: number;
}

/** A tree of another kind, which is not needed; or why the block can't be told. */
type State = Replayed | { readonly isOther: true; lsn: bigint } | { readonly why: string; lsn: bigint };

/** Where blocks of each kind have what tells whether a change is newer. */
interface BlockForm {
	readonly magic: number;
	readonly lsnAt: number;
	readonly uuidAt: number;
	readonly checksumAt: number;
}
const btreeForm: BlockForm = {
	magic: BY_BLOCK_MAGIC_V5,
	lsnAt: BtreeBlock.offset.lsn,
	uuidAt: BtreeBlock.offset.uuid,
	checksumAt: BtreeBlock.offset.checksum,
};
const agfForm: BlockForm = {
	magic: AGF_MAGIC,
	lsnAt: Agf.offset.lsn,
	uuidAt: Agf.offset.uuid,
	checksumAt: Agf.offset.checksum,
};

/** Home blocks that are read together. */
const BLOCKS_AT_ONCE = 64;

/** The blocks that a log changes, transaction by transaction. */
export class LogReplay {
	readonly #geometry: Geometry;
	readonly #states = new Map<number, State>();
	readonly #superblockForm: BlockForm;
	#heldBytes = 0;
	#lsn = -1n;
	#epoch = 0;

	constructor(geometry: Geometry) {
		this.#geometry = geometry;
		const { lsn, uuid, metaUuid, checksum } = SuperBlock.offset;
		const sameUuid = geometry.logUuid.every((byte, at) => byte === geometry.metadataUuid[at]);
		this.#superblockForm = {
			magic: SUPERBLOCK_MAGIC,
			lsnAt: lsn,
			uuidAt: sameUuid ? uuid : metaUuid,
			checksumAt: checksum,
		};
	}

	/**
	 * Applies the next transaction; home blocks are read from `volume`, as it is then or later. Throws VOLUME_DAMAGED, and what
	 * the source throws.
	 */
	async apply(volume: ByteSource, { lsn, changes }: Transaction): Promise<void> {
		if (lsn !== this.#lsn) this.#epoch++;
		this.#lsn = lsn;
		const wanted: BufferChange[] = [];
		for (const change of changes) if (!change.isCancel && this.#isWanted(change)) wanted.push(change);
		await this.#load(new MetadataView(volume, new Map()), wanted, lsn);
		for (const change of wanted) this.#applyChange(change, lsn);
		for (const change of changes)
			if (change.isCancel && change.length === this.#geometry.blockSize) this.#forget(change.at);
	}

	/** Lets go of blocks whose newest change is older than the log's tail: they are written home. */
	forgetBefore(tailLsn: bigint): void {
		for (const [at, { lsn }] of this.#states) if (lsn !== NO_LSN && lsn < tailLsn) this.#forget(at);
	}

	/** What the log changes, by byte position. */
	overlay(): Overlay {
		const overlay = new Map<number, Uint8Array | string>();
		for (const [at, state] of this.#states) {
			if ("isOther" in state) overlay.set(at, "the log makes a tree of another kind of one of its blocks");
			else if ("why" in state) overlay.set(at, state.why);
			else if (state.isChanged) overlay.set(at, state.bytes);
		}
		return overlay;
	}

	#form(change: BufferChange): BlockForm {
		return change.kind === KIND_BTREE ? btreeForm : change.kind === KIND_AGF ? agfForm : this.#superblockForm;
	}

	/** Checks a change's place; false where it belongs to a tree that free space does not hang on. */
	#isWanted(change: BufferChange): boolean {
		const { blockSize, sectorSize, agBlocks, agCount, dataBlocks } = this.#geometry;
		const { at, length, kind } = change;
		if (kind !== KIND_BTREE) {
			const groupBytes = agBlocks * blockSize;
			const inGroup = at % groupBytes;
			const isPlace = inGroup === (kind === KIND_AGF ? sectorSize : 0) && at < agCount * groupBytes;
			if (!isPlace || length !== sectorSize) throw damaged(`it changes ${length} bytes at ${at}, where no header is`);
			return true;
		}
		if (at % blockSize !== 0 || length !== blockSize || at + length > dataBlocks * blockSize)
			throw damaged(`it changes ${length} bytes at ${at}, where no tree block can be`);
		const magic = changedMagic(change);
		const known = this.#states.get(at);
		if (magic !== null && magic !== BY_BLOCK_MAGIC_V5) {
			this.#forget(at);
			this.#set(at, { isOther: true, lsn: this.#lsn });
			return false;
		}
		if (magic !== null || known === undefined || !("isOther" in known)) return true;
		known.lsn = this.#lsn;
		return false;
	}

	#set(at: number, state: State): void {
		this.#states.set(at, state);
		if (this.#states.size > MAX_OVERLAY_BLOCKS || this.#heldBytes > MAX_OVERLAY_BYTES)
			throw damaged("it changes too many tree blocks to be held");
	}

	#forget(at: number): void {
		const state = this.#states.get(at);
		if (state === undefined) return;
		if ("bytes" in state) this.#heldBytes -= state.bytes.length;
		this.#states.delete(at);
	}

	/** Reads the home blocks of changes to blocks that are not held yet. */
	async #load(home: MetadataView, changes: readonly BufferChange[], lsn: bigint): Promise<void> {
		for (const length of [this.#geometry.sectorSize, this.#geometry.blockSize]) {
			const missing = changes.filter((change) => change.length === length && !this.#isHeld(change.at));
			// By few, so that a hostile log can't make memory hold more than the limit that #set watches over.
			for (let from = 0; from < missing.length; from += BLOCKS_AT_ONCE) {
				const some = missing.slice(from, from + BLOCKS_AT_ONCE);
				const blocks = await home.readAll(
					some.map(({ at }) => at),
					length,
				);
				for (const [index, change] of some.entries()) {
					if (this.#isHeld(change.at)) continue;
					const state = this.#judge(change, blocks[index]!.bytes.slice(), lsn);
					if ("bytes" in state) this.#heldBytes += state.bytes.length;
					this.#set(change.at, state);
				}
			}
		}
	}

	#isHeld(at: number): boolean {
		const state = this.#states.get(at);
		return state !== undefined && !("isOther" in state);
	}

	/** What a home block is, before its first change. */
	#judge(change: BufferChange, bytes: Uint8Array, lsn: bigint): State {
		const form = this.#form(change);
		const isOurs = this.#isOurs(form, bytes);
		const view = viewOf(bytes);
		// A torn block may hold changes that the log has no more. Where the log makes a new block, nothing is taken over.
		if (isOurs && crc32cOf(bytes, form.checksumAt) !== view.getUint32(form.checksumAt, true))
			return { why: `the block at ${change.at} has a wrong checksum before the log is replayed`, lsn };
		if (!isOurs && change.kind !== KIND_BTREE)
			return { why: `the header at ${change.at} is damaged before the log is replayed`, lsn };
		if (!isOurs && changedMagic(change) === null) return { isOther: true, lsn };
		return { bytes, isChanged: false, lsn: isOurs ? view.getBigUint64(form.lsnAt) : NO_LSN, epoch: -1 };
	}

	#isOurs(form: BlockForm, bytes: Uint8Array): boolean {
		const uuid = bytes.subarray(form.uuidAt, form.uuidAt + 16);
		return (
			viewOf(bytes).getUint32(0) === form.magic && this.#geometry.metadataUuid.every((byte, at) => byte === uuid[at])
		);
	}

	#applyChange(change: BufferChange, lsn: bigint): void {
		const state = this.#states.get(change.at);
		if (state === undefined || "isOther" in state) return;
		if ("why" in state) {
			state.lsn = lsn;
			return;
		}
		const isComparable = state.lsn !== 0n && state.lsn !== NO_LSN && state.epoch !== this.#epoch;
		if (isComparable && state.lsn >= lsn) return;
		for (const { at, bytes } of change.parts) state.bytes.set(bytes, at);
		state.isChanged = true;
		state.lsn = lsn;
		state.epoch = this.#epoch;
	}
}

/** The magic number that a change gives its block, or null where it leaves the block's first bytes alone. */
const changedMagic = ({ parts }: BufferChange): number | null =>
	parts[0]?.at === 0 ? viewOf(parts[0].bytes).getUint32(0) : null;
