import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import fc from "fast-check";
import { readFioReport } from "./fio.ts";
import { atLargeLog, LARGE_LOG_BYTES } from "./memory.ts";
import { type PeerId, peers } from "./peers.ts";
import { cpuSeconds, memoryOf, numberBehind, storageReadBytes } from "./processes.ts";
import { doubts, memoryTable, ratioTable, short, table } from "./report.ts";
import {
	bestPeer,
	cpuPer100k,
	cpuPerGb,
	ratioOf,
	type Sample,
	serverCores,
	spreadOf,
	targetsOf,
} from "./statistics.ts";
import { workloads } from "./workloads.ts";

const sample = (
	workload: string,
	peer: PeerId,
	round: number,
	operationsPerSecond: number,
	part: Partial<Sample> = {},
): Sample => ({
	workload,
	peer,
	round,
	operations: operationsPerSecond,
	operationsPerSecond,
	bytesPerSecond: operationsPerSecond * 4096,
	latencyMsP50: 0.5,
	latencyMsP99: 1,
	latencyMsP999: 2,
	cpuSeconds: 0.5,
	clientCpuSeconds: 0.25,
	storageReadBytes: 0,
	movedBytes: null,
	...part,
});

const workloadNamed = (id: string) => workloads.find((workload) => workload.id === id)!;

test("the median lies in the middle, whatever the order", () => {
	assert.deepEqual(spreadOf([3, 1, 2]), { median: 2, min: 1, max: 3 });
	assert.deepEqual(spreadOf([4, 1, 2, 3]), { median: 2.5, min: 1, max: 4 });
	assert.equal(spreadOf([]), undefined);
	fc.assert(
		fc.property(fc.array(fc.double({ noNaN: true, min: -1e300, max: 1e300 }), { minLength: 1 }), (values) => {
			const { median, min, max } = spreadOf(values)!;
			return min <= median && median <= max && values.includes(min) && values.includes(max);
		}),
	);
});

test("a ratio compares only runs of the same round", () => {
	const samples = [
		sample("randread-d1", "vmsweep", 0, 200),
		sample("randread-d1", "nbdkit", 0, 100),
		sample("randread-d1", "vmsweep", 1, 20), // the machine was ten times slower in this round, for both
		sample("randread-d1", "nbdkit", 1, 10),
		sample("randread-d1", "vmsweep", 2, 1000), // a round that nbdkit did not finish
	];
	assert.deepEqual(ratioOf(samples, "randread-d1", { ours: "vmsweep", peer: "nbdkit" }), { median: 2, min: 2, max: 2 });
	assert.equal(ratioOf(samples, "randread-d1", { ours: "vmsweep", peer: "overlay" }), undefined);
});

test("a ratio to a figure of zero is no ratio", () => {
	const samples = [
		sample("randread-d1", "vmsweep", 0, 200),
		sample("randread-d1", "nbdkit", 0, 100, { cpuSeconds: 0 }),
	];
	assert.equal(ratioOf(samples, "randread-d1", { ours: "vmsweep", peer: "nbdkit", figure: cpuPer100k }), undefined);
});

test("targets are judged by the median, for every peer that was measured", () => {
	const deep = (peer: PeerId, operations: number, cpu: number) =>
		sample("randwrite-d32", peer, 0, operations, { cpuSeconds: cpu });
	const samples = [
		deep("vmsweep", 160, 3),
		deep("vmsweep-off", 200, 2),
		deep("nbdkit", 100, 1),
		deep("overlay", 20, 1),
	];
	assert.deepEqual(
		targetsOf(workloads, peers, samples).map(({ figure, peer, goal, ratio, ratioCleanOff, reached }) => [
			figure,
			peer,
			goal,
			ratio.median,
			ratioCleanOff?.median,
			reached,
		]),
		[
			["throughput", "nbdkit", 2, 1.6, 2, false],
			["cpu", "nbdkit", 1.5, 1.875, 1, false],
		],
	);
});

test("the best peer is the fastest of those that do the same work", () => {
	const flush = workloadNamed("flush-d32");
	const flushes = (peer: PeerId, operations: number) => sample(flush.id, peer, 0, operations);
	const samples = [flushes("vmsweep", 90), flushes("nbdkit-cow", 500), flushes("nbdkit", 80), flushes("overlay", 30)];
	assert.equal(bestPeer(flush, peers, samples), "nbdkit", "the cow filter's flush does nothing");
	const read = workloadNamed("cold-d32");
	const reads = samples.map((one) => ({ ...one, workload: read.id }));
	assert.equal(bestPeer(read, peers, reads), "nbdkit-cow");
	assert.equal(bestPeer(read, peers, []), undefined);
	assert.deepEqual(
		targetsOf([flush], peers, samples)
			.filter(({ figure }) => figure === "throughput")
			.map(({ peer, best, goal, reached }) => [peer, best, goal, reached]),
		[
			["nbdkit", true, 1, true],
			["overlay", false, 4, false],
		],
	);
});

test("latency with cleaning on is measured against cleaning off, round by round", () => {
	const paced = workloadNamed("clean-paced");
	const run = (peer: PeerId, round: number, latencyMsP99: number) =>
		sample(paced.id, peer, round, 6000, { latencyMsP99, movedBytes: 1 });
	const samples = [run("vmsweep", 0, 1.2), run("vmsweep-off", 0, 1), run("vmsweep", 1, 13), run("vmsweep-off", 1, 10)];
	const [target] = targetsOf([paced], peers, samples);
	assert.deepEqual(
		[target!.figure, target!.peer, target!.bound, target!.ratio.median, target!.reached],
		["p99", "vmsweep-off", "at most", 1.25, true],
	);
});

