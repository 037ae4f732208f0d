// Sizes on the command line: 512, 64K, 512M, 40G, 1T, 1.5G, 40GiB; always binary, as in QEMU's tools.

import { InvalidArgumentError } from "commander";

/** Bytes. Throws commander's InvalidArgumentError, whose message ends up in the usage line. */
export function parseSize(text: string): number {
	const match = /^(\d+(?:\.\d+)?)(?:([KMGTP])(?:iB)?|B)?$/i.exec(text.trim());
	if (match === null) throw new InvalidArgumentError("Give a size such as 512M, 40G or 1T.");
	const bytes = Number(match[1]) * 1024 ** (match[2] === undefined ? 0 : "KMGTP".indexOf(match[2].toUpperCase()) + 1);
	if (!Number.isSafeInteger(bytes)) throw new InvalidArgumentError("It must be a whole number of bytes below 8 PiB.");
	if (bytes === 0) throw new InvalidArgumentError("It must be more than nothing.");
	return bytes;
}
