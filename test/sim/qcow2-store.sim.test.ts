// Crash simulation of a qcow2 image as a second image: many seeded histories, and broken variants that must be caught.
// What a part of the power cuts leaves is also shown to qemu-img check.
//
//   VMSWEEP_SIM_RUNS=100000 VMSWEEP_SIM_SEED=1 node --test test/sim/qcow2-store.sim.test.ts

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { checkByQemu } from "../interop/qcow2-images.ts";
import { temporaryFolder } from "../support/folders.ts";
import { requireTool } from "../support/requirements.ts";
import { type BaseKind, makeBase } from "./qcow2-bases.ts";
import type { Base } from "./qcow2-history.ts";
import { StoreHistory, type StoreMutant, type StoreTally } from "./qcow2-store-history.ts";
import { assertReached, withReplay } from "./replay.ts";

const runs = Number(process.env.VMSWEEP_SIM_RUNS ?? 400);
const firstSeed = Number(process.env.VMSWEEP_SIM_SEED ?? 1);
/** Every so many histories, QEMU looks at what the power cuts left. */
const SHOWN_TO_QEMU = 25;

const KIB = 1024;
const kinds: readonly BaseKind[] = [
	{ options: "cluster_size=512", cluster: 512, size: 200 * KIB },
	{ options: "cluster_size=512,refcount_bits=64", cluster: 512, size: 3000 * KIB, filled: 1800 * KIB },
	{ options: "cluster_size=512,refcount_bits=8", cluster: 512, size: 100 * KIB, snapshot: true },
	{ options: "cluster_size=1024,compat=0.10", cluster: 1024, size: 300 * KIB },
	{ options: "cluster_size=8192,compat=0.10", cluster: 8192, size: 300 * KIB, backing: true },
	{ options: "cluster_size=4096,compression_type=zstd", cluster: 4096, size: 400 * KIB, backing: true },
	{ options: "cluster_size=16384,extended_l2=on", cluster: 16_384, size: 1024 * KIB, backing: true },
	{ options: "cluster_size=16384,extended_l2=on", cluster: 16_384, size: 1024 * KIB, snapshot: true },
	{ options: "cluster_size=2048,refcount_bits=1", cluster: 2048, size: 400 * KIB },
	{ options: "cluster_size=65536", cluster: 65_536, size: 1000 * KIB, snapshot: true, backing: true },
];
const noTally = (): StoreTally => ({
	cuts: 0,
	leaks: 0,
	noSpace: 0,
	writes: 0,
	punches: 0,
	flushes: 0,
	grown: 0,
	shrunk: 0,
	movedRefcountTables: 0,
	looks: 0,
});

describe("a qcow2 second image under power cuts", () => {
	const bases: Base[] = [];
	const makeBases = async (t: TestContext): Promise<boolean> => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return false;
		for (let index = bases.length; index < kinds.length; index++) bases.push(await makeBase(kinds[index]!, index));
		return true;
	};

	const runHistory = async (
		seed: number,
		mutant: StoreMutant,
		tally: StoreTally,
		look?: (bytes: Uint8Array) => Promise<void>,
	): Promise<void> => {
		const base = bases[seed % bases.length]!;
		try {
			await new StoreHistory(base, seed, mutant, tally).run(look);
		} catch (error) {
			throw withReplay(error, "qcow2-store.sim.test.ts", seed, base.name);
		}
	};

	test(`no power cut breaks the promise (${runs} histories from seed ${firstSeed})`, async (t) => {
		if (!(await makeBases(t))) return;
		await using folder = await temporaryFolder();
		const path = folder.file("image");
		const look = async (bytes: Uint8Array): Promise<void> => {
			await writeFile(path, bytes);
			// The chain's other file is gone; QEMU need not open it to check this one.
			const alone = { driver: "qcow2", backing: null, file: { driver: "file", filename: path } };
			await checkByQemu(`json:${JSON.stringify(alone)}`, { leaksAllowed: true });
		};
		const tally = noTally();
		for (let seed = firstSeed; seed < firstSeed + runs; seed++)
			await runHistory(seed, "none", tally, seed % SHOWN_TO_QEMU < bases.length / 5 ? look : undefined);
		t.diagnostic(JSON.stringify(tally));
		if (runs >= 300) assertReached(tally);
	});

	for (const mutant of [
		"no flush",
		"no flush before references",
		"no flush before what was freed is reused",
		"counts after references",
		"data plane that is not told",
	] as const)
		test(`the broken variant "${mutant}" is caught`, async (t) => {
			if (!(await makeBases(t))) return;
			for (let seed = 1; seed <= 300; seed++) {
				const caught = await runHistory(seed, mutant, noTally()).then(
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
