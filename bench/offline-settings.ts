// What the offline jobs (map, sweep, convert) are told by the command line of `offline.ts`.

import type { AgedType } from "./aged-image.ts";

export interface OfflineSettings {
	readonly rounds: number;
	/** Of the aged images: their size, and what is written to them before most of it is deleted. */
	readonly sizeBytes: number;
	readonly writtenBytes: number;
	readonly types: readonly AgedType[];
	/** The vmsweep command to measure. */
	readonly vmsweep: string;
}
