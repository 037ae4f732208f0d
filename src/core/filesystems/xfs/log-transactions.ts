// Transactions of the log, put together from the operations of its records.
//
//   record 1  | START t7 | header t7 | region | region ─CONTINUE │      operations of several transactions may mix,
//   record 2  | ─WAS_CONTINUED, END | START t9 | … | COMMIT t7 |        and regions may be cut between records
//
// A transaction is a list of items, an item a number of regions: the first says what the item is and how many regions it
// has. Only changes of metadata buffers that free space hangs on (AGFs, tree blocks, the superblock) are kept, and the
// cancellations of buffers; of everything else regions are only counted. What has no COMMIT at the end never happened.
// ("The Journaling Log"; `xlog_recover_process_data`.) What kernels only warn about refuses the log here.

import { concatBytes } from "../../../foundations/bytes.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import { viewOf } from "../../../foundations/struct.ts";
import {
	BASIC_BLOCK,
	BUFFER_CANCEL,
	BUFFER_CHUNK,
	BUFFER_ITEM,
	BufferItem,
	bufferKind,
	isOtherItem,
	KIND_AGF,
	KIND_BTREE,
	KIND_SUPERBLOCK,
	LOG_CLIENTS,
	LogItem,
	LogOperation,
	MAX_ITEM_REGIONS,
	OP_COMMIT,
	OP_CONTINUE,
	OP_END,
	OP_START,
	OP_UNMOUNT,
	OP_WAS_CONTINUED,
	TRANSACTION_HEADER_BYTES,
	TRANSACTION_MAGIC,
} from "./layout.ts";

/** Bounds memory: kernels keep less than this in all transactions that they write at once. */
const MAX_HELD_BYTES = 64 << 20;
const MAX_OPEN_TRANSACTIONS = 1024;
/** What a piece costs beside its bytes. */
const PIECE_OVERHEAD = 128;
/** Chunks of the largest buffer, 64 KiB, and the bitmap's odd word. */
const MAX_MAP_WORDS = 17;

/** A change of one metadata buffer. */
export interface BufferChange {
	/** Byte position in the volume. */
	readonly at: number;
	readonly length: number;
	readonly kind: number;
	/** The buffer was given up: no change that was logged before may be applied. */
	readonly isCancel: boolean;
	/** Changed parts in rising order; `at` counts from the buffer's start. Empty for a cancellation. */
	readonly parts: readonly { readonly at: number; readonly bytes: Uint8Array }[];
}

/** A committed transaction. */
export interface Transaction {
	/** Log position of the record in which it starts. */
	readonly lsn: bigint;
	readonly changes: readonly BufferChange[];
}

interface OpenItem {
	readonly type: number;
	readonly regionCount: number;
	/** Regions so far. */
	count: number;
	/** What is held of them, each in the pieces it was cut into: of a buffer item the first, and all that are wanted. */
	readonly regions: Uint8Array[][];
	isHeld: boolean;
}

