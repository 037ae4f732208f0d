// From single measurements to medians, ratios and targets. Pure, so that it can be tested without running anything.

import type { PeerId } from "./peers.ts";
import type { Workload } from "./workloads.ts";

/** One peer under one workload in one round. */
export interface Sample {
	readonly workload: string;
	readonly peer: PeerId;
	readonly round: number;
	readonly operations: number;
	readonly operationsPerSecond: number;
	readonly bytesPerSecond: number;
	readonly latencyMsP99: number;
	/** Processor time of the server during the run. */
	readonly cpuSeconds: number;
}

/** The middle and both ends of the rounds. */
export interface Spread {
	readonly median: number;
	readonly min: number;
	readonly max: number;
}

/** A ratio to reach, and what was reached. */
export interface Target {
	readonly workload: string;
	readonly title: string;
	readonly peer: PeerId;
	readonly goal: number;
	readonly ratio: Spread;
	/** The same for vmsweep with cleaning off, where that was measured. */
	readonly ratioCleanOff: Spread | undefined;
	readonly reached: boolean;
}

/** Undefined for no values at all. */
export function spreadOf(values: readonly number[]): Spread | undefined {
	if (values.length === 0) return undefined;
	const sorted = values.toSorted((a, b) => a - b);
	const middle = sorted.length >> 1;
	const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
	return { median, min: sorted[0]!, max: sorted.at(-1)! };
}

const samplesOf = (samples: readonly Sample[], workload: string, peer: PeerId): Sample[] =>
	samples.filter((sample) => sample.workload === workload && sample.peer === peer);

/** Spread of one figure over the rounds of one peer and workload. */
export const spreadOver = (
	samples: readonly Sample[],
	workload: string,
	peer: PeerId,
	figure: (sample: Sample) => number,
): Spread | undefined => spreadOf(samplesOf(samples, workload, peer).map(figure));

/**
 * Throughput of `ours` divided by that of `peer`: one ratio per round, from two runs that followed each other
 * closely, then the median of those. What slows the machine for a while then slows both.
 */
export function ratioOf(
	samples: readonly Sample[],
	workload: string,
	{ ours, peer }: { readonly ours: PeerId; readonly peer: PeerId },
): Spread | undefined {
	const theirs = new Map(samplesOf(samples, workload, peer).map((sample) => [sample.round, sample]));
	const ratios = samplesOf(samples, workload, ours).flatMap((sample) => {
		const other = theirs.get(sample.round);
		return other === undefined ? [] : [sample.operationsPerSecond / other.operationsPerSecond];
	});
	return spreadOf(ratios);
}

export const cpuPer100k = ({ cpuSeconds, operations }: Sample): number => (cpuSeconds / operations) * 100_000;

/** Every target whose both sides were measured. */
export function targetsOf(workloads: readonly Workload[], samples: readonly Sample[]): Target[] {
	return workloads.flatMap(({ id, title, targets }) =>
		(Object.entries(targets) as [PeerId, number][]).flatMap(([peer, goal]): Target[] => {
			const ratioCleanOff = ratioOf(samples, id, { ours: "vmsweep-off", peer });
			const ratio = ratioOf(samples, id, { ours: "vmsweep", peer });
			if (ratio === undefined) return [];
			return [{ workload: id, title, peer, goal, ratio, ratioCleanOff, reached: ratio.median >= goal }];
		}),
	);
}
