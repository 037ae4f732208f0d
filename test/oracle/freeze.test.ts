// Freeze points with an agent of the test's own, on btrfs mounted by the host's kernel: one that really freezes, and those
// that lie, die, or thaw too early (live-safety 9.10). A lie proves nothing, and whatever happens the guest is thawed.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { type AgentHandlers, FakeAgent } from "../support/fake-agent.ts";
import { xfs } from "../support/file-system-kinds.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1024 * 1024;
const JUNK_BYTES = 32 * MIB;

interface Scene {
	readonly server: SweepServer;
	readonly agent: FakeAgent;
	/** Where btrfs is mounted. */
	readonly path: string;
	readonly device: string;
	/** Hashes of what is to be kept. */
	readonly expected: readonly string[];
}

/** A mount, frozen and thawed for real. */
class RealFreeze {
	state: "thawed" | "frozen" = "thawed";
	path = "";
	/** Resolved when what is to be frozen is there. */
	readonly ready = Promise.withResolvers<void>();
	async freeze(): Promise<void> {
		await this.ready.promise;
		// A folder that is no mount would freeze the host's own file system.
		await runOk("mountpoint", ["-q", this.path]);
		await runOk("fsfreeze", ["-f", this.path]);
	}
	readonly handlers: AgentHandlers = {
		"guest-fsfreeze-status": () => ({ return: this.state }),
		"guest-fsfreeze-freeze": async () => {
			await this.freeze();
			this.state = "frozen";
			return { return: 1 };
		},
		"guest-fsfreeze-thaw": async () => {
			if (this.state === "frozen") await run("fsfreeze", ["-u", this.path]);
			this.state = "thawed";
			return { return: 1 };
		},
	};
}

/** Runs `work` on a disk whose btrfs has files that were deleted a moment ago, with an agent that answers as told. */
async function onBtrfs(
	t: TestContext,
	freeze: RealFreeze,
	handlers: AgentHandlers,
	work: (scene: Scene) => Promise<void>,
	serve: readonly string[] = [],
): Promise<void> {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.btrfs", "btrfs", "fsfreeze")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "512M" });
	freeze.path = folder.file("m");
	await mkdir(freeze.path);
	await using agent = await FakeAgent.listen(folder.file("qga"), { ...freeze.handlers, ...handlers });
	await using server = await SweepServer.serve(disk, "--qga", agent.path, "--freeze-every", "1", ...serve);
	await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
	await runOk("mkfs.btrfs", ["-q", "-f", device.path]);
	await isFollowed(server);
	await using mounted = await Mounted.mount(device.path, freeze.path);
	const script = `cd "$1" && mkdir keep && head -c 3000000 /dev/urandom > keep/a && sync -f . &&
		head -c ${JUNK_BYTES} /dev/urandom > junk && sync junk && rm junk && head -c 2000000 /dev/urandom > keep/b`;
	await runOk("bash", ["-c", script, "fill", mounted.path]);
	const expected = await hashesIn(join(mounted.path, "keep"));
	freeze.ready.resolve();
	try {
		await work({ server, agent, path: mounted.path, device: device.path, expected });
	} finally {
		if (freeze.state === "frozen") await run("fsfreeze", ["-u", freeze.path]);
	}
}

/** Resolves when writes to the btrfs are seen. */
const isFollowed = (server: SweepServer): ReturnType<SweepServer["status"]> =>
	server.reaches(({ volumes }) => volumes[0]?.type === "btrfs" && volumes[0].phase !== "kept", "btrfs to be followed");

/** The status once the agent was asked to thaw, and the point was judged. */
const afterThaw = (scene: Scene): ReturnType<SweepServer["status"]> =>
	scene.server.reaches(
		({ freezes }) => freezes !== null && (freezes.frozenAt ?? freezes.problem) !== null,
		"a freeze to be over",
	);

