// Ledger: what a test wrote through one connection, and what may be read back: for every unit of the disk the version that
// was last acknowledged, or a newer one that was sent.

import assert from "node:assert/strict";
import { command, errno } from "../../src/core/nbd/protocol.ts";
import type { NbdClient } from "./nbd-client.ts";

const BLOCK = 4096;
const READS_AT_ONCE = 8;

/** Every four bytes of a unit tell which it is and its version; version 0 is what was never written. */
function stamped(bytes: number, unit: number, version: number): Buffer {
	if (version === 0) return Buffer.alloc(bytes);
	const word = Buffer.alloc(4);
	word.writeUInt32LE(((unit & 0xfff) << 20) | version);
	return Buffer.alloc(bytes, word);
}

export class Ledger {
	/** A multiple of 4 KiB. */
	readonly unitBytes: number;
	readonly sent: Uint32Array;
	readonly acknowledged: Uint32Array;
	/** Acknowledged before the last flush that succeeded. */
	readonly flushed: Uint32Array;

	constructor(units: number, unitBytes: number) {
		this.unitBytes = unitBytes;
		this.sent = new Uint32Array(units);
		this.acknowledged = new Uint32Array(units);
		this.flushed = new Uint32Array(units);
	}

	/** Writes a unit's next version. Returns 0 or the error; rejects where the connection ends. */
	async write(client: NbdClient, unit: number): Promise<number> {
		const version = ++this.sent[unit]!;
		const payload = stamped(this.unitBytes, unit, version);
		const { error } = await client.request({ type: command.WRITE, offset: unit * this.unitBytes, payload });
		if (error === 0) this.acknowledged[unit] = Math.max(this.acknowledged[unit]!, version);
		return error;
	}

	/** Returns 0 or the error. */
	async flush(client: NbdClient): Promise<number> {
		const before = this.acknowledged.slice();
		const { error } = await client.request({ type: command.FLUSH });
		if (error === 0) this.flushed.set(before);
		return error;
	}

	/** Writes all given units, `depth` at a time. Returns how many failed, all of them with ENOSPC. */
	async writeAll(client: NbdClient, units: Iterable<number>, depth = 16): Promise<number> {
		const queue = units[Symbol.iterator]();
		let failed = 0;
		const writer = async (): Promise<void> => {
			for (let next = queue.next(); !next.done; next = queue.next()) {
				const error = await this.write(client, next.value);
				if (error === 0) continue;
				assert.equal(error, errno.ENOSPC, `unit ${next.value}: error ${error}`);
				failed++;
			}
		};
		await Promise.all(Array.from({ length: depth }, writer));
		return failed;
	}

	/**
	 * Every block of every unit holds the version in `least`, or a newer one that was sent, and nothing else. Blocks of a
	 * unit may differ: a write that failed may be there in part.
	 */
	async check(client: NbdClient, least: Uint32Array = this.acknowledged): Promise<void> {
		const units = this.sent.keys();
		const checker = async (): Promise<void> => {
			for (const unit of units) {
				const asked = least[unit]!; // before the read: somebody may write meanwhile
				const found = await client.read(unit * this.unitBytes, this.unitBytes);
				this.#checkUnit(unit, found, asked);
			}
		};
		await Promise.all(Array.from({ length: READS_AT_ONCE }, checker));
	}

	#checkUnit(unit: number, found: Buffer, least: number): void {
		for (let at = 0; at < found.length; at += BLOCK) {
			const block = found.subarray(at, at + BLOCK);
			const version = block.readUInt32LE(0) & 0xf_ffff;
			const where = `unit ${unit}, byte ${at}`;
			assert(block.equals(stamped(BLOCK, unit, version)), `${where}: damaged`);
			assert(version >= least, `${where}: version ${version}, written ${least}`);
			assert(version <= this.sent[unit]!, `${where}: version ${version} is invented`);
		}
	}
}
