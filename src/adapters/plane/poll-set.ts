// Poll set: the descriptors on which a thread sleeps, put together anew for every sleep.
//
//   | descriptor, 32 bits | events asked for, 16 | events met, 16 | …      (the host's struct pollfd)

import { viewOf } from "../../foundations/struct.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";

const POLLFD_BYTES = 8;
const EVENTS_AT = 4;
const MET_AT = 6;

export class PollSet {
	readonly #memory: Pinned;
	readonly #view: DataView;
	#count = 0;

	/** @param countMax descriptors that it has room for */
	constructor(countMax: number) {
		this.#memory = sys.pin(countMax * POLLFD_BYTES);
		this.#view = viewOf(this.#memory.bytes);
	}

	clear(): void {
		this.#count = 0;
	}

	/** The first one added has index 0. Errors and hang-ups are met without being asked for. */
	add(fd: number, events: number): void {
		const at = this.#count++ * POLLFD_BYTES;
		this.#view.setInt32(at, fd, true);
		// The other half of these 32 bits: nothing met yet.
		this.#view.setUint32(at + EVENTS_AT, events, true);
	}

	/** Waits for events, for ever with -1. Returns how many descriptors met some, or a negated errno. */
	wait(timeoutMs: number): number {
		return sys.poll(this.#memory.address, this.#count, timeoutMs);
	}

	/** What the descriptor at an index met in the last wait. */
	met(index: number): number {
		return this.#view.getUint16(index * POLLFD_BYTES + MET_AT, true);
	}
}
