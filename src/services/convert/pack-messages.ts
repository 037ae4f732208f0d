// What packers.ts and its threads say to each other.

/** What a packer thread is asked. */
export interface PackRequest {
	readonly id: number;
	/** Whole clusters. */
	readonly bytes: Uint8Array<ArrayBuffer>;
	readonly clusterSize: number;
}

/** What it answers: a frame per cluster. */
export interface PackAnswer {
	readonly id: number;
	readonly packed: readonly (Uint8Array | null)[];
}
