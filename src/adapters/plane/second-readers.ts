// Second readers: makes the reader of a second image for the data plane's thread, by the image's layout.

import { assert } from "../../foundations/errors.ts";
import type { FlatLayout, SecondLayout } from "../images/second-layout.ts";
import { Qcow2Reader } from "./qcow2-reader.ts";
import { type PushRun, type SecondReader, ZERO_RUN } from "./second-reader.ts";

/** The reader of a layout. Throws IMAGE_DAMAGED or IO where its tables can't be read. */
export function secondReader(layout: SecondLayout): SecondReader {
	return layout.kind === "flat" ? new FlatReader(layout) : new Qcow2Reader(layout, secondReader);
}

/** Reads a raw image. */
class FlatReader implements SecondReader {
	readonly generation = 0;
	readonly #fd: number;
	#size: number;

	constructor({ fd, size }: FlatLayout) {
		this.#fd = fd;
		this.#size = size;
	}

	plan(from: number, to: number, push: PushRun): void {
		const stored = Math.max(0, Math.min(to, this.#size) - from);
		if (stored > 0) push(this.#fd, from, stored);
		if (stored < to - from) push(ZERO_RUN, 0, to - from - stored);
	}

	writeTables(): void {
		assert(false, "a raw image has no tables");
	}

	resized(size: number): void {
		this.#size = size;
	}
}
