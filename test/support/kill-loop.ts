// SIGKILL of `vmsweep serve` again and again, while fio writes and the cleaner moves: what fio wrote and flushed verifies
// afterwards, every time, also what was moved, and at last in the second image alone.

import assert from "node:assert/strict";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { type TemporaryFolder, temporaryFolder } from "./folders.ts";
import { createDisk, SweepServer } from "./loop-server.ts";
import { run, runOk, start, vmsweep } from "./processes.ts";
import { seededRandom, testSeed } from "./randomness.ts";

const MIB = 2 ** 20;

/** fio's options for the region whose content one round wrote. An older round's blocks would not pass for it. */
const region = (round: number): string[] => [
	"--name=kept",
	"--rw=randwrite",
	"--bs=4k",
	"--iodepth=32",
	"--size=16m",
	"--verify=pattern",
	`--verify_pattern=0x${(0x5eed_0000 + round).toString(16)}%o`,
	"--verify_fatal=1",
];

/** What differs between kinds of second image. All have 128 MiB. */
export interface KillLoopDisk {
	/** Makes the disk in a folder; returns its second image, with which `fio` or a converted copy is verified. */
	readonly make: (folder: TemporaryFolder, disk: string) => Promise<string>;
	/** Looks at the second image after each kill. */
	readonly afterKill?: (image: string) => Promise<void>;
	/** A raw file with the committed second image's content. */
	readonly asRaw?: (image: string, folder: TemporaryFolder) => Promise<string>;
}

const plain: KillLoopDisk = {
	make: async (_, disk) => {
		await createDisk(disk, { size: "128M" });
		return join(disk, "second.raw");
	},
};

/** Kills the server `rounds` times. The log is small, so that it is recycled and cleaned all the time. */
export async function killUnderFio(t: TestContext, rounds: number, kind: KillLoopDisk = plain): Promise<void> {
	const random = seededRandom(testSeed());
	t.diagnostic(`VMSWEEP_SEED=${random.seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	const second = await kind.make(folder, disk);
	let movedBytes = 0;
	for (let round = 0; round < rounds; round++) {
		await using server = await SweepServer.serve(disk, "--log-limit", "80M");
		const fio = (...options: readonly string[]) => [...options, "--ioengine=nbd", `--uri=${server.uri}`];
		if (round > 0) await runOk("fio", fio(...region(round - 1), "--verify_only=1"), { folder: folder.path });
		await runOk("fio", fio(...region(round), "--do_verify=0", "--end_fsync=1"), { folder: folder.path });
		const noise = ["--name=noise", "--rw=randwrite", "--bssplit=4k/60:16k/30:256k/10", "--iodepth=16"];
		const where = ["--offset=32m", "--size=64m", "--norandommap=1", "--time_based=1", "--runtime=600", "--fsync=200"];
		await using writer = start("fio", fio(...noise, ...where), { folder: folder.path });
		const goal = random.between(8, 200) * MIB;
		const { cleaner } = await server.reaches(({ guest }) => guest.writtenBytes > 16 * MIB + goal, "enough writes");
		movedBytes += cleaner.movedBytes;
		await server.kill();
		await writer.end();
		await kind.afterKill?.(second);
	}
	{
		await using server = await SweepServer.serve(disk);
		const verify = ["--ioengine=nbd", `--uri=${server.uri}`, ...region(rounds - 1), "--verify_only=1"];
		await runOk("fio", verify, { folder: folder.path });
		assert.equal((await server.stop()).exitCode, 0);
		assert.doesNotMatch(server.process.stderr, /"level":[56]0/, "the server complained");
	}
	await runOk(vmsweep, ["commit", disk]);
	const raw = (await kind.asRaw?.(second, folder)) ?? second;
	const image = [`--filename=${raw}`, "--ioengine=psync", "--verify_only=1"];
	await runOk("fio", [...region(rounds - 1), ...image], { folder: folder.path });
	// A check that passes whatever is there would be none.
	const wrong = await run("fio", [...region(rounds), ...image], { folder: folder.path });
	assert.notEqual(wrong.exitCode, 0, "fio verifies nothing");
	t.diagnostic(`moved ${(movedBytes / MIB).toFixed(1)} MiB up to a moment before the kills`);
	assert.ok(movedBytes > 0, "nothing was moved: the test is blind");
}
