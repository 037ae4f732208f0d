// Counters: what the cleaner has done.

/** Totals since the disk is served. */
export interface CleanerCounters {
	rounds: number;
	droppedBytes: number;
	movedBytes: number;
	/** Metadata read by all verdicts, and by the latest one that read any. */
	metadataBytesRead: number;
	metadataBytesLastPass: number;
	groupsLastPass: number;
	/** Host bytes of the first image given back. */
	punchedBytes: number;
}

export const noCounters = (): CleanerCounters => ({
	rounds: 0,
	droppedBytes: 0,
	movedBytes: 0,
	metadataBytesRead: 0,
	metadataBytesLastPass: 0,
	groupsLastPass: 0,
	punchedBytes: 0,
});

/** Bytes dropped, moved or given back. */
export const progressOf = (counters: CleanerCounters): number =>
	counters.droppedBytes + counters.movedBytes + counters.punchedBytes;
