// What the demo shows while it runs: one step after the other, with both images' sizes and the cleaner's work.
//
//   [ 41 s] the guest writes a 600 MiB file
//           first image   ████████████▌                 412 MiB    dropped   0 B
//           second image  ███                           101 MiB    moved     0 B
//
// A finished step stays as one line. Where the output is no terminal, a long step prints a line every few seconds.

import { createLogUpdate } from "log-update";
import { formatBytes } from "../src/foundations/units.ts";

/** What is shown of the disk; all in bytes. */
export interface Figures {
	readonly firstBytes: number;
	readonly secondBytes: number;
	readonly droppedBytes: number;
	readonly movedBytes: number;
}

const REFRESH_MS = 1000;
/** Refreshes between two lines where the output is no terminal. */
const PLAIN_EVERY = 5;
const BAR_CELLS = 28;
/** Bytes that fill a bar. */
const BAR_BYTES = 800 << 20;
const INDENT = " ".repeat(8);

export class DemoDisplay {
	readonly #started = performance.now();
	readonly #measure: () => Promise<Figures | undefined>;
	readonly #live: ReturnType<typeof createLogUpdate> | undefined;

	/** `measure` is asked about once a second; it gives nothing before the disk is there. */
	constructor(measure: () => Promise<Figures | undefined>) {
		this.#measure = measure;
		if (process.stdout.isTTY) this.#live = createLogUpdate(process.stdout, { showCursor: true });
	}

	get seconds(): number {
		return (performance.now() - this.#started) / 1000;
	}

	/** Runs one step of the demo and shows it. The figures are fresh when the step has ended. */
	async step<T>(title: string, work: () => Promise<T>): Promise<T> {
		const done = Promise.withResolvers<void>();
		const showing = this.#showUntil(title, done.promise);
		try {
			return await work();
		} finally {
			done.resolve();
			await showing;
			const figures = await this.#measure();
			this.#live?.clear();
			console.log(this.#line(title, figures));
		}
	}

	async #showUntil(title: string, end: Promise<void>): Promise<void> {
		let ended = false;
		void end.then(() => {
			ended = true;
		});
		for (let refresh = 1; ; refresh++) {
			const timer = Promise.withResolvers<void>();
			const timeout = setTimeout(timer.resolve, REFRESH_MS);
			await Promise.race([end, timer.promise]);
			clearTimeout(timeout);
			if (ended) return;
			const figures = await this.#measure();
			if (this.#live !== undefined) this.#live(this.#picture(title, figures));
			else if (refresh % PLAIN_EVERY === 0) console.log(this.#line(`${title} …`, figures));
		}
	}

	#clock(): string {
		return `[${String(Math.round(this.seconds)).padStart(3)} s]`;
	}

	#line(title: string, figures: Figures | undefined): string {
		if (figures === undefined) return `${this.#clock()} ${title}`;
		const { firstBytes, secondBytes, droppedBytes, movedBytes } = figures;
		const facts = [
			`first ${formatBytes(firstBytes)}`,
			`second ${formatBytes(secondBytes)}`,
			`dropped ${formatBytes(droppedBytes)}`,
			`moved ${formatBytes(movedBytes)}`,
		];
		return `${this.#clock()} ${title.padEnd(46)} ${facts.join(", ")}`;
	}

	#picture(title: string, figures: Figures | undefined): string {
		if (figures === undefined) return `${this.#clock()} ${title} …`;
		const { firstBytes, secondBytes, droppedBytes, movedBytes } = figures;
		const row = (name: string, bytes: number, label: string, total: number): string =>
			`${INDENT}${name}  ${bar(bytes)}  ${formatBytes(bytes).padStart(8)}    ${label}  ${formatBytes(total)}`;
		return [
			`${this.#clock()} ${title} …`,
			row("first image ", firstBytes, "dropped", droppedBytes),
			row("second image", secondBytes, "moved  ", movedBytes),
		].join("\n");
	}
}

/** `BAR_CELLS` characters, filled in halves of a cell. */
function bar(bytes: number): string {
	const halves = Math.min(BAR_CELLS * 2, Math.round((bytes / BAR_BYTES) * BAR_CELLS * 2));
	return ("█".repeat(halves >> 1) + (halves % 2 === 1 ? "▌" : "")).padEnd(BAR_CELLS, "·");
}
