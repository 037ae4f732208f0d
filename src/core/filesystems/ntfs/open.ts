// Opening an NTFS volume: its boot sector.
//
//   | boot | … clusters: $MFT, $MFTMirr, files, free … | rest < 1 cluster | backup boot sector |
//   0      \______ cluster 0 is the first of the volume, so the boot area is $Boot's clusters ______/
//
// Checked in this order: mark, fields that must be zero, sizes, ranges against the volume's size. Clusters and
// records come in powers of two, so that later arithmetic needs no further checks.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, isPowerOfTwo } from "../../../foundations/units.ts";
import { BootSector } from "./layout.ts";

/** Windows cannot use more; it also bounds the memory of a map (one bit per cluster). */
const MAX_CLUSTERS = 2 ** 32;
/** Windows 10 and later; before, 64 KiB. */
const MAX_CLUSTER_SIZE = 2 << 20;
const MAX_RECORD_SIZE = 64 << 10;

/** Everything about a volume that its boot sector fixes. */
export interface Geometry {
	readonly clusterSize: number;
	readonly clusterCount: number;
	/** Bytes from the volume's start to the end of the backup boot sector, as far as the volume reaches. */
	readonly size: number;
	/** Cluster of the first MFT record, and of the copy of the first four. */
	readonly mftCluster: number;
	readonly mftMirrorCluster: number;
	readonly recordSize: number;
	/** As other tools print it: 16 hexadecimal digits. */
	readonly serial: string;
}

export const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
export const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** The boot sector, or null where the volume is too small or has no NTFS mark. */
export async function readBootSector(volume: ByteSource): Promise<Uint8Array | null> {
	if (volume.size < BootSector.size) return null;
	const raw = await readBytes(volume, byteOffset(0), BootSector.size);
	return new TextDecoder("latin1").decode(BootSector.read.oemId(viewOf(raw), 0)) === "NTFS    " ? raw : null;
}

/** Serial number of the volume, known even where nothing else can be believed. */
export const serialOf = (raw: Uint8Array): string =>
	[...BootSector.read.serial(viewOf(raw), 0)]
		.reverse()
		.map((byte) => byte.toString(16).padStart(2, "0").toUpperCase())
		.join("");

/** Checks a boot sector against the rules of the format and the volume's size. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
export function parseBootSector(raw: Uint8Array, volumeSize: number): Geometry {
	const boot = BootSector.at(viewOf(raw));
	const { bytesPerSector, sectorCount } = boot;
	if (
		(boot.reservedSectors | boot.fatCount | boot.rootEntryCount | boot.sectorCount16 | boot.sectorsPerFat) !== 0 ||
		boot.sectorCount32 !== 0
	)
		throw damaged("its boot sector has both NTFS and FAT fields");
	if (boot.endMarker !== 0xaa55) throw damaged("its boot sector has lost its end marker");
	if (!isPowerOfTwo(bytesPerSector) || bytesPerSector < 512 || bytesPerSector > 4096)
		throw damaged(`its sectors have ${bytesPerSector} bytes`);
	const sectorsPerCluster = sectorsOf(boot.sectorsPerCluster);
	const clusterSize = sectorsPerCluster * bytesPerSector;
	if (!isPowerOfTwo(sectorsPerCluster) || clusterSize > MAX_CLUSTER_SIZE)
		throw damaged(`its clusters have ${sectorsPerCluster} sectors of ${bytesPerSector} bytes`);
	if (!Number.isSafeInteger(sectorCount * bytesPerSector) || sectorCount * bytesPerSector > volumeSize)
		throw damaged(
			`it says that it has ${sectorCount} sectors of ${bytesPerSector} bytes, more than its partition holds`,
		);
	const clusterCount = Math.floor(sectorCount / sectorsPerCluster);
	if (clusterCount > MAX_CLUSTERS)
		throw unsupported(`it has ${clusterCount} clusters; at most ${MAX_CLUSTERS} are supported`);
	const recordSize = recordBytes(boot.mftRecordSize, clusterSize);
	if (!isPowerOfTwo(recordSize) || recordSize < 512 || recordSize > MAX_RECORD_SIZE)
		throw damaged(`its MFT records have ${recordSize} bytes`);
	const { mftCluster, mftMirrorCluster } = boot;
	for (const first of [mftCluster, mftMirrorCluster])
		if (first === 0 || first * clusterSize + 4 * recordSize > clusterCount * clusterSize)
			throw damaged(`its MFT lies at cluster ${first} of ${clusterCount}`);
	return {
		clusterSize,
		clusterCount,
		size: Math.min(volumeSize, (sectorCount + 1) * bytesPerSector),
		mftCluster,
		mftMirrorCluster,
		recordSize,
		serial: serialOf(raw),
	};
}

/** Up to 128 as it stands; more as a negative power of two, in a signed byte (Windows 10, clusters over 64 KiB). */
const sectorsOf = (stored: number): number => (stored <= 0x80 ? stored : stored >= 0xe1 ? 2 ** (256 - stored) : 0);

const recordBytes = (stored: number, clusterSize: number): number =>
	stored < 0x80 ? stored * clusterSize : 256 - stored < 31 ? 2 ** (256 - stored) : 0;
