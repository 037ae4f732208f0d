// What lies below a block device: whoever overwrites the device overwrites that, too.
//
//   partition ─► its disk      loop device ─► its file      LVM, dm-crypt, RAID ─► the devices that they are made of

import { readdir, readFile, realpath, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** True where the two paths lead to one thing, or one of them is made of the other. */
export async function shareStorage(one: string, other: string): Promise<boolean> {
	const [onePath, otherPath] = [await realpath(one), await realpath(other)];
	return (await withAllBelow(onePath)).has(otherPath) || (await withAllBelow(otherPath)).has(onePath);
}

/** A file or device with all that lies below it, by real paths. */
async function withAllBelow(path: string): Promise<ReadonlySet<string>> {
	const found = new Set([path]);
	// What is added while the set is walked is walked, too.
	for (const each of found) for (const below of await directlyBelow(each)) found.add(below);
	return found;
}

async function directlyBelow(path: string): Promise<readonly string[]> {
	if (!(await stat(path).catch(() => undefined))?.isBlockDevice()) return [];
	const folder = await realpath(`/sys/class/block/${basename(path)}`).catch(() => undefined);
	if (folder === undefined) return [];
	const below = (await readdir(join(folder, "slaves")).catch(() => [])).map((name) => `/dev/${name}`);
	const isPartition = await stat(join(folder, "partition")).catch(() => undefined);
	if (isPartition !== undefined) below.push(`/dev/${basename(dirname(folder))}`);
	const file = await readFile(join(folder, "loop/backing_file"), "utf8").catch(() => undefined);
	if (file !== undefined) below.push(file.trimEnd());
	return below;
}
