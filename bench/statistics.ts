// From single measurements to medians, ratios and targets. Pure, so that it can be tested without running anything.

import type { ClientResult } from "./client-result.ts";
import { isOurs, type Peer, type PeerId } from "./peers.ts";
import { CPU_RATIO_MAX, type Workload } from "./workloads.ts";

/** One peer under one workload in one round. */
export interface Sample extends ClientResult {
	readonly workload: string;
	readonly peer: PeerId;
	readonly round: number;
	/** Processor time of the server during the run. */
	readonly cpuSeconds: number;
	/** What the server read from storage during the run, because the page cache did not have it. */
	readonly storageReadBytes: number;
	/** What vmsweep's cleaner moved during the run; null for everybody else. */
	readonly movedBytes: number | null;
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
	/** Whose figure is divided by: a peer, or vmsweep without cleaning. */
	readonly peer: PeerId;
	/** What is compared: operations per second, processor time per operation, or the latency of 99 % of the requests. */
	readonly figure: "throughput" | "cpu" | "p99";
	/** True where the peer was chosen because it is the fastest. */
	readonly best: boolean;
	readonly bound: "at least" | "at most";
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

type Figure = (sample: Sample) => number;

/** Spread of one figure over the rounds of one peer and workload. */
export const spreadOver = (
	samples: readonly Sample[],
	workload: string,
	peer: PeerId,
	figure: Figure,
): Spread | undefined => spreadOf(samplesOf(samples, workload, peer).map(figure));

export const throughput: Figure = ({ operationsPerSecond }) => operationsPerSecond;
export const cpuPer100k: Figure = ({ cpuSeconds, operations }) => (cpuSeconds / operations) * 100_000;
/** Processor seconds for 10^9 bytes. */
export const cpuPerGb: Figure = ({ cpuSeconds, operations, operationsPerSecond, bytesPerSecond }) =>
	cpuSeconds / ((operations * (bytesPerSecond / operationsPerSecond)) / 1e9);
const latencyP99: Figure = ({ latencyMsP99 }) => latencyMsP99;

/** Processors that were busy during the run, with the server's and with the client's work. */
export const serverCores: Figure = (sample) => sample.cpuSeconds / secondsOf(sample);
export const clientCores: Figure = (sample) => sample.clientCpuSeconds / secondsOf(sample);
const secondsOf = ({ operations, operationsPerSecond }: Sample): number => operations / operationsPerSecond;

/**
 * A figure of `ours` divided by that of `peer`: one ratio per round, from two runs that followed each other
 * closely, then the median of those. What slows the machine for a while then slows both. Rounds in which the peer's
 * figure is zero (a run too short for the kernel's clock) don't count.
 */
export function ratioOf(
	samples: readonly Sample[],
	workload: string,
	{ ours, peer, figure = throughput }: { readonly ours: PeerId; readonly peer: PeerId; readonly figure?: Figure },
): Spread | undefined {
	const theirs = new Map(samplesOf(samples, workload, peer).map((sample) => [sample.round, figure(sample)]));
	const ratios = samplesOf(samples, workload, ours).flatMap((sample) => {
		const other = theirs.get(sample.round);
		return other === undefined || other === 0 ? [] : [figure(sample) / other];
	});
	return spreadOf(ratios);
}

/** The peer with the highest median, of those that do the same work. Undefined where none was measured. */
export function bestPeer(workload: Workload, peers: readonly Peer[], samples: readonly Sample[]): PeerId | undefined {
	const racers = peers
		.filter(({ id, flushes }) => !isOurs(id) && (flushes || workload.flushEvery === undefined))
		.flatMap(({ id }) => {
			const spread = spreadOver(samples, workload.id, id, throughput);
			return spread === undefined ? [] : [{ id, median: spread.median }];
		});
	return racers.toSorted((a, b) => b.median - a.median)[0]?.id;
}

/** Every target whose both sides were measured. */
export function targetsOf(
	workloads: readonly Workload[],
	peers: readonly Peer[],
	samples: readonly Sample[],
): Target[] {
	return workloads.flatMap((workload) => [
		...throughputTargets(workload, peers, samples),
		...ceiling(workload, samples, { figure: "cpu", peer: "nbdkit", goal: CPU_RATIO_MAX }),
		...(workload.cleaningP99Max === undefined
			? []
			: ceiling(workload, samples, { figure: "p99", peer: "vmsweep-off", goal: workload.cleaningP99Max })),
	]);
}

function throughputTargets(workload: Workload, peers: readonly Peer[], samples: readonly Sample[]): Target[] {
	const { id, title, targets } = workload;
	return (Object.entries(targets) as [PeerId | "best", number][]).flatMap(([against, goal]): Target[] => {
		const peer = against === "best" ? bestPeer(workload, peers, samples) : against;
		if (peer === undefined) return [];
		const ratio = ratioOf(samples, id, { ours: "vmsweep", peer });
		if (ratio === undefined) return [];
		const ratioCleanOff = ratioOf(samples, id, { ours: "vmsweep-off", peer });
		const what = { figure: "throughput", best: against === "best", bound: "at least" } as const;
		return [{ workload: id, title, peer, ...what, goal, ratio, ratioCleanOff, reached: ratio.median >= goal }];
	});
}

const figures = { cpu: cpuPer100k, p99: latencyP99 } as const;

function ceiling(
	{ id, title }: Workload,
	samples: readonly Sample[],
	{ figure, peer, goal }: { readonly figure: "cpu" | "p99"; readonly peer: PeerId; readonly goal: number },
): Target[] {
	const ratio = ratioOf(samples, id, { ours: "vmsweep", peer, figure: figures[figure] });
	if (ratio === undefined) return [];
	const ratioCleanOff =
		figure === "cpu" ? ratioOf(samples, id, { ours: "vmsweep-off", peer, figure: cpuPer100k }) : undefined;
	const what = { figure, best: false, bound: "at most" } as const;
	return [{ workload: id, title, peer, ...what, goal, ratio, ratioCleanOff, reached: ratio.median <= goal }];
}
