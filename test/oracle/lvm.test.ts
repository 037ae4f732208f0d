// What LVM frees on a disk that is cleaned while lvm2's own tools change it, and what it doesn't. The host needs no device
// mapper: contents of logical volumes are written to the places that the tools themselves tell.

import assert from "node:assert/strict";
import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { VolumeStatus } from "../../src/services/clean/volume-status.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { LOOP_TOOLS, LoopDevice } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { Lvm } from "../support/lvm.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1 << 20;
const DISK_MIB = 200;
const TOOLS = [...LOOP_TOOLS, "pvcreate"] as const;
const random = seededRandom(testSeed());

/** A disk that is one physical volume, served. */
class Bench implements AsyncDisposable {
	readonly server: SweepServer;
	readonly lvm: Lvm;
	readonly #device: LoopDevice;
	readonly #fd: number;

	private constructor(server: SweepServer, lvm: Lvm, device: LoopDevice) {
		this.server = server;
		this.lvm = lvm;
		this.#device = device;
		this.#fd = openSync(device.path, "r+");
	}

	static async open(folder: TemporaryFolder, disk: string, ...serve: readonly string[]): Promise<Bench> {
		const server = await SweepServer.serve(disk, ...serve);
		const device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		return new Bench(server, await Lvm.on(folder, join(folder.file("fuse"), "nbd"), [0, DISK_MIB]), device);
	}

	/** A group with two logical volumes of 20 MiB, and their content. */
	async fill(): Promise<ReadonlyMap<string, Uint8Array>> {
		const [device] = this.lvm.devices as [string];
		await this.lvm.run("pvcreate", "-q", device);
		await this.lvm.run("vgcreate", "-q", "-s", "1M", "vg0", device);
		const contents = new Map<string, Uint8Array>();
		for (const name of ["first", "second"]) {
			await this.lvm.create(name, 20);
			const bytes = random.bytes(20 * MIB);
			this.write(await this.startOf(name), bytes);
			contents.set(name, bytes);
		}
		return contents;
	}

	/** Where a logical volume that lies in one piece starts. */
	async startOf(name: string): Promise<number> {
		return (await this.lvm.places(name))(0);
	}

	write(at: number, bytes: Uint8Array): void {
		assert.equal(writeSync(this.#fd, bytes, 0, bytes.length, at), bytes.length);
		fsyncSync(this.#fd);
	}

	/** What the server says, around the host's caches. */
	async read(at: number, length: number): Promise<Uint8Array> {
		await runOk("blockdev", ["--flushbufs", this.#device.path]);
		await using client = await this.server.connect();
		return await client.read(at, length);
	}

	async rounds(count: number): Promise<void> {
		await this.server.rounds(count);
	}

	async dropped(): Promise<number> {
		return (await this.server.status()).cleaner.droppedBytes;
	}

	async reachesDropped(bytes: number): Promise<void> {
		await this.server.reaches(({ cleaner }) => cleaner.droppedBytes >= bytes, `${bytes} bytes to be dropped`);
	}

	/** The status of the physical volume, once it is known. */
	async physical(): Promise<VolumeStatus> {
		const find = async (): Promise<VolumeStatus | undefined> =>
			(await this.server.status()).volumes.find(({ id }) => id === "disk");
		return (await waitUntil(find, "the physical volume to be identified"))!;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		closeSync(this.#fd);
		await this.lvm[Symbol.asyncDispose]();
		await this.#device[Symbol.asyncDispose]();
		await this.server[Symbol.asyncDispose]();
	}
}

const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);
const isSame = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

test("extents of a removed volume are dropped, others are not; once somebody writes to free ones, no more are", async (t) => {
	if (!requireTool(t, ...TOOLS)) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: `${DISK_MIB}M` });
	await using bench = await Bench.open(folder, disk, "--lvm-free", "drop");
	const contents = await bench.fill();
	const [first, second] = [await bench.startOf("first"), await bench.startOf("second")];
	await bench.rounds(3);
	assert.equal(await bench.dropped(), 0);

	await bench.lvm.run("lvremove", "-y", "vg0/first");
	await bench.reachesDropped(20 * MIB);
	assert.equal((await bench.physical()).phase, "continuous");
	assert.ok(isZero(await bench.read(first, 20 * MIB)));
	assert.ok(isSame(await bench.read(second, 20 * MIB), contents.get("second")!));

	// The extents get an owner again, who writes after LVM has said so: that is no stranger.
	await bench.lvm.create("third", 20);
	const third = random.bytes(20 * MIB);
	bench.write(await bench.startOf("third"), third);
	await bench.rounds(3);
	assert.equal((await bench.physical()).phase, "continuous");
	assert.ok(isSame(await bench.read(await bench.startOf("third"), 20 * MIB), third));
	assert.equal(await bench.dropped(), 20 * MIB);

	const foreign = random.bytes(8192);
	const free = (DISK_MIB - 20) * MIB;
	bench.write(free, foreign);
	await waitUntil(async () => (await bench.physical()).reason !== null, "the free extents to be kept");
	assert.match((await bench.physical()).reason!, /does not know of/);
	await bench.lvm.run("lvremove", "-y", "vg0/second");
	await bench.rounds(4);
	assert.match((await bench.physical()).reason!, /does not know of/);
	assert.equal(await bench.dropped(), 20 * MIB);
	assert.ok(isSame(await bench.read(free, foreign.length), foreign));
	assert.ok(isSame(await bench.read(second, 20 * MIB), contents.get("second")!));
});

test("without being asked for, free extents are kept; what was freed before the disk was opened goes once they aren't", async (t) => {
	if (!requireTool(t, ...TOOLS)) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: `${DISK_MIB}M` });
	{
		await using bench = await Bench.open(folder, disk);
		await bench.fill();
		await bench.lvm.run("lvremove", "-y", "vg0/first");
		await bench.rounds(4);
		const { phase, reason } = await bench.physical();
		assert.equal(phase, "kept");
		assert.match(reason!, /--lvm-free drop/);
		assert.equal(await bench.dropped(), 0);
	}
	{
		await using bench = await Bench.open(folder, disk, "--lvm-free", "drop");
		await bench.reachesDropped(20 * MIB);
		assert.ok(!isZero(await bench.read(await bench.startOf("second"), MIB)));
		// Of this one the newest metadata is known to be newer than its content.
		await bench.lvm.run("lvremove", "-y", "vg0/second");
		await bench.reachesDropped(40 * MIB);
	}
});
