// VMDK images of all kinds to mutate: sparse extents with their tables and packed grains, descriptors, chains.

import { readFile, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { inflate } from "node:zlib";
import { GrainMarker, Header, MAGIC, SECTOR_BYTES } from "../../src/core/images/vmdk/layout.ts";
import { openVmdk } from "../../src/core/images/vmdk/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { MIB, makeRaw } from "../interop/image-formats.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import type { ImageTarget } from "./image-fuzz.ts";
import { scrambleAt } from "./seeded-fuzz.ts";
import { SparseImage } from "./sparse-image.ts";
import { mutateText } from "./text-mutations.ts";

const inflateAsync = promisify(inflate);

/** The image's own name, and those of its other files. */
type Making = (folder: TemporaryFolder, raw: string) => Promise<readonly [string, ...string[]]>;

const convert =
	(options: string, ...parts: readonly string[]): Making =>
	async (folder, raw) => {
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, folder.file("image.vmdk")]);
		return ["image.vmdk", ...parts];
	};

const makings: Readonly<Record<string, Making>> = {
	sparse: convert("subformat=monolithicSparse"),
	"zeroed grains": async (folder, raw) => {
		const names = await convert("zeroed_grain=on")(folder, raw);
		await runOk("qemu-io", ["-f", "vmdk", "-c", "write -z 1M 512k", folder.file(names[0])]);
		return names;
	},
	flat: convert("subformat=monolithicFlat", "image-flat.vmdk"),
	split: convert("subformat=twoGbMaxExtentSparse", "image-s001.vmdk"),
	packed: convert("subformat=streamOptimized"),
	"packed, with a footer": async (folder, raw) => {
		const names = await convert("subformat=streamOptimized")(folder, raw);
		const bytes = await readFile(folder.file(names[0]));
		const footer = Buffer.alloc(3 * SECTOR_BYTES);
		footer.writeUInt32LE(1, 0);
		footer.writeUInt32LE(3, 12);
		footer.set(bytes.subarray(0, SECTOR_BYTES), SECTOR_BYTES);
		bytes.fill(0xff, Header.offset.directory, Header.offset.directory + 8);
		await writeFile(folder.file(names[0]), Buffer.concat([bytes, footer]));
		return names;
	},
	"over another": async (folder, raw) => {
		await convert("subformat=monolithicSparse")(folder, raw);
		const overlay = ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "image.vmdk", "top.vmdk"];
		await runOk("qemu-img", overlay, { folder: folder.path });
		await runOk("qemu-io", ["-f", "vmdk", "-c", "write -P 1 1M 100k", folder.file("top.vmdk")]);
		return ["top.vmdk", "image.vmdk"];
	},
	"all kinds of extents": async (folder, raw) => {
		await convert("subformat=monolithicSparse")(folder, raw);
		const extents = ['RW 2048 FLAT "raw" 512', "RDONLY 1000 ZERO", 'RW 4096 SPARSE "image.vmdk"', 'RW 24 VMFS "raw"'];
		const lines = ["# Disk DescriptorFile", "version=1", "CID=12345678", "parentCID=ffffffff", ...extents, ""];
		await writeFile(folder.file("custom.vmdk"), lines.join("\n"));
		return ["custom.vmdk", "image.vmdk", "raw"];
	},
};

export async function vmdkTargets(): Promise<ImageTarget[]> {
	const targets: ImageTarget[] = [];
	for (const [name, making] of Object.entries(makings)) {
		await using folder = await temporaryFolder();
		const raw = folder.file("raw");
		await makeRaw(raw, 3 * MIB + 1536, 3);
		const [own, ...others] = await making(folder, raw);
		const image = await loadSame(folder.file(own));
		const parts = new Map<string, SparseImage>();
		for (const each of others) parts.set(each, await loadSame(folder.file(each)));
		const mutable = [image, ...[...parts].filter(([each]) => each.endsWith(".vmdk")).map(([, part]) => part)];
		targets.push({
			name: `VMDK, ${name}`,
			image,
			parts,
			mutate: (random) => mutateVmdk(random.pick(mutable), random),
			open: (file, openPart) =>
				openVmdk(file, "image", {
					openPart,
					inflate: (packed, length) => inflateAsync(packed, { maxOutputLength: length }),
				}),
		});
	}
	return targets;
}

