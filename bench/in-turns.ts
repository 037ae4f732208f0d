// Benchmarks whose servers take turns: a round is one measurement of each, and another one begins in each round.

import { spreadOf } from "./statistics.ts";

/** One server in one round. */
export interface Finding {
	readonly server: string;
	readonly round: number;
}

/** A row of a report: its title, and its figure. */
export type Row<F> = readonly [title: string, figure: (finding: F) => number];

/** Measures each server once per round, and prints each finding as JSON. */
export async function inTurns<Id extends string, F extends Finding>(
	servers: readonly Id[],
	rounds: number,
	measure: (server: Id, round: number) => Promise<F>,
): Promise<F[]> {
	const findings: F[] = [];
	for (let round = 0; round < rounds; round++)
		for (let turn = 0; turn < servers.length; turn++) {
			const finding = await measure(servers[(turn + round) % servers.length]!, round);
			findings.push(finding);
			console.log(JSON.stringify(finding));
		}
	return findings;
}

/** Prints a table of medians, a column per server. */
export function printMedians<F extends Finding>(
	title: string,
	servers: readonly string[],
	findings: readonly F[],
	rows: readonly Row<F>[],
): void {
	console.log(`\n${title}`);
	console.log(["".padEnd(28), ...servers.map((server) => server.padStart(14))].join(""));
	for (const [name, figure] of rows) {
		const medians = servers.map((server) => {
			const values = findings.filter((finding) => finding.server === server).map(figure);
			return spreadOf(values)!.median.toPrecision(3).padStart(14);
		});
		console.log([name.padEnd(28), ...medians].join(""));
	}
}

/** Prints how a figure of one server compares with another's: the median of the rounds' ratios, the least and the most; nothing without both. */
export function printRatio<F extends Finding>(
	title: string,
	[one, other]: readonly [string, string],
	findings: readonly F[],
	figure: (finding: F) => number,
): void {
	const others = new Map(findings.filter(({ server }) => server === other).map((each) => [each.round, figure(each)]));
	const ratios = findings.flatMap((each) => {
		const base = others.get(each.round);
		return each.server === one && base !== undefined ? [figure(each) / base] : [];
	});
	const spread = spreadOf(ratios);
	if (spread === undefined) return;
	const [ratio, min, max] = [spread.median, spread.min, spread.max].map((value) => value.toFixed(2));
	console.log(`${title.padEnd(44)} ${ratio} (${min}–${max})`);
}
