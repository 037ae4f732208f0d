// Feature words: each bit is read, or refused by its name, or refused by its number, since it is newer than the reader
// and may change anything.

import { VmsweepError } from "../../foundations/errors.ts";

export interface FeatureWord {
	/** Which word it is, for messages. */
	readonly word: string;
	/** Bits that are read, with the names that the file system's own tools use. */
	readonly read: ReadonlyMap<number, string>;
	/** Bits that are known and refused. */
	readonly refused: ReadonlyMap<number, string>;
}

/** Throws VOLUME_UNSUPPORTED, naming the feature, unless all bits of a 32-bit word are read. */
export function checkWord(value: number, { word, read, refused }: FeatureWord): void {
	for (let bit = 0; bit < 32; bit++) {
		const flag = 2 ** bit;
		if (Math.floor(value / flag) % 2 === 0 || read.has(flag)) continue;
		const name = refused.get(flag);
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			name === undefined
				? `it has the unknown ${word} feature 0x${flag.toString(16)}; a newer vmsweep may read it`
				: `it has the feature ${name}, which is not supported`,
		);
	}
}
