// Recovery in memory: a volume as its journal would leave it, and the conditions under which it may be believed.
//
//   superblock ─▶ believable? ─▶ journal's inode ─▶ journal ─▶ overlay ─▶ superblock again ─▶ groups
//
// The superblock is read twice, since the journal may hold a newer one (resize, recorded errors).

import { VmsweepError } from "../../../foundations/errors.ts";
import type { VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { Allocation, readDescriptors } from "./free-space.ts";
import type { Replay } from "./journal.ts";
import { overlaid, readJournalInfo, replay } from "./journal.ts";
import type { JournalInfo } from "./journal-blocks.ts";
import type { JournalFile } from "./journal-file.ts";
import { findJournal } from "./journal-file.ts";
import { SUPERBLOCK_AT, SuperBlock } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { parseSuperblock } from "./open.ts";

const refuse = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** A volume with its journal applied in memory: ready for its free space to be read. */
export interface Recovered {
	readonly geometry: Geometry;
	/** The volume as journal recovery would leave it. */
	readonly view: ByteSource;
	/** The internal journal and what it holds, null without one. */
	readonly journal: Journal | null;
	readonly state: VolumeState;
}

export interface Journal {
	readonly file: JournalFile;
	readonly info: JournalInfo;
	/** What recovery would do; null where the journal is empty or need not be applied. */
	readonly replay: Replay | null;
}

/** Checks that the superblock allows its volume to be believed at all; throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED. */
export function checkBelievable(geometry: Geometry): void {
	if (geometry.error)
		throw new VmsweepError("VOLUME_DAMAGED", "the guest has recorded errors in it; run e2fsck in the guest");
	if (geometry.journalIsExternal) throw refuse("its journal is on another device, which is not supported");
	if (!geometry.valid)
		throw geometry.has.journal
			? new VmsweepError(
					"VOLUME_DAMAGED",
					"it was not unmounted cleanly before its journal was added; run e2fsck in the guest",
				)
			: refuse(
					"it is mounted, or was not unmounted cleanly, and has no journal to tell its true state; unmount it in the guest",
				);
}

/** Applies the journal in memory. Throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED where the volume must be kept whole. */
export async function recover(volume: ByteSource, raw: Uint8Array): Promise<Recovered> {
	const home = parseSuperblock(raw, volume.size);
	checkBelievable(home);
	if (!home.has.journal) {
		if (home.has.recover) throw new VmsweepError("VOLUME_DAMAGED", "it needs journal recovery but has no journal");
		return { geometry: home, view: volume, journal: null, state: "clean" };
	}
	const file = await findJournal(volume, home);
	const info = await readJournalInfo(volume, home, file);
	if (info.errorNumber !== 0)
		throw new VmsweepError("VOLUME_DAMAGED", "its journal was aborted after an error; run e2fsck in the guest");
	if (!home.has.recover) {
		if (info.start !== 0)
			throw new VmsweepError(
				"VOLUME_DAMAGED",
				"its journal holds transactions, but its superblock says that none are needed; run e2fsck in the guest",
			);
		return { geometry: home, view: volume, journal: { file, info, replay: null }, state: "clean" };
	}
	const outcome = await replay(volume, home, file, info);
	if (outcome.fastCommits === "pending")
		throw refuse("fast commits wait in its journal; mount it in the guest, then try again");
	const view = overlaid(volume, home.blockSize, outcome.blocks);
	const geometry = parseSuperblock(await readBytes(view, byteOffset(SUPERBLOCK_AT), SuperBlock.size), volume.size);
	checkBelievable(geometry);
	if (
		geometry.identity.uuid !== home.identity.uuid ||
		geometry.blockSize !== home.blockSize ||
		geometry.journalInode !== home.journalInode
	)
		throw new VmsweepError("VOLUME_DAMAGED", "its journal belongs to another file system; run e2fsck in the guest");
	return { geometry, view, journal: { file, info, replay: outcome }, state: "dirty" };
}

/** Reads all groups of a recovered volume and cross-checks the totals. */
export async function readAllocation({ geometry, view, journal, state }: Recovered): Promise<Allocation> {
	const allocation = new Allocation(geometry, await readDescriptors(view, geometry), journal?.file.runs ?? []);
	await allocation.readGroups(
		view,
		Array.from({ length: geometry.groupCount }, (_, group) => group),
	);
	const total = allocation.groups.reduce((sum, group) => sum + group.freeClusters, 0);
	if (state === "clean" && allocation.badGroupCount === 0 && total !== geometry.freeClusters)
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			`its superblock says ${geometry.freeClusters} free units, its groups ${total}; run e2fsck in the guest`,
		);
	return allocation;
}
