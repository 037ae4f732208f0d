// One physical volume of LVM2: its label, and the text that its metadata areas agree on.
//
//   label ─▶ header ─▶ metadata areas ─▶ header of each ─▶ committed text ─▶ checksum right, all the same?
//
// Invariants
//  - nothing counts whose checksum is wrong, and a damaged area may have been the newest: then nothing is believed
//  - a change that was under way (a second text in an area) is not guessed at: whoever starts the guest ends it
//
// LVM itself goes by the newest text and repairs the others. Here all in use must be the same: a difference means
// that the guest was stopped in the middle of a change, or that a part of the group was away.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteRange } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import * as layout from "./layout.ts";
import { ascii, lvmChecksum, SECTOR } from "./layout.ts";

/** What a physical volume says about itself. Positions count from its start. */
export interface PhysicalVolumeHeader {
	/** As LVM prints it, in groups of 6-4-4-4-4-4-6. */
	readonly uuid: string;
	/** Where its extents start, as far as its own header knows. */
	readonly dataStart: number;
	readonly metadataAreas: readonly ByteRange[];
	/** True where it belongs to a volume group, though it may not hold its metadata. */
	readonly inGroup: boolean;
	/** The group's metadata, null where it holds none. */
	readonly text: string | null;
	/** Byte ranges whose change may change any of this. */
	readonly identity: readonly ByteRange[];
}

/** A volume group of thousands of logical volumes has a few MiB. */
const MAX_TEXT_BYTES = 8 << 20;
/** LVM writes at most two. */
const MAX_AREAS = 8;

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** Reads a volume that has LVM's mark. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED, or what the source throws. */
export async function readPhysicalVolume(volume: ByteSource): Promise<PhysicalVolumeHeader> {
	const labels = await readLabels(volume);
	if (labels.length === 0) throw damaged("its LVM label is damaged; try pvck in the guest");
	if (labels.length > 1) throw damaged("it has several LVM labels; wipe the stale one with wipefs");
	const header = parseHeader(labels[0]!, volume.size);
	const texts: (string | null)[] = [];
	for (const area of header.metadataAreas) {
		const text = await readCommittedText(volume, area);
		if (text !== OUT_OF_USE) texts.push(text);
	}
	if (new Set(texts).size > 1)
		throw damaged("its copies of the LVM metadata differ; run vgck --updatemetadata in the guest");
	const identity = [
		{ start: byteOffset(0), length: byteCount(layout.LABEL_SECTORS * SECTOR) },
		...header.metadataAreas,
	];
	return { ...header, text: texts[0] ?? null, identity };
}

/** The label sectors, each from the label on, whose checksum and place are right. */
async function readLabels(volume: ByteSource): Promise<Uint8Array[]> {
	const sectors = Math.min(layout.LABEL_SECTORS, Math.floor(volume.size / SECTOR));
	const head = await readBytes(volume, byteOffset(0), sectors * SECTOR);
	const labels: Uint8Array[] = [];
	for (let index = 0; index < sectors; index++) {
		const sector = head.subarray(index * SECTOR, (index + 1) * SECTOR);
		const label = layout.Label.at(viewOf(sector));
		if (ascii(label.id) !== layout.LABEL_ID) continue;
		const isRight =
			label.sector === index &&
			label.checksum === lvmChecksum(sector.subarray(layout.LABEL_CHECKED_FROM)) &&
			ascii(label.type) === layout.LABEL_TYPE;
		if (isRight) labels.push(sector);
	}
	return labels;
}

