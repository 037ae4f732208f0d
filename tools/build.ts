// `make build`: the package for publishing, in dist/.
//
//   dist/package.json     from the checkout's: without what only a checkout needs, with the command
//   dist/lib/**           src as JavaScript
//   dist/README.md, LICENSE
//
// `npm pack ./dist` makes the archive. Users bring their own Node (engines); the checkout's comes from npm.

import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const dist = join(root, "dist");
const command = "lib/edges/cli/main.js";

/** Worker files are named by URL, which the compiler leaves as it is, unlike import paths. */
const withJavaScriptUrls = (source: string): string =>
	source.replaceAll(/(\bnew URL\("\.[^"]+)\.ts(",\s*import\.meta\.url\))/g, "$1.js$2");

rmSync(dist, { recursive: true, force: true });
execFileSync("tsc", ["-p", "tsconfig.build.json"], { cwd: root, stdio: "inherit" });

const files = readdirSync(join(dist, "lib"), { recursive: true, encoding: "utf8" }).map((name) =>
	join(dist, "lib", name),
);
for (const file of files.filter((name) => name.endsWith(".js")))
	writeFileSync(file, withJavaScriptUrls(readFileSync(file, "utf8")));

const main = join(dist, command);
const shebang = "#!/usr/bin/env node\n";
const source = readFileSync(main, "utf8");
writeFileSync(main, source.startsWith("#!") ? source : shebang + source);
chmodSync(main, 0o755);

const { name, version, description, license, type, engines, os, dependencies } = JSON.parse(
	readFileSync(join(root, "package.json"), "utf8"),
);
const published = { name, version, description, license, type, engines, os, dependencies };
const entry = { bin: { vmsweep: command }, exports: { "./package.json": "./package.json" }, files: ["lib"] };
writeFileSync(join(dist, "package.json"), `${JSON.stringify({ ...published, ...entry }, null, "\t")}\n`);
for (const file of ["README.md", "LICENSE"].filter((file) => existsSync(join(root, file))))
	copyFileSync(join(root, file), join(dist, file));
console.log(
	`built dist/ (${files.filter((name) => name.endsWith(".js")).length} modules); npm pack ./dist makes the archive`,
);
