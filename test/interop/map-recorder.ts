// A recorder: a disk in memory that a real kernel mounts, and that keeps every write in the order of arrival.
//
//   kernel's ext4 ── loop device ── nbdfuse ── NBD (unix socket) ── Recorder: bytes + list of writes
//
// nbdfuse sends one request at a time and writes through, so that the order here is the order of the guest's writes.

import { access, mkdir } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { type Running, run, runOk, start } from "../support/processes.ts";

export interface RecordedWrite {
	readonly at: number;
	readonly bytes: Uint8Array;
}

const NBD_MAGIC = 0x4e42444d41474943n;
const OPTION_MAGIC = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
const REQUEST_MAGIC = 0x25609513;
const REPLY_MAGIC = 0x67446698;

/** A disk of `size` bytes behind a Unix socket, as far as nbdfuse needs NBD. */
export class Recorder implements AsyncDisposable {
	readonly disk: Uint8Array;
	readonly writes: RecordedWrite[] = [];
	readonly #server: Server;
	readonly #sockets = new Set<Socket>();

	constructor(size: number) {
		this.disk = new Uint8Array(size);
		this.#server = createServer((socket) => {
			this.#sockets.add(socket);
			socket.on("error", () => {});
			this.#serve(socket).catch(() => socket.destroy());
		});
	}

	async listen(path: string): Promise<void> {
		await new Promise<void>((resolve) => this.#server.listen(path, resolve));
	}

	async [Symbol.asyncDispose](): Promise<void> {
		for (const socket of this.#sockets) socket.destroy();
		await new Promise<void>((resolve) => this.#server.close(() => resolve()));
	}

	async #serve(socket: Socket): Promise<void> {
		const take = reader(socket);
		const hello = Buffer.alloc(18);
		hello.writeBigUInt64BE(NBD_MAGIC, 0);
		hello.writeBigUInt64BE(OPTION_MAGIC, 8);
		hello.writeUInt16BE(3, 16);
		socket.write(hello);
		await take(4);
		for (;;) {
			const head = await take(16);
			const option = head.readUInt32BE(8);
			await take(head.readUInt32BE(12));
			const reply = (type: number, data = Buffer.alloc(0)): void => {
				const out = Buffer.alloc(20);
				out.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
				out.writeUInt32BE(option, 8);
				out.writeUInt32BE(type, 12);
				out.writeUInt32BE(data.length, 16);
				socket.write(Buffer.concat([out, data]));
			};
			if (option !== 6 && option !== 7) {
				reply(0x80000001);
				continue;
			}
			const info = Buffer.alloc(12);
			info.writeBigUInt64BE(BigInt(this.disk.length), 2);
			info.writeUInt16BE(0x1 | 0x4 | 0x8, 10);
			reply(3, info);
			reply(1);
			if (option === 7) break;
		}
		for (;;) {
			const head = await take(28);
			if (head.readUInt32BE(0) !== REQUEST_MAGIC) throw new Error("no NBD request");
			const type = head.readUInt16BE(6);
			const at = Number(head.readBigUInt64BE(16));
			const length = head.readUInt32BE(24);
			const reply = Buffer.alloc(16);
			reply.writeUInt32BE(REPLY_MAGIC, 0);
			head.copy(reply, 8, 8, 16);
			if (type === 2) return void socket.end();
			if (type === 1) {
				const bytes = new Uint8Array(await take(length));
				this.writes.push({ at, bytes });
				this.disk.set(bytes, at);
			}
			socket.write(type === 0 ? Buffer.concat([reply, this.disk.subarray(at, at + length)]) : reply);
		}
	}
}

/** Takes exactly `count` bytes off a stream at a time. */
function reader(socket: Socket): (count: number) => Promise<Buffer> {
	const chunks = socket.iterator({ destroyOnReturn: false });
	let held: Buffer = Buffer.alloc(0);
	return async (count) => {
		const parts = [held];
		let length = held.length;
		while (length < count) {
			const { value, done } = await chunks.next();
			if (done) throw new Error("connection closed");
			parts.push(value as Buffer);
			length += (value as Buffer).length;
		}
		const all = parts.length === 1 ? held : Buffer.concat(parts);
		held = all.subarray(count);
		return Buffer.from(all.subarray(0, count));
	};
}

/** The recorder's disk as a loop device. */
export class LoopDevice implements AsyncDisposable {
	readonly path: string;
	readonly #fuse: Running;
	readonly #mountPoint: string;
	constructor(path: string, fuse: Running, mountPoint: string) {
		this.path = path;
		this.#fuse = fuse;
		this.#mountPoint = mountPoint;
	}
	static async attach(socket: string, folder: string): Promise<LoopDevice> {
		await mkdir(folder);
		const fuse = start("nbdfuse", [folder, "--unix", socket]);
		await fuse.until(
			() =>
				access(`${folder}/nbd`).then(
					() => true,
					() => delay(20).then(() => false),
				),
			"its file",
		);
		const path = (await runOk("losetup", ["-f", "--show", `${folder}/nbd`])).trim();
		return new LoopDevice(path, fuse, folder);
	}
	async [Symbol.asyncDispose](): Promise<void> {
		await run("losetup", ["-d", this.path]);
		await run("fusermount3", ["-u", this.#mountPoint]);
		await this.#fuse[Symbol.asyncDispose]();
	}
}
