// Long work and many crashes under cleaning, on the host's own kernel.

import { describe, test } from "node:test";
import { ext3, ext4, xfs } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { crashUnderCleaning, type WorkOptions, workUnderCleaning } from "../support/loop-cleaning.ts";
import { requireTool } from "../support/requirements.ts";

const tools = [...LOOP_TOOLS, "nbdcopy", ...ext4.tools, ...xfs.tools];
const load = ["--rounds", "10", "--seconds", "12"];

describe("work under cleaning, long", () => {
	const cases: Readonly<Record<string, WorkOptions>> = {
		"as mkfs makes it": { load },
		"nearly full log, cut off": { load: [...load, "--shutdown"], serve: ["--log-limit", "96M"] },
		"1 KiB blocks": { mkfs: ["-b", "1024"], load },
		"bigalloc, fast_commit": { mkfs: ["-O", "bigalloc,fast_commit", "-C", "16384"], load },
		"data=journal": { mountOptions: "commit=1,data=journal", load },
		"second transactions": { mountOptions: "commit=1,nodelalloc", load: [...load, "--skip"] },
		ext3: { kind: ext3, load },
		XFS: { kind: xfs, load },
		"XFS, nearly full log, cut off": {
			kind: xfs,
			mountOptions: "logbsize=256k",
			load: [...load, "--shutdown"],
			serve: ["--log-limit", "96M"],
		},
		"XFS, 1 KiB blocks": { kind: xfs, mkfs: ["-b", "size=1024"], load },
	};
	for (const [name, options] of Object.entries(cases))
		test(name, async (t) => {
			if (!requireTool(t, ...tools)) return;
			await workUnderCleaning(t, options);
		});
});

test("kill -9 of the server while it cleans, fifty times", async (t) => {
	if (!requireTool(t, ...tools)) return;
	await crashUnderCleaning(t, 50, ["--log-limit", "160M"]);
});

test("XFS: kill -9 of the server while it cleans, twenty times", async (t) => {
	if (!requireTool(t, ...tools)) return;
	await crashUnderCleaning(t, 20, ["--log-limit", "160M"], xfs);
});
