// Program: all commands under one name, and the one place where errors become a line and an exit code.
//
// A command file declares its arguments and options, asks a service, and prints; it decides nothing. The manual's
// pages (docs/man) are compared with these declarations by a test, both ways.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Command, CommanderError } from "commander";
import { cleanCommand } from "./clean.ts";
import { commitCommand } from "./commit.ts";
import { createCommand } from "./create.ts";
import { describeUsageError, reportFailure } from "./failure.ts";
import { mapCommand } from "./map.ts";
import { ignoreClosedOutput, print } from "./output.ts";
import { serveCommand } from "./serve.ts";
import { statusCommand } from "./status.ts";
import { sweepCommand } from "./sweep.ts";

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
	const commands = [
		mapCommand(),
		sweepCommand(),
		createCommand(),
		serveCommand(),
		statusCommand(),
		cleanCommand(),
		commitCommand(),
		versionCommand(),
	];
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

const versionCommand = (): Command =>
	new Command("version")
		.description("print the version")
		.option("--json", "print JSON")
		.action(async ({ json = false }: { json?: boolean }) => {
			await print(
				json ? `${JSON.stringify({ version: version(), node: process.versions.node })}\n` : `vmsweep ${version()}\n`,
			);
		});

/** From the package's own description, which lies at the same distance in a checkout and when built. */
function version(): string {
	const path = join(import.meta.dirname, "../../../package.json");
	return (JSON.parse(readFileSync(path, "utf8")) as { readonly version: string }).version;
}
