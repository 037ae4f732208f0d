// Allocated runs: which parts of a file take host space, data or not.
//
// SEEK_DATA shows where data is, but not space that was reserved without data (`fallocate`, and what loop devices and
// mke2fs make of zeros). FIEMAP shows both. Record: struct fiemap and struct fiemap_extent of <linux/fiemap.h>.

import { struct, u32le, u64le } from "../../foundations/struct.ts";
import { type DataRun, dataRuns } from "./data-runs.ts";
import { ioctl, pin } from "./syscalls.ts";

const FS_IOC_FIEMAP = 0xc020660b;
/** Extents asked for in one call. */
const EXTENTS_PER_CALL = 512;
const LAST = 0x1;

const Request = struct("fiemap", 32, {
	start: u64le(0x00),
	length: u64le(0x08),
	flags: u32le(0x10),
	mappedCount: u32le(0x14),
	extentCount: u32le(0x18),
});
const FoundExtent = struct("fiemap_extent", 56, {
	logical: u64le(0x00),
	length: u64le(0x10),
	flags: u32le(0x28),
});

/** Answers for one open file. Where the host has no FIEMAP, data is all that is known to take space. */
export class AllocatedRuns {
	readonly #fd: number;
	readonly #buffer = pin(Request.size + EXTENTS_PER_CALL * FoundExtent.size);
	readonly #view: DataView;
	#hasFiemap = true;

	constructor(fd: number) {
		this.#fd = fd;
		const { buffer, byteOffset, byteLength } = this.#buffer.bytes;
		this.#view = new DataView(buffer, byteOffset, byteLength);
	}

	/** The runs inside `[from, to)` that take space, in order. Finish one walk before the next begins. */
	*within(from: number, to: number): Generator<DataRun> {
		let at = from;
		while (at < to && this.#hasFiemap) {
			const runs = this.#ask(at, to);
			if (runs === undefined) break;
			const { found, end } = runs;
			yield* found;
			at = end;
		}
		if (!this.#hasFiemap) yield* dataRuns(this.#fd, at, to);
	}

	/** One call: what it found, clipped, and where to ask next. Undefined where the host can't answer. */
	#ask(from: number, to: number): { readonly found: readonly DataRun[]; readonly end: number } | undefined {
		this.#buffer.bytes.fill(0, 0, Request.size);
		Request.put(this.#view, 0, {
			start: from,
			length: to - from,
			flags: 0,
			mappedCount: 0,
			extentCount: EXTENTS_PER_CALL,
		});
		if (ioctl(this.#fd, FS_IOC_FIEMAP, this.#buffer.address) < 0) {
			this.#hasFiemap = false;
			return undefined;
		}
		const count = Math.min(Request.read.mappedCount(this.#view, 0), EXTENTS_PER_CALL);
		const found: DataRun[] = [];
		let end = from;
		let last = count < EXTENTS_PER_CALL;
		for (let index = 0; index < count; index++) {
			const base = Request.size + index * FoundExtent.size;
			const logical = FoundExtent.read.logical(this.#view, base);
			const start = Math.max(logical, end);
			const stop = Math.min(logical + FoundExtent.read.length(this.#view, base), to);
			if ((FoundExtent.read.flags(this.#view, base) & LAST) !== 0) last = true;
			if (stop <= start) continue;
			found.push({ start, end: stop });
			end = stop;
		}
		// A full answer without progress would be asked for ever.
		return { found, end: last || end === from ? to : end };
	}
}
