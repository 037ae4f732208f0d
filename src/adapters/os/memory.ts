// Memory: what the C library keeps of freed memory, which would otherwise stay resident for as long as the process lives.

import * as sys from "./syscalls.ts";

const mallocTrim = sys.glibcCall("int malloc_trim(size_t keep)");

/** Gives freed memory of all threads back to the host: some milliseconds. Does nothing where the C library isn't glibc. */
export function trimMemory(): void {
	mallocTrim?.(0);
}
