// ext2, ext3 and ext4: what such a volume uses and what is free in it, from its own metadata alone.
//
// A volume is believed in exactly two conditions: unmounted cleanly, or with an internal journal that can be
// applied. Everything else (errors recorded, no journal and still mounted, a journal elsewhere, fast commits
// pending, features not known here) is kept whole, with one sentence that says why.

import { isVmsweepError, VmsweepError } from "../../../foundations/errors.ts";
import type { FileSystemMap, VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import { Allocation, readDescriptors } from "./free-space.ts";
import { overlaid, readJournalInfo, replay } from "./journal.ts";
import type { JournalRun } from "./journal-file.ts";
import { findJournal } from "./journal-file.ts";
import { SUPERBLOCK_AT, SuperBlock } from "./layout.ts";
import type { Geometry, Identity } from "./open.ts";
import { identify, parseSuperblock, readSuperblock } from "./open.ts";

const refuse = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** A volume with its journal applied in memory: ready for its free space to be read. */
export interface Recovered {
	readonly geometry: Geometry;
	/** The volume as journal recovery would leave it. */
	readonly view: ByteSource;
	readonly journal: readonly JournalRun[];
	readonly state: VolumeState;
}

/** Checks that the superblock allows its volume to be believed at all; throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED. */
export function checkBelievable(geometry: Geometry): void {
	if (geometry.error) throw new VmsweepError("VOLUME_DAMAGED", "the guest has recorded errors in it; run e2fsck in the guest");
	if (geometry.journalIsExternal) throw refuse("its journal is on another device, which is not supported");
	if (!geometry.valid)
		throw geometry.has.journal
			? new VmsweepError("VOLUME_DAMAGED", "it was not unmounted cleanly before its journal was added; run e2fsck in the guest")
			: refuse("it is mounted, or was not unmounted cleanly, and has no journal to tell its true state; unmount it in the guest");
}

/** Applies the journal in memory. Throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED where the volume must be kept whole. */
export async function recover(volume: ByteSource, raw: Uint8Array): Promise<Recovered> {
	const home = parseSuperblock(raw, volume.size);
	checkBelievable(home);
	if (!home.has.journal) {
		if (home.has.recover) throw new VmsweepError("VOLUME_DAMAGED", "it needs journal recovery but has no journal");
		return { geometry: home, view: volume, journal: [], state: "clean" };
	}
	const file = await findJournal(volume, home);
	const info = await readJournalInfo(volume, home, file);
	if (info.errorNumber !== 0) throw new VmsweepError("VOLUME_DAMAGED", "its journal was aborted after an error; run e2fsck in the guest");
	if (!home.has.recover) {
		if (info.start !== 0)
			throw new VmsweepError("VOLUME_DAMAGED", "its journal holds transactions, but its superblock says that none are needed; run e2fsck in the guest");
		return { geometry: home, view: volume, journal: file.runs, state: "clean" };
	}
	const outcome = await replay(volume, home, file, info);
	if (outcome.fastCommitPending) throw refuse("fast commits wait in its journal; mount it in the guest, then try again");
	const view = overlaid(volume, home.blockSize, outcome.blocks);
	const geometry = parseSuperblock(await readBytes(view, byteOffset(SUPERBLOCK_AT), SuperBlock.size), volume.size);
	checkBelievable(geometry);
	if (geometry.identity.uuid !== home.identity.uuid || geometry.blockSize !== home.blockSize || geometry.journalInode !== home.journalInode)
		throw new VmsweepError("VOLUME_DAMAGED", "its journal belongs to another file system; run e2fsck in the guest");
	return { geometry, view, journal: file.runs, state: "dirty" };
}

/** Reads all groups of a recovered volume and cross-checks the totals. */
export async function readAllocation({ geometry, view, journal, state }: Recovered): Promise<Allocation> {
	const allocation = new Allocation(geometry, await readDescriptors(view, geometry), journal);
	await allocation.readGroups(view, Array.from({ length: geometry.groupCount }, (_, group) => group));
	const total = allocation.groups.reduce((sum, group) => sum + group.freeClusters, 0);
	if (state === "clean" && allocation.badGroupCount === 0 && total !== geometry.freeClusters)
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			`its superblock says ${geometry.freeClusters} free units, its groups ${total}; run e2fsck in the guest`,
		);
	return allocation;
}

/**
 * Maps a volume, or returns null where it has no ext superblock. A volume that cannot be believed comes back with
 * `kept` set. Throws only what the source throws (IO, READ_BUDGET).
 */
export async function readExt(volume: ByteSource): Promise<FileSystemMap | null> {
	const raw = await readSuperblock(volume);
	if (raw === null) return null;
	const identity = identify(raw);
	try {
		const recovered = await recover(volume, raw);
		return describe(await readAllocation(recovered), recovered.state);
	} catch (error) {
		if (!isVmsweepError(error) || (error.code !== "VOLUME_DAMAGED" && error.code !== "VOLUME_UNSUPPORTED")) throw error;
		return keptWhole(identity, volume, error.message);
	}
}

function describe(allocation: Allocation, state: VolumeState): FileSystemMap {
	const { identity, blockSize, blocksCount } = allocation.geometry;
	const size = blocksCount * blockSize;
	const free = allocation.freeBytes();
	return {
		type: identity.type,
		uuid: identity.uuid,
		label: identity.label,
		state,
		blockSize: byteCount(blockSize),
		size: byteCount(size),
		usedBytes: byteCount(size - free),
		freeBytes: byteCount(free),
		kept: null,
		warnings: allocation.warnings,
		*freeRuns(from, to) {
			for (const { start, length } of allocation.freeRuns(from, to)) yield { start: byteOffset(start), length: byteCount(length) };
		},
	};
}

function keptWhole(identity: Identity, volume: ByteSource, why: string): FileSystemMap {
	return {
		type: identity.type,
		uuid: identity.uuid,
		label: identity.label,
		state: identity.clean ? "clean" : "dirty",
		blockSize: identity.blockSize,
		size: volume.size,
		usedBytes: null,
		freeBytes: null,
		kept: why,
		warnings: [],
		freeRuns: () => [],
	};
}