describe("freeze points", () => {
	test("an agent that tells the truth: the space of deleted files is back while btrfs is mounted", async (t) => {
		const freeze = new RealFreeze();
		await onBtrfs(t, freeze, {}, async ({ server, agent, path, device, expected }) => {
			const status = await server.reaches(
				({ cleaner, volumes }) => cleaner.droppedBytes >= JUNK_BYTES * 0.98 && volumes[0]?.frozenAt != null,
				"the deleted file's space",
			);
			t.diagnostic(`${status.cleaner.droppedBytes} bytes dropped, frozen for ${status.freezes!.frozenMs} ms`);
			const order = ["status", "freeze", "status", "status", "thaw", "status"].map((word) => `guest-fsfreeze-${word}`);
			assert.deepEqual(agent.heard.slice(0, order.length), order);
			assert.equal(freeze.state, "thawed");
			assert.deepEqual(await hashesIn(join(path, "keep")), expected);
			await runOk("umount", [path]);
			await runOk("btrfs", ["check", device]);
			await using again = await Mounted.mount(device, path);
			assert.deepEqual(await hashesIn(join(again.path, "keep")), expected);
		});
	});

	test("one that takes its time, with a log that runs full meanwhile: the cleaner goes on", async (t) => {
		const freeze = new RealFreeze();
		const slow: AgentHandlers = {
			"guest-fsfreeze-freeze": async () => {
				await freeze.ready.promise;
				await runOk("bash", ["-c", `head -c ${160 * MIB} /dev/urandom > "$1/much" && sync -f "$1"`, "w", freeze.path]);
				await freeze.freeze();
				freeze.state = "frozen";
				return { return: 1 };
			},
		};
		const work = async (scene: Scene): Promise<void> => {
			const { freezes } = await afterThaw(scene);
			assert.equal(freezes!.problem, null);
			assert.equal(freeze.state, "thawed");
			assert.deepEqual(await hashesIn(join(scene.path, "keep")), scene.expected);
		};
		await onBtrfs(t, freeze, slow, work, ["--log-limit", "128M"]);
	});

	test("one that says frozen and froze nothing: the disk doesn't show it", async (t) => {
		const freeze = new RealFreeze();
		const lie: AgentHandlers = {
			"guest-fsfreeze-freeze": () => {
				freeze.state = "frozen";
				return { return: 1 };
			},
		};
		await onBtrfs(t, freeze, lie, async (scene) => {
			await afterThaw(scene);
			const { cleaner: before } = await scene.server.status();
			const { volumes, freezes } = await scene.server.reaches(
				({ cleaner }) => cleaner.rounds > before.rounds + 1,
				"the point to be judged",
			);
			assert.notEqual(freezes!.frozenAt, null);
			assert.equal(volumes[0]!.frozenAt, null);
			assert.equal(freeze.state, "thawed");
		});
	});

	test("one that says frozen while somebody writes: the point is refused", async (t) => {
		const freeze = new RealFreeze();
		let asked = 0;
		const lie: AgentHandlers = {
			// As a freeze would, but for the freeze.
			"guest-fsfreeze-freeze": async () => {
				await freeze.ready.promise;
				await runOk("sync", ["-f", freeze.path]);
				freeze.state = "frozen";
				asked = 0;
				return { return: 1 };
			},
			"guest-fsfreeze-status": async () => {
				if (freeze.state === "frozen" && ++asked === 2)
					await runOk("bash", ["-c", `head -c 100000 /dev/urandom > "$1/late" && sync -f "$1"`, "w", freeze.path]);
				return { return: freeze.state };
			},
		};
		await onBtrfs(t, freeze, lie, async (scene) => {
			const { volumes } = await afterThaw(scene);
			await scene.server.process.until(
				() => /was written while/.test(scene.server.process.stderr),
				"the server to say so",
			);
			assert.equal(volumes[0]!.frozenAt, null);
		});
	});

	test("one that thaws before it was asked: the point is refused", async (t) => {
		const freeze = new RealFreeze();
		let asked = 0;
		const early: AgentHandlers = {
			"guest-fsfreeze-status": async () => {
				if (freeze.state === "frozen" && ++asked === 2)
					await runOk("fsfreeze", ["-u", freeze.path]).then(() => (freeze.state = "thawed"));
				return { return: freeze.state };
			},
		};
		await onBtrfs(t, freeze, early, async (scene) => {
			const { volumes, freezes } = await afterThaw(scene);
			assert.equal(volumes[0]!.frozenAt, null);
			assert.match(freezes!.problem ?? "", /did not say that all stayed frozen/);
		});
	});

	test("one that hangs up when all is frozen: the guest is thawed over a new connection", async (t) => {
		const freeze = new RealFreeze();
		let hungUp = false;
		const rude: AgentHandlers = {
			"guest-fsfreeze-status": (agent) => {
				if (freeze.state === "thawed" || hungUp) return { return: freeze.state };
				hungUp = true;
				agent.hangUp();
				return undefined;
			},
		};
		await onBtrfs(t, freeze, rude, async (scene) => {
			const { volumes, freezes } = await afterThaw(scene);
			assert.equal(volumes[0]!.frozenAt, null);
			assert.match(freezes!.problem ?? "", /closed/);
			assert.equal(freeze.state, "thawed");
			await runOk("bash", ["-c", `echo alive > "$1/alive" && sync -f "$1"`, "w", scene.path]);
		});
	});

	test("a server that is told to end, or killed, while all is frozen: it thaws the guest, or the next one does", async (t) => {
		const freeze = new RealFreeze();
		let mute = true;
		const slow: AgentHandlers = {
			"guest-fsfreeze-freeze": () => {
				freeze.state = "frozen";
				return { return: 1 };
			},
			"guest-fsfreeze-status": () => (mute && freeze.state === "frozen" ? undefined : { return: freeze.state }),
			"guest-fsfreeze-thaw": () => {
				freeze.state = "thawed";
				return { return: 1 };
			},
		};
		await onBtrfs(t, freeze, slow, async ({ server, agent, path }) => {
			const isFrozen = (): boolean => freeze.state === "frozen";
			await waitUntil(isFrozen, "the freeze");
			// Nothing may hold the disk open over the server's end.
			await runOk("umount", [path]);
			assert.equal((await server.stop()).exitCode, 0);
			assert.equal(freeze.state, "thawed");
			assert.ok(!existsSync(join(server.disk, "freezing")));

			await using second = await SweepServer.serve(server.disk, "--qga", agent.path, "--freeze-every", "1");
			await isFollowed(second);
			await using client = await second.connect();
			await client.write(64 * MIB - 4096, Buffer.alloc(4096, 1));
			await waitUntil(isFrozen, "the freeze");
			await second.kill();
			assert.equal(freeze.state, "frozen");
			mute = false;
			await using third = await SweepServer.serve(server.disk, "--qga", agent.path, "--freeze-every", "1");
			await waitUntil(() => freeze.state === "thawed", "the next server to thaw the guest");
			assert.equal((await third.stop()).exitCode, 0);
		});
	});
});

