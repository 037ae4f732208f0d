// Files: content of the volume's own files, found through the MFT, which is a file itself.
//
//   boot sector ─▶ record 0: $MFT's first runs ─▶ all of its runs (attribute list) ─▶ any record ─▶ its content
//
// A file with more attributes than fit in its record has a list of them, and further records that name it as their
// base. $MFT's own later runs lie in records that its earlier runs must already reach.

import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { AttributeType, ListEntry, SystemFile } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { damaged } from "./open.ts";
import type { AttributeKey, FoundAttribute } from "./records.ts";
import { MftRecord, nameOf } from "./records.ts";
import { RunList } from "./runs.ts";

/** NTFS's own limit is 256 KiB. */
const MAX_LIST_BYTES = 256 << 10;

/** The unnamed $DATA of a file. */
export const DATA: AttributeKey = { type: AttributeType.data, name: "" };

/** A file's content. */
export interface Content {
	readonly size: number;
	/** What lies behind reads as zeros. */
	readonly initializedSize: number;
	/** Neither compressed nor encrypted nor sparse. */
	readonly plain: boolean;
	readonly where:
		| { readonly kind: "resident"; readonly value: Uint8Array }
		| { readonly kind: "runs"; readonly runs: RunList };
}

/** The files of one volume, by the number of their record. */
export class Files {
	readonly geometry: Geometry;
	readonly #volume: ByteSource;
	#mft: Content;

	private constructor(volume: ByteSource, geometry: Geometry) {
		this.#volume = volume;
		this.geometry = geometry;
		// What the boot sector promises: enough to read record 0.
		const runs = new RunList();
		const clusters = Math.ceil(geometry.recordSize / geometry.clusterSize);
		runs.append(firstRun(geometry.mftCluster, clusters), clusters, geometry.clusterCount);
		const size = geometry.recordSize;
		this.#mft = { size, initializedSize: size, plain: true, where: { kind: "runs", runs } };
	}

	/** Reads where the MFT lies. Throws VOLUME_DAMAGED. */
	static async open(volume: ByteSource, geometry: Geometry): Promise<Files> {
		const files = new Files(volume, geometry);
		const record = await files.record(SystemFile.mft);
		const first = record.find(DATA);
		if (first?.content.kind !== "runs" || !first.plain)
			throw damaged("its MFT has no content; run chkdsk in the guest");
		const { dataSize, initializedSize } = first.content;
		const where = { kind: "runs", runs: new RunList() } as const;
		files.#mft = { size: dataSize, initializedSize, plain: true, where };
		await files.#collect(record, DATA, first, where.runs);
		if (where.runs.locate(0)?.cluster !== geometry.mftCluster)
			throw damaged("its boot sector and its MFT disagree on where the MFT lies; run chkdsk in the guest");
		return files;
	}

	/** Content of the MFT itself. */
	get mft(): Content {
		return this.#mft;
	}

