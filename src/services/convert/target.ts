// A conversion's target: what it is written to, and what all kinds of it share.
//
//   TARGET.vmsweep-….part ─► written, made durable ─► linked to its name, which must be free

import { randomBytes } from "node:crypto";
import { link, rename, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { syncDirectory } from "../../adapters/images/durable-json.ts";
import { ioError } from "../../adapters/images/write-run.ts";
import { VmsweepError } from "../../foundations/errors.ts";

/** What a conversion writes to. Pieces come in whole granules, in any order, each once. */
export interface ConvertTarget {
	readonly format: "raw" | "qcow2";
	/** In bytes. */
	readonly granule: number;
	/** Host space of the target; right after `finish`. */
	readonly hostBytes: number;
	/** What there is of the target when it is abandoned now, as a part of a sentence. */
	readonly left: string;
	/** Writes what is not zero of a piece; returns how many bytes that is. `bytes` is the caller's again afterwards. */
	write(at: number, bytes: Uint8Array): Promise<number>;
	/** Makes the target durable and gives it its name. */
	finish(): Promise<void>;
	/** Removes what is there so far; a device keeps what was written. Never throws. */
	abandon(): Promise<void>;
}

/** A run of the disk's bytes; `end` is exclusive. */
export interface Piece {
	readonly start: number;
	readonly end: number;
}

/** A name for the unfinished file, beside its place so that it can be linked there. */
export const partName = (name: string): string => `${name}.vmsweep-${randomBytes(4).toString("hex")}.part`;

/** What went wrong with an unfinished file went wrong with the target: the user knows no other name. */
export function aboutTarget(error: unknown): unknown {
	if (!(error instanceof VmsweepError)) return error;
	const message = error.message.replaceAll(/\.vmsweep-[0-9a-f]{8}\.part\b/g, "");
	return new VmsweepError(error.code, message, { cause: error });
}

/** Names a finished file, unless somebody made a file of that name meanwhile. */
export async function giveName(part: string, name: string): Promise<void> {
	try {
		await link(part, name);
		await unlink(part);
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === "EEXIST")
			throw new VmsweepError("FILE_EXISTS", `${name} was made by somebody else meanwhile. Choose another name.`);
		// File systems without links (FAT, some FUSE ones).
		await rename(part, name).catch((cause: unknown) => {
			throw ioError(cause, `${name}: giving the finished image its name failed`);
		});
	}
	await syncDirectory(dirname(name));
}

/** Bytes written between two flushes. */
const FLUSH_BYTES = 256 * 1024 * 1024;

/** Flushes while the copying goes on, so that the last flush finds little to do. */
export class EarlyFlusher {
	readonly #flush: () => Promise<void>;
	#bytes = 0;
	#underWay: Promise<void> | undefined;
	#failure: { readonly error: unknown } | undefined;

	constructor(flush: () => Promise<void>) {
		this.#flush = flush;
	}

	/** Takes note of written bytes. */
	note(bytes: number): void {
		this.#bytes += bytes;
		if (this.#bytes < FLUSH_BYTES || this.#underWay !== undefined) return;
		this.#bytes = 0;
		this.#underWay = this.#flush()
			.catch((error: unknown) => {
				this.#failure ??= { error };
			})
			.finally(() => {
				this.#underWay = undefined;
			});
	}

	/** Resolves when nothing is under way; throws what a flush failed with. */
	async settled(): Promise<void> {
		await this.#underWay;
		if (this.#failure !== undefined) throw this.#failure.error as Error;
	}
}
