// Crash simulation of sweeping and compacting qcow2 images: many seeded histories, and broken variants that must be
// caught. What a part of them leaves is also shown to qemu-img check.
//
//   VMSWEEP_SIM_RUNS=100000 VMSWEEP_SIM_SEED=1 node --test test/sim/qcow2.sim.test.ts

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { checkByQemu } from "../interop/qcow2-images.ts";
import { temporaryFolder } from "../support/folders.ts";
import { requireTool } from "../support/requirements.ts";
import { type BaseKind, makeBase } from "./qcow2-bases.ts";
import { type Base, History, type Mutant, type Tally } from "./qcow2-history.ts";
import { assertReached, withReplay } from "./replay.ts";

const runs = Number(process.env.VMSWEEP_SIM_RUNS ?? 400);
const firstSeed = Number(process.env.VMSWEEP_SIM_SEED ?? 1);
/** Every so many histories, QEMU looks at what is left. */
const SHOWN_TO_QEMU = 40;

const KIB = 1024;
const kinds: readonly BaseKind[] = [
	{ options: "cluster_size=512", cluster: 512, size: 200 * KIB },
	{ options: "cluster_size=512,refcount_bits=8", cluster: 512, size: 100 * KIB, snapshot: true },
	{ options: "cluster_size=1024,compat=0.10", cluster: 1024, size: 300 * KIB },
	{ options: "cluster_size=4096,compression_type=zstd", cluster: 4096, size: 400 * KIB, backing: true },
	{ options: "cluster_size=16384,extended_l2=on", cluster: 16_384, size: 1024 * KIB, snapshot: true },
	{ options: "cluster_size=2048,refcount_bits=1", cluster: 2048, size: 400 * KIB },
];

describe("qcow2 under power cuts", () => {
	const bases: Base[] = [];
	const makeBases = async (t: TestContext): Promise<boolean> => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return false;
		for (let index = bases.length; index < kinds.length; index++) bases.push(await makeBase(kinds[index]!, index));
		return true;
	};

	const runHistory = async (seed: number, mutant: Mutant, tally: Tally): Promise<Uint8Array> => {
		const base = bases[seed % bases.length]!;
		try {
			return await new History(base, seed, mutant, tally).run();
		} catch (error) {
			throw withReplay(error, "qcow2.sim.test.ts", seed, base.name);
		}
	};

	test(`no power cut breaks the promise (${runs} histories from seed ${firstSeed})`, async (t) => {
		if (!(await makeBases(t))) return;
		await using folder = await temporaryFolder();
		const tally: Tally = { cuts: 0, leaks: 0, sweeps: 0, compactions: 0, shortened: 0 };
		for (let seed = firstSeed; seed < firstSeed + runs; seed++) {
			const bytes = await runHistory(seed, "none", tally);
			if (seed % SHOWN_TO_QEMU !== 0) continue;
			const path = folder.file("image");
			await writeFile(path, bytes);
			// The chain's other file is gone; QEMU need not open it to check this one.
			await checkByQemu(path);
		}
		t.diagnostic(JSON.stringify(tally));
		if (runs >= 300) assertReached(tally);
	});

	for (const mutant of ["no flush", "flush too late", "every other flush"] as const)
		test(`the broken variant "${mutant}" is caught`, async (t) => {
			if (!(await makeBases(t))) return;
			const tally: Tally = { cuts: 0, leaks: 0, sweeps: 0, compactions: 0, shortened: 0 };
			for (let seed = 1; seed <= 300; seed++) {
				const caught = await runHistory(seed, mutant, tally).then(
					() => undefined,
					(error: unknown) => error as Error,
				);
				if (caught === undefined) continue;
				t.diagnostic(caught.message.split("\n")[0]!);
				return;
			}
			assert.fail("not caught in 300 histories");
		});
});