/** Without the content ids that QEMU makes up: a seed must do the same each time. */
async function loadSame(path: string): Promise<SparseImage> {
	const bytes = await readFile(path);
	const head = bytes.toString("latin1", 0, 65_536);
	for (const { index, 0: text } of head.matchAll(/CID=[0-9a-f]{8}/g))
		if (text !== "CID=ffffffff") bytes.write("CID=1234abcd", index, "latin1");
	return SparseImage.of(bytes);
}

function mutateVmdk(image: SparseImage, random: Random): string {
	const header = image.size < Header.size ? undefined : Header.at(viewOf(image.bytes(0, Header.size)));
	if (header?.magic === MAGIC) return mutateSparse(image, header, random);
	return mutateDescriptor(image, 0, image.size, random);
}

type HeaderFields = ReturnType<typeof Header.at>;

function mutateSparse(image: SparseImage, header: HeaderFields, random: Random): string {
	const isInFooter = header.directory > 2 ** 63;
	const footerAt = image.size - 2 * SECTOR_BYTES;
	const directory =
		(isInFooter && footerAt > 0
			? Header.read.directory(viewOf(image.bytes(footerAt, Header.size)), 0)
			: header.directory) * SECTOR_BYTES;
	const table = wordAt(image, directory) * SECTOR_BYTES;
	const grain = wordAt(image, table + 4 * random.below(48)) * SECTOR_BYTES;
	switch (random.below(7)) {
		case 0:
		case 1: {
			const [field, offset] = random.pick(Object.entries(Header.offset));
			const at = isInFooter && random.chance(0.7) ? footerAt : 0;
			scrambleAt(image, at + offset, random, random.pick([4, 8]));
			return `header at ${at}: ${field}`;
		}
		case 2: {
			const at = (random.chance(0.5) ? directory : header.redundantDirectory * SECTOR_BYTES) + 4 * random.below(2);
			scrambleAt(image, at, random, 4);
			return `directory at ${at}`;
		}
		case 3:
		case 4: {
			const at = table + 4 * random.below(50);
			if (random.chance(0.5)) scrambleAt(image, at, random, 4);
			else if (at >= 0 && at + 4 <= image.size) {
				const other = wordAt(image, table + 4 * random.below(48));
				const bytes = new Uint8Array(4);
				viewOf(bytes).setUint32(0, random.pick([0, 1, 2, other, other + 1, Math.floor(image.size / 512)]), true);
				image.write(at, bytes);
			}
			return `table at ${at}`;
		}
		case 5: {
			const at = grain + random.pick([0, 8, 8, GrainMarker.size, GrainMarker.size + random.below(2000)]);
			scrambleAt(image, at, random);
			return `grain at ${at}`;
		}
		default:
			if (header.descriptorOffset === 0) return "nothing";
			return mutateDescriptor(
				image,
				header.descriptorOffset * SECTOR_BYTES,
				header.descriptorSize * SECTOR_BYTES,
				random,
			);
	}
}

const wordAt = (image: SparseImage, at: number): number =>
	at >= 0 && at + 4 <= image.size ? viewOf(image.bytes(at, 4)).getUint32(0, true) : 0;

/** Changes the text at `at`. One in a file of its own may grow. */
function mutateDescriptor(image: SparseImage, at: number, length: number, random: Random): string {
	if (at < 0 || length <= 0 || length > 1 << 20 || at + length > image.size) return "nothing";
	const bytes = image.bytes(at, length);
	const end = bytes.indexOf(0);
	const decoder = new TextDecoder("latin1");
	const { text, step } = mutateText(decoder.decode(bytes.subarray(0, end < 0 ? length : end)), random);
	const changed = new Uint8Array(Math.max(length, text.length));
	for (let index = 0; index < text.length; index++) changed[index] = text.charCodeAt(index);
	const whole = at === 0;
	if (whole) image.resize(text.length);
	image.write(at, changed.subarray(0, whole ? text.length : length));
	return `descriptor: ${step}`;
}
