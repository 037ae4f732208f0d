// Long work and many crashes under cleaning, on the host's own kernel.

import { describe, test } from "node:test";
import { LOOP_TOOLS } from "../support/loop.ts";
import { crashUnderCleaning, workUnderCleaning } from "../support/loop-cleaning.ts";
import { requireTool } from "../support/requirements.ts";

const tools = [...LOOP_TOOLS, "dumpe2fs", "nbdcopy"];
const load = ["--rounds", "10", "--seconds", "12"];

describe("work under cleaning, long", () => {
	const cases = {
		"as mkfs makes it": { mkfs: ["-t", "ext4"], load },
		"nearly full log, cut off": { mkfs: ["-t", "ext4"], load: [...load, "--shutdown"], serve: ["--log-limit", "96M"] },
		"1 KiB blocks": { mkfs: ["-t", "ext4", "-b", "1024"], load },
		"bigalloc, fast_commit": { mkfs: ["-t", "ext4", "-O", "bigalloc,fast_commit", "-C", "16384"], load },
		"data=journal": { mkfs: ["-t", "ext4"], mountOptions: "commit=1,data=journal", load },
		"second transactions": { mkfs: ["-t", "ext4"], mountOptions: "commit=1,nodelalloc", load: [...load, "--skip"] },
		ext3: { mkfs: ["-t", "ext3"], load },
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
