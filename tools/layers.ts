// Layers: which file may import which. ARCHITECTURE.md draws the picture; this is the rule itself.
//
//   outside (test, tools, bench) → edges → services → adapters → core → foundations
//
// An import may stay in its area or go to a lower layer. Areas of core are siblings that don't know each other.
// Node's modules and npm packages are allowed per area; core and foundations have none of Node's, so that they run
// under the simulator, and only packages that are pure themselves. Test files beside the source may also use Node, any package and test/support.
//
// A file in no area is an error, and so is a run that found no files: a rule that checks nothing must not pass.

import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";

interface Area {
	/** Path prefix of its files; the first area that fits counts. */
	readonly under: string;
	/** Do folders below belong to it too? */
	readonly deep: boolean;
	readonly layer: number;
	/** May its files import other areas of the same layer? */
	readonly knowsSiblings: boolean;
	/** Are node: modules allowed? */
	readonly node: boolean;
	/** npm packages allowed; "any" for code that is not part of the product. */
	readonly packages: readonly string[] | "any";
}

const area = (under: string, layer: number, rest: Partial<Area> = {}): Area => ({
	under,
	layer,
	deep: true,
	knowsSiblings: true,
	node: true,
	packages: [],
	...rest,
});
const outside = { packages: "any" } as const;
const pure = { node: false, knowsSiblings: false } as const;

const areas: readonly Area[] = [
	area("test/", 6, outside),
	area("tools/", 6, outside),
	area("bench/", 6, outside),
	area("src/edges/cli/", 5, { packages: ["commander", "log-update", "pino"] }),
	area("src/services/", 4, { packages: ["valibot"] }),
	area("src/adapters/os/", 3, { packages: ["koffi"] }),
	area("src/adapters/images/", 3),
	area("src/adapters/nbd/", 3),
	area("src/adapters/qemu/", 3),
	area("src/adapters/plane/", 3, { packages: ["@node-rs/crc32"] }),
	area("src/core/log/", 2, pure),
	area("src/core/nbd/", 2, pure),
	area("src/core/volumes/", 2, pure),
	area("src/core/filesystems/btrfs/", 2, { ...pure, packages: ["@noble/hashes"] }),
	...["ext4", "xfs", "ntfs", "fat", "exfat", "f2fs", "swap"].map((name) =>
		area(`src/core/filesystems/${name}/`, 2, pure),
	),
	...["qcow2", "vmdk", "vhd", "vhdx", "vdi"].map((name) => area(`src/core/images/${name}/`, 2, pure)),
	area("src/core/cleaner/", 2, pure),
	area("src/core/filesystems/", 1, { ...pure, deep: false }), // what all file systems share
	area("src/core/images/", 1, { ...pure, deep: false }), // what all image formats share
	area("src/foundations/", 0, pure),
];

const roots = ["src", "test", "tools", "bench"];
const isTest = (path: string): boolean => path.endsWith(".test.ts");
const areaOf = (path: string): Area | undefined =>
	areas.find(({ under, deep }) => path.startsWith(under) && (deep || !path.slice(under.length).includes("/")));

// Imports start a line, which keeps comments and strings out; worker files are named by a URL, koffi by require.
const importPatterns = [
	/^(?:import|export)\s(?:[^"';]*?\sfrom\s+)?"([^"]+)"/gm,
	/\bimport\("([^"]+)"\)/g,
	/\bnew URL\("(\.[^"]+\.ts)",\s*import\.meta\.url\)/g,
	/\bcreateRequire\(import\.meta\.url\)\("([^"]+)"\)/g,
];

/** What a source file imports, as written there. */
export const importsOf = (source: string): string[] =>
	importPatterns.flatMap((pattern) => [...source.matchAll(pattern)].map((match) => match[1]!));

/** Checks all imports of `sources` (path from the root → text). Returns one line per finding, in the files' order. */
export function checkLayers(sources: ReadonlyMap<string, string>): string[] {
	if (sources.size === 0) return ["no source files found: the layer check has nothing to check"];
	const findings: string[] = [];
	const graph = new Map<string, string[]>();
	for (const [path, source] of sources) {
		const from = areaOf(path);
		if (from === undefined) {
			findings.push(`${path}: lies in no area of tools/layers.ts; move it, or give its folder a rule`);
			continue;
		}
		const targets: string[] = [];
		for (const name of importsOf(source)) {
			const target = name.startsWith(".") ? posix.join(posix.dirname(path), name) : undefined;
			if (target !== undefined && sources.has(target)) targets.push(target);
			const problem = target === undefined ? outsideImport(path, from, name) : innerImport(path, from, target, sources);
			if (problem !== undefined) findings.push(`${path}: ${problem}`);
		}
		graph.set(path, targets);
	}
	return [...findings, ...cycles(graph)];
}

function outsideImport(path: string, from: Area, name: string): string | undefined {
	if (isTest(path) || from.packages === "any") return undefined;
	if (name.startsWith("node:")) return from.node ? undefined : `imports ${name}, but ${from.under} is pure`;
	const packageName = name.split("/", name.startsWith("@") ? 2 : 1).join("/");
	return from.packages.includes(packageName) ? undefined : `imports package ${name}, which ${from.under} may not use`;
}

function innerImport(
	path: string,
	from: Area,
	target: string,
	sources: ReadonlyMap<string, string>,
): string | undefined {
	if (target.endsWith(".json")) return undefined;
	if (!sources.has(target)) return `imports ${target}, which is not there`;
	if (isTest(target)) return `imports the test file ${target}`;
	if (isTest(path) && target.startsWith("test/support/")) return undefined;
	const to = areaOf(target);
	if (to === undefined || to === from || to.layer < from.layer) return undefined; // its own finding reports no area
	if (to.layer === from.layer)
		return from.knowsSiblings ? undefined : `imports its sibling ${target}; what both need moves to foundations`;
	return `imports ${target}, which is a higher layer`;
}

/** One line per import cycle, found depth first; each file is walked once. */
function cycles(graph: ReadonlyMap<string, readonly string[]>): string[] {
	const found: string[] = [];
	const done = new Set<string>();
	const trail: string[] = [];
	const walk = (path: string): void => {
		const start = trail.indexOf(path);
		if (start >= 0) found.push(`import cycle: ${[...trail.slice(start), path].join(" → ")}`);
		if (start >= 0 || done.has(path)) return;
		trail.push(path);
		for (const target of graph.get(path) ?? []) walk(target);
		trail.pop();
		done.add(path);
	};
	for (const path of graph.keys()) walk(path);
	return found;
}

/** All TypeScript sources of the checkout at `root`, by their path from it. */
export function readSources(root: string): Map<string, string> {
	const sources = new Map<string, string>();
	for (const folder of roots) {
		for (const entry of readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).sort()) {
			if (!entry.endsWith(".ts") || entry.endsWith(".d.ts")) continue;
			const path = posix.join(folder, entry);
			sources.set(path, readFileSync(join(root, path), "utf8"));
		}
	}
	return sources;
}