	/** Reads a record. Throws VOLUME_DAMAGED where it does not exist, is torn or not in use. */
	async record(number: number): Promise<MftRecord> {
		const { recordSize } = this.geometry;
		const at = number * recordSize;
		if (at + recordSize > Math.min(this.#mft.size, this.#mft.initializedSize))
			throw damaged(`its MFT has no record ${number}; run chkdsk in the guest`);
		return new MftRecord(number, await this.read(this.#mft, at, recordSize));
	}

	/** The content of an attribute of `record`, or null where it has none of that kind. Throws VOLUME_DAMAGED. */
	async content(record: MftRecord, key: AttributeKey): Promise<Content | null> {
		const first = await this.#first(record, key);
		if (first === null) return null;
		const { content, plain } = first;
		if (content.kind === "resident")
			return { size: content.value.length, initializedSize: content.value.length, plain, where: content };
		const { dataSize: size, initializedSize } = content;
		const runs = new RunList();
		await this.#collect(record, key, first, runs);
		if (size > runs.length * this.geometry.clusterSize || initializedSize > size)
			throw damaged(`MFT record ${record.number} has less content than it says; run chkdsk in the guest`);
		return { size, initializedSize, plain, where: { kind: "runs", runs } };
	}

	/** Reads `length` bytes at `at`. Throws VOLUME_DAMAGED past the end and in holes. */
	async read(content: Content, at: number, length: number): Promise<Uint8Array> {
		if (at < 0 || at + length > content.size) throw damaged("one of its system files is shorter than it must be");
		if (content.where.kind === "resident") return content.where.value.slice(at, at + length);
		const { clusterSize } = this.geometry;
		const into = new Uint8Array(length);
		const end = Math.min(length, content.initializedSize - at);
		for (let done = 0; done < end; ) {
			const inCluster = (at + done) % clusterSize;
			const run = content.where.runs.locate(Math.floor((at + done) / clusterSize));
			if (run === null || run.cluster === null) throw damaged("one of its system files has a hole");
			const part = Math.min(end - done, run.count * clusterSize - inCluster);
			await this.#volume.read(byteOffset(run.cluster * clusterSize + inCluster), into.subarray(done, done + part));
			done += part;
		}
		return into;
	}

	/** The attribute that describes the start of the content. */
	async #first(record: MftRecord, key: AttributeKey): Promise<FoundAttribute | null> {
		const own = record.find(key);
		if (own !== null) return own;
		const entry = (await this.#listed(record, key)).find(({ lowestCluster }) => lowestCluster === 0);
		return entry === undefined ? null : await this.#listedAttribute(record, key, entry);
	}

	/** Appends the runs of all attributes that describe the content, in order. */
	async #collect(record: MftRecord, key: AttributeKey, first: FoundAttribute, runs: RunList): Promise<void> {
		const append = ({ content }: FoundAttribute): void => {
			if (content.kind !== "runs") throw damaged(`MFT record ${record.number} has both kinds of content`);
			runs.append(content.runs, content.clusters, this.geometry.clusterCount);
		};
		append(first);
		for (const entry of await this.#listed(record, key)) {
			if (entry.lowestCluster === 0) continue;
			if (entry.lowestCluster !== runs.length)
				throw damaged(`the runs of MFT record ${record.number} have a gap; run chkdsk in the guest`);
			append(await this.#listedAttribute(record, key, entry));
		}
	}

	/** Entries of the record's attribute list for one attribute, in the list's order, which is that of the content. */
	async #listed(record: MftRecord, key: AttributeKey): Promise<ListedAttribute[]> {
		const attribute = record.find({ type: AttributeType.list, name: "" });
		if (attribute === null) return [];
		const raw = await this.#listBytes(attribute);
		const view = viewOf(raw);
		const entries: ListedAttribute[] = [];
		for (let at = 0; at < raw.length; ) {
			if (at + ListEntry.size > raw.length) break; // padding
			const { type, length, nameLength, nameOffset, ...entry } = ListEntry.at(view, at);
			if (length < ListEntry.size || length % 8 !== 0)
				throw damaged(`MFT record ${record.number} has a damaged attribute list; run chkdsk in the guest`);
			if (type === key.type && nameOf(raw, at + nameOffset, nameLength) === key.name)
				entries.push({
					lowestCluster: entry.lowestCluster,
					record: entry.recordHigh * 2 ** 32 + entry.recordLow,
					sequence: entry.sequence,
				});
			at += length;
		}
		return entries;
	}

	async #listBytes({ content, plain }: FoundAttribute): Promise<Uint8Array> {
		if (content.kind === "resident") return content.value;
		const runs = new RunList();
		runs.append(content.runs, content.clusters, this.geometry.clusterCount);
		const { dataSize: size, initializedSize } = content;
		if (!plain || size > MAX_LIST_BYTES || initializedSize !== size)
			throw damaged(`one of its attribute lists has ${size} bytes; run chkdsk in the guest`);
		return await this.read({ size, initializedSize, plain, where: { kind: "runs", runs } }, 0, size);
	}

	async #listedAttribute(base: MftRecord, key: AttributeKey, entry: ListedAttribute): Promise<FoundAttribute> {
		const record = entry.record === base.number ? base : await this.record(entry.record);
		const found = record.sequence === entry.sequence ? record.find(key, entry.lowestCluster) : null;
		if (found === null || (record !== base && record.base !== base.number))
			throw damaged(`MFT record ${base.number} lists an attribute that is not there; run chkdsk in the guest`);
		return found;
	}
}

interface ListedAttribute {
	readonly lowestCluster: number;
	readonly record: number;
	readonly sequence: number;
}

/** A stored run of `count` clusters at `cluster`. */
function firstRun(cluster: number, count: number): Uint8Array {
	const raw = new Uint8Array(18);
	raw[0] = 0x88;
	const view = viewOf(raw);
	view.setBigInt64(1, BigInt(count), true);
	view.setBigInt64(9, BigInt(cluster), true);
	return raw;
}
