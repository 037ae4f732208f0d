// Silence: closes clients that hold a connection and don't use it.
//
//   in the middle of a request, or with replies not taken   after requestTimeoutMs: they occupy buffers, and never end
//   between two requests                                    after idleTimeoutMs, where one is set: a VM may rest for long
//
// Clients that wait for the server (for room in the log, a device, a flush) are not silent. Looked at now and then
// only, so a timeout may come a little late, and a round of requests pays nothing for it.

import type { Connection } from "./connection.ts";

/** Time between two looks. */
const LOOK_MS = 250;

export class Silence {
	#lastLook = 0;

	/** Marks clients that were silent for too long; `now` in milliseconds, only grows. */
	look(clients: Iterable<Connection>, now: number): void {
		if (now - this.#lastLook < LOOK_MS) return;
		this.#lastLook = now;
		for (const client of clients) {
			const bytes = client.input.received + client.output.sent;
			if (bytes !== client.bytesSeen || isServed(client)) {
				client.bytesSeen = bytes;
				client.quietSince = now;
				continue;
			}
			const isInside = client.isInsideRequest || !client.output.isEmpty;
			const { requestTimeoutMs, idleTimeoutMs } = client.setup;
			const limit = isInside ? requestTimeoutMs : idleTimeoutMs;
			if (limit !== undefined && now - client.quietSince >= limit) client.broken = true;
		}
	}
}

/** Is it the server's turn? */
const isServed = (client: Connection): boolean =>
	client.output.isEmpty && (client.stalled || client.hasMore || client.inFlight > 0);
