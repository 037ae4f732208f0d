// vmsweep create DISK: makes a disk, empty or around an image that is there already.

import { relative } from "node:path";
import { CommanderError } from "commander";
import { byteCount, formatBytes } from "../../foundations/units.ts";
import { createDisk } from "../../services/create.ts";
import { print, printJson } from "./output.ts";

interface CreateOptions {
	readonly size?: number;
	readonly format?: "raw" | "qcow2";
	readonly backing?: string;
	readonly second?: string;
	readonly logLimit?: number;
	readonly json?: boolean;
}

export async function create(
	directory: string,
	{ size, format, backing, second, logLimit, json = false }: CreateOptions,
): Promise<void> {
	if (size === undefined && backing === undefined && second === undefined)
		throw new CommanderError(2, "vmsweep.create", "give --size for a new disk, or --second for an image that is there");
	const fresh = {
		kind: "new",
		...(size === undefined ? {} : { size: byteCount(size) }),
		...(format === undefined ? {} : { format }),
		...(backing === undefined ? {} : { backing }),
	} as const;
	const { description, notes } = await createDisk({
		directory,
		second: second === undefined ? fresh : { kind: "adopt", path: second },
		...(logLimit === undefined ? {} : { limitBytes: logLimit }),
	});
	if (json) return await printJson({ path: directory, ...description, notes });
	const shown = relative(".", directory) || ".";
	const around = second !== undefined ? ` around ${second}` : backing !== undefined ? ` on ${backing}` : "";
	const lines = [
		`${shown}: made, ${formatBytes(description.size)}${around}`,
		...notes.map((note) => `note: ${note}`),
		`next: vmsweep serve ${shown}`,
	];
	await print(`${lines.join("\n")}\n`);
}
