// Packers: threads that pack clusters with zstd.
//
//   clusters in one array ─► a thread (the next in turn) ─► each packed by itself, or null where that saves nothing
//
// Node's own asynchronous zstd makes a stream for each call, which takes five times as long as packing a cluster of
// 64 KiB; a thread that packs synchronously keeps its memory warm.

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { PackAnswer, PackRequest } from "./pack-messages.ts";

/** More would only compete with reading and writing. */
const THREADS_MAX = 8;

interface Waiting {
	readonly resolve: (packed: PackAnswer["packed"]) => void;
	readonly reject: (error: unknown) => void;
}

/** Threads that live as long as this object. */
export class Packers implements AsyncDisposable {
	readonly #threads: readonly Worker[];
	readonly #waiting = new Map<number, Waiting>();
	#asked = 0;

	constructor() {
		const count = Math.min(availableParallelism(), THREADS_MAX);
		this.#threads = Array.from({ length: count }, () => {
			const thread = new Worker(new URL("./pack-worker.ts", import.meta.url), { name: "packer" });
			thread.on("message", ({ id, packed }: PackAnswer) => this.#take(id)?.resolve(packed));
			// Whatever ends a thread: nobody may wait for ever.
			thread.on("error", (error) => this.#failAll(error));
			thread.on("exit", () => this.#failAll(new Error("a packer thread ended")));
			return thread;
		});
	}

	/** Packs whole clusters; `null` stands for one that zstd can't make smaller. The bytes stay the caller's. */
	async pack(bytes: Uint8Array, clusterSize: number): Promise<PackAnswer["packed"]> {
		const id = this.#asked++;
		const request: PackRequest = { id, bytes: bytes.slice(), clusterSize };
		const answer = new Promise<PackAnswer["packed"]>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
		this.#threads[id % this.#threads.length]!.postMessage(request, [request.bytes.buffer]);
		return await answer;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await Promise.all(this.#threads.map((thread) => thread.terminate()));
	}

	#take(id: number): Waiting | undefined {
		const waiting = this.#waiting.get(id);
		this.#waiting.delete(id);
		return waiting;
	}

	#failAll(error: unknown): void {
		for (const { reject } of this.#waiting.values()) reject(error);
		this.#waiting.clear();
	}
}
