// VMDK: VMware's disk image. One sparse file, or a descriptor that puts several extents one behind the other.
//
//   monolithicSparse, streamOptimized     the sparse extent itself, its descriptor embedded
//   monolithicFlat, twoGbMaxExtent…, vmfs descriptor ─▶ extents in the same folder: sparse, flat, zeros
//   a snapshot or linked clone            as above, and below it its parent, by name and content id
//
// ESXi's own sparse formats (vmfsSparse: "COWD", seSparse) are refused, as are extents on devices.

import { type ByteCount, byteCount } from "../../../foundations/units.ts";
import type { ImageFile } from "../image-file.ts";
import {
	checkInside,
	type DiskMap,
	type DiskPiece,
	damaged,
	MappedDisk,
	readRecord,
	unsupported,
} from "../mapped-disk.ts";
import {
	DESCRIPTOR_BYTES_MAX,
	DESCRIPTOR_START,
	type Descriptor,
	type ExtentLine,
	parseDescriptor,
} from "./descriptor.ts";
import { MAGIC, SECTOR_BYTES } from "./layout.ts";
import { type Inflate, openSparse } from "./sparse.ts";

/** What opening a VMDK needs from outside. */
export interface VmdkOptions {
	/** Opens a file in the image's folder (`/` in the name leads below it). `role`: see `ImagePart` of the adapters. */
	openPart(file: string, role: "data" | "backing"): Promise<ImageFile>;
	readonly inflate: Inflate;
}

/** Images above each other; VMware itself allows 32. */
const DEPTH_MAX = 64;
const COWD_MAGIC = 0x4457_4f43;

/** Opens a VMDK image. `name` is for messages. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED, what `openPart` throws, or IO. */
export async function openVmdk(file: ImageFile, name: string, options: VmdkOptions): Promise<MappedDisk> {
	const chain: { readonly layer: Layer; readonly name: string }[] = [];
	let next: { readonly file: ImageFile; readonly name: string; readonly folder: string } = { file, name, folder: "" };
	for (let cid: string | null = null; ; ) {
		const layer = await openLayer(next.file, next.name, inFolder(options, next.folder));
		const { descriptor } = layer;
		if (cid !== null && descriptor?.cid !== cid)
			throw damaged(`${next.name}:`, `was changed after ${chain.at(-1)!.name} was made from it`);
		chain.push({ layer, name: next.name });
		if (chain.length > DEPTH_MAX) throw unsupported(name, `more than ${DEPTH_MAX} images lie above each other`);
		if (descriptor?.parent == null) break;
		cid = descriptor.parent.cid;
		const path = next.folder + descriptor.parent.file;
		const parent = await options.openPart(path, "backing");
		next = { file: parent, name: path, folder: path.slice(0, path.lastIndexOf("/") + 1) };
	}
	return chain.reduceRight<MappedDisk | null>((below, each) => new MappedDisk(each.name, each.layer.map, below), null)!;
}

const inFolder = (options: VmdkOptions, folder: string): VmdkOptions => ({
	...options,
	openPart: (file, role) => options.openPart(folder + file, role),
});

/** One image of a chain. */
interface Layer {
	readonly map: DiskMap;
	readonly descriptor: Descriptor | null;
}

async function openLayer(file: ImageFile, name: string, options: VmdkOptions): Promise<Layer> {
	const start = await readRecord(file, 0, 4, `${name}: the header`);
	const magic = start.getUint32(0, true);
	if (magic === COWD_MAGIC) throw unsupported(name, "it is a sparse disk of ESXi (vmfsSparse, COWD)");
	if (magic === MAGIC) {
		const { map, descriptor } = await openSparse(file, name, options.inflate);
		return { map, descriptor: descriptor === null ? null : parseDescriptor(descriptor, name) };
	}
	const length = Math.min(file.size, DESCRIPTOR_BYTES_MAX);
	const { buffer, byteOffset } = await readRecord(file, 0, length, `${name}: the descriptor`);
	const text = new Uint8Array(buffer, byteOffset, length);
	if (!String.fromCharCode(...text.subarray(0, DESCRIPTOR_START.length)).startsWith(DESCRIPTOR_START))
		throw damaged(`${name}:`, "is neither a VMDK descriptor nor a sparse extent");
	if (file.size > DESCRIPTOR_BYTES_MAX) throw damaged(`${name}: the descriptor`, `has ${file.size} bytes`);
	const descriptor = parseDescriptor(text, name);
	if (descriptor.extents.length === 0) throw damaged(`${name}: the descriptor`, "names no extents");
	return { map: await openExtents(descriptor.extents, name, options), descriptor };
}

/** A part of the disk. In bytes; `map` is null for zeros. */
interface Extent {
	readonly start: number;
	readonly end: number;
	readonly map: DiskMap | null;
}

async function openExtents(lines: readonly ExtentLine[], name: string, options: VmdkOptions): Promise<DiskMap> {
	const extents: Extent[] = [];
	let end = 0;
	for (const line of lines) {
		const start = end;
		const length = byteCount(line.sectors * SECTOR_BYTES);
		end = start + length;
		const map = line.kind === "zero" ? null : await openExtent(line, length, name, options);
		extents.push({ start, end, map });
	}
	if (!Number.isSafeInteger(end)) throw damaged(`${name}: the descriptor`, "gives a disk that no file can hold");
	const warnings = extents.flatMap(({ map }) => map?.warnings ?? []);
	return { size: byteCount(end), warnings, pieces: (from, to) => extentPieces(extents, from, to) };
}

async function openExtent(line: ExtentLine, length: ByteCount, name: string, options: VmdkOptions): Promise<DiskMap> {
	const file = await options.openPart(line.file, "data");
	const extentName = `${name}: extent ${line.file}`;
	if (line.kind === "flat") {
		const first = line.offset * SECTOR_BYTES;
		checkInside(file, first, length, extentName);
		return { size: length, warnings: [], pieces: (from, to) => flatPieces(file, first, from, to) };
	}
	const { map } = await openSparse(file, extentName, options.inflate);
	if (map.size < length)
		throw damaged(extentName, `has ${map.size} bytes, but the descriptor gives it ${length} bytes`);
	return map;
}

async function* flatPieces(file: ImageFile, first: number, from: number, to: number): AsyncGenerator<DiskPiece> {
	yield { kind: "data", start: from, length: to - from, file, at: first + from };
}

async function* extentPieces(extents: readonly Extent[], from: number, to: number): AsyncGenerator<DiskPiece> {
	for (const { start, end, map } of extents) {
		if (end <= from) continue;
		if (start >= to) return;
		const [first, last] = [Math.max(from, start), Math.min(to, end)];
		if (map === null) yield { kind: "zero", start: first, length: last - first };
		else
			for await (const piece of map.pieces(first - start, last - start)) yield { ...piece, start: piece.start + start };
	}
}
