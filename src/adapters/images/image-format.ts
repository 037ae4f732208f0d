// Image formats: tells a raw image from the others by their magic bytes, for the moment when a user names an image.
//
// Only asked when an image is adopted or inspected for the first time. A raw image's first bytes belong to the guest,
// so a disk that is already known to be raw must not be probed again: the guest could write a qcow2 header there.

/** Bytes from the start of an image that {@link detectFormat} wants; fewer where the image is smaller. */
export const FORMAT_PROBE_BYTES = 512;

export type ImageFormat = "raw" | "qcow" | "qcow2" | "qed" | "vmdk" | "vhdx" | "vhd" | "vdi" | "parallels";

interface Magic {
	readonly format: ImageFormat;
	readonly at: number;
	/** Latin-1 text of the magic. */
	readonly text: string;
}

const magics: readonly Magic[] = [
	{ format: "qcow2", at: 0, text: "QFI\xfb\0\0\0\x02" },
	{ format: "qcow2", at: 0, text: "QFI\xfb\0\0\0\x03" },
	{ format: "qcow", at: 0, text: "QFI\xfb" },
	{ format: "qed", at: 0, text: "QED\0" },
	{ format: "vmdk", at: 0, text: "KDMV" },
	{ format: "vmdk", at: 0, text: "COWD" },
	{ format: "vmdk", at: 0, text: "# Disk DescriptorFile" },
	{ format: "vhdx", at: 0, text: "vhdxfile" },
	{ format: "vhd", at: 0, text: "conectix" },
	{ format: "vdi", at: 0x40, text: "\x7f\x10\xda\xbe" },
	{ format: "parallels", at: 0, text: "WithoutFreeSpace" },
	{ format: "parallels", at: 0, text: "WithouFreSpacExt" },
];

/** The format that an image's first bytes announce; `raw` where they announce none. */
export function detectFormat(start: Uint8Array): ImageFormat {
	const found = magics.find(({ at, text }) => {
		if (start.length < at + text.length) return false;
		for (let index = 0; index < text.length; index++) if (start[at + index] !== text.charCodeAt(index)) return false;
		return true;
	});
	return found?.format ?? "raw";
}
