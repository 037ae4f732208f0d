// Contents of simulated blocks: one number fills a block, so that every sector shows it and a torn block is seen.

const BLOCK = 4096;

/** Value of a block whose content is no whole write. */
export const GARBAGE = -1;

/** Fills blocks with a value that every sector shows. */
export function blocksOf(values: readonly number[]): Uint8Array {
	const words = new Uint32Array((values.length * BLOCK) / 4);
	for (const [i, value] of values.entries()) words.fill(value, (i * BLOCK) / 4, ((i + 1) * BLOCK) / 4);
	return new Uint8Array(words.buffer);
}

/** The value of a block, or GARBAGE where it isn't the same throughout. */
export function valueIn(block: Uint8Array): number {
	const words = new Uint32Array(block.buffer, block.byteOffset, block.byteLength / 4);
	const value = words[0]!;
	for (let i = 1; i < words.length; i += 31) if (words[i] !== value) return GARBAGE;
	return words.at(-1) === value ? value : GARBAGE;
}
