// The live rule of ext3 and ext4 (docs/live-safety.md, E1–E7, L3, L6, F3) for one volume over time.
//
//   observe ─▶ journal writes   ─▶ commit chain: counts commits, knows what the journal holds      E2
//           ─▶ structure writes ─▶ checkpoint of committed content, or foreign: new incarnation    L6
//   advance ─▶ view at a commit ─▶ groups whose metadata changed are read again, overlaid          E1, E5, E6, L3
//           ─▶ settled = position of the second newest commit: older blocks that are free may go   E2
//
// Invariants
//  - the cached bitmap equals what reading the whole view at the last judged position would give
//  - evidence is counted only inside one incarnation; every discontinuity, of whatever kind, begins a new one and
//    has all metadata read again
//  - memory: a bit per cluster, the descriptors, and what the journal's running part needs
//
// Blocks that are free but not settled yet become settled by later commits without any metadata changing, so the
// caller tries them again itself; `changed` lists only what was read again.

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
	WaitsFor,
	WatchRange,
} from "../live.ts";
import { checkSoleOwner, signatureWatcher } from "../signatures.ts";
import { CommitChain } from "./commit-chain.ts";
import type { Allocation } from "./free-space.ts";
import { parseDescriptor } from "./free-space.ts";
import { overlaid } from "./journal.ts";
import { SUPERBLOCK_AT, SuperBlock } from "./layout.ts";
import type { Structure } from "./live-layout.ts";
import { isSameStructure, isSameVolume, isStructureBlock, readStructure, watchRanges } from "./live-layout.ts";
import type { Geometry } from "./open.ts";
import { groupEnd, groupStart, identify, parseSuperblock, readSuperblock } from "./open.ts";
import type { Recovered } from "./recover.ts";
import { checkBelievable, readAllocation, recover } from "./recover.ts";

export interface Ext4LiveOptions {
	/** For tests that must fail: how many commits after a block's last write prove it. The rule is 2. */
	readonly commitsRequired?: number;
	/** For tests that must fail: `tid` computes with transaction numbers, which kernels skip (live-safety 2.3). */
	readonly countBy?: "records" | "tid";
	/** A volume costs a bit per block and its journal; this stops a hostile one. In bytes per pass. */
	readonly readBudget?: ByteCount;
}

/** The largest write that NBD clients send; only trims and write-zeroes are larger. */
const MAX_WRITE_BYTES = 32 << 20;

export class Ext4LiveVolume implements LiveVolume {
	readonly #required: number;
	readonly #countBy: "records" | "tid";
	readonly #budget: ByteCount;
	readonly #size: ByteCount;
	readonly #mayBringSignature: (at: number, bytes: Uint8Array) => boolean;
	#identity: ReturnType<typeof identify> | null = null;
	#structure: Structure | null = null;
	#chain: CommitChain | null = null;
	#allocation: Allocation | null = null;
	/** Why nothing can be known until the layout is read again, or null. */
	#problem: string | null = null;
	/** What would solve it. */
	#solution: WaitsFor = "repair";
	/** The superblock's word on a volume whose layout could not be read (mounted without a journal), else null. */
	#unread: Geometry | null = null;
	#mustReload = true;
	/** Groups that were read again since the last judgement that said so. */
	readonly #unreported = new Set<number>();
	/** The incarnation that the cached bitmap belongs to. */
	#judged = 0;
	/** Set while the newest judgement allows to ask what is free. */
	#isReady = false;
	#mustCheckSignatures = true;
	/** End of the newest superblock write, if that marked the volume clean. */
	#cleanMark: LogPosition | null = null;
	#observed: LogPosition | null = null;
	#watch: readonly WatchRange[] = [];
	#watchChanged = false;
	/** Incarnations of chains that were replaced. */
	#earlierIncarnations = 0;

	private constructor(size: ByteCount, options: Ext4LiveOptions) {
		this.#size = size;
		this.#mayBringSignature = signatureWatcher(size);
		this.#required = options.commitsRequired ?? 2;
		this.#countBy = options.countBy ?? "records";
		this.#budget = options.readBudget ?? byteCount(Math.ceil(size / 1024) + 3 * 2 ** 30);
	}

