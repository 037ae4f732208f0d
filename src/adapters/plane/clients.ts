// Clients: who is connected to a disk, and which of them has something to parse.
//
//   attach ─► poll: the bell, every socket ─► receive ─► work: parsed and answered by the round ─► endRound: close
//
// Invariants
//  - a client is on the list of work at most once per round
//  - nothing is received from a client whose replies wait for its socket, or that has too much under way, or that waits for
//    room: the socket then makes it wait (only when draining begins, all are asked once for what they sent by then)
//  - whoever meets a reason to close a client marks it (`broken`, `leaving`); it is closed at the end of a round only, so
//    nobody holds a closed descriptor
//  - while the disk drains, only payloads that have begun are received

import { VmsweepError } from "../../foundations/errors.ts";
import * as sys from "../os/syscalls.ts";
import type { SocketState } from "./buffers.ts";
import type { ClientSetup } from "./connection.ts";
import { Connection } from "./connection.ts";
import type { DiskReader } from "./disk-reader.ts";
import { Patience } from "./patience.ts";
import { PollSet } from "./poll-set.ts";
import { Silence } from "./silence.ts";
import type { Snapshots } from "./snapshots.ts";

/** Clients at once. Each reserves some MiB of buffers, of which only what it uses takes memory. */
const CLIENTS_MAX = 256;
/** Flushes and slow reads that a client may have under way before its next requests wait. */
const IN_FLIGHT_MAX = 1024;
/** Rounds in which only the one busy client is asked for more. */
const DIRECT_ROUNDS_MAX = 16;
/** An idle thread looks up this often: the process can only end its threads while they are not in a system call. */
const IDLE_MS = 500;
/** Busy rounds between two looks at the clock for clients that are silent. */
const LOOK_ROUNDS = 256;
/** Kernel's send buffer per client: a large read's answer then leaves in few pieces. */
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;

/** No more requests are taken, until a moment of `performance.now()`. */
interface Draining {
	readonly until: number;
	readonly done: () => void;
}

export class Clients {
	/** Clients with something to parse, from `waitForWork` to `endRound`. */
	readonly work: Connection[] = [];

	readonly #bell: number;
	readonly #snapshots: Snapshots;
	readonly #connected = new Set<Connection>();
	/** The bell, then the connected clients in their order. */
	readonly #polled = new PollSet(1 + CLIENTS_MAX);
	readonly #patience = new Patience();
	readonly #silence = new Silence();
	/** The last `waitForWork` found nothing at once. */
	waited = false;
	#round = 0;
	#wasBusy = false;
	/** The only client of which the last round took something. */
	#busyAlone: Connection | undefined;
	/** Rounds since all clients were last looked at. */
	#directRounds = 0;
	#draining: Draining | undefined;

	/** @param bell readable when something other than a client wants the thread */
	constructor(bell: number, snapshots: Snapshots) {
		this.#bell = bell;
		this.#snapshots = snapshots;
	}

	get count(): number {
		return this.#connected.size;
	}

