// Where the files of a disk lie. Their contents: disk-records.ts, which takes much longer to load.

import { join } from "node:path";

export const diskJsonPath = (directory: string): string => join(directory, "disk.json");
export const firstImagePath = (directory: string): string => join(directory, "first.log");
export const ownSecondImagePath = (directory: string, format: "raw" | "qcow2"): string =>
	join(directory, ownSecondImage(format));
/** Checksums of the second image's blocks. */
export const secondSumsPath = (directory: string): string => join(directory, "second.sums");
export const snapshotsPath = (directory: string): string => join(directory, "snapshots");
/** Record of a snapshot. */
export const snapshotRecordPath = (directory: string, name: string): string =>
	join(snapshotsPath(directory), `${name}.json`);
/** What a snapshot kept of the second image, in the format of a first image. */
export const snapshotLogPath = (directory: string, name: string): string =>
	join(snapshotsPath(directory), `${name}.log`);
/** Where clients reach the disk, unless addresses were named. */
export const nbdSocketPath = (directory: string): string => join(directory, "nbd.sock");
/** There while the guest may be frozen on account of the disk's server. */
export const freezingPath = (directory: string): string => join(directory, "freezing");
export const closedPath = (directory: string): string => join(directory, "closed.json");
/** What disk.json says for a second image of the disk's own. */
export const ownSecondImage = (format: "raw" | "qcow2"): string => `second.${format}`;

/** Where the record of a second image lies. */
export const secondImageRecordPath = (directory: string, path: string, kind: "file" | "block-device"): string =>
	kind === "file" ? `${path}.vmsweep` : join(directory, "second.vmsweep");
