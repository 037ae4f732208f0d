// Physical volumes: what is remembered of LVM's free extents while a disk is served, however often it is identified.
//
// The position at which a text was committed is that of the last write to its header's block, as long as the first
// image has it. Later it is known only here, and so is who wrote where LVM says that nobody is.

import { unpackLocated } from "../../adapters/plane/located.ts";
import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import { type FreeExtentsPast, LvmLiveVolume } from "../../core/volumes/lvm/live.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { BLOCK_SIZE, divFloor, type LogPosition } from "../../foundations/units.ts";

export class PhysicalVolumes {
	readonly #opened: LogPosition;
	readonly #past = new Map<string, FreeExtentsPast>();

	/** @param opened the log's position when the disk was opened: what it held then is older than what is told by it */
	constructor(opened: LogPosition) {
		this.#opened = opened;
	}

	/** Follows the physical volume that begins at byte `start` of the disk, whose bytes in `view` are `content`. Throws as `LvmLiveVolume.open` does. */
	open(plane: PlanePort, view: ViewHandle, start: number, content: ByteSource): Promise<LvmLiveVolume> {
		return LvmLiveVolume.open(
			content,
			(uuid) => this.#pastOf(uuid),
			async (at) => {
				const block = divFloor(start + at, BLOCK_SIZE);
				const [run] = unpackLocated(await plane.ask("locate", { view: view.id, block, count: 1 }));
				return run === undefined || run.position < 0 ? null : (run.position as LogPosition);
			},
		);
	}

	#pastOf(uuid: string): FreeExtentsPast {
		const past = this.#past.get(uuid) ?? { committed: this.#opened, hasForeignWrites: false };
		this.#past.set(uuid, past);
		return past;
	}
}
