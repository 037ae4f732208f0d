// `make check`: everything that needs no guest, in under a minute.
//
// The static checks run two at a time and show their output only when they fail; the unit tests come last, so
// that their counts close the run. All checks run even when one fails: one run shows everything that is wrong.

import { spawn, spawnSync } from "node:child_process";
import { join } from "node:path";

interface Check {
	readonly name: string;
	readonly command: readonly [string, ...string[]];
}

const staticChecks: readonly Check[] = [
	{ name: "types", command: ["tsc", "-p", "tsconfig.json"] },
	{ name: "types of pure code", command: ["tsc", "-p", "tsconfig.core.json"] },
	{ name: "format and lint (biome)", command: ["biome", "ci", "--colors=off", "--error-on-warnings"] },
	{ name: "lint with types (oxlint)", command: ["oxlint", "--deny-warnings"] },
	{ name: "unused exports (knip)", command: ["knip", "--no-progress"] },
];
const unitTests = ["--test", "--test-reporter=spec", "--test-concurrency=2", "--test-timeout=120000"];
const unitTestFiles = ["src/**/*.test.ts", "tools/**/*.test.ts", "bench/**/*.test.ts"];

const root = join(import.meta.dirname, "..");

/** Runs one check and prints its line; resolves to whether it passed. */
function runCheck({ name, command: [program, ...args] }: Check): Promise<boolean> {
	const started = performance.now();
	const child = spawn(program, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
	const output: Buffer[] = [];
	child.stdout.on("data", (part: Buffer) => output.push(part));
	child.stderr.on("data", (part: Buffer) => output.push(part));
	return new Promise((resolve, reject) => {
		child.on("error", reject);
		child.on("close", (exitCode) => {
			const passed = exitCode === 0;
			const seconds = ((performance.now() - started) / 1000).toFixed(1);
			console.log(`${passed ? "ok    " : "FAILED"} ${name} (${seconds} s)`);
			if (!passed) process.stdout.write(Buffer.concat(output));
			resolve(passed);
		});
	});
}

const waiting = [...staticChecks];
let failed = 0;
async function lane(): Promise<void> {
	for (let check = waiting.shift(); check !== undefined; check = waiting.shift()) {
		if (!(await runCheck(check))) failed++;
	}
}
await Promise.all([lane(), lane()]);

const tests = spawnSync(process.execPath, [...unitTests, ...unitTestFiles], { cwd: root, stdio: "inherit" });
if (tests.status !== 0) failed++;
if (failed > 0) console.log(`check: ${failed} of ${staticChecks.length + 1} failed`);
process.exitCode = failed > 0 ? 1 : 0;