test("an XFS at rest gives back at a freeze point what its last commits gave up", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools, "fsfreeze")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "512M" });
	const freeze = new RealFreeze();
	freeze.path = folder.file("m");
	await using agent = await FakeAgent.listen(folder.file("qga"), freeze.handlers);
	await using server = await SweepServer.serve(disk, "--qga", agent.path, "--freeze-every", "1");
	await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
	await runOk("mkfs.xfs", ["-q", "-f", device.path]);
	await using mounted = await Mounted.mount(device.path, freeze.path);
	try {
		const script = `cd "$1" && mkdir keep && head -c 3000000 /dev/urandom > keep/a && sync -f . &&
			head -c ${JUNK_BYTES} /dev/urandom > junk && sync junk && rm junk && head -c 2000000 /dev/urandom > keep/b && sync -f .`;
		await runOk("bash", ["-c", script, "fill", mounted.path]);
		const expected = await hashesIn(join(mounted.path, "keep"));
		freeze.ready.resolve();
		const status = await server.reaches(
			({ cleaner, volumes }) => cleaner.droppedBytes >= JUNK_BYTES * 0.98 && volumes[0]?.frozenAt != null,
			"the deleted file's space",
		);
		t.diagnostic(`${status.cleaner.droppedBytes} bytes dropped, frozen for ${status.freezes!.frozenMs} ms`);
		assert.deepEqual(await hashesIn(join(mounted.path, "keep")), expected);
		await mounted.unmount();
		await runOk("xfs_repair", ["-n", device.path]);
		await using again = await Mounted.mount(device.path, freeze.path);
		assert.deepEqual(await hashesIn(join(again.path, "keep")), expected);
		await again.unmount();
	} finally {
		await run("fsfreeze", ["-u", freeze.path]);
	}
});
