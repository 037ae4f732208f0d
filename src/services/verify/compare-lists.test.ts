import assert from "node:assert/strict";
import { test } from "node:test";
import { compareLists } from "./compare-lists.ts";

async function* lines(...entries: readonly (readonly [string, string])[]): AsyncGenerator<string> {
	for (const entry of entries) yield JSON.stringify(entry);
}

test("lists are compared in the order of their walk", async () => {
	const real = lines(
		["a", "folder"],
		["a/x", "file 10 h1 m"],
		["a-b", "file 3 h2 m"],
		["b", "error EIO"],
		["c", "link c"],
		["d", "file 1 h3 m"],
	);
	const other = lines(
		["a", "folder"],
		["a/x", "file 10 h9 m"],
		["a/y", "file 2 h m"],
		["a-b", "file 3 h2 m"],
		["b", "error EIO"],
		["d", "file 1 h3 m"],
	);
	assert.deepEqual(await compareLists(real, other, 10), {
		files: 3,
		bytes: 14,
		unreadable: 1,
		differences: [
			{ path: "a/x", kind: "different" },
			{ path: "a/y", kind: "new" },
			{ path: "c", kind: "missing" },
		],
		count: 3,
	});
});

test("only the first differences are remembered, and all are counted", async () => {
	const entries = Array.from({ length: 50 }, (_, i) => [String(i).padStart(2, "0"), "folder"] as const);
	const { differences, count } = await compareLists(lines(...entries), lines(), 3);
	assert.deepEqual([differences.map(({ path }) => path), count], [["00", "01", "02"], 50]);
});
