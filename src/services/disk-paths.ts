// Where the files of a disk lie. Their contents: disk-records.ts, which takes much longer to load.

import { join } from "node:path";

export const diskJsonPath = (directory: string): string => join(directory, "disk.json");
export const firstImagePath = (directory: string): string => join(directory, "first.log");
export const ownSecondImagePath = (directory: string): string => join(directory, OWN_SECOND_IMAGE);
export const closedPath = (directory: string): string => join(directory, "closed.json");
/** What disk.json says for a second image of the disk's own. */
export const OWN_SECOND_IMAGE = "second.raw";

/** Where the record of a second image lies. */
export const secondImageRecordPath = (directory: string, path: string, kind: "file" | "block-device"): string =>
	kind === "file" ? `${path}.vmsweep` : join(directory, "second.vmsweep");
