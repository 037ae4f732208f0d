// What a client of the benchmark says about one run, whichever client it is.

export interface ClientResult {
	/** Completed reads and writes; flushes are not counted. */
	readonly operations: number;
	readonly operationsPerSecond: number;
	readonly bytesPerSecond: number;
	/** Time from sending a request to its answer that 50, 99 and 99.9 % of them stay below. Of mixed ones, the slower kind. */
	readonly latencyMsP50: number;
	readonly latencyMsP99: number;
	readonly latencyMsP999: number;
	/** Processor time of the client itself, user and kernel. */
	readonly clientCpuSeconds: number;
}
