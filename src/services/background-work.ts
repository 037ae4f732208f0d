// Background work: what goes on by itself while a disk is served.
//
//   cleaning   round ─► wait: for the time between rounds, or for the guest to write ─► round, when it is this disk's turn
//   flushing   every few seconds while the guest writes: bounds what recovery must check, and makes proofs durable
//
// Both sleep while the guest writes nothing, and are woken by it. All of it ends when the disk is being closed.

import type { PlanePort } from "../adapters/plane/messages.ts";
import { isVmsweepError } from "../foundations/errors.ts";
import { formatBytes } from "../foundations/units.ts";
import type { Cleaner } from "./clean/cleaner.ts";
import type { CleaningTurns, Outlook, Turn } from "./clean/turns.ts";
import { Exclusive } from "./exclusive.ts";
import { Nap } from "./nap.ts";

/** Time between two rounds of cleaning that found nothing to do. */
const ROUND_MS = 1_000;
/** The same at most, where the guest writes nothing: each is twice as long as the one before. */
const ROUND_MS_MAX = 8_000;
/** Rounds of urgent cleaning in a row that freed nothing, before waiting writes get ENOSPC. */
const HOPELESS_ROUNDS = 3;
/** The log is flushed at least this often while the guest writes. */
const DURABLE_MS = 5_000;

/** Where nobody has to wait for a turn. */
const NOTHING_KNOWN: Outlook = { isUrgent: false, fill: 0, backBytes: 0, movedBytes: 0 };

export interface BackgroundParts {
	/** Names the disk in events. */
	readonly path: string;
	readonly plane: PlanePort;
	readonly cleaner: Cleaner;
	readonly turns: CleaningTurns;
	readonly closing: AbortSignal;
	readonly onEvent: (line: string) => void;
}

