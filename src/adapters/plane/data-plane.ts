// Data plane, seen from the control plane: starts a disk's threads, asks them things, hears what they say.

import { Worker } from "node:worker_threads";
import { assert, VmsweepError } from "../../foundations/errors.ts";
import * as sys from "../os/syscalls.ts";
import type { HelperSetup } from "./helpers.ts";
import { helperMemory, stopHelpers } from "./helpers.ts";
import { UringJobs } from "./jobs.ts";
import type {
	PlaneCall,
	PlaneCalls,
	PlaneEvent,
	PlanePort,
	PlaneReply,
	PlaneRequest,
	WorkerSetup,
} from "./messages.ts";

/** Threads for flushes and reads that miss the page cache, where there is no io_uring: a flush, some reads beside it. */
const HELPER_COUNT = 4;

/** What a disk's threads need; the descriptors stay open until `stopped` resolves. */
export interface DataPlaneSetup extends Omit<WorkerSetup, "helperMemory" | "bell"> {
	readonly onEvent: (event: PlaneEvent) => void;
	/** The thread ended without being told to: its clients hang, so the process should end. */
	readonly onDeath: (error: VmsweepError) => void;
}

interface Waiting {
	readonly resolve: (output: never) => void;
	readonly reject: (error: Error) => void;
}

export class DataPlane implements PlanePort, AsyncDisposable {
	readonly #worker: Worker;
	readonly #helpers: readonly Worker[];
	/** Null where io_uring does what helper threads would. */
	readonly #helperMemory: SharedArrayBuffer | null;
	readonly #bell: number;
	readonly #ring = sys.pin(8);
	readonly #waiting = new Map<number, Waiting>();
	readonly #onEvent: (event: PlaneEvent) => void;
	readonly #exited: Promise<void>;
	#nextId = 1;
	#stopped: VmsweepError | undefined;
	#joined: Promise<void> | undefined;

	private constructor(setup: DataPlaneSetup) {
		this.#onEvent = setup.onEvent;
		this.#bell = sys.eventfd(0, sys.EFD_NONBLOCK | sys.EFD_CLOEXEC);
		if (this.#bell < 0) throw sys.hostError(this.#bell, "making an eventfd");
		this.#ring.bytes[0] = 1;
		this.#helperMemory = canUseRing(this.#bell) ? null : helperMemory();
		const { onEvent: _, onDeath, ...rest } = setup;
		const worker: WorkerSetup = { ...rest, helperMemory: this.#helperMemory, bell: this.#bell };
		this.#helpers = this.#helperMemory === null ? [] : startHelpers({ memory: this.#helperMemory, bell: this.#bell });
		this.#worker = startWorker("plane-worker", worker);
		this.#worker.on("message", (reply: PlaneReply) => this.#hear(reply));
		this.#worker.on("error", (error) => {
			const death = new VmsweepError("BUG", `the data plane stopped: ${String(error)}. Please report it.`, {
				cause: error,
			});
			this.#end(death);
			onDeath(death);
		});
		this.#exited = new Promise((resolve) => {
			this.#worker.once("exit", () => {
				this.#end(new VmsweepError("DISK_STOPPED", "the disk is not served any more"));
				resolve();
			});
		});
	}

	/** Opens the first image in a thread of its own and serves it. Throws what opening it throws. */
	static async start(setup: DataPlaneSetup): Promise<DataPlane> {
		const plane = new DataPlane(setup);
		try {
			await new Promise<void>((resolve, reject) => plane.#waiting.set(0, { resolve, reject }));
		} catch (error) {
			await plane.#join();
			throw error;
		}
		return plane;
	}

	/** Asks the data plane; rejects with its error, or DISK_STOPPED once it has ended. */
	ask<K extends PlaneCall>(
		kind: K,
		...input: undefined extends PlaneCalls[K]["input"] ? [] : [PlaneCalls[K]["input"]]
	): Promise<PlaneCalls[K]["output"]> {
		if (this.#stopped !== undefined) return Promise.reject(this.#stopped);
		return new Promise((resolve, reject) => {
			const request: PlaneRequest = { id: this.#nextId++, kind, input: input[0] };
			this.#waiting.set(request.id, { resolve, reject });
			this.#worker.postMessage(request);
			sys.write(this.#bell, this.#ring.address, 8);
		});
	}

	/** Flushes, closes the log cleanly and ends the threads, also where that fails; throws why. Idempotent. */
	async stop(): Promise<void> {
		try {
			if (this.#stopped === undefined) await this.ask("stop");
		} finally {
			await this.#join();
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.stop();
	}

	#hear(reply: PlaneReply): void {
		if ("event" in reply) {
			this.#onEvent(reply.event);
			return;
		}
		const waiting = this.#waiting.get(reply.id);
		assert(waiting !== undefined, `the data plane answered ${reply.id}, which nobody asked`);
		this.#waiting.delete(reply.id);
		if ("error" in reply) waiting.reject(new VmsweepError(reply.error.code, reply.error.message));
		else waiting.resolve(reply.output as never);
	}

	#end(reason: VmsweepError): void {
		if (this.#stopped !== undefined) return;
		this.#stopped = reason;
		for (const { reject } of this.#waiting.values()) reject(reason);
		this.#waiting.clear();
	}

	#join(): Promise<void> {
		// Once only: by the second time the bell's number may belong to another file.
		this.#joined ??= this.#joinThreads();
		return this.#joined;
	}

	async #joinThreads(): Promise<void> {
		await this.#exited;
		if (this.#helperMemory !== null) stopHelpers(this.#helperMemory);
		await Promise.all(
			this.#helpers.map(
				(helper) =>
					new Promise((resolve) => {
						if (helper.threadId < 0) resolve(0);
						else helper.once("exit", resolve);
					}),
			),
		);
		sys.close(this.#bell);
	}
}

function canUseRing(bell: number): boolean {
	const jobs = UringJobs.open(bell);
	jobs?.close();
	return jobs !== undefined;
}

const startHelpers = (helper: HelperSetup): Worker[] =>
	Array.from({ length: HELPER_COUNT }, () => startWorker("helper-worker", helper));

/** Starts a thread whose entry lies beside this file, as TypeScript in a checkout and as JavaScript when built. */
function startWorker(entry: string, workerData: unknown): Worker {
	const extension = import.meta.url.endsWith(".ts") ? ".ts" : ".js";
	return new Worker(new URL(`./${entry}${extension}`, import.meta.url), { workerData, name: entry });
}
