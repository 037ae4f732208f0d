// What all readers say alike: who a volume is, and that it is kept whole, and why.

import { isVmsweepError, type VmsweepError } from "../../foundations/errors.ts";
import type { FileSystemMap, VolumeState } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { byteCount } from "../../foundations/units.ts";

/** Who a volume says it is; known even of volumes that are kept whole. */
export interface VolumeIdentity {
	readonly type: string;
	readonly uuid: string | null;
	readonly label: string | null;
	/** Bytes of a cluster, or of what else the file system hands out; null where that is not known. */
	readonly blockSize: number | null;
}

/** The map of a volume that is kept whole, and the sentence that says why. */
export function keptWhole(
	identity: VolumeIdentity,
	state: VolumeState,
	volume: ByteSource,
	why: string,
	warnings: readonly string[] = [],
): FileSystemMap {
	return {
		...named(identity),
		state,
		size: volume.size,
		usedBytes: null,
		freeBytes: null,
		kept: why,
		warnings,
		freeRuns: () => [],
	};
}

/** The sentence of an error that means "this volume cannot be believed", or null for one that must go on up. */
export const reasonToKeep = (error: unknown): string | null =>
	isVmsweepError(error) && (error.code === "VOLUME_DAMAGED" || error.code === "VOLUME_UNSUPPORTED")
		? error.message
		: null;

/** True for what a volume's bytes lead to: it can't be believed. Errors of the disk itself must go on up. */
export const isVolumeError = (error: unknown): error is VmsweepError =>
	isVmsweepError(error) && (error.kind === "corrupt" || error.kind === "unsupported" || error.code === "OUT_OF_RANGE");

/** What makes an end of such an error. */
export const solutionOf = ({ kind }: VmsweepError): "support" | "repair" =>
	kind === "unsupported" ? "support" : "repair";

/** The identity as a map has it. */
export const named = ({ type, uuid, label, blockSize }: VolumeIdentity) => ({
	type,
	uuid,
	label,
	blockSize: blockSize === null ? null : byteCount(blockSize),
});
