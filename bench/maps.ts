// Maps of very large volumes, against the programs that read the same free space.
//
// The volumes are sparse files, with their metadata and some thousand small files in them, in the page cache. Only
// what a mapper reads matters for its time, so the volumes hold no large data.
//
//   1 TiB ext4       as mke2fs makes it: most groups are marked uninitialised, their bitmaps need not be read
//   all bitmaps      without that feature: the bitmap of every group is there and must be read
//   8 TiB XFS        1 TiB btrfs

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { LoopPart, Mounted } from "../test/support/loop.ts";
import { runOk } from "../test/support/processes.ts";
import { seededRandom } from "../test/support/randomness.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { type Contestant, type ContestResult, contest, contestTable } from "./contest.ts";
import type { OfflineSettings } from "./offline-settings.ts";
import { script } from "./timed.ts";

const TIB = 2 ** 40;
const FILES = 3000;

interface Volume {
	readonly name: string;
	readonly sizeBytes: number;
	readonly mkfs: readonly [string, ...string[]];
	/** Programs that read the same, by name; `$1` is the image, `$2` a file that may be written. */
	readonly peers: Readonly<Record<string, string>>;
}

// Few inodes: their tables are no part of the map, and would only cost the benchmark's host space.
const ext4 = ["mke2fs", "-q", "-F", "-t", "ext4", "-T", "largefile4"] as const;
const ext4Peers = {
	dumpe2fs: 'dumpe2fs "$1"',
	"partclone -D": 'partclone.ext4 -D -F -s "$1" -O "$2"',
	"e2image -Q": 'e2image -Q "$1" "$2"',
};
const volumes: readonly Volume[] = [
	{ name: "1 TiB ext4", sizeBytes: TIB, mkfs: ext4, peers: ext4Peers },
	{
		name: "1 TiB ext4, all bitmaps",
		sizeBytes: TIB,
		mkfs: [...ext4, "-O", "^metadata_csum,^uninit_bg"],
		peers: ext4Peers,
	},
	{
		name: "8 TiB XFS",
		sizeBytes: 8 * TIB,
		mkfs: ["mkfs.xfs", "-q", "-f"],
		peers: {
			"xfs_db freesp": 'xfs_db -r -c "freesp -s" "$1"',
			"partclone -D": 'partclone.xfs -D -F -s "$1" -O "$2"',
		},
	},
	{
		name: "1 TiB btrfs",
		sizeBytes: TIB,
		mkfs: ["mkfs.btrfs", "-q", "-f"],
		peers: {
			"btrfs dump-tree": 'btrfs inspect-internal dump-tree -t extent "$1"',
			"partclone -D": 'partclone.btrfs -D -F -s "$1" -O "$2"',
		},
	},
];

/** Makes each volume, lets all programs read it, prints a table, and removes it. */
export async function measureMaps(
	scratch: ScratchFolder,
	{ rounds, vmsweep }: OfflineSettings,
): Promise<ContestResult[]> {
	const all: ContestResult[] = [];
	const image = scratch.file("volume.raw");
	for (const { name, sizeBytes, mkfs, peers } of volumes) {
		await makeVolume(image, sizeBytes, mkfs);
		const contestants: Contestant[] = [
			{ name: "vmsweep map", program: { command: [vmsweep, "map", image] } },
			{ name: "vmsweep map --extents", program: { command: [vmsweep, "map", "--extents", image] } },
			...Object.entries(peers).map(([peer, text]) => {
				const target = scratch.file("mapped");
				return { name: peer, program: script(`rm -f "$2"; ${text}`, image, target) };
			}),
		];
		const results = await contest(scratch, name, contestants, rounds);
		console.log(`\nMap of ${name}\n\n${contestTable(results, null)}`);
		console.log(`\n${await describeRead(vmsweep, image)}`);
		all.push(...results);
	}
	const starts = await contest(scratch, "start-up", [node, ownStart(vmsweep)], Math.max(rounds, 5));
	console.log(`\nStart-up alone\n\n${contestTable(starts, null)}`);
	await runOk("rm", ["-f", image]);
	return all;
}

const ownStart = (vmsweep: string): Contestant => ({
	name: "vmsweep version",
	program: { command: [vmsweep, "version"] },
});
const node: Contestant = { name: "node", program: { command: [process.execPath, "-e", "0"] } };

async function makeVolume(path: string, sizeBytes: number, mkfs: Volume["mkfs"]): Promise<void> {
	await runOk("rm", ["-f", path]);
	await runOk("truncate", ["-s", String(sizeBytes), path]);
	const [program, ...options] = mkfs;
	await runOk(program, [...options, path], { timeoutSeconds: 600 });
	await using loop = new LoopPart((await runOk("losetup", ["-f", "--show", path])).trim());
	await using mounted = await Mounted.mount(loop.path, `${path}.mounted`);
	const random = seededRandom(3);
	for (let file = 0; file < FILES; file++) {
		const folder = join(mounted.path, `folder-${file % 50}`);
		if (file < 50) await mkdir(folder);
		await writeFile(join(folder, `file-${file}`), random.bytes(random.between(1, 20_000)));
	}
	await mounted.unmount();
}

/** What `map` itself says that it read: metadata, without loading the program. */
async function describeRead(vmsweep: string, image: string): Promise<string> {
	const text = await runOk(vmsweep, ["map", image]);
	return (
		text
			.split("\n")
			.find((line) => line.endsWith("of metadata"))
			?.trim() ?? ""
	);
}
