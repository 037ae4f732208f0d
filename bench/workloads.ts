// The workloads of the benchmark, and what vmsweep should reach in each of them.
//
// A target is a ratio: vmsweep's throughput divided by a peer's, measured in the same rounds. `best` stands for the
// fastest of the peers that do the same work.
//
// Some rows are there twice, for two clients. fio is what people measure with; on few cores its nbd engine takes about as
// much processor time per request as the servers, which pulls all ratios towards 1. The lean client (bench/lean) leaves
// the processor to the server.

import type { PeerId } from "./peers.ts";

/** What the disk looks like when the run begins. */
export type DiskState =
	/** Everything in the image that all peers share, and in the page cache. That is where most of a disk rests. */
	| "base"
	/** The range was written through the peer just before: it is in vmsweep's first image, and in the overlay. */
	| "written"
	/** The first half of the range was written just before, so half of all reads find their block in either image. */
	| "both"
	/** As `written`, and the page cache still has to write it out: to write there again costs a raw image the least. */
	| "dirty"
	/** As `base`, but the page cache holds nothing of it. */
	| "cold"
	/** More was written just before than a small first image takes: vmsweep's cleaner is at work, and stays so. */
	| "cleaning";

export interface Workload {
	/** As given to --rows. */
	readonly id: string;
	readonly title: string;
	readonly client: "fio" | "lean";
	/** fio's name of the access pattern. */
	readonly pattern: "randread" | "randwrite" | "randrw" | "read" | "write";
	readonly blockBytes: number;
	/** Requests in flight, per connection. */
	readonly depth: number;
	/** Default 1. */
	readonly connections?: number;
	/** Share of reads of `randrw`, in percent. */
	readonly readPercent?: number;
	/** A flush after this many writes; the next writes don't wait for it. */
	readonly flushEvery?: number;
	/** Operations per second that the client keeps to, where it does not go as fast as it can. fio only. */
	readonly operationsPerSecondMax?: number;
	readonly state: DiskState;
	/** How results are shown: operations or mebibytes per second. */
	readonly unit: "IOPS" | "MiB/s";
	/** Ratios of throughput to reach. */
	readonly targets: Readonly<Partial<Record<PeerId | "best", number>>>;
	/** What 99 % of the requests may take with cleaning on, as a multiple of cleaning off. */
	readonly cleaningP99Max?: number;
	/** Part of the short run that `make bench` does. */
	readonly short: boolean;
}

/** What a client is asked to do, without where it happens and what should come out. */
export type Pattern = Pick<
	Workload,
	| "client"
	| "pattern"
	| "blockBytes"
	| "depth"
	| "connections"
	| "readPercent"
	| "flushEvery"
	| "operationsPerSecondMax"
>;

const KIB = 1024;
const MIB = 1024 * KIB;
/** Requests before a flush in the workload that flushes, as the targets are stated. */
const FLUSH_EVERY = 32;
/** Bytes that are written before a workload that reads what was written, and with --warm before each. */
export const WRITTEN_BYTES = 512 * MIB;
/**
 * Limit of the first image where the cleaner is to be at work all the time, unless the disk is smaller; as much is
 * written before.
 */
export const SMALL_LOG_BYTES = 1024 * MIB;
/** Reads in mixed workloads, in percent. */
const MIXED_READS = 70;
/** A busy guest that is not at its limit: what cleaning costs shows in its latencies, not in its throughput. */
const PACED_OPERATIONS = 6000;
const CLEANING_P99_MAX = 1.25;
/** Processor time per operation, as a multiple of nbdkit's file plugin. Holds for every row. */
export const CPU_RATIO_MAX = 1.5;

const SHALLOW = { nbdkit: 1.2 } as const;
const DEEP = { nbdkit: 2 } as const;
const LEVEL = { best: 1 } as const;

export const workloads: readonly Workload[] = [
	{ ...random("randread-d1", "4 KiB random read, depth 1", "randread", 1, SHALLOW), short: true },
	...twice({ ...random("randread-d32", "4 KiB random read, depth 32", "randread", 32, DEEP), short: true }),
	{ ...random("randwrite-d1", "4 KiB random write, depth 1", "randwrite", 1, SHALLOW), short: true },
	...twice({ ...random("randwrite-d32", "4 KiB random write, depth 32", "randwrite", 32, DEEP), short: true }),
	...twice({ ...random("rewrite-d32", "4 KiB rewrite, depth 32", "randwrite", 32, DEEP), state: "dirty" }),
	...twice({
		...random("mixed-d32", "4 KiB, 70 % reads, depth 32", "randrw", 32, DEEP),
		readPercent: MIXED_READS,
	}),
	...twice({
		...random("flush-d32", "4 KiB write, flush every 32", "randwrite", 32, { ...LEVEL, overlay: 4 }),
		flushEvery: FLUSH_EVERY,
		short: true,
	}),
	...twice({ ...random("read-4x8", "4 KiB read, 4 clients of 8", "randread", 8, LEVEL), connections: 4 }),
	...twice({ ...random("write-4x8", "4 KiB write, 4 clients of 8", "randwrite", 8, LEVEL), connections: 4 }),
	{ ...random("cold-d32", "4 KiB cold read, depth 32", "randread", 32, LEVEL), state: "cold", short: true },
	{ ...random("reread-d32", "4 KiB read of new data", "randread", 32, DEEP), state: "written" },
	{ ...random("both-d32", "4 KiB read, half of it new", "randread", 32, DEEP), state: "both" },
	{ ...sequential("read-128k", "128 KiB sequential read", "read", 128 * KIB, 8), short: true },
	{ ...sequential("write-128k", "128 KiB sequential write", "write", 128 * KIB, 8), short: true },
	sequential("read-1m", "1 MiB sequential read", "read", MIB, 4),
	sequential("write-1m", "1 MiB sequential write", "write", MIB, 4),
	{ ...sequential("reread-128k", "128 KiB read of new data", "read", 128 * KIB, 8), state: "written" },
	{ ...random("clean-d32", "4 KiB write while cleaning", "randwrite", 32, LEVEL), state: "cleaning" },
	{
		...random("clean-paced", `4 KiB mixed at ${PACED_OPERATIONS}/s, cleaning`, "randrw", 8, {}),
		readPercent: MIXED_READS,
		operationsPerSecondMax: PACED_OPERATIONS,
		state: "cleaning",
		cleaningP99Max: CLEANING_P99_MAX,
		short: true,
	},
];

function random(
	id: string,
	title: string,
	pattern: Workload["pattern"],
	depth: number,
	targets: Workload["targets"],
): Workload {
	const common = { client: "fio", blockBytes: 4 * KIB, state: "base", unit: "IOPS", short: false } as const;
	return { ...common, id, title, pattern, depth, targets };
}

function sequential(
	id: string,
	title: string,
	pattern: Workload["pattern"],
	blockBytes: number,
	depth: number,
): Workload {
	const common = { client: "fio", state: "base", unit: "MiB/s", short: false } as const;
	return { ...common, id, title, pattern, blockBytes, depth, targets: LEVEL };
}

/** The same for both clients. */
function twice(workload: Workload): Workload[] {
	return [workload, { ...workload, id: `${workload.id}-lean`, title: `${workload.title}, lean`, client: "lean" }];
}

export const isWrite = ({ pattern }: Workload): boolean =>
	pattern === "write" || pattern === "randwrite" || pattern === "randrw";
