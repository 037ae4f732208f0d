import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type ContextKind, contextOf, listContexts, selectContexts } from "./meta-contexts.ts";

const all: readonly ContextKind["kind"][] = ["allocation", "liveness", "since"];

test("names stand for contexts, exactly", () => {
	assert.deepEqual(contextOf("base:allocation"), { kind: "allocation" });
	assert.deepEqual(contextOf("vmsweep:liveness"), { kind: "liveness" });
	fc.assert(
		fc.property(fc.nat(2 ** 53 - 1), (position) => {
			assert.deepEqual(contextOf(`vmsweep:since:${position}`), { kind: "since", position });
		}),
	);
	const wrong = ["", "base:", "base:allocation ", "vmsweep:", "vmsweep:since", "vmsweep:since:", "vmsweep:since:-1"];
	const numbers = ["1e3", "0x10", " 1", "1.5", String(2 ** 53), "9".repeat(40)].map((each) => `vmsweep:since:${each}`);
	for (const name of [...wrong, ...numbers]) assert.equal(contextOf(name), undefined, name);
});

test("only what an export offers is listed and selected, each once", () => {
	const anyName = fc.constantFrom(
		"base:allocation",
		"base:",
		"vmsweep:",
		"vmsweep:liveness",
		"vmsweep:since:",
		"vmsweep:since:7",
		"vmsweep:since:x",
		"qemu:dirty-bitmap:a",
		"",
	);
	fc.assert(
		fc.property(fc.array(anyName, { maxLength: 8 }), fc.subarray([...all]), (queries, offered) => {
			const selected = selectContexts(queries, offered);
			const listed = listContexts(queries, offered);
			assert.equal(new Set(selected).size, selected.length);
			assert.equal(new Set(listed).size, listed.length);
			for (const name of selected)
				assert((queries as string[]).includes(name) && offered.includes(contextOf(name)!.kind));
			for (const name of listed)
				assert(offered.includes(name === "vmsweep:since:" ? "since" : contextOf(name)!.kind), name);
			for (const name of selected) assert(queries.length === 0 || listed.includes(name));
		}),
	);
	assert.deepEqual(selectContexts([], all), [], "no query selects nothing");
	assert.deepEqual(listContexts([], all), ["base:allocation", "vmsweep:liveness", "vmsweep:since:"]);
});
