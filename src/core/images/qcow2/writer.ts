// Writing a new qcow2 image (version 3), front to back.
//
//   | header (last of all) | clusters, as they come, L2 tables between them | L1 | refcount blocks | refcount table |
//
// Invariants
//  - until `finish` the file starts with zeros: what an interruption leaves is no image that anybody would open
//  - the header is written after a flush of everything that it leads to
//  - a guest cluster is given at most once; what is never given takes no space, and reads as the image below, or as zeros
//
// `reserve` only says where data goes, so that the caller may let the kernel copy it, or write it in any order.

import { assert, VmsweepError } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import {
	type ByteCount,
	type ByteOffset,
	byteCount,
	byteOffset,
	divCeil,
	isPowerOfTwo,
	roundUp,
} from "../../../foundations/units.ts";
import type { WritableImageFile } from "../image-file.ts";
import * as layout from "./layout.ts";
import { ClusterCounts, Holds } from "./refcounts.ts";

export interface Qcow2WriterOptions {
	/** For messages. */
	readonly path: string;
	/** The guest's disk. */
	readonly size: ByteCount;
	/** A power of two from 512 bytes to 2 MiB. Default: 64 KiB. */
	readonly clusterSize?: ByteCount;
	/** How the clusters given to `appendPacked` are packed. Default: deflate. */
	readonly compression?: "deflate" | "zstd";
	/** The image below: its name as the header is to have it, and its format by the name that qemu-img uses. */
	readonly backing?: { readonly name: string; readonly format: "raw" | "qcow2" };
}

const CLUSTER_SIZE_DEFAULT = 65_536;
/** Memory for L2 tables, in bytes; at least two tables. What is beyond is written, and read again when needed. */
const TABLES_BYTES = 64 << 20;
/** Packed clusters are small: they are gathered up to this many bytes. */
const PACKED_BYTES = 1 << 20;
const REFCOUNT_ORDER = 4;

/** Writes one image. Calls to `appendPacked` and `finish` must not overlap with anything; `reserve` is immediate. */
export class Qcow2Writer {
	readonly clusterSize: number;
	readonly #file: WritableImageFile;
	readonly #size: number;
	readonly #clusterBits: number;
	readonly #compression: "deflate" | "zstd";
	readonly #backing: Qcow2WriterOptions["backing"];
	readonly #counts: ClusterCounts;
	/** L2 tables in memory, by L1 index; the most recently used last. */
	readonly #tables = new Map<number, DataView>();
	/** Where L2 tables have their place, by L1 index; 0: nowhere yet. */
	readonly #tableAt: Float64Array;
	/** First byte of the file that nothing has; always at a cluster. */
	#end: number;
	/** Packed clusters that are not written yet: their bytes, and where the first of them goes. */
	#packed: Uint8Array[] = [];
	#packedStart = 0;
	#packedEnd = 0;
	#finished = false;

