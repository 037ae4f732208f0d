// What else may know of this volume's clusters than the volume itself: Windows asleep, and shadow copies.
//
// Hibernation, and shutting down with fast startup, keep the mounted volume's bitmap in hiberfil.sys: the one on disk
// may be older. A shadow copy (restore point) holds only what was overwritten since; all else it reads from the volume
// itself, also what has been deleted there: free clusters are its content.

import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { findInRoot } from "./directory.ts";
import type { Files } from "./files.ts";
import { DATA } from "./files.ts";
import {
	SHADOW_CATALOG_BLOCK,
	SHADOW_ENTRY_UNUSED,
	SHADOW_HEADER_AT,
	SHADOW_IDENTIFIER_START,
	ShadowCatalog,
	ShadowHeader,
} from "./layout.ts";

/** A hibernation file's header takes a page. */
const HIBERNATION_HEADER = 4096;
/** Windows keeps at most 512 shadow copies of a volume: some ten blocks. */
const MAX_CATALOG_BLOCKS = 1024;

const ASLEEP = "Windows is hibernated or was shut down with fast startup; shut it down with `shutdown /s /f /t 0`";
const ASLEEP_ELSEWHERE =
	"its hiberfil.sys is too short to be read; start Windows and shut it down with `shutdown /s /f /t 0`";

/** Why hibernation forbids to believe the volume, in one sentence, or null. Throws VOLUME_DAMAGED. */
export async function whyHibernated(files: Files): Promise<string | null> {
	for (const { record: number, sequence } of await findInRoot(files, "hiberfil.sys")) {
		const record = await files.record(number);
		const content = record.sequence === sequence ? await files.content(record, DATA) : null;
		if (content === null || content.size < HIBERNATION_HEADER) return ASLEEP_ELSEWHERE;
		if (!content.plain) return "its hiberfil.sys is compressed or encrypted, which Windows never does";
		const header = await files.read(content, 0, HIBERNATION_HEADER);
		// After waking up Windows writes "wake"; a file that was never used has an empty header.
		const text = String.fromCharCode(...header.subarray(0, 4)).toLowerCase();
		if (text !== "wake" && header.some((byte) => byte !== 0)) return ASLEEP;
	}
	return null;
}

/** Why shadow copies forbid to drop what is free, in one sentence, or null. */
export async function whyShadowed(volume: ByteSource): Promise<string | null> {
	const shadowed = "it has shadow copies (restore points), which need what was deleted; see `vssadmin delete shadows`";
	if (volume.size < SHADOW_HEADER_AT + ShadowHeader.size) return null;
	const header = ShadowHeader.at(viewOf(await readBytes(volume, byteOffset(SHADOW_HEADER_AT), ShadowHeader.size)));
	if (header.identifierStart !== SHADOW_IDENTIFIER_START) return null;
	if (header.volumeId.some((byte, index) => byte !== header.storageVolumeId[index])) return shadowed;
	let at = header.catalog;
	for (let blocks = 0; at !== 0; blocks++) {
		if (blocks >= MAX_CATALOG_BLOCKS || at % 512 !== 0 || at + SHADOW_CATALOG_BLOCK > volume.size) return shadowed;
		const raw = await readBytes(volume, byteOffset(at), SHADOW_CATALOG_BLOCK);
		const view = viewOf(raw);
		const { identifierStart, recordType, next } = ShadowCatalog.at(view);
		if (identifierStart !== SHADOW_IDENTIFIER_START || recordType !== 2) return shadowed;
		for (let entry = ShadowCatalog.size; entry < raw.length; entry += ShadowCatalog.size)
			if (view.getBigUint64(entry, true) > BigInt(SHADOW_ENTRY_UNUSED)) return shadowed;
		at = next;
	}
	return null;
}
