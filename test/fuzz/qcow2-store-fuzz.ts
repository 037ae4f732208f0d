// Fuzzing what writes a qcow2 image in place: a mutated image, mostly with reference counts that fit it, is refused
// before anything is changed; or blocks of it are written and punched, and then
//
//  1  every other guest byte reads as before, also in snapshots, and what was written is there
//  2  no reference count is too low (independent check); flags that were right are right

import assert from "node:assert/strict";
import { unpack } from "../../src/adapters/images/unpack.ts";
import { readHeader } from "../../src/core/images/qcow2/header.ts";
import { Qcow2Store, type StoreFile } from "../../src/core/images/qcow2/store.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../src/foundations/units.ts";
import { countErrors } from "./qcow2-layout.ts";
import { type Content, checkByQemu, contents, isAlike, MAX_CLUSTERS } from "./qcow2-sweep-fuzz.ts";
import type { Qcow2Target } from "./qcow2-targets.ts";
import { type Attempt, type GuardedFile, guardedFile, isVerdict } from "./seeded-fuzz.ts";

/** Of so many images that were written, QEMU looks at one, before and after. */
const SHOWN_TO_QEMU = 10;

/** For `fuzzSeeds`. `path`: a file for QEMU to look at. */
export async function attemptStore(attempt: Attempt<Qcow2Target>, path: string): Promise<string> {
	const { target, random, steps } = attempt;
	try {
		for (let i = random.between(1, 3); i > 0; i--) steps.push(target.mutate(random));
		if (random.chance(0.9)) steps.push(target.settle(random));
		return await write(attempt, path);
	} finally {
		for (const image of [target.image, ...target.parts.values()]) image.undo();
	}
}

async function write({ target, random, steps }: Attempt<Qcow2Target>, path: string): Promise<string> {
	const { image } = target;
	const file = guardedFile(image);
	const store = await openStore(target, file);
	if (store === undefined) {
		assert.equal(file.changes, 0, "refused, but changed");
		return "refused";
	}
	const { size, clusterSize } = store.header;
	if (size / clusterSize > MAX_CLUSTERS || size < BLOCK_SIZE) return "too large or too small";
	// Two entries of the disk's own that share a cluster with a snapshot as well, which QEMU never makes, get a wrong flag.
	const hasRightFlags = countErrors(image).flags.length === 0 && store.header.snapshotCount === 0;
	const [before, ...snapshots] = await contents(target, file);
	const expected = new Map(
		[...before!].map(([cluster, bytes]) => [cluster, bytes === "damaged" ? bytes : Buffer.from(bytes)]),
	);
	const isShown = target.parts.size === 0 && random.below(SHOWN_TO_QEMU) === 0;
	const checkedBefore = isShown ? await checkByQemu(image, path) : undefined;

	const blocks = Math.floor(size / BLOCK_SIZE);
	for (let i = random.between(1, 8); i > 0; i--) {
		const block = random.below(blocks);
		const count = Math.min(blocks - block, random.between(1, random.chance(0.2) ? 64 : 4));
		const bytes = random.chance(0.6) ? random.bytes(count * BLOCK_SIZE) : new Uint8Array(count * BLOCK_SIZE);
		const isPunched = bytes.every((byte) => byte === 0);
		steps.push(`${isPunched ? "punch" : "write"} block ${block}+${count}`);
		try {
			if (isPunched) await store.punch(byteOffset(block * BLOCK_SIZE), byteCount(bytes.length));
			else await store.write(byteOffset(block * BLOCK_SIZE), bytes);
		} catch (error) {
			// A packed cluster that can't be unpacked, say, can't be copied either. What came before may be written.
			if (!isVerdict(error)) throw error;
			return "damaged";
		}
		put(expected, bytes, block * BLOCK_SIZE, { size, clusterSize });
		if (random.chance(0.3)) await store.flush();
	}
	await store.flush();
	const [after, ...snapshotsAfter] = await contents(target, file);
	expectSame(expected, after!, "cluster");
	for (const [index, content] of snapshots.entries())
		expectSame(content, snapshotsAfter[index]!, `snapshot ${index}, cluster`);
	const { tooLow, flags } = countErrors(image);
	assert.deepEqual(tooLow, [], "counts are too low");
	if (hasRightFlags) assert.deepEqual(flags, [], "flags are wrong");
	if (store.header.snapshotCount === 0 && (checkedBefore === 0 || checkedBefore === 3)) {
		const checked = await checkByQemu(image, path);
		assert.ok(checked === 0 || checked === 3, `qemu-img check ended with ${checked}, before with ${checkedBefore}`);
		return "written, shown to QEMU";
	}
	return "written";
}

async function openStore(target: Qcow2Target, file: GuardedFile): Promise<Qcow2Store | undefined> {
	const storeFile: StoreFile = {
		get size() {
			return file.size;
		},
		read: (at, into) => file.read(at, into),
		write: (at, bytes) => file.write(at, bytes),
		punch: (at, length) => file.punch(at, length),
		truncate: (size) => file.truncate(size),
		flush: () => file.flush(),
		zero: (at, length) => file.punch(at, length),
	};
	try {
		const { backing } = await readHeader(file, "image");
		const below = backing === null ? null : target.backing;
		return await Qcow2Store.open({ path: "image", file: storeFile, hostBlock: 4096, below, decompress: unpack });
	} catch (error) {
		if (isVerdict(error)) return undefined;
		throw error;
	}
}

function put(
	content: Map<number, Buffer | "damaged">,
	bytes: Uint8Array,
	start: number,
	{ size, clusterSize }: { readonly size: number; readonly clusterSize: number },
): void {
	for (let at = start; at < start + bytes.length; ) {
		const cluster = Math.floor(at / clusterSize);
		const clusterStart = cluster * clusterSize;
		const end = Math.min(clusterStart + clusterSize, start + bytes.length);
		const length = Math.min(clusterSize, size - clusterStart);
		const old = content.get(cluster);
		// Where all of it was written, it doesn't matter any more that it was damaged.
		const now = old === undefined || old === "damaged" ? Buffer.alloc(length) : old;
		if (old !== "damaged" || end - at === length) {
			now.set(bytes.subarray(at - start, end - start), at - clusterStart);
			content.set(cluster, now);
		}
		at = end;
	}
}

function expectSame(expected: Content, found: Content, what: string): void {
	for (const cluster of new Set([...expected.keys(), ...found.keys()]))
		assert.ok(isAlike(expected.get(cluster), found.get(cluster)), `${what} ${cluster} is other than expected`);
}
