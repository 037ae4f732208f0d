// Fuzzing an image format: real images with seeded mutations. Whatever the bytes: the image is refused with one of our
// errors, or opened; then its runs cover the disk in order, what reads as zeros does, and what is read is the same in
// any order and after opening it again, be it bytes or an error. All within a budget of reads, memory and time.

import assert from "node:assert/strict";
import type { ImageFile } from "../../src/core/images/image-file.ts";
import type { VirtualDisk } from "../../src/core/images/virtual-disk.ts";
import { isVmsweepError, VmsweepError } from "../../src/foundations/errors.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import type { Random } from "../support/randomness.ts";
import { type Attempt, damageAnywhere, guardedFile, isVerdict } from "./seeded-fuzz.ts";
import type { SparseImage } from "./sparse-image.ts";

export interface ImageTarget {
	readonly name: string;
	readonly image: SparseImage;
	/** Other files that it consists of, by the names that it gives them. */
	readonly parts: ReadonlyMap<string, SparseImage>;
	/** One change of one of its structures. Returns what was done. */
	mutate(random: Random): string;
	/** Makes what follows from the changes right again, where a format has such things. */
	settle?(random: Random): string;
	open(file: ImageFile, openPart: (name: string) => Promise<ImageFile>): Promise<VirtualDisk>;
}

/** Runs that are looked at, and bytes that are read, of a disk that may claim any size. */
const MAX_RUNS = 5000;
const MAX_READ = 8 << 20;

/** For `fuzzSeeds`: mutates a target, looks at it, and puts it right again. */
export async function attemptImage({ target, random, steps }: Attempt<ImageTarget>): Promise<string> {
	try {
		for (let i = random.between(1, 3); i > 0; i--) {
			const anywhere = random.chance(0.1) ? random.pick([target.image, ...target.parts.values()]) : undefined;
			steps.push(anywhere === undefined ? target.mutate(random) : damageAnywhere(anywhere, random));
		}
		if (target.settle !== undefined && random.chance(0.5)) steps.push(target.settle(random));
		return await examine(target, random);
	} finally {
		for (const image of [target.image, ...target.parts.values()]) image.undo();
	}
}

/** Every target is read whole as it is. */
export async function expectReadable(targets: readonly ImageTarget[], random: Random): Promise<void> {
	for (const target of targets) assert.equal(await examine(target, random), "read", target.name);
}

async function examine(target: ImageTarget, random: Random): Promise<"read" | "damaged" | "refused"> {
	const disk = await opened(target);
	if (disk === undefined) return "refused";
	assert.ok(Number.isSafeInteger(disk.size) && disk.size >= 0, `a disk of ${disk.size} bytes`);
	const { borders, isWhole } = await walk(disk);
	const ranges = Array.from({ length: 10 }, () => rangeNear(random.pick(borders), disk.size, random));
	const before = await outcomes(disk, ranges);
	const again = (await outcomes(disk, ranges.toReversed())).toReversed();
	const anew = await outcomes((await opened(target))!, ranges);
	for (const [index, { at, length }] of ranges.entries()) {
		assert.ok(isSame(again[index]!, before[index]!), `read again, ${length} bytes at ${at} are different`);
		assert.ok(isSame(anew[index]!, before[index]!), `opened again, ${length} bytes at ${at} are different`);
	}
	return isWhole ? "read" : "damaged";
}

async function opened(target: ImageTarget): Promise<VirtualDisk | undefined> {
	try {
		return await target.open(guardedFile(target.image), async (name) => {
			assert.doesNotMatch(name, /^[/\\]|^\w:|(^|[/\\])\.\.([/\\]|$)/, "a file outside of the image's folder");
			const part = target.parts.get(name);
			if (part === undefined) throw new VmsweepError("FILE_NOT_FOUND", `no file ${name}`);
			return guardedFile(part);
		});
	} catch (error) {
		if (isVerdict(error) || isVmsweepError(error, "FILE_NOT_FOUND")) return undefined;
		throw error;
	}
}

/** Goes through the runs, and reads them. Returns where they begin, and whether all of them are in order. */
async function walk(disk: VirtualDisk): Promise<{ readonly borders: readonly number[]; readonly isWhole: boolean }> {
	const borders = [0];
	let end = 0;
	let left = MAX_READ;
	let isWhole = true;
	try {
		for await (const { start, length, kind } of disk.runs(byteOffset(0), byteOffset(disk.size))) {
			assert.ok(start === end && length > 0 && start + length <= disk.size, `${kind} run ${start}+${length}`);
			end = start + length;
			borders.push(end);
			const bytes = new Uint8Array(Math.min(length, left, kind === "data" ? MAX_READ : 10_000)).fill(0xa5);
			left -= bytes.length;
			if (!(await isRead(disk, start, bytes))) isWhole = false;
			else if (kind !== "data")
				assert.ok(
					bytes.every((byte) => byte === 0),
					`${kind} at ${start} is not zeros`,
				);
			if (borders.length >= MAX_RUNS) return { borders, isWhole };
		}
	} catch (error) {
		if (isVerdict(error)) return { borders, isWhole: false };
		throw error;
	}
	assert.equal(end, disk.size);
	return { borders, isWhole };
}

/** Fills `bytes`; false where the image is damaged there. */
export async function isRead(disk: VirtualDisk, at: number, bytes: Uint8Array): Promise<boolean> {
	try {
		await disk.read(byteOffset(at), bytes);
		return true;
	} catch (error) {
		if (isVerdict(error)) return false;
		throw error;
	}
}

interface Range {
	readonly at: number;
	readonly length: number;
}

function rangeNear(border: number, size: number, random: Random): Range {
	const at = Math.min(size, Math.max(0, border - random.pick([0, 1, 512, random.below(5000), random.below(200_000)])));
	return { at, length: Math.min(size - at, random.pick([1, 512, 4096, 100_000])) };
}

/** Bytes, or that they can't be read. */
export type Outcome = Buffer | "damaged";

/** Says no more than that: a message with the differences of large arrays would take all memory. */
export const isSame = (a: Outcome, b: Outcome): boolean =>
	a === "damaged" || b === "damaged" ? a === b : Buffer.compare(a, b) === 0;

async function outcomes(disk: VirtualDisk, ranges: readonly Range[]): Promise<Outcome[]> {
	const all: Outcome[] = [];
	for (const { at, length } of ranges) {
		const bytes = Buffer.alloc(length, 0xa5);
		all.push((await isRead(disk, at, bytes)) ? bytes : "damaged");
	}
	return all;
}
