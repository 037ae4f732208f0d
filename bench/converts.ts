// Converting an aged ext4 image: only what its guest uses, against tools that know the file system and one that doesn't.

import { rm, stat } from "node:fs/promises";
import { runOk } from "../test/support/processes.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { makeAgedImage } from "./aged-image.ts";
import { type Contestant, type ContestResult, contest, contestTable } from "./contest.ts";
import type { OfflineSettings } from "./offline-settings.ts";
import { type Program, script } from "./timed.ts";

/** Prints a table per kind of target: time, space of the target; for qemu-img and vmsweep seconds per GiB written. */
export async function measureConverts(scratch: ScratchFolder, settings: OfflineSettings): Promise<ContestResult[]> {
	const source = scratch.file("aged.raw");
	await makeAgedImage(source, "ext4", settings);
	const all: ContestResult[] = [];
	const { vmsweep } = settings;
	const kinds: Record<string, (target: string) => Record<string, Program>> = {
		raw: (target) => ({
			"vmsweep convert": { command: [vmsweep, "convert", "--format", "raw", source, target] },
			"qemu-img convert": { command: ["qemu-img", "convert", "-f", "raw", "-O", "raw", source, target] },
			"e2image -rap": script('e2image -rap "$1" "$2"', source, target),
			"partclone -c": script('partclone.ext4 -c -F -s "$1" -O "$2"', source, target),
		}),
		qcow2: (target) => ({
			"vmsweep convert": { command: [vmsweep, "convert", "--format", "qcow2", source, target] },
			"qemu-img convert": { command: ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, target] },
		}),
		"qcow2, zstd": (target) => ({
			"vmsweep convert": { command: [vmsweep, "convert", "--format", "qcow2", "--compress", "zstd", source, target] },
			"qemu-img convert": {
				command: [
					"qemu-img",
					"convert",
					"-c",
					"-f",
					"raw",
					"-O",
					"qcow2",
					"-o",
					"compression_type=zstd",
					source,
					target,
				],
			},
		}),
	};
	for (const [kind, programs] of Object.entries(kinds)) {
		const target = scratch.file("target");
		const prepare = async (): Promise<void> => {
			await rm(target, { force: true });
			await runOk("sync", ["--file-system", source]);
		};
		const outcome = async (): Promise<number> => (await stat(target)).blocks * 512;
		const contestants = Object.entries(programs(target)).map(
			([name, program]): Contestant => ({ name, program, prepare, outcome }),
		);
		const results = await contest(scratch, `convert to ${kind}`, contestants, settings.rounds);
		console.log(`\nConvert to ${kind}\n\n${contestTable(results, "target")}\n\n${perByte(results)}`);
		all.push(...results);
		await rm(target, { force: true });
	}
	return all;
}

/** Seconds per GiB that was written: the fair comparison with a tool that copies more. */
const perByte = (results: readonly ContestResult[]): string =>
	results
		.filter(({ failed, outcome }) => failed === null && outcome !== null)
		.map(
			({ name, timing, outcome }) => `${name} ${(timing.seconds / (outcome! / 2 ** 30)).toFixed(2)} s per GiB written`,
		)
		.join(", ");
