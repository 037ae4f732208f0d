#!/usr/bin/env node
// vmsweep: the command line's entry. Everything is in program.ts, so that tests can build it without running it.

import { runCommandLine } from "./program.ts";

process.exitCode = await runCommandLine(process.argv.slice(2));
