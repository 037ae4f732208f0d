// Sweeps of aged images, against the other ways to give an image's free space back to its host in place.
//
// Every run begins with a copy of the same image: as large on the host, with the same junk in its free space.

import { stat } from "node:fs/promises";
import { runOk } from "../test/support/processes.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { type AgedType, agedTypes, makeAgedImage } from "./aged-image.ts";
import { type Contestant, type ContestResult, contest, contestTable } from "./contest.ts";
import type { OfflineSettings } from "./offline-settings.ts";
import { type Program, script } from "./timed.ts";

/** Mount, trim, unmount: what the guest's own kernel would do. */
const trim = (type: AgedType, image: string): Program =>
	script(
		`loop=$(losetup -f --show "$1"); mkdir -p "$1.mounted"; mount ${agedTypes[type].mount.join(" ")} "$loop" "$1.mounted"; ` +
			'fstrim "$1.mounted"; umount "$1.mounted"; losetup -d "$loop"',
		image,
	);

/**
 * Its appliance is a guest of its own; without working hardware virtualisation it runs emulated. It takes part where it
 * is installed (Debian: guestfs-tools, and a kernel in /boot).
 */
const sparsify = (image: string): Program =>
	script(
		'command -v virt-sparsify >/dev/null || { echo "not installed" >&2; exit 1; }; ' +
			'export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg; virt-sparsify --in-place "$1"',
		image,
	);

const ext4Peers = (image: string): Contestant[] => [
	{ name: "e2fsck -E discard", program: script('e2fsck -fy -E discard "$1" || [ $? = 1 ]', image) },
	{ name: "zerofree + fallocate -d", program: script('zerofree "$1"; fallocate -d "$1"', image), onlyOnce: true },
];

/** One table per file system: time, and the image's space on the host afterwards. */
export async function measureSweeps(scratch: ScratchFolder, settings: OfflineSettings): Promise<ContestResult[]> {
	const all: ContestResult[] = [];
	const [master, image] = [scratch.file("aged.raw"), scratch.file("image.raw")];
	for (const type of settings.types) {
		await makeAgedImage(master, type, settings);
		const prepare = async (): Promise<void> => {
			await runOk("cp", ["--sparse=always", master, image]);
			await runOk("sync", ["--file-system", image]);
		};
		const outcome = async (): Promise<number> => (await stat(image)).blocks * 512;
		const contestants: Contestant[] = [
			{ name: "vmsweep sweep", program: { command: [settings.vmsweep, "sweep", image] } },
			{ name: "loop mount + fstrim", program: trim(type, image) },
			...(type === "ext4" ? ext4Peers(image) : []),
			{ name: "virt-sparsify --in-place", program: sparsify(image), onlyOnce: true },
		];
		const results = await contest(
			scratch,
			`sweep ${type}`,
			contestants.map((each) => ({ ...each, prepare, outcome })),
			settings.rounds,
		);
		const before = (await stat(master)).blocks * 512;
		console.log(
			`\nSweep of an aged ${type} image, ${before} bytes on the host\n\n${contestTable(results, "afterwards")}`,
		);
		all.push(...results);
	}
	await runOk("rm", ["-f", master, image]);
	return all;
}
