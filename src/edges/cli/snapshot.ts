// vmsweep snapshot DISK [NAME]: takes a snapshot, deletes one, or lists them.

import { CommanderError } from "commander";
import { formatBytes } from "../../foundations/units.ts";
import { diskStatus } from "../../services/control-at-rest.ts";
import type { SnapshotStatus } from "../../services/snapshots.ts";
import { runWithBar } from "./disk-command.ts";
import { formatTable, print, printJson } from "./output.ts";

interface SnapshotOptions {
	readonly delete?: boolean;
	readonly json?: boolean;
}

export async function snapshot(
	path: string,
	name: string | undefined,
	{ delete: isDeleting = false, json = false }: SnapshotOptions,
): Promise<void> {
	if (name === undefined) {
		if (isDeleting) throw new CommanderError(2, "vmsweep.snapshot", "name the snapshot to delete");
		const { snapshots } = await diskStatus(path);
		return await (json ? printJson(snapshots) : print(describeSnapshots(path, snapshots)));
	}
	if (isDeleting) {
		const deleted = await runWithBar(path, "deleteSnapshot", { name }, `deleting ${path}@${name}`);
		return await (json ? printJson(deleted) : print(`${path}@${name}: deleted\n`));
	}
	const taken = await runWithBar(path, "snapshot", { name }, `taking ${path}@${name}`);
	if (json) return await printJson(taken);
	await print(`${path}@${name}: taken, log position ${taken.position}\n`);
}

function describeSnapshots(path: string, snapshots: readonly SnapshotStatus[]): string {
	if (snapshots.length === 0) return `${path} has no snapshots\n`;
	const rows = snapshots.map(({ name, created, size, position, hostBytes, complete }) => [
		name,
		complete ? created : `${created}, not complete yet`,
		formatBytes(size),
		String(position),
		formatBytes(hostBytes),
	]);
	return formatTable([["SNAPSHOT", "TAKEN", "SIZE", "POSITION", "KEEPS"], ...rows], [2, 3, 4]);
}
