// Records of LVM2's on-disk format (lvm2 source tree: lib/format_text/layout.h and lib/label/label.h), little-endian.
//
//   sector 0–3  | label | physical volume's header | areas … |     one of them; usually sector 1
//   area        | header 512 | ring of texts |                     one or two per physical volume, or none
//
// Checksums are CRC-32 (ISO 3309, reflected) that start from a value of LVM's own and have no final complement.

import { crc32From } from "../../../foundations/crc.ts";
import { bytes, struct, u32le, u64le } from "../../../foundations/struct.ts";

export const SECTOR = 512;
/** Sectors in which the label may lie (`LABEL_SCAN_SECTORS`). */
export const LABEL_SECTORS = 4;
export const LABEL_ID = "LABELONE";
export const LABEL_TYPE = "LVM2 001";

/** `struct label_header`: the checksum covers the sector from `headerOffset` on. */
export const Label = struct("LVM label", 32, {
	id: bytes(0x0, 8),
	sector: u64le(0x8),
	checksum: u32le(0x10),
	headerOffset: u32le(0x14),
	type: bytes(0x18, 8),
});
/** First byte of the label that its checksum covers. */
export const LABEL_CHECKED_FROM = 0x14;

/** `struct pv_header`, in front of two lists of areas (data, metadata), each ended by an empty one. */
export const PvHeader = struct("LVM physical volume header", 40, {
	uuid: bytes(0x0, 32),
	/** In bytes. */
	deviceSize: u64le(0x20),
});
/** `struct disk_locn`: bytes from the physical volume's start. */
export const DiskArea = struct("LVM area", 16, { offset: u64le(0x0), size: u64le(0x8) });
/** `struct pv_header_extension`, behind the lists. */
export const PvHeaderExtension = struct("LVM header extension", 8, { version: u32le(0x0), flags: u32le(0x4) });
/** The physical volume belongs to a volume group, even where it has no metadata of its own. */
export const PV_EXT_USED = 0x1;

/** `struct mda_header`: fills one sector; the checksum covers all that follows it. */
export const MetadataHeader = struct("LVM metadata area header", SECTOR, {
	checksum: u32le(0x0),
	magic: bytes(0x4, 16),
	version: u32le(0x14),
	/** Bytes from the physical volume's start to this header. */
	start: u64le(0x18),
	/** Bytes of the area, this header included. */
	size: u64le(0x20),
});
export const METADATA_MAGIC = " LVM2 x[5A%r0N*>";
export const METADATA_CHECKED_FROM = 0x4;
export const METADATA_VERSION = 1;

/** `struct raw_locn`: a text in the ring. The first is the committed one, the second one that was to become it. */
export const RawText = struct("LVM text location", 24, {
	/** Bytes from the area's start. */
	offset: u64le(0x0),
	size: u64le(0x8),
	checksum: u32le(0x10),
	flags: u32le(0x14),
});
export const RAW_TEXTS_AT = 0x28;
/** The area is out of use; what it holds is of an earlier time. */
export const RAW_IGNORED = 0x1;

/** `calc_crc` with `INITIAL_CRC`. */
export const lvmChecksum = (data: Uint8Array): number => crc32From(0xf597a6cf, data);

export const ascii = (raw: Uint8Array): string => String.fromCharCode(...raw);
