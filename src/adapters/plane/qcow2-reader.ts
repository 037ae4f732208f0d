// qcow2 reader: finds the second image's bytes where it is a qcow2 image, with all images below it.
//
//   range ─▶ L1, L2 tables (kept in memory, bounded) ─▶ data       bytes of the image's file
//                                                   ├─▶ zero       zeros
//                                                   ├─▶ packed     unpacked here, when it is fetched; some are kept
//                                                   └─▶ absent     the image below, or zeros
//
// Only blocks that are absent in the first image are looked up here, while the cleaner changes the image under them.
//
// Who writes what, and why no reader ever sees a table half written
//  - new clusters, new tables and counts are written by the control plane: no table that can be reached leads there yet
//  - what can be reached (entries of L1 and L2 tables, the header's places) is written by this thread alone, between two
//    rounds of requests (`writeTables`), together with what is kept of it in memory. A plan and the reads that follow
//    it in this thread see all of an update or nothing
//
// Why the answer is right, whatever is under way
//  - a block being moved or punched is not absent: the index leads elsewhere until the control plane says `moved` or
//    `punched`, and it says so after the tables' update was answered and is durable. From that call on, plans here use
//    the new tables
//  - a block that is absent all the time, but shares its cluster with one that is moved, is the hard case: where the
//    cluster can't be written in place, its whole content is copied to a new one. The copy is complete before the update
//    leads to it, and the old cluster keeps its content until the update was answered. So the block reads the same by
//    the old tables and by the new ones
//  - after the answer the old cluster may be punched, or hold something else soon. A read that helper threads began by
//    the old tables then carries a `generation` that is past, and starts over (slow-reads.ts). Where the update gives up no
//    place, all that was planned before stays right, and nobody starts over
//  - a cluster that is written in place keeps its place, and the write touches none of its absent blocks

import { readSync, writeSync } from "node:fs";
import { SyncTables } from "../../core/images/qcow2/sync-tables.ts";
import type { StoredRun } from "../../core/images/qcow2/tables.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import type { Qcow2Layout, SecondLayout, TableUpdate } from "../images/second-layout.ts";
import { unpackSync } from "../images/unpack.ts";
import { ioError } from "../images/write-run.ts";
import * as sys from "../os/syscalls.ts";
import { BROKEN_RUN, PACKED_RUN, type PushRun, type SecondReader, ZERO_RUN } from "./second-reader.ts";

/** Memory for L2 tables of one image: with clusters of the usual size, those of 256 GiB of the disk. In bytes. */
const TABLES_BYTES = 32 << 20;
/** Unpacked clusters that are kept, in bytes; one at least. */
const UNPACKED_BYTES = 4 << 20;

export class Qcow2Reader implements SecondReader {
	generation = 0;
	readonly #layout: Qcow2Layout;
	readonly #file: DescriptorFile;
	readonly #tables: SyncTables;
	readonly #below: SecondReader | null;
	/** By guest cluster, the oldest first. A cluster that is unpacked once is never packed again while it is served. */
	readonly #unpacked = new Map<number, Uint8Array>();

	/** @param reader makes the reader of the image below. Throws IO. */
	constructor(layout: Qcow2Layout, reader: (layout: SecondLayout) => SecondReader) {
		this.#layout = layout;
		this.#file = new DescriptorFile(layout.fd, layout.path);
		this.#tables = new SyncTables(this.#file, layout.header, layout.path, TABLES_BYTES);
		this.#below = layout.below === null ? null : reader(layout.below);
	}

