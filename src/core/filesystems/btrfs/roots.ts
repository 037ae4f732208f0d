// Roots: where the trees that know about space begin, and whether anything is under way that moves space around.

import { VmsweepError } from "../../../foundations/errors.ts";
import { ChunkCollector, type ChunkMap, systemChunks } from "./chunks.ts";
import { keysOf } from "./keys.ts";
import {
	BALANCE_OBJECTID,
	CHUNK_OBJECTID,
	DEVICE_ITEMS_OBJECTID,
	DeviceExtent,
	DeviceItem,
	DeviceReplace,
	ItemType,
	Key,
	RELOCATION_OBJECTID,
	REPLACE_AT_REST,
	RootItem,
	TreeId,
} from "./layout.ts";
import type { Geometry, TreeRoot } from "./open.ts";
import type { TreeReader } from "./tree.ts";

/** Reads the chunk tree with the help of the superblock's own chunks. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
export async function readChunks(geometry: Geometry, readerOf: (chunks: ChunkMap) => TreeReader): Promise<ChunkMap> {
	const system = systemChunks(geometry);
	const collector = new ChunkCollector(geometry);
	let devices = 0;
	const ranges = [keysOf(DEVICE_ITEMS_OBJECTID, ItemType.deviceItem), keysOf(CHUNK_OBJECTID, ItemType.chunk)];
	await readerOf(system).walk(geometry.chunkTree, ranges, (leaf, keyAt, dataAt, size) => {
		if (Key.read.type(leaf, keyAt) === ItemType.chunk) {
			collector.add(leaf, keyAt, dataAt, size);
			return;
		}
		devices++;
		if (size < DeviceItem.size) throw damaged("its device item is too short");
		const { deviceId, totalBytes } = DeviceItem.at(leaf, dataAt);
		if (deviceId !== geometry.deviceId || totalBytes !== geometry.deviceBytes)
			throw damaged("its superblock and its chunk tree disagree about the device");
	});
	if (devices !== 1) throw damaged(`its chunk tree has ${devices} devices, its superblock one`);
	return collector.finish(system);
}

/** Trees by their ids; those that the volume has. */
export type Roots = ReadonlyMap<number, TreeRoot>;

/** Reads the root tree. Throws VOLUME_UNSUPPORTED while a balance or another relocation is under way. */
export async function readRoots(reader: TreeReader, geometry: Geometry): Promise<Roots> {
	const roots = new Map<number, TreeRoot>();
	const trees = [TreeId.extent, TreeId.device, TreeId.freeSpace, TreeId.blockGroup];
	const ranges = [
		...trees.map((tree) => keysOf(tree, ItemType.rootItem)),
		keysOf(RELOCATION_OBJECTID, ItemType.rootItem),
		keysOf(BALANCE_OBJECTID, ItemType.temporary),
	];
	await reader.walk(geometry.rootTree, ranges, (leaf, keyAt, dataAt, size) => {
		const tree = Key.read.objectid(leaf, keyAt);
		if (!trees.some((each) => each === tree))
			throw new VmsweepError(
				"VOLUME_UNSUPPORTED",
				"a balance of it is under way or paused; let it finish, or cancel it",
			);
		if (size < RootItem.size || roots.has(tree)) throw damaged(`the root item of tree ${tree} is wrong`);
		const { bytenr, generation, level } = RootItem.at(leaf, dataAt);
		roots.set(tree, { tree, logical: bytenr, generation, level });
	});
	return roots;
}

/** The root of a tree that must be there. */
export function rootOf(roots: Roots, tree: number, name: string): TreeRoot {
	const root = roots.get(tree);
	if (root === undefined) throw damaged(`it has no ${name} tree`);
	return root;
}

/**
 * Compares the device tree, by which the kernel gives out space of the device, with the chunks. Throws VOLUME_DAMAGED
 * where they disagree, and VOLUME_UNSUPPORTED while the device is being replaced.
 */
export async function checkDevice(
	reader: TreeReader,
	geometry: Geometry,
	chunks: ChunkMap,
	root: TreeRoot,
): Promise<void> {
	const ranges = [keysOf(0, ItemType.deviceReplace), keysOf(geometry.deviceId, ItemType.deviceExtent)];
	let next = 0;
	await reader.walk(root, ranges, (leaf, keyAt, dataAt, size) => {
		if (Key.read.type(leaf, keyAt) === ItemType.deviceReplace) {
			if (size < DeviceReplace.size || !REPLACE_AT_REST.includes(DeviceReplace.read.state(leaf, dataAt)))
				throw new VmsweepError("VOLUME_UNSUPPORTED", "its device is being replaced; let that finish, then try again");
			return;
		}
		const at = Key.read.offset(leaf, keyAt);
		const stripe = chunks.stripes[next++];
		const fits =
			size >= DeviceExtent.size &&
			stripe?.physical === at &&
			stripe.length === DeviceExtent.read.length(leaf, dataAt) &&
			chunks.chunks[stripe.chunk]!.start === DeviceExtent.read.chunkOffset(leaf, dataAt);
		if (!fits) throw damaged(`its device tree and its chunk tree disagree about byte ${at} of the device`);
	});
	if (next !== chunks.stripes.length)
		throw damaged(`its device tree has ${next} extents, its chunk tree ${chunks.stripes.length} stripes`);
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `${what}; run btrfs check`);
