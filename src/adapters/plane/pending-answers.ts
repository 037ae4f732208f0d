// Pending answers: what a client is owed for the requests that were parsed, in their order.
//
//   parse ─► push ─► (the append of what was staged) ─ failed ─► fail
//                                └──► answered by kind (answers.ts), and the list is empty again
//
// Parallel arrays that are emptied, never thrown away: a round of requests allocates nothing.

import type { ReplyTo } from "../../core/nbd/replies.ts";

/** What a pending answer is about. */
export const PENDING_DONE = 0;
export const PENDING_READ = 1;
export const PENDING_STATUS = 2;
export const PENDING_ERROR = 3;
/** Answered once everything written so far is durable. */
export const PENDING_FLUSH = 4;

/** Names a client's contexts, all of them: a bit per place in `ClientSetup.contexts`. */
export const ALL_CONTEXTS = -1;

/** The request that is answered. */
interface AnsweredRequest extends ReplyTo {
	readonly flags: number;
}

export class PendingAnswers {
	readonly kind: number[] = [];
	readonly cookieHigh: number[] = [];
	readonly cookieLow: number[] = [];
	readonly offsetHigh: number[] = [];
	readonly offsetLow: number[] = [];
	/** Bytes of a read or status request; the error number of a PENDING_ERROR. */
	readonly length: number[] = [];
	readonly flags: number[] = [];
	/** Of a status request: which contexts it is about. */
	readonly contexts: number[] = [];
	count = 0;

	/** Owes an answer to a request; `length` as in the array of that name. */
	push(kind: number, to: AnsweredRequest, length: number, contexts: number = ALL_CONTEXTS): void {
		const index = this.count++;
		this.kind[index] = kind;
		this.cookieHigh[index] = to.cookieHigh;
		this.cookieLow[index] = to.cookieLow;
		this.offsetHigh[index] = to.offsetHigh;
		this.offsetLow[index] = to.offsetLow;
		this.length[index] = length;
		this.flags[index] = to.flags;
		this.contexts[index] = contexts;
	}

	/** Turns an owed answer into an error, unless it is one already. */
	fail(index: number, error: number): void {
		if (this.kind[index] === PENDING_ERROR) return;
		this.kind[index] = PENDING_ERROR;
		this.length[index] = error;
	}
}
