// The whole product under the host's own kernel, at native speed: work while it cleans, and kill -9 while it cleans
// (test/guest has the same with a guest).

import { test } from "node:test";
import { ext4, xfs } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { crashUnderCleaning, workUnderCleaning } from "../support/loop-cleaning.ts";
import { requireTool } from "../support/requirements.ts";

const tools = [...LOOP_TOOLS, "nbdcopy"];

test("files are right, and the host has its space back, after work under cleaning", async (t) => {
	if (!requireTool(t, ...tools, ...ext4.tools)) return;
	await workUnderCleaning(t, { load: ["--rounds", "3", "--seconds", "4"] });
});

test("the same with a log that is always nearly full", async (t) => {
	if (!requireTool(t, ...tools, ...ext4.tools)) return;
	await workUnderCleaning(t, {
		load: ["--rounds", "3", "--seconds", "4", "--shutdown"],
		serve: ["--log-limit", "96M"],
	});
});

test("kill -9 of the server while it cleans: what was synced is there, five times", async (t) => {
	if (!requireTool(t, ...tools, ...ext4.tools)) return;
	await crashUnderCleaning(t, 5, ["--log-limit", "160M"]);
});

test("XFS: files are right, and the host has its space back, after work under cleaning", async (t) => {
	if (!requireTool(t, ...tools, ...xfs.tools)) return;
	await workUnderCleaning(t, {
		kind: xfs,
		load: ["--rounds", "3", "--seconds", "4", "--shutdown"],
		serve: ["--log-limit", "128M"],
	});
});

test("XFS: kill -9 of the server while it cleans: what was synced is there, three times", async (t) => {
	if (!requireTool(t, ...tools, ...xfs.tools)) return;
	await crashUnderCleaning(t, 3, ["--log-limit", "160M"], xfs);
});
