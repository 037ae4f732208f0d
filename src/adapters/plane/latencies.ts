// Latencies: how long requests took, as far as the data plane can see it. The cleaner's pace compares what they take while it
// works with what they take while it rests.
//
//   looked for work, none there ─► woke up, received ─► parse, append, answer, send
//                                  └───────────────── counted ──────────────────┘
//   found work at once: it may have come any time since the last look
//   └───────────── counted, with all that the control plane had done in between ─┘
//
// A round's requests count alike, in buckets that grow by the square root of two. What a request waits for in other threads'
// hands (a read that misses the page cache, a flush) doesn't count, nor does a late wake-up: the thread wasn't there to see it.

/** Buckets: the first takes all below 4 microseconds, the last one all from about 180 milliseconds on. */
const BUCKETS = 32;
const FIRST_MS = 0.004;

/** How many requests took how long, since the start; one number per bucket. */
export type LatencyCounts = Uint32Array;

export class Latencies {
	readonly #counts: LatencyCounts = new Uint32Array(BUCKETS);

	/** So many requests took so long. */
	add(requests: number, milliseconds: number): void {
		this.#counts[bucketOf(milliseconds)]! += requests;
	}

	counts(): LatencyCounts {
		return this.#counts.slice();
	}
}

function bucketOf(milliseconds: number): number {
	if (milliseconds <= FIRST_MS) return 0;
	return Math.min(BUCKETS - 1, Math.ceil(2 * Math.log2(milliseconds / FIRST_MS)));
}

/** What `share` of the requests stay below, in milliseconds, to a bucket exactly; 0 where there were none. */
export function percentileOf(counts: ArrayLike<number>, share: number): number {
	let total = 0;
	for (let bucket = 0; bucket < counts.length; bucket++) total += counts[bucket]!;
	let below = 0;
	for (let bucket = 0; bucket < counts.length; bucket++) {
		const here = counts[bucket]!;
		if (here > 0 && below + here >= total * share) {
			// Within a bucket, as if its requests lay evenly: a share of a few more moves it a little, not by half.
			const from = bucket === 0 ? 0 : FIRST_MS * 2 ** ((bucket - 1) / 2);
			const to = FIRST_MS * 2 ** (bucket / 2);
			return from + (to - from) * ((total * share - below) / here);
		}
		below += here;
	}
	return 0;
}
