// Opening an image by the name that a user gave: which format it is, which files it consists of, under QEMU's locks.
//
//   name ─▶ address? ─▶ addressOpeners
//      └──▶ file, locked ─▶ magic ─▶ formatOpeners ─▶ DiskImage
//                                        └─▶ its backing: a name again, in the folder of the image that names it
//
// Whose words are believed
//  - a format that an image's own header names for its backing file is taken as it is, and never probed: a raw
//    image's first bytes belong to the guest, who may have written the header of another format there
//  - a backing file without a named format is probed, and then may not name further files: so a guest that writes a
//    header into its raw disk makes nobody read other files of the host through it
//  - a chain is at most CHAIN_MAX images long, and no image stands in it twice

import { realpath } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { VmsweepError } from "../../foundations/errors.ts";
import { byteOffset } from "../../foundations/units.ts";
import type { ImageUse } from "../os/locks.ts";
import type { DiskFormat, DiskImage, SweepableImage } from "./disk-image.ts";
import { type HostImageFile, openHostImageFile } from "./host-image-file.ts";
import { detectFormat, FORMAT_PROBE_BYTES, type ImageFormat } from "./image-format.ts";
import { checkNoLoopDevice } from "./loop-devices.ts";
import type { FormatOpener, Opening } from "./opening.ts";
import type { Qcow2SecondImage } from "./qcow2-second.ts";
import { RawDiskImage } from "./raw-disk-image.ts";

/**
 * Formats that live in files. The one place that names them all. A format's code is loaded when an image needs it:
 * with all of them loaded, a small map would take half as long again.
 */
const formatOpeners: Partial<Record<ImageFormat, FormatOpener>> = {
	raw: (file) => RawDiskImage.open(file),
	qcow2: async (...place) => (await import("./qcow2-image.ts")).openQcow2(...place),
	vmdk: async (...place) => (await import("./vmdk-image.ts")).openVmdkImage(...place),
	vhd: async (file) => (await import("./vhd-image.ts")).openVhdImage(file),
	vhdx: async (file) => (await import("./vhdx-image.ts")).openVhdxImage(file),
	vdi: async (file) => (await import("./vdi-image.ts")).openVdiImage(file),
};

/** Images that are reached by an address instead of a path. */
const addressOpeners: readonly { readonly pattern: RegExp; readonly open: (name: string) => Promise<DiskImage> }[] = [
	{ pattern: /^nbds?(\+\w+)?:/, open: async (name) => (await import("./nbd-image.ts")).openNbdImage(name) },
];

/** Images above each other; more is a mistake or an attack. */
const CHAIN_MAX = 256;

/**
 * Opens an image in any format for reading, backing files included. Changes nothing.
 * Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED, IMAGE_UNSUPPORTED, IMAGE_DAMAGED or IO.
 */
export async function openDiskImage(name: string): Promise<DiskImage> {
	return await openNamed(name, { format: null, above: [], mayNameFiles: true, mayWrite: [] });
}

export interface SweepableOptions {
	/** Opens for reading, with a reader's locks: only `wouldDrop` may be asked for then. */
	readonly dryRun?: boolean;
	/** Data files that the image may have in other folders than its own, as the user named them. */
	readonly dataFiles?: readonly string[];
}

/**
 * Opens an image that can be swept in place, with a writer's locks: a raw file, a block device, a qcow2 image. Before
 * anything is changed, the format's own records are checked as a whole.
 * Throws what {@link openDiskImage} throws; IMAGE_LOCKED also where a loop device shows the file.
 */
