// The descriptor of a VMDK: text that says which extents (files, or zeros) follow each other on the disk.
//
//   # Disk DescriptorFile
//   CID=1a2b3c4d
//   parentCID=ffffffff
//   createType="twoGbMaxExtentSparse"
//   RW 4192256 SPARSE "disk-s001.vmdk"          access, sectors, kind, file, first sector in the file
//   RW 63 ZERO
//
// Whoever hands over an image wrote its descriptor. So the files that it names must lie in its own folder: a descriptor
// that names /etc/shadow must not make vmsweep read it.
//
// Source: VMware, "Virtual Disk Format 5.0", section "Descriptor File".

import { damaged, unsupported } from "../mapped-disk.ts";

/** First bytes of a descriptor in a file of its own. */
export const DESCRIPTOR_START = "# Disk DescriptorFile";
/** Descriptors are some hundred bytes long. */
export const DESCRIPTOR_BYTES_MAX = 1 << 20;
/** Files that may be open for one image. */
const EXTENTS_MAX = 4096;
const SECTORS_MAX = 2 ** 43;

/** One line of the extent description. */
export interface ExtentLine {
	readonly kind: "sparse" | "flat" | "zero";
	readonly sectors: number;
	/** Relative to the descriptor's folder; empty for zeros. */
	readonly file: string;
	/** First sector in a flat file. */
	readonly offset: number;
}

export interface Descriptor {
	/** Content id: changes whenever the image is opened and written. */
	readonly cid: string;
	/** File of the image below, and the content id that it must have; null where there is none. */
	readonly parent: { readonly file: string; readonly cid: string } | null;
	readonly extents: readonly ExtentLine[];
}

/** `cid` of an image without parent. */
const NO_PARENT = "ffffffff";

/** Reads a descriptor. `name` is for messages. Throws IMAGE_DAMAGED and IMAGE_UNSUPPORTED. */
export function parseDescriptor(bytes: Uint8Array, name: string): Descriptor {
	const end = bytes.indexOf(0);
	const text = new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
	const fields = new Map<string, string>();
	const extents: ExtentLine[] = [];
	for (const line of text.split(/\r?\n/)) {
		const extent = /^\s*(RW|RDONLY|NOACCESS)\s/.test(line) ? parseExtent(line, name) : undefined;
		if (extent !== undefined) {
			if (extents.length === EXTENTS_MAX) throw unsupported(name, `it has more than ${EXTENTS_MAX} extents`);
			extents.push(extent);
			continue;
		}
		const field = parseField(line);
		if (field !== null) fields.set(field.key, field.value);
	}
	if ([...fields.keys()].some((key) => key.startsWith("encrypt")))
		throw unsupported(name, "it is an encrypted VMDK", "Remove the encryption with VMware first.");
	const parentCid = (fields.get("parentcid") ?? NO_PARENT).toLowerCase();
	const parentFile = fields.get("parentfilenamehint");
	if (parentCid !== NO_PARENT && parentFile === undefined)
		throw damaged(`${name}: the descriptor`, "has a parent's content id, but names no parent");
	return {
		cid: (fields.get("cid") ?? "").toLowerCase(),
		parent:
			parentCid === NO_PARENT || parentFile === undefined
				? null
				: { file: fileInFolder(parentFile, name), cid: parentCid },
		extents,
	};
}

/**
 * `key = "value"`, the quotes may be missing; null where a line is something else. In two steps: one pattern for all of
 * it would try every division of a long run of spaces, and some thousand of them would take minutes.
 */
function parseField(line: string): { readonly key: string; readonly value: string } | null {
	const assignment = /^\s*([\w.]+)\s*=(.*)$/s.exec(line);
	const value = assignment === null ? null : /^"?([^"]*)"?$/.exec(assignment[2]!.trim());
	return value === null ? null : { key: assignment![1]!.toLowerCase(), value: value[1]!.trim() };
}

function parseExtent(line: string, name: string): ExtentLine {
	const match = /^\s*(\w+)\s+(\d+)\s+(\w+)(?:\s+"([^"]+)"(?:\s+(\d+))?)?/.exec(line);
	if (match === null) throw damaged(`${name}: the descriptor`, `has an extent that can't be read: ${quoted(line)}`);
	const [, access, sectorsText, kind = "", file = "", offsetText = "0"] = match;
	const sectors = Number(sectorsText);
	const offset = Number(offsetText);
	if (access === "NOACCESS") throw unsupported(name, "it has an extent that nobody may access (NOACCESS)");
	if (!(sectors > 0 && sectors <= SECTORS_MAX && offset <= SECTORS_MAX))
		throw damaged(`${name}: the descriptor`, `has an extent of ${sectorsText} sectors`);
	switch (kind.toUpperCase()) {
		case "ZERO":
			return { kind: "zero", sectors, file: "", offset: 0 };
		case "FLAT":
		case "VMFS":
			return { kind: "flat", sectors, file: fileInFolder(file, name), offset };
		case "SPARSE":
			return { kind: "sparse", sectors, file: fileInFolder(file, name), offset: 0 };
		default:
			throw unsupported(name, `its extents are of the kind ${quoted(kind)}, which isn't known`);
	}
}

/** The name of a file in the descriptor's folder or below. Throws IMAGE_UNSUPPORTED for any other. */
function fileInFolder(file: string, name: string): string {
	if (file === "") throw damaged(`${name}: the descriptor`, "names no file for an extent");
	if (!/^[/\\]|^[A-Za-z]:|^[\w+.-]+:/.test(file) && !file.split(/[/\\]/).includes("..")) return file;
	throw unsupported(
		name,
		`it names the file ${quoted(file)}, which lies outside of its folder`,
		"If that is right, put both into one folder and change the name in the descriptor.",
	);
}

const quoted = (text: string): string => JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);