	/**
	 * Starts to follow the volume in `view`. Writes after this view's position are to be fed to `observe`. A volume that
	 * cannot be believed is followed, too, and says so in `advance`. Throws VOLUME_UNSUPPORTED without an ext superblock.
	 */
	static async open(view: ByteSource, options: Ext4LiveOptions = {}): Promise<Ext4LiveVolume> {
		const volume = new Ext4LiveVolume(view.size, options);
		if ((await readSuperblock(view)) === null)
			throw new VmsweepError("VOLUME_UNSUPPORTED", "the volume has no ext2, ext3 or ext4 superblock");
		const source = metered(view, volume.#budget);
		const recovered = await volume.#readLayout(source);
		// Take up a journal that is in use: the guest may have been running for long.
		const journal = recovered?.journal;
		if (journal?.replay != null && journal.replay.next.position !== 0)
			volume.#chain?.anchor(journal.info, journal.replay, null, await volume.#sumsOf(recovered!));
		return volume;
	}

	get type(): string {
		return this.#identity?.type ?? "ext4";
	}
	get uuid(): string | null {
		return this.#identity?.uuid ?? null;
	}
	get state(): VolumeState {
		return this.#identity === null ? "unknown" : this.#identity.clean ? "clean" : "dirty";
	}
	/** Without a journal no commit is ever seen. */
	get viewPoints(): ViewPoints {
		return this.#chain === null ? "none" : "marked";
	}
	get gainsByFreeze(): boolean {
		return this.#chain === null;
	}
	get incarnation(): number {
		return this.#earlierIncarnations + (this.#chain?.incarnation ?? 0);
	}
	get commits(): number {
		return this.#chain?.commits.length ?? 0;
	}
	get rule(): string {
		if (this.#hasNoJournal) return "clean unmount or freeze only: it has no journal of its own";
		return `${this.#required} commits of its journal after a block's last write, or a clean unmount`;
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
			if (!this.#touchesWatched(write)) continue;
			// No kernel writes metadata in such a piece; it is a trim or write-zeroes over half the volume.
			if (write.length > MAX_WRITE_BYTES) this.#newLayout("a large part of it was overwritten at once");
			else this.#feed(write, await write.read());
		}
	}

	#touchesWatched(write: MetadataWrite): boolean {
		return this.#watch.some(({ start, length }) => start < write.at + write.length && write.at < start + length);
	}

	#feed(write: MetadataWrite, bytes: Uint8Array): void {
		assert(bytes.length === write.length, "a metadata write has other bytes than it said");
		const end = write.at + write.length;
		if (write.at < SUPERBLOCK_AT + SuperBlock.size && end > SUPERBLOCK_AT) this.#feedSuperblock(write, bytes);
		if (this.#mayBringSignature(write.at, bytes)) this.#mustCheckSignatures = true;
		const structure = this.#structure;
		if (structure === null) return;
		const { blockSize } = structure.geometry;
		for (let block = Math.floor(write.at / blockSize); block * blockSize < end; block++) {
			const from = Math.max(0, block * blockSize - write.at);
			const to = Math.min(write.length, (block + 1) * blockSize - write.at);
			const part = bytes.subarray(from, to);
			const logical = structure.journal?.logicalAt(block) ?? -1;
			if (logical >= 0) {
				// A superblock of the journal that is written alone comes as its first 1024 bytes.
				const isWhole =
					part.length === blockSize || (logical === 0 && write.at + from === block * blockSize && part.length >= 1024);
				if (isWhole) this.#chain?.feed(logical, part, write);
				else this.#chain?.feedPart(logical);
			} else if (structure.descriptorBlocks.has(block) || structure.bitmaps.has(block))
				this.#feedHome(block, part, blockSize);
		}
	}

	/** A write to the home place of descriptors or a bitmap: a checkpoint writes what was committed, anything else is foreign. */
	#feedHome(block: number, part: Uint8Array, blockSize: number): void {
		const chain = this.#chain;
		if (chain === null) this.#mustReload = true;
		else if (part.length !== blockSize || chain.contentSums.get(block) !== crc32c(0, part)) {
			chain.break(`block ${block} was overwritten from outside the journal`);
			chain.contentSums.delete(block);
			this.#mustReload = true;
		}
	}

