// Broken variants of a served disk. Each one leaves out or reorders one thing that keeps the promise, in the product's own
// code (a safeguard switched off) or between its parts (a call that is lost, late or early). The simulation must notice
// every one of them: a check that notices none checks nothing.

import type { CopyRange, SecondImage } from "../../src/adapters/images/second-image.ts";
import type { PlaneCall, PlaneCalls, PlanePort } from "../../src/adapters/plane/messages.ts";
import { ZERO } from "../../src/core/log/first-image.ts";
import type { ByteCount, ByteOffset } from "../../src/foundations/units.ts";
import type { Mutant } from "./disk-history.ts";
import type { SimPlane } from "./sim-plane.ts";

type Replacements = {
	readonly [K in PlaneCall]?: (input: PlaneCalls[K]["input"]) => Promise<PlaneCalls[K]["output"]>;
};

/** The plane, but for some calls. */
const portWith = (plane: SimPlane, replaced: Replacements): PlanePort => ({
	ask<K extends PlaneCall>(
		kind: K,
		...input: undefined extends PlaneCalls[K]["input"] ? [] : [PlaneCalls[K]["input"]]
	): Promise<PlaneCalls[K]["output"]> {
		const replacement = replaced[kind] as ((input: unknown) => Promise<PlaneCalls[K]["output"]>) | undefined;
		return replacement === undefined ? plane.ask(kind, ...input) : replacement(input[0]);
	},
});

/** The second image, but for some methods. */
const secondWith = (second: SecondImage, replaced: Partial<SecondImage>): SecondImage =>
	new Proxy<SecondImage>(second, {
		get(target, name) {
			const own: unknown = Reflect.get(replaced, name);
			if (own !== undefined) return own;
			const value: unknown = Reflect.get(target, name, target);
			return typeof value === "function" ? value.bind(target) : value;
		},
	});

const noFlushAfter =
	(forgetful: "copy" | "punch") =>
	(second: SecondImage): SecondImage => {
		let last: "copy" | "punch" | undefined;
		return secondWith(second, {
			copyFrom(fd: number, ranges: readonly CopyRange[]) {
				last = "copy";
				return second.copyFrom(fd, ranges);
			},
			punch(at: ByteOffset, length: ByteCount) {
				last = "punch";
				return second.punch(at, length);
			},
			flush: () => (last === forgetful ? Promise.resolve() : second.flush()),
		});
	};

/** Copies begin when the next ones are asked for, or at the flush after: behind the reference that already points at them. */
function lateCopies(second: SecondImage): SecondImage {
	let late: (() => Promise<void>) | undefined;
	return secondWith(second, {
		async copyFrom(fd: number, ranges: readonly CopyRange[]) {
			const before = late;
			late = () => second.copyFrom(fd, ranges);
			await before?.();
		},
	});
}

/** Every block's reference as it is now, whatever the mover copied. */
function movedNow(plane: SimPlane, runs: Float64Array): Float64Array {
	const now: number[] = [];
	for (let i = 0; i < runs.length; i += 3)
		for (let block = runs[i]!; block < runs[i]! + runs[i + 1]!; block++) {
			const slot = plane.log.get(block);
			if (slot > ZERO) now.push(block, 1, slot);
		}
	return Float64Array.from(now);
}

async function onFreshView<T>(plane: SimPlane, work: (view: number) => Promise<T>): Promise<T> {
	const view = await plane.ask("takeView");
	try {
		await plane.ask("flush");
		return await work(view.id);
	} finally {
		await plane.ask("releaseView", view.id);
	}
}

function allZeroRuns(plane: SimPlane): Float64Array {
	const runs: number[] = [];
	plane.log.resolve(0, plane.log.diskBlocks, (value, block, count) => {
		if (value === ZERO) runs.push(block, count);
	});
	return Float64Array.from(runs);
}

export const mutants: readonly Mutant[] = [
	{ name: "entries without checksums", safeguards: { entryChecksums: false } },
	{ name: "data without checksums", safeguards: { dataChecksums: false } },
	{ name: "segments freed before what supersedes them is durable", safeguards: { supersededDurably: false } },
	{ name: "segments reused before the superblock that frees them is durable", safeguards: { tailDurably: false } },
	{ name: "recovery without a new epoch", safeguards: { epochs: false } },
	{ name: "views that hold no segments", safeguards: { viewsHold: false } },
	{ name: "no flush between a copy and the reference to it", second: noFlushAfter("copy") },
	{ name: "the reference before the copy", second: lateCopies },
	{ name: "no flush between a punch and the reference to it", second: noFlushAfter("punch") },
	{ name: "punches that are lost", second: (second) => secondWith(second, { punch: () => Promise.resolve() }) },
	{ name: "a cleaner that ignores snapshots", ignoreSnapshots: true },
	{
		name: "blocks kept for a snapshot only after they changed",
		port: (plane) =>
			portWith(plane, {
				keep: (kept) => {
					// Nobody waits for it, as if it were durable.
					plane.ask("keep", kept).catch(() => {});
					return Promise.resolve(undefined);
				},
			}),
	},
	{ name: "a second image that changes while its record says that it stands by itself", staleStand: true },
	{
		name: "a reference update that is lost",
		port: (plane) =>
			portWith(plane, {
				moved: ({ runs }) => Promise.resolve(runs.filter((_, i) => i % 3 === 1).reduce((sum, count) => sum + count, 0)),
			}),
	},
	{
		name: "a reference update that takes a newer write along",
		port: (plane) =>
			portWith(plane, {
				moved: ({ runs }) => onFreshView(plane, (view) => plane.ask("moved", { runs: movedNow(plane, runs), view })),
			}),
	},
	{
		name: "drops without compare and swap",
		port: (plane) =>
			portWith(plane, {
				dropped: ({ runs }) => onFreshView(plane, (view) => plane.ask("dropped", { runs, view })),
			}),
	},
	{
		name: "drops and moves before what they rest on is durable",
		port: (plane) => {
			// Only the flush that frees segments, right after a look at the status, is left.
			let afterStatus = false;
			return portWith(plane, {
				takeView: () => {
					afterStatus = false;
					return plane.ask("takeView");
				},
				status: () => {
					afterStatus = true;
					return plane.ask("status");
				},
				flush: () => (afterStatus ? plane.ask("flush") : Promise.resolve(undefined)),
				isDurable: () => Promise.resolve(true),
			});
		},
	},
	{
		name: "zeros punched before they are durable in the log",
		port: (plane) => portWith(plane, { zeroRuns: () => Promise.resolve(allZeroRuns(plane)) }),
	},
	{
		name: "moved blocks that forget when they were written",
		port: (plane) =>
			portWith(plane, {
				oldestSegments: async (most) =>
					(await plane.ask("oldestSegments", most as number)).map((segment) => ({
						...segment,
						endPosition: 0 as typeof segment.endPosition,
					})),
			}),
	},
];
