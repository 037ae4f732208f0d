// SIGKILL of the whole server while fio writes and the cleaner works (see also nbd-crash.test.ts, for the data plane
// alone, and test/soak/crash.soak.ts).

import { test } from "node:test";
import { killUnderFio } from "../support/kill-loop.ts";
import { requireTool } from "../support/requirements.ts";

test("what fio wrote and flushed verifies after each of three kills of the cleaning server", async (t) => {
	if (!requireTool(t, "fio")) return;
	await killUnderFio(t, 3);
});