	#feedSuperblock(write: MetadataWrite, bytes: Uint8Array): void {
		this.#cleanMark = null;
		const from = SUPERBLOCK_AT - write.at;
		if (from < 0 || from + SuperBlock.size > bytes.length) {
			this.#newLayout("a part of the superblock was overwritten");
			return;
		}
		const raw = bytes.subarray(from, from + SuperBlock.size);
		let next: Geometry;
		try {
			next = parseSuperblock(raw, this.#size);
		} catch (error) {
			if (!isVmsweepError(error)) throw error;
			this.#newLayout(error.message);
			return;
		}
		const before = this.#structure?.geometry ?? this.#unread;
		if (before === null || !isSameVolume(before, next)) {
			this.#newLayout("the superblock describes another file system, or another layout");
			return;
		}
		this.#identity = identify(raw);
		if (next.valid && !next.error && !next.has.recover) this.#cleanMark = write.end;
		if (next.error) this.#newLayout("the guest has recorded errors in it; run e2fsck in the guest");
	}

	/** What is known of the layout no longer holds. */
	#newLayout(why: string): void {
		this.#chain?.break(why);
		this.#problem = why;
		this.#solution = "repair";
		this.#mustReload = true;
	}

	// ── views ───────────────────────────────────────────────────────────────────────────────────────────────────

	async advance(view: ByteSource, at: LogPosition): Promise<LiveState> {
		assert(this.#observed === null || this.#observed <= at, "a view is older than the writes that were observed");
		const source = metered(view, this.#budget);
		return await this.#guarded(source, at, () => this.#judge(source, at));
	}

	async #judge(view: ByteSource & { readonly bytesRead: number }, at: LogPosition): Promise<LiveState> {
		const keep = (reason: string, pending: boolean, waitsFor?: WaitsFor): LiveState =>
			this.#keep(view, at, reason, pending, waitsFor);
		if (this.#problem !== null || this.#structure === null) await this.#readLayout(view);
		if (this.#problem !== null) return keep(this.#problem, false, this.#solution);
		const structure = this.#structure;
		const chain = this.#chain;
		if (structure === null || chain === null || structure.journal === null)
			return keep("it has no journal; its free space is known only while it is cleanly unmounted", false, "rest");
		if (chain.info.has.asyncCommit)
			return keep("it is mounted with journal_async_commit, whose commits prove nothing by their order", false, "rest");
		if (chain.info.errorNumber !== 0)
			return keep("its journal was aborted after an error; run e2fsck in the guest", false, "repair");
		if (chain.lastCandidate?.end !== at) return keep("the view does not end at a commit", true);
		if (chain.head !== null && chain.commits.at(-1)?.end !== at) return keep("the view does not end at a commit", true);

		if (this.#mustCheckSignatures) await this.#checkSignatures(view);
		const isNew =
			this.#mustReload || chain.head === null || this.#allocation === null || this.#judged !== this.incarnation;
		const read = isNew ? await this.#reload(view, at) : await this.#refresh(view);
		if (typeof read === "string") return keep(read, true);
		for (const group of read) this.#unreported.add(group);
		const settled = this.#settled();
		if (settled === null)
			return keep(`${chain.commits.length} of ${this.#required} commits seen since: ${chain.brokenBecause}`, true);
		return this.#ready(view, at, settled, read.length);
	}

	/** Two commits, counting the newest, lie after a block's last write where that is older than this position. */
	#settled(): LogPosition | null {
		const commits = this.#chain!.commits;
		if (this.#countBy === "records") return commits.at(-this.#required)?.position ?? null;
		const newest = commits.at(-1);
		if (newest === undefined) return null;
		// The naive rule: a block last written when commit C was the newest is settled by any commit M >= C + 2.
		return commits.find(({ sequence }) => sequence >= newest.sequence - 1)!.position;
	}

	/** Reads everything again. Returns the groups read, or why the view cannot be used. */
	async #reload(view: ByteSource, at: LogPosition): Promise<readonly number[] | string> {
		const recovered = await this.#recoverAgain(view);
		const { journal } = recovered;
		const chain = this.#chain;
		if (journal === null || journal.replay === null || chain === null) return "its journal is empty";
		const last = journal.replay.transactions.at(-1);
		const candidate = chain.lastCandidate;
		if (
			last === undefined ||
			candidate === null ||
			candidate.end !== at ||
			last.commit !== candidate.at ||
			last.sequence !== candidate.sequence
		) {
			chain.break("the newest commit is not the end of the journal");
			return "the newest commit is not the end of the journal";
		}
		const { head } = chain;
		const next = journal.replay.next;
		if (head !== null && (head.position !== next.position || head.sequence !== next.sequence)) {
			chain.break("the journal holds other transactions than were seen");
			return "the journal holds other transactions than were seen";
		}
		this.#allocation = await readAllocation(recovered);
		chain.anchor(journal.info, journal.replay, candidate, await this.#sumsOf(recovered));
		chain.touched.clear();
		this.#mustReload = false;
		this.#judged = this.incarnation;
		return allGroups(recovered.geometry);
	}

	/** Recovers the view in memory and takes over its layout, if that is new. */
	async #recoverAgain(view: ByteSource): Promise<Recovered> {
		const raw = await readSuperblock(view);
		if (raw === null) throw new VmsweepError("VOLUME_DAMAGED", "its superblock is gone");
		const recovered = await recover(view, raw);
		this.#identity = identify(raw);
		await this.#takeLayout(recovered);
		return recovered;
	}

	/** Checksums of the logged structure blocks, so that their checkpoints are recognised. */
	async #sumsOf({ journal, geometry, view }: Recovered): Promise<Map<number, number>> {
		const sums = new Map<number, number>();
		for (const block of journal?.replay?.blocks.keys() ?? [])
			if (this.#isStructure(block))
				sums.set(block, crc32c(0, await readBytes(view, byteOffset(block * geometry.blockSize), geometry.blockSize)));
		return sums;
	}

	/** Reads the groups that transactions changed since the last view. */
	async #refresh(view: ByteSource): Promise<readonly number[] | string> {
		const { geometry, superblockBlock, descriptorBlocks, bitmaps } = this.#structure!;
		const chain = this.#chain!;
		const allocation = this.#allocation!;
		const source = overlaid(view, geometry.blockSize, chain.logged);
		const groups = new Set<number>();
		if (chain.touched.has(superblockBlock)) {
			const raw = await readBytes(source, byteOffset(SUPERBLOCK_AT), SuperBlock.size);
			const next = parseSuperblock(raw, this.#size);
			checkBelievable(next);
			if (!isSameVolume(geometry, next)) {
				this.#newLayout("the file system was resized or changed");
				return "the file system was resized or changed; it is read again at the next commit";
			}
		}
		for (const block of chain.touched) {
			const bitmapOf = bitmaps.get(block);
			if (bitmapOf !== undefined) groups.add(bitmapOf);
			const index = descriptorBlocks.get(block);
			if (index === undefined) continue;
			const raw = await readBytes(source, byteOffset(block * geometry.blockSize), geometry.blockSize);
			const first = index * geometry.descriptorsPerBlock;
			for (let group = first; group < Math.min(first + geometry.descriptorsPerBlock, geometry.groupCount); group++) {
				const next = parseDescriptorAt(raw, geometry, group, first);
				if (isSameGroup(allocation.groups[group]!, next)) continue;
				groups.add(group);
				if (!allocation.replaceDescriptor(group, next)) {
					this.#mustReload = true;
					return `group ${group}'s descriptor is wrong or moved; all is read again at the next commit`;
				}
			}
		}
		const sorted = [...groups].sort((a, b) => a - b);
		await allocation.readGroups(source, sorted);
		chain.touched.clear();
		return sorted;
	}

	advanceClean(view: ByteSource, at: LogPosition, lastWrite: LogPosition | null): Promise<LiveState> {
		return this.#judgeAtRest(view, at, lastWrite, logPosition(Number.POSITIVE_INFINITY));
	}

	/** A freeze empties the journal and writes the superblock last, without the mark of a mount: as an unmount does. */
	advanceFrozen(view: ByteSource, at: LogPosition, { lastWrite }: FrozenMoment): Promise<LiveState> {
		return this.#judgeAtRest(view, at, lastWrite, at);
	}

	async #judgeAtRest(
		view: ByteSource,
		at: LogPosition,
		lastWrite: LogPosition | null,
		settled: LogPosition,
	): Promise<LiveState> {
		assert(this.#observed === null || this.#observed <= at, "a view is older than the writes that were observed");
		const source = metered(view, this.#budget);
		return await this.#guarded(source, at, async () => {
			if (lastWrite !== null && (this.#cleanMark === null || lastWrite > this.#cleanMark)) {
				const stands = this.#isReady && !this.#mustReload && this.#judged === this.incarnation;
				const state = this.#keep(
					source,
					at,
					"it was written to after it was last marked clean, or that was not seen",
					true,
				);
				// What its commits have proven stays proven while it merely rests.
				this.#isReady = stands;
				return state;
			}
			// Until the next commit is judged, the cached bitmap belongs to this view and not to the chain.
			this.#mustReload = true;
			await this.#checkSignatures(source);
			const recovered = await this.#recoverAgain(source);
			if (recovered.state !== "clean")
				return this.#keep(source, at, "it is mounted, or was not unmounted cleanly", true);
			this.#allocation = await readAllocation(recovered);
			const groups = allGroups(recovered.geometry);
			for (const group of groups) this.#unreported.add(group);
			return this.#ready(source, at, settled, groups.length);
		});
	}

	/** Turns what the volume's bytes lead to into a reason to keep it; errors of the disk itself pass. */
	async #guarded(
		view: { readonly bytesRead: number },
		at: LogPosition,
		judge: () => Promise<LiveState>,
	): Promise<LiveState> {
		try {
			return await judge();
		} catch (error) {
			if (!isVolumeError(error)) throw error;
			this.#newLayout(error.message);
			this.#solution = this.#solutionOf(error);
			return this.#keep(view, at, error.message, false, this.#solution);
		}
	}

	#ready(
		view: { readonly bytesRead: number },
		position: LogPosition,
		settled: LogPosition,
		groupsRead: number,
	): LiveState {
		const { geometry, warnings } = this.#allocation!;
		const changed = [...this.#unreported].filter((group) => group < geometry.groupCount).sort((a, b) => a - b);
		this.#unreported.clear();
		this.#isReady = true;
		return {
			kind: "ready",
			position,
			settled,
			changed: groupRanges(geometry, changed),
			metadataBytesRead: view.bytesRead,
			groupsRead,
			watchChanged: this.#watchChanged,
			warnings,
		};
	}

	get #hasNoJournal(): boolean {
		return this.#structure !== null ? this.#structure.journal === null : this.#unread?.has.journal === false;
	}

	/** What would make an end of an error that the volume's bytes led to. */
	#solutionOf(error: VmsweepError): WaitsFor {
		const solution = solutionOf(error);
		// Mounted, or not unmounted cleanly, and without a journal that would tell its state.
		return solution === "support" && this.#hasNoJournal && this.#unread?.valid === false ? "rest" : solution;
	}

	#keep(
		view: { readonly bytesRead: number },
		position: LogPosition,
		reason: string,
		pending: boolean,
		waitsFor: WaitsFor = !pending ? "support" : this.#hasNoJournal ? "rest" : "commits",
	): LiveState {
		this.#isReady = false;
		return {
			kind: "keep",
			position,
			reason,
			pending,
			waitsFor,
			metadataBytesRead: view.bytesRead,
			watchChanged: this.#watchChanged,
		};
	}

	freeRuns(from: ByteOffset, to: ByteOffset): Iterable<ByteRange> {
		if (!this.#isReady || this.#allocation === null) return [];
		return this.#allocation.freeRuns(from, to) as Iterable<ByteRange>;
	}

	evidenceFor(position: LogPosition): Evidence {
		const after = this.#chain?.commits.filter((commit) => position < commit.position).length ?? 0;
		return { counted: Math.min(after, this.#required), needed: this.#required, unit: "commits" };
	}

	blockAt(at: ByteOffset): FileSystemBlock | undefined {
		const structure = this.#structure;
		if (structure === null) return undefined;
		const number = Math.floor(at / structure.geometry.blockSize);
		const isInJournal = (structure.journal?.logicalAt(number) ?? -1) >= 0;
		return { number, role: isInJournal ? "journal" : isStructureBlock(structure, number) ? "metadata" : "data" };
	}

	// ── layout ──────────────────────────────────────────────────────────────────────────────────────────────────

	async #checkSignatures(view: ByteSource): Promise<void> {
		await checkSoleOwner(view, "ext");
		this.#mustCheckSignatures = false;
	}

	/** Reads superblock, journal and descriptors, not the bitmaps; a volume that can't be believed leaves `#problem` set. */
	async #readLayout(view: ByteSource): Promise<Recovered | null> {
		this.#problem = null;
		this.#mustReload = true;
		try {
			return await this.#recoverAgain(view);
		} catch (error) {
			if (!isVolumeError(error)) throw error;
			this.#problem = error.message;
			if (this.#structure === null) {
				this.#setWatch(null);
				await this.#rememberUnread(view);
			}
			this.#solution = this.#solutionOf(error);
			return null;
		}
	}

	/** Without it, the superblock written at the unmount could not be told from another file system's. */
	async #rememberUnread(view: ByteSource): Promise<void> {
		const raw = await readSuperblock(view);
		try {
			this.#unread = raw === null ? null : parseSuperblock(raw, this.#size);
			if (raw !== null) this.#identity = identify(raw);
		} catch (error) {
			if (!isVmsweepError(error)) throw error;
			this.#unread = null;
		}
	}

	async #takeLayout(recovered: Recovered): Promise<void> {
		const before = this.#structure;
		const structure = await readStructure(recovered);
		this.#structure = structure;
		this.#problem = null;
		if (before !== null && isSameStructure(before, structure)) return;
		this.#earlierIncarnations += this.#chain?.incarnation ?? 0;
		const { journal } = recovered;
		this.#chain =
			journal === null ? null : new CommitChain(journal.info, journal.file, (block) => this.#isStructure(block));
		this.#setWatch(structure);
	}

	#isStructure(block: number): boolean {
		return this.#structure !== null && isStructureBlock(this.#structure, block);
	}

	#setWatch(structure: Structure | null): void {
		this.#watch = watchRanges(this.#size, structure);
		this.#watchChanged = true;
	}
}

