// Waiting for a condition instead of sleeping for luck, and ports that are free.

import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/**
 * Asks `condition` until it gives something true, and returns that. Throws what the condition throws, and after
 * `timeoutSeconds` (30 by default: a guard against hanging, not a measurement) an error that names `what` was missing.
 */
export async function waitUntil<T>(
	condition: () => T | Promise<T>,
	what: string | (() => string),
	{ timeoutSeconds = 30, everyMs = 20 }: { readonly timeoutSeconds?: number; readonly everyMs?: number } = {},
): Promise<Exclude<T, false | undefined>> {
	const end = performance.now() + timeoutSeconds * 1000;
	for (;;) {
		const result = await condition();
		if (result) return result as Exclude<T, false | undefined>;
		if (performance.now() > end)
			throw new Error(`waited ${timeoutSeconds} s in vain for ${typeof what === "string" ? what : what()}`);
		await delay(everyMs);
	}
}

/** A TCP port of the loopback address that nothing listens on. */
export async function freePort(): Promise<number> {
	const server = createServer().listen(0, "127.0.0.1");
	await once(server, "listening");
	const { port } = server.address() as AddressInfo;
	server.close();
	await once(server, "close");
	return port;
}
