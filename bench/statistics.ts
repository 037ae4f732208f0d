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
	return workloads.flatMap((workload) => {
		const { targets, cleaningP99Max } = workload;
		const throughputs = (Object.entries(targets) as [PeerId | "best", number][]).flatMap(([against, goal]): Goal[] => {
			const best = against === "best";
			const peer = best ? bestPeer(workload, peers, samples) : against;
			return peer === undefined ? [] : [{ figure: "throughput", peer, best, goal }];
		});
		const cpu: Goal = { figure: "cpu", peer: "nbdkit", goal: CPU_RATIO_MAX };
		const p99: Goal[] =
			cleaningP99Max === undefined ? [] : [{ figure: "p99", peer: "vmsweep-off", goal: cleaningP99Max }];
		return [...throughputs, cpu, ...p99].flatMap((goal) => targetOf(workload, samples, goal) ?? []);
	});
}

interface Goal extends Pick<Target, "figure" | "peer" | "goal"> {
	readonly best?: boolean;
}

const figures = { throughput, cpu: cpuPer100k, p99: latencyP99 } as const;

/** Undefined where one of both sides was not measured. */
function targetOf(
	{ id, title }: Workload,
	samples: readonly Sample[],
	{ figure, peer, best = false, goal }: Goal,
): Target | undefined {
	const ratioWith = (ours: PeerId): Spread | undefined => ratioOf(samples, id, { ours, peer, figure: figures[figure] });
	const ratio = ratioWith("vmsweep");
	if (ratio === undefined) return undefined;
	// Latencies are those with cleaning on, measured against cleaning off.
	const ratioCleanOff = figure === "p99" ? undefined : ratioWith("vmsweep-off");
	const bound = figure === "throughput" ? "at least" : "at most";
	const reached = bound === "at least" ? ratio.median >= goal : ratio.median <= goal;
	return { workload: id, title, peer, figure, best, bound, goal, ratio, ratioCleanOff, reached };
}
