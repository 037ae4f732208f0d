// Disks with partition tables, swap areas and packed file systems to mutate. Tables get their checksums again.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { SWAP_HEADER_AT, SwapHeader } from "../../src/core/filesystems/swap/layout.ts";
import { GptEntry, GptHeader } from "../../src/core/volumes/gpt.ts";
import { MbrEntry } from "../../src/core/volumes/mbr.ts";
import { crc32 } from "../../src/foundations/crc.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { type Random, seededRandom } from "../support/randomness.ts";
import { scramble } from "./reader-fuzz.ts";
import { damageAnywhere, scrambleAt } from "./seeded-fuzz.ts";
import { SparseImage } from "./sparse-image.ts";

const MIB = 1 << 20;
const MBR_ENTRIES_AT = 0x1be;

export interface VolumeTarget {
	readonly name: string;
	readonly image: SparseImage;
	/** Nothing of it is ever free. */
	readonly isFull: boolean;
	mutate(random: Random): string;
}

interface Table {
	readonly name: string;
	readonly sectorSize: number;
	readonly script: string;
	/** Options of sgdisk for what sfdisk can't make. */
	readonly after?: readonly string[];
}

const tables: readonly Table[] = [
	{ name: "GPT", sectorSize: 512, script: "label: gpt\nstart=2048,size=6144\nstart=8192,size=4096\n" },
	{
		name: "GPT, sectors of 4096 bytes",
		sectorSize: 4096,
		script: "label: gpt\nstart=256,size=768\nstart=1024,size=512\n",
	},
	{
		name: "hybrid",
		sectorSize: 512,
		script: "label: gpt\nstart=2048,size=6144\nstart=8192,size=4096\n",
		after: ["-h", "1:2"],
	},
	{
		name: "MBR",
		sectorSize: 512,
		script:
			"label: dos\n1: start=2048,size=6144,type=83\n2: start=8192,size=14000,type=5\n5: start=8256,size=4096,type=82\n6: start=13000,size=4000,type=83\n7: start=18000,size=2000,type=83\n",
	},
];

export async function tableTargets(): Promise<VolumeTarget[]> {
	const targets: VolumeTarget[] = [];
	for (const { name, sectorSize, script, after } of tables) {
		await using folder = await temporaryFolder();
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "12M", disk]);
		const device = (await runOk("losetup", ["-f", "--show", "-b", String(sectorSize), disk])).trim();
		try {
			await runOk("sfdisk", ["-q", "--no-reread", device], { input: script });
			if (after !== undefined) await runOk("sgdisk", [...after, device]);
		} finally {
			await runOk("losetup", ["-d", device]);
		}
		const bytes = await readFile(disk);
		bytes.set(await madeBy(folder, "2M", "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024"), MIB);
		bytes.set(await madeBy(folder, "1M", "mkswap", "-q"), name === "MBR" ? 8256 * 512 : 4 * MIB);
		const image = SparseImage.of(bytes);
		const chain = bootRecords(bytes);
		const mutate = (random: Random): string =>
			name === "MBR" || random.chance(0.2)
				? mutateMbr(image, random.pick(chain), random)
				: mutateGpt(image, sectorSize, random);
		targets.push({ name, image, isFull: false, mutate: orAnywhere(image, mutate) });
	}
	return targets;
}

async function madeBy(
	folder: TemporaryFolder,
	size: string,
	program: string,
	...options: string[]
): Promise<Uint8Array> {
	const path = folder.file(program);
	await runOk("truncate", ["-s", size, path]);
	await runOk(program, [...options, path]);
	return await readFile(path);
}

const orAnywhere =
	(image: SparseImage, mutate: (random: Random) => string): VolumeTarget["mutate"] =>
	(random) =>
		random.chance(0.1) ? damageAnywhere(image, random) : mutate(random);

/** The first sector, and those of the chain of logical partitions. */
function bootRecords(bytes: Uint8Array): number[] {
	const places = [0];
	const extended = MbrEntry.at(viewOf(bytes), MBR_ENTRIES_AT + MbrEntry.size);
	if (extended.type !== 5) return places;
	for (let at = extended.firstSector * 512; ; ) {
		places.push(at);
		const next = MbrEntry.at(viewOf(bytes), at + MBR_ENTRIES_AT + MbrEntry.size);
		if (next.type !== 5) return places;
		at = (extended.firstSector + next.firstSector) * 512;
	}
}

function mutateMbr(image: SparseImage, at: number, random: Random): string {
	const entryAt = at + MBR_ENTRIES_AT + MbrEntry.size * random.below(random.chance(0.8) ? 2 : 4);
	if (entryAt + MbrEntry.size > image.size) return "nothing";
	const [field, offset] = random.pick(Object.entries(MbrEntry.offset));
	const entry = image.bytes(entryAt, MbrEntry.size);
	const view = viewOf(entry);
	if (random.chance(0.5)) scramble(entry.subarray(offset), random, 4);
	else if (field === "type") MbrEntry.write.type(view, 0, random.pick([0, 5, 0x0f, 0x83, 0x85, 0xee]));
	else if (field === "status") MbrEntry.write.status(view, 0, random.pick([0, 0x80]));
	else MbrEntry.write[field as "firstSector" | "sectorCount"](view, 0, random.pick(sectorsNear(image, 512, random)));
	image.write(entryAt, entry);
	return `boot record at ${at}: ${field} of the entry at ${entryAt}`;
}

