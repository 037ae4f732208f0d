// qcow2 images of all kinds to mutate, made and filled by QEMU's tools.

import { readFile, writeFile } from "node:fs/promises";
import { unpack } from "../../src/adapters/images/unpack.ts";
import type { ImageFile } from "../../src/core/images/image-file.ts";
import { Qcow2Disk } from "../../src/core/images/qcow2/disk.ts";
import { type Qcow2Header, readHeader } from "../../src/core/images/qcow2/header.ts";
import { Extension, HeaderV2, HeaderV3, SnapshotEntry } from "../../src/core/images/qcow2/layout.ts";
import { readSnapshots, type SnapshotTable } from "../../src/core/images/qcow2/snapshots.ts";
import { damagedImage, MappingTables } from "../../src/core/images/qcow2/tables.ts";
import type { VirtualDisk } from "../../src/core/images/virtual-disk.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { activity, io, makeImage, memoryDisk, type Variant, withoutCompressed } from "../interop/qcow2-images.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { type Random, seededRandom } from "../support/randomness.ts";
import type { ImageTarget } from "./image-fuzz.ts";
import { layoutOf, packedPlace, type Qcow2Layout, settleCounts } from "./qcow2-layout.ts";
import { scramble } from "./reader-fuzz.ts";
import { scrambleAt } from "./seeded-fuzz.ts";
import { SparseImage } from "./sparse-image.ts";

const KIB = 1024;

interface Kind {
	readonly options: string;
	readonly cluster: number;
	readonly size: number;
	readonly snapshots?: boolean;
	readonly backing?: boolean;
}

const kinds: readonly Kind[] = [
	{ options: "compat=0.10,cluster_size=512", cluster: 512, size: 100 * KIB, snapshots: true },
	{ options: "compat=0.10,cluster_size=4096", cluster: 4096, size: 300 * KIB, backing: true },
	{ options: "cluster_size=512,refcount_bits=8", cluster: 512, size: 100 * KIB, snapshots: true },
	{ options: "cluster_size=1024,refcount_bits=64", cluster: 1024, size: 200 * KIB, backing: true },
	{ options: "cluster_size=2048,refcount_bits=1", cluster: 2048, size: 300 * KIB },
	{ options: "cluster_size=4096,compression_type=zstd", cluster: 4096, size: 400 * KIB, backing: true },
	{ options: "cluster_size=8192,lazy_refcounts=on,refcount_bits=2", cluster: 8192, size: 500 * KIB },
	{ options: "cluster_size=16384,extended_l2=on", cluster: 16_384, size: 1000 * KIB, snapshots: true },
	{
		options: "cluster_size=65536,extended_l2=on,compression_type=zstd",
		cluster: 65_536,
		size: 1500 * KIB,
		backing: true,
	},
	{ options: "cluster_size=65536", cluster: 65_536, size: 1500 * KIB, snapshots: true },
	{ options: "cluster_size=65536,data_file=DATA", cluster: 65_536, size: 1500 * KIB },
	{ options: "cluster_size=4096,data_file=DATA,data_file_raw=on", cluster: 4096, size: 300 * KIB },
	{ options: "cluster_size=2097152,refcount_bits=32", cluster: 2048 * KIB, size: 6 * 2048 * KIB },
];

const DATA = "data";

export interface Qcow2Target extends ImageTarget {
	readonly backing: VirtualDisk | null;
	/** Reference counts that fit the mutated tables. */
	settle(random: Random): string;
}

export async function qcow2Targets(): Promise<Qcow2Target[]> {
	const targets: Qcow2Target[] = [];
	for (const [index, kind] of kinds.entries()) targets.push(await makeTarget(kind, index));
	return targets;
}

async function makeTarget({ options, cluster, size, snapshots, backing }: Kind, seed: number): Promise<Qcow2Target> {
	const random = seededRandom(seed);
	await using folder = await temporaryFolder();
	const dataFile = options.includes("data_file");
	const variant: Variant = { name: "", options, cluster, dataFile };
	let below: Uint8Array | null = null;
	if (backing === true) {
		below = random.bytes(size / 2);
		await writeFile(folder.file("below"), below);
	}
	const more = below === null ? [] : ["-b", folder.file("below"), "-F", "raw"];
	const path = await makeImage(folder, variant, "image", size, ...more);
	await io(path, activity(random, variant, size, cluster > 65_536 ? 6 : 30));
	for (const name of snapshots === true ? ["one", "two"] : []) {
		await runOk("qemu-img", ["snapshot", "-c", name, path]);
		await io(path, activity(random, withoutCompressed(variant), size, 12));
	}
	// Half of it can be compressed: so these clusters take several sectors, and share them. Only what holds nothing can be
	// written so, and version 2 can't discard over a backing file.
	await writeFile(folder.file("half"), Buffer.concat([random.bytes(cluster / 2), Buffer.alloc(cluster / 2)]));
	const places = dataFile || (below !== null && options.includes("0.10")) ? [] : [1, 2, 3].map((at) => at * cluster);
	const pack = (at: number): string => `write -c -s ${folder.file("half")} ${at} ${cluster}`;
	await io(
		path,
		places.flatMap((at) => [`discard ${at} ${cluster}`, pack(at)]),
	);
	const file = await readFile(path);
	// QEMU's check, too, takes the last cluster as a whole one.
	const bytes = new Uint8Array(Math.ceil(file.length / cluster) * cluster);
	bytes.set(file);
	const image = SparseImage.of(bytes);
	const disk = below === null ? null : memoryDisk(below);
	return {
		name: `qcow2, ${options}${snapshots === true ? ", snapshots" : ""}${backing === true ? ", backing" : ""}`,
		image,
		parts: new Map(dataFile ? [[DATA, await SparseImage.load(`${path}.data`)]] : []),
		backing: disk,
		mutate: (random) => mutateQcow2(image, random),
		settle: (random) => settleCounts(image, random),
		open: async (opened, openPart) => (await openQcow2(opened, disk, openPart)).disk,
	};
}

