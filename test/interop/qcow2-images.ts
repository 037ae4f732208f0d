// qcow2 images of all kinds, made and filled by QEMU's own tools from a seed.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import type { DiskImage } from "../../src/adapters/images/disk-image.ts";
import { openHostImageFile } from "../../src/adapters/images/host-image-file.ts";
import { readHeader } from "../../src/core/images/qcow2/header.ts";
import { readSnapshots } from "../../src/core/images/qcow2/snapshots.ts";
import { verifyImage } from "../../src/core/images/qcow2/verify.ts";
import type { VirtualDisk } from "../../src/core/images/virtual-disk.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import type { TemporaryFolder } from "../support/folders.ts";
import { run, runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";

export const MIB = 2 ** 20;

/** A kind of image. */
export interface Variant {
	readonly name: string;
	/** Options of `qemu-img create -o`. */
	readonly options: string;
	/** Cluster size, in bytes. */
	readonly cluster: number;
	/** Data in a file of its own: neither compressed clusters nor snapshots are possible. */
	readonly dataFile?: boolean;
	/** Nothing is to be compressed, or can be. */
	readonly uncompressed?: boolean;
}

export const withoutCompressed = (variant: Variant): Variant => ({ ...variant, uncompressed: true });

const variant = (options: string, cluster = 65536, more: Partial<Variant> = {}): Variant => ({
	name: options === "" ? "the usual" : options,
	options: cluster === 65536 ? options : [options, `cluster_size=${cluster}`].filter((text) => text !== "").join(","),
	cluster,
	...more,
});

export const variants: readonly Variant[] = [
	variant(""),
	variant("compat=0.10"),
	variant("extended_l2=on"),
	variant("compression_type=zstd"),
	variant("data_file=DATA", 65536, { dataFile: true }),
	variant("refcount_bits=1", 4096),
	variant("", 512),
	variant("refcount_bits=64", 1024),
	variant("data_file=DATA,data_file_raw=on", 65536, { dataFile: true }),
	variant("extended_l2=on,compression_type=zstd", 16384),
	variant("preallocation=metadata", 65536, { uncompressed: true }),
	variant("lazy_refcounts=on,refcount_bits=2", 8192),
	variant("refcount_bits=4", 32768),
	variant("refcount_bits=8", 2048),
	variant("refcount_bits=32", 131072),
	variant("", 262144),
	variant("extended_l2=on", 2 * MIB),
	variant("compat=0.10", 512),
	variant("", 2 * MIB),
].map((each) => ({ ...each, name: `${each.name}, ${each.cluster} byte clusters` }));

/** Makes an empty image of a variant; `more` are further options of `qemu-img create`. */
export async function makeImage(
	folder: TemporaryFolder,
	{ options }: Variant,
	name: string,
	size: number,
	...more: readonly string[]
): Promise<string> {
	const path = folder.file(name);
	const given = options.replace("DATA", `${path}.data`);
	const dashO = given === "" ? [] : ["-o", given];
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...dashO, ...more, path, String(size)]);
	return path;
}

/** Runs commands of qemu-io on an image. */
export async function io(path: string, commands: readonly string[], format = "qcow2"): Promise<void> {
	const result = await run("qemu-io", ["-f", format, "-d", "unmap", path], { input: `${commands.join("\n")}\n` });
	assert.equal(result.exitCode, 0, result.stdout + result.stderr);
}

/** Random compressed writes, then writes, zeroes and discards, at all alignments of 512 bytes. */
export function activity(
	random: Random,
	{ cluster, dataFile, uncompressed }: Variant,
	size: number,
	count: number,
): string[] {
	const commands: string[] = [];
	// QEMU writes compressed clusters only where there is nothing yet.
	const whole = Math.floor(size / cluster);
	const compressed = new Set(
		Array.from({ length: dataFile === true || uncompressed === true ? 0 : count / 4 }, () => random.below(whole)),
	);
	for (const at of compressed) commands.push(`write -c -P ${random.between(1, 255)} ${at * cluster} ${cluster}`);
	for (let index = 0; index < count; index++) {
		const unit = random.chance(0.4) ? cluster : 512;
		const start = random.below(Math.max(1, Math.floor((size - unit) / unit))) * unit;
		const longest = Math.ceil(Math.min(size / 8, cluster * 6) / unit);
		const range = `${start} ${Math.min(random.between(1, longest) * unit, size - start)}`;
		const kind = random.below(6);
		if (kind === 0) commands.push(`write -z ${range}`);
		else if (kind === 1) commands.push(`write -z -u ${range}`);
		else if (kind === 2) commands.push(`discard ${range}`);
		else commands.push(`write -P ${random.between(1, 255)} ${range}`);
	}
	return commands;
}

/** What QEMU reads from an image, as bytes. */
export async function contentByQemu(
	folder: TemporaryFolder,
	path: string,
	...options: readonly string[]
): Promise<Uint8Array> {
	const raw = folder.file("content.raw");
	await runOk("qemu-img", ["convert", "-O", "raw", ...options, path, raw]);
	return await readFile(raw);
}

/** All bytes of an image, by reads of odd places and lengths. */
export async function contentOf(image: DiskImage, random: Random): Promise<Uint8Array> {
	const content = new Uint8Array(image.size);
	for (let at = 0; at < image.size; ) {
		const length = Math.min(image.size - at, random.chance(0.5) ? random.between(1, 5000) : random.between(1, 3 * MIB));
		await image.read(byteOffset(at), content.subarray(at, at + length));
		at += length;
	}
	return content;
}

/** A disk in memory, to be below an image; all of it is data. */
export const memoryDisk = (bytes: Uint8Array): VirtualDisk => ({
	size: byteCount(bytes.length),
	async read(at, into) {
		into.set(bytes.subarray(at, at + into.length));
	},
	async *runs(from, to) {
		if (to > from) yield { start: from, length: byteCount(to - from), kind: "data" };
	},
});

export function assertSameBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
	if (Buffer.compare(actual, expected) === 0) return;
	const at = actual.findIndex((byte, index) => byte !== expected[index]);
	assert.fail(
		`${what}: byte ${at} is ${actual[at]}, not ${expected[at]} (lengths ${actual.length}, ${expected.length})`,
	);
}

/** One line of `qemu-img map --output=json`. */
export interface MappedRun {
	readonly start: number;
	readonly length: number;
	readonly depth: number;
	readonly zero: boolean;
	readonly data: boolean;
	readonly present: boolean;
	readonly compressed?: boolean;
	readonly offset?: number;
}

export const mapByQemu = async (path: string): Promise<MappedRun[]> =>
	JSON.parse(await runOk("qemu-img", ["map", "--output=json", path])) as MappedRun[];

/** Clusters inside the file that nothing refers to, by our own verification. */
export async function freeClusters(path: string): Promise<number> {
	await using file = await openHostImageFile(path, "read");
	const header = await readHeader(file, path);
	const { counts } = await verifyImage(file, header, path, await readSnapshots(file, header, path));
	let free = 0;
	for (let cluster = 0; cluster < counts.clusters; cluster++) if (counts.count(cluster) === 0) free++;
	return free;
}

/** `qemu-img check` finds neither errors nor leaks. */
export async function checkByQemu(path: string, options: { readonly leaksAllowed?: boolean } = {}): Promise<void> {
	const { exitCode, stdout, stderr } = await run("qemu-img", ["check", path]);
	// 3: leaks only.
	if (exitCode === 3 && options.leaksAllowed === true) return;
	assert.equal(exitCode, 0, `qemu-img check ${path}\n${stdout}${stderr}`);
}
