// Guests that work for long on disks that are cleaned without rest, of every file system, and many power cuts.
// VMSWEEP_SOAK_SEEDS says how many seeds each gets.

import { describe, test } from "node:test";
import { btrfs, ext4, ntfs, vfat, xfs } from "../support/file-system-kinds.ts";
import { GUEST_TOOLS, guestCrashes, guestWorks } from "../support/loop-guests.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const seeds = Number(process.env.VMSWEEP_SOAK_SEEDS ?? 20);
const random = seededRandom(testSeed());

for (const kind of [ext4, xfs, btrfs, ntfs, vfat])
	describe(`${kind.name} in a guest, long`, () => {
		for (let run = 0; run < seeds; run++) {
			const seed = random.below(1_000_000);
			test(`work, fill, empty, seed ${seed}`, async (t) => {
				if (!requireTool(t, ...GUEST_TOOLS, ...kind.tools)) return;
				// A first image so small that cleaning never rests.
				const serve = ["--log-limit", "96M", "--btrfs-mounted", "drop"];
				const load = ["--fill", ...(kind === btrfs ? ["--snapshots"] : [])];
				await guestWorks(t, { kind, seed, rounds: 4, secondsPerRound: 20, load, serve });
			});
			if (kind.fragile === true) continue;
			test(`power cuts and crashes of the server, seed ${seed}`, async (t) => {
				if (!requireTool(t, ...GUEST_TOOLS, ...kind.tools)) return;
				await guestCrashes(t, 4, kind, seed);
			});
		}
	});
