// Contest: several programs that do the same job, in turns, round after round.

import { formatBytes } from "../src/foundations/units.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { table } from "./report.ts";
import { medianTiming, type Program, type Timing, timed } from "./timed.ts";

/** One program in a contest. */
export interface Contestant {
	readonly name: string;
	readonly program: Program;
	/** Before each of its runs; not timed. */
	readonly prepare?: () => Promise<void>;
	/** After each of its runs, not timed: a figure of the result, such as the space that it takes. */
	readonly outcome?: () => Promise<number>;
	/** Takes part in the first round only: far slower than the others. */
	readonly onlyOnce?: boolean;
}

/** What one contestant reached: medians over the rounds. */
export interface ContestResult {
	readonly job: string;
	readonly name: string;
	readonly timing: Timing;
	readonly outcome: number | null;
	/** Why it did not finish; its figures mean nothing then. */
	readonly failed: string | null;
}

/** Runs all contestants in turns. A contestant that fails is reported as such and not asked again. */
export async function contest(
	scratch: ScratchFolder,
	job: string,
	contestants: readonly Contestant[],
	rounds: number,
): Promise<ContestResult[]> {
	const timings = new Map<string, Timing[]>(contestants.map(({ name }) => [name, []]));
	const outcomes = new Map<string, number>();
	const failures = new Map<string, string>();
	for (let round = 0; round < rounds; round++)
		for (let turn = 0; turn < contestants.length; turn++) {
			const { name, program, prepare, outcome, onlyOnce } = contestants[(turn + round) % contestants.length]!;
			if (failures.has(name) || (onlyOnce && round > 0)) continue;
			await prepare?.();
			try {
				timings.get(name)!.push(await timed(scratch, program));
				if (outcome !== undefined) outcomes.set(name, await outcome());
			} catch (error) {
				failures.set(name, reasonOf(error));
			}
		}
	return contestants.map(({ name }) => {
		const failed = failures.get(name) ?? null;
		const all = timings.get(name)!;
		const nothing = { seconds: 0, cpuSeconds: 0, memoryBytes: 0, bytesRead: 0 };
		const timing = all.length > 0 ? medianTiming(all) : nothing;
		return { job, name, timing, outcome: outcomes.get(name) ?? null, failed };
	});
}

/** The program's own last words: what runOk throws has them between its headline and the codes that it compared. */
function reasonOf(error: unknown): string {
	if (!(error instanceof Error)) return String(error);
	const lines = error.message.split("\n").filter((line) => line.trim() !== "" && !/^\d+ !== \d+$/.test(line.trim()));
	return lines.at(-1) ?? "failed";
}

/** Side by side: vmsweep first, the others with their time as a multiple of its. `outcomeTitle` heads the last column. */
export function contestTable(results: readonly ContestResult[], outcomeTitle: string | null): string {
	const ours = results[0]!.timing.seconds;
	return table([
		[
			"",
			"seconds",
			": vmsweep",
			"processor s",
			"memory",
			"bytes read",
			...(outcomeTitle === null ? [] : [outcomeTitle]),
		],
		...results.map(({ name, timing, outcome, failed }) =>
			failed !== null
				? [`${name} (${failed.slice(0, 60)})`]
				: [
						name,
						timing.seconds.toFixed(2),
						`${(timing.seconds / ours).toFixed(1)}x`,
						timing.cpuSeconds.toFixed(2),
						formatBytes(timing.memoryBytes),
						formatBytes(timing.bytesRead),
						...(outcomeTitle === null ? [] : [outcome === null ? "–" : formatBytes(outcome)]),
					],
		),
	]);
}
