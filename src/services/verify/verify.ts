// Verify: proves to an operator that nobody needs what the cleaner would drop.
//
//   the disk at one instant ─┬─► "real":      as it is
//   (a snapshot, or at rest) └─► "patterned": every droppable block is filled with a pattern
//                                    │  both over NBD from this process, with a writable overlay that goes away
//                                    ▼
//   per volume:  replay its journal by a mount ─► its own checker ─► mount read-only ─► hashes of all files ─► the same in both?
//
// A served disk is held still by a snapshot, taken for this and deleted at the end: a view alone would hold the log, and stall a guest that
// writes much. Nothing is written to the disk's images but what a snapshot costs, and reading is paced.
//
// What it can find: blocks that are called unused and aren't. What it can't: a file system's own checker and the files' contents are all it
// looks at, on the commit point that recovery leads to; docs/live-safety.md has the proof, and this is its trial.

import { createReadStream } from "node:fs";
import { mkdtemp, open, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline/promises";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type OfferedDisk, offerDisks } from "../../adapters/nbd/disk-server.ts";
import { exportUri } from "../../adapters/nbd/listen-address.ts";
import { runProgram } from "../../adapters/os/programs.ts";
import { joinRuns, packRuns, unpackRuns } from "../../core/cleaner/runs.ts";
import { segmentEnd } from "../../core/volumes/areas.ts";
import { piecesOf } from "../../core/volumes/pieces.ts";
import { isVmsweepError, VmsweepError } from "../../foundations/errors.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { type ByteOffset, byteCount } from "../../foundations/units.ts";
import { runOnDisk } from "../disk-commands.ts";
import { isDiskServed } from "../disk-directory.ts";
import { nbdSocketPath } from "../disk-paths.ts";
import type { LongRunning } from "../progress.ts";
import { RateLimit } from "../rate-limit.ts";
import { ServedDisk } from "../served-disk.ts";
import { readSnapshot } from "../snapshot-reading.ts";
import { type Checker, checkers } from "./checkers.ts";
import { compareLists } from "./compare-lists.ts";
import { attachDevice, checkHost, mountDevice, requireTool } from "./host-mount.ts";
import { OverlaidDisk } from "./overlaid-disk.ts";
import type { VerifyPoint, VerifyVolume } from "./point.ts";

/** The snapshot that holds a served disk still. One at a time: a second verify is refused as long as this one is read. */
const SNAPSHOT = "vmsweep-verify";
/** What a replay and a checker may write to each view, in bytes. */
const OVERLAY_BYTES_MAX = 1024 * 1024 * 1024;
/** Differences that are told one by one. */
const DIFFERENCES_MAX = 20;
/** Characters of a checker's output that are told. */
const OUTPUT_MAX = 2000;
/** Tries to delete the snapshot, whose reader has just left, and the time between them in milliseconds. */
const DELETE_TRIES = 50;
const RETRY_MS = 100;

export interface VerifyOptions extends LongRunning {
	/** Only this volume. */
	readonly volume?: string;
	/** Go on with the next volume after a difference, or where a checker is missing. */
	readonly keepGoing?: boolean;
	/** False: only checkers, no mount, and so no file is compared. */
	readonly mount?: boolean;
	/** Most bytes read of the disk per second; no limit where not given. */
	readonly bytesPerSecond?: number;
	/** For tests that must fail: makes the liveness wrong. */
	readonly distort?: (point: VerifyPoint) => Promise<VerifyPoint> | VerifyPoint;
}

/** What was found of a volume. Sizes in bytes. */
export interface VolumeVerdict {
	readonly id: string;
	readonly type: string;
	/** Filled with the pattern. */
	readonly droppableBytes: number;
	/** Why it was not looked at; null where it was. */
	readonly skipped: string | null;
	/** `clean`: nothing is wrong. `as-real`: it complains, and just so about the real view. `different`: only about the patterned one. */
	readonly checker: {
		readonly program: string;
		readonly verdict: "clean" | "as-real" | "different";
		readonly output: string;
	} | null;
	/** Files compared by their contents; null where the volume can't be mounted. */
	readonly files: { readonly count: number; readonly bytes: number } | null;
	/** How the patterned view differs, in words, the first of them. */
	readonly differences: readonly string[];
	readonly differenceCount: number;
	readonly notes: readonly string[];
}

export interface VerifyReport {
	/** Log position of the instant that was looked at. */
	readonly position: number;
	readonly volumes: readonly VolumeVerdict[];
	/** False: something that would be dropped is needed. */
	readonly isSame: boolean;
}

/**
 * Verifies a disk, served or not. Throws TOOL_MISSING, USAGE where there is no such volume, INTERRUPTED, DISK_LOCKED where another
 * verify is at work, or what reading the disk throws. Whatever happens, nothing of it stays on the host.
 */
export async function verifyDisk(path: string, options: VerifyOptions = {}): Promise<VerifyReport> {
	checkHost();
	try {
		return await atOneInstant(resolve(path), options, async (source, point) => {
			const wrong = (await options.distort?.(point)) ?? point;
			return await new Verifier(wrong, options).run(path, paced(source, options));
		});
	} catch (error) {
		if (!isVmsweepError(error, "INTERRUPTED")) throw error;
		throw new VmsweepError("INTERRUPTED", `${path}: verify was stopped; nothing of it stays on this host.`, {
			cause: error,
		});
	}
}

/** Gives `work` the disk as it is at one instant, and what of it is droppable then. */
async function atOneInstant<T>(
	directory: string,
	{ onProgress = () => {}, signal }: VerifyOptions,
	work: (source: ByteSource, point: VerifyPoint) => Promise<T>,
): Promise<T> {
	onProgress({ step: "holding the disk still", done: 0, total: null });
	if (!(await isDiskServed(directory))) {
		await using disk = await ServedDisk.open(directory);
		// Of one that was killed.
		if (disk.snapshots().some(({ name }) => name === SNAPSHOT)) await disk.deleteSnapshot(SNAPSHOT);
		return await disk.withVerifyPoint(work);
	}
	// What readSnapshot would say of it comes too late, and helps only who gives it a name.
	const socket = nbdSocketPath(directory);
	if (!(await stat(socket).catch(() => undefined))?.isSocket())
		throw new VmsweepError(
			"DISK_NOT_SERVED",
			`${directory} is served on an address of its own, and verify reads it by ${socket}. Serve it without --socket and --listen, or verify it while it is not served.`,
		);
	await forgetSnapshot(directory, 1);
	const point = await runOnDisk(directory, "verifyPoint", { name: SNAPSHOT });
	try {
		if (signal?.aborted === true) throw new VmsweepError("INTERRUPTED", "verify was stopped.");
		return await readSnapshot(directory, SNAPSHOT, (source) => work(source, point));
	} finally {
		await forgetSnapshot(directory, DELETE_TRIES);
	}
}

/** Deletes the snapshot, if there is one: also one that a verify left behind which was killed. Throws DISK_LOCKED while it is read. */
async function forgetSnapshot(directory: string, tries: number): Promise<void> {
	for (let tried = 1; ; tried++)
		try {
			await runOnDisk(directory, "deleteSnapshot", { name: SNAPSHOT });
			return;
		} catch (error) {
			if (isVmsweepError(error, "FILE_NOT_FOUND")) return;
			if (!isVmsweepError(error, "DISK_LOCKED") || tried >= tries) throw error;
			await delay(RETRY_MS);
		}
}

/** Reads at most so many bytes per second, over time; without rests once it is to end. */
function paced(source: ByteSource, { bytesPerSecond = Number.POSITIVE_INFINITY, signal }: VerifyOptions): ByteSource {
	const limit = new RateLimit(bytesPerSecond);
	return {
		size: source.size,
		async read(at, into) {
			limit.spend(into.length);
			if (limit.waitMs > 0) await delay(limit.waitMs, undefined, { signal }).catch(() => {});
			await source.read(at, into);
		},
	};
}

type Side = "real" | "patterned";

/** One side's outcome: what the checker said, and where the list of its files is. */
interface Looked {
	/** Why it could not be mounted. */
	readonly problem?: string | undefined;
	readonly list?: string | undefined;
	readonly checked?: { readonly isClean: boolean; readonly output: string } | undefined;
}

class Verifier {
	readonly #point: VerifyPoint;
	readonly #options: VerifyOptions;
	readonly #signal: AbortSignal;
	#folder = "";
	/** What kept a view from being read or written: whatever was found after that may come of it. */
	#failure: { readonly error: unknown } | undefined;

	constructor(point: VerifyPoint, options: VerifyOptions) {
		this.#point = point;
		this.#options = options;
		this.#signal = options.signal ?? new AbortController().signal;
	}

	async run(path: string, source: ByteSource): Promise<VerifyReport> {
		const { volume, keepGoing = false } = this.#options;
		const chosen = this.#point.volumes.filter(({ id }) => volume === undefined || id === volume);
		if (chosen.length === 0 && volume !== undefined)
			throw new VmsweepError(
				"USAGE",
				`${path} has no volume ${volume}. It has: ${this.#point.volumes.map(({ id }) => id).join(", ")}.`,
			);
		// Asked before anything is attached.
		if (!keepGoing)
			for (const each of chosen) {
				const checker = checkers.get(each.type);
				if (skippedBecause(each) === null && checker !== undefined) requireTool(checker.program, checker.package);
			}
		await using stack = new AsyncDisposableStack();
		this.#folder = await mkdtemp(join(tmpdir(), "vmsweep-verify-"));
		stack.defer(() => rm(this.#folder, { recursive: true, force: true }).catch(() => {}));
		const droppable = chosen.flatMap((each) =>
			skippedBecause(each) === null ? unpackRuns(Float64Array.from(each.runs)) : [],
		);
		const patterned = [...packRuns(joinRuns(droppable))];
		const disks = new Map<string, OfferedDisk>();
		for (const side of ["real", "patterned"] as const) {
			const file = await open(join(this.#folder, `${side}.overlay`), "wx+", 0o600);
			stack.defer(() => file.close());
			const disk = new OverlaidDisk(source, side === "real" ? [] : patterned, file, OVERLAY_BYTES_MAX);
			for (const each of chosen) disks.set(exportOf(side, each), this.#noticingFailures(volumeOf(disk, each)));
		}
		stack.use(await offerDisks(nbdSocketPath(this.#folder), disks));
		const verdicts: VolumeVerdict[] = [];
		for (const each of chosen) {
			const verdict = await this.#verify(each);
			// A view that can't be read would look like a difference.
			if (this.#failure !== undefined) throw this.#failure.error;
			verdicts.push(verdict);
			if (verdict.differenceCount > 0 && !keepGoing) break;
		}
		return {
			position: this.#point.position,
			volumes: verdicts,
			isSame: verdicts.every(({ differenceCount }) => differenceCount === 0),
		};
	}

	/** The same disk; what fails is remembered, since programs on the other side of a mount only see that something did. */
	#noticingFailures(disk: OfferedDisk): OfferedDisk {
		const noted = (error: unknown): never => {
			this.#failure ??= { error };
			throw error;
		};
		return {
			size: disk.size,
			read: (at, into) => disk.read(at, into).catch(noted),
			write: (at, from) => disk.write(at, from).catch(noted),
		};
	}

	async #verify(volume: VerifyVolume): Promise<VolumeVerdict> {
		const { id, type, droppableBytes } = volume;
		const skipped = skippedBecause(volume);
		const nothing = {
			id,
			type,
			droppableBytes,
			checker: null,
			files: null,
			differences: [],
			differenceCount: 0,
			notes: [],
		};
		if (skipped !== null) return { ...nothing, droppableBytes: 0, skipped };
		const checker = checkers.get(type)!;
		try {
			requireTool(checker.program, checker.package);
		} catch (error) {
			if (!isVmsweepError(error)) throw error;
			return { ...nothing, droppableBytes: 0, skipped: error.message };
		}
		const real = await this.#look("real", volume, checker, { checks: false, lists: true });
		const other = await this.#look("patterned", volume, checker, { checks: true, lists: true });
		const found = new Findings();
		if (volume.isPartial) found.note("its free blocks lie in too many pieces: only the first of them were overwritten");
		const verdict = await this.#judgeChecker(volume, checker, other, found);
		const files = await compareFiles(real, other, found);
		const output = verdict === "clean" ? "" : other.checked!.output.slice(0, OUTPUT_MAX);
		return {
			id,
			type,
			droppableBytes,
			skipped: null,
			checker: { program: checker.program, verdict, output },
			files,
			...found.all,
		};
	}

	/** Where the checker complains about the view with the pattern: does it about the real one, too? */
	async #judgeChecker(
		volume: VerifyVolume,
		checker: Checker,
		{ checked }: Looked,
		found: Findings,
	): Promise<NonNullable<VolumeVerdict["checker"]>["verdict"]> {
		if (checked!.isClean) return "clean";
		const { checked: real } = await this.#look("real", volume, checker, { checks: true, lists: false });
		if (!real!.isClean && real!.output === checked!.output) {
			found.note(`${checker.program} finds the same errors in the real view: they are the guest's own`);
			return "as-real";
		}
		found.differs([`${checker.program} finds errors that the real view doesn't have`]);
		return "different";
	}

	/**
	 * Looks at one side of a volume: has its journal replayed, runs the checker where that is wanted, lists its files.
	 * Leaves nothing attached.
	 */
	async #look(
		side: Side,
		volume: VerifyVolume,
		checker: Checker,
		{ checks, lists }: { readonly checks: boolean; readonly lists: boolean },
	): Promise<Looked> {
		const { mount = true } = this.#options;
		const signal = this.#signal;
		const step = (what: string): void =>
			this.#options.onProgress?.({ step: `${volume.id}, ${side} view: ${what}`, done: 0, total: null });
		step("attaching it");
		const uri = exportUri({ kind: "unix", path: nbdSocketPath(this.#folder) }, exportOf(side, volume));
		await using device = await attachDevice(uri, join(this.#folder, `${side}.fuse`), signal);
		let problem: string | undefined = mount ? undefined : "mounting was not wanted";
		if (mount) {
			step("replaying its journal");
			problem = await this.#mounted(device.path, side, checker, "rw", () => Promise.resolve());
		}
		let checked: Looked["checked"];
		if (checks) {
			step(checker.program);
			const { exitCode, stdout, stderr } = await runProgram(checker.program, checker.arguments(device.path), {
				signal,
			});
			checked = { isClean: exitCode === 0, output: `${stdout}${stderr}`.replaceAll(device.path, "DEVICE") };
		}
		if (problem !== undefined || !lists) return { problem, checked };
		const list = join(this.#folder, `${side}.list`);
		step("reading its files");
		problem = await this.#mounted(device.path, side, checker, "ro", async (folder) => {
			const worker = fileURLToPath(new URL("./list-files-worker.ts", import.meta.url));
			const { exitCode, stderr } = await runProgram(process.execPath, [worker, folder], { signal, outputFile: list });
			if (exitCode !== 0)
				throw new VmsweepError("IO", `the files of volume ${volume.id} could not be listed: ${stderr.trim()}`);
		});
		return problem === undefined ? { list, checked } : { problem, checked };
	}

	/** Mounts a side, does the work, unmounts it again. Returns what the mount said where it failed. */
	async #mounted(
		device: string,
		side: Side,
		{ mountType, mountOptions }: Checker,
		how: "ro" | "rw",
		work: (folder: string) => Promise<void>,
	): Promise<string | undefined> {
		const folder = join(this.#folder, `${side}.mount`);
		const options = [how, "nosuid", "nodev", "noexec", "noatime", ...(mountOptions === "" ? [] : [mountOptions])];
		const mounting = await mountDevice(device, folder, mountType, options.join(","), this.#signal);
		if (mounting.problem !== undefined) return mounting.problem;
		await using _ = mounting;
		await work(folder);
		return undefined;
	}
}

/** What is found out about a volume, in words. */
class Findings {
	readonly #differences: string[] = [];
	readonly #notes: string[] = [];
	#count = 0;

	/** Takes note of differences, of which only some are told one by one. */
	differs(told: readonly string[], count = told.length): void {
		this.#differences.push(...told);
		this.#count += count;
	}
	note(line: string): void {
		this.#notes.push(line);
	}
	get all(): Pick<VolumeVerdict, "differences" | "differenceCount" | "notes"> {
		return { differences: this.#differences, differenceCount: this.#count, notes: this.#notes };
	}
}

/** Compares both sides' files; null where the real side has no list of them. */
async function compareFiles(real: Looked, other: Looked, found: Findings): Promise<VolumeVerdict["files"]> {
	if (real.list === undefined) {
		found.note(`no files were compared: ${real.problem}`);
		return null;
	}
	if (other.list === undefined) {
		found.differs([`the real view can be mounted, and this one can't: ${other.problem}`]);
		return null;
	}
	const compared = await compareLists(linesOf(real.list), linesOf(other.list), DIFFERENCES_MAX);
	const told = compared.differences.map(({ path, kind }) => `${kind}: ${shown(path)}`);
	found.differs(told, compared.count);
	if (compared.unreadable > 0) found.note(`${compared.unreadable} files or folders can't be read in either view`);
	return { count: compared.files, bytes: compared.bytes };
}

/** Why a volume isn't looked at; null where it is. */
function skippedBecause({ type, kept }: VerifyVolume): string | null {
	if (kept !== null) return `nothing of it would be dropped: ${kept}`;
	return checkers.has(type) ? null : `no checker is known for ${type}`;
}

const exportOf = (side: Side, { id }: VerifyVolume): string => `${side}/${id}`;

/** A volume of an offered disk, in however many pieces it lies there. */
function volumeOf(disk: OverlaidDisk, { areas }: VerifyVolume): OfferedDisk {
	const eachPiece = async (
		at: ByteOffset,
		bytes: Uint8Array,
		work: (at: ByteOffset, bytes: Uint8Array) => Promise<void>,
	): Promise<void> => {
		for (const { diskStart, volumeStart, length } of piecesOf(areas, { start: at, length: byteCount(bytes.length) }))
			await work(diskStart, bytes.subarray(volumeStart - at, volumeStart - at + length));
	};
	return {
		size: byteCount(Math.max(0, ...areas.map(segmentEnd))),
		read: (at, into) => eachPiece(at, into, (place, bytes) => disk.read(place, bytes)),
		write: (at, from) => eachPiece(at, from, (place, bytes) => disk.write(place, bytes)),
	};
}

const linesOf = (path: string): AsyncIterable<string> => createInterface({ input: createReadStream(path) });

/** A path's bytes as text. */
const shown = (latin1: string): string => Buffer.from(latin1, "latin1").toString("utf8");
