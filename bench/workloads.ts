// The workloads of the benchmark, and what vmsweep should reach in each of them.
//
// A target is a ratio: vmsweep's throughput divided by the peer's, measured in the same rounds.

import type { PeerId } from "./peers.ts";

export interface Workload {
	/** As given to --rows. */
	readonly id: string;
	readonly title: string;
	/** fio's name of the access pattern. */
	readonly pattern: "randread" | "randwrite" | "read" | "write";
	readonly blockBytes: number;
	/** Requests in flight. */
	readonly depth: number;
	/** A flush after this many writes; the next writes don't wait for it. */
	readonly flushEvery?: number;
	/**
	 * Where reads find their blocks. `base`: in the image that all peers share, which is where most of a disk rests.
	 * `written`: written through the peer just before, so they are in vmsweep's first image and in the qcow2 overlay.
	 */
	readonly readsFrom?: "base" | "written";
	/** How results are shown: operations or mebibytes per second. */
	readonly unit: "IOPS" | "MiB/s";
	/** Ratios to reach. */
	readonly targets: Readonly<Partial<Record<PeerId, number>>>;
}

const KIB = 1024;
const MIB = 1024 * KIB;
/** Requests before a flush in the workload that flushes, as the targets are stated. */
const FLUSH_EVERY = 32;
/** Bytes that are written before a workload that reads what was written, and with --warm before each. */
export const WRITTEN_BYTES = 512 * MIB;

const LEVEL = { nbdkit: 1 } as const;
const DEEP_RANDOM = { nbdkit: 1.5, "qemu-nbd": 3 } as const;

export const workloads: readonly Workload[] = [
	random("randread-d1", "4 KiB random read, depth 1", "randread", 1, LEVEL),
	random("randread-d32", "4 KiB random read, depth 32", "randread", 32, DEEP_RANDOM),
	random("randwrite-d1", "4 KiB random write, depth 1", "randwrite", 1, { ...LEVEL, overlay: 10 }),
	random("randwrite-d32", "4 KiB random write, depth 32", "randwrite", 32, { ...DEEP_RANDOM, overlay: 10 }),
	{
		...random("flush-d32", "4 KiB write, flush every 32", "randwrite", 32, { ...LEVEL, overlay: 10 }),
		flushEvery: FLUSH_EVERY,
	},
	sequential("read-128k", "128 KiB sequential read", "read", 128 * KIB, 8),
	sequential("write-128k", "128 KiB sequential write", "write", 128 * KIB, 8),
	sequential("read-1m", "1 MiB sequential read", "read", MIB, 4),
	sequential("write-1m", "1 MiB sequential write", "write", MIB, 4),
	{
		...random("reread-d32", "4 KiB random read of new data", "randread", 32, {}),
		readsFrom: "written",
	},
	{
		...sequential("reread-128k", "128 KiB read of new data", "read", 128 * KIB, 8),
		readsFrom: "written",
		targets: {},
	},
];

function random(
	id: string,
	title: string,
	pattern: Workload["pattern"],
	depth: number,
	targets: Workload["targets"],
): Workload {
	return { id, title, pattern, blockBytes: 4 * KIB, depth, unit: "IOPS", targets };
}

function sequential(
	id: string,
	title: string,
	pattern: Workload["pattern"],
	blockBytes: number,
	depth: number,
): Workload {
	return { id, title, pattern, blockBytes, depth, unit: "MiB/s", targets: LEVEL };
}

export const isWrite = ({ pattern }: Workload): boolean => pattern === "write" || pattern === "randwrite";
