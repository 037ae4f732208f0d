// VHD, VHDX and VDI images to mutate, made by qemu-img. Checksums are put right again after most mutations, so that more
// than their tests is reached.

import { Header as VdiHeader } from "../../src/core/images/vdi/layout.ts";
import { openVdi } from "../../src/core/images/vdi/open.ts";
import { checksumOf, DynamicHeader, Footer } from "../../src/core/images/vhd/layout.ts";
import { openVhd } from "../../src/core/images/vhd/open.ts";
import * as vhdx from "../../src/core/images/vhdx/layout.ts";
import { openVhdx } from "../../src/core/images/vhdx/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { MIB, makeRaw } from "../interop/image-formats.ts";
import { type LoggedWrite, logEntry, VhdxBytes, withChecksum } from "../interop/vhdx-log-writer.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { type Random, seededRandom } from "../support/randomness.ts";
import type { ImageTarget } from "./image-fuzz.ts";
import { scramble } from "./reader-fuzz.ts";
import { scrambleAt } from "./seeded-fuzz.ts";
import { SparseImage } from "./sparse-image.ts";

/** A raw image of some MiB, converted. */
async function converted(format: string, options: string, size: number): Promise<SparseImage> {
	await using folder = await temporaryFolder();
	const [raw, image] = [folder.file("raw"), folder.file("image")];
	await makeRaw(raw, size, 3);
	await runOk("qemu-img", ["convert", "-f", "raw", "-O", format, "-o", options, raw, image]);
	return await SparseImage.load(image);
}

const NO_PARTS: ImageTarget["parts"] = new Map();

/** Changes a record, and mostly puts its checksum right. */
function mutateRecord(
	image: SparseImage,
	random: Random,
	{ at, length, offset, seal }: { at: number; length: number; offset: number; seal?: (record: Uint8Array) => void },
): void {
	if (at < 0 || at + length > image.size) return;
	const record = image.bytes(at, length);
	scramble(record.subarray(offset), random, random.pick([4, 8]));
	if (random.chance(0.95)) seal?.(record);
	image.write(at, record);
}

export async function vhdTargets(): Promise<ImageTarget[]> {
	const targets: ImageTarget[] = [];
	for (const subformat of ["dynamic", "fixed"])
		for (const force of ["on", "off"]) {
			const image = await converted("vpc", `subformat=${subformat},force_size=${force}`, 5 * MIB + 1536);
			targets.push({
				name: `VHD, ${subformat}, force_size=${force}`,
				image,
				parts: NO_PARTS,
				mutate: (random) => mutateVhd(image, random),
				open: (file) => openVhd(file, "image"),
			});
		}
	return targets;
}

const seals = {
	footer: (record: Uint8Array): void =>
		Footer.write.checksum(viewOf(record), 0, checksumOf(record, Footer.offset.checksum)),
	dynamicHeader: (record: Uint8Array): void =>
		DynamicHeader.write.checksum(viewOf(record), 0, checksumOf(record, DynamicHeader.offset.checksum)),
	vhdxHeader: (record: Uint8Array): void => void withChecksum(record, vhdx.Header.offset.checksum),
	regionTable: (record: Uint8Array): void => void withChecksum(record, vhdx.RegionTable.offset.checksum),
};

function mutateVhd(image: SparseImage, random: Random): string {
	const headerAt = Footer.size;
	const header = DynamicHeader.at(viewOf(image.bytes(headerAt, DynamicHeader.size)));
	// A fixed image has its data there.
	const isDynamic = header.tableOffset > 0 && header.tableOffset < image.size;
	switch (isDynamic ? random.below(6) : 0) {
		case 0:
		case 1: {
			const back = image.size - Footer.size;
			const places = random.pick(isDynamic ? [[0], [back], [0, back]] : [[back]]);
			const [field, offset] = random.pick(Object.entries(Footer.offset));
			for (const at of places) mutateRecord(image, random, { at, length: Footer.size, offset, seal: seals.footer });
			return `footer at ${places.join(" and ")}: ${field}`;
		}
		case 2:
		case 3: {
			const [field, offset] = random.pick(Object.entries(DynamicHeader.offset));
			mutateRecord(image, random, { at: headerAt, length: DynamicHeader.size, offset, seal: seals.dynamicHeader });
			return `dynamic header: ${field}`;
		}
		case 4: {
			const at = header.tableOffset + 4 * random.below(4);
			scrambleAt(image, at, random, 4);
			return `table of blocks at ${at}`;
		}
		default: {
			if (header.tableOffset + 4 > image.size) return "nothing";
			const at = viewOf(image.bytes(header.tableOffset, 4)).getUint32(0) * 512 + random.below(512);
			scrambleAt(image, at, random);
			return `bitmap at ${at}`;
		}
	}
}

export async function vdiTargets(): Promise<ImageTarget[]> {
	const targets: ImageTarget[] = [];
	for (const kind of ["off", "on"]) {
		const image = await converted("vdi", `static=${kind}`, 5 * MIB + 1536);
		const { tableOffset } = VdiHeader.at(viewOf(image.bytes(0, VdiHeader.size)));
		targets.push({
			name: `VDI, static=${kind}`,
			image,
			parts: NO_PARTS,
			mutate(random) {
				if (random.chance(0.5)) {
					const [field, offset] = random.pick(Object.entries(VdiHeader.offset));
					mutateRecord(image, random, { at: 0, length: VdiHeader.size, offset });
					return `header: ${field}`;
				}
				const at = tableOffset + 4 * random.below(6);
				scrambleAt(image, at, random, 4);
				return `table of blocks at ${at}`;
			},
			open: (file) => openVdi(file, "image"),
		});
	}
	return targets;
}