export class BackgroundWork {
	readonly #parts: BackgroundParts;
	/** Rounds, and whatever else must have the disk's images for itself. */
	readonly exclusive = new Exclusive(() => this.#resting.wake());
	/** The present one, of rounds in the background. */
	#turn: Turn | undefined;
	/** Between rounds that found nothing to do. */
	readonly #idle = new Nap();
	/** Within a round. */
	readonly #resting = new Nap();
	readonly #durable = new Nap();
	/** The next round is wanted at once. */
	#isHurried = false;
	/** Since which guest entry the data plane was asked to say when the guest writes. */
	#awaitedSince = -1;
	#cleaning: Promise<void> | undefined;
	readonly #flushing: Promise<void>;
	#hopelessRounds = 0;
	#refusing = false;

	constructor(parts: BackgroundParts) {
		this.#parts = parts;
		parts.closing.addEventListener("abort", () => {
			this.#turn?.end();
			for (const nap of [this.#idle, this.#resting, this.#durable]) nap.wake();
		});
		this.#flushing = this.#keepDurable();
	}

	/** Cleans until the disk is being closed. */
	startCleaning(): void {
		this.#cleaning ??= this.#cleanContinuously();
	}

	get isCleaning(): boolean {
		return this.#cleaning !== undefined;
	}

	/** Begins the next round of cleaning now. */
	hurry(): void {
		this.#isHurried = true;
		this.#turn?.hurry();
		this.#idle.wake();
		this.#resting.wake();
	}

	/** Resolves once nothing goes on any more; the disk must be closing. */
	async ended(): Promise<void> {
		await Promise.all([this.#cleaning, this.#flushing, this.exclusive.done()]);
	}

	/** See `CleanerDisk`. Meanwhile other disks have their turns. */
	async rest(milliseconds: number): Promise<boolean> {
		this.#turn?.end();
		if (this.exclusive.isWanted || !(await this.#sleep(this.#resting, milliseconds))) return false;
		await this.#awaitTurn(await this.#takeTurn(), this.#resting, () => this.exclusive.isWanted);
		return !this.exclusive.isWanted && !this.#parts.closing.aborted;
	}

	// ---- Cleaning -----------------------------------------------------------------------------------------

	async #cleanContinuously(): Promise<void> {
		const { path, plane, cleaner, closing, onEvent } = this.#parts;
		await plane.ask("refuseWhenFull", false);
		let [pauseMs, seenEntries] = [ROUND_MS, -1];
		while (!closing.aborted) {
			try {
				this.#isHurried = false;
				const progress = await this.#roundInTurn();
				await this.#faceFullLog(progress);
				const { roundEntries } = cleaner;
				// Clients that find no room write nothing, and yet need the next round soon.
				const isIdle = progress === 0 && roundEntries === seenEntries && this.#hopelessRounds === 0;
				pauseMs = isIdle ? Math.min(2 * pauseMs, ROUND_MS_MAX) : ROUND_MS;
				seenEntries = roundEntries;
				if (progress > 0) continue;
				// What the guest writes first isn't worth a round of its own.
				if (isIdle) this.#askForWrites(roundEntries);
				const isOver = await this.#sleep(this.#idle, pauseMs);
				if (isIdle && !isOver && !this.#isHurried) await this.#sleep(this.#idle, ROUND_MS);
			} catch (error) {
				if (closing.aborted) return;
				onEvent(`cleaning ${path}: ${error instanceof Error ? error.message : String(error)}`);
				if (isVmsweepError(error, "DISK_STOPPED")) return;
				await this.#sleep(this.#idle, 10 * ROUND_MS);
			}
		}
	}

	/** A round when it is this disk's turn. Returns its progress. */
	async #roundInTurn(): Promise<number> {
		const { cleaner, closing } = this.#parts;
		// Whoever has the disk for himself now shouldn't hold a turn meanwhile.
		await this.exclusive.done();
		const turn = await this.#takeTurn();
		try {
			await this.#awaitTurn(turn, this.#idle, () => false);
			if (closing.aborted) return 0;
			return await this.exclusive.run(() => cleaner.round({ inBackground: true }));
		} finally {
			this.#turn?.end();
			this.#turn = undefined;
		}
	}

	/** Asks for a turn; see `#awaitTurn`. */
	async #takeTurn(): Promise<Turn> {
		const { cleaner, turns, closing } = this.#parts;
		const outlook = turns.isFree ? NOTHING_KNOWN : await cleaner.outlook();
		this.#turn = turns.take(outlook);
		if (closing.aborted) this.#turn.end();
		return this.#turn;
	}

	/** Until it is there, the disk is being closed, or `isEnough`; `nap` is woken for that. */
	async #awaitTurn(turn: Turn, nap: Nap, isEnough: () => boolean): Promise<void> {
		const { cleaner, closing } = this.#parts;
		void turn.granted.then(() => nap.wake());
		while (!turn.isGranted && !isEnough() && !closing.aborted) {
			const isOver = await this.#sleep(nap, ROUND_MS);
			// Others may take long, and the guest goes on writing.
			if (isOver && !turn.isGranted && (await cleaner.outlook()).isUrgent) turn.hurry();
		}
	}

	/** Clients that wait for room get ENOSPC while cleaning has shown that it can't make any. */
	async #faceFullLog(progress: number): Promise<void> {
		const { path, plane, onEvent } = this.#parts;
		const { stalled, usedBytes, limitBytes } = await plane.ask("status");
		this.#hopelessRounds = progress === 0 && (stalled > 0 || this.#refusing) ? this.#hopelessRounds + 1 : 0;
		const refuse = this.#hopelessRounds >= HOPELESS_ROUNDS;
		if (refuse === this.#refusing) return;
		this.#refusing = refuse;
		await plane.ask("refuseWhenFull", refuse);
		if (refuse)
			onEvent(
				`${path}: the first image is full (${formatBytes(usedBytes)} of ${formatBytes(limitBytes)}) and can't be cleaned; writes fail with ENOSPC until it can`,
			);
	}

	// ---- Flushing -----------------------------------------------------------------------------------------

	async #keepDurable(): Promise<void> {
		const { path, plane, closing, onEvent } = this.#parts;
		while (!closing.aborted) {
			await this.#sleep(this.#durable, DURABLE_MS);
			try {
				const { position, durablePosition, poisoned, guestEntries } = await plane.ask("status");
				if (poisoned) continue;
				if (position > durablePosition) await plane.ask("flush");
				else {
					this.#askForWrites(guestEntries);
					await this.#sleep(this.#durable, Number.POSITIVE_INFINITY);
				}
			} catch (error) {
				if (isVmsweepError(error, "DISK_STOPPED")) return;
				onEvent(`${path}: ${error instanceof Error ? error.message : String(error)}`);
			}
		}
	}

	// ---- Sleeping -----------------------------------------------------------------------------------------

	/** Wakes who waits for the guest to write once it has. However often this is asked, the data plane is asked once. */
	#askForWrites(since: number): void {
		if (this.#awaitedSince === since) return;
		this.#awaitedSince = since;
		const wake = (): void => {
			if (this.#awaitedSince === since) this.#awaitedSince = -1;
			this.#idle.wake();
			this.#durable.wake();
		};
		this.#parts.plane.ask("written", since).then(wake, wake);
	}

	/** True once the time is over; false where it was woken, or the disk is being closed. */
	async #sleep(nap: Nap, milliseconds: number): Promise<boolean> {
		if (this.#parts.closing.aborted) return false;
		return await nap.sleep(milliseconds);
	}
}
