// Failure: turns whatever was thrown into one line on standard error and an exit code.

import type { CommanderError } from "commander";
import { isVmsweepError } from "../../foundations/errors.ts";
import { printable } from "./output.ts";

/** Says what went wrong, in one line; VMSWEEP_DEBUG=1 adds where in the code. Returns the exit code. */
export function reportFailure(error: unknown): number {
	process.stderr.write(`vmsweep: ${describeError(error)}\n`);
	if (process.env.VMSWEEP_DEBUG === "1" && error instanceof Error) process.stderr.write(`${error.stack}\n`);
	return exitCodeOf(error);
}

export const exitCodeOf = (error: unknown): number => (isVmsweepError(error) ? error.exit : 1);

/** One line without control characters, whatever a guest or a file name put into the message. */
export function describeError(error: unknown): string {
	if (isVmsweepError(error)) return oneLine(error.message);
	const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
	return `unexpected error: ${oneLine(text)}. Run again with VMSWEEP_DEBUG=1 and report what it prints.`;
}

/** What is wrong with a command line, and where to look. */
export function describeUsageError(error: CommanderError, words: readonly string[]): string {
	const text = oneLine(error.message)
		.replace(/^error: /, "")
		.replace(/\.$/, "");
	const command = words.find((word) => !word.startsWith("-"));
	const isUnknown = error.code === "commander.unknownCommand" || command === undefined;
	return `${text}. See: vmsweep help${isUnknown ? "" : ` ${printable(command)}`}`;
}

const oneLine = (text: string): string => printable(text.trim().replaceAll(/\s*\n\s*/g, " "));