/** A VHDX image, and where its entries of the log lie. */
interface VhdxImage {
	readonly image: SparseImage;
	readonly entries: readonly number[];
	readonly tableAt: number;
	readonly metadataAt: number;
}

export async function vhdxTargets(): Promise<ImageTarget[]> {
	const targets: ImageTarget[] = [];
	for (const options of ["subformat=dynamic,block_size=1M", "subformat=fixed,block_size=1M"])
		for (const hasLog of [false, true]) {
			const made = await makeVhdx(options, hasLog);
			targets.push({
				name: `VHDX, ${options}${hasLog ? ", a log" : ""}`,
				image: made.image,
				parts: NO_PARTS,
				mutate: (random) => mutateVhdx(made, random),
				open: (file) => openVhdx(file, "image"),
			});
		}
	return targets;
}

async function makeVhdx(options: string, hasLog: boolean): Promise<VhdxImage> {
	const plain = await converted("vhdx", options, 3 * MIB + 1536);
	const file = new VhdxBytes(plain.bytes(0, plain.size));
	const entries: number[] = [];
	const fileSize = file.bytes.length;
	const random = seededRandom(5);
	// The third of them goes around the log's end.
	const first = file.log.length - 8 * vhdx.LOG_SECTOR;
	for (let at = first, sequence = 7; hasLog && sequence < 11; sequence++) {
		const blockAt = 4 * MIB + random.below(256) * vhdx.LOG_SECTOR;
		const writes: LoggedWrite[] = [
			{ at: blockAt, data: random.bytes(vhdx.LOG_SECTOR) },
			{ at: blockAt + 4096 * random.between(-3, 3), zeros: vhdx.LOG_SECTOR * random.between(1, 4) },
			{ at: file.tableAt, data: file.bytes.slice(file.tableAt, file.tableAt + vhdx.LOG_SECTOR) },
		];
		entries.push(file.log.at + at);
		at = file.putEntry(at, logEntry({ sequence, writes, tail: first, fileSize }));
	}
	return {
		image: SparseImage.of(file.bytes),
		entries: entries.filter((at) => at < file.log.at + file.log.length),
		tableAt: file.tableAt,
		metadataAt: file.region(vhdx.guid.metadataRegion),
	};
}

function mutateVhdx({ image, entries, tableAt, metadataAt }: VhdxImage, random: Random): string {
	switch (random.below(entries.length === 0 ? 6 : 10)) {
		case 0: {
			const [field, offset] = random.pick(Object.entries(vhdx.Header.offset));
			for (const at of random.pick([vhdx.HEADER_PLACES, [random.pick(vhdx.HEADER_PLACES)]]))
				mutateRecord(image, random, { at, length: vhdx.Header.size, offset, seal: seals.vhdxHeader });
			return `header: ${field}`;
		}
		case 1: {
			const offset = random.chance(0.2)
				? vhdx.RegionTable.offset.entryCount
				: vhdx.REGION_ENTRIES_AT +
					random.below(3) * vhdx.RegionEntry.size +
					random.pick(Object.values(vhdx.RegionEntry.offset));
			const { size: length } = vhdx.RegionTable;
			for (const at of random.chance(0.8) ? vhdx.REGION_TABLE_PLACES : [random.pick(vhdx.REGION_TABLE_PLACES)])
				mutateRecord(image, random, { at, length, offset, seal: seals.regionTable });
			return `region table: byte ${offset}`;
		}
		case 2:
		case 3: {
			// The items follow the table; QEMU puts them right behind it.
			const entry =
				vhdx.METADATA_ENTRIES_AT +
				random.below(6) * vhdx.MetadataEntry.size +
				random.pick(Object.values(vhdx.MetadataEntry.offset));
			const offset = random.pick([8, 10, entry, vhdx.MetadataTable.size + random.below(48)]);
			scrambleAt(image, metadataAt + offset, random);
			return `metadata: byte ${offset}`;
		}
		case 4:
		case 5: {
			const at = tableAt + vhdx.BAT_ENTRY_BYTES * random.below(6) + random.below(8);
			scrambleAt(image, at, random, random.pick([1, 8]));
			return `table of blocks: byte ${at - tableAt}`;
		}
		default:
			return mutateLog(image, random.pick(entries), random);
	}
}

function mutateLog(image: SparseImage, at: number, random: Random): string {
	const descriptor =
		vhdx.LogEntry.size +
		random.below(4) * vhdx.LogDescriptor.size +
		random.pick(Object.values(vhdx.LogDescriptor.offset));
	const offset = random.pick([
		random.pick(Object.values(vhdx.LogEntry.offset)),
		descriptor,
		descriptor,
		vhdx.LOG_SECTOR * random.between(1, 2) + random.pick([0, 4, 4092]),
	]);
	scrambleAt(image, at + offset, random, random.pick([4, 8]));
	if (at + 64 * vhdx.LOG_SECTOR > image.size) return "nothing";
	// As long as it now says. One around the log's end has its last sectors elsewhere and stays without checksum.
	const { entryLength } = vhdx.LogEntry.at(viewOf(image.bytes(at, vhdx.LogEntry.size)));
	if (entryLength <= 64 * vhdx.LOG_SECTOR && entryLength >= vhdx.LogEntry.size && random.chance(0.95))
		image.write(at, withChecksum(image.bytes(at, entryLength), vhdx.LogEntry.offset.checksum));
	return `log entry at ${at}: byte ${offset}`;
}