interface OpenTransaction {
	readonly lsn: bigint;
	headerBytes: number;
	item: OpenItem | null;
	readonly changes: BufferChange[];
	heldBytes: number;
}

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its log is damaged: ${what}; mount it in the guest, then try again`);

/** Takes the records of a log in order, and gives its transactions as they are committed. */
export class TransactionReader {
	readonly #open = new Map<number, OpenTransaction>();
	#heldBytes = 0;

	/**
	 * Reads the operations of one record's data. `lsn` is the record's position. Yields transactions in the order of
	 * their COMMIT operations. Throws VOLUME_DAMAGED where the data is not as the format says.
	 */
	*feed(lsn: bigint, data: Uint8Array, operationCount: number): Generator<Transaction> {
		const view = viewOf(data);
		for (let at = 0, left = operationCount; at < data.length && left > 0; left--) {
			if (at + LogOperation.size > data.length) throw damaged("an operation reaches past its record");
			const { transaction: id, length, client, flags } = LogOperation.at(view, at);
			at += LogOperation.size;
			if (at + length > data.length) throw damaged("an operation reaches past its record");
			if (!LOG_CLIENTS.includes(client)) throw damaged(`an operation comes from ${client}`);
			const bytes = data.subarray(at, at + length);
			at += length;
			const open = this.#open.get(id);
			if (open === undefined) {
				// What belongs to no transaction that started behind the tail: the rest of one that is written home.
				if ((flags & OP_START) !== 0) this.#start(id, lsn);
				continue;
			}
			if (this.#apply(id, open, flags, bytes)) yield { lsn: open.lsn, changes: open.changes };
		}
	}

	#start(id: number, lsn: bigint): void {
		if (this.#open.size >= MAX_OPEN_TRANSACTIONS) throw damaged("too many transactions are open at once");
		this.#open.set(id, { lsn, headerBytes: 0, item: null, changes: [], heldBytes: 0 });
	}

	/** Does one operation; true where it committed the transaction. */
	#apply(id: number, open: OpenTransaction, allFlags: number, bytes: Uint8Array): boolean {
		let flags = allFlags & ~OP_END;
		if ((flags & OP_WAS_CONTINUED) !== 0) flags &= ~OP_CONTINUE;
		switch (flags) {
			case 0:
			case OP_CONTINUE:
				this.#addRegion(open, bytes);
				return false;
			case OP_WAS_CONTINUED:
				this.#continueRegion(open, bytes);
				return false;
			case OP_COMMIT:
				this.#finishItem(open);
				if (open.item !== null) throw damaged("a transaction ends within an item");
				this.#close(id, open);
				return true;
			case OP_UNMOUNT:
				this.#close(id, open);
				return false;
			default:
				throw damaged(`an operation has the flags 0x${allFlags.toString(16)}`);
		}
	}

	#close(id: number, open: OpenTransaction): void {
		this.#open.delete(id);
		this.#heldBytes -= open.heldBytes;
	}

	#addRegion(open: OpenTransaction, bytes: Uint8Array): void {
		if (bytes.length === 0) return;
		this.#finishItem(open);
		if (open.headerBytes < TRANSACTION_HEADER_BYTES) {
			if (open.headerBytes !== 0 || bytes.length < 4 || bytes.length > TRANSACTION_HEADER_BYTES)
				throw damaged("a transaction has a wrong header");
			if (viewOf(bytes).getUint32(0, true) !== TRANSACTION_MAGIC)
				throw damaged("a transaction's header has no magic number");
			open.headerBytes = bytes.length;
			return;
		}
		if (open.item === null) {
			if (bytes.length < LogItem.size) throw damaged("an item is too short");
			const { type, regionCount } = LogItem.at(viewOf(bytes));
			if (type !== BUFFER_ITEM && !isOtherItem(type))
				throw damaged(`an item has the unknown type 0x${type.toString(16)}`);
			if (regionCount < 1 || regionCount > MAX_ITEM_REGIONS) throw damaged(`an item has ${regionCount} regions`);
			open.item = { type, regionCount, count: 1, regions: [], isHeld: type === BUFFER_ITEM };
		} else {
			if (open.item.count === 1 && open.item.isHeld) open.item.isHeld = isWanted(joined(open.item.regions[0]!));
			open.item.count++;
		}
		if (open.item.isHeld) {
			this.#hold(open, bytes.length);
			open.item.regions.push([bytes.slice()]);
		}
	}

	/** An item is complete once something follows its last region, which may itself be continued. */
	#finishItem(open: OpenTransaction): void {
		const { item } = open;
		if (item === null || item.count < item.regionCount) return;
		open.item = null;
		if (item.type !== BUFFER_ITEM) return;
		const change = parseBufferItem(item.regions.map(joined), item.isHeld);
		if (change !== null) open.changes.push(change);
	}

	#continueRegion(open: OpenTransaction, bytes: Uint8Array): void {
		if (open.headerBytes < TRANSACTION_HEADER_BYTES) {
			if (open.headerBytes + bytes.length !== TRANSACTION_HEADER_BYTES)
				throw damaged("a transaction has a wrong header");
			open.headerBytes = TRANSACTION_HEADER_BYTES;
			return;
		}
		if (open.item === null) throw damaged("a region is continued that never began");
		if (!open.item.isHeld) return;
		this.#hold(open, bytes.length);
		open.item.regions.at(-1)!.push(bytes.slice());
	}

	#hold(open: OpenTransaction, length: number): void {
		open.heldBytes += length + PIECE_OVERHEAD;
		this.#heldBytes += length + PIECE_OVERHEAD;
		if (this.#heldBytes > MAX_HELD_BYTES) throw damaged(`its open transactions take more than ${MAX_HELD_BYTES} bytes`);
	}
}

const joined = (pieces: readonly Uint8Array[]): Uint8Array => (pieces.length === 1 ? pieces[0]! : concatBytes(pieces));

/** Is the content of this buffer needed? `format` is the item's first region. */
function isWanted(format: Uint8Array): boolean {
	if (format.length < BufferItem.size) throw damaged("the description of a buffer is too short");
	const flags = BufferItem.read.flags(viewOf(format), 0);
	const kind = bufferKind(flags);
	if ((flags & BUFFER_CANCEL) !== 0) return false;
	if (kind === 0) throw damaged("it changes a buffer of an unknown kind");
	return kind === KIND_BTREE || kind === KIND_AGF || kind === KIND_SUPERBLOCK;
}

/** Turns the regions of a buffer item into a change; null where it is of no interest. */
export function parseBufferItem(regions: readonly Uint8Array[], isWhole: boolean): BufferChange | null {
	const format = regions[0]!;
	if (format.length < BufferItem.size) throw damaged("the description of a buffer is too short");
	const { flags, basicBlocks, address, mapWords } = BufferItem.at(viewOf(format));
	const kind = bufferKind(flags);
	const change = { at: address * BASIC_BLOCK, length: basicBlocks * BASIC_BLOCK, kind };
	if ((flags & BUFFER_CANCEL) !== 0) return { ...change, isCancel: true, parts: [] };
	if (!isWhole || !isWanted(format)) return null;
	if (mapWords > MAX_MAP_WORDS || BufferItem.size + mapWords * 4 > format.length)
		throw damaged("the description of a buffer is too short");
	const parts: { at: number; bytes: Uint8Array }[] = [];
	let next = 1;
	for (let chunk = 0; chunk < mapWords * 32; ) {
		const run = dirtyRun(format, chunk, mapWords * 32);
		if (run === 0) {
			chunk++;
			continue;
		}
		// A run of dirty chunks may have been logged as several regions.
		const bytes = regions[next++];
		const chunks = (bytes?.length ?? 0) / BUFFER_CHUNK;
		if (bytes === undefined || !Number.isInteger(chunks) || chunks < 1 || chunks > run)
			throw damaged("the regions of a buffer don't fit its description");
		const at = chunk * BUFFER_CHUNK;
		if (at + bytes.length > change.length) throw damaged("a region reaches past its buffer");
		parts.push({ at, bytes });
		chunk += chunks;
	}
	if (next !== regions.length) throw damaged("a buffer has more regions than it describes");
	return { ...change, isCancel: false, parts };
}

/** Dirty chunks in a row from `chunk` on, up to `end`. */
function dirtyRun(format: Uint8Array, chunk: number, end: number): number {
	const view = viewOf(format);
	let run = 0;
	for (let i = chunk; i < end; i++) {
		const word = view.getUint32(BufferItem.size + Math.floor(i / 32) * 4, true);
		if (((word >>> (i % 32)) & 1) === 0) break;
		run++;
	}
	return run;
}
