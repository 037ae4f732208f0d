import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryFolder } from "../test/support/folders.ts";
import { start } from "../test/support/processes.ts";
import { waitUntil } from "../test/support/waiting.ts";
import { ScratchFolder } from "./scratch-folder.ts";

test("a scratch folder is gone at the end of its scope", async () => {
	await using parent = await temporaryFolder();
	let path: string;
	{
		await using scratch = await ScratchFolder.make(parent.path, "scratch-");
		path = scratch.path;
		assert.equal(scratch.file("a"), join(path, "a"));
		assert((await stat(path)).isDirectory());
	}
	await assert.rejects(stat(path), { code: "ENOENT" });
});

test("Ctrl-C ends the program's own programs, then removes the folder, also while they write into it", async () => {
	await using parent = await temporaryFolder();
	const source = `
		import { start } from ${JSON.stringify(join(import.meta.dirname, "../test/support/processes.ts"))};
		import { ScratchFolder } from ${JSON.stringify(join(import.meta.dirname, "scratch-folder.ts"))};
		const scratch = await ScratchFolder.make(${JSON.stringify(parent.path)}, "scratch-");
		const writer = start("sh", ["-c", 'n=0; while :; do n=$((n + 1)); echo > "$0/$n"; done', scratch.path]);
		console.log(\`\${scratch.path} \${writer.pid}\`);
		await writer.finished;
	`;
	await using program = start(process.execPath, ["--input-type=module-typescript", "--eval", source]);
	const [, path, writer] = await program.line(/^(\S+) (\d+)$/);
	const { exitCode } = await program.end("SIGINT");
	assert.equal(exitCode, 130);
	await waitUntil(() => hasEnded(Number(writer)), "the end of the program's own program");
	await assert.rejects(stat(path!), { code: "ENOENT" });
});

/** Gone, or a zombie that its new parent has not noticed yet. */
function hasEnded(pid: number): boolean {
	try {
		return / Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
	} catch {
		return true;
	}
}
