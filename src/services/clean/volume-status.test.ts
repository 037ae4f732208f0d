import assert from "node:assert/strict";
import { test } from "node:test";
import type { LiveState, LiveVolume } from "../../core/filesystems/live.ts";
import { logPosition } from "../../foundations/units.ts";
import { Chronicle } from "./chronicle.ts";
import { missingFor, volumeStatus } from "./volume-status.ts";
import type { ServedVolume } from "./volumes.ts";

/** A live volume of which three commits were seen, at positions 10, 20 and 30. */
const live = {
	commits: 3,
	viewPoints: "marked",
	rule: "2 commits of its journal after a block's last write",
	evidenceFor: (position: number) => ({
		counted: Math.min(2, [10, 20, 30].filter((each) => position < each).length),
		needed: 2,
		unit: "commits",
	}),
} as unknown as LiveVolume;

const volume = (verdict: unknown, rest: Partial<ServedVolume> = {}): ServedVolume =>
	({
		id: "p1",
		type: "ext4",
		start: 0,
		length: 2 ** 30,
		live,
		verdict: verdict as LiveState | undefined,
		reason: (verdict as { reason?: string } | undefined)?.reason,
		...rest,
	}) as ServedVolume;

const ready = { kind: "ready", position: 30, settled: 20, metadataBytesRead: 4096, groupsRead: 8 };
const kept = (reason: string, waitsFor: string): unknown => ({
	kind: "keep",
	position: 30,
	reason,
	pending: false,
	waitsFor,
});
const unsupported = { live: undefined, reason: "LUKS encrypts it" };

test("what waits is said in a word for scripts and a sentence for people", () => {
	const words = (of: ServedVolume, pending = 0): readonly unknown[] => {
		const { phase, waitsFor, waiting } = volumeStatus(of, pending, null);
		return [phase, waitsFor, waiting];
	};
	assert.deepEqual(words(volume(ready)), ["continuous", "nothing", null]);
	assert.deepEqual(words(volume(ready), 2 ** 20), [
		"continuous",
		"young",
		"1.00 MiB free but young: needs up to 2 more commits of the guest, which come with its next writes or syncs",
	]);
	assert.deepEqual(words(volume(undefined)), [
		"initialization",
		"commits",
		"not judged yet: commits of the guest come with its next writes or syncs",
	]);
	assert.deepEqual(words(volume(kept("it has no journal.", "rest"))), [
		"initialization",
		"rest",
		"nothing is dropped: it has no journal; it is cleaned when it is cleanly unmounted or frozen",
	]);
	assert.deepEqual(words(volume(kept("a bitmap is wrong", "repair"))), [
		"initialization",
		"repair",
		"nothing is dropped: a bitmap is wrong; repair: e2fsck -f in the guest, with the volume unmounted",
	]);
	assert.deepEqual(words(volume(undefined, unsupported)), ["kept", "support", "all of it is kept: LUKS encrypts it"]);
	assert.equal(volumeStatus(volume(undefined, unsupported), 0, null).rule, "kept: LUKS encrypts it");
	assert.equal(
		volumeStatus(volume(ready, { live: { ...live, rule: undefined } as unknown as LiveVolume }), 0, null).rule,
		"commits of its journal after a block's last write",
	);
});

test("what is missing for a block counts the commits after its last write", () => {
	assert.equal(missingFor(live, logPosition(19)), null);
	assert.match(missingFor(live, logPosition(20))!, /^1 more commit of the guest is needed/);
	assert.match(missingFor(live, logPosition(30))!, /^2 more commits of the guest are needed/);
});

test("the log tells each change of a volume once, however often it is judged", () => {
	const lines: string[] = [];
	const chronicle = new Chronicle(
		(line) => lines.push(line),
		() => new Date(0),
	);
	const noted = (of: ServedVolume): readonly string[] => {
		lines.length = 0;
		for (let round = 0; round < 3; round++) chronicle.note([of]);
		return lines.map((line) => line.replace("volume p1 (ext4)", "").replace(/^: /, ""));
	};
	assert.deepEqual(noted(volume(undefined)), ["found; rule: 2 commits of its journal after a block's last write"]);
	assert.deepEqual(noted(volume(ready)), ["initialization done, read 4.00 KiB of metadata"]);
	assert.deepEqual(chronicle.pointOf("p1"), { position: 30, at: "1970-01-01T00:00:00.000Z" });
	assert.deepEqual(noted(volume(undefined)), [], "looked at anew");
	assert.deepEqual(noted(volume(kept("no commit yet", "commits"))), [], "ends by itself");
	assert.deepEqual(noted(volume(ready)), []);
	assert.deepEqual(noted(volume(kept("a bitmap is wrong", "repair"))), ["kept: a bitmap is wrong"]);
	assert.deepEqual(noted(volume(ready)), ["followed again"]);
	lines.length = 0;
	chronicle.note([]);
	assert.deepEqual(lines, ["volume p1 (ext4) is gone"]);
	chronicle.note([volume(undefined, unsupported)]);
	chronicle.note([volume(undefined, unsupported)]);
	assert.deepEqual(lines.slice(1), ["volume p1 (ext4): found; kept: LUKS encrypts it"]);
});