	/** `file` must be empty. Throws IMAGE_UNSUPPORTED where the disk is too large for the cluster size. */
	constructor(file: WritableImageFile, options: Qcow2WriterOptions) {
		const clusterSize = options.clusterSize ?? CLUSTER_SIZE_DEFAULT;
		assert(
			isPowerOfTwo(clusterSize) && clusterSize >= 512 && clusterSize <= 2 ** 21,
			`clusters of ${clusterSize} bytes`,
		);
		assert(file.size === 0, "the file for a new image is not empty");
		this.clusterSize = clusterSize;
		this.#file = file;
		this.#size = options.size;
		this.#clusterBits = Math.log2(clusterSize);
		this.#compression = options.compression ?? "deflate";
		this.#backing = options.backing;
		const l2Entries = clusterSize / layout.ENTRY_BYTES;
		const l1Entries = divCeil(options.size, l2Entries * clusterSize);
		if (l1Entries * layout.ENTRY_BYTES > layout.L1_BYTES_MAX)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${options.path}: the disk is too large for clusters of ${clusterSize} bytes. Choose larger ones.`,
			);
		// Every guest cluster, its tables, and room for packed clusters that don't fit together.
		const clusters = divCeil(options.size, clusterSize);
		this.#counts = new ClusterCounts(2 * clusters + 2 * l1Entries + 1024, options.path);
		this.#tableAt = new Float64Array(l1Entries);
		this.#end = clusterSize;
		this.#counts.set(0, 1);
	}

	/**
	 * Makes room for guest bytes in one piece, and says where in the file they go. The range starts at a cluster, and
	 * ends at one or at the disk's end. The caller writes all of it before `finish`.
	 */
	async reserve(start: ByteOffset, length: ByteCount): Promise<ByteOffset> {
		assert(!this.#finished, "the image is finished");
		assert(
			start % this.clusterSize === 0 && start + length <= this.#size,
			`bytes ${start} to ${start + length} are reserved`,
		);
		assert(length % this.clusterSize === 0 || start + length === this.#size, `${length} bytes are reserved`);
		const count = divCeil(length, this.clusterSize);
		const host = this.#allocate(count);
		for (let index = 0; index < count; index++) {
			const at = host + index * this.clusterSize;
			await this.#map(
				start / this.clusterSize + index,
				layout.COPIED + Math.floor(at / 0x1_0000_0000),
				at % 0x1_0000_0000,
			);
		}
		return byteOffset(host);
	}

	/** Writes guest bytes; the range is as for `reserve`. */
	async write(start: ByteOffset, bytes: Uint8Array): Promise<void> {
		await this.#file.write(await this.reserve(start, byteCount(bytes.length)), bytes);
	}

	/**
	 * Adds a packed cluster: one raw deflate stream or zstd frame of exactly one cluster (the disk's last one filled up
	 * with zeros), smaller than it. The bytes belong to the writer from now on.
	 */
	async appendPacked(start: ByteOffset, packed: Uint8Array): Promise<void> {
		assert(!this.#finished, "the image is finished");
		assert(start % this.clusterSize === 0 && start < this.#size, `byte ${start} is packed`);
		assert(packed.length > 0 && packed.length < this.clusterSize, `${packed.length} packed bytes`);
		const host = await this.#placePacked(packed);
		const first = Math.floor(host / this.clusterSize);
		const last = Math.floor((host + packed.length - 1) / this.clusterSize);
		for (let cluster = first; cluster <= last; cluster++) this.#counts.refer(cluster, Holds.COMPRESSED, 1);
		const offsetHighBits = 62 - (this.#clusterBits - 8) - 32;
		const sectors = Math.floor((host + packed.length - 1) / 512) - Math.floor(host / 512);
		const high = layout.COMPRESSED + sectors * 2 ** offsetHighBits + Math.floor(host / 0x1_0000_0000);
		await this.#map(start / this.clusterSize, high, host % 0x1_0000_0000);
		if (this.#packed.length > 0 && this.#packedEnd - this.#packedStart >= PACKED_BYTES) await this.#writePacked();
	}

	/** Writes the tables and the header; the image is then complete and durable. */
	async finish(): Promise<void> {
		assert(!this.#finished, "the image is finished already");
		await this.#writePacked();
		for (const [l1Index, table] of this.#tables) await this.#writeTable(l1Index, table);
		const l1Offset = await this.#writeL1();
		const { offset: refcountTableOffset, clusters: refcountTableClusters } = await this.#writeRefcounts();
		await this.#file.truncate(byteCount(this.#end));
		await this.#file.flush();
		await this.#file.write(byteOffset(0), this.#header({ l1Offset, refcountTableOffset, refcountTableClusters }));
		await this.#file.flush();
		this.#finished = true;
	}

	#allocate(clusters: number): number {
		const at = this.#end;
		this.#end += clusters * this.clusterSize;
		return at;
	}

	/** Packed clusters follow each other byte by byte as long as nothing else is allocated between them. */
	async #placePacked(packed: Uint8Array): Promise<number> {
		const room = roundUp(this.#packedEnd, this.clusterSize) - this.#packedEnd;
		const continues = this.#packedEnd > 0 && roundUp(this.#packedEnd, this.clusterSize) === this.#end;
		if (packed.length > room) {
			if (!continues) {
				await this.#writePacked();
				this.#packedStart = this.#end;
				this.#packedEnd = this.#end;
			}
			this.#allocate(1);
		}
		const host = this.#packedEnd;
		this.#packed.push(packed);
		this.#packedEnd += packed.length;
		return host;
	}

	async #writePacked(): Promise<void> {
		const bytes = new Uint8Array(this.#packedEnd - this.#packedStart);
		let at = 0;
		for (const each of this.#packed) {
			bytes.set(each, at);
			at += each.length;
		}
		assert(at === bytes.length, "packed clusters leave gaps");
		this.#packed = [];
		const start = this.#packedStart;
		this.#packedStart = this.#packedEnd;
		if (bytes.length > 0) await this.#file.write(byteOffset(start), bytes);
	}

	/** Sets the L2 entry of a guest cluster. */
	async #map(cluster: number, high: number, low: number): Promise<void> {
		const l2Entries = this.clusterSize / layout.ENTRY_BYTES;
		const l1Index = Math.floor(cluster / l2Entries);
		const table = this.#tables.get(l1Index) ?? (await this.#loadTable(l1Index));
		const at = (cluster % l2Entries) * layout.ENTRY_BYTES;
		assert(table.getUint32(at) === 0 && table.getUint32(at + 4) === 0, `guest cluster ${cluster} is given twice`);
		table.setUint32(at, high);
		table.setUint32(at + 4, low);
	}

	async #loadTable(l1Index: number): Promise<DataView> {
		const at = this.#tableAt[l1Index]!;
		const table =
			at === 0
				? viewOf(new Uint8Array(this.clusterSize))
				: viewOf(await readBytes(this.#file, byteOffset(at), this.clusterSize));
		if (this.#tables.size >= Math.max(2, TABLES_BYTES / this.clusterSize)) {
			const [oldest, oldestTable] = this.#tables.entries().next().value!;
			await this.#writeTable(oldest, oldestTable);
			this.#tables.delete(oldest);
		}
		this.#tables.set(l1Index, table);
		return table;
	}

	async #writeTable(l1Index: number, table: DataView): Promise<void> {
		if (this.#tableAt[l1Index] === 0) this.#tableAt[l1Index] = this.#allocate(1);
		await this.#file.write(byteOffset(this.#tableAt[l1Index]!), new Uint8Array(table.buffer));
	}

	async #writeL1(): Promise<number> {
		const length = this.#tableAt.length * layout.ENTRY_BYTES;
		const offset = this.#allocate(Math.max(1, divCeil(length, this.clusterSize)));
		const l1 = viewOf(new Uint8Array(Math.max(1, divCeil(length, this.clusterSize)) * this.clusterSize));
		for (const [index, at] of this.#tableAt.entries()) {
			if (at === 0) continue;
			l1.setUint32(index * layout.ENTRY_BYTES, layout.COPIED + Math.floor(at / 0x1_0000_0000));
			l1.setUint32(index * layout.ENTRY_BYTES + 4, at % 0x1_0000_0000);
		}
		await this.#file.write(byteOffset(offset), new Uint8Array(l1.buffer));
		return offset;
	}

	/** Counts for everything, themselves included. */
	async #writeRefcounts(): Promise<{ readonly offset: number; readonly clusters: number }> {
		const perBlock = (this.clusterSize * 8) / 2 ** REFCOUNT_ORDER;
		const others = this.#end / this.clusterSize;
		let blocks = 0;
		let tableClusters = 0;
		for (let total = others; ; total = others + blocks + tableClusters) {
			const wanted = divCeil(total, perBlock);
			const wantedTable = divCeil(wanted * layout.ENTRY_BYTES, this.clusterSize);
			if (wanted === blocks && wantedTable === tableClusters) break;
			blocks = wanted;
			tableClusters = wantedTable;
		}
		const blocksAt = this.#allocate(blocks);
		const offset = this.#allocate(tableClusters);
		const total = this.#end / this.clusterSize;
		const table = viewOf(new Uint8Array(tableClusters * this.clusterSize));
		for (let index = 0; index < blocks; index++) {
			const at = blocksAt + index * this.clusterSize;
			table.setUint32(index * layout.ENTRY_BYTES, Math.floor(at / 0x1_0000_0000));
			table.setUint32(index * layout.ENTRY_BYTES + 4, at % 0x1_0000_0000);
			const block = viewOf(new Uint8Array(this.clusterSize));
			for (let each = 0; each < perBlock && index * perBlock + each < total; each++)
				block.setUint16(each * 2, Math.max(1, this.#counts.count(index * perBlock + each)));
			await this.#file.write(byteOffset(at), new Uint8Array(block.buffer));
		}
		await this.#file.write(byteOffset(offset), new Uint8Array(table.buffer));
		return { offset, clusters: tableClusters };
	}

	#header(tables: {
		readonly l1Offset: number;
		readonly refcountTableOffset: number;
		readonly refcountTableClusters: number;
	}): Uint8Array {
		const header = new Uint8Array(this.clusterSize);
		const view = viewOf(header);
		layout.HeaderV2.put(view, 0, {
			magic: layout.QCOW2_MAGIC,
			version: 3,
			clusterBits: this.#clusterBits,
			size: this.#size,
			l1Size: this.#tableAt.length,
			l1TableOffset: tables.l1Offset,
			refcountTableOffset: tables.refcountTableOffset,
			refcountTableClusters: tables.refcountTableClusters,
		});
		layout.HeaderV3.put(view, 0, {
			incompatibleLow: this.#compression === "zstd" ? layout.Incompatible.COMPRESSION : 0,
			refcountOrder: REFCOUNT_ORDER,
			headerLength: layout.HEADER_V3_LENGTH_KNOWN,
			compressionType: this.#compression === "zstd" ? 1 : 0,
		});
		if (this.#backing !== undefined) putBacking(header, this.#backing);
		return header;
	}
}

/** The name of the image below stands behind the extension that tells its format. */
function putBacking(header: Uint8Array, { name, format }: NonNullable<Qcow2WriterOptions["backing"]>): void {
	const view = viewOf(header);
	const encoder = new TextEncoder();
	const nameBytes = encoder.encode(name);
	const formatBytes = encoder.encode(format);
	const extensionAt = layout.HEADER_V3_LENGTH_KNOWN;
	layout.ExtensionHeader.put(view, extensionAt, { type: layout.Extension.BACKING_FORMAT, length: formatBytes.length });
	header.set(formatBytes, extensionAt + layout.ExtensionHeader.size);
	// Zeros behind it are the extension that ends them all.
	const nameAt = extensionAt + 2 * layout.ExtensionHeader.size + roundUp(formatBytes.length, 8);
	assert(nameBytes.length <= layout.BACKING_NAME_BYTES_MAX, `a backing file's name of ${nameBytes.length} bytes`);
	assert(nameAt + nameBytes.length <= header.length, "the name of the backing file doesn't fit into the first cluster");
	header.set(nameBytes, nameAt);
	layout.HeaderV2.write.backingFileOffset(view, 0, nameAt);
	layout.HeaderV2.write.backingFileSize(view, 0, nameBytes.length);
}
