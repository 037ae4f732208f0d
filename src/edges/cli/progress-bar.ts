// Progress bar: one line on a terminal's standard error, for anything over a second; nothing elsewhere.
//
//   dropping free blocks  ██████████▌             42 %  4.2 GiB of 10 GiB  0:07

import type { createLogUpdate } from "log-update";
import { formatBytes } from "../../foundations/units.ts";
import type { Progress } from "../../services/progress.ts";

/** Nothing is shown before, in milliseconds: what is done sooner needs no bar. */
const SHOW_AFTER_MS = 1000;
const REDRAW_MS = 100;
const BAR_CELLS = 24;

/** `using bar = new ProgressBar()`: gone at the end of its scope. */
export class ProgressBar implements Disposable {
	readonly #started = performance.now();
	readonly #stream: NodeJS.WriteStream;
	#timer: NodeJS.Timeout | undefined;
	#line: ReturnType<typeof createLogUpdate> | undefined;
	#progress: Progress | undefined;
	#isOver = false;

	constructor(stream: NodeJS.WriteStream = process.stderr) {
		this.#stream = stream;
		if (stream.isTTY) this.#timer = setTimeout(() => void this.#begin(), SHOW_AFTER_MS).unref();
	}

	/** Takes note; drawing happens by the clock. */
	readonly update = (progress: Progress): void => {
		this.#progress = progress;
	};

	[Symbol.dispose](): void {
		this.#isOver = true;
		clearTimeout(this.#timer);
		this.#line?.clear();
	}

	/** What draws is loaded only now: it takes longer to load than most commands take. */
	async #begin(): Promise<void> {
		const { createLogUpdate } = await import("log-update");
		if (this.#isOver) return;
		this.#line = createLogUpdate(this.#stream, { showCursor: true });
		this.#timer = setInterval(() => this.#draw(), REDRAW_MS).unref();
		this.#draw();
	}

	#draw(): void {
		if (this.#progress === undefined) return;
		this.#line?.(formatProgress(this.#progress, performance.now() - this.#started));
	}
}

/** The bar's line, without a line end. */
export function formatProgress({ step, done, total }: Progress, elapsedMs: number): string {
	const time = formatTime(elapsedMs);
	if (total === null || total <= 0) return [step, ...(done > 0 ? [formatBytes(done)] : []), time].join("  ");
	const share = Math.min(1, done / total);
	const percent = `${Math.floor(share * 100)} %`.padStart(5);
	return `${step}  ${formatBar(share)} ${percent}  ${formatBytes(done)} of ${formatBytes(total)}  ${time}`;
}

function formatBar(share: number): string {
	const halves = Math.round(share * BAR_CELLS * 2);
	return ("█".repeat(halves >> 1) + (halves % 2 === 1 ? "▌" : "")).padEnd(BAR_CELLS, " ");
}

function formatTime(milliseconds: number): string {
	const seconds = Math.floor(milliseconds / 1000);
	return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
