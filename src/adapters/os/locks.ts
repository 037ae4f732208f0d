// Locks: who may have an image open, in a way that QEMU understands, and one writer per disk.
//
// QEMU marks an open image by byte-range locks on the file itself ("image locking" in its documentation). Bit by bit
// of a small set of permissions:
//
//   byte 100 + bit   held (shared) by everyone who USES the permission
//   byte 200 + bit   held (shared) by everyone who does NOT let others use it
//
// An opener takes its own bytes first, then looks whether anybody else holds an opposite one: 200 + bit for what it
// uses, 100 + bit for what it won't share. Taking first and looking after makes races end in two refusals at worst.
//
// The locks are "open file description" locks: they belong to the descriptor, not to the process, are shared by its
// duplicates, and vanish with the last of them, however the process ends. So there is nothing to unlock here.

import { readdir, readFile, readlink, realpath } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { EAGAIN, errnoName, fcntl, pin } from "./syscalls.ts";

/** `write`: nobody else may write or resize. `read`: nobody may write or resize while we read. */
export type ImageUse = "read" | "write";

/** QEMU's permissions (BLK_PERM_…), as bit numbers. */
const permission = { CONSISTENT_READ: 0, WRITE: 1, WRITE_UNCHANGED: 2, RESIZE: 3 } as const;
const permissionNames = ["read", "write", "write unchanged", "resize"];
const USED_BASE = 100;
const NOT_SHARED_BASE = 200;

/** Readers stay welcome beside a writer only where they ask for an inconsistent view (`qemu-img info -U`). */
const uses: Record<ImageUse, { readonly used: readonly number[]; readonly notShared: readonly number[] }> = {
	write: {
		used: [permission.CONSISTENT_READ, permission.WRITE],
		notShared: [permission.WRITE, permission.WRITE_UNCHANGED, permission.RESIZE],
	},
	read: {
		used: [permission.CONSISTENT_READ],
		notShared: [permission.WRITE, permission.RESIZE],
	},
};

/**
 * Takes QEMU's locks on an open image for as long as `fd` (or a duplicate) is open. `path` is for messages.
 * Throws IMAGE_LOCKED where somebody uses the image in a way that doesn't go together.
 */
export async function lockImage(fd: number, path: string, use: ImageUse): Promise<void> {
	const conflict = await settled(path, () => lockImageNow(fd, use));
	if (conflict !== undefined) throw await refusal("IMAGE_LOCKED", path, use, conflict);
}

/** What stands against a lock. */
interface Conflict {
	/** A negated errno. */
	readonly result: number;
	readonly permissionName?: string | undefined;
}

function lockImageNow(fd: number, use: ImageUse): Conflict | undefined {
	const { used, notShared } = uses[use];
	for (const byte of [...used.map((bit) => USED_BASE + bit), ...notShared.map((bit) => NOT_SHARED_BASE + bit)]) {
		const result = setLock(fd, F_RDLCK, byte, 1);
		// A shared lock only fails against an exclusive one, which vmsweep sets on its first images.
		if (result < 0) return { result };
	}
	for (const bit of used)
		if (isLocked(fd, NOT_SHARED_BASE + bit, 1)) return { result: -EAGAIN, permissionName: permissionNames[bit] };
	for (const bit of notShared)
		if (isLocked(fd, USED_BASE + bit, 1)) return { result: -EAGAIN, permissionName: permissionNames[bit] };
	return undefined;
}

/** Tries, and the time between them in milliseconds, while a lock has no holder any more. */
const TRIES = 60;
const RETRY_MS = 50;

/**
 * A process that was killed is gone before what it had in io_uring is: its locks go a moment later. So a lock that no process
 * holds is waited for. Returns what stands against it still.
 */
async function settled(path: string, lock: () => Conflict | undefined): Promise<Conflict | undefined> {
	for (let tried = 1; ; tried++) {
		const conflict = lock();
		if (conflict?.result !== -EAGAIN || tried === TRIES || (await openersOf(path)).length > 0) return conflict;
		await delay(RETRY_MS);
	}
}

