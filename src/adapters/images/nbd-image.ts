// NBD images: an export of somebody else's server, by its address, as a DiskImage.
//
// What takes space is what the server says (`base:allocation`); how much the server's storage really uses, nobody knows.
// The server holds the image's locks.

import type { DiskRun } from "../../core/images/virtual-disk.ts";
import type { RemoteDisk } from "../../core/nbd/client-disk.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../../foundations/units.ts";
import { connectNbd, type NbdConnection } from "../nbd/client.ts";
import type { DiskImage, HeldRun, ImagePart } from "./disk-image.ts";

/** Opens the export at an address. Throws USAGE, FILE_NOT_FOUND, IMAGE_UNSUPPORTED, NBD_PROTOCOL or IO. */
export const openNbdImage = async (uri: string): Promise<DiskImage> => new NbdImage(uri, await connectNbd(uri));

class NbdImage implements DiskImage {
	readonly path: string;
	readonly format = "nbd";
	readonly size: ByteCount;
	readonly snapshots = [];
	readonly warnings = [];
	readonly #connection: NbdConnection;
	readonly #disk: RemoteDisk;

	constructor(uri: string, connection: NbdConnection) {
		this.path = uri;
		this.#connection = connection;
		this.#disk = connection.disk;
		this.size = connection.disk.size;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#disk.read(at, into);
	}

	runs(from: ByteOffset, to: ByteOffset): AsyncIterable<DiskRun> {
		return this.#disk.runs(from, to);
	}

	async *held(from: ByteOffset, to: ByteOffset): AsyncGenerator<HeldRun> {
		let pending: HeldRun | undefined;
		for await (const { start, end, held } of this.#disk.allocated(from, to)) {
			if (!held) continue;
			const length = end - start;
			if (pending !== undefined && pending.start + pending.length === start) {
				pending = { start: pending.start, length: byteCount(pending.length + length) };
				continue;
			}
			if (pending !== undefined) yield pending;
			pending = { start: byteOffset(start), length: byteCount(length) };
		}
		if (pending !== undefined) yield pending;
	}

	async allocatedBytes(): Promise<null> {
		return null;
	}

	async parts(): Promise<readonly ImagePart[]> {
		return [{ path: this.path, format: "nbd", role: "image", hostBytes: null }];
	}

	async close(): Promise<void> {
		await this.#connection.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}
}
