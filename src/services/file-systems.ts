// File systems: which reader looks into a volume with which mark. The one place that names them all.

import { readExt } from "../core/filesystems/ext4/index.ts";
import type { FileSystemReader } from "../foundations/guest-map.ts";

/** Readers by the type that `findSignatures` reports. A type without one is kept whole. */
export const fileSystemReaders: ReadonlyMap<string, FileSystemReader> = new Map([["ext", readExt]]);
