// Disk status: what a served disk says of itself, in one look at its parts.

import { basename } from "node:path";
import type { PlanePort, PlaneStatus } from "../adapters/plane/messages.ts";
import type { Cleaner } from "./clean/cleaner.ts";
import type { CleanerCounters } from "./clean/counters.ts";
import type { VolumeStatus } from "./clean/volume-status.ts";
import type { DiskDirectory, SecondImageStand } from "./disk-directory.ts";
import type { Freezer, FreezerStatus } from "./freezer.ts";
import type { SnapshotStatus } from "./snapshots.ts";

/** What `vmsweep status` shows of a served disk. Sizes in bytes. */
export interface DiskStatus {
	readonly name: string;
	readonly uuid: string;
	readonly size: number;
	readonly served: true;
	readonly clients: number;
	readonly cleaning: "continuous" | "off";
	readonly first: {
		readonly path: string;
		/** Host bytes of the file, free segments kept ready included. */
		readonly hostBytes: number;
		/** Host bytes of segments in use. */
		readonly usedBytes: number;
		readonly limitBytes: number;
		readonly position: number;
		readonly durablePosition: number;
	};
	readonly second: {
		readonly path: string;
		readonly hostBytes: number;
		readonly copyMethod: string;
		/** How far it stands by itself; see `SecondImageRecord`. */
		readonly state: SecondImageStand["state"];
		readonly standsAt: number;
		/** When it last stood by itself, ISO 8601; null where nobody noted it. */
		readonly stoodAt: string | null;
	};
	readonly guest: PlaneStatus["counters"];
	readonly cleaner: CleanerCounters;
	/** Metadata read for each GiB that the guest wrote since the disk is served, in bytes; null before it wrote anything. */
	readonly metadataBytesPerGuestGiB: number | null;
	readonly volumes: readonly VolumeStatus[];
	/** Of its VM's guest; null without a guest agent. */
	readonly freezes: FreezerStatus | null;
	readonly snapshots: readonly SnapshotStatus[];
	/** Clients that wait for room in the first image. */
	readonly stalled: number;
}

/** Where a status comes from. */
export interface StatusParts {
	readonly directory: DiskDirectory;
	readonly plane: PlanePort;
	readonly cleaner: Cleaner;
	/** Cleaning goes on in the background. */
	readonly isCleaning: boolean;
	readonly freezer: Freezer | undefined;
}

/** Throws DISK_STOPPED or IO. */
export async function servedStatus({
	directory,
	plane,
	cleaner,
	isCleaning,
	freezer,
}: StatusParts): Promise<DiskStatus> {
	const now = await plane.ask("status");
	const { second, description, stand } = directory;
	const sizes = await directory.hostBytes();
	return {
		name: basename(directory.path),
		uuid: description.uuid,
		size: description.size,
		served: true,
		clients: now.clients,
		cleaning: isCleaning ? "continuous" : "off",
		first: {
			path: directory.firstPath,
			hostBytes: sizes.first,
			usedBytes: now.usedBytes,
			limitBytes: now.limitBytes,
			position: now.position,
			durablePosition: now.durablePosition,
		},
		second: {
			path: second.path,
			hostBytes: sizes.second,
			copyMethod: second.copyMethod,
			state: stand.state,
			standsAt: stand.position,
			stoodAt: stand.stoodAt,
		},
		guest: now.counters,
		cleaner: { ...cleaner.counters },
		metadataBytesPerGuestGiB: perGiB(cleaner.counters.metadataBytesRead, now.counters.writtenBytes),
		volumes: cleaner.volumes(),
		freezes: freezer?.status ?? null,
		snapshots: await directory.snapshots.status(),
		stalled: now.stalled,
	};
}

const perGiB = (bytes: number, of: number): number | null => (of === 0 ? null : Math.round((bytes / of) * 2 ** 30));
