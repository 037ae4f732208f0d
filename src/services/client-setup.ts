// Client setup: what the data plane is told about a client whose handshake is done.

import type { NbdClient } from "../adapters/nbd/listener.ts";
import { type ClientContext, type ClientSetup, type Liveness, NOTHING_PROVEN } from "../adapters/plane/connection.ts";

/** What clients of an export may do, and for how long they may be silent. */
export type ClientLimits = Pick<ClientSetup, "readOnly" | "requestTimeoutMs" | "idleTimeoutMs" | "clientsMax">;

/** A client that wants to know what is live waits this long for a round of the cleaner to end; then nothing is proven. */
const PROVEN_TIMEOUT_MS = 20_000;

/** `proven` is asked only where the client has selected `vmsweep:liveness`. */
export async function clientSetup(
	client: NbdClient,
	limits: ClientLimits,
	proven: () => Promise<Liveness>,
): Promise<ClientSetup> {
	const { fd, headers, metaContexts, leftover } = client;
	const contexts: ClientContext[] = [];
	for (const { id, context } of metaContexts)
		contexts.push(context.kind === "liveness" ? { id, context, liveness: await inTime(proven()) } : { id, context });
	return { fd, headers, contexts, leftover, ...limits };
}

/** Work that is done once for all who ask for it while it is waited for or going on. */
export function shared<T>(work: () => Promise<T>): () => Promise<T> {
	let going: Promise<T> | undefined;
	return () => {
		going ??= work().finally(() => {
			going = undefined;
		});
		return going;
	};
}

/** What is proven, or nothing where that takes too long or fails: everything is unknown to the client then. */
async function inTime(proven: Promise<Liveness>): Promise<Liveness> {
	const { promise, resolve } = Promise.withResolvers<Liveness>();
	const timer = setTimeout(() => resolve(NOTHING_PROVEN), PROVEN_TIMEOUT_MS);
	try {
		return await Promise.race([proven.catch(() => NOTHING_PROVEN), promise]);
	} finally {
		clearTimeout(timer);
	}
}
