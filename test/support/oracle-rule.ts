// The live rule applied to a recording, at every commit or at random: what would have become of the disk (live-safety 9.1, 9.2).
//
//   writes in order ─► model disk ─► observe, and at each view point advance on the model as it is then
//                   ─► every free settled block of the model is dropped: marked, and really zeroed
//                   ─► a later write to it brings it back
//
// The model at the end is the disk as a guest would find it. fsck is no judge of it: compare what the files hold.

import type { LiveVolume, MetadataWrite, WatchRange } from "../../src/core/filesystems/live.ts";
import type { ByteSource } from "../../src/foundations/source.ts";
import { BLOCK_SIZE, byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";
import type { RecordedWrite, Recording } from "./oracle-recording.ts";

export interface RuleOutcome {
	/** The disk with everything dropped that the rule dropped and nobody wrote again. */
	readonly disk: Uint8Array;
	readonly judged: number;
	readonly droppedBlocks: number;
	/** Dropped and not written again at the end. */
	readonly stillDropped: number;
	/** Dropped, then found allocated, and up to the end neither written again nor freed. */
	readonly lateBlocks: number;
	readonly incarnations: number;
	readonly reasons: readonly string[];
}

export interface RuleOptions {
	/** Starts to follow the volume. */
	readonly open: (view: ByteSource) => Promise<LiveVolume>;
	/** Position behind mkfs: the rule is asked from there on. */
	readonly from: number;
	/** Must never be dropped: superblocks, descriptors, bitmaps, inode tables, the journal. In 4 KiB blocks. */
	readonly metadata?: ReadonlySet<number>;
	/** Whether to judge behind the next write, of a volume that can be judged anywhere. */
	readonly judgeNow?: () => boolean;
	/** Called after each judgement that says what is free. */
	readonly onJudged?: (disk: Uint8Array, volume: LiveVolume) => Promise<void>;
}

export const memory = (bytes: Uint8Array): ByteSource => ({
	size: byteCount(bytes.length),
	async read(at, into) {
		into.set(bytes.subarray(at, at + into.length));
	},
});

/** Plays a recording. Throws where the rule drops metadata. */
export async function playRule({ size, writes }: Recording, options: RuleOptions): Promise<RuleOutcome> {
	const disk = new Uint8Array(size);
	const blocks = Math.ceil(size / BLOCK_SIZE);
	const begin = writes.findIndex(({ end }) => end > options.from);
	for (const write of writes.slice(0, begin)) apply(disk, write);

	const volume = await options.open(memory(disk));
	let watch = volume.watch();
	const lastWrite = new Float64Array(blocks).fill(-1);
	const dropped = new Uint8Array(blocks);
	const late = new Set<number>();
	const reasons = new Set<string>();
	let judged = 0;
	let droppedBlocks = 0;
	for (const write of writes.slice(begin)) {
		apply(disk, write);
		for (let block = Math.floor(write.at / BLOCK_SIZE); block * BLOCK_SIZE < write.at + write.length; block++) {
			lastWrite[block] = write.position;
			dropped[block] = 0;
			late.delete(block);
		}
		if (write.unchanged) continue;
		await volume.observe([asMetadataWrite(write)]);
		if (volume.viewPoints === "marked" ? !isMarked(watch, write) : options.judgeNow?.() !== true) continue;
		const state = await volume.advance(memory(disk), logPosition(write.end));
		if (state.watchChanged) watch = volume.watch();
		if (state.kind === "keep") {
			reasons.add(state.reason);
			continue;
		}
		judged++;
		await options.onJudged?.(disk, volume);
		const free = new Uint8Array(blocks);
		for (const run of volume.freeRuns(byteOffset(0), byteOffset(size)))
			free.fill(1, Math.ceil(run.start / BLOCK_SIZE), Math.floor((run.start + run.length) / BLOCK_SIZE));
		for (let block = 0; block < blocks; block++) {
			if (dropped[block] === 1) {
				if (free[block] === 1) late.delete(block);
				else late.add(block);
			} else if (free[block] === 1 && lastWrite[block]! < state.settled) {
				if (options.metadata?.has(block)) throw new Error(`block ${block} is metadata and was dropped at ${write.end}`);
				dropped[block] = 1;
				droppedBlocks++;
				disk.fill(0, block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
			}
		}
	}
	const stillDropped = dropped.reduce((sum, one) => sum + one, 0);
	return {
		disk,
		judged,
		droppedBlocks,
		stillDropped,
		lateBlocks: late.size,
		incarnations: volume.incarnation,
		reasons: [...reasons],
	};
}

/** The disk as it was recorded, without any dropping. */
export function playWrites({ size, writes }: Recording): Uint8Array {
	const disk = new Uint8Array(size);
	for (const write of writes) apply(disk, write);
	return disk;
}

function apply(disk: Uint8Array, { at, length, bytes }: RecordedWrite): void {
	if (bytes === undefined) disk.fill(0, at, at + length);
	else disk.set(bytes, at);
}

const asMetadataWrite = ({ at, length, bytes, position, end }: RecordedWrite): MetadataWrite => ({
	at: byteOffset(at),
	length: byteCount(length),
	position: logPosition(position),
	end: logPosition(end),
	read: async () => bytes ?? new Uint8Array(length),
});

/** True where the write ends with a unit that begins with its range's commit mark. */
function isMarked(watch: readonly WatchRange[], { at, length, bytes }: RecordedWrite): boolean {
	if (bytes === undefined) return false;
	const range = watch.find(
		({ start, length: size, mark }) => mark !== undefined && at >= start && at + length <= start + size,
	);
	const mark = range?.mark;
	if (mark === undefined || length < mark.every) return false;
	const unit = length - mark.every;
	return mark.pattern.every((byte, i) => bytes[unit + i] === byte);
}