export async function openSweepableImage(path: string, options: SweepableOptions = {}): Promise<SweepableImage> {
	if (addressOpeners.some(({ pattern }) => pattern.test(path)))
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${path} is an NBD address; only files and block devices are swept in place. Copy it without its free space: vmsweep convert ${path} NEW.qcow2.`,
		);
	refuseAddress(path);
	const use = options.dryRun === true ? "read" : "write";
	const file = await openHostImageFile(path, use);
	try {
		const format = await formatOf(file, path);
		if (use === "write") await checkNoLoopDevice(path);
		if (format === "raw") {
			checkRawSize(file);
			return await RawDiskImage.open(file);
		}
		if (format === "qcow2") {
			const mayWrite = await Promise.all((options.dataFiles ?? []).map((name) => realpath(name).catch(() => name)));
			const chain = { format: null, above: [], mayNameFiles: true, mayWrite };
			const { openSweepableQcow2 } = await import("./qcow2-sweepable.ts");
			return await openSweepableQcow2(file, openingOf(file, chain, use));
		}
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${path} is a ${format} image; only raw and qcow2 images are swept in place. Convert it: vmsweep convert ${path} NEW.qcow2.`,
		);
	} catch (error) {
		await file.close();
		throw error;
	}
}

/**
 * Opens a qcow2 image as a disk's second image, with a writer's locks, and a reader's for all images below. The whole
 * image is verified; nothing is changed yet. The format is the caller's word: nothing is probed.
 * Throws what {@link openDiskImage} throws.
 */
export async function openSecondQcow2(path: string): Promise<Qcow2SecondImage> {
	const file = await openHostImageFile(path, "write");
	try {
		await checkNoLoopDevice(path);
		const chain = { format: null, above: [], mayNameFiles: true, mayWrite: [] };
		return await (await import("./qcow2-second.ts")).openQcow2Second(file, openingOf(file, chain, "read"));
	} catch (error) {
		await file.close();
		throw error;
	}
}

/** What is known when an image is opened. */
interface Chain {
	/** As the image above names it; null: look at the first bytes. */
	readonly format: DiskFormat | null;
	/** The files of the images above, nearest first. */
	readonly above: readonly string[];
	/** May this image name further files? */
	readonly mayNameFiles: boolean;
	/** Real paths of files that it may name to be written, besides those in its own folder. */
	readonly mayWrite: readonly string[];
}

async function openNamed(name: string, chain: Chain): Promise<DiskImage> {
	const address = addressOpeners.find(({ pattern }) => pattern.test(name));
	if (address !== undefined) return await address.open(name);
	refuseAddress(name);
	const file = await openHostImageFile(name, "read");
	try {
		if (chain.above.includes(file.identity))
			throw new VmsweepError(
				"IMAGE_DAMAGED",
				`${name} is its own backing file, directly or through others. Rebase it.`,
			);
		const format = chain.format ?? (await formatOf(file, name));
		const open = (formatOpeners as Partial<Record<string, FormatOpener>>)[format];
		if (open === undefined)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${name} is a ${format} image, which is not read. Convert it: qemu-img convert -O qcow2 ${name} NEW.`,
			);
		if (format === "raw" && chain.above.length === 0) checkRawSize(file);
		return await open(file, openingOf(file, chain, "read"));
	} catch (error) {
		await file.close();
		throw error;
	}
}

function openingOf(file: HostImageFile, chain: Chain, use: ImageUse): Opening {
	const { path } = file;
	const allow = (what: string, name: string): void => {
		if (!chain.mayNameFiles)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${path} names a ${what} (${name}), but its own format is only guessed from its first bytes, which a guest may have written. If it is right, say so in the image above it: qemu-img rebase -u -F FORMAT -b ${path} IMAGE.`,
			);
	};
	return {
		path,
		async openPart(name) {
			allow("file beside it", name);
			const partPath = besides(path, name);
			if (use === "write") await checkMayWrite(path, partPath, chain.mayWrite);
			const part = await openHostImageFile(partPath, use);
			try {
				if (use === "write") await checkNoLoopDevice(partPath);
				return part;
			} catch (error) {
				await part.close();
				throw error;
			}
		},
		async openBacking({ name, format }) {
			allow("backing file", name);
			const above = [file.identity, ...chain.above];
			if (above.length >= CHAIN_MAX)
				throw new VmsweepError("IMAGE_UNSUPPORTED", `${path}: more than ${CHAIN_MAX} images above each other.`);
			const known = format === null ? null : formatNamed(format, path);
			const full = addressOpeners.some(({ pattern }) => pattern.test(name)) ? name : besides(path, name);
			const mayNameFiles = known !== null;
			return await openNamed(full, { format: known, above, mayNameFiles, mayWrite: [] }).catch((error: unknown) => {
				throw explained(error, path);
			});
		},
	};
}

