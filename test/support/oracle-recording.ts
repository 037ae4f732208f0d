// A recording: every write of a guest, in order, read from the first image of a disk that was served without
// cleaning. Uses the product's own format and recovery; nothing is written.
//
//   first.log ─ recovery ─► entries in order ─► one write per 4 KiB block, with its log position
//
// The log keeps whole 4 KiB blocks. Where the guest writes in smaller units (1 KiB file systems), each block is split
// into the runs of units that changed: what the product's notices would have said. A write that changed nothing is kept
// with `unchanged`: it counts as a write, but nobody knows which units it wrote.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { crc32 } from "node:zlib";
import { geometryOf, KIND_DATA, KIND_DROP, offsetOfPlace } from "../../src/core/log/format.ts";
import type { HostFile } from "../../src/core/log/host-file.ts";
import { Recovery, readSuperblock } from "../../src/core/log/recovery.ts";
import { ALL_SAFEGUARDS } from "../../src/core/log/state.ts";
import { BLOCK_SIZE, type ByteOffset, byteOffset } from "../../src/foundations/units.ts";

/** One write within one 4 KiB block. */
export interface RecordedWrite {
	readonly at: number;
	/** Undefined where the guest zeroed or trimmed; then `length` may be many blocks. */
	readonly bytes: Uint8Array | undefined;
	readonly length: number;
	readonly position: number;
	readonly end: number;
	readonly unchanged: boolean;
}

export interface Recording {
	readonly size: number;
	readonly writes: readonly RecordedWrite[];
}

/** Reads a whole log. `unit` is the size in which the guest writes. Throws where the log is not from its beginning. */
export function readRecording(path: string, unit = BLOCK_SIZE): Recording {
	const fd = openSync(path, "r");
	try {
		const file = readOnly(fd);
		const { superblock, copy } = readSuperblock(file, path);
		if (superblock.freedSequence !== 0) throw new Error(`${path}: segments were freed, so it holds no whole recording`);
		const geometry = geometryOf(superblock.segmentBytes, superblock.summaryBytes);
		const disk = new Uint8Array(Math.ceil(superblock.diskBytes / BLOCK_SIZE) * BLOCK_SIZE);
		const writes: RecordedWrite[] = [];
		let first = 0;
		let segmentAt = 0;
		new Recovery(file, path, superblock, (bytes) => crc32(bytes), ALL_SAFEGUARDS).run(copy, {
			segment({ place, header }) {
				first = header.sequence * geometry.slotsPerSegment;
				segmentAt = offsetOfPlace(geometry, place) + geometry.leadBlocks * BLOCK_SIZE;
			},
			entry(summary, entry) {
				const [block, count] = [summary.block(entry), summary.count(entry)];
				const slot = summary.slot(entry);
				const kind = summary.kind(entry);
				if (kind === KIND_DROP) throw new Error(`${path}: was recorded with cleaning on`);
				if (kind !== KIND_DATA) {
					const at = block * BLOCK_SIZE;
					const length = count * BLOCK_SIZE;
					disk.fill(0, at, at + length);
					writes.push({ at, length, bytes: undefined, position: first + slot, end: first + slot, unchanged: false });
					return;
				}
				const data = new Uint8Array(count * BLOCK_SIZE);
				file.read(byteOffset(segmentAt + slot * BLOCK_SIZE), data);
				for (let i = 0; i < count; i++) {
					const at = (block + i) * BLOCK_SIZE;
					const bytes = data.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
					const position = first + slot + i;
					const stamp = { position, end: position + 1 };
					const runs = changedRuns(disk.subarray(at, at + BLOCK_SIZE), bytes, unit);
					for (const [from, to] of runs)
						writes.push({
							...stamp,
							at: at + from,
							length: to - from,
							bytes: bytes.subarray(from, to),
							unchanged: false,
						});
					if (runs.length === 0) writes.push({ ...stamp, at, length: BLOCK_SIZE, bytes, unchanged: true });
					disk.set(bytes, at);
				}
			},
		});
		return { size: superblock.diskBytes, writes };
	} finally {
		closeSync(fd);
	}
}

/** Runs of units that differ; everything where the unit is the block. */
function changedRuns(before: Uint8Array, after: Uint8Array, unit: number): [from: number, to: number][] {
	if (unit >= BLOCK_SIZE) return [[0, BLOCK_SIZE]];
	const runs: [number, number][] = [];
	for (let at = 0; at < BLOCK_SIZE; at += unit) {
		if (Buffer.compare(before.subarray(at, at + unit), after.subarray(at, at + unit)) === 0) continue;
		const last = runs.at(-1);
		if (last !== undefined && last[1] === at) last[1] = at + unit;
		else runs.push([at, at + unit]);
	}
	return runs;
}

/** The log's file for recovery, which then finds all of it durable already. */
function readOnly(fd: number): HostFile {
	return {
		size: () => fstatSync(fd).size,
		read(at: ByteOffset, into: Uint8Array) {
			let done = 0;
			while (done < into.length) {
				const count = readSync(fd, into, done, into.length - done, at + done);
				if (count === 0) break;
				done += count;
			}
			into.fill(0, done);
		},
		write() {},
		writeGather() {},
		datasync() {},
		punch() {},
		allocate() {},
		truncate() {},
	};
}
