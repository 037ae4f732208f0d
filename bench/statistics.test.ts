import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import fc from "fast-check";
import { readFioReport } from "./fio.ts";
import { cpuSeconds, type PeerId } from "./peers.ts";
import { short, table } from "./report.ts";
import { cpuPer100k, ratioOf, type Sample, spreadOf, targetsOf } from "./statistics.ts";
import { workloads } from "./workloads.ts";

const sample = (workload: string, peer: PeerId, round: number, operationsPerSecond: number): Sample => ({
	workload,
	peer,
	round,
	operations: operationsPerSecond,
	operationsPerSecond,
	bytesPerSecond: operationsPerSecond * 4096,
	latencyMsP99: 1,
	cpuSeconds: 0.5,
});

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

test("targets are judged by the median, for every peer that was measured", () => {
	const deep = (peer: PeerId, operations: number) => sample("randwrite-d32", peer, 0, operations);
	const samples = [deep("vmsweep", 160), deep("vmsweep-off", 200), deep("nbdkit", 100), deep("overlay", 20)];
	const targets = targetsOf(workloads, samples);
	assert.deepEqual(
		targets.map(({ peer, goal, ratio, ratioCleanOff, reached }) => [
			peer,
			goal,
			ratio.median,
			ratioCleanOff?.median,
			reached,
		]),
		[
			["nbdkit", 1.5, 1.6, 2, true],
			["overlay", 10, 8, 10, false],
		],
	);
});

test("processor time is told per 100,000 operations", () => {
	assert.equal(cpuPer100k(sample("randread-d1", "nbdkit", 0, 50_000)), 1);
});

test("processor time of a process grows while it works", async () => {
	assert(cpuSeconds(process.pid) > 0);
	const idle = spawn("sleep", ["100"]);
	try {
		await once(idle, "spawn");
		assert(cpuSeconds(idle.pid!) < 1);
	} finally {
		idle.kill();
	}
});

test("fio's report is found behind lines that fio prints before it", () => {
	const report = {
		jobs: [{ read: { total_ios: 10, iops: 5, bw_bytes: 20_480, clat_ns: { percentile: { "99.000000": 2e6 } } } }],
	};
	assert.deepEqual(readFioReport(`note: something\n${JSON.stringify(report)}`, "read"), {
		operations: 10,
		operationsPerSecond: 5,
		bytesPerSecond: 20_480,
		latencyMsP99: 2,
	});
	assert.throws(() => readFioReport("fio: connection refused", "read"), /fio reports no read.*connection refused/s);
	assert.throws(() => readFioReport(JSON.stringify({ jobs: [{ write: { total_ios: 0 } }] }), "write"), /no write/);
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
