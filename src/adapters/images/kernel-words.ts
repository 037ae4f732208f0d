// Small C structures of 64-bit words, alive for exactly as long as one asynchronous system call needs them.

import { pin, put64 } from "../os/syscalls.ts";

/** Calls with the address of the words; returns what the call returned. The kernel may overwrite them. */
export async function callWithWords(
	words: readonly number[],
	call: (address: number) => Promise<number>,
): Promise<number> {
	const { bytes, address } = pin(words.length * 8);
	const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
	for (const [index, word] of words.entries()) put64(view, index * 8, word);
	const result = await call(address);
	// Touching the memory after the call keeps the collector from taking it during the call.
	bytes.fill(0);
	return result;
}
