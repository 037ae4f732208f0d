// The files of one simulated disk: the first image, the second (raw or qcow2), and the second's checksums.

import { crc32 } from "node:zlib";
import type { SecondImage } from "../../src/adapters/images/second-image.ts";
import { FirstImage } from "../../src/core/log/first-image.ts";
import type { Safeguards } from "../../src/core/log/state.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { valueIn } from "./blocks.ts";
import type { Random } from "./random.ts";
import type { Scheduler } from "./scheduler.ts";
import { PowerCut, pinned, SimFile, type World } from "./sim-file.ts";
import { openSimQcow2, openSimSecond } from "./sim-second.ts";
import { qcow2Block } from "./tiny-qcow2.ts";

const BLOCK = 4096;
/** Where the first sector of checksums begins in their file (docs/format/second-sums.md). */
const SUMS_AT = 4096;

export type SecondFormat = "raw" | "qcow2";

/** Of each block, what the second image holds of it (undefined where broken tables lead nowhere) and its checksum beside that. */
export interface SecondCopy {
	readonly stored: readonly (Uint8Array | undefined)[];
	readonly sums: readonly number[];
}

export class DiskFiles {
	readonly first: SimFile;
	readonly second: SimFile;
	readonly sums: SimFile;
	readonly format: SecondFormat;
	readonly #world: World;
	readonly #blocks: number;

	constructor(world: World, blocks: number, format: SecondFormat) {
		this.first = new SimFile(world);
		this.second = new SimFile(world);
		this.sums = new SimFile(world);
		this.format = format;
		this.#world = world;
		this.#blocks = blocks;
	}

	/** What the second image holds of a block. */
	stored(block: number): Uint8Array {
		return this.format === "raw" ? blockAt(this.second, block * BLOCK) : qcow2Block(this.second.contents(), block);
	}

	secondCopy(): SecondCopy {
		const blocks = Array.from({ length: this.#blocks }, (_, block) => block);
		const sectors = viewOf(this.sums.contents());
		// Sector 0 of the checksums has all of a small disk's; a file that isn't there yet has none.
		const sumOf = (block: number): number => {
			const at = SUMS_AT + 4 * block;
			return at + 4 <= sectors.byteLength ? sectors.getUint32(at, true) : 0;
		};
		const storedOf = (block: number): Uint8Array | undefined => {
			try {
				return this.stored(block).slice();
			} catch (error) {
				if (error instanceof RangeError) return undefined;
				throw error;
			}
		};
		return { stored: blocks.map(storedOf), sums: blocks.map(sumOf) };
	}

	/** Lets everybody have turns until the second image is open. Throws PowerCut where that never happens. */
	async openSecond(live: Scheduler): Promise<SecondImage> {
		if (this.format === "raw") return openSimSecond(this.first, this.second, this.#world, live, this.#blocks * BLOCK);
		let image: SecondImage | undefined;
		let failure: { readonly error: unknown } | undefined;
		openSimQcow2(this.first, this.second, this.#world, live).then(
			(opened) => {
				image = opened;
			},
			(error: unknown) => {
				failure = { error };
			},
		);
		await live.drain();
		while (image === undefined && failure === undefined && !this.#world.isCut) await live.next();
		if (failure !== undefined) throw failure.error;
		if (image === undefined) throw new PowerCut("the power went off while the second image was opened");
		return image;
	}

	powerCut(random: Random): void {
		this.first.powerCut(random);
		this.second.powerCut(random);
		this.sums.powerCut(random);
	}
}

/** Opens a first image as the product does: recovers it. */
export const openLog = (
	file: SimFile,
	warmSegments: number,
	safeguards: Safeguards,
	viewsAtEntries: readonly number[] = [],
): FirstImage =>
	FirstImage.open(file, {
		checksum: (bytes) => crc32(bytes),
		allocatePinned: (length) => pinned(new Uint8Array(length)),
		warmSegments,
		safeguards,
		viewsAtEntries,
	});

/** What reads see of a block, whatever else goes wrong. */
export const valueAt = (file: SimFile, at: number): number => valueIn(blockAt(file, at));

export function blockAt(file: SimFile, at: number): Uint8Array {
	const bytes = file.contents();
	const block = new Uint8Array(BLOCK);
	block.set(bytes.subarray(Math.min(at, bytes.length), Math.min(at + BLOCK, bytes.length)));
	return block;
}
