#!/usr/bin/env node
// vmsweep: the command line's entry. Everything is in program.ts, so that tests can build it without running it.
//
// Node keeps the compiled modules in the user's cache folder, which halves the time until a command begins; bin/vmsweep
// has told it so already. Not in Node's default place below /tmp: code that root runs must not come from where others
// may write.

import { enableCompileCache } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";

enableCompileCache(join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "vmsweep", "compiled"));
const { runCommandLine } = await import("./program.ts");

process.exitCode = await runCommandLine(process.argv.slice(2));
