// Bit rot: what storage does to a file behind everybody's back.

import { open } from "node:fs/promises";

/** Flips a bit of the byte at `at`; durable once resolved. */
export async function flip(path: string, at: number): Promise<void> {
	await using file = await open(path, "r+");
	const byte = Buffer.alloc(1);
	await file.read(byte, 0, 1, at);
	byte[0]! ^= 0x10;
	await file.write(byte, 0, 1, at);
	await file.sync();
}
