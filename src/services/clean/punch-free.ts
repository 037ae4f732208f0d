// Punch free: gives the space of free segments of the first image back to the host. They are lent for it, so that the data
// plane doesn't write into them meanwhile, and nothing is punched in its thread.

import type { SpaceReturner } from "../../adapters/images/punch.ts";
import type { PlanePort } from "../../adapters/plane/messages.ts";

/** What gives the space back. */
export type FirstSpace = Pick<SpaceReturner, "can" | "giveBack">;

/** Longest piece punched at once: the guest's writes wait meanwhile. In bytes. */
const PIECE_BYTES_MAX = 1024 * 1024;

/** Punches some free segments, but for `warmBytes` of them. Returns the bytes; 0 where there are none, or the host can't. Throws IO. */
export async function punchSomeFree(plane: PlanePort, space: FirstSpace, warmBytes: number): Promise<number> {
	if (!space.can) return 0;
	const ranges = await plane.ask("lendFree", warmBytes);
	if (ranges.length === 0) return 0;
	let punched = false;
	try {
		for (const { offset, length } of ranges)
			for (let at = offset as number; at < offset + length; at += PIECE_BYTES_MAX)
				await space.giveBack(at, Math.min(PIECE_BYTES_MAX, offset + length - at));
		punched = space.can;
	} finally {
		await plane.ask("returnFree", { ranges, punched });
	}
	return punched ? ranges.reduce((bytes, { length }) => bytes + length, 0) : 0;
}
