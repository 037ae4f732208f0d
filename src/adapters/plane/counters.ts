// Counters: what a data plane has done since its start; bytes as the guest sees them.

export interface PlaneCounters {
	reads: number;
	readBytes: number;
	writes: number;
	writtenBytes: number;
	zeroedBytes: number;
	flushes: number;
	datasyncs: number;
	slowReads: number;
	errors: number;
	/** Reads that met a block that doesn't match its checksum. */
	rottenReads: number;
}

export const newCounters = (): PlaneCounters => ({
	reads: 0,
	readBytes: 0,
	writes: 0,
	writtenBytes: 0,
	zeroedBytes: 0,
	flushes: 0,
	datasyncs: 0,
	slowReads: 0,
	errors: 0,
	rottenReads: 0,
});