function parseHeader(sector: Uint8Array, size: number): Omit<PhysicalVolumeHeader, "text" | "identity"> {
	const view = viewOf(sector);
	let at = layout.Label.read.headerOffset(view, 0);
	if (at < layout.Label.size || at + layout.PvHeader.size > SECTOR)
		throw damaged("its LVM header lies outside its label");
	const { uuid } = layout.PvHeader.at(view, at);
	at += layout.PvHeader.size;
	const areas = (): { offset: number; size: number }[] => {
		const found: { offset: number; size: number }[] = [];
		for (;;) {
			if (at + layout.DiskArea.size > SECTOR || found.length > MAX_AREAS)
				throw damaged("its list of LVM areas does not end");
			const area = layout.DiskArea.at(view, at);
			at += layout.DiskArea.size;
			if (area.offset === 0) return found;
			found.push(area);
		}
	};
	const dataAreas = areas();
	const metadataAreas = areas();
	if (dataAreas.length !== 1) throw unsupported(`it has ${dataAreas.length} LVM data areas`);
	for (const { offset, size: length } of metadataAreas)
		if (length <= SECTOR || offset % SECTOR !== 0 || length % SECTOR !== 0 || offset + length > size)
			throw damaged("its LVM metadata lies outside it");
	const extension = at + layout.PvHeaderExtension.size <= SECTOR ? layout.PvHeaderExtension.at(view, at) : null;
	return {
		uuid: dashed(ascii(uuid)),
		dataStart: dataAreas[0]!.offset,
		metadataAreas: metadataAreas.map((area) => ({ start: byteOffset(area.offset), length: byteCount(area.size) })),
		inGroup: extension !== null && extension.version > 0 && (extension.flags & layout.PV_EXT_USED) !== 0,
	};
}

function dashed(uuid: string): string {
	const parts: string[] = [];
	let at = 0;
	for (const length of [6, 4, 4, 4, 4, 4, 6]) {
		parts.push(uuid.slice(at, at + length));
		at += length;
	}
	return parts.join("-");
}

const OUT_OF_USE = Symbol("metadata area out of use");

/** The committed text of a metadata area, null where it has none yet, or that it is out of use. */
async function readCommittedText(volume: ByteSource, area: ByteRange): Promise<string | typeof OUT_OF_USE | null> {
	const sector = await readBytes(volume, area.start, SECTOR);
	const view = viewOf(sector);
	const header = layout.MetadataHeader.at(view);
	if (
		ascii(header.magic) !== layout.METADATA_MAGIC ||
		header.checksum !== lvmChecksum(sector.subarray(layout.METADATA_CHECKED_FROM)) ||
		header.version !== layout.METADATA_VERSION ||
		header.start !== area.start ||
		header.size !== area.length
	)
		throw damaged("a header of its LVM metadata is damaged; run vgck --updatemetadata in the guest");
	const committed = layout.RawText.at(view, layout.RAW_TEXTS_AT);
	const next = layout.RawText.at(view, layout.RAW_TEXTS_AT + layout.RawText.size);
	if ((committed.flags & layout.RAW_IGNORED) !== 0) return OUT_OF_USE;
	if (next.offset !== 0 && next.size !== 0)
		throw damaged("its LVM metadata was being changed; start the guest, shut it down cleanly, then try again");
	if (committed.offset === 0 || committed.size === 0) return null;
	const text = await readRing(volume, area, committed.offset, committed.size);
	if (lvmChecksum(text) !== committed.checksum)
		throw damaged("its LVM metadata has a wrong checksum; run vgck --updatemetadata in the guest");
	const end = text.indexOf(0);
	return new TextDecoder("latin1").decode(end < 0 ? text : text.subarray(0, end));
}

/** Reads `length` bytes at `offset` of the area; the ring goes on behind the area's header. */
async function readRing(volume: ByteSource, area: ByteRange, offset: number, length: number): Promise<Uint8Array> {
	if (offset < SECTOR || offset >= area.length || length > area.length - SECTOR)
		throw damaged("its LVM metadata points outside its area");
	if (length > MAX_TEXT_BYTES) throw unsupported(`its LVM metadata has ${length} bytes`);
	const text = new Uint8Array(length);
	const first = Math.min(length, area.length - offset);
	await volume.read(byteOffset(area.start + offset), text.subarray(0, first));
	if (first < length) await volume.read(byteOffset(area.start + SECTOR), text.subarray(first));
	return text;
}
