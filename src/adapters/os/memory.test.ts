import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { waitUntil } from "../../../test/support/waiting.ts";
import { textMappings, trimMemorySoon, unmapProgram } from "./memory.ts";

const resident = (): number => textMappings().reduce((sum, { residentBytes }) => sum + residentBytes, 0);

test("the program's text is unmapped, and comes back where it is used", () => {
	const before = resident();
	const isInLargePieces = /^FilePmdMapped: +[1-9]/m.test(readFileSync("/proc/self/smaps", "latin1"));
	assert.ok(before > 4 << 20, `${before} bytes: the program wasn't found`);
	unmapProgram();
	// Looking brings some of it back: more than half, where the page cache holds the program in pieces of 2 MiB.
	assert.ok(resident() < before * (isInLargePieces ? 0.8 : 0.5), `${resident()} of ${before} bytes are left`);
	assert.equal(JSON.stringify({ a: [1, 2.5, "x".repeat(3)] }), '{"a":[1,2.5,"xxx"]}');
	unmapProgram();
});

test("garbage is collected, for several disks at once", async () => {
	const heapUsed = (): number => process.memoryUsage().heapUsed;
	const before = heapUsed();
	let garbage = Array.from({ length: 500_000 }, (_, number) => ({ number }));
	assert.ok(garbage.length > 0 && heapUsed() > before + (16 << 20));
	garbage = [];
	trimMemorySoon();
	trimMemorySoon();
	await waitUntil(() => heapUsed() < before + (8 << 20), "a collection");
});
