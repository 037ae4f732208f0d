// vmsweep as users run it: `create`, `serve`, `status`, for tests that need the whole product.

import { statSync } from "node:fs";
import { basename, join } from "node:path";
import { askServed, askStatus } from "../../src/services/control.ts";
import type { DiskStatus } from "../../src/services/disk-status.ts";
import { type ClientOptions, NbdClient } from "./nbd-client.ts";
import { type Finished, type Running, runOk, start, vmsweep } from "./processes.ts";
import { waitUntil } from "./waiting.ts";

/** `vmsweep create`: a new disk of a size such as "2G", or around an existing image. */
export async function createDisk(
	disk: string,
	from: { readonly size: string } | { readonly second: string },
): Promise<void> {
	await runOk(vmsweep, ["create", disk, ...("size" in from ? ["--size", from.size] : ["--second", from.second])]);
}

/** How a status is waited for. */
interface ReachOptions {
	readonly timeoutSeconds?: number;
	readonly everyMs?: number;
	readonly meanwhile?: () => Promise<void>;
}

/** A running `vmsweep serve`. */
export class SweepServer implements AsyncDisposable {
	readonly disk: string;
	readonly uri: string;
	readonly process: Running;

	private constructor(disk: string, uri: string, process: Running) {
		this.disk = disk;
		this.uri = uri;
		this.process = process;
	}

	static async serve(disk: string, ...options: readonly string[]): Promise<SweepServer> {
		const server = start(vmsweep, ["serve", disk, "--json", ...options]);
		try {
			const ready = await server.line(/^\{.*"uri":"([^"]+)"/, 60);
			return new SweepServer(disk, ready[1]!, server);
		} catch (error) {
			await server[Symbol.asyncDispose]();
			throw error;
		}
	}

	/** A client of the disk's export, on its own socket. */
	connect(options: ClientOptions = {}): Promise<NbdClient> {
		return NbdClient.connect({ path: join(this.disk, "nbd.sock") }, { exportName: basename(this.disk), ...options });
	}

	/** What `vmsweep status --json` says, without starting a program for it. */
	status(): Promise<DiskStatus> {
		return askStatus(this.disk);
	}

	/** Has the cleaner look at the disk so many times or more, now: a disk at rest is looked at every few seconds only. */
	async rounds(count: number): Promise<void> {
		const { cleaner } = await this.status();
		while ((await this.status()).cleaner.rounds < cleaner.rounds + count)
			await askServed(this.disk, "clean", { vmOff: false });
	}

	/**
	 * Asks for the status until `condition` holds. `meanwhile`: what the guest does before each look, where it is a guest at work:
	 * most rules want commits that come after what is waited for.
	 */
	async reaches(
		condition: (status: DiskStatus) => boolean,
		what: string,
		{ timeoutSeconds = 60, everyMs = 500, meanwhile }: ReachOptions = {},
	): Promise<DiskStatus> {
		let last: DiskStatus | undefined;
		const ask = async (): Promise<DiskStatus | false> => {
			await meanwhile?.();
			last = await this.status();
			return condition(last) && last;
		};
		return waitUntil(ask, () => `${what}; last status: ${JSON.stringify(last)}`, { timeoutSeconds, everyMs });
	}

	/** SIGTERM: everything is finished and closed. */
	async stop(): Promise<Finished> {
		return this.process.end();
	}

	/** A crash. */
	async kill(): Promise<Finished> {
		return this.process.kill();
	}

	/** Host bytes of both images. */
	hostBytes(): { readonly first: number; readonly second: number } {
		const bytes = (file: string): number => statSync(join(this.disk, file)).blocks * 512;
		return { first: bytes("first.log"), second: bytes("second.raw") };
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.process[Symbol.asyncDispose]();
	}
}