/** Places that a partition may begin or end at, to overlap something, or to reach past the end. */
const sectorsNear = (image: SparseImage, sectorSize: number, random: Random): number[] => {
	const last = Math.floor(image.size / sectorSize);
	return [0, 1, 2, 34, 2048, 6144, 8192, last - 34, last - 1, last, last + 1, random.below(last + 100)];
};

function mutateGpt(image: SparseImage, sectorSize: number, random: Random): string {
	const lastAt = image.size - (image.size % sectorSize) - sectorSize;
	const places = random.pick([[sectorSize], [lastAt], [sectorSize, lastAt], [sectorSize, lastAt]]);
	const isEntry = random.chance(0.6);
	const headerField = random.pick(Object.entries(GptHeader.offset));
	const entryField = random.pick(Object.entries(GptEntry.offset));
	const index = random.below(3);
	const value = random.chance(0.5) ? random.pick(sectorsNear(image, sectorSize, random)) : undefined;
	const bytes = random.bytes(8);
	const length = random.pick([1, 4, 8]);
	for (const at of places) {
		if (at < 0 || at + sectorSize > image.size) continue;
		const header = image.bytes(at, sectorSize);
		const view = viewOf(header);
		const fields = GptHeader.at(view);
		const entriesBytes = fields.entryCount * fields.entrySize;
		const entriesAt = fields.entriesSector * sectorSize;
		if (isEntry && entriesBytes <= 1 << 20 && entriesAt + entriesBytes <= image.size && entriesBytes >= 512) {
			const entries = image.bytes(entriesAt, entriesBytes);
			const [field, offset] = entryField;
			const entryAt = index * GptEntry.size;
			if (value !== undefined && (field === "firstSector" || field === "lastSector"))
				GptEntry.write[field](viewOf(entries), entryAt, value);
			else entries.set(bytes.subarray(0, length), entryAt + offset);
			GptHeader.write.entriesChecksum(view, 0, crc32(entries));
			image.write(entriesAt, entries);
		} else header.set(bytes.subarray(0, length), headerField[1]);
		GptHeader.write.headerChecksum(view, 0, 0);
		const { headerSize } = GptHeader.at(view);
		GptHeader.write.headerChecksum(view, 0, crc32(header.subarray(0, Math.min(headerSize, sectorSize))));
		image.write(at, header);
	}
	return `GPT at ${places.join(" and ")}: ${isEntry ? `${entryField[0]} of entry ${index}` : headerField[0]}`;
}

/** Program and options of what makes a packed file system, and where its first record lies. */
const packers: Readonly<
	Record<string, { at: number; length: number; command: (image: string, content: string) => string[] }>
> = {
	squashfs: {
		at: 0,
		length: 96,
		command: (image, content) => ["mksquashfs", content, image, "-quiet", "-no-progress"],
	},
	erofs: { at: 1024, length: 128, command: (image, content) => ["mkfs.erofs", "--quiet", image, content] },
	iso9660: {
		at: 32_768,
		length: 2048,
		command: (image, content) => ["xorriso", "-as", "mkisofs", "-quiet", "-o", image, content],
	},
	cramfs: { at: 0, length: 64, command: (image, content) => ["mkfs.cramfs", content, image] },
};

export const PACKERS = ["mksquashfs", "mkfs.erofs", "xorriso", "mkfs.cramfs"] as const;

/** Packed file systems, and swap areas of two page sizes. */
export async function packedTargets(): Promise<VolumeTarget[]> {
	await using folder = await temporaryFolder();
	await mkdir(folder.file("content"));
	await writeFile(folder.file("content/file"), seededRandom(1).bytes(100_000));
	const targets: VolumeTarget[] = [];
	for (const [name, { at, length, command }] of Object.entries(packers)) {
		const path = folder.file(name);
		const [program, ...options] = command(path, folder.file("content")) as [string, ...string[]];
		await runOk(program, options);
		await runOk("truncate", ["-s", "+64K", path]);
		const image = await SparseImage.load(path);
		const mutate = (random: Random): string => {
			const field = at + random.below(length);
			scrambleAt(image, field, random);
			return `byte ${field}`;
		};
		targets.push({ name, image, isFull: true, mutate: orAnywhere(image, mutate) });
	}
	for (const pageSize of [4096, 65_536]) {
		const image = SparseImage.of(await madeBy(folder, "1M", "mkswap", "-q", "-p", String(pageSize)));
		const mutate = (random: Random): string => {
			const [field, offset] = random.pick(Object.entries(SwapHeader.offset));
			const at = random.chance(0.7) ? SWAP_HEADER_AT + offset : pageSize - random.between(1, 10);
			scrambleAt(image, at, random, random.pick([1, 4]));
			return `${field} or signature at ${at}`;
		};
		targets.push({ name: `swap, pages of ${pageSize}`, image, isFull: false, mutate: orAnywhere(image, mutate) });
	}
	return targets;
}
