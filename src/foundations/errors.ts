// Errors: one class, one table of codes. Match on `code`, never on text or class identity.
//
// A message says what, where and what to do, in one line, in the units the user's other tools show.
// Core throws; the edges translate, once: the command line to an exit code, the NBD server to an errno.

/**
 * What a caller may do about an error.
 * `usage`: say how. `unsupported`: say which feature. `corrupt`: refuse, touch nothing.
 * `refused`: safe to try again after the named cause is gone. `io`: may be retried. `bug`: stop that disk.
 */
export type ErrorKind = "usage" | "unsupported" | "corrupt" | "refused" | "io" | "bug";

interface ErrorRow {
	readonly kind: ErrorKind;
	/** Exit code of the command line: 1 failed, 2 usage, 3 refused for safety. */
	readonly exit: 1 | 2 | 3;
	/** Errno name that an NBD client sees. */
	readonly nbd: "EIO" | "EINVAL" | "ENOSPC" | "EPERM" | "ENOMEM" | "ENOTSUP" | "EOVERFLOW" | "ESHUTDOWN";
}

const row = (kind: ErrorKind, exit: ErrorRow["exit"], nbd: ErrorRow["nbd"] = "EIO"): ErrorRow => ({ kind, exit, nbd });

/** Every code that vmsweep can end with. `docs/errors.md` explains each; a test compares the two. */
export const errorTable = {
	USAGE: row("usage", 2, "EINVAL"),
	FILE_NOT_FOUND: row("usage", 2),
	FILE_EXISTS: row("refused", 3),
	FILE_WRONG_TYPE: row("usage", 2),
	IO: row("io", 1),
	NO_SPACE: row("io", 1, "ENOSPC"),
	IMAGE_LOCKED: row("refused", 3),
	IMAGE_UNSUPPORTED: row("unsupported", 3),
	IMAGE_DAMAGED: row("corrupt", 3),
	IMAGE_HAS_OVERLAY: row("refused", 3),
	DISK_LOCKED: row("refused", 3),
	ADDRESS_IN_USE: row("refused", 3),
	DISK_NOT_SERVED: row("refused", 3),
	DISK_WRONG_VERSION: row("unsupported", 3),
	DISK_DAMAGED: row("corrupt", 3),
	DISK_IMAGES_MIXED: row("refused", 3),
	DISK_IMAGE_CHANGED: row("refused", 3),
	DISK_STOPPED: row("io", 1, "ESHUTDOWN"),
	LOG_FULL: row("io", 1, "ENOSPC"),
	LOG_DAMAGED: row("corrupt", 3),
	LOG_POISONED: row("io", 1),
	OUT_OF_RANGE: row("usage", 2, "EINVAL"),
	READ_BUDGET: row("corrupt", 3),
	NBD_PROTOCOL: row("io", 1, "EINVAL"),
	VOLUME_DAMAGED: row("corrupt", 3),
	VOLUME_UNSUPPORTED: row("unsupported", 3),
	VOLUME_DIRTY: row("refused", 3),
	NOTHING_TO_SWEEP: row("refused", 3),
	TOOL_MISSING: row("refused", 3),
	INTERRUPTED: row("refused", 1),
	BUG: row("bug", 1),
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errorTable;

/** The only error that vmsweep's own code throws on purpose. */
export class VmsweepError extends Error {
	readonly code: ErrorCode;
	constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
		super(message, options);
		this.name = "VmsweepError";
		this.code = code;
	}
	get kind(): ErrorKind {
		return errorTable[this.code].kind;
	}
	get exit(): number {
		return errorTable[this.code].exit;
	}
}

export const isVmsweepError = (error: unknown, code?: ErrorCode): error is VmsweepError =>
	error instanceof VmsweepError && (code === undefined || error.code === code);

/** States a fact that must hold; on in production, since a wrong one may cost a guest's data. */
export function assert(fact: boolean, what: string): asserts fact {
	if (!fact) throw new VmsweepError("BUG", `internal error: ${what}. Please report it.`);
}
