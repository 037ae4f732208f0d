// `make bench`, second part: the offline tools against what others do the same job with. Whole processes, from the
// shell's point of view: starting Node is a part of vmsweep's time.
//
//   map      what is free on very large volumes: time, memory, bytes read
//   sweep    an aged image given back to the host in place: time, and space on the host afterwards
//   convert  an aged image copied without what its guest has deleted: time, bytes written
//
// Everything lies in the page cache, the peers take turns within a round, and another one begins in each round;
// medians count. Each sweep works on a fresh copy of the same aged image.

import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { isVmsweepError, VmsweepError } from "../src/foundations/errors.ts";
import { vmsweep as ownVmsweep } from "../test/support/processes.ts";
import { requirePrograms } from "../tools/required-programs.ts";
import { ScratchFolder } from "../tools/scratch-folder.ts";
import { type AgedType, agedTypes } from "./aged-image.ts";
import { chosen, positive } from "./choices.ts";
import { measureConverts } from "./converts.ts";
import { describeMachine, machineLines } from "./machine.ts";
import { measureMaps } from "./maps.ts";
import type { OfflineSettings } from "./offline-settings.ts";
import { measureSweeps } from "./sweeps.ts";

const jobs = ["map", "sweep", "convert"] as const;
type Job = (typeof jobs)[number];

const usage = `Usage: make bench, or: bench/offline.ts [options]
  --jobs A,B      only these: ${jobs.join(", ")}
  --types A,B     sweep only these file systems: ${Object.keys(agedTypes).join(", ")}
  --rounds N      rounds of each (default 3)
  --size MIB      size of the aged images in MiB (default 20480)
  --written MIB   bytes written to them, of which 60 % are deleted again (default 8192)
  --json FILE     all results too, as JSON
  --folder PATH   where the images go (default: /var/tmp)
  --vmsweep PATH  the vmsweep command to measure (default: this checkout's)`;

const MIB = 1 << 20;

try {
	await main(process.argv.slice(2));
} catch (error) {
	if (!isVmsweepError(error)) throw error;
	console.error(`bench: ${error.message}`);
	process.exitCode = error.exit;
}

async function main(programArguments: readonly string[]): Promise<void> {
	const values = parse(programArguments);
	if (values.help) return console.log(usage);
	const chosenJobs = chosen(values.jobs, jobs, "job");
	const settings: OfflineSettings = {
		rounds: positive(values.rounds ?? "3", "--rounds"),
		sizeBytes: positive(values.size ?? "20480", "--size") * MIB,
		writtenBytes: positive(values.written ?? "8192", "--written") * MIB,
		types: chosen(values.types, Object.keys(agedTypes) as AgedType[], "file system"),
		vmsweep: values.vmsweep ?? ownVmsweep,
	};
	requirePrograms("the benchmark", ["mke2fs", "mkfs.xfs", "mkfs.btrfs", "mkntfs", "fstrim", "partclone.ext4", "time"]);
	await using scratch = await ScratchFolder.make(values.folder ?? "/var/tmp", "vmsweep-bench-");
	const machine = await describeMachine(scratch.path, ["qemu-img"]);
	console.log(machineLines(machine).join("\n"));
	const results = {
		map: chosenJobs.includes("map") ? await measureMaps(scratch, settings) : [],
		sweep: chosenJobs.includes("sweep") ? await measureSweeps(scratch, settings) : [],
		convert: chosenJobs.includes("convert") ? await measureConverts(scratch, settings) : [],
	} satisfies Record<Job, unknown>;
	if (values.json === undefined) return;
	const facts = { date: new Date().toISOString(), machine, ...settings };
	await writeFile(values.json, `${JSON.stringify({ ...facts, ...results }, null, "\t")}\n`);
}

function parse(programArguments: readonly string[]) {
	const text = { type: "string" } as const;
	const options = {
		jobs: text,
		types: text,
		rounds: text,
		size: text,
		written: text,
		json: text,
		folder: text,
		vmsweep: text,
		help: { type: "boolean" },
	} as const;
	try {
		return parseArgs({ args: [...programArguments], options }).values;
	} catch (error) {
		throw new VmsweepError("USAGE", `${(error as Error).message}\n${usage}`);
	}
}
