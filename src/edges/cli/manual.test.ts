// The manual against the program: every command has a page and every page a command, every option stands in both,
// and the page of errors says of each code what the code table says.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { Command } from "commander";
import { errorTable } from "../../foundations/errors.ts";
import { buildProgram } from "./program.ts";

const docs = join(import.meta.dirname, "../../../docs");
const pageNames = readdirSync(join(docs, "man")).sort();
const page = (name: string): string => readFileSync(join(docs, "man", name), "utf8");
const section = (text: string, name: string): string =>
	new RegExp(`^## ${name}\\n([\\s\\S]*?)(?=^## |$(?![\\s\\S]))`, "m").exec(text)?.[1] ?? "";
/** What the first column of a section's table holds, without its heading. */
const firstColumn = (text: string): string[] => [...text.matchAll(/^\| `([^`]+)` \|/gm)].map((match) => match[1]!);

const helpOf = (command: Command): string[] =>
	command
		.createHelp()
		.visibleOptions(command)
		.map(({ flags }) => flags);

const program = buildProgram();
const pageOf = (command: Command): string => (command === program ? "vmsweep.1.md" : `vmsweep-${command.name()}.1.md`);
const all = [program, ...program.commands];

test("there is a page for each command and no other", () => {
	assert.deepEqual(all.map(pageOf).sort(), pageNames);
});

test("the overview lists each command with its description", () => {
	const lines = [...section(page("vmsweep.1.md"), "COMMANDS").matchAll(/^\| `(\w+)` \| (.+) \|$/gm)];
	const written = lines.map(([, name, description]) => `${name}: ${description}`);
	const commands = program.commands.map((command) => `${command.name()}: ${command.description()}`);
	assert.deepEqual(written, [...commands, "help: print help for a command"]);
});

for (const command of all)
	describe(pageOf(command), () => {
		const text = page(pageOf(command));

		test("lists the options of --help, and no others", () => {
			assert.deepEqual(firstColumn(section(text, "OPTIONS")).sort(), helpOf(command).sort());
		});

		test("begins with the program's own description", () => {
			const description = command.description();
			const sentence = `${description[0]!.toUpperCase()}${description.slice(1)}${description.endsWith(".") ? "" : "."}`;
			assert.equal(text.split("\n")[2], sentence);
		});

		test("its synopsis names every option and argument, and no others", () => {
			const synopsis = section(text, "SYNOPSIS");
			if (command === program) return;
			const known = new Set([...command.options.map(({ long }) => long), "--help"]);
			for (const [option] of synopsis.matchAll(/--[a-z-]+/g)) assert(known.has(option), `${option} is unknown`);
			if (!synopsis.includes("[OPTIONS]"))
				for (const { long } of command.options) assert(synopsis.includes(long!), `${long} is missing`);
			for (const argument of command.registeredArguments)
				assert.match(synopsis, new RegExp(`\\b${argument.name().toUpperCase()}\\b`));
		});

		test("has all sections", () => {
			for (const name of ["SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT CODES", "SEE ALSO"])
				assert.notEqual(section(text, name).trim(), "", `no ${name}`);
		});

		test("links only to pages that are there", () => {
			for (const [, target] of text.matchAll(/\]\(([^)]+)\)/g))
				assert.doesNotThrow(() => readFileSync(join(docs, "man", target!)), `${target}`);
		});
	});

test("the page of errors has each code once, with the table's kind, exit code and NBD error", () => {
	const text = readFileSync(join(docs, "errors.md"), "utf8");
	const written = [...text.matchAll(/^\| ([A-Z_]+) \| (\w+) \| (\d) \| (\w+) \| (.+) \|$/gm)].map(
		([, code, kind, exit, nbd]) => [code, kind, Number(exit), nbd],
	);
	const inCode = Object.entries(errorTable).map(([code, { kind, exit, nbd }]) => [code, kind, exit, nbd]);
	assert.deepEqual(written, inCode);
	const kinds = [...text.matchAll(/^\| ([a-z]+) \| .+ \|$/gm)]
		.map((match) => match[1]!)
		.filter((kind) => kind !== "kind" && kind !== "code");
	assert.deepEqual(kinds.sort(), [...new Set(Object.values(errorTable).map(({ kind }) => kind))].sort());
});
