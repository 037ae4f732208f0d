// Allocation groups: the free space that each one's AGF and tree prove.
//
//   AGF g ── checksum, place, length ──▶ tree of group g ── sum, longest run ── as the AGF says? ──▶ runs of group g
//
// A group about which anything is wrong is kept whole and reported; it never spoils the next one. AGFs and roots of
// many groups are read at once, since a volume that has grown from a small image has thousands of them.

import { isVmsweepError, VmsweepError } from "../../../foundations/errors.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { FreeRuns } from "./free-runs.ts";
import { readFreeTree, type TreeRoot } from "./free-space.ts";
import { AGF_MAGIC, Agf } from "./layout.ts";
import type { MetadataBlock, MetadataView } from "./metadata-view.ts";
import { crc32cOf, type Geometry, groupLength } from "./open.ts";

const GROUPS_AT_ONCE = 32;
/** `XFS_BTREE_MAXLEVELS` */
const MAX_LEVELS = 9;
const MAX_WARNINGS = 16;
/** With so many, reading on tells nobody anything. */
const MAX_BAD_GROUPS = 4096;

/** What is free in a volume. */
export interface Allocation {
	readonly runs: FreeRuns;
	readonly freeBlocks: number;
	/** What the superblock's counter should say: also blocks that groups hold for their trees or that are in these. */
	readonly countedBlocks: number;
	readonly badGroupCount: number;
	readonly warnings: readonly string[];
}

interface AgfFacts {
	readonly root: TreeRoot;
	readonly freeBlocks: number;
	readonly treeBlocks: number;
	readonly heldBlocks: number;
	readonly longest: number;
}

/**
 * Reads all groups. `newerThanLog` tells whether a log position lies behind the end of the log, which kernels take
 * for damage. Throws only what the source throws.
 */
export async function readGroups(
	view: MetadataView,
	geometry: Geometry,
	newerThanLog: (lsn: bigint) => boolean,
): Promise<Allocation> {
	const runs = new FreeRuns();
	const warnings: string[] = [];
	let freeBlocks = 0;
	let countedBlocks = 0;
	let badGroupCount = 0;
	for (let from = 0; from < geometry.agCount; from += GROUPS_AT_ONCE) {
		const groups = Array.from({ length: Math.min(GROUPS_AT_ONCE, geometry.agCount - from) }, (_, i) => from + i);
		const agfs = await Promise.all(groups.map((group) => orDamage(readAgf(view, geometry, group, newerThanLog))));
		for (const [index, agf] of agfs.entries()) {
			const group = groups[index]!;
			const read = async (facts: AgfFacts): Promise<AgfFacts> => {
				await readGroup(view, geometry, facts, runs, newerThanLog);
				return facts;
			};
			const facts = typeof agf === "string" ? agf : await orDamage(read(agf));
			if (typeof facts !== "string") {
				runs.closeGroup();
				freeBlocks += facts.freeBlocks;
				countedBlocks += facts.freeBlocks + facts.heldBlocks + facts.treeBlocks;
				continue;
			}
			runs.dropGroup();
			if (badGroupCount === MAX_BAD_GROUPS)
				throw damaged(`more than ${MAX_BAD_GROUPS} of its allocation groups are damaged; run xfs_repair in the guest`);
			if (++badGroupCount <= MAX_WARNINGS)
				warnings.push(`allocation group ${group} is kept whole: ${facts}; run xfs_repair in the guest`);
		}
	}
	if (badGroupCount > MAX_WARNINGS)
		warnings.push(`${badGroupCount - MAX_WARNINGS} more allocation groups are kept whole`);
	return { runs, freeBlocks, countedBlocks, badGroupCount, warnings };
}

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
	const { freeBlocks, longest, heldBlocks, treeBlocks } = agf;
	return { root, freeBlocks, longest, heldBlocks, treeBlocks };
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
