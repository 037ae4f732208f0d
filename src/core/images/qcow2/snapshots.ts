// Internal snapshots of a qcow2 image: each is an L1 table of its own, in a table at `snapshots_offset`.
//
// The table has no checksum and no end mark: its entries are parsed one after the other, each bounded.

import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import type { ImageFile } from "../image-file.ts";
import type { Qcow2Header } from "./header.ts";
import { SNAPSHOT_EXTRA_BYTES_MAX, SNAPSHOT_TABLE_BYTES_MAX, SnapshotEntry } from "./layout.ts";
import { damagedImage } from "./tables.ts";

/** One internal snapshot. */
export interface Qcow2Snapshot {
	readonly id: string;
	readonly name: string;
	readonly l1Offset: number;
	readonly l1Entries: number;
	/** Byte position, in the file, of its entry in the snapshot table. */
	readonly entryAt: number;
}

/** The snapshot table as a whole. */
export interface SnapshotTable {
	readonly snapshots: readonly Qcow2Snapshot[];
	/** Bytes from `snapshotsOffset` on. */
	readonly length: number;
}

/** Bytes read at once. */
const WINDOW_BYTES = 64 * 1024;

/** Reads the table. Throws IMAGE_DAMAGED or IO. */
export async function readSnapshots(file: ImageFile, header: Qcow2Header, path: string): Promise<SnapshotTable> {
	const snapshots: Qcow2Snapshot[] = [];
	const window = new Window(file);
	let at = header.snapshotsOffset;
	for (let index = 0; index < header.snapshotCount; index++) {
		const fixed = await window.bytes(at, SnapshotEntry.size);
		if (fixed === undefined) throw damagedImage(path, `its snapshot table ends inside entry ${index}`);
		const { idLength, nameLength, extraLength, l1TableOffset, l1Size } = SnapshotEntry.at(viewOf(fixed));
		const textAt = at + SnapshotEntry.size + extraLength;
		const text = extraLength > SNAPSHOT_EXTRA_BYTES_MAX ? undefined : await window.bytes(textAt, idLength + nameLength);
		if (text === undefined) throw damagedImage(path, `its snapshot table ends inside entry ${index}`);
		const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes).replaceAll(/\p{Cc}/gu, "\ufffd");
		snapshots.push({
			id: decode(text.subarray(0, idLength)),
			name: decode(text.subarray(idLength)),
			l1Offset: l1TableOffset,
			l1Entries: l1Size,
			entryAt: at,
		});
		at = textAt + Math.ceil((idLength + nameLength + extraLength) / 8) * 8 - extraLength;
		if (at - header.snapshotsOffset > SNAPSHOT_TABLE_BYTES_MAX)
			throw damagedImage(path, "its snapshot table has no end");
	}
	return { snapshots, length: header.snapshotCount === 0 ? 0 : at - header.snapshotsOffset };
}

/** Small pieces of a file in order, read in larger ones. */
class Window {
	readonly #file: ImageFile;
	#start = 0;
	#bytes = new Uint8Array(0);

	constructor(file: ImageFile) {
		this.#file = file;
	}

	/** Undefined where the file ends before. */
	async bytes(at: number, length: number): Promise<Uint8Array | undefined> {
		if (at + length > this.#file.size) return undefined;
		if (at < this.#start || at + length > this.#start + this.#bytes.length) {
			const wanted = Math.min(Math.max(length, WINDOW_BYTES), this.#file.size - at);
			this.#bytes = new Uint8Array(wanted);
			this.#start = at;
			await this.#file.read(byteOffset(at), this.#bytes);
		}
		return this.#bytes.subarray(at - this.#start, at - this.#start + length);
	}
}
