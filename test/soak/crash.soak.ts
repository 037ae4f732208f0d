// Many kills of the whole server under fio.

import { test } from "node:test";
import { killUnderFio } from "../support/kill-loop.ts";
import { requireTool } from "../support/requirements.ts";

test("what fio wrote and flushed verifies after each of forty kills of the cleaning server", async (t) => {
	if (!requireTool(t, "fio")) return;
	await killUnderFio(t, 40);
});
