// The live rule of XFS (docs/live-safety.md, X1–X5, L3, L6, F3) for one volume over time.
//
//   observe ─▶ log writes        ─▶ only where they lie: they must be where the next records belong             L6
//           ─▶ headers of groups ─▶ the AGF that the guest writes home, or foreign: new incarnation             L6
//   advance ─▶ any view: records that came since, in memory ─▶ groups whose AGF they changed are read again     X1, L3
//           ─▶ settled = the newest view behind which the log has gone on far enough                            X2
//
// Any view will do, not only one that ends with a record: every prefix of the guest's writes is a state that a power cut
// could have left, and replaying the log makes it whole. A change of a group's free space always changes its AGF.
//
// Invariants
//  - what is known of free space equals what reading the whole view at the last judged position would give
//  - evidence is counted only inside one incarnation; every discontinuity begins a new one and has all read again
//  - memory: the free runs, and the blocks that the log has in a newer version than their home place

import { joinRanges } from "../../../foundations/byte-ranges.ts";
import { crc32c } from "../../../foundations/crc.ts";
import { assert, isVmsweepError, VmsweepError } from "../../../foundations/errors.ts";
import type { ByteRange, VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { metered, readBytes } from "../../../foundations/source.ts";
import type { ByteCount, ByteOffset, LogPosition } from "../../../foundations/units.ts";
import { byteCount, byteOffset, logPosition, roundDown, roundUp } from "../../../foundations/units.ts";
import { isVolumeError, solutionOf } from "../kept-volume.ts";
import type {
	Evidence,
	FileSystemBlock,
	FrozenMoment,
	LiveState,
	LiveVolume,
	MetadataWrite,
	ViewPoints,
	WatchRange,
} from "../live.ts";
import { checkSoleOwner, signatureRanges, signatureWatcher } from "../signatures.ts";
import { COMMITS_WANTED, type EvidenceWanted } from "./evidence.ts";
import { type Allocation, agfLsn, allGroups } from "./groups.ts";
import { BASIC_BLOCK } from "./layout.ts";
import { LogChain } from "./log-chain.ts";
import { findLogEnds, type LogEnds, stateOf } from "./log-ends.ts";
import { isBehindHead, LogRing } from "./log-records.ts";
import { MetadataView } from "./metadata-view.ts";
import {
	type Geometry,
	headerBlocks,
	internalLog,
	isSameVolume,
	type LogPlace,
	parseSuperblock,
	readSuperblock,
} from "./open.ts";
import { checkLogFeatures, recover } from "./recover.ts";
import { geometryIn, readAllocation } from "./whole-volume.ts";

export interface XfsLiveOptions {
	/** For tests that must fail: how far the log must go on behind a block's last write. */
	readonly evidence?: EvidenceWanted;
	/** In bytes per pass; stops a hostile volume. */
	readonly readBudget?: ByteCount;
}

/** More writes to the log between two views than any guest makes. */
const LOG_WRITES_MAX = 1 << 16;

/** Of a volume that tells nothing while it is in use. */
const NEEDS_UNMOUNT = "XFS of this kind is cleaned when it is unmounted";

export class XfsLiveVolume implements LiveVolume {
	readonly viewPoints: ViewPoints = "any";
	readonly rule = "8 records and then 17 commits of its log after a block's last write, or a clean unmount";
	readonly type = "xfs";
	readonly #options: XfsLiveOptions;
	readonly #budget: ByteCount;
	readonly #size: ByteCount;
	readonly #mayBringSignature: (at: number, bytes: Uint8Array) => boolean;
	#geometry: Geometry;
	#state: VolumeState = "unknown";
	/** Null while the log isn't followed. */
	#chain: LogChain | null = null;
	#allocation: Allocation | null = null;
	#incarnation = 1;
	/** Why the incarnation began, for an operator. */
	#brokenBecause = "the log is followed since the volume was found";
	#mustReload = true;
	#mustCheckSignatures = true;
	/** Groups that were read again since the last judgement that said so. */
	readonly #unreported = new Set<number>();
	/** Checksums of the superblock's copies, as they were found. */
	readonly #copies = new Map<number, number>();
	/** Log positions of the AGFs that were written home. */
	readonly #agfLsns = new Map<number, bigint>();
	#logWrites: { from: number; to: number }[] = [];
	#lastLogWrite: { readonly from: number; readonly to: number; readonly end: LogPosition } | null = null;
	#observed: LogPosition | null = null;
	#isReady = false;
	/** It was looked at in rest, and wasn't written since. */
	#isResting = false;
	#watch: readonly WatchRange[];
	#watchChanged = false;

	private constructor(size: ByteCount, geometry: Geometry, options: XfsLiveOptions) {
		this.#size = size;
		this.#geometry = geometry;
		this.#options = options;
		this.#mayBringSignature = signatureWatcher(size);
		this.#budget = options.readBudget ?? byteCount(Math.ceil(size / 512) + 3 * 2 ** 30);
		this.#watch = watchRanges(size, geometry);
	}

	/**
	 * Starts to follow the volume in `view`; writes after this view's position are to be fed to `observe`. Throws
	 * VOLUME_UNSUPPORTED or VOLUME_DAMAGED where its superblock can't be believed.
	 */
	static async open(view: ByteSource, options: XfsLiveOptions = {}): Promise<XfsLiveVolume> {
		const raw = await readSuperblock(view);
		if (raw === null) throw new VmsweepError("VOLUME_UNSUPPORTED", "the volume has no XFS superblock");
		const volume = new XfsLiveVolume(view.size, parseSuperblock(raw, view.size), options);
		await volume.#readCopies(view);
		return volume;
	}

	get uuid(): string {
		return this.#geometry.identity.uuid;
	}
	get state(): VolumeState {
		return this.#state;
	}
	get incarnation(): number {
		return this.#incarnation;
	}
	get commits(): number {
		return this.#chain?.evidence.commits ?? 0;
	}
	/** What the last commits before a rest gave up waits for ever. */
	get gainsByFreeze(): boolean {
		return this.#isResting && this.#geometry.version === 5;
	}
	watch(): readonly WatchRange[] {
		this.#watchChanged = false;
		return this.#watch;
	}

	// ── writes ──────────────────────────────────────────────────────────────────────────────────────────────────

	async observe(writes: readonly MetadataWrite[]): Promise<void> {
		for (const write of writes) {
			assert(this.#observed === null || write.end >= this.#observed, "metadata writes arrive out of order");
			this.#observed = write.end;
			this.#feedLog(write);
			if (this.#touchesStructure(write)) this.#feedStructure(write, await write.read());
		}
	}

	/** The log is watched without its bytes. */
	#feedLog(write: MetadataWrite): void {
		const { log } = this.#geometry;
		if (log === null) return;
		const from = Math.max(0, Math.floor((write.at - log.start) / BASIC_BLOCK));
		const to = Math.min(log.basicBlocks, Math.ceil((write.at + write.length - log.start) / BASIC_BLOCK));
		if (from >= to) return;
		this.#lastLogWrite = { from, to, end: write.end };
		const last = this.#logWrites.at(-1);
		if (last?.to === from) last.to = to;
		else this.#logWrites.push({ from, to });
		if (this.#logWrites.length > LOG_WRITES_MAX) this.#break("its log was written too often to be followed");
	}

	#touchesStructure(write: MetadataWrite): boolean {
		return this.#watch.some(
			({ kind, start, length }) => kind === "structure" && start < write.at + write.length && write.at < start + length,
		);
	}

	#feedStructure(write: MetadataWrite, bytes: Uint8Array): void {
		assert(bytes.length === write.length, "a metadata write has other bytes than it said");
		if (this.#mayBringSignature(write.at, bytes)) this.#mustCheckSignatures = true;
		const { agBlocks, blockSize, sectorSize, agCount } = this.#geometry;
		const groupBytes = agBlocks * blockSize;
		const end = write.at + write.length;
		for (let group = Math.floor(write.at / groupBytes); group < agCount && group * groupBytes < end; group++) {
			this.#feedHeader(group, sectorOf(write.at, bytes, group * groupBytes, sectorSize), false);
			this.#feedHeader(group, sectorOf(write.at, bytes, group * groupBytes + sectorSize, sectorSize), true);
		}
	}

	#feedHeader(group: number, sector: Uint8Array | null | "partly", isAgf: boolean): void {
		if (sector === null) return;
		const what = isAgf ? `the AGF of group ${group}` : group === 0 ? "the superblock" : "a copy of the superblock";
		if (sector === "partly") this.#break(`a part of ${what} was overwritten`);
		else if (isAgf) this.#feedAgf(group, sector, what);
		else if (group === 0) this.#feedSuperblock(sector);
		// Guests write the copies only when the volume is resized or labelled.
		else if (crc32c(0, sector) !== this.#copies.get(group)) {
			this.#copies.set(group, crc32c(0, sector));
			this.#break(`${what} was overwritten`);
		}
	}

	/** An AGF comes home as it was logged: a later one than before, and none that the log doesn't know yet. */
	#feedAgf(group: number, sector: Uint8Array, what: string): void {
		const lsn = agfLsn(sector, this.#geometry, group);
		if (lsn === null || lsn < (this.#agfLsns.get(group) ?? 0n)) this.#break(`${what} was overwritten`);
		this.#agfLsns.set(group, lsn ?? 0n);
	}

	#feedSuperblock(sector: Uint8Array): void {
		try {
			const next = parseSuperblock(sector, this.#size);
			if (!isSameVolume(this.#geometry, next)) this.#break("its superblock describes another file system, or layout");
		} catch (error) {
			if (!isVmsweepError(error)) throw error;
			this.#break(error.message);
		}
	}

	/** Ends the incarnation: evidence so far counts no more, and everything is read again in the next view. */
	#break(why: string): void {
		if (!this.#mustReload) this.#incarnation++;
		this.#mustReload = true;
		this.#brokenBecause = why;
		this.#chain = null;
		this.#logWrites = [];
		this.#agfLsns.clear();
	}

	// ── views ───────────────────────────────────────────────────────────────────────────────────────────────────

	async advance(view: ByteSource, at: LogPosition): Promise<LiveState> {
		assert(this.#observed === null || this.#observed <= at, "a view is older than the writes that were observed");
		this.#isResting = false;
		const source = metered(view, this.#budget);
		return await this.#guarded(source, at, () => this.#judge(source, at));
	}

	async #judge(view: Metered, at: LogPosition): Promise<LiveState> {
		if (this.#mustCheckSignatures) await this.#checkSignatures(view);
		const groups = (await this.#goOn(view, at)) ?? (await this.#reload(view, at));
		for (const group of groups) this.#unreported.add(group);
		const { settled, missing } = this.#chain!.evidence;
		if (settled !== null) return this.#ready(view, at, settled, groups.length);
		const { records, commits } = missing!;
		const wanted = commits > 0 ? `${commits} more commits` : `${records} more records in its log`;
		return this.#keep(view, at, `${wanted} of the guest must follow (syncs make some): ${this.#brokenBecause}`, true);
	}

	/** Follows the log to this view and reads the groups that it changed; null where all must be read again. */
	async #goOn(view: ByteSource, at: LogPosition): Promise<readonly number[] | null> {
		const chain = this.#chain;
		const allocation = this.#allocation;
		if (chain === null || allocation === null || this.#mustReload) return null;
		const progress = await chain.extend(view, at, this.#logWrites);
		this.#logWrites = [];
		if (typeof progress === "string") {
			this.#break(progress);
			return null;
		}
		for (const [group, lsn] of this.#agfLsns)
			if (isBehindHead(lsn, chain.headLsn)) {
				this.#break(`the AGF of group ${group} is newer than the log`);
				return null;
			}
		const metadata = new MetadataView(view, chain.overlay());
		const isChanged = async (): Promise<boolean> =>
			!isSameVolume(this.#geometry, await geometryIn(metadata, this.#geometry, this.#size));
		if (progress.isSuperblockChanged && (await isChanged())) {
			this.#break("it was resized or changed");
			return null;
		}
		const groups = [...progress.groups].filter((group) => group < this.#geometry.agCount).sort((a, b) => a - b);
		await allocation.read(metadata, groups, chain.headLsn);
		return groups;
	}

	/** Reads everything, and takes up the log where it ends in this view. */
	async #reload(view: ByteSource, at: LogPosition): Promise<readonly number[]> {
		const { geometry, log, ends } = await this.#readEnds(view);
		if (geometry.version === 4)
			throw new VmsweepError("VOLUME_UNSUPPORTED", `it has format version 4: ${NEEDS_UNMOUNT}`);
		checkLogFeatures(geometry);
		const chain = await LogChain.anchor(view, geometry, log, ends, this.#options.evidence);
		this.#allocation = await readAllocation(view, geometry, ends, chain.overlay());
		chain.evidence.addView(at);
		this.#chain = chain;
		this.#logWrites = [];
		this.#mustReload = false;
		return allGroups(geometry);
	}

	/** The superblock as it is in this view, and where the log ends. */
	async #readEnds(view: ByteSource): Promise<{ geometry: Geometry; log: LogPlace; ends: LogEnds }> {
		const raw = await readSuperblock(view);
		if (raw === null) throw new VmsweepError("VOLUME_DAMAGED", "its superblock is gone");
		const geometry = parseSuperblock(raw, this.#size);
		if (!isSameVolume(this.#geometry, geometry)) {
			this.#watch = watchRanges(this.#size, geometry);
			this.#watchChanged = true;
			this.#copies.clear();
		}
		this.#geometry = geometry;
		if (this.#copies.size === 0) await this.#readCopies(view);
		const log = internalLog(geometry);
		const ends = await findLogEnds(new LogRing(view, log), geometry);
		this.#state = stateOf(ends);
		return { geometry, log, ends };
	}

	async #readCopies(view: ByteSource): Promise<void> {
		const { agCount, agBlocks, blockSize, sectorSize } = this.#geometry;
		for (let group = 1; group < agCount; group++) {
			const copy = await readBytes(view, byteOffset(group * agBlocks * blockSize), sectorSize);
			this.#copies.set(group, crc32c(0, copy));
		}
	}

	/** The epoch is the unmount record's: whatever was written later ends it. */
	async advanceClean(view: ByteSource, at: LogPosition, lastWrite: LogPosition | null): Promise<LiveState> {
		assert(this.#observed === null || this.#observed <= at, "a view is older than the writes that were observed");
		const source = metered(view, this.#budget);
		return await this.#guarded(source, at, async () => {
			this.#isResting = true;
			await this.#checkSignatures(source);
			const { geometry, log, ends } = await this.#readEnds(source);
			if (this.#state !== "clean") {
				const stands = this.#isReady && !this.#mustReload;
				const state = this.#keep(source, at, this.#chain === null ? NEEDS_UNMOUNT : "it is mounted", true);
				// What its log has proven stays proven while it merely rests.
				this.#isReady = stands;
				return state;
			}
			const last = this.#lastLogWrite;
			const unmountSector = (ends.head + log.basicBlocks - 1) % log.basicBlocks;
			const isLast = last?.end === lastWrite && last.from <= unmountSector && unmountSector < last.to;
			if (lastWrite !== null && !isLast)
				return this.#keep(source, at, "it was written to after it was unmounted, or the unmount was not seen", true);
			this.#break("it was unmounted");
			this.#allocation = await readAllocation(source, geometry, ends, new Map());
			for (const group of allGroups(geometry)) this.#unreported.add(group);
			return this.#ready(source, at, logPosition(Number.POSITIVE_INFINITY), geometry.agCount);
		});
	}

	/**
	 * A freeze writes home all that the log has, and then a last record that changes nothing but the superblock (`xfs_log_quiesce`):
	 * replaying the log changes no free space, and something was logged since the freeze was asked for.
	 */
	async advanceFrozen(view: ByteSource, at: LogPosition, { asked, lastWrite }: FrozenMoment): Promise<LiveState> {
		assert(this.#observed === null || this.#observed <= at, "a view is older than the writes that were observed");
		const source = metered(view, this.#budget);
		return await this.#guarded(source, at, async () => {
			const logged = this.#lastLogWrite?.end ?? 0;
			if (lastWrite === null || lastWrite <= asked || logged <= asked)
				return this.#keep(
					source,
					at,
					"the guest's agent says that it is frozen, but nothing on the disk shows it",
					true,
				);
			await this.#checkSignatures(source);
			const { geometry, log, ends } = await this.#readEnds(source);
			const overlay = geometry.version === 4 ? null : await recover(source, geometry, new LogRing(source, log), ends);
			// Version 4 doesn't tell what is home: its log is believed only where nothing is to be replayed.
			if (overlay === null || [...overlay.keys()].some((place) => place !== 0))
				return this.#keep(source, at, "the guest's agent says that it is frozen, but its log is in use", true);
			this.#allocation = await readAllocation(source, geometry, ends, overlay);
			for (const group of allGroups(geometry)) this.#unreported.add(group);
			return this.#ready(source, at, at, geometry.agCount);
		});
	}

	async #checkSignatures(view: ByteSource): Promise<void> {
		await checkSoleOwner(view, "xfs");
		this.#mustCheckSignatures = false;
	}

	/** Turns what the volume's bytes lead to into a reason to keep it; errors of the disk itself pass. */
	async #guarded(view: Metered, at: LogPosition, judge: () => Promise<LiveState>): Promise<LiveState> {
		try {
			return await judge();
		} catch (error) {
			if (!isVolumeError(error)) throw error;
			this.#break(error.message);
			this.#mustCheckSignatures = true;
			return { ...this.#keep(view, at, error.message, false), waitsFor: solutionOf(error) };
		}
	}

	#ready(view: Metered, position: LogPosition, settled: LogPosition, groupsRead: number): LiveState {
		const { warnings } = this.#allocation!;
		const changed = [...this.#unreported].filter((group) => group < this.#geometry.agCount).sort((a, b) => a - b);
		this.#unreported.clear();
		this.#isReady = true;
		return {
			kind: "ready",
			position,
			settled,
			changed: groupRanges(this.#geometry, changed),
			metadataBytesRead: view.bytesRead,
			groupsRead,
			watchChanged: this.#watchChanged,
			warnings,
		};
	}

	#keep(
		{ bytesRead }: Metered,
		position: LogPosition,
		reason: string,
		pending: boolean,
	): LiveState & { readonly kind: "keep" } {
		this.#isReady = false;
		return { kind: "keep", position, reason, pending, metadataBytesRead: bytesRead, watchChanged: this.#watchChanged };
	}

	freeRuns(from: ByteOffset, to: ByteOffset): Iterable<ByteRange> {
		return this.#isReady && this.#allocation !== null ? this.#allocation.freeRuns(from, to) : [];
	}

	evidenceFor(position: LogPosition): Evidence {
		const evidence = this.#chain?.evidence;
		return {
			counted: evidence?.commitsFor(position) ?? 0,
			needed: evidence?.wantedCommits ?? COMMITS_WANTED,
			unit: "commits of its log",
		};
	}

	blockAt(at: ByteOffset): FileSystemBlock {
		const { blockSize, agBlocks, log } = this.#geometry;
		const number = Math.floor(at / blockSize);
		const isInLog = log !== null && at >= log.start && at < log.start + log.basicBlocks * BASIC_BLOCK;
		const isHeader = number % agBlocks < headerBlocks(this.#geometry);
		return { number, role: isInLog ? "journal" : isHeader ? "metadata" : "data" };
	}
}

type Metered = ByteSource & { readonly bytesRead: number };

/** The sector at `place` out of bytes that were written at `at`; null where they don't touch it. */
function sectorOf(at: number, bytes: Uint8Array, place: number, size: number): Uint8Array | null | "partly" {
	if (at >= place + size || at + bytes.length <= place) return null;
	return at <= place && place + size <= at + bytes.length ? bytes.subarray(place - at, place - at + size) : "partly";
}

/** What the data plane must report: marks of other file systems, each group's superblock copy and AGF, and the log. */
function watchRanges(
	size: ByteCount,
	{ agCount, agBlocks, blockSize, sectorSize, log }: Geometry,
): readonly WatchRange[] {
	const headers = Array.from({ length: agCount }, (_, group) => ({
		start: byteOffset(group * agBlocks * blockSize),
		length: byteCount(2 * sectorSize),
	}));
	const structure = joinRanges([...signatureRanges(size), ...headers]).map((range) => ({
		...range,
		kind: "structure" as const,
	}));
	if (log === null) return structure;
	const length = byteCount(log.basicBlocks * BASIC_BLOCK);
	return [...structure, { start: byteOffset(log.start), length, kind: "journal", withoutBytes: true }];
}

/** Groups (sorted) as byte ranges of the volume, widened to whole 4 KiB. */
function groupRanges({ agBlocks, blockSize, dataBlocks }: Geometry, groups: readonly number[]): ByteRange[] {
	const groupBytes = agBlocks * blockSize;
	return joinRanges(
		groups.map((group) => {
			const start = roundDown(group * groupBytes, 4096);
			const end = roundUp(Math.min((group + 1) * groupBytes, dataBlocks * blockSize), 4096);
			return { start: byteOffset(start), length: byteCount(end - start) };
		}),
	);
}