	plan(from: number, to: number, push: PushRun): void {
		const end = Math.min(to, this.#tables.size);
		for (let at = from; at < end; ) {
			let run: StoredRun;
			try {
				run = this.#tables.run(at, end);
			} catch {
				push(BROKEN_RUN, 0, end - at);
				break;
			}
			this.#push(run, push);
			at += run.length;
		}
		if (to > Math.max(from, end)) push(ZERO_RUN, 0, to - Math.max(from, end));
	}

	#push(run: StoredRun, push: PushRun): void {
		const { kind, start, length, host } = run;
		switch (kind) {
			case "data": {
				const end = this.#file.end(host + length);
				// The last cluster of a file may be short: what is missing of it reads as zeros. One behind the end is lost.
				const { clusterSize } = this.#layout.header;
				const lastCluster = host + length - 1 - ((host + length - 1) % clusterSize);
				if (lastCluster >= end) {
					push(BROKEN_RUN, 0, length);
					return;
				}
				const there = Math.min(length, end - host);
				push(this.#layout.fd, host, there);
				if (there < length) push(ZERO_RUN, 0, length - there);
				return;
			}
			case "zero":
				push(ZERO_RUN, 0, length);
				return;
			case "absent":
				if (this.#below === null) push(ZERO_RUN, 0, length);
				else this.#below.plan(start, start + length, push);
				return;
			case "compressed":
				push(PACKED_RUN, host, length, (into) => this.#unpackInto(run, into));
				return;
			default:
				kind satisfies never;
		}
	}

	/** The size stands in the header, which comes with the tables. */
	resized(): void {}

	writeTables({ pieces, header, frees }: TableUpdate): void {
		// Before anything is written: a failure in between must not leave old plans believed.
		if (frees) this.generation++;
		for (const { at, bytes } of pieces) {
			this.#file.write(at, bytes);
			this.#tables.written(at, bytes);
		}
		if (header !== undefined) this.#tables.reload(header);
	}

	#unpackInto(run: StoredRun, into: Uint8Array): number {
		const { clusterSize } = this.#layout.header;
		const inCluster = run.start % clusterSize;
		try {
			const cluster = this.#unpack(run, run.start - inCluster, clusterSize);
			into.set(cluster.subarray(inCluster, inCluster + into.length));
			return 0;
		} catch {
			return -sys.EIO;
		}
	}

	#unpack({ host, compressedLength }: StoredRun, guestCluster: number, clusterSize: number): Uint8Array {
		const kept = this.#unpacked.get(guestCluster);
		if (kept !== undefined) return kept;
		const packed = new Uint8Array(Math.min(compressedLength, this.#file.end(host + compressedLength) - host));
		this.#file.read(host, packed);
		const cluster = unpackSync(this.#layout.header.compression, packed, clusterSize);
		if (cluster.length !== clusterSize) throw new VmsweepError("IMAGE_DAMAGED", "a packed cluster is too short");
		if (this.#unpacked.size >= Math.max(1, UNPACKED_BYTES / clusterSize))
			this.#unpacked.delete(this.#unpacked.keys().next().value!);
		this.#unpacked.set(guestCluster, cluster);
		return cluster;
	}
}

/** A file by its descriptor, for this thread. */
class DescriptorFile {
	readonly #fd: number;
	readonly #path: string;
	#size = 0;

	constructor(fd: number, path: string) {
		this.#fd = fd;
		this.#path = path;
		this.#ask();
	}

	/** Where it ends, as far as the caller cares: only what lies behind the known end is asked for. It never shrinks. */
	end(wanted: number): number {
		return wanted <= this.#size ? this.#size : this.#ask();
	}

	read(at: number, into: Uint8Array): void {
		for (let done = 0; done < into.length; ) {
			const count = attempt(() => readSync(this.#fd, into, done, into.length - done, at + done), this.#path);
			if (count === 0) throw new VmsweepError("IO", `${this.#path} ends at byte ${at + done}. Restore it from a copy.`);
			done += count;
		}
	}

	write(at: number, bytes: Uint8Array): void {
		for (let done = 0; done < bytes.length; )
			done += attempt(() => writeSync(this.#fd, bytes, done, bytes.length - done, at + done), this.#path);
	}

	#ask(): number {
		const end = sys.lseek(this.#fd, 0, SEEK_END);
		if (end >= 0) this.#size = end;
		return this.#size;
	}
}

function attempt(call: () => number, path: string): number {
	try {
		return call();
	} catch (error) {
		throw ioError(error, `${path}: its tables can't be read or written`);
	}
}

const SEEK_END = 2;
