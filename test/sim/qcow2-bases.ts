// qcow2 images that simulated histories begin with, made and filled by QEMU's own tools.

import { readFile, writeFile } from "node:fs/promises";
import { unpack } from "../../src/adapters/images/unpack.ts";
import { activity, io, memoryDisk, type Variant, withoutCompressed } from "../interop/qcow2-images.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import type { Base } from "./qcow2-history.ts";

/** What an image is like. */
export interface BaseKind {
	/** For `qemu-img create -o`. */
	readonly options: string;
	/** Its cluster size, in bytes. */
	readonly cluster: number;
	/** Of the disk, in bytes. */
	readonly size: number;
	/** So many bytes from the disk's start hold data for sure. */
	readonly filled?: number;
	readonly snapshot?: boolean;
	readonly backing?: boolean;
}

/** Makes an image of a kind. QEMU's tools must be there. */
export async function makeBase(kind: BaseKind, seed: number): Promise<Base> {
	const { options, cluster, size, filled, snapshot, backing } = kind;
	const random = seededRandom(seed);
	await using folder = await temporaryFolder();
	const path = folder.file("image");
	let below: Uint8Array | null = null;
	if (backing === true) {
		below = random.bytes(size / 2);
		await writeFile(folder.file("below"), below);
	}
	const more = below === null ? [] : ["-b", folder.file("below"), "-F", "raw"];
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, ...more, path, String(size)]);
	const variant: Variant = { name: "", options, cluster };
	await io(path, activity(random, variant, size, 30));
	if (filled !== undefined) await io(path, [`write -P 7 0 ${filled}`]);
	if (snapshot === true) {
		await runOk("qemu-img", ["snapshot", "-c", "one", path]);
		await io(path, activity(random, withoutCompressed(variant), size, 12));
		await runOk("qemu-img", ["snapshot", "-c", "two", path]);
		await io(path, activity(random, withoutCompressed(variant), size, 12));
	}
	const file = await readFile(path);
	const bytes = new Uint8Array(Math.ceil(file.length / cluster) * cluster);
	bytes.set(file);
	const disk = below === null ? null : memoryDisk(below);
	return {
		name: `${options}${snapshot === true ? ", snapshot" : ""}`,
		bytes,
		backing: disk,
		below,
		decompress: unpack,
	};
}
