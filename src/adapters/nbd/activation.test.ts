import assert from "node:assert/strict";
import { test } from "node:test";
import { takePassedSockets } from "./activation.ts";

test("sockets are counted from descriptor 3 on, and the environment forgets them", () => {
	const environment = { LISTEN_PID: "77", LISTEN_FDS: "3", LISTEN_FDNAMES: "web01:unknown", PATH: "/bin" };
	assert.deepEqual(takePassedSockets(environment, 77), [
		{ address: { kind: "descriptor", fd: 3 }, name: "web01" },
		{ address: { kind: "descriptor", fd: 4 }, name: "" },
		{ address: { kind: "descriptor", fd: 5 }, name: "" },
	]);
	assert.deepEqual(environment, { PATH: "/bin" });
});

test("those for another process, and none at all", () => {
	for (const environment of [
		{},
		{ LISTEN_PID: "78", LISTEN_FDS: "1" },
		{ LISTEN_PID: "77" },
		{ LISTEN_PID: "77", LISTEN_FDS: "0" },
		{ LISTEN_PID: "77", LISTEN_FDS: "-2" },
		{ LISTEN_PID: "77", LISTEN_FDS: "many" },
		{ LISTEN_FDS: "1" },
	])
		assert.equal(takePassedSockets(environment, 77), undefined);
});
