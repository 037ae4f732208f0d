// Guests that work for long on a disk that is cleaned, and many power cuts.

import { test } from "node:test";
import { GUEST_TOOLS, guestCrashes, guestWorks } from "../support/loop-guests.ts";
import { requireTool } from "../support/requirements.ts";

test("five minutes of work in a guest", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS)) return;
	await guestWorks(t, 10, 30);
});

test("ten power cuts, five of them with a crash of the server", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS)) return;
	await guestCrashes(t, 10);
});
