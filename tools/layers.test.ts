import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { checkLayers, importsOf, readSources } from "./layers.ts";

const check = (files: Record<string, string>): string[] => checkLayers(new Map(Object.entries(files)));
const units = { "src/foundations/units.ts": "export const a = 1;\n" };

test("every import of this project keeps to the layers", () => {
	assert.deepEqual(checkLayers(readSources(join(import.meta.dirname, ".."))), []);
});

test("a run that found no files fails", () => {
	assert.match(check({})[0]!, /no source files/);
});

test("a file in no area fails", () => {
	assert.match(check({ "src/helpers.ts": "" })[0]!, /src\/helpers\.ts: lies in no area/);
	assert.match(check({ "src/core/new/a.ts": "" })[0]!, /lies in no area/);
	assert.match(check({ "src/core/filesystems/new/a.ts": "" })[0]!, /lies in no area/);
	assert.deepEqual(check({ "src/core/filesystems/a.ts": "" }), []);
});

test("imports go down, never up", () => {
	const down = 'import { a } from "../../foundations/units.ts";\n';
	assert.deepEqual(check({ ...units, "src/core/log/log.ts": down, "src/adapters/os/os.ts": down }), []);
	const up = { "src/foundations/b.ts": 'export type { L } from "../core/log/log.ts";\n', "src/core/log/log.ts": "" };
	assert.match(check(up)[0]!, /foundations\/b\.ts: imports src\/core\/log\/log\.ts, which is a higher layer/);
});

test("siblings in core don't know each other, adapters may", () => {
	const nbd = { "src/core/nbd/codec.ts": "" };
	assert.match(check({ ...nbd, "src/core/log/a.ts": 'import "../nbd/codec.ts";\n' })[0]!, /its sibling/);
	assert.match(check({ ...nbd, "src/core/log/a.test.ts": 'import "../nbd/codec.ts";\n' })[0]!, /its sibling/);
	const adapters = { "src/adapters/plane/a.ts": 'import "../os/b.ts";\n', "src/adapters/os/b.ts": "" };
	assert.deepEqual(check(adapters), []);
});

test("core and foundations are pure, their tests need not be", () => {
	const fs = 'import { open } from "node:fs";\nimport fc from "fast-check";\nimport "../../test/support/x.ts";\n';
	const support = { "test/support/x.ts": "" };
	const [first, second, third, ...rest] = check({ ...support, "src/foundations/a.ts": fs.replace("../../", "../../") });
	assert.match(first!, /imports node:fs, but src\/foundations\/ is pure/);
	assert.match(second!, /imports package fast-check/);
	assert.match(third!, /a higher layer/);
	assert.deepEqual(rest, []);
	assert.deepEqual(check({ ...support, "src/foundations/a.test.ts": fs }), []);
});

test("packages are allowed per area", () => {
	const koffi = 'const koffi = createRequire(import.meta.url)("koffi");\n';
	assert.deepEqual(check({ "src/adapters/os/a.ts": koffi }), []);
	assert.match(check({ "src/adapters/nbd/a.ts": koffi })[0]!, /imports package koffi/);
});

test("missing files, imported tests and cycles fail", () => {
	assert.match(check({ "src/services/a.ts": 'import "./b.ts";\n' })[0]!, /b\.ts, which is not there/);
	const imported = { "src/services/a.ts": 'import "./b.test.ts";\n', "src/services/b.test.ts": "" };
	assert.match(check(imported)[0]!, /imports the test file/);
	const ring = {
		"src/services/a.ts": 'import "./b.ts";\n',
		"src/services/b.ts": 'import "./c.ts";\n',
		"src/services/c.ts": 'import "./a.ts";\n',
	};
	assert.deepEqual(check(ring), [
		"import cycle: src/services/a.ts → src/services/b.ts → src/services/c.ts → src/services/a.ts",
	]);
});

test("imports are found in every form, and not in comments or strings", () => {
	const quoted = JSON.stringify; // spelled out, these two would be imports of this file
	const source = [
		'import { a } from "./a.ts";',
		"import type {\n\tB,\n\tC,\n} from './ignored-single-quotes.ts';",
		'import type {\n\tD,\n} from "./d.ts";',
		'import * as e from "node:fs";',
		'export * from "./f.ts";',
		'export { g } from "./g.ts";',
		`const h = await import(${quoted("./h.ts")});`,
		`new Worker(new URL(${quoted("./i-worker.ts")}, import.meta.url));`,
		'// import "./no.ts";',
		'export const text = "from nowhere";',
		'export function f() { return "./no.ts"; }',
	].join("\n");
	assert.deepEqual(importsOf(source).sort(), [
		"./a.ts",
		"./d.ts",
		"./f.ts",
		"./g.ts",
		"./h.ts",
		"./i-worker.ts",
		"node:fs",
	]);
});
