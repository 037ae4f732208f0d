// Make durable: what a view shows must outlive a power cut before anything is done to the second image because of it.

import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import { assert } from "../../foundations/errors.ts";

/** Flushes a disk's writes up to `view` at least. Throws IO, LOG_POISONED. */
export async function makeDurable(plane: PlanePort, view: ViewHandle): Promise<void> {
	await plane.ask("flush");
	assert(await plane.ask("isDurable", view.id), "a flush that began after a view makes it durable");
}