/** An image from elsewhere may name any file of the host: only what lies beside it, or what the user names, is changed. */
async function checkMayWrite(image: string, part: string, named: readonly string[]): Promise<void> {
	const real = await realpath(part).catch(() => part);
	if (dirname(real) === dirname(await realpath(image)) || named.includes(real)) return;
	throw new VmsweepError(
		"IMAGE_UNSUPPORTED",
		`${image} has its data in another folder: ${part}. If that is right, say so: --data-file ${part}.`,
	);
}

/** A failure below an image says which image led there. */
function explained(error: unknown, path: string): unknown {
	if (!(error instanceof VmsweepError) || (error.code !== "FILE_NOT_FOUND" && error.code !== "FILE_WRONG_TYPE"))
		return error;
	return new VmsweepError(error.code, `backing file of ${path}: ${error.message}`, { cause: error });
}

/** Formats by the names that images use for their backing files. */
function formatNamed(name: string, path: string): DiskFormat {
	const formats: Readonly<Record<string, DiskFormat>> = {
		raw: "raw",
		host_device: "raw",
		file: "raw",
		qcow2: "qcow2",
		vmdk: "vmdk",
		vpc: "vhd",
		vhdx: "vhdx",
		vdi: "vdi",
	};
	const format = Object.hasOwn(formats, name) ? formats[name] : undefined;
	if (format !== undefined) return format;
	throw new VmsweepError(
		"IMAGE_UNSUPPORTED",
		`${path}: its backing file has the format ${JSON.stringify(name)}, which is not read.`,
	);
}

/** The path of a file that an image names: relative to the image's folder. Throws where it is no path. */
function besides(path: string, name: string): string {
	const plain = name.startsWith("file:") ? name.slice("file:".length) : name;
	refuseAddress(plain, path);
	return isAbsolute(plain) ? plain : join(dirname(path), plain);
}

/** QEMU's rule: a colon before the first slash is the name of a protocol. */
function refuseAddress(name: string, namedBy?: string): void {
	const protocol = /^([^/:]+):/.exec(name)?.[1];
	if (protocol === undefined) return;
	// What a user types may well be a file's name; what has no driver in vmsweep is then looked for as a file.
	if (namedBy === undefined && !/^(json|nbd|nbds|nbd\+unix|nbds\+unix|https?|ftps?|ssh|rbd|iscsi)$/.test(protocol))
		return;
	const what = namedBy === undefined ? name : `${namedBy} names ${name}: it`;
	throw new VmsweepError(
		"IMAGE_UNSUPPORTED",
		`${what} is reached by "${protocol}:", which is not read. Name a file or a block device.`,
	);
}

/** The format by the first bytes. Throws FILE_WRONG_TYPE where there are none. */
async function formatOf(file: HostImageFile, name: string): Promise<ImageFormat> {
	if (file.size === 0)
		throw new VmsweepError("FILE_WRONG_TYPE", `${name} is empty (0 bytes), so it is no disk image. Name an image.`);
	const start = new Uint8Array(Math.min(FORMAT_PROBE_BYTES, file.size));
	await file.read(byteOffset(0), start);
	const format = detectFormat(start);
	if (format !== "raw" || !/\.(vhd|vpc)$/i.test(file.path)) return format;
	return (await (await import("./vhd-image.ts")).isFixedVhdImage(file)) ? "vhd" : "raw";
}

/** Disks consist of sectors; a text file or a torn download seldom does. */
function checkRawSize(file: HostImageFile): void {
	if (file.size === 0)
		throw new VmsweepError(
			"FILE_WRONG_TYPE",
			`${file.path} is empty (0 bytes), so it is no disk image. Name an image.`,
		);
	if (file.size % 512 !== 0)
		throw new VmsweepError(
			"FILE_WRONG_TYPE",
			`${file.path} is no disk image: it has no known format's mark, and its ${file.size} bytes are no whole number of 512-byte sectors. Name an image.`,
		);
}