/**
 * Makes the holder of `fd`, the first image, the disk's only server. QEMU, too, is refused on that file.
 * Throws DISK_LOCKED where another process has it.
 */
export async function lockDisk(fd: number, path: string): Promise<void> {
	const conflict = await settled(path, () => {
		const result = setLock(fd, F_WRLCK, 0, TO_THE_END);
		return result < 0 ? { result } : undefined;
	});
	if (conflict !== undefined) throw await refusal("DISK_LOCKED", path, "write", conflict);
}

/** True where another opener holds the disk's first image: somebody serves the disk. Takes no lock. */
export const isDiskLocked = (fd: number): boolean => isLocked(fd, 0, TO_THE_END);

// struct flock of 64-bit Linux: type, whence (16 bits each), start, length (64 bits), pid (32 bits, 0 for these locks).
const FLOCK_BYTES = 32;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
/** A length of 0 means "however long the file gets". */
const TO_THE_END = 0;

function flock(type: number, start: number, length: number): { view: DataView; address: number } {
	const { bytes, address } = pin(FLOCK_BYTES);
	const view = new DataView(bytes.buffer, bytes.byteOffset, FLOCK_BYTES);
	view.setInt16(0, type, true);
	view.setBigInt64(8, BigInt(start), true);
	view.setBigInt64(16, BigInt(length), true);
	return { view, address };
}

function setLock(fd: number, type: number, start: number, length: number): number {
	const { address } = flock(type, start, length);
	return fcntl(fd, F_OFD_SETLK, address);
}

/** Would an exclusive lock meet somebody else's? A descriptor's own locks never count. */
function isLocked(fd: number, start: number, length: number): boolean {
	const { view, address } = flock(F_WRLCK, start, length);
	const result = fcntl(fd, F_OFD_GETLK, address);
	// Where the question fails, the answer that keeps data safe is yes.
	return result < 0 || view.getInt16(0, true) !== F_UNLCK;
}

const EACCES = 13;

async function refusal(
	code: "IMAGE_LOCKED" | "DISK_LOCKED",
	path: string,
	use: ImageUse,
	{ result, permissionName }: Conflict,
): Promise<VmsweepError> {
	if (result !== -EAGAIN && result !== -EACCES) {
		const why = `the host's file system can't lock it (${errnoName(-result)})`;
		return new VmsweepError(code, `${path}: ${why}. Put it on a file system with locks, such as ext4 or XFS.`);
	}
	const holders = await openersOf(path);
	const who = holders.length > 0 ? holders.join(", ") : "another process";
	const what = permissionName === undefined ? "" : ` (its "${permissionName}" lock is taken)`;
	const purpose = use === "write" ? "written" : "read";
	return new VmsweepError(
		code,
		code === "DISK_LOCKED"
			? `${path}: the disk is served by ${who}. Stop that first.`
			: `${path} is in use by ${who} and can't be ${purpose} now${what}. Shut down the VM or tool that has it open.`,
	);
}

/** "qemu-nbd (process 4711)" for each other process that has the file open, as far as we may see. For messages only. */
async function openersOf(path: string): Promise<string[]> {
	const holders: string[] = [];
	const target = await realpath(path).catch(() => path);
	const processes = (await readdir("/proc").catch(() => [])).filter((name) => /^\d+$/.test(name));
	for (const process_ of processes) {
		if (Number(process_) === process.pid) continue;
		for (const fd of await readdir(`/proc/${process_}/fd`).catch(() => [])) {
			const opened = await readlink(`/proc/${process_}/fd/${fd}`).catch(() => undefined);
			if (opened !== target && opened !== path) continue;
			const name = await readFile(`/proc/${process_}/comm`, "utf8").catch(() => "a process\n");
			holders.push(`${name.trim()} (process ${process_})`);
			break;
		}
	}
	return holders;
}
