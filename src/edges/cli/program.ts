// Program: all commands under one name, and the one place where errors become a line and an exit code.

import { Command, CommanderError } from "commander";
import { allCommands } from "./commands.ts";
import { describeUsageError, reportFailure } from "./failure.ts";
import { ignoreClosedOutput } from "./output.ts";
import { version } from "./version.ts";

const EXIT_CODES = `
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused for safety (in use, damaged, not supported).
Sizes are binary: 512M, 40G, 1T. Manual: vmsweep(1).`;

/** All commands, as commander knows them. */
export function buildProgram(): Command {
	const program = new Command("vmsweep")
		.description("A VM disk that cleans itself: served from two images, cleaned while the VM runs.")
		.version(`vmsweep ${version()}`, "-V, --version", "print the version")
		.helpOption("-h, --help", "print help")
		.helpCommand("help [command]", "print help for a command")
		.addHelpText("after", EXIT_CODES);
	const commands = allCommands();
	for (const command of commands) program.addCommand(command.helpOption("-h, --help", "print help"));
	// Errors are thrown, and told once, by runCommandLine.
	for (const command of [program, ...commands]) command.exitOverride().configureOutput({ outputError: () => {} });
	return program;
}

/** Runs one command line (without the program's name) and resolves to its exit code. Never rejects. */
export async function runCommandLine(words: readonly string[]): Promise<number> {
	ignoreClosedOutput();
	try {
		const program = buildProgram();
		if (words.length === 0) {
			process.stderr.write(program.helpInformation());
			return 2;
		}
		await program.parseAsync(words, { from: "user" });
		return Number(process.exitCode ?? 0); // a command that goes on after an error notes it there
	} catch (error) {
		if (!(error instanceof CommanderError)) return reportFailure(error);
		if (error.exitCode === 0) return 0; // --help, --version
		process.stderr.write(`vmsweep: ${describeUsageError(error, words)}\n`);
		return 2;
	}
}