export interface OpenQcow2 {
	readonly header: Qcow2Header;
	readonly snapshotTable: SnapshotTable;
	readonly disk: Qcow2Disk;
	readonly tables: MappingTables;
	/** The disk as one of its snapshots has it. */
	snapshotDisk(snapshot: { readonly l1Offset: number; readonly l1Entries: number }): Promise<Qcow2Disk>;
}

/** Opens an image as the adapter does. */
export async function openQcow2(
	file: ImageFile,
	below: VirtualDisk | null,
	openPart: (name: string) => Promise<ImageFile>,
): Promise<OpenQcow2> {
	const path = "image";
	const header = await readHeader(file, path);
	const { l1Offset, l1Needed } = header;
	const tables = await MappingTables.open(file, header, path, { l1Offset, l1Entries: l1Needed });
	const snapshotTable = await readSnapshots(file, header, path);
	if (header.dataFile?.name === null) throw damagedImage(path, "its header doesn't name its data file");
	const dataFile = header.dataFile === null ? null : await openPart(DATA);
	const backing = header.backing === null ? null : below;
	const diskOf = (tables: MappingTables): Qcow2Disk =>
		new Qcow2Disk({ path, file, header, tables, dataFile, backing, decompress: unpack });
	return {
		header,
		snapshotTable,
		disk: diskOf(tables),
		tables,
		snapshotDisk: async (l1) => diskOf(await MappingTables.open(file, header, path, l1)),
	};
}

function mutateQcow2(image: SparseImage, random: Random): string {
	const layout = layoutOf(image);
	if (layout === undefined) return "nothing";
	switch (random.below(12)) {
		case 0:
		case 1:
			return mutateHeader(image, random);
		case 2: {
			const { at, entries } = random.pick(layout.l1Tables);
			return repoint(image, at + 8 * random.below(Math.min(entries, 20)), layout, random, "L1 table");
		}
		case 3: {
			if (layout.snapshotEntries.length === 0) {
				const { at, entries } = layout.refcountTable;
				return repoint(image, at + 8 * random.below(Math.min(entries, 4)), layout, random, "refcount table");
			}
			const at = random.pick(layout.snapshotEntries);
			const [field, offset] = random.pick(Object.entries(SnapshotEntry.offset));
			if (field === "l1TableOffset") return repoint(image, at, layout, random, "snapshot's L1 table");
			scrambleAt(image, at + offset, random, random.pick([2, 4]));
			return `snapshot at ${at}: ${field}`;
		}
		default:
			return mutateL2(image, layout, random);
	}
}

function mutateHeader(image: SparseImage, random: Random): string {
	const fields = { ...HeaderV2.offset, ...HeaderV3.offset };
	switch (random.below(5)) {
		case 0: {
			const length = random.chance(0.5) ? undefined : random.pick([0, 8, 16, 24, 384]);
			return otherExtension(image, random.pick([UNKNOWN_EXTENSION, ...Object.values(Extension)]), length);
		}
		case 1: {
			const at = fields.autoclearHigh + random.below(8);
			scrambleAt(image, at, random, 1);
			return `autoclear bits at ${at}`;
		}
		case 2: {
			const bytes = new Uint8Array(8);
			const size = Number(viewOf(image.bytes(fields.size, 8)).getBigUint64(0));
			const factor = random.pick([0.5, 1, 1, 2, 1000]);
			viewOf(bytes).setBigUint64(0, BigInt(Math.max(0, Math.floor(size * factor) + random.between(-2000, 2000))));
			image.write(fields.size, bytes);
			return "disk size";
		}
		case 3: {
			const at = random.below(600);
			scrambleAt(image, at, random);
			return `header byte ${at}`;
		}
		default: {
			const [field, at] = random.pick(Object.entries(fields));
			scrambleAt(image, at, random, random.pick([1, 4, 8]));
			return `header: ${field}`;
		}
	}
}

