import assert from "node:assert/strict";
import { test } from "node:test";
import { VmsweepError } from "../../foundations/errors.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { byteCount, logPosition } from "../../foundations/units.ts";
import type { LiveVolume } from "./live.ts";
import { UnopenedVolume } from "./unopened.ts";

const view: ByteSource = { size: byteCount(4096), read: () => Promise.resolve() };
const damaged = new VmsweepError("VOLUME_DAMAGED", "mkfs is not done");
const unsupported = new VmsweepError("VOLUME_UNSUPPORTED", "it has a feature of tomorrow");

test("a volume that can't be opened is kept, and says what it waits for each time that it is tried", async () => {
	let why = damaged;
	const volume = new UnopenedVolume("xfs", () => Promise.reject(why), damaged);
	const words = async (): Promise<unknown[]> => {
		const state = await volume.advance(view, logPosition(7));
		assert(state.kind === "keep");
		return [state.position, state.reason, state.waitsFor, state.watchChanged, volume.rule];
	};
	assert.deepEqual(await words(), [7, "mkfs is not done", "repair", false, "kept: mkfs is not done"]);
	why = unsupported;
	const { message } = unsupported;
	assert.deepEqual(await words(), [7, message, "support", false, `kept: ${message}`]);
	assert.deepEqual([...volume.freeRuns()], []);
});

test("once it opens, the disk's volumes are looked at anew, and still nothing of it is dropped by this one", async () => {
	const volume = new UnopenedVolume("xfs", () => Promise.resolve({} as LiveVolume), damaged);
	for (const state of [await volume.advance(view, logPosition(7)), await volume.advanceClean(view, logPosition(8))]) {
		assert(state.kind === "keep");
		assert.equal(state.watchChanged, true);
	}
});

test("that the disk can't be read is no fault of the volume", async () => {
	const broken = new VmsweepError("IO", "the disk is gone");
	const volume = new UnopenedVolume("xfs", () => Promise.reject(broken), damaged);
	await assert.rejects(volume.advance(view, logPosition(7)), broken);
});
