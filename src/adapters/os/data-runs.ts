// Data runs: which parts of a sparse file hold data (SEEK_DATA, SEEK_HOLE; lseek(2)).

import * as sys from "./syscalls.ts";

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** A run of bytes that takes host space; `end` is exclusive. */
export interface DataRun {
	readonly start: number;
	readonly end: number;
}

/** The data inside `[from, to)`, in order. Where the host can't tell holes, everything is data. */
export function* dataRuns(fd: number, from: number, to: number): Generator<DataRun> {
	for (let at = from; at < to; ) {
		const start = sys.lseek(fd, at, SEEK_DATA);
		if (start === -sys.ENXIO || start >= to) return;
		if (start < 0) {
			yield { start: at, end: to };
			return;
		}
		const hole = sys.lseek(fd, start, SEEK_HOLE);
		const end = hole <= start ? to : Math.min(hole, to);
		yield { start, end };
		at = end;
	}
}
