// What the fuzzing of images and of volumes shares: the loop over seeds, and files that refuse what no reader may do.

import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import type { WritableImageFile } from "../../src/core/images/image-file.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import type { ByteOffset } from "../../src/foundations/units.ts";
import { byteCount } from "../../src/foundations/units.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { scramble } from "./reader-fuzz.ts";
import type { SparseImage } from "./sparse-image.ts";

const COUNT = Number(process.env.VMSWEEP_FUZZ_COUNT ?? 1500);
/** Processor time for one seed; the usual is some milliseconds. */
const MAX_SECONDS = 10;
/** What the whole process may take, targets included, in KiB. */
const MAX_RESIDENT = 3 << 20;

interface Diagnosable {
	diagnostic(message: string): void;
}

/** What one seed of a run does. */
export interface Attempt<T> {
	readonly target: T;
	readonly random: Random;
	/** What was done, for the message of a failure. */
	readonly steps: string[];
}

/**
 * One attempt per seed, on any of the targets. `file`: the test's own, for the command that replays a failure. `found`:
 * seeds that once failed. An attempt returns how it ended; all of `outcomes` must come about in a run of some length.
 */
export async function fuzzSeeds<T extends { readonly name: string }>(
	t: Diagnosable,
	{ file, found, outcomes }: { file: string; found: readonly number[]; outcomes: readonly string[] },
	targets: readonly T[],
	attempt: (attempt: Attempt<T>) => Promise<string>,
): Promise<void> {
	const seed = testSeed();
	const counts: Record<string, number> = {};
	for (const each of [...found, ...Array.from({ length: COUNT }, (_, i) => (seed + i) >>> 0)]) {
		const random = seededRandom(each);
		const target = random.pick(targets);
		const steps: string[] = [];
		const before = process.cpuUsage();
		try {
			const outcome = await attempt({ target, random, steps });
			counts[outcome] = (counts[outcome] ?? 0) + 1;
			const { user, system } = process.cpuUsage(before);
			assert.ok(user + system < MAX_SECONDS * 1e6, `took ${(user + system) / 1e6} s`);
		} catch (error) {
			const replay = `VMSWEEP_SEED=${each} VMSWEEP_FUZZ_COUNT=1 node --test test/fuzz/${file}`;
			const what = `seed ${each}, ${target.name}: ${steps.join(", ")}`;
			throw new Error(`${what}: ${(error as Error).message}\nreplay: ${replay}`, { cause: error });
		}
	}
	t.diagnostic(`VMSWEEP_SEED=${seed} VMSWEEP_FUZZ_COUNT=${COUNT}: ${JSON.stringify(counts)}`);
	assert.ok(process.resourceUsage().maxRSS < MAX_RESIDENT, "too much memory");
	if (COUNT >= 1000) for (const outcome of outcomes) assert.ok((counts[outcome] ?? 0) > 0, `none was ${outcome}`);
}

/** True for an error that says what is wrong with an image or a volume; others, and bugs, are not for its bytes to cause. */
export const isVerdict = (error: unknown): boolean =>
	isVmsweepError(error) && (error.kind === "corrupt" || error.kind === "unsupported" || error.code === "IO");

/** A file of an image, and what was done to it. */
export interface GuardedFile extends WritableImageFile {
	reads: number;
	bytesRead: number;
	changes: number;
}

/** Refuses what no reader may do: read outside, or without end, or a table that is too large all at once. */
export function guardedFile(image: SparseImage, limit = { reads: 100_000, bytes: 512 << 20 }): GuardedFile {
	const file: GuardedFile = {
		get size() {
			return byteCount(image.size);
		},
		reads: 0,
		bytesRead: 0,
		changes: 0,
		async read(at: ByteOffset, into: Uint8Array): Promise<void> {
			file.bytesRead += into.length;
			assert.ok(++file.reads <= limit.reads, "too many reads");
			assert.ok(file.bytesRead <= limit.bytes, "too many bytes read");
			assert.ok(into.length <= 32 << 20, `one read of ${into.length} bytes`);
			// As storage does: others may go on, and fail, in the meantime.
			if (file.reads % 5 === 0) await setImmediate();
			image.read(at, into);
		},
		async write(at, bytes) {
			file.changes++;
			image.write(at, bytes);
		},
		async punch(at, length) {
			file.changes++;
			image.write(at, new Uint8Array(length));
		},
		async truncate(size) {
			file.changes++;
			image.resize(size);
		},
		async flush() {},
	};
	return file;
}

/** Changes a few bytes at `at` of an image; nothing where that is outside of it. */
export function scrambleAt(image: SparseImage, at: number, random: Random, length = 8): void {
	const inside = Math.min(length, image.size - at);
	if (at < 0 || inside <= 0) return;
	const bytes = image.bytes(at, inside);
	scramble(bytes, random, inside);
	image.write(at, bytes);
}

/** Changes, cuts or lengthens any part of a file. Returns what was done. */
export function damageAnywhere(image: SparseImage, random: Random): string {
	switch (random.below(4)) {
		case 0: {
			const size = random.chance(0.5) ? random.below(image.size) : Math.max(0, image.size - random.between(1, 70_000));
			image.resize(size);
			return `cut to ${size}`;
		}
		case 1: {
			// A hole costs whoever made the image nothing.
			const size = image.size + random.pick([1, 512, 65_536, 1 << 20, 2 ** 33, 2 ** 40, 2 ** 52]);
			image.resize(size);
			return `${size} bytes long`;
		}
		case 2: {
			const at = random.pick(image.pages()) + random.below(4096);
			scrambleAt(image, at, random);
			return `byte ${at}`;
		}
		default: {
			// What belongs to one place comes to another.
			const pages = image.pages();
			const [from, to] = [random.pick(pages), random.pick(pages)];
			const length = Math.min(512 * random.between(1, 8), image.size - from, image.size - to);
			if (length > 0) image.write(to, image.bytes(from, length));
			return `${length} bytes from ${from} to ${to}`;
		}
	}
}
