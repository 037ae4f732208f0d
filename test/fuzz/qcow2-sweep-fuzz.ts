// Fuzzing what changes a qcow2 image: a mutated image, mostly with reference counts that fit it, is refused before
// anything is changed; or it is swept, and sometimes compacted, and then
//
//  1  every guest byte outside of what was dropped reads as before, also in snapshots; what was dropped reads as zeros
//     or as before
//  2  no reference count is too low (independent check), and nothing is leaked any more
//  3  flags that were right are right
//  4  what an unknown part of the header may refer to is as before

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { compactImage } from "../../src/core/images/qcow2/compact.ts";
import type { Qcow2Disk } from "../../src/core/images/qcow2/disk.ts";
import { readHeader } from "../../src/core/images/qcow2/header.ts";
import { readSnapshots } from "../../src/core/images/qcow2/snapshots.ts";
import { Qcow2Sweep } from "../../src/core/images/qcow2/sweep.ts";
import { type VerifiedImage, verifyImage } from "../../src/core/images/qcow2/verify.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";
import { run } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import { isRead, isSame, type Outcome } from "./image-fuzz.ts";
import { countErrors, countsOf, layoutOf } from "./qcow2-layout.ts";
import { addUnknownPart, type OpenQcow2, openQcow2, type Qcow2Target } from "./qcow2-targets.ts";
import { type Attempt, type GuardedFile, guardedFile, isVerdict } from "./seeded-fuzz.ts";
import type { SparseImage } from "./sparse-image.ts";

/** Of so many images that were swept, QEMU looks at one, before and after. */
const SHOWN_TO_QEMU = 10;
/** Guest clusters that are compared; a disk that claims more of them is left out. */
export const MAX_CLUSTERS = 4000;

/** For `fuzzSeeds`. `path`: a file for QEMU to look at. */
export async function attemptSweep(attempt: Attempt<Qcow2Target>, path: string): Promise<string> {
	const { target, random, steps } = attempt;
	try {
		for (let i = random.between(1, 3); i > 0; i--) steps.push(target.mutate(random));
		if (random.chance(0.1)) steps.push(addUnknownPart(target.image));
		if (random.chance(0.9)) steps.push(target.settle(random));
		return await sweep(attempt, path);
	} finally {
		for (const image of [target.image, ...target.parts.values()]) image.undo();
	}
}

async function sweep({ target, random, steps }: Attempt<Qcow2Target>, path: string): Promise<string> {
	const { image } = target;
	const file = guardedFile(image);
	const found = await openVerified(target, file);
	if (found === undefined) {
		assert.equal(file.changes, 0, "refused, but changed");
		return "refused";
	}
	const { opened, verified } = found;
	const { header } = opened;
	if (header.size / header.clusterSize > MAX_CLUSTERS) return "too large";
	const errors = countErrors(image);
	assert.deepEqual(errors.tooLow, [], "verified, but counts are too low");
	const before: Before = {
		contents: await contents(target, file),
		hasRightFlags: errors.flags.length === 0,
		unknown: header.hasUnknownParts ? unaccounted(image) : null,
	};
	const isShown = target.parts.size === 0 && random.below(SHOWN_TO_QEMU) === 0;
	const checkedBefore = isShown ? await checkByQemu(image, path) : undefined;

	const hostBlock = random.pick([512, 4096, 65_536]);
	const sweeping = new Qcow2Sweep({ path: "image", header, image: verified, hostBlock }, file);
	const dropped = new Set<number>();
	// Data in a file of its own is punched there, not here.
	for (let i = header.dataFile === null ? random.between(0, 6) : 0; i > 0; i--) {
		const [start, length] = rangeOf(header.size, random);
		steps.push(`drop ${start}+${length}`);
		await sweeping.drop(start, length);
		for (const cluster of clustersIn(start, length, header)) dropped.add(cluster);
		if (random.chance(0.3)) await sweeping.commit(file);
	}
	await sweeping.commit(file);
	await expectUnharmed(target, file, before, dropped);
	if (header.dataFile === null && random.chance(0.3)) {
		steps.push("compact");
		await compactImage(file, "image", { roundClusters: random.between(1, 40) });
		await expectUnharmed(target, file, before, dropped);
	}
	if (checkedBefore === 0 || checkedBefore === 3) {
		const checked = await checkByQemu(image, path);
		assert.ok(checked === 0 || checked === 3, `qemu-img check ended with ${checked}, before with ${checkedBefore}`);
		return "swept, shown to QEMU";
	}
	return file.changes > 0 ? "swept" : "nothing to sweep";
}

/** What an image was like before it was swept. */
interface Before {
	readonly contents: readonly Content[];
	readonly hasRightFlags: boolean;
	/** Null where all parts of the header are known. */
	readonly unknown: ReadonlyMap<number, Outcome> | null;
}

async function expectUnharmed(
	target: Qcow2Target,
	file: GuardedFile,
	before: Before,
	dropped: ReadonlySet<number>,
): Promise<void> {
	const { image } = target;
	for (const [index, content] of (await contents(target, file)).entries())
		expectSame(before.contents[index]!, content, index === 0 ? dropped : new Set());
	const { tooLow, flags } = countErrors(image);
	assert.deepEqual(tooLow, [], "counts are too low");
	if (before.hasRightFlags) assert.deepEqual(flags, [], "flags are wrong");
	const header = await readHeader(file, "image");
	const { leaks } = await verifyImage(file, header, "image", await readSnapshots(file, header, "image"));
	if (before.unknown === null) assert.deepEqual([...leaks], [], "leaked");
	else {
		const now = unaccounted(image);
		for (const [cluster, bytes] of before.unknown)
			assert.ok(isSame(now.get(cluster) ?? "damaged", bytes), `cluster ${cluster} may belong to an unknown part`);
	}
}

