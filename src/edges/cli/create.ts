// vmsweep create DISK: makes a disk, empty or around an image that is there already.

import { relative } from "node:path";
import { Command, CommanderError, Option } from "commander";
import { byteCount, formatBytes } from "../../foundations/units.ts";
import { createDisk } from "../../services/create.ts";
import { print, printJson } from "./output.ts";
import { parseSize } from "./sizes.ts";

export const createCommand = (): Command =>
	new Command("create")
		.description("make a disk: a new folder that holds or names both images")
		.argument("<disk>", "the disk's folder, to be made")
		.addOption(new Option("--size <size>", "size of a new, empty disk").argParser(parseSize).conflicts("second"))
		.option("--second <image>", "adopt this raw image or block device, in place, as the second image")
		.option("--log-limit <size>", "most host space that the first image may take", parseSize)
		.option("--json", "print JSON")
		.action(create);

interface CreateOptions {
	readonly size?: number;
	readonly second?: string;
	readonly logLimit?: number;
	readonly json?: boolean;
}

async function create(directory: string, { size, second, logLimit, json = false }: CreateOptions): Promise<void> {
	if (size === undefined && second === undefined)
		throw new CommanderError(2, "vmsweep.create", "give --size for a new disk, or --second for an image that is there");
	const { description, notes } = await createDisk({
		directory,
		second: second !== undefined ? { kind: "adopt", path: second } : { kind: "new", size: byteCount(size!) },
		...(logLimit === undefined ? {} : { limitBytes: logLimit }),
	});
	if (json) return await printJson({ path: directory, ...description, notes });
	const shown = relative(".", directory) || ".";
	const around = second === undefined ? "" : ` around ${second}`;
	const lines = [
		`${shown}: made, ${formatBytes(description.size)}${around}`,
		...notes.map((note) => `note: ${note}`),
		`next: vmsweep serve ${shown}`,
	];
	await print(`${lines.join("\n")}\n`);
}
