// Opening an exFAT volume: its boot region.
//
//   | boot region, 12 sectors | its backup | … | FAT | … | cluster 2 | cluster 3 | … | rest |
//                                              fatAt     dataAt
//
// The boot region's checksum is verified before anything in it is believed. Where it is wrong, the backup may be right;
// that is for the guest's own check to decide.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { BootSector, CHECKSUMMED_SECTORS, NOT_CHECKSUMMED } from "./layout.ts";

/** 3.1.9. */
const MAX_CLUSTERS = 2 ** 32 - 11;
/** 3.1.14 and 3.1.15: sectors of 512 bytes to 4 KiB, clusters of up to 32 MiB. */
const SECTOR_SHIFTS = { min: 9, max: 12 } as const;
const MAX_CLUSTER_SHIFT = 25;
/** Two boot regions. */
const MIN_FAT_OFFSET = 24;

/** Everything about a volume that its boot sector fixes; positions in bytes of the volume. */
export interface Geometry {
	readonly clusterSize: number;
	readonly clusterCount: number;
	readonly fatAt: number;
	/** First byte of cluster 2. */
	readonly dataAt: number;
	readonly rootCluster: number;
	readonly size: number;
	readonly volumeFlags: number;
}

export const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** The boot sector, or null where the volume is too small or has no exFAT mark. */
export async function readBootSector(volume: ByteSource): Promise<Uint8Array | null> {
	if (volume.size < BootSector.size) return null;
	const raw = await readBytes(volume, byteOffset(0), BootSector.size);
	return new TextDecoder("latin1").decode(BootSector.read.fileSystemName(viewOf(raw), 0)) === "EXFAT   " ? raw : null;
}

/** Serial number as other tools print it; known even where nothing else can be believed. */
export function serialOf(raw: Uint8Array): string {
	const serial = BootSector.read.serial(viewOf(raw), 0).toString(16).toUpperCase().padStart(8, "0");
	return `${serial.slice(0, 4)}-${serial.slice(4)}`;
}

/**
 * Checks the boot region against its checksum, the rules of the format and the volume's size. Throws VOLUME_DAMAGED or
 * VOLUME_UNSUPPORTED.
 */
export async function openVolume(volume: ByteSource, raw: Uint8Array): Promise<Geometry> {
	const boot = BootSector.at(viewOf(raw));
	if (boot.endMarker !== 0xaa55 || boot.mustBeZero.some((byte) => byte !== 0))
		throw damaged("its boot sector is damaged; run a check in the guest");
	const { bytesPerSectorShift: sectorShift, sectorsPerClusterShift } = boot;
	const clusterShift = sectorShift + sectorsPerClusterShift;
	if (sectorShift < SECTOR_SHIFTS.min || sectorShift > SECTOR_SHIFTS.max || clusterShift > MAX_CLUSTER_SHIFT)
		throw damaged(`its sectors have 2^${sectorShift} bytes, its clusters 2^${clusterShift}`);
	const sectorSize = 2 ** sectorShift;
	await verifyChecksum(volume, sectorSize);
	if (boot.revision >> 8 !== 1) throw unsupported(`it has version ${boot.revision >> 8} of the format`);
	if (boot.fatCount !== 1) throw unsupported(`it has ${boot.fatCount} FATs (TexFAT)`);

	const { volumeLength, fatOffset, fatLength, clusterHeapOffset, clusterCount, rootCluster } = boot;
	const sectorsPerCluster = 2 ** sectorsPerClusterShift;
	if (volumeLength * sectorSize > volume.size)
		throw damaged(`it says that it has ${volumeLength} sectors of ${sectorSize} bytes, more than its partition holds`);
	if (clusterCount < 1 || clusterCount > MAX_CLUSTERS) throw damaged(`it has ${clusterCount} clusters`);
	if (
		fatOffset < MIN_FAT_OFFSET ||
		fatLength * sectorSize < (clusterCount + 2) * 4 ||
		clusterHeapOffset < fatOffset + fatLength ||
		clusterHeapOffset + clusterCount * sectorsPerCluster > volumeLength
	)
		throw damaged("its FAT and its clusters do not fit into it");
	if (rootCluster < 2 || rootCluster >= clusterCount + 2)
		throw damaged(`its root directory starts at cluster ${rootCluster}`);
	return {
		clusterSize: sectorSize * sectorsPerCluster,
		clusterCount,
		fatAt: fatOffset * sectorSize,
		dataAt: clusterHeapOffset * sectorSize,
		rootCluster,
		size: volumeLength * sectorSize,
		volumeFlags: boot.volumeFlags,
	};
}

async function verifyChecksum(volume: ByteSource, sectorSize: number): Promise<void> {
	const length = (CHECKSUMMED_SECTORS + 1) * sectorSize;
	if (volume.size < length) throw damaged("it is cut off");
	const region = await readBytes(volume, byteOffset(0), length);
	const checksum = bootChecksum(region.subarray(0, CHECKSUMMED_SECTORS * sectorSize));
	const view = viewOf(region);
	for (let at = CHECKSUMMED_SECTORS * sectorSize; at < length; at += 4)
		if (view.getUint32(at, true) !== checksum)
			throw damaged("its boot region's checksum is wrong; run a check in the guest");
}

/** Checksum of the boot region's first eleven sectors (3.4). */
export function bootChecksum(sectors: Uint8Array): number {
	let sum = 0;
	for (let at = 0; at < sectors.length; at++) {
		if (at <= 0x70 && NOT_CHECKSUMMED.includes(at)) continue;
		sum = (((sum << 31) | (sum >>> 1)) + sectors[at]!) >>> 0;
	}
	return sum;
}
