// Disk commands: what can be asked of a disk while its VM runs. Where a process serves the disk it does the work, asked
// over the disk's control socket (control.ts); otherwise the command opens the disk itself.
//
//   vmsweep clean DISK ─► runOnDisk ─┬─ served ─► control socket ─► diskCommands.clean.run(the served disk)
//                                    └─ at rest ─► open ──────────► diskCommands.clean.run(that disk)

import { resolve } from "node:path";
import * as v from "valibot";
import { VmsweepError } from "../foundations/errors.ts";
import type { CheckReport } from "./check.ts";
import { askServed } from "./control.ts";
import { isDiskServed } from "./disk-directory.ts";
import type { OnProgress } from "./progress.ts";
import { type CleanReport, ServedDisk } from "./served-disk.ts";
import type { SnapshotStatus } from "./snapshots.ts";
import type { VerifyPoint } from "./verify/point.ts";
import type { BlockReport } from "./why.ts";

/** A command: what it is told, and how it is done. Input and report travel as JSON. */
interface DiskCommand<Input, Report> {
	readonly input: v.GenericSchema<unknown, Input>;
	run(disk: ServedDisk, input: Input, onProgress: OnProgress): Promise<Report>;
}

const diskCommand = <Input, Report>(
	input: v.GenericSchema<unknown, Input>,
	run: DiskCommand<Input, Report>["run"],
): DiskCommand<Input, Report> => ({ input, run });

const snapshotName = v.strictObject({ name: v.string() });

/** All of them, by the name under which they are asked for. */
export const diskCommands = {
	/** Cleans all that can be cleaned now; with the VM off for good also what only its memory could have told otherwise. */
	clean: diskCommand(
		v.strictObject({ vmOff: v.boolean() }),
		(disk, { vmOff }, onProgress): Promise<CleanReport> =>
			disk.cleanNow({
				vmOff,
				onProgress: ({ droppedBytes, movedBytes }) =>
					onProgress({ step: `cleaning ${disk.path}`, done: droppedBytes + movedBytes, total: null }),
			}),
	),
	/** A byte of the disk. */
	why: diskCommand(
		v.strictObject({ at: v.pipe(v.number(), v.safeInteger(), v.minValue(0)) }),
		(disk, { at }): Promise<BlockReport> => disk.why(at),
	),
	snapshot: diskCommand(snapshotName, (disk, { name }): Promise<SnapshotStatus> => disk.takeSnapshot(name)),
	verifyPoint: diskCommand(snapshotName, (disk, { name }): Promise<VerifyPoint> => disk.verifyPoint(name)),
	deleteSnapshot: diskCommand(snapshotName, async (disk, { name }): Promise<{ readonly name: string }> => {
		await disk.deleteSnapshot(name);
		return { name };
	}),
	/** Sizes in bytes. */
	resize: diskCommand(
		v.strictObject({ size: v.pipe(v.number(), v.safeInteger(), v.minValue(1)) }),
		async (disk, { size }): Promise<{ readonly size: number; readonly notes: readonly string[] }> => {
			const notes = await disk.upkeep.resize(size);
			return { size: disk.size, notes };
		},
	),
	/** Bytes per second; null for no limit. */
	check: diskCommand(
		v.strictObject({ repair: v.boolean(), bytesPerSecond: v.nullable(v.pipe(v.number(), v.finite(), v.gtValue(0))) }),
		(disk, { repair, bytesPerSecond }, onProgress): Promise<CheckReport> =>
			disk.upkeep.check({ repair, onProgress, ...(bytesPerSecond === null ? {} : { bytesPerSecond }) }),
	),
} as const;

export type DiskCommandName = keyof typeof diskCommands;
export type InputOf<Name extends DiskCommandName> = v.InferOutput<(typeof diskCommands)[Name]["input"]>;
export type ReportOf<Name extends DiskCommandName> = Awaited<ReturnType<(typeof diskCommands)[Name]["run"]>>;

export interface RunOptions {
	readonly onProgress?: OnProgress;
	/** One line about something an operator should know. */
	readonly onEvent?: (line: string) => void;
}

/** Runs a command on a disk, served or not. Throws what the command throws, and what opening the disk does. */
export async function runOnDisk<Name extends DiskCommandName>(
	path: string,
	name: Name,
	input: InputOf<Name>,
	{ onProgress = () => {}, onEvent = () => {} }: RunOptions = {},
): Promise<ReportOf<Name>> {
	const directory = resolve(path);
	if (await isDiskServed(directory)) return (await askServed(directory, name, input, onProgress)) as ReportOf<Name>;
	await using disk = await ServedDisk.open(directory, { onEvent });
	return (await runCommand(disk, name, input, onProgress)) as ReportOf<Name>;
}

/** Runs a command on an open disk. Throws USAGE where the input isn't what the command takes. */
export async function runCommand(
	disk: ServedDisk,
	name: DiskCommandName,
	input: unknown,
	onProgress: OnProgress,
): Promise<unknown> {
	const command = diskCommands[name] as unknown as DiskCommand<unknown, unknown>;
	const parsed = v.safeParse(command.input, input);
	if (!parsed.success)
		throw new VmsweepError("USAGE", `${name}: ${parsed.issues[0].message}. Ask with the vmsweep of the server.`);
	return await command.run(disk, parsed.output, onProgress);
}
