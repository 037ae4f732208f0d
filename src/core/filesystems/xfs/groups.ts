// Allocation groups: the free space that each one's AGF and tree prove.
//
//   AGF g ── checksum, place, length ──▶ tree of group g ── sum, longest run ── as the AGF says? ──▶ runs of group g
//
// A group about which anything is wrong is kept whole and reported; it never spoils the next one. AGFs and roots of
// many groups are read at once, since a volume that has grown from a small image has thousands of them.

import { isVmsweepError, VmsweepError } from "../../../foundations/errors.ts";
import type { ByteRange } from "../../../foundations/guest-map.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { type ByteOffset, byteCount, byteOffset } from "../../../foundations/units.ts";
import { FreeRuns } from "./free-runs.ts";
import { readFreeTree, type TreeRoot } from "./free-space.ts";
import { AGF_MAGIC, Agf } from "./layout.ts";
import { isBehindHead } from "./log-records.ts";
import type { MetadataBlock, MetadataView } from "./metadata-view.ts";
import { crc32cOf, type Geometry, groupLength } from "./open.ts";

const GROUPS_AT_ONCE = 32;
/** `XFS_BTREE_MAXLEVELS` */
const MAX_LEVELS = 9;
const MAX_WARNINGS = 16;
/** With so many, reading on tells nobody anything. */
const MAX_BAD_GROUPS = 4096;

interface AgfFacts {
	readonly lsn: bigint;
	readonly root: TreeRoot;
	readonly freeBlocks: number;
	readonly treeBlocks: number;
	readonly heldBlocks: number;
	readonly longest: number;
}

/** What is free in a volume: all groups, each as it was last read. */
export class Allocation {
	readonly geometry: Geometry;
	readonly runs = new FreeRuns();
	/** Per group: free blocks, and how many the superblock's counter has for it. */
	readonly #free: Float64Array;
	readonly #counted: Float64Array;
	/** Groups that are kept whole, and why. */
	readonly #damaged = new Map<number, string>();

	/** All groups as they are in one view; `headLsn` is where its log ends. Throws what {@link read} throws. */
	static async ofAll(view: MetadataView, geometry: Geometry, headLsn: bigint): Promise<Allocation> {
		const allocation = new Allocation(geometry);
		await allocation.read(view, allGroups(geometry), headLsn);
		return allocation;
	}

	constructor(geometry: Geometry) {
		this.geometry = geometry;
		this.#free = new Float64Array(geometry.agCount);
		this.#counted = new Float64Array(geometry.agCount);
	}