	/** How many wait for room in the log. */
	get stalledCount(): number {
		let count = 0;
		for (const client of this.#connected) if (client.stalled) count++;
		return count;
	}

	/** A request is under way: not there completely, not parsed yet, or it waits for room in the log. */
	get isReceiving(): boolean {
		for (const client of this.#connected) if (client.isInsideRequest || client.hasMore || client.stalled) return true;
		return false;
	}

	/**
	 * Takes over a connected client that sees what `reader` reads. Throws NBD_PROTOCOL where there are too many, DISK_STOPPED
	 * while they drain; the socket stays the caller's.
	 */
	attach(setup: ClientSetup, reader: DiskReader): void {
		const { clientsMax = CLIENTS_MAX } = setup;
		if (this.count >= Math.min(clientsMax, CLIENTS_MAX))
			throw new VmsweepError("NBD_PROTOCOL", `${this.count} clients use the disk already; disconnect one`);
		if (this.#draining !== undefined) throw new VmsweepError("DISK_STOPPED", "the disk is being closed");
		if (setup.snapshot !== undefined) this.#snapshots.countReader(setup.snapshot, 1);
		sys.setSendBuffer(setup.fd, SEND_BUFFER_BYTES);
		const client = new Connection(setup, reader);
		this.#connected.add(client);
		client.hasMore = setup.leftover.length > 0;
		client.quietSince = performance.now();
	}

	/** Lets clients that wait for room try again. */
	resumeStalled(): void {
		for (const client of this.#connected) if (client.stalled) client.hasMore = true;
	}

	/**
	 * Begins a round: sleeps until a client or the bell is ready, receives, and puts every client with something to parse on
	 * the list of work. True where the bell rang.
	 */
	waitForWork(jobsUnderWay: number): boolean {
		this.#round++;
		if (this.#receiveDirectly(jobsUnderWay)) return false;
		const polled = this.#polled;
		let ready = false;
		polled.clear();
		polled.add(this.#bell, sys.POLLIN);
		for (const client of this.#connected) {
			const mayParse = client.output.isEmpty && client.inFlight < IN_FLIGHT_MAX;
			if (client.hasMore && mayParse) {
				ready = true;
				this.#enlist(client);
			}
			const isExpected = this.#draining === undefined || client.isInsidePayload;
			const wantsInput = mayParse && isExpected && !client.stalled && !client.leaving && !client.input.isFull;
			polled.add(client.fd, (wantsInput ? sys.POLLIN : 0) | (client.output.isEmpty ? 0 : sys.POLLOUT));
		}
		const ask = (): number => polled.wait(0);
		let count = ask();
		// Only who was busy a moment ago is worth being waited for awake.
		this.waited = count === 0 && !ready;
		if (count === 0 && !ready && this.#wasBusy) count = this.#patience.wait(ask);
		if (count === 0 && !ready) count = polled.wait(IDLE_MS);
		this.#wasBusy = count > 0;
		if (count <= 0) return false;
		let index = 0;
		for (const client of this.#connected) {
			const events = polled.met(++index);
			if (events !== 0) this.#heed(client, events);
		}
		return polled.met(0) !== 0;
	}

	/** Does what the events of a client's socket ask for. */
	#heed(client: Connection, events: number): void {
		if (events & sys.POLLOUT) client.send();
		if (events & sys.POLLIN) {
			if (client.input.receive(client.fd) === "closed") client.broken = true;
			else this.#enlist(client);
		} else if (events & (sys.POLLERR | sys.POLLHUP)) client.broken = true;
	}

	/**
	 * Where only one client was busy a moment ago, asks its socket alone: a recv costs less than a poll and a recv. All
	 * others and the bell are looked at again after some rounds. True where something was received.
	 */
	#receiveDirectly(jobsUnderWay: number): boolean {
		const client = this.#busyAlone;
		if (client === undefined || ++this.#directRounds > DIRECT_ROUNDS_MAX || jobsUnderWay > 0) {
			this.#directRounds = 0;
			return false;
		}
		const { input } = client;
		const wantsInput = client.output.isEmpty && !client.stalled && !client.leaving && !client.broken && !input.isFull;
		if (!wantsInput || client.hasMore || client.inFlight > 0 || this.#draining !== undefined) return false;
		let state = "wait" as SocketState;
		let asked = 0;
		this.#patience.wait(() => {
			state = input.receive(client.fd);
			asked++;
			return state === "wait" ? 0 : 1;
		});
		this.waited = asked > 1;
		this.#wasBusy = state !== "wait";
		if (state === "closed") client.broken = true;
		else if (state === "progress") this.#enlist(client);
		return this.#wasBusy;
	}

	#enlist(client: Connection): void {
		if (client.round === this.#round) return;
		client.round = this.#round;
		this.work.push(client);
	}

	/** Ends a round: empties the list of work and closes clients that are done, broken or silent for too long. */
	endRound(): void {
		const { work } = this;
		this.#busyAlone = work.length === 1 ? work[0] : undefined;
		work.length = 0;
		if (!this.#wasBusy || this.#round % LOOK_ROUNDS === 0) this.#silence.look(this.#connected, performance.now());
		this.#closeFinished();
		if (this.#draining !== undefined) this.#continueDrain(this.#draining);
	}

	#closeFinished(): void {
		for (const client of this.#connected) {
			const finished = client.leaving && client.inFlight === 0 && client.output.isEmpty && client.pending.count === 0;
			if (!client.broken && !finished) continue;
			this.#connected.delete(client);
			if (client === this.#busyAlone) this.#busyAlone = undefined;
			if (client.snapshot !== undefined) this.#snapshots.countReader(client.snapshot, -1);
			sys.close(client.fd);
		}
	}

	/**
	 * Takes no more requests: those that came are answered, their clients closed, and then `done` is called; after
	 * `limitMs` whoever is left is closed in the middle of what it does.
	 */
	drain(limitMs: number, done: () => void): void {
		this.#draining = { until: performance.now() + limitMs, done };
		// What has been sent by now counts as having come.
		for (const client of this.#connected)
			if (client.output.isEmpty && client.input.receive(client.fd) === "progress") client.hasMore = true;
	}

	#continueDrain({ until, done }: Draining): void {
		const isLate = performance.now() >= until;
		for (const client of this.#connected) {
			const isOwed = client.inFlight > 0 || !client.output.isEmpty || client.pending.count > 0;
			if (isLate) client.broken = true;
			else if (!isOwed && !client.hasMore && !client.isInsidePayload) client.leaving = true;
		}
		this.#closeFinished();
		if (this.count > 0) return;
		this.#draining = undefined;
		done();
	}

	/** Closes all, when the thread ends. */
	close(): void {
		for (const client of this.#connected) sys.close(client.fd);
	}
}
