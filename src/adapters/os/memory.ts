// Memory: what the C library keeps of freed memory, which would otherwise stay resident for as long as the process lives.

import * as sys from "./syscalls.ts";

/** mallopt(3). */
const M_ARENA_MAX = -8;

const mallopt = sys.glibcCall("int mallopt(int parameter, int value)");
const mallocTrim = sys.glibcCall("int malloc_trim(size_t keep)");

/**
 * Lets all threads together have so many pools of memory, instead of eight per processor: what one frees, others can use. Counts
 * for threads that begin later. Does nothing where the C library isn't glibc.
 */
export function limitArenas(count: number): void {
	mallopt?.(M_ARENA_MAX, count);
}

/** Gives freed memory of all threads back to the host: some milliseconds. Does nothing where the C library isn't glibc. */
export function trimMemory(): void {
	mallocTrim?.(0);
}
