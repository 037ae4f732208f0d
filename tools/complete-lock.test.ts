import assert from "node:assert/strict";
import { test } from "node:test";
import { missingEntries, readLock } from "./complete-lock.ts";

test("package-lock.json is complete and names no download address; make lock mends it", () => {
	const lock = readLock();
	assert.deepEqual(missingEntries(lock), {});
	const addressed = Object.entries(lock.packages).filter(([, locked]) => locked.resolved !== undefined);
	assert.deepEqual(addressed, []);
});

test("entries are added for exact versions that are not there, with their platform", () => {
	const packages = {
		"": { optionalDependencies: { ranged: "^1.0.0" } },
		"node_modules/tool": { optionalDependencies: { "@t/linux-x64-musl": "1.2.3", "@t/darwin-arm64": "1.2.3" } },
		"node_modules/@t/darwin-arm64": { version: "1.2.3" },
	};
	const added = { version: "1.2.3", os: ["linux"], cpu: ["x64"], libc: ["musl"], dev: true, optional: true };
	assert.deepEqual(missingEntries({ packages }), { "node_modules/@t/linux-x64-musl": added });
});
