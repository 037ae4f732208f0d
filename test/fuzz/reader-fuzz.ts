// Fuzzing a file system's reader: real images with seeded mutations. Whatever the bytes: a map comes back whose free
// runs are in order, inside the volume and clear of what must never be free, or one of our errors is thrown; within a
// budget of reads; and the same image read twice gives the same.

import assert from "node:assert/strict";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import type { FileSystemMap, FileSystemReader } from "../../src/foundations/guest-map.ts";
import { checkRange } from "../../src/foundations/source.ts";
import type { ByteOffset } from "../../src/foundations/units.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import type { Random } from "../support/randomness.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";

const COUNT = Number(process.env.VMSWEEP_FUZZ_COUNT ?? 1500);
const MAX_READS = 100_000;
const MAX_READ_BYTES = 4 << 20;

export interface FuzzTarget {
	readonly name: string;
	readonly bytes: Uint8Array;
	/** Changes `bytes` in place. Returns what was done. */
	mutate(bytes: Uint8Array, random: Random): string;
	/** Byte ranges `[from, to)` that no map of these bytes may call free. */
	protectedIn(bytes: Uint8Array): readonly (readonly [number, number])[];
}

interface Skippable {
	diagnostic(message: string): void;
}

/** Mutates one of the targets per seed, 1 to 4 times, and reads it. `found`: seeds that once failed. */
export async function fuzzReader(
	t: Skippable,
	reader: FileSystemReader,
	targets: readonly FuzzTarget[],
	found: readonly number[],
): Promise<void> {
	for (const target of targets) {
		const map = await read(reader, target.bytes);
		assert.equal(map?.kept, null, `${target.name} itself is kept`);
		assert.ok(map.freeBytes! > 0);
	}
	// A new array per seed would cost more than the reading.
	const working = new Map(targets.map((target) => [target, target.bytes.slice()]));
	const seed = testSeed();
	const outcomes = { mapped: 0, kept: 0, refused: 0, "not recognised": 0 };
	for (const each of [...found, ...Array.from({ length: COUNT }, (_, i) => (seed + i) >>> 0)]) {
		const random = seededRandom(each);
		const target = random.pick(targets);
		const bytes = working.get(target)!;
		bytes.set(target.bytes);
		const steps: string[] = [];
		try {
			for (let i = random.between(1, 4); i > 0; i--) steps.push(target.mutate(bytes, random));
			outcomes[await examine(reader, target, bytes)]++;
		} catch (error) {
			throw new Error(`seed ${each}, ${target.name}: ${steps.join(", ")}`, { cause: error });
		}
	}
	t.diagnostic(`VMSWEEP_SEED=${seed} VMSWEEP_FUZZ_COUNT=${COUNT}: ${JSON.stringify(outcomes)}`);
	// Otherwise mutations never get past the first checks, or never hurt.
	assert.ok(COUNT < 500 || (outcomes.mapped > 0 && outcomes.kept > 0));
}

async function examine(
	reader: FileSystemReader,
	target: FuzzTarget,
	bytes: Uint8Array,
): Promise<"mapped" | "kept" | "refused" | "not recognised"> {
	let map: FileSystemMap | null;
	try {
		map = await read(reader, bytes);
	} catch (error) {
		if (isVmsweepError(error) && error.code !== "BUG") return "refused";
		throw error;
	}
	if (map === null) return "not recognised";
	assert.ok(map.size <= bytes.length);
	const runs = [...map.freeRuns(byteOffset(0), byteOffset(map.size))];
	if (map.kept !== null) {
		assert.deepEqual(runs, []);
		assert.equal(map.freeBytes, null);
		return "kept";
	}
	let end = 0;
	let free = 0;
	const guarded = target.protectedIn(bytes);
	for (const { start, length } of runs) {
		assert.ok(Number.isInteger(start) && length > 0 && start >= end && (start > end || end === 0), `run at ${start}`);
		end = start + length;
		free += length;
		for (const [from, to] of guarded)
			assert.ok(end <= from || start >= to, `free: ${start}-${end}, in use: ${from}-${to}`);
	}
	assert.ok(end <= map.size);
	assert.equal(free, map.freeBytes);
	assert.equal(map.usedBytes, map.size - free);
	return "mapped";
}

/** Refuses what no reader may do: read outside the volume, or without end. */
function read(reader: FileSystemReader, bytes: Uint8Array): Promise<FileSystemMap | null> {
	let reads = 0;
	const source = {
		size: byteCount(bytes.length),
		async read(at: ByteOffset, into: Uint8Array): Promise<void> {
			assert.ok(++reads < MAX_READS, "too many reads");
			assert.ok(into.length <= MAX_READ_BYTES, `one read of ${into.length} bytes`);
			checkRange(byteCount(bytes.length), at, into.length, "image");
			into.set(bytes.subarray(at, at + into.length));
		},
	};
	return reader(source, { vmOff: false });
}

/** Changes some of the first bytes: random values, edge values, single bits, small steps. */
export function scramble(bytes: Uint8Array, random: Random, limit = 4): void {
	const length = Math.min(bytes.length, limit);
	if (length === 0) return;
	switch (random.below(6)) {
		case 0:
			bytes.set(random.bytes(length));
			return;
		case 1:
			bytes.fill(random.pick([0, 0xff, 0x80, 0x7f, 1]), 0, length);
			return;
		case 2:
			bytes[random.below(length)]! ^= 1 << random.below(8);
			return;
		case 3:
			bytes[0] = (bytes[0]! + random.pick([1, 255])) & 0xff;
			return;
		case 4:
			bytes[0] = (bytes[0]! + random.between(1, 64)) & 0xff;
			return;
		default:
			bytes[random.below(length)] = random.below(256);
	}
}