async function openVerified(
	target: Qcow2Target,
	file: GuardedFile,
): Promise<{ opened: OpenQcow2; verified: VerifiedImage } | undefined> {
	try {
		const opened = await open(target, file);
		const { header, snapshotTable } = opened;
		return { opened, verified: await verifyImage(file, header, "image", snapshotTable) };
	} catch (error) {
		if (isVerdict(error)) return undefined;
		throw error;
	}
}

const open = (target: Qcow2Target, file: GuardedFile): Promise<OpenQcow2> =>
	openQcow2(file, target.backing, async (name) => {
		const part = target.parts.get(name);
		if (part === undefined) throw new VmsweepError("IMAGE_DAMAGED", "no data file");
		return guardedFile(part);
	});

/** By guest cluster: its bytes, or that they can't be read. Zeros where nothing is said. */
export type Content = ReadonlyMap<number, Outcome>;

/** The disk's present content, and that of each snapshot. */
export async function contents(target: Qcow2Target, file: GuardedFile): Promise<Content[]> {
	const opened = await open(target, file);
	const { disk, header, snapshotTable } = opened;
	const below = header.backing === null ? 0 : (target.backing?.size ?? 0);
	const all = [await contentOf(disk, header.clusterSize, below)];
	for (const snapshot of snapshotTable.snapshots) {
		// A snapshot may be of a smaller disk.
		if (snapshot.l1Entries < header.l1Needed) continue;
		all.push(await contentOf(await opened.snapshotDisk(snapshot), header.clusterSize, below));
	}
	return all;
}

async function contentOf(disk: Qcow2Disk, clusterSize: number, below: number): Promise<Content> {
	const touched = new Set<number>();
	const touch = (start: number, end: number): void => {
		for (let cluster = Math.floor(start / clusterSize); cluster * clusterSize < end; cluster++) touched.add(cluster);
	};
	for (let at = 0; at < disk.size; ) {
		try {
			for await (const { kind, start, length } of disk.stored(at, disk.size)) {
				at = start + length;
				if (kind !== "zero") touch(start, kind === "absent" ? Math.min(at, below) : at);
			}
		} catch (error) {
			if (!isVerdict(error)) throw error;
			touch(at, at + 1);
			at = (Math.floor(at / clusterSize) + 1) * clusterSize;
		}
	}
	const content = new Map<number, Outcome>();
	for (const cluster of touched) {
		const start = cluster * clusterSize;
		const bytes = Buffer.alloc(Math.min(clusterSize, disk.size - start));
		content.set(cluster, (await isRead(disk, start, bytes)) ? bytes : "damaged");
	}
	return content;
}

function expectSame(before: Content, after: Content, dropped: ReadonlySet<number>): void {
	for (const cluster of new Set([...before.keys(), ...after.keys()])) {
		const [old, now] = [before.get(cluster), after.get(cluster)];
		if (isAlike(old, now)) continue;
		assert.ok(dropped.has(cluster), `guest cluster ${cluster} is other than before`);
		assert.ok(isAlike(undefined, now), `guest cluster ${cluster}, which was dropped, is neither zeros nor as before`);
	}
}

/** What is not there is zeros. */
export function isAlike(a: Outcome | undefined, b: Outcome | undefined): boolean {
	const zerosLike = (other: Outcome | undefined): Outcome => Buffer.alloc(other?.length ?? 0);
	return isSame(a ?? zerosLike(b), b ?? zerosLike(a));
}

/** A range of guest bytes, at all alignments of 512 bytes. */
function rangeOf(size: number, random: Random): [start: number, length: number] {
	if (random.chance(0.2)) return [0, size];
	const start = 512 * random.below(Math.max(1, Math.floor(size / 512)));
	const end = random.chance(0.2) ? size : Math.min(size, start + 512 * random.between(0, Math.ceil(size / 1024)));
	return [Math.min(start, end), Math.max(0, end - start)];
}

function clustersIn(start: number, length: number, { size, clusterSize }: OpenQcow2["header"]): number[] {
	const clusters: number[] = [];
	for (let cluster = Math.ceil(start / clusterSize); cluster * clusterSize < start + length; cluster++)
		if (Math.min(size, (cluster + 1) * clusterSize) <= start + length) clusters.push(cluster);
	return clusters;
}

/** Clusters that are counted, but that nothing known refers to: they may belong to a part that nobody knows. */
function unaccounted(image: SparseImage): Map<number, Outcome> {
	const layout = layoutOf(image)!;
	const { clusterSize, references } = layout;
	const bytesOf = (cluster: number): Buffer => {
		const at = cluster * clusterSize;
		return Buffer.from(image.bytes(at, Math.min(clusterSize, image.size - at)));
	};
	const clusters = [...countsOf(image, layout).keys()].filter((cluster) => !references.has(cluster));
	return new Map(clusters.map((cluster) => [cluster, bytesOf(cluster)]));
}

/** The exit code: 0 is well, 2 errors, 3 leaks. */
export async function checkByQemu(image: SparseImage, path: string): Promise<number | undefined> {
	await writeFile(path, image.bytes(0, image.size));
	return (await run("qemu-img", ["check", "-q", "-f", "qcow2", path])).exitCode;
}