test("processor time is told per 100,000 operations, per 10^9 bytes and as busy processors", () => {
	const one = sample("randread-d1", "nbdkit", 0, 50_000);
	assert.equal(cpuPer100k(one), 1);
	assert.equal(cpuPerGb(one), 0.5 / ((50_000 * 4096) / 1e9));
	assert.equal(serverCores(one), 0.5);
});

test("a row that did not measure what its title says is doubted", () => {
	const of = (id: string, samples: readonly Sample[]) => doubts({ workloads: [workloadNamed(id)], peers, samples });
	const cold = (storageReadBytes: number) => [sample("cold-d32", "nbdkit", 0, 100, { storageReadBytes })];
	assert.deepEqual(of("cold-d32", cold(100 * 4096)), []);
	assert.match(of("cold-d32", cold(40 * 4096))[0]!, /under half of what nbdkit answered came from storage/);
	const cleaning = (movedBytes: number) => [sample("clean-d32", "vmsweep", 0, 100, { movedBytes })];
	assert.deepEqual(of("clean-d32", cleaning(1)), []);
	assert.match(of("clean-d32", cleaning(0))[0]!, /the cleaner moved nothing/);
});

test("the ratio table marks what has a target", () => {
	const samples = [
		sample("randread-d1", "vmsweep", 0, 150),
		sample("randread-d1", "nbdkit", 0, 100),
		sample("randread-d1", "qsd", 0, 50),
	];
	const rows = [workloadNamed("randread-d1")];
	const shown = peers.filter(({ id }) => ["vmsweep", "nbdkit", "qsd"].includes(id));
	const text = ratioTable({ workloads: rows, peers: shown, samples }, targetsOf(rows, shown, samples));
	assert.match(text, /depth 1 +1\.50\+ +3\.00$/m);
});

test("processor time, storage reads and memory of a process are read from the kernel", async () => {
	assert(cpuSeconds(process.pid) > 0);
	const { residentBytes, proportionalBytes } = memoryOf(process.pid);
	assert(residentBytes > 1 << 20 && proportionalBytes <= residentBytes);
	assert(storageReadBytes(process.pid) >= 0);
	const shell = spawn("sh", ["-c", "sleep 100 & echo started; wait"], { detached: true });
	try {
		await once(shell.stdout, "data");
		assert(cpuSeconds(shell.pid!) < 1);
		assert(memoryOf(shell.pid!).residentBytes > 0);
	} finally {
		process.kill(-shell.pid!);
	}
	assert.equal(numberBehind("Rss:      12 kB\nPss:  7 kB\n", "Pss"), 7);
	assert(Number.isNaN(numberBehind("Rss: 1 kB", "Pss")));
});

test("a straight line through two logs gives the memory of the large one", () => {
	const base = 100;
	const perByte = 1 / (1 << 20);
	const at = (bytes: number) => base + bytes * perByte;
	const log = 2 ** 31;
	assert.equal(atLargeLog(at(log / 2), at(log), log), at(LARGE_LOG_BYTES));
	const finding = { title: "large", proportionalBytes: undefined, maxBytes: 10 };
	const verdict = (residentBytes: number, extrapolated: boolean) =>
		memoryTable([{ ...finding, residentBytes, extrapolated }]);
	assert.match(verdict(9, true), /only --full can tell/);
	assert.match(verdict(9, false), /yes/);
	assert.match(verdict(11, false), /NO/);
});

test("fio's report is found behind lines that fio prints before it", () => {
	const direction = (operations: number, p99: number) => ({
		total_ios: operations,
		iops: operations / 2,
		bw_bytes: operations * 2048,
		clat_ns: { percentile: { "50.000000": p99 / 4, "99.000000": p99, "99.900000": p99 * 2 } },
	});
	const processor = { usr_cpu: 10, sys_cpu: 15, job_runtime: 2000 };
	const report = { jobs: [{ ...processor, read: direction(10, 2e6), write: direction(20, 1e6) }] };
	const output = `note: something\n${JSON.stringify(report)}`;
	assert.deepEqual(readFioReport(output, ["read"]), {
		operations: 10,
		operationsPerSecond: 5,
		bytesPerSecond: 20_480,
		latencyMsP50: 0.5,
		latencyMsP99: 2,
		latencyMsP999: 4,
		clientCpuSeconds: 0.5,
	});
	const both = readFioReport(output, ["read", "write"]);
	assert.deepEqual([both.operations, both.operationsPerSecond, both.latencyMsP99], [30, 15, 2]);
	assert.throws(() => readFioReport("fio: connection refused", ["read"]), /fio reports no read.*connection refused/s);
	assert.throws(() => readFioReport(JSON.stringify({ jobs: [{ write: { total_ios: 0 } }] }), ["write"]), /no write/);
});

test("numbers keep three digits, and columns line up", () => {
	assert.deepEqual([0.947, 1.5, 12.34, 99.96, 999, 1234, 9999, 98_765, 123_456].map(short), [
		"0.95",
		"1.50",
		"12.3",
		"100",
		"999",
		"1.23k",
		"10.0k",
		"98.8k",
		"123k",
	]);
	assert.equal(
		table([
			["", "a", "long"],
			["row", "1.00"],
		]),
		"        a  long\nrow  1.00",
	);
});