	get freeBlocks(): number {
		return sumOf(this.#free);
	}
	/** What the superblock's counter should say: also blocks that groups hold for their trees or that are in these. */
	get countedBlocks(): number {
		return sumOf(this.#counted);
	}
	get badGroupCount(): number {
		return this.#damaged.size;
	}
	get warnings(): readonly string[] {
		const warnings = [...this.#damaged]
			.slice(0, MAX_WARNINGS)
			.map(([group, why]) => `allocation group ${group} is kept whole: ${why}; run xfs_repair in the guest`);
		if (this.#damaged.size > MAX_WARNINGS)
			warnings.push(`${this.#damaged.size - MAX_WARNINGS} more allocation groups are kept whole`);
		return warnings;
	}

	/**
	 * Reads groups, for the first time or again. `headLsn`: where the log ends; kernels take log positions behind it for
	 * damage. Throws only what the source throws, and VOLUME_DAMAGED where too many groups are damaged.
	 */
	async read(view: MetadataView, groups: readonly number[], headLsn: bigint): Promise<void> {
		const newerThanLog = (lsn: bigint): boolean => isBehindHead(lsn, headLsn);
		for (let from = 0; from < groups.length; from += GROUPS_AT_ONCE) {
			const some = groups.slice(from, from + GROUPS_AT_ONCE);
			const agfs = await Promise.all(some.map((group) => orDamage(readAgf(view, this.geometry, group, newerThanLog))));
			for (const [index, agf] of agfs.entries()) await this.#readGroup(view, some[index]!, agf, newerThanLog);
		}
	}

	async #readGroup(
		view: MetadataView,
		group: number,
		agf: AgfFacts | string,
		newerThanLog: (lsn: bigint) => boolean,
	): Promise<void> {
		this.#damaged.delete(group);
		this.runs.openGroup(group);
		const why =
			typeof agf === "string" ? agf : await orDamage(readGroup(view, this.geometry, agf, this.runs, newerThanLog));
		if (typeof agf !== "string" && why === undefined) {
			this.runs.closeGroup();
			this.#free[group] = agf.freeBlocks;
			this.#counted[group] = agf.freeBlocks + agf.heldBlocks + agf.treeBlocks;
			return;
		}
		this.runs.dropGroup();
		this.#free[group] = 0;
		this.#counted[group] = 0;
		if (this.#damaged.size === MAX_BAD_GROUPS)
			throw damaged(`more than ${MAX_BAD_GROUPS} of its allocation groups are damaged; run xfs_repair in the guest`);
		this.#damaged.set(group, why!);
	}

	/** Free runs inside `[from, to)` of the volume, in order, in bytes. */
	*freeRuns(from: ByteOffset, to: ByteOffset): Generator<ByteRange> {
		const { blockSize, agBlocks, agCount } = this.geometry;
		const groupBytes = agBlocks * blockSize;
		for (let group = Math.floor(from / groupBytes); group < agCount; group++) {
			const groupStart = group * groupBytes;
			if (groupStart >= to) return;
			const firstBlock = Math.max(0, Math.floor((from - groupStart) / blockSize));
			for (const run of this.runs.runsOf(group, firstBlock)) {
				const start = Math.max(from, groupStart + run.start * blockSize);
				const end = Math.min(to, groupStart + (run.start + run.length) * blockSize);
				if (start >= to) return;
				if (end > start) yield { start: byteOffset(start), length: byteCount(end - start) };
			}
		}
	}
}

/** Every group of a volume. */
export const allGroups = ({ agCount }: Geometry): number[] => Array.from({ length: agCount }, (_, group) => group);

const sumOf = (numbers: Float64Array): number => numbers.reduce((sum, number) => sum + number, 0);

/** The result, or what is damaged. Other errors (IO, the budget of reads) go on. */
async function orDamage<T>(work: Promise<T>): Promise<T | string> {
	try {
		return await work;
	} catch (error) {
		if (isVmsweepError(error, "VOLUME_DAMAGED")) return error.message;
		throw error;
	}
}

async function readAgf(
	view: MetadataView,
	geometry: Geometry,
	group: number,
	newerThanLog: (lsn: bigint) => boolean,
): Promise<AgfFacts> {
	const { sectorSize } = geometry;
	const at = group * geometry.agBlocks * geometry.blockSize + sectorSize;
	return checkAgf(await view.read(at, sectorSize), geometry, group, newerThanLog);
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);

function checkAgf(
	{ bytes, replayed }: MetadataBlock,
	geometry: Geometry,
	group: number,
	newerThanLog: (lsn: bigint) => boolean,
): AgfFacts {
	const agf = Agf.at(viewOf(bytes));
	if (agf.magic !== AGF_MAGIC || agf.version !== 1) throw damaged("its AGF has no magic number");
	if (geometry.version === 5) {
		if (!replayed && crc32cOf(bytes, Agf.offset.checksum) !== agf.checksum)
			throw damaged("its AGF has a wrong checksum");
		if (!geometry.metadataUuid.every((byte, at) => byte === agf.uuid[at]))
			throw damaged("its AGF belongs to another file system");
		if (!replayed && newerThanLog(agf.lsn)) throw damaged("its AGF is newer than the log");
	}
	const length = groupLength(geometry, group);
	if (agf.sequence !== group) throw damaged(`its AGF is that of group ${agf.sequence}`);
	if (agf.length !== length) throw damaged(`its AGF says ${agf.length} blocks, the superblock ${length}`);
	if (agf.freeBlocks > length || agf.longest > agf.freeBlocks)
		throw damaged(`its AGF says ${agf.freeBlocks} free blocks of ${length}`);
	if (agf.byBlockLevels < 1 || agf.byBlockLevels > MAX_LEVELS)
		throw damaged(`its tree of free blocks has ${agf.byBlockLevels} levels`);
	const root = { group, block: agf.byBlockRoot, levels: agf.byBlockLevels };
	const { lsn, freeBlocks, longest, heldBlocks, treeBlocks } = agf;
	return { lsn, root, freeBlocks, longest, heldBlocks, treeBlocks };
}

/** The log position of a group's AGF as it was written home; null where `sector` can't be that. */
export function agfLsn(sector: Uint8Array, geometry: Geometry, group: number): bigint | null {
	try {
		return checkAgf({ bytes: sector, replayed: false }, geometry, group, () => false).lsn;
	} catch (error) {
		if (isVmsweepError(error, "VOLUME_DAMAGED")) return null;
		throw error;
	}
}

/** Adds a group's runs to `runs`, left open. */
async function readGroup(
	view: MetadataView,
	geometry: Geometry,
	agf: AgfFacts,
	runs: FreeRuns,
	newerThanLog: (lsn: bigint) => boolean,
): Promise<void> {
	let found: Awaited<ReturnType<typeof readFreeTree>>;
	try {
		found = await readFreeTree(view, geometry, agf.root, runs, newerThanLog);
	} catch (error) {
		if (!isVmsweepError(error, "VOLUME_DAMAGED")) throw error;
		throw damaged(`its tree of free blocks is damaged, ${error.message}`);
	}
	const { group } = agf.root;
	const { log } = geometry;
	if (log?.group === group && runs.overlaps(group, log.firstBlock, log.firstBlock + log.blockCount))
		throw damaged("it says that blocks of the log are free");
	if (found.freeBlocks !== agf.freeBlocks || found.longest !== agf.longest)
		throw damaged(
			`its AGF says ${agf.freeBlocks} free blocks, ${agf.longest} in a row, its tree ${found.freeBlocks} and ${found.longest}`,
		);
}
