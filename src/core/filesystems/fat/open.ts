// Opening a FAT volume: its boot sector.
//
//   | boot, reserved | FAT | FAT (copy) | root directory (not FAT32) | cluster 2 | cluster 3 | … | rest |
//
// FAT32 is told by its boot sector (no 16-bit FAT size), as Windows and Linux do; FAT12 from FAT16 by the number of
// clusters alone. Drivers disagree on where exactly that border is, so volumes between the borders are refused.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, isPowerOfTwo } from "../../../foundations/units.ts";
import { BootSector, ONE_FAT_ACTIVE, SIGNATURE_LABEL, SIGNATURE_SERIAL, Tail16, Tail32 } from "./layout.ts";

/** fatgen103: fewer make FAT12. Windows' driver says 4087. */
const FAT16_FROM = 4085;
const FAT16_SURELY_FROM = 4087;
const FAT16_LIMIT = 65525;
/** Entries have 28 bits, and the highest values are marks. */
const FAT32_LIMIT = 0xffffff5;

/** Everything about a volume that its boot sector fixes. */
export interface Geometry {
	/** Bits of a FAT entry. */
	readonly bits: 12 | 16 | 32;
	readonly clusterSize: number;
	readonly clusterCount: number;
	/** Byte positions in the volume: the first FAT, the root directory (not FAT32), the first cluster. */
	readonly fatAt: number;
	readonly fatSize: number;
	readonly fatCount: number;
	readonly rootAt: number;
	readonly rootSize: number;
	readonly dataAt: number;
	/** Cluster number of the root directory; 0 in FAT12 and FAT16. */
	readonly rootCluster: number;
	readonly size: number;
	readonly media: number;
	/** State bits as stored. */
	readonly state: number;
}

export const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** The boot sector, or null where it cannot be one of FAT. */
export async function readBootSector(volume: ByteSource): Promise<Uint8Array | null> {
	if (volume.size < BootSector.size) return null;
	const raw = await readBytes(volume, byteOffset(0), BootSector.size);
	const { endMarker, fatCount, reservedSectors } = BootSector.at(viewOf(raw));
	return endMarker === 0xaa55 && fatCount > 0 && reservedSectors > 0 ? raw : null;
}

/** Serial number and label, as far as the boot sector has them. */
export function namesIn(raw: Uint8Array): { readonly uuid: string | null; readonly label: string | null } {
	const view = viewOf(raw);
	const tail = (BootSector.read.sectorsPerFat16(view, 0) === 0 ? Tail32 : Tail16).at(view);
	if (tail.signature !== SIGNATURE_LABEL && tail.signature !== SIGNATURE_SERIAL) return { uuid: null, label: null };
	const serial = tail.serial.toString(16).toUpperCase().padStart(8, "0");
	const label = tail.signature === SIGNATURE_LABEL ? labelText(tail.label) : null;
	return { uuid: `${serial.slice(0, 4)}-${serial.slice(4)}`, label: label === "NO NAME" ? null : label };
}

/** A label of eleven bytes, filled up with spaces. */
export function labelText(raw: Uint8Array): string | null {
	const text = new TextDecoder("latin1").decode(raw).replace(/[\0 ]+$/, "");
	return text === "" ? null : text;
}

/** Checks a boot sector against the rules of the format and the volume's size. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
export function parseBootSector(raw: Uint8Array, volumeSize: number): Geometry {
	const view = viewOf(raw);
	const boot = BootSector.at(view);
	const { bytesPerSector, sectorsPerCluster, fatCount } = boot;
	if (!isPowerOfTwo(bytesPerSector) || bytesPerSector < 512 || bytesPerSector > 4096)
		throw damaged(`its sectors have ${bytesPerSector} bytes`);
	if (!isPowerOfTwo(sectorsPerCluster)) throw damaged(`its clusters have ${sectorsPerCluster} sectors`);
	if (boot.media !== 0xf0 && boot.media < 0xf8) throw damaged(`its media type is ${boot.media}`);
	const sectorCount = boot.sectorCount16 || boot.sectorCount32;
	if (sectorCount * bytesPerSector > volumeSize)
		throw damaged(
			`it says that it has ${sectorCount} sectors of ${bytesPerSector} bytes, more than its partition holds`,
		);
	const rootSize = boot.rootEntryCount * 32;
	if (rootSize % bytesPerSector !== 0) throw damaged(`its root directory has ${boot.rootEntryCount} entries`);

	const is32 = boot.sectorsPerFat16 === 0;
	const tail = Tail32.at(view);
	if (is32 && tail.version !== 0) throw unsupported(`it is FAT32 of version ${tail.version}`);
	if (is32 && (tail.flags & ONE_FAT_ACTIVE) !== 0) throw unsupported("only one of its FATs is kept up to date");
	if (is32 !== (rootSize === 0)) throw damaged(`its root directory has ${boot.rootEntryCount} entries`);
	const sectorsPerFat = is32 ? tail.sectorsPerFat : boot.sectorsPerFat16;
	const rootSector = boot.reservedSectors + fatCount * sectorsPerFat;
	const dataSector = rootSector + rootSize / bytesPerSector;
	const clusterCount = Math.floor((sectorCount - dataSector) / sectorsPerCluster);
	if (sectorsPerFat === 0 || clusterCount < 1)
		throw damaged(`its first cluster is at sector ${dataSector} of ${sectorCount}`);
	const bits = is32 ? 32 : clusterCount < FAT16_FROM ? 12 : 16;
	if (bits === 16 && clusterCount < FAT16_SURELY_FROM)
		throw unsupported(`it has ${clusterCount} clusters, which some systems take for FAT12 and others for FAT16`);
	if (clusterCount >= (is32 ? FAT32_LIMIT : FAT16_LIMIT)) throw damaged(`it has ${clusterCount} clusters`);
	const fatSize = sectorsPerFat * bytesPerSector;
	if (((clusterCount + 2) * bits) / 8 > fatSize) throw damaged(`its FAT is too short for ${clusterCount} clusters`);
	const rootCluster = is32 ? tail.rootCluster : 0;
	if (is32 && (rootCluster < 2 || rootCluster >= clusterCount + 2))
		throw damaged(`its root directory starts at cluster ${rootCluster}`);
	return {
		bits,
		clusterSize: sectorsPerCluster * bytesPerSector,
		clusterCount,
		fatAt: boot.reservedSectors * bytesPerSector,
		fatSize,
		fatCount,
		rootAt: rootSector * bytesPerSector,
		rootSize,
		dataAt: dataSector * bytesPerSector,
		rootCluster,
		size: sectorCount * bytesPerSector,
		media: boot.media,
		state: is32 ? tail.state : Tail16.read.state(view, 0),
	};
}
