// Reply scanner: which requests were answered by the bytes that one recv brought.
//
// Payloads are skipped, not looked at: the load generator must cost less than any server. What is skipped may reach
// beyond the bytes at hand, so the scanner remembers how much of it is still to come. Both reply forms are known; with
// structured replies negotiated, a server may still answer anything but a read in the simple form.

import {
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "../../src/core/nbd/protocol.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";

const ERROR_CHUNK = 0x8000;
const NOTHING = -1;

export class ReplyScanner {
	/** Low words of the cookies that the last `scan` found answered; the first `finishedCount` count. */
	readonly finished: number[] = [];
	finishedCount = 0;
	readonly #simpleDataBytes: (cookieLow: number) => number;
	#skip = 0;
	#afterSkip = NOTHING;

	/** `simpleDataBytes` tells how much data follows a simple reply to this request: a read's length, else 0. */
	constructor(simpleDataBytes: (cookieLow: number) => number) {
		this.#simpleDataBytes = simpleDataBytes;
	}

	/**
	 * Takes the bytes up to `end`; returns where a header begins that is not complete, or `end`.
	 * Throws NBD_PROTOCOL for what is no reply, and IO for a request that failed.
	 */
	scan(view: DataView, end: number): number {
		this.finishedCount = 0;
		let at = 0;
		for (;;) {
			const skipped = Math.min(this.#skip, end - at);
			at += skipped;
			this.#skip -= skipped;
			if (this.#skip > 0) return end;
			if (this.#afterSkip !== NOTHING) {
				this.finished[this.finishedCount++] = this.#afterSkip;
				this.#afterSkip = NOTHING;
			}
			if (end - at < SimpleReply.size) return at;
			const magic = view.getUint32(at);
			if (magic === STRUCTURED_REPLY_MAGIC) {
				if (end - at < StructuredReply.size) return at;
				this.#chunk(view, at);
				at += StructuredReply.size;
			} else if (magic === SIMPLE_REPLY_MAGIC) {
				this.#simple(view, at);
				at += SimpleReply.size;
			} else throw new VmsweepError("NBD_PROTOCOL", `the server sent 0x${magic.toString(16)} where a reply begins`);
		}
	}

	#chunk(view: DataView, at: number): void {
		const type = StructuredReply.read.type(view, at);
		if (type >= ERROR_CHUNK) throw failed(`chunk type 0x${type.toString(16)}`);
		this.#skip = StructuredReply.read.length(view, at);
		if (StructuredReply.read.flags(view, at) & replyFlag.DONE) this.#afterSkip = cookieLow(view, at + 8);
	}

	#simple(view: DataView, at: number): void {
		const error = SimpleReply.read.error(view, at);
		if (error !== 0) throw failed(`error ${error}`);
		this.#afterSkip = cookieLow(view, at + 8);
		this.#skip = this.#simpleDataBytes(this.#afterSkip);
	}
}

const cookieLow = (view: DataView, at: number): number => view.getUint32(at + 4);

const failed = (how: string): VmsweepError => new VmsweepError("IO", `the server answered a request with ${how}`);
