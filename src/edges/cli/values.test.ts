import assert from "node:assert/strict";
import { test } from "node:test";
import { VSOCK_ANY } from "../../adapters/nbd/listen-address.ts";
import {
	collectAgents,
	parseAddress,
	parseCount,
	parseInterval,
	parseOffset,
	parseSeconds,
	parseSize,
} from "./values.ts";

test("addresses: TCP by name and number, vsock", () => {
	assert.deepEqual(parseAddress("localhost:10809"), { kind: "tcp", host: "localhost", port: 10809 });
	assert.deepEqual(parseAddress("[::1]:0"), { kind: "tcp", host: "::1", port: 0 });
	assert.deepEqual(parseAddress("vsock:any:10809"), { kind: "vsock", cid: VSOCK_ANY, port: 10809 });
	assert.deepEqual(parseAddress("vsock:2:4000000000"), { kind: "vsock", cid: 2, port: 4_000_000_000 });
	for (const wrong of [
		"",
		"localhost",
		":1",
		"a:70000",
		"vsock:any:",
		"vsock:4294967296:1",
		"vsock:1:4294967295",
		"::1:5",
	])
		assert.throws(() => parseAddress(wrong), { code: "commander.invalidArgument" }, wrong);
});

test("counts and seconds", () => {
	assert.equal(parseCount("12"), 12);
	for (const wrong of ["0", "-1", "1.5", "x", ""]) assert.throws(() => parseCount(wrong), wrong);
	assert.deepEqual(["0", "30", "0.25"].map(parseSeconds), [0, 30_000, 250]);
	for (const wrong of ["-1", "1e3", "x", "", "."]) assert.throws(() => parseSeconds(wrong), wrong);
});

test("a byte's position may be 0, a size may not", () => {
	assert.deepEqual(["0", "512", "1.5K", "10G", "4KiB"].map(parseOffset), [0, 512, 1536, 10 * 2 ** 30, 4096]);
	for (const wrong of ["-1", "1.5", "x", "", "9000P"]) assert.throws(() => parseOffset(wrong), wrong);
	assert.equal(parseSize("512"), 512);
	assert.throws(() => parseSize("0"), /more than nothing/);
});

test("guest agents: for all disks, or for one; intervals are longer than nothing", () => {
	assert.deepEqual(collectAgents("/run/a=b"), [{ path: "/run/a=b" }]);
	assert.deepEqual(collectAgents("web=/run/a=b", [{ path: "x" }]), [{ path: "x" }, { disk: "web", path: "/run/a=b" }]);
	assert.throws(() => collectAgents(""), { code: "commander.invalidArgument" });
	assert.equal(parseInterval("0.5"), 500);
	assert.throws(() => parseInterval("0"), { code: "commander.invalidArgument" });
});