const allGroups = (geometry: Geometry): number[] => Array.from({ length: geometry.groupCount }, (_, group) => group);

/** Groups (sorted) as byte ranges of the volume, neighbours merged, widened to whole 4 KiB. */
function groupRanges(geometry: Geometry, groups: readonly number[]): ByteRange[] {
	const { blockSize } = geometry;
	return joinRanges(
		groups.map((group) => {
			const start = roundDown(groupStart(geometry, group) * blockSize, 4096);
			const end = roundUp(groupEnd(geometry, group) * blockSize, 4096);
			return { start: byteOffset(start), length: byteCount(end - start) };
		}),
	);
}

/** The descriptor of `group` out of a descriptor block whose first one is `first`'s. */
function parseDescriptorAt(
	block: Uint8Array,
	geometry: Geometry,
	group: number,
	first: number,
): ReturnType<typeof parseDescriptor> {
	return parseDescriptor(block, geometry, group, (group - first) * geometry.descriptorSize);
}

const isSameGroup = (a: ReturnType<typeof parseDescriptor>, b: ReturnType<typeof parseDescriptor>): boolean =>
	a.blockBitmap === b.blockBitmap &&
	a.inodeBitmap === b.inodeBitmap &&
	a.inodeTable === b.inodeTable &&
	a.freeClusters === b.freeClusters &&
	a.uninitialised === b.uninitialised &&
	a.bitmapChecksum === b.bitmapChecksum &&
	a.wrong === b.wrong;