const UNKNOWN_EXTENSION = 0x1234_5678;

/** The first extension of the header, which names features, becomes another one. */
function otherExtension(image: SparseImage, type: number, length?: number): string {
	const head = viewOf(image.bytes(0, 512));
	const at = HeaderV2.read.version(head, 0) === 2 ? HeaderV2.size : HeaderV3.read.headerLength(head, 0);
	if (at + 8 > 512) return "nothing";
	head.setUint32(at, type);
	if (length !== undefined) head.setUint32(at + 4, length);
	image.write(at, new Uint8Array(head.buffer, at, 8));
	return `extension ${type.toString(16)} of ${length ?? "the same number of"} bytes`;
}

/** Something that nobody knows, and that may refer to any cluster. */
export const addUnknownPart = (image: SparseImage): string => otherExtension(image, UNKNOWN_EXTENSION);

function mutateL2(image: SparseImage, layout: Qcow2Layout, random: Random): string {
	const { l2Tables, entryBytes, clusterSize } = layout;
	const tables = [...l2Tables.keys()].filter((table) => table + clusterSize <= image.size);
	if (tables.length === 0) return "nothing";
	// Most disks here need no more than the first entries of a table.
	const entries = Math.min(clusterSize / entryBytes, random.chance(0.9) ? 100 : clusterSize);
	const entryIn = (): number => random.pick(tables) + entryBytes * random.below(entries);
	const at = entryIn();
	const view = viewOf(image.bytes(at, 8));
	const [high, low] = [view.getUint32(0), view.getUint32(4)];
	switch (random.below(9)) {
		case 8: {
			// Nearly empty: what is left may go, and the table with it.
			const table = random.pick(tables);
			const left = entryBytes * random.pick([0, 1, 3]);
			image.write(table + left, new Uint8Array(clusterSize - left));
			return `L2 table at ${table} cleared from byte ${left} on`;
		}
		case 0: {
			const from = entryIn();
			const bytes = image.bytes(from, entryBytes);
			if ((bytes[0]! & 0x40) !== 0 && random.chance(0.5)) shorten(viewOf(bytes), clusterSize, random);
			image.write(at, bytes);
			return `L2 entry from ${from} to ${at}`;
		}
		case 1:
			scrambleAt(image, at + (entryBytes === 16 ? random.pick([8, 12]) : 0), random);
			return `L2 entry at ${at}, its bits`;
		case 2:
			image.write(at, new Uint8Array(entryBytes));
			return `L2 entry at ${at} cleared`;
		case 3: {
			if ((high & 0x4000_0000) === 0) return repoint(image, at, layout, random, "L2 entry");
			const place = packedPlace(layout, high, low);
			scrambleAt(image, place.host + random.below(Math.min(place.length, 40)), random);
			return `packed bytes at ${place.host}`;
		}
		case 4: {
			// A compressed cluster in another place, or of another length.
			const bytes = image.bytes(at, 8);
			scramble(bytes.subarray(random.pick([0, 1, 5, 6, 7])), random, 2);
			bytes[0] = (bytes[0]! & 0x3f) | 0x40;
			image.write(at, bytes);
			return `L2 entry at ${at} compressed`;
		}
		default:
			return repoint(image, at, layout, random, "L2 entry");
	}
}

/** Leaves a compressed cluster where it is, but with fewer sectors. */
function shorten(entry: DataView, clusterSize: number, random: Random): void {
	const shift = BigInt(62 - (Math.log2(clusterSize) - 8));
	const value = entry.getBigUint64(0);
	const sectors = (value & ((1n << 62n) - 1n)) >> shift;
	entry.setBigUint64(0, value - (BigInt(random.below(Number(sectors) + 1)) << shift));
}

/** Lets a pointer lead elsewhere: to another cluster in use or not, inside one, behind the end, nowhere. */
function repoint(image: SparseImage, at: number, layout: Qcow2Layout, random: Random, what: string): string {
	const { clusterSize, clusters, references } = layout;
	if (at < 0 || at + 8 > image.size) return "nothing";
	const bytes = image.bytes(at, 8);
	const view = viewOf(bytes);
	const target =
		clusterSize *
		random.pick([
			0,
			random.pick([...references.keys()]),
			random.pick([...references.keys()]),
			random.below(clusters),
			clusters - 1,
			clusters,
		]);
	const offset = target + (random.chance(0.1) ? 512 : 0);
	const flags = random.chance(0.7) ? (bytes[0]! & 0x80) << 24 : random.pick([0, 0x8000_0000, 0x4000_0000, 0x0100_0000]);
	view.setUint32(0, (Math.floor(offset / 2 ** 32) | flags) >>> 0);
	view.setUint32(4, ((offset % 2 ** 32) + (random.chance(0.1) ? random.pick([1, 2, 256]) : 0)) >>> 0);
	image.write(at, bytes);
	return `${what} at ${at} leads to ${offset}`;
}
