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

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import {
	AGF_MAGIC,
	Agf,
	BtreeBlock,
	BY_BLOCK_MAGIC_V5,
	KIND_AGF,
	KIND_BTREE,
	LOG_FORMAT_LINUX_LITTLE_ENDIAN,
	SUPERBLOCK_MAGIC,
	SuperBlock,
} from "./layout.ts";
import type { LogEnds } from "./log-ends.ts";
import type { LogRing } from "./log-records.ts";
import { isRecordChecksumRight, lsnOf, parseRecordHead, recordData } from "./log-records.ts";
import type { BufferChange, Transaction } from "./log-transactions.ts";
import { TransactionReader } from "./log-transactions.ts";
import { MetadataView, type Overlay } from "./metadata-view.ts";
import { crc32cOf, type Geometry } from "./open.ts";

/** Bounds memory; a volume whose log changes more tree blocks is kept whole. */
const MAX_OVERLAY_BYTES = 64 << 20;
const MAX_OVERLAY_BLOCKS = 1 << 19;

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its log is damaged: ${what}; mount it in the guest, then try again`);

/** Replays a dirty log of a version 5 volume. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED where it can't be believed. */
export async function replayLog(
	volume: ByteSource,
	geometry: Geometry,
	ring: LogRing,
	{ tail, head }: LogEnds,
): Promise<Overlay> {
	const transactions = new TransactionReader();
	const replay = new Replay(volume, geometry);
	const length = ring.distance(tail, head);
	let cycle: number | null = null;
	for (let done = 0; done < length; ) {
		const sector = ring.wrap(tail + done);
		const record = parseRecordHead(await ring.readAhead(sector, 1), sector, true);
		if (record === null || done + record.sectors > length) throw damaged(`no record starts at its sector ${sector}`);
		if (record.format !== LOG_FORMAT_LINUX_LITTLE_ENDIAN)
			throw new VmsweepError(
				"VOLUME_UNSUPPORTED",
				"its log was written by a big-endian machine; mount it there, then try again",
			);
		if (!geometry.logUuid.every((byte, at) => byte === record.uuid[at]))
			throw damaged(`the record at sector ${sector} belongs to another file system`);
		cycle ??= record.cycle;
		if (record.lsn !== lsnOf(sector < tail ? cycle + 1 : cycle, sector))
			throw damaged(`the record at sector ${sector} is of another cycle`);
		const bytes = await ring.readAhead(sector, record.sectors);
		if (!isRecordChecksumRight(record, bytes)) throw damaged(`the record at sector ${sector} has a wrong checksum`);
		const data = recordData(record, bytes);
		if (data === null) throw damaged(`the record at sector ${sector} is longer than its head allows`);
		for (const transaction of transactions.feed(record.lsn, data, record.operationCount))
			await replay.apply(transaction);
		done += record.sectors;
	}
	return replay.overlay();
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

/** A tree of another kind: not needed. A text: why the block can't be told. */
type State = Replayed | "other" | { readonly why: string };

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

class Replay {
	readonly #geometry: Geometry;
	readonly #home: MetadataView;
	readonly #states = new Map<number, State>();
	readonly #superblockForm: BlockForm;
	#heldBytes = 0;
	#lsn = -1n;
	#epoch = 0;

	constructor(volume: ByteSource, geometry: Geometry) {
		this.#geometry = geometry;
		this.#home = new MetadataView(volume, new Map());
		const { lsn, uuid, metaUuid, checksum } = SuperBlock.offset;
		const sameUuid = geometry.logUuid.every((byte, at) => byte === geometry.metadataUuid[at]);
		this.#superblockForm = {
			magic: SUPERBLOCK_MAGIC,
			lsnAt: lsn,
			uuidAt: sameUuid ? uuid : metaUuid,
			checksumAt: checksum,
		};
	}

	async apply({ lsn, changes }: Transaction): Promise<void> {
		if (lsn !== this.#lsn) this.#epoch++;
		this.#lsn = lsn;
		const wanted: BufferChange[] = [];
		for (const change of changes) if (!change.isCancel && this.#isWanted(change)) wanted.push(change);
		await this.#load(wanted);
		for (const change of wanted) this.#applyChange(change, lsn);
		for (const change of changes)
			if (change.isCancel && change.length === this.#geometry.blockSize) this.#forget(change.at);
	}

	/** What the log changes, by byte position. */
	overlay(): Overlay {
		const overlay = new Map<number, Uint8Array | string>();
		for (const [at, state] of this.#states) {
			if (state === "other") overlay.set(at, "the log makes a tree of another kind of one of its blocks");
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
		if (magic !== null && magic !== BY_BLOCK_MAGIC_V5) {
			this.#forget(at);
			this.#set(at, "other");
			return false;
		}
		return magic !== null || this.#states.get(at) !== "other";
	}

	#set(at: number, state: State): void {
		this.#states.set(at, state);
		if (this.#states.size > MAX_OVERLAY_BLOCKS || this.#heldBytes > MAX_OVERLAY_BYTES)
			throw damaged("it changes too many tree blocks to be held");
	}

	#forget(at: number): void {
		const state = this.#states.get(at);
		if (state === undefined) return;
		if (state !== "other" && "bytes" in state) this.#heldBytes -= state.bytes.length;
		this.#states.delete(at);
	}

	/** Reads the home blocks of changes to blocks that are not held yet. */
	async #load(changes: readonly BufferChange[]): Promise<void> {
		for (const length of [this.#geometry.sectorSize, this.#geometry.blockSize]) {
			const missing = changes.filter((change) => change.length === length && !this.#isHeld(change.at));
			// By few, so that a hostile log can't make memory hold more than the limit that #set watches over.
			for (let from = 0; from < missing.length; from += BLOCKS_AT_ONCE) {
				const some = missing.slice(from, from + BLOCKS_AT_ONCE);
				const blocks = await this.#home.readAll(
					some.map(({ at }) => at),
					length,
				);
				for (const [index, change] of some.entries()) {
					if (this.#isHeld(change.at)) continue;
					const state = this.#judge(change, blocks[index]!.bytes.slice());
					if (state !== "other" && "bytes" in state) this.#heldBytes += state.bytes.length;
					this.#set(change.at, state);
				}
			}
		}
	}

	#isHeld(at: number): boolean {
		const state = this.#states.get(at);
		return state !== undefined && state !== "other";
	}

	/** What a home block is, before its first change. */
	#judge(change: BufferChange, bytes: Uint8Array): State {
		const form = this.#form(change);
		const isOurs = this.#isOurs(form, bytes);
		const view = viewOf(bytes);
		// A torn block may hold changes that the log has no more. Where the log makes a new block, nothing is taken over.
		if (isOurs && crc32cOf(bytes, form.checksumAt) !== view.getUint32(form.checksumAt, true))
			return { why: `the block at ${change.at} has a wrong checksum before the log is replayed` };
		if (!isOurs && change.kind !== KIND_BTREE)
			return { why: `the header at ${change.at} is damaged before the log is replayed` };
		if (!isOurs && changedMagic(change) === null) return "other";
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
		if (state === undefined || state === "other" || "why" in state) return;
		const isComparable = state.lsn !== 0n && state.lsn !== NO_LSN && state.epoch !== this.#epoch;
		if (isComparable && state.lsn >= lsn) return;
		for (const { at, bytes } of change.parts) state.bytes.set(bytes, at);
		state.isChanged = true;
		state.lsn = lsn;
		state.epoch = this.#epoch;
	}
}

/** Kernels apply changes to blocks with this log position whatever their own. */
const NO_LSN = 0xffff_ffff_ffff_ffffn;

/** The magic number that a change gives its block, or null where it leaves the block's first bytes alone. */
const changedMagic = ({ parts }: BufferChange): number | null =>
	parts[0]?.at === 0 ? viewOf(parts[0].bytes).getUint32(0) : null;
