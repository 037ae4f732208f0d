// Freezer: freeze points of one VM, whose guest's agent answers on a socket.
//
//   every so often, where a volume wants it:
//     hold the cleaners of all the VM's disks ─▶ note it ─▶ thawed? freeze ─▶ frozen? views ─▶ frozen? ─▶ thaw ─▶ judge
//
// Invariants
//  - once a freeze was asked for, whatever happens, the guest is thawed: by all further tries, until it says so itself
//  - while the guest is frozen only counts and views are taken, which takes no time; all reading comes after the thaw
//  - who was frozen already is left alone: somebody makes a backup
//  - what the agent says is a reason to look, never a proof (core/filesystems, `advanceFrozen`)
//
// A server that is killed in the milliseconds between would leave the guest frozen. So it notes the freeze beside the
// disk first, and the next one that finds the note thaws the guest.

import { existsSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { GuestAgent } from "../adapters/qemu/guest-agent.ts";
import type { FreezePoint } from "./clean/freeze-point.ts";

/** In milliseconds. Freezing writes what is dirty, which may be much. */
const FREEZE_MS = 60_000;
const STATUS_MS = 5_000;
const THAW_MS = 10_000;
/** How often it is looked whether clients wait for room while the guest is being frozen. */
const ROOM_MS = 500;
/** Between two tries to thaw. */
const RETRY_MS = 1_000;
/** After so many only an operator can help; closing the disk must not wait for ever. */
const THAW_TRIES = 30;
/** How often it is looked whether a freeze is wanted. */
const LOOK_MS = 1_000;
/** After a failure the agent is left alone for so long. */
const PAUSE_MS = 60_000;

/** What a freezer needs of a disk. */
export interface FreezableDisk {
	readonly path: string;
	/** Runs work while no round of the cleaner runs. */
	exclusive<T>(work: () => Promise<T>): Promise<T>;
	readonly wantsFreeze: boolean;
	prepareFreeze(): Promise<FreezePoint | undefined>;
	/** Cleans where clients wait for room: only while no round runs. */
	makeRoom(): Promise<void>;
	/** See `Cleaner.judgeFrozen`. */
	judgeFrozen(point: FreezePoint): Promise<readonly string[]>;
}

export interface FreezerParts {
	readonly agent: GuestAgent;
	/** All served disks of the VM. */
	readonly disks: readonly FreezableDisk[];
	/** Between two freezes, at least. In milliseconds. */
	readonly everyMs: number;
	/** Where it is noted that the guest may be frozen on this server's account. */
	readonly notePath: string;
	/** One line about something an operator should know. */
	readonly onEvent: (line: string) => void;
}

/** What `vmsweep status` shows. */
export interface FreezerStatus {
	/** When the guest was frozen last, ISO 8601; null for never. */
	readonly frozenAt: string | null;
	/** For how long, from the agent's word that it is frozen to its word that it is thawed, in milliseconds. */
	readonly frozenMs: number | null;
	/** Why the last try failed; null where it didn't. */
	readonly problem: string | null;
}

export class Freezer {
	readonly #parts: FreezerParts;
	readonly #closing = new AbortController();
	readonly #running: Promise<void>;
	#status: FreezerStatus = { frozenAt: null, frozenMs: null, problem: null };

	/** Begins at once. */
	constructor(parts: FreezerParts) {
		this.#parts = parts;
		this.#running = this.#run();
	}

	get status(): FreezerStatus {
		return this.#status;
	}

	/** Ends when the guest is not frozen on this server's account any more. */
	async close(): Promise<void> {
		this.#closing.abort();
		await this.#running;
	}

	async #run(): Promise<void> {
		const { agent, disks, everyMs, notePath, onEvent } = this.#parts;
		let next = performance.now();
		while (await this.#sleep(LOOK_MS)) {
			// Noted by a server that was killed, or by this one, when it could not be thawed.
			if (existsSync(notePath)) {
				onEvent("the guest may still be frozen on this server's account: thawing it");
				await this.#thaw();
				agent.close();
			}
			if (performance.now() < next || !disks.some(({ wantsFreeze }) => wantsFreeze)) continue;
			try {
				await this.#hold(0, () => this.#freeze());
				next = performance.now() + everyMs;
				this.#status = { ...this.#status, problem: null };
			} catch (error) {
				next = performance.now() + Math.max(everyMs, PAUSE_MS);
				const problem = error instanceof Error ? error.message : String(error);
				if (problem !== this.#status.problem) onEvent(`no freeze point: ${problem}`);
				this.#status = { ...this.#status, problem };
			} finally {
				// QEMU takes one client at a time: somebody else may want to speak with the agent.
				agent.close();
			}
		}
	}

	/** Runs `work` while no cleaner of the VM's disks from `index` on runs a round. */
	#hold(index: number, work: () => Promise<void>): Promise<void> {
		const disk = this.#parts.disks[index];
		return disk === undefined ? work() : disk.exclusive(() => this.#hold(index + 1, work));
	}

	async #freeze(): Promise<void> {
		const { agent, disks, notePath } = this.#parts;
		if (this.#closing.signal.aborted) return;
		if ((await agent.status(STATUS_MS)) === "frozen") throw new Error("the guest is frozen already, by somebody else");
		const held: { disk: FreezableDisk; point: FreezePoint }[] = [];
		for (const disk of disks) {
			const point = await disk.prepareFreeze();
			if (point !== undefined) held.push({ disk, point });
		}
		writeFileSync(notePath, "the guest may be frozen\n");
		let isGood = false;
		let began = Number.NaN;
		try {
			const count = await this.#freezeGuest();
			began = performance.now();
			await Promise.all(held.map(({ point }) => point.begin()));
			if (count > 0 && (await agent.status(STATUS_MS)) === "frozen") {
				await Promise.all(held.map(({ point }) => point.take()));
				isGood = (await agent.status(STATUS_MS)) === "frozen";
				await Promise.all(held.map(({ point }) => point.end()));
			}
		} finally {
			await this.#thaw();
			if (!isGood) for (const { point } of held) await point.release();
		}
		this.#status = {
			...this.#status,
			frozenAt: new Date().toISOString(),
			frozenMs: Math.round(performance.now() - began),
		};
		if (!isGood) throw new Error("the guest's agent froze nothing, or did not say that all stayed frozen");
		for (const { disk, point } of held) await this.#judge(disk, point);
	}

	/** A freeze writes all that is dirty, which may want more room than there is; the cleaners that would make some are held. */
	async #freezeGuest(): Promise<number> {
		const { agent, disks } = this.#parts;
		let isDone = false;
		const frozen = agent.freeze(FREEZE_MS).finally(() => {
			isDone = true;
		});
		frozen.catch(() => {}); // told below
		while (!isDone) {
			const waited = Promise.withResolvers<void>();
			const timer = setTimeout(waited.resolve, ROOM_MS);
			await Promise.race([frozen, waited.promise]);
			clearTimeout(timer);
			if (!isDone) for (const disk of disks) await disk.makeRoom();
		}
		return await frozen;
	}

	async #judge(disk: FreezableDisk, point: FreezePoint): Promise<void> {
		const written = await disk.judgeFrozen(point);
		if (written.length === 0) return;
		const which = written.join(", ");
		this.#parts.onEvent(`${disk.path}: ${which} was written while the guest's agent said that all was frozen`);
	}

	/** Thaws the guest, however often that must be tried; a guest that is off, or has no agent any more, is given up by its note alone. */
	async #thaw(): Promise<void> {
		const { agent, notePath, onEvent } = this.#parts;
		for (let failures = 0; ; failures++) {
			try {
				await agent.thaw(THAW_MS);
				if ((await agent.status(STATUS_MS)) === "thawed") {
					rmSync(notePath, { force: true });
					return;
				}
			} catch (error) {
				if (failures === 0) onEvent(`thawing: ${error instanceof Error ? error.message : String(error)}`);
			}
			if (failures >= THAW_TRIES) {
				onEvent("the guest could not be thawed; run guest-fsfreeze-thaw (virsh domfsthaw), or restart it");
				return;
			}
			await delay(RETRY_MS);
		}
	}

	/** False where the freezer is being closed. */
	async #sleep(milliseconds: number): Promise<boolean> {
		const { signal } = this.#closing;
		await delay(milliseconds, undefined, { signal }).catch(() => {});
		return !signal.aborted;
	}
}
