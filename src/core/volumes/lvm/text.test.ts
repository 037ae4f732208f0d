import assert from "node:assert/strict";
import { test } from "node:test";
import { listAt, numberAt, parseText, sectionAt, stringAt } from "./text.ts";

test("sections, numbers, texts with escapes, lists over lines, comments", () => {
	const root = parseText(`
		# Generated
		vg-0 { seqno = 7	# seven
			name = "a \\"b\\" \\\\" empty = [] list = [ "pv0", 0,
				"pv1", -1 ] inner { deep { x=1 } }
		}
		"quoted" { } version = 1`);
	const group = sectionAt(root, "vg-0");
	assert.equal(numberAt(group, "seqno"), 7);
	assert.equal(stringAt(group, "name"), 'a "b" \\');
	assert.deepEqual(listAt(group, "list"), ["pv0", 0, "pv1", -1]);
	assert.deepEqual(listAt(group, "empty"), []);
	assert.deepEqual(listAt(group, "none"), []);
	assert.deepEqual(listAt(root, "version"), [1]);
	assert.equal(numberAt(sectionAt(sectionAt(group, "inner"), "deep"), "x"), 1);
	assert.equal(sectionAt(root, "quoted").size, 0);
	assert.equal(sectionAt(root, "absent").size, 0);
});

test("anything else is damage, said with its place", () => {
	const wrong = ["a", "a {", "}", "a = ", "a = [1", 'a = "b', "a = [1 2]", "a = 1 a = 2", "= 1", "a = b", "a = [,]"];
	for (const text of wrong) assert.throws(() => parseText(text), /makes no sense at character/, text);
	assert.throws(() => parseText(`${"a {".repeat(9)}${"}".repeat(9)}`), /makes no sense/);
	assert.equal(parseText(`${"a {".repeat(8)}${"}".repeat(8)}`).size, 1);
	const root = parseText('a = "x" b { } c = 1.5 d = -1 __proto__ = 1');
	assert.equal(numberAt(root, "__proto__"), 1);
	for (const key of ["a", "b", "c", "d", "e"]) assert.throws(() => numberAt(root, key), /has no number/);
	for (const key of ["b", "c", "e"]) assert.throws(() => stringAt(root, key), /has no text/);
	assert.throws(() => sectionAt(root, "a"), /has no section/);
	assert.throws(() => listAt(root, "b"), /has a section/);
});

test("long texts of one kind take neither the stack nor much time", () => {
	const long = 1 << 20;
	assert.equal(stringAt(parseText(`a = "${"\\\\".repeat(long)}"`), "a").length, long);
	assert.equal(listAt(parseText(`a = [${"1,".repeat(long)}1]`), "a").length, long + 1);
	assert.equal(parseText(" ".repeat(long) + "#\n".repeat(long)).size, 0);
	assert.throws(() => parseText("[".repeat(long)), /makes no sense/);
});
