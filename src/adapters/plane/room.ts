// Room: what clients may still write to the log, and what becomes of those that find none.
//
//   none ─► the client waits, the control plane is told once ─► the cleaner frees segments ─► resume: all try again
//     └──► ENOSPC or EIO, where nobody makes room: told to refuse, or the log can't be written
//
// Whoever makes room, or ends the hope for it, calls `resume`: so nobody waits for what won't come. The margin stays the
// cleaner's: without it, it could not write the entries that free a segment.

import type { FirstImage } from "../../core/log/first-image.ts";
import { errno } from "../../core/nbd/protocol.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { Clients } from "./clients.ts";

/** Segments that clients must leave free: room for the cleaner's own entries and for half-filled segments. */
const MARGIN_SEGMENTS = 3;

export class Room {
	/** True: clients that find no room get ENOSPC now instead of waiting for the cleaner. */
	refuseWhenFull = false;
	readonly #log: FirstImage;
	readonly #clients: Clients;
	readonly #onStalled: () => void;
	#isAwaited = false;

	/** @param onStalled called once whenever clients begin to wait */
	constructor(log: FirstImage, clients: Clients, onStalled: () => void) {
		this.#log = log;
		this.#clients = clients;
		this.#onStalled = onStalled;
	}

	/** Somebody found no room since the last `resume`, and waits. */
	get isAwaited(): boolean {
		return this.#isAwaited;
	}

	/** Is there room for so many blocks, those included that are staged? */
	has(blocks: number): boolean {
		const { limitBytes, usedBytes, segmentBytes } = this.#log;
		return limitBytes - usedBytes >= blocks * BLOCK_SIZE + MARGIN_SEGMENTS * segmentBytes;
	}

	/** What a request that finds no room gets: an error number, or 0 where its client waits. */
	refuse(): number {
		if (this.#log.poisoned) return errno.EIO;
		if (this.refuseWhenFull) return errno.ENOSPC;
		if (!this.#isAwaited) {
			this.#isAwaited = true;
			this.#onStalled();
		}
		return 0;
	}

	/** Lets clients that wait try again: after segments became free, or when waiting makes no sense any more. */
	resume(): void {
		this.#isAwaited = false;
		this.#clients.resumeStalled();
	}
}
